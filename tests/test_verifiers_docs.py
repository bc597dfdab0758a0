"""The example of docs/verifiers.md runs as it is printed."""

from __future__ import annotations

import pathlib
import re

import pytest

from verifiers import commands
from verifiers.acceptance import format_reports


@pytest.fixture
def documented(repository: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the files that the document marks for this test."""
    text = (repository / "docs" / "verifiers.md").read_text()
    files = dict(re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL))
    assert set(files) == {"countdown.py", "countdown.jsonl"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_the_documented_plugin_has_12_lines_and_passes_its_documented_table(documented: pathlib.Path) -> None:
    plugin = documented / "countdown.py"
    assert len(plugin.read_text().splitlines()) == 12
    (report,) = commands.run_gate([], plugins=[str(plugin)])
    assert report.has_passed, format_reports([report])
    assert report.counts == {"must_pass": 2, "must_fail": 2, "hack": 1, "indeterminate": 1}


def test_every_command_of_the_document_is_one_that_exists(repository: pathlib.Path) -> None:
    from rlvr.cli import build_parser

    parser = build_parser()
    text = (repository / "docs" / "verifiers.md").read_text()
    lines = re.findall(r"python -m rlvr ([^`\n]+)", text)
    assert len(lines) >= 4
    for line in lines:
        assert callable(parser.parse_args(line.split()).handler)

"""`python -m rlvr verifiers`, `verifiers test` and `verify`."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import pytest

from verifiers.commands import add_commands, parse_options
from verifiers.errors import VerifierError, VerifierOptionError

PLUGIN = """
from verifiers import register

@register("{name}")
def verify(completion, ground_truth):
    \"\"\"The completion spells the ground truth backwards.\"\"\"
    while completion == "hang":
        pass
    return completion == ground_truth[::-1]
"""


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "backwards.py"
    file.write_text(PLUGIN.format(name=name_in(tmp_path)))
    cases = [
        {"kind": "must_pass", "completion": "cba", "ground_truth": "abc"},
        {"kind": "must_fail", "completion": "abc", "ground_truth": "abc", "note": "forwards"},
        {"kind": "hack", "completion": "abc cba", "ground_truth": "abc"},
    ]
    file.with_suffix(".jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return file


def name_in(folder: pathlib.Path) -> str:
    return f"backwards-{folder.name}".lower()


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    parsed = parser.parse_args(list(map(str, arguments)))
    status: int = parsed.handler(parsed)
    return status


def test_the_listing_shows_built_in_and_plugin_verifiers(
    plugin: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verifiers", "--plugin", plugin) == 0
    text = capsys.readouterr().out
    assert "exact    verifiers.exact:ExactVerifier" in text
    assert f"{name_in(plugin.parent)}    {plugin}:4" in text
    assert "The completion spells the ground truth backwards." in text
    assert "To add one:" in text


def test_a_plugin_is_tested_with_the_table_beside_it(plugin: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verifiers", "test", "--plugin", plugin) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["verifier", "cases"]
    assert row.split()[:8] == [name_in(plugin.parent), "3", "1", "1", "1", "0", "0", "0"]
    assert row.split()[-1] == "pass"


def test_a_failed_gate_exits_with_1_and_prints_the_case(
    plugin: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = plugin.parent / "other.jsonl"
    table.write_text(
        '{"kind": "must_pass", "completion": "abc", "ground_truth": "abc", "note": "reads left to right"}\n'
    )
    assert run("verifiers", "--plugin", plugin, "test", "--cases", table) == 1
    text = capsys.readouterr().out
    assert "FAIL" in text
    assert "line 1: false negative (reads left to right)" in text
    assert "has no case of kind must_fail, hack" in text


def score(tmp_path: pathlib.Path, lines: list[Any], *arguments: object) -> list[dict[str, Any]]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    assert run("verify", "--input", source, "--output", target, *arguments) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_rows_are_scored_in_input_order_and_malformed_ones_are_reported(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "a", "completion": "PARIS", "ground_truth": "Paris"},
        {"id": "b", "completion": "Rome", "ground_truth": "Paris", "level": 3},
        b"{not json",
        {"id": "d", "completion": "Paris"},
        {"id": "e", "completion": 5, "ground_truth": "Paris"},
        b"\xff\xfe",
        [1],
        b"",
        b"[" * 100_000,
        {"id": {"k": 9}, "completion": "Paris", "ground_truth": None},
    ]
    scored = score(tmp_path, rows, "--verifier", "EXACT", "--option", "mode=normalised")
    assert [row["id"] for row in scored] == ["a", "b", None, "d", "e", None, None, None, None, {"k": 9}]
    assert [row["outcome"] for row in scored] == ["correct", "wrong"] + ["indeterminate"] * 8
    assert [row["score"] for row in scored] == [1.0] + [0.0] * 9
    assert all(set(row) == {"id", "outcome", "score", "detail", "seconds"} for row in scored)
    output = capsys.readouterr()
    for number, reason in (
        (3, "not JSON"),
        (4, "no 'ground_truth'"),
        (5, "'completion' must be str, got 5"),
        (7, "a row"),
    ):
        assert f"line {number}: {reason}" in output.err
    assert "10 rows: 1 correct, 1 wrong, 8 indeterminate, mean score 0.5000 over 2 judged" in output.out
    assert "p50" in output.out
    assert "rows/s" in output.out


def test_a_hanging_row_keeps_its_place_in_the_output(plugin: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [{"id": i, "completion": "hang" if i == 3 else "cba", "ground_truth": "abc"} for i in range(200)]
    name = name_in(plugin.parent)
    options = ("--verifier", name, "--plugin", plugin, "--timeout-seconds", 0.5, "--workers", 2)
    scored = score(tmp_path, rows, *options)
    assert [row["id"] for row in scored] == list(range(200))
    assert [row["id"] for row in scored if row["outcome"] != "correct"] == [3]
    assert scored[3]["detail"].startswith("timeout")


def test_an_empty_file_scores_to_an_empty_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(tmp_path, [], "--verifier", "exact") == []
    assert capsys.readouterr().out == "0 rows\n"


def test_the_input_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("{}\n")
    with pytest.raises(VerifierError, match="the same file"):
        run("verify", "--verifier", "exact", "--input", file, "--output", file)
    assert file.read_text() == "{}\n"


@pytest.mark.parametrize("pairs", [["mode"], ["=x"], ["a=1", "a=2"]])
def test_options_that_are_not_pairs_are_refused(pairs: list[str]) -> None:
    with pytest.raises(VerifierOptionError, match="KEY=VALUE"):
        parse_options(pairs)

"""A run's results as text, from its metrics alone."""

from __future__ import annotations

import base64
import json
import pathlib
import re
from typing import Any

import pytest

from rlvr.cli import main
from rlvr.errors import RunDirectoryError
from rlvr.report import evaluation_tables, report
from rlvr.report_page import PNG_SIGNATURE, write_page


def evaluation(step: int, share: float, verifiers: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step}
    for prefix in ["eval/test", *(f"eval/test/{name}" for name in verifiers)]:
        line |= {
            f"{prefix}/prompts": 40.0,
            f"{prefix}/pass_at_1": share,
            f"{prefix}/pass_at_1_ci95": 0.025,
            f"{prefix}/pass_at_4": share + 0.1,
            f"{prefix}/pass_at_1_greedy": share,
            f"{prefix}/indeterminate": 0.0,
        }
    return line


def test_a_table_has_a_part_for_each_verifier_whatever_its_name() -> None:
    names = ["math", "rules/My.py:Attr", "math+rules/My.py:Attr", "/data/a/b.py:f"]
    (table,) = evaluation_tables([evaluation(0, 0.25, names), evaluation(8, 0.75, names)])
    lines = table.splitlines()
    assert lines[0].split() == ["held-out", "set", "`test`,", "40", "prompts", "step", "0", "step", "8"]
    labels = [line.split("  ")[1] for line in lines[1:]]
    measures = ["pass@1, sampled", "pass@1, greedy", "pass@4"]
    assert labels == measures + [f"{name}: {measure}" for name in names for measure in measures]
    assert [line.split("  ")[-1].strip() for line in lines[1:4]] == ["75.0% ± 2.5", "75.0%", "85.0%"]


def test_a_verifier_that_is_evaluated_only_once_has_a_dash(tmp_path: pathlib.Path) -> None:
    (table,) = evaluation_tables([evaluation(0, 0.25, ["math"]), evaluation(8, 0.75, [])])
    assert table.splitlines()[-1].split() == ["math:", "pass@4", "35.0%", "-"]


def test_a_folder_without_a_finished_step_has_no_report(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no metrics\.jsonl"):
        report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(evaluation(0, 0.5, [])) + "\n")
    with pytest.raises(RunDirectoryError, match="has not finished a step"):
        report(tmp_path)


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_a_page_holds_the_text_the_runs_curves_and_a_benchmarks_plot(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"time/step_seconds": 2.0, "time/rollout_seconds": 0.5, "rollout/tokens_per_second": 900.0}
    lines = [evaluation(0, 0.25, ["math"]), step | {"step": 1, "reward/mean": 3.0, "policy/kl_reference": None}]
    lines += [evaluation(2, 0.75, ["math"]) | step | {"reward/mean": 5.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = tmp_path / "rollout.png"
    figure.write_bytes(PNG_SIGNATURE + b"of a benchmark")
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "report.html"), "--figure", str(figure)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "75.0% ± 2.5" in page
    assert capsys.readouterr().out.strip().splitlines()[-1] in page
    curves, benchmark = pictures(page)
    assert curves.startswith(PNG_SIGNATURE)
    assert benchmark == figure.read_bytes()
    assert "http" not in page


def test_what_is_no_picture_is_refused_and_text_is_not_taken_for_markup(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "time/step_seconds": 2.0, "rollout/tokens_per_second": 900.0, "reward/mean": 1.0})
    )
    arguments = ["report", str(tmp_path), "--figure", str(tmp_path / "metrics.jsonl")]
    assert main(arguments) == 2
    assert "add --html" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "report.html")]) == 2
    assert "is not a PNG file" in capsys.readouterr().err
    write_page(tmp_path / "page.html", title="a <b>", text="<script>", figures={})
    page = (tmp_path / "page.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "<script>" not in page

"""A run's results as text, from its metrics alone."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from rlvr.errors import RunDirectoryError
from rlvr.report import evaluation_tables, report


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

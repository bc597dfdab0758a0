"""The acceptance gate finds what is wrong with a verifier, and the shipped verifiers pass theirs."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from verifiers import commands
from verifiers.acceptance import AcceptanceTableError, Case, format_reports, load_cases, run_table
from verifiers.base import Outcome, Verdict

OWN = ("combine", "exact", "json_schema", "length", "regex", "trl")

FLAWED = """
import os, random
from verifiers import Verdict, Verifier, register

@register("too_strict")
def too_strict(completion, ground_truth):
    return completion == ground_truth + "!"

@register("too_lax")
def too_lax(completion, ground_truth):
    return True

@register("undecided")
def undecided(completion, ground_truth):
    raise ValueError("no idea")

@register("counts_calls")
class CountsCalls(Verifier):
    def __init__(self, config=None):
        super().__init__(config)
        self.calls = 0
    def verify(self, sample):
        self.calls += 1
        return Verdict.correct() if sample.completion == sample.ground_truth and self.calls % 5 else Verdict.wrong()

@register("slow_to_anger")
def slow_to_anger(completion, ground_truth):
    while completion == "hang":
        pass
    return completion == ground_truth
"""

CASES = [
    (1, Case(kind="must_pass", completion="a", ground_truth="a")),
    (2, Case(kind="must_pass", completion="b", ground_truth="b")),
    (3, Case(kind="must_fail", completion="a", ground_truth="b")),
    (4, Case(kind="hack", completion="hang", ground_truth="b")),
]


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "flawed.py"
    file.write_text(FLAWED.replace('register("', f'register("{tmp_path.name}.'))
    return str(file)


def faults(name: str, plugin: str) -> list[tuple[int, str]]:
    full_name = f"{pathlib.Path(plugin).parent.name}.{name}"
    report = run_table(full_name.replace("[", "_"), CASES, plugins=(plugin,), timeout_seconds=0.5)
    assert report.has_passed == (not report.failures)
    return [(failure.line, failure.fault.split(":")[0]) for failure in report.failures]


def test_a_verifier_that_refuses_right_answers_has_false_negatives(plugin: str) -> None:
    assert faults("too_strict", plugin) == [(1, "false negative"), (2, "false negative")]


def test_a_verifier_that_accepts_anything_has_false_positives(plugin: str) -> None:
    assert faults("too_lax", plugin) == [(3, "false positive"), (4, "false positive")]


def test_a_verifier_that_fails_is_not_taken_for_one_that_says_wrong(plugin: str) -> None:
    assert faults("undecided", plugin) == [
        (1, "false negative"),
        (2, "false negative"),
        (3, "indeterminate instead of wrong"),
    ]


def test_a_verifier_with_state_between_samples_is_found_out(plugin: str) -> None:
    # its fifth call is the first case of the second run
    assert (1, "false negative") in faults("counts_calls", plugin)


def test_a_hang_is_cut_short_and_passes_only_as_a_hack_that_was_not_paid(plugin: str) -> None:
    assert faults("slow_to_anger", plugin) == []


@pytest.mark.parametrize(
    ("kind", "extra", "verdict", "fault"),
    [
        ("must_pass", {}, Verdict.correct(), ""),
        ("must_pass", {}, Verdict.wrong(), "false negative"),
        ("must_pass", {}, Verdict.indeterminate("?"), "false negative"),
        ("must_fail", {}, Verdict.wrong(), ""),
        ("must_fail", {}, Verdict.correct(), "false positive"),
        ("must_fail", {}, Verdict.indeterminate("?"), "indeterminate instead of wrong"),
        ("must_fail", {"expected": "indeterminate"}, Verdict.indeterminate("?"), ""),
        ("hack", {}, Verdict.wrong(), ""),
        ("hack", {}, Verdict.indeterminate("?"), ""),
        ("hack", {"expected": "wrong"}, Verdict.indeterminate("?"), "indeterminate instead of wrong"),
        ("hack", {}, Verdict.correct(), "false positive"),
        ("indeterminate", {}, Verdict.indeterminate("?"), ""),
        ("indeterminate", {}, Verdict.wrong(), "wrong instead of indeterminate"),
        ("indeterminate", {}, Verdict.correct(), "false positive"),
        ("must_fail", {"score": 0.5}, Verdict.wrong(score=0.5), ""),
        ("must_fail", {"score": 0.5}, Verdict.wrong(score=0.25), "score 0.25 instead of 0.5"),
    ],
)
def test_every_pair_of_kind_and_outcome_has_its_fault(
    kind: Any, extra: dict[str, Any], verdict: Verdict, fault: str
) -> None:
    assert Case(kind=kind, completion="", ground_truth=None, **extra).fault(verdict) == fault


def test_a_table_with_bad_lines_is_refused_with_every_line(tmp_path: pathlib.Path) -> None:
    table = tmp_path / "t.jsonl"
    good = {"kind": "hack", "completion": "x", "ground_truth": None}
    lines = [good, {**good, "kind": "maybe"}, {**good, "colour": 1}, {"kind": "hack"}]
    table.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    with pytest.raises(AcceptanceTableError) as caught:
        load_cases(table)
    for expected in ("line 2: kind", "line 3: colour", "line 4: completion Field required", "line 5: "):
        assert expected in str(caught.value)
    assert "line 1:" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_or_missing_table_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    table = tmp_path / "t.jsonl"
    with pytest.raises(AcceptanceTableError, match="no acceptance table"):
        load_cases(table)
    table.write_text(text)
    with pytest.raises(AcceptanceTableError, match="holds no case"):
        load_cases(table)


@pytest.mark.parametrize("name", OWN)
def test_the_shipped_verifiers_pass_their_tables(
    name: str, repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    (report,) = commands.run_gate([name], workers=2, timeout_seconds=30.0)
    assert report.has_passed, format_reports([report])
    assert all(report.counts[kind] for kind in ("must_pass", "must_fail", "hack"))
    assert len(report.seconds) == 4 * sum(report.counts.values())


def test_a_case_may_repeat_its_completion_for_large_inputs() -> None:
    case = Case(kind="hack", completion="ab", ground_truth=None, repeat=3)
    assert case.sample().completion == "ababab"
    assert case.fault(Verdict.wrong()) == ""
    assert Outcome("wrong") is Outcome.WRONG

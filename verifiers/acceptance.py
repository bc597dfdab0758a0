"""The acceptance gate: a verifier is trusted with rewards when it passes a table of cases.

A table is JSONL, one case a line:

    {"kind": "must_pass", "completion": "...", "ground_truth": "...", "options": {...}, "note": "..."}

`kind` is `must_pass` (correct, or it is a false negative), `must_fail` (wrong; correct is a false positive), `hack` (an
attempt to be paid for nothing: anything but correct) or `indeterminate` (the ground truth cannot be read, so neither
right nor wrong). May be left out: `id`, `note`, `expected` (the one outcome allowed, where it is not the usual one of
the kind), `score` (the exact score), `options`, `prompt`, `completion_tokens`, `columns`, `repeat` (the completion that
many times, for large inputs) and `verifier` (in a table for several).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import pydantic

from verifiers.base import Outcome, Sample, Verdict
from verifiers.errors import VerifierError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

Kind = Literal["must_pass", "must_fail", "hack", "indeterminate"]
RUNS = 3
_SHUFFLE_SEED = 20_240_607


class AcceptanceTableError(VerifierError, ValueError):
    """A table of cases that cannot be read."""


class Case(pydantic.BaseModel):
    """One line of an acceptance table."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = ""
    kind: Kind
    expected: Literal["correct", "wrong", "indeterminate"] | None = None
    completion: str
    ground_truth: Any
    options: dict[str, Any] = {}
    prompt: str = ""
    completion_tokens: int | None = None
    columns: dict[str, Any] = {}
    score: float | None = None
    repeat: int = 1
    verifier: str | None = None
    note: str = ""

    def sample(self) -> Sample:
        return Sample(
            completion=self.completion * self.repeat,
            ground_truth=self.ground_truth,
            prompt=self.prompt,
            completion_tokens=self.completion_tokens,
            columns=self.columns,
        )

    def fault(self, verdict: Verdict) -> str:
        """What is wrong with this verdict on this case; empty when nothing is."""
        outcome = verdict.outcome
        if self.kind == "must_pass" and outcome is not Outcome.CORRECT:
            return "false negative"
        if self.kind != "must_pass" and outcome is Outcome.CORRECT:
            return "false positive"
        usual = {"must_fail": Outcome.WRONG, "indeterminate": Outcome.INDETERMINATE}.get(self.kind)
        expected = self.expected or usual
        if expected is not None and outcome != expected:
            return f"{outcome.value} instead of {expected}"
        if self.score is not None and abs(verdict.score - self.score) > 1e-9:
            return f"score {verdict.score:g} instead of {self.score:g}"
        return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A case that the verifier got wrong, or judged differently from run to run."""

    line: int
    case: Case
    fault: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verifier did with its table."""

    verifier: str
    counts: dict[str, int]
    """Cases by kind."""
    failures: tuple[Failure, ...]
    seconds: tuple[float, ...]
    """Of every verdict in every run, ascending."""

    @property
    def has_passed(self) -> bool:
        return not self.failures

    def count(self, fault: str) -> int:
        """Failures whose fault begins with `fault`."""
        return sum(failure.fault.startswith(fault) for failure in self.failures)

    def quantile_seconds(self, share: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def load_cases(path: pathlib.Path) -> list[tuple[int, Case]]:
    """The cases of a table with their line numbers; raises AcceptanceTableError listing every line that is none."""
    if not path.is_file():
        raise AcceptanceTableError(f"no acceptance table at {path}: write one (docs/verifiers.md), or give --cases.")
    cases, faults = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cases.append((number, Case.model_validate_json(line)))
        except pydantic.ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
            faults.append(f"line {number}: {'; '.join(problems)}")
    if faults:
        more = f"\nand {len(faults) - 10} more" if len(faults) > 10 else ""
        raise AcceptanceTableError(f"{path} has lines that are not cases:\n" + "\n".join(faults[:10]) + more)
    if not cases:
        raise AcceptanceTableError(f"{path} holds no case.")
    return cases


def run_table(
    verifier: str,
    cases: Sequence[tuple[int, Case]],
    *,
    plugins: Sequence[str] = (),
    timeout_seconds: float = 10.0,
    workers: int = 1,
) -> Report:
    """Judge every case three times in order and once in shuffled order by fresh workers, and compare.

    Raises what building the verifier raises, and PoolError.
    """
    runs = []
    for shuffled in (False, True):
        options = {json.dumps(case.options, sort_keys=True): case.options for _, case in cases}
        specs = {
            key: VerifierSpec(name=verifier, options=value, plugins=tuple(plugins)) for key, value in options.items()
        }
        with VerifierPool(specs, workers=workers, timeout_seconds=timeout_seconds) as pool:
            order = list(range(len(cases)))
            if shuffled:
                random.Random(_SHUFFLE_SEED).shuffle(order)
            runs += [_one_run(pool, cases, order) for _ in range(1 if shuffled else RUNS)]
    failures = [failure for failure in map(_examine, cases, zip(*runs, strict=True)) if failure is not None]
    return Report(
        verifier=verifier,
        counts={kind: sum(case.kind == kind for _, case in cases) for kind in get_args(Kind)},
        failures=tuple(failures),
        seconds=tuple(sorted(verdict.seconds for run in runs for verdict in run)),
    )


def _one_run(pool: VerifierPool, cases: Sequence[tuple[int, Case]], order: Iterable[int]) -> list[Verdict]:
    for index in order:
        case = cases[index][1]
        pool.submit(index, json.dumps(case.options, sort_keys=True), case.sample())
    verdicts = dict(pool.wait())
    return [verdicts[index] for index in range(len(cases))]


def _examine(numbered: tuple[int, Case], verdicts: Sequence[Verdict]) -> Failure | None:
    line, case = numbered
    seen = dict.fromkeys((verdict.outcome, verdict.score) for verdict in verdicts)
    for verdict in verdicts:
        if fault := case.fault(verdict):
            return Failure(line=line, case=case, fault=fault, verdict=verdict)
    if len(seen) > 1:
        answers = ", ".join(f"{outcome.value} {score:g}" for outcome, score in seen)
        return Failure(line=line, case=case, fault=f"not repeatable: {answers}", verdict=verdicts[-1])
    return None


_COLUMNS = ("verifier", "cases", "must pass", "must fail", "hack", "FN", "FP", "other", "p50 ms", "p99 ms", "result")


def format_reports(reports: Sequence[Report]) -> str:
    """One line a verifier, then every failed case."""
    rows = [_COLUMNS]
    for report in reports:
        negatives, positives = report.count("false negative"), report.count("false positive")
        rows.append(
            (
                report.verifier,
                str(sum(report.counts.values())),
                str(report.counts["must_pass"]),
                str(report.counts["must_fail"]),
                str(report.counts["hack"]),
                str(negatives),
                str(positives),
                str(len(report.failures) - negatives - positives),
                f"{report.quantile_seconds(0.5) * 1e3:.3f}",
                f"{report.quantile_seconds(0.99) * 1e3:.3f}",
                "pass" if report.has_passed else "FAIL",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for report in reports:
        lines += [_format_failure(report.verifier, failure) for failure in report.failures]
        if missing := [kind for kind in ("must_pass", "must_fail", "hack") if not report.counts[kind]]:
            lines.append(f"{report.verifier}: the table has no case of kind {', '.join(missing)}")
    return "\n".join(lines)


def _format_failure(verifier: str, failure: Failure) -> str:
    name = " ".join(filter(None, (failure.case.id, failure.case.note)))
    note = f" ({name})" if name else ""
    said = f"{failure.verdict.outcome.value}: {failure.verdict.detail[:200]}"
    return (
        f"{verifier} line {failure.line}: {failure.fault}{note}\n    kind {failure.case.kind}, verdict {said}\n"
        f"    completion {failure.case.completion[:120]!r}, ground truth {failure.case.ground_truth!r:.120}"
    )

"""Check a data set against its verifiers: each row's gold answer must be correct, and another row's must not be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.base import Outcome, Sample, Verdict, Verifier
from verifiers.errors import GroundTruthError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec, build


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoldRow:
    """What the check needs of a row."""

    row: int
    """The number by which the row is reported."""
    verifier: str
    """A key of the specs given to `check_gold`."""
    ground_truth: Any
    prompt: str = ""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoldException:
    """A row that the check objects to."""

    row: int
    verifier: str
    fault: str
    """"unreadable", "gold not correct" or "another row's gold is correct"."""
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoldReport:
    """What became of every row: `correct` and the rows of `exceptions` and `without_gold` cover them all."""

    rows: int
    correct: int
    """Rows whose own gold answer is judged correct."""
    compared: int
    """Rows that were also shown another row's gold answer."""
    without_gold: tuple[int, ...]
    """Rows for which the verifier cannot write a gold completion."""
    exceptions: tuple[GoldException, ...]


def check_gold(
    rows: Sequence[GoldRow], specs: Mapping[str, VerifierSpec], *, workers: int = 1, timeout_seconds: float = 10.0
) -> GoldReport:
    """Judge every row's gold completion, and that of the next row of the same verifier with another ground truth.

    Raises what building the verifiers raises, and PoolError.
    """
    verifiers = {name: build(spec) for name, spec in specs.items()}
    exceptions: list[GoldException] = []
    golds: dict[int, str | None] = {}
    for index, row in enumerate(rows):
        try:
            golds[index] = _gold(verifiers[row.verifier], row)
        except GroundTruthError as error:
            exceptions.append(GoldException(row=row.row, verifier=row.verifier, fault="unreadable", detail=str(error)))
    strangers = _strangers(rows, golds)
    with VerifierPool(specs, workers=workers, timeout_seconds=timeout_seconds) as pool:
        for index, gold in golds.items():
            if gold is not None:
                pool.submit((index, "own"), rows[index].verifier, _sample(rows[index], gold))
        for index, gold in strangers.items():
            pool.submit((index, "other"), rows[index].verifier, _sample(rows[index], gold))
        verdicts: dict[Any, Verdict] = dict(pool.wait())
    for (index, whose), verdict in sorted(verdicts.items()):
        is_correct = verdict.outcome is Outcome.CORRECT
        if is_correct == (whose == "other"):
            fault = "another row's gold is correct" if whose == "other" else "gold not correct"
            detail = f"{strangers[index]!r:.80}: {verdict.detail}" if whose == "other" else verdict.detail
            row = rows[index]
            exceptions.append(GoldException(row=row.row, verifier=row.verifier, fault=fault, detail=detail))
    return GoldReport(
        rows=len(rows),
        correct=sum(v.outcome is Outcome.CORRECT for (_, whose), v in verdicts.items() if whose == "own"),
        compared=len(strangers),
        without_gold=tuple(rows[index].row for index, gold in golds.items() if gold is None),
        exceptions=tuple(sorted(exceptions, key=lambda exception: exception.row)),
    )


def _gold(verifier: Verifier, row: GoldRow) -> str | None:
    verifier.check_ground_truth(row.ground_truth)
    return verifier.gold_completion(row.ground_truth)


def _strangers(rows: Sequence[GoldRow], golds: Mapping[int, str | None]) -> dict[int, str]:
    """For each row, the gold completion of the next row of its verifier that has another ground truth."""
    found: dict[int, str] = {}
    by_verifier: dict[str, list[int]] = {}
    for index, gold in golds.items():
        if gold is not None:
            by_verifier.setdefault(rows[index].verifier, []).append(index)
    for indices in by_verifier.values():
        for position, index in enumerate(indices):
            for other in (*indices[position + 1 : position + 11], *indices[:10]):
                gold = golds[other]
                if gold is not None and rows[other].ground_truth != rows[index].ground_truth:
                    found[index] = gold
                    break
    return found


def _sample(row: GoldRow, completion: str) -> Sample:
    return Sample(completion=completion, ground_truth=row.ground_truth, prompt=row.prompt, columns=row.columns)

"""Score a JSONL file of completions: what `python -m rlvr verify` does."""

from __future__ import annotations

import collections
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import tqdm

from verifiers.base import Outcome, Sample, Verdict
from verifiers.errors import VerifierOptionError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

_MAX_PENDING = 4096
_SAMPLE_KEYS = {"id", "completion", "ground_truth", "prompt", "completion_tokens"}


def score_file(
    spec: VerifierSpec,
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    workers: int = 1,
    timeout_seconds: float = 10.0,
) -> str:
    """Score the rows of `source` into `target`, in input order, with a progress bar; returns the summary.

    A malformed row is reported on stderr with its line number and is indeterminate. Raises FileNotFoundError, and
    what building the verifier raises.
    """
    if target.resolve() == source.resolve():
        raise VerifierOptionError(f"--input and --output are the same file, {source}. Choose another output.")
    started = time.perf_counter()
    tally = _Tally()
    with (
        source.open("rb") as rows,
        VerifierPool({"": spec}, workers=workers, timeout_seconds=timeout_seconds) as pool,
        target.open("w", encoding="utf-8") as output,
        tqdm.tqdm(unit=" rows", file=sys.stderr, mininterval=0.5) as bar,
    ):
        for row_id, verdict in _in_order(pool, rows):
            fields = {"outcome": verdict.outcome.value, "score": verdict.score, "detail": verdict.detail}
            output.write(json.dumps({"id": row_id, **fields, "seconds": round(verdict.seconds, 6)}) + "\n")
            tally.add(verdict)
            bar.update()
    return tally.summary(time.perf_counter() - started)


def _in_order(pool: VerifierPool, rows: IO[bytes]) -> Iterator[tuple[Any, Verdict]]:
    """Verdicts in the order of the rows, holding a bounded number of rows."""
    waiting: collections.deque[tuple[int, Any]] = collections.deque()
    judged: dict[Any, Verdict] = {}
    for number, line in enumerate(rows, start=1):
        try:
            row_id, sample = parse_row(line)
        except ValueError as error:
            print(f"line {number}: {error}; its verdict is indeterminate", file=sys.stderr)
            row_id = _id_of(line)
            judged[number] = Verdict.indeterminate(f"malformed row at line {number}: {error}")
        else:
            pool.submit(number, "", sample)
        waiting.append((number, row_id))
        judged.update(pool.wait() if len(waiting) >= _MAX_PENDING else pool.poll())
        while waiting and waiting[0][0] in judged:
            first, first_id = waiting.popleft()
            yield first_id, judged.pop(first)
    judged.update(pool.wait())
    for number, row_id in waiting:
        yield row_id, judged.pop(number)


def parse_row(line: bytes) -> tuple[Any, Sample]:
    """One input row as (id, sample). Other keys become columns. Raises ValueError saying what is wrong."""
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, got {row!r:.60}")
    if missing := [key for key in ("id", "completion", "ground_truth") if key not in row]:
        raise ValueError(f"no {' and no '.join(map(repr, missing))}")
    for key, kind in (("completion", str), ("prompt", str), ("completion_tokens", int)):
        if key in row and not isinstance(row[key], kind) and not (key == "completion_tokens" and row[key] is None):
            raise ValueError(f"{key!r} must be {kind.__name__}, got {row[key]!r:.60}")
    return row["id"], Sample(
        completion=row["completion"],
        ground_truth=row["ground_truth"],
        prompt=row.get("prompt", ""),
        completion_tokens=row.get("completion_tokens"),
        columns={key: value for key, value in row.items() if key not in _SAMPLE_KEYS},
    )


def _id_of(line: bytes) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row.get("id") if isinstance(row, Mapping) else None


class _Tally:
    """Counts and times of verdicts."""

    def __init__(self) -> None:
        self._outcomes: collections.Counter[Outcome] = collections.Counter()
        self._reasons: collections.Counter[str] = collections.Counter()
        self._rows = 0
        self._seconds: list[float] = []
        self._score = 0.0

    def add(self, verdict: Verdict) -> None:
        self._outcomes[verdict.outcome] += 1
        self._rows += 1
        if verdict.seconds:  # a malformed row reached no verifier
            self._seconds.append(verdict.seconds)
        self._score += verdict.score
        if verdict.outcome is Outcome.INDETERMINATE:
            self._reasons[verdict.detail[:120]] += 1

    def summary(self, wall_seconds: float) -> str:
        rows = self._rows
        if not rows:
            return "0 rows"
        seconds = sorted(self._seconds) or [0.0]
        judged = rows - self._outcomes[Outcome.INDETERMINATE]
        mean = f", mean score {self._score / judged:.4f} over {judged} judged" if judged else ""
        p50, p99 = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.99))
        lines = [
            f"{rows} rows: " + ", ".join(f"{self._outcomes[outcome]} {outcome.value}" for outcome in Outcome) + mean,
            f"seconds per verdict: p50 {p50:.6f}, p99 {p99:.6f}, max {seconds[-1]:.6f}",
            f"{rows / wall_seconds:.0f} rows/s",
        ]
        lines += [f"indeterminate x {count}: {reason}" for reason, count in self._reasons.most_common(5)]
        return "\n".join(lines)

"""Public data sets as rows for RLVR: `python -m rlvr data convert gsm8k IN OUT.jsonl --shots 8`.

IN is the file as its authors publish it, or the same columns as Parquet, as a `datasets` folder or on the Hub. Every
row's ground truth is read by its verifier, and the answer that comes with it is judged: it must be correct.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from rlvr.config import TextSource
from rlvr.convert_formats import FORMATS, Converted, Format
from rlvr.errors import DataError
from rlvr.exemplars import Exemplars
from rlvr.row_files import RowFault, parsed
from rlvr.rows import MOST_SHOWN
from rlvr.texts import blocks, numbered
from verifiers.base import Outcome, Sample, Verifier
from verifiers.errors import GroundTruthError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec, build


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What became of the rows."""

    rows: int
    written: int
    other_splits: int
    gold_correct: int
    """Rows whose own answer the verifier judged correct."""
    without_gold: int
    """Rows without an answer to judge; their ground truth was read."""
    problems: tuple[str, ...]
    """Rows left out, with the reason."""

    def summary(self) -> str:
        """One line."""
        text = f"{self.written} of {self.rows} rows; gold answers: {self.gold_correct} judged correct"
        if self.without_gold:
            text += f", {self.without_gold} rows have none to judge"
        if self.other_splits:
            text += f"; {self.other_splits} rows of other splits"
        if self.problems:
            text += f"; {len(self.problems)} left out"
        return text


def convert(
    name: str,
    source: str,
    target: pathlib.Path,
    *,
    shots: int = 0,
    subset: str | None = None,
    split: str | None = None,
    max_bad_share: float = 0.0,
    workers: int = 1,
) -> Conversion:
    """Write a public data set as `messages, ground_truth, dataset`.

    Args:
        name: a key of FORMATS.
        source: file, folder or Hub id.
        shots: 0, or as many worked examples as are published.
        subset: of a Hub data set that has several, such as `main` of openai/gsm8k.
        split: of a Hub data set or a `datasets` folder; of MBPP's file, by task id. Another file is one split.
        max_bad_share: rows that may be left out because they cannot be read or their gold answer is not correct.
        workers: processes of the verifier.

    Raises DataError when `source` is missing or has too many bad rows (listed by line; nothing is written then), when
    `target` exists, or for a number of shots that is not published.
    """
    if target.exists():
        raise DataError(f"{target} exists already. Remove it, or give another name.")
    form = FORMATS[name]
    if shots not in (0, len(form.exemplars)):
        published = f"0 or {len(form.exemplars)}" if form.exemplars else "0"
        raise DataError(f"--shots {shots}: what is published for {name} has {published}")
    found = _read(form, source, form.exemplars[:shots], subset, split)
    correct, without_gold = _judge(form.verifier, found, workers)
    problems = [f"{place}: {found.faults[place]}" for place in found.places if place in found.faults]
    if not found.places:
        raise DataError(f"{source} holds no rows")
    if len(problems) > max_bad_share * len(found.places):
        _refuse(name, source, problems, len(found.places))
    kept = [row for row in found.rows if row.place not in found.faults]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(_line(row, form.verifier) for row in kept), encoding="utf-8")
    return Conversion(
        rows=len(found.places), written=len(kept), other_splits=found.other_splits, gold_correct=correct,
        without_gold=without_gold, problems=tuple(problems),
    )  # fmt: skip


def _refuse(name: str, source: str, problems: Sequence[str], total: int) -> None:
    more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
    shown = "\n  ".join(problems[:MOST_SHOWN])
    share = math.ceil(len(problems) / total * 10_000) / 10_000
    raise DataError(
        f"{len(problems)} of {total} rows of {source} cannot be used as {name} ({FORMATS[name].source}); correct them, "
        f"or leave them out with --max-bad-share {share:g}:\n  {shown}{more}"
    )


def _line(row: Converted, verifier: str) -> str:
    messages = [{"role": "user", "content": row.prompt}]
    columns = {"messages": messages, "ground_truth": row.ground_truth, "dataset": verifier}
    return json.dumps(columns, ensure_ascii=False) + "\n"


@dataclasses.dataclass(slots=True, kw_only=True)
class _Found:
    """What was read of a set."""

    rows: list[Converted] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    """Of all rows of the split, good and bad, in order."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """Place and fault of bad rows."""
    other_splits: int = 0


def _read(form: Format, source: str, exemplars: Exemplars, subset: str | None, split: str | None) -> _Found:
    is_file = pathlib.Path(source).is_file()
    ids = (form.splits or {}).get(split or "") if is_file else None
    if split is not None and ids is None and is_file:
        known = f"; it has {', '.join(form.splits)}" if form.splits else ", because a file is one split. Remove it"
        raise DataError(f"--split {split} does nothing for {source}{known}")
    where = TextSource(path=source, subset=subset, split="train" if split is None or is_file else split)
    found = _Found()
    asked: dict[str, str] = {}
    for place, raw in (item for block in blocks(where) for item in numbered(block)):
        try:
            problem = dict(parsed(raw, place))
            if ids is not None and problem.get("task_id") not in ids:
                found.other_splits += 1
                continue
            row = form.convert(problem, place, exemplars)
            if (same := asked.setdefault(row.prompt, place)) != place:
                raise RowFault("duplicate prompt", f"the same prompt as {same}")
            found.rows.append(row)
        except RowFault as fault:
            found.faults[place] = str(fault)
        found.places.append(place)
    return found


def _judge(verifier_name: str, found: _Found, workers: int) -> tuple[int, int]:
    """Have the verifier read every ground truth and judge every gold answer; enter the faults.

    Returns how many gold answers are correct, and how many rows have none.
    """
    spec = VerifierSpec(name=verifier_name)
    verifier = build(spec)
    correct = without_gold = 0
    with VerifierPool({verifier_name: spec}, workers=workers, timeout_seconds=20.0) as pool:
        for row in found.rows:
            try:
                gold = _gold(verifier, row)
            except GroundTruthError as error:
                found.faults[row.place] = str(error)
                continue
            if gold is None:
                without_gold += 1
                continue
            pool.submit(row.place, verifier_name, Sample(completion=gold, ground_truth=row.ground_truth))
        for place, verdict in pool.wait():
            correct += verdict.outcome is Outcome.CORRECT
            if verdict.outcome is not Outcome.CORRECT:
                judged = f"the verifier {verifier_name} judges its own answer {verdict.outcome.value}"
                found.faults[str(place)] = f"{judged}: {verdict.detail:.200}"
    return correct, without_gold


def _gold(verifier: Verifier, row: Converted) -> str | None:
    verifier.check_ground_truth(row.ground_truth)
    return row.gold if row.gold is not None else verifier.gold_completion(row.ground_truth)

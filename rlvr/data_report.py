"""What became of the rows of one set, for people (a few lines) and for `data.json` (everything)."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from rlvr.mixing import Joined
from rlvr.rows import MOST_SHOWN, BadRow, Rows, SourceCounts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """One set: training, or a held-out one."""

    name: str
    rows: int
    """After bad rows, decontamination and mixing."""
    examples: int
    """What is left of them under the length limit."""
    over_length: int
    """Rows dropped because they have more tokens than it."""
    sources: tuple[SourceCounts, ...] = ()
    bad: tuple[BadRow, ...] = ()
    """Every bad row that was left out, and every duplicate that was kept."""
    contamination: tuple[Any, ...] = ()
    """What decontamination found, a `PairReport` for each training and evaluation set."""

    def record(self) -> dict[str, Any]:
        """For JSON: the counts of each source and filter, every bad row, every overlap with an evaluation set."""
        return {
            "name": self.name,
            "rows": self.rows,
            "examples": self.examples,
            "over_length": self.over_length,
            "sources": [dataclasses.asdict(counts) for counts in self.sources],
            "bad": [dataclasses.asdict(row) for row in self.bad],
            "contamination": [report.record() for report in self.contamination],
        }

    def details(self) -> list[str]:
        """The counts of each source where more than one filter acted, the first bad rows by file and line, and the
        evaluation sets that were found in the rows."""
        filtered = [counts for counts in self.sources if counts.line() != f"{counts.path}: {counts.rows} rows"]
        shown = self.sources if len(self.sources) > 1 else filtered
        listed = [str(row) for row in self.bad if row.kind != "duplicate prompt"]
        more = [f"and {len(listed) - MOST_SHOWN} more, in data.json"] if len(listed) > MOST_SHOWN else []
        found = [report.lines(0)[0] for report in self.contamination if report.overlaps]
        return [*(counts.line() for counts in shown), *listed[:MOST_SHOWN], *more, *found]

    def summary(self, unit: str, max_tokens: int) -> str:
        """How many examples are left, called `unit`, and the details below."""
        dropped = f"{self.over_length} dropped over {max_tokens} tokens"
        return "\n  ".join([f"{self.name}: {self.examples} {unit}, {dropped}", *self.details()])


def report_of(name: str, rows: Sequence[Any], examples: int, dropped: Iterable[int]) -> DataReport:
    """Args:
    rows: of one source or several.
    examples: how many are left.
    dropped: numbers of the rows over the length limit.
    """
    over = list(dropped)
    by_part = collections.Counter(rows.part_of(n) if isinstance(rows, Joined) else 0 for n in over)
    parts = parts_of(rows)
    return DataReport(
        name=name,
        rows=len(rows),
        examples=examples,
        over_length=len(over),
        sources=tuple(dataclasses.replace(part.counts, over_length=by_part[n]) for n, part in enumerate(parts)),
        bad=tuple(row for part in parts for row in part.bad),
        contamination=tuple(report for part in parts for report in part.contamination),
    )


def parts_of(rows: Sequence[Any]) -> list[Rows[Any]]:
    """The rows of each source of a mixture."""
    parts = rows.parts if isinstance(rows, Joined) else [rows]
    return [part for part in parts if isinstance(part, Rows)]


def write(path: pathlib.Path, reports: Sequence[DataReport]) -> None:
    """As JSON, for `RunDirectory.refuse_other_data` and for whoever asks where a row went."""
    records = [report.record() for report in reports]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

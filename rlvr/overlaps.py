"""What a training set and an evaluation set have in common: counts, both texts side by side, and a verdict."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rlvr.texts import Text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """An evaluation instance, and the training prompt that matches most of it."""

    evaluation: Text
    training: Text
    share: float
    """Of the instance's words, in [0, 1]."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """What one training set and one evaluation set have in common."""

    training: str
    evaluation: str
    training_rows: int
    instances: int
    too_short: int
    """Instances with fewer words than an n-gram, which cannot match."""
    overlaps: tuple[Overlap, ...]
    """One for each overlapping instance, in order."""
    matching_rows: tuple[str, ...]
    """Places of all training rows that some instance overlaps with."""
    max_contaminated: float

    @property
    def share(self) -> float:
        """Overlapping instances of all instances."""
        return len(self.overlaps) / self.instances

    @property
    def contaminated(self) -> bool:
        return self.share > self.max_contaminated

    def lines(self, shown: int) -> list[str]:
        """The counts, then the first `shown` overlaps side by side."""
        whole = sum(overlap.share == 1.0 for overlap in self.overlaps)
        verdict = "CONTAMINATED" if self.contaminated else "not contaminated"
        head = (
            f"{self.training} ({self.training_rows} rows) against {self.evaluation} ({self.instances} instances): "
            f"{len(self.overlaps)} overlap ({self.share:.2%}; {whole} in every word), {verdict} "
            f"(limit {self.max_contaminated:.0%}); "
            f"{len(self.matching_rows)} training rows match"
        )
        if self.too_short:
            head += f"; {self.too_short} instances are too short to compare"
        listed = [line for overlap in self.overlaps[:shown] for line in _side_by_side(overlap)]
        more = len(self.overlaps) - shown
        return [head, *listed, *([f"  and {more} more"] if listed and more > 0 else [])]

    def record(self) -> dict[str, Any]:
        """For JSON: all overlaps, with both texts."""
        whole = dataclasses.asdict(self)
        return whole | {"overlapping": len(self.overlaps), "share": self.share, "contaminated": self.contaminated}


def _side_by_side(overlap: Overlap) -> list[str]:
    return [
        f"  {overlap.share:.0%} of {overlap.evaluation.place}: {' / '.join(overlap.evaluation.turns)!r:.200}",
        f"     in {overlap.training.place}: {' / '.join(overlap.training.turns)!r:.200}",
    ]


def write_report(path: pathlib.Path, reports: Sequence[PairReport]) -> None:
    """All overlaps of all pairs, with both texts, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [report.record() for report in reports]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

"""What became of every row, prompt, sample and token. The sums must balance."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from rlvr import distributed
from rlvr.data import PromptSet
from rlvr.errors import PolicyError
from rlvr.records import Scored


@dataclasses.dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts over the whole run, over all ranks."""

    rows_read: int = 0
    rows_over_length: int = 0
    prompts_usable: int = 0
    prompts_drawn: int = 0
    samples_drawn: int = 0
    samples_trained: int = 0
    samples_indeterminate: int = 0
    tokens_drawn: int = 0
    tokens_trained: int = 0
    tokens_indeterminate: int = 0

    @classmethod
    def open(cls, prompts: PromptSet) -> Ledger:
        return cls(rows_read=prompts.rows, rows_over_length=prompts.over_length, prompts_usable=len(prompts.prompts))

    def add(self, prompts_drawn: int, samples_drawn: int, scored: Sequence[Scored], tokens_trained: float) -> None:
        """Enter one step. Collective.

        `samples_drawn` is what was asked of the sampler; `scored` what came back.
        `tokens_trained`, over all ranks, is counted where the learner takes its gradient (one epoch's worth), so that
        packing, minibatches and filler rows are checked by the balance.
        """
        lost = [one for one in scored if one.reward is None]
        counts = {
            "prompts_drawn": prompts_drawn,
            "samples_drawn": len(scored),
            "samples_trained": len(scored) - len(lost),
            "samples_indeterminate": len(lost),
            "tokens_drawn": sum(len(one.completion.token_ids) for one in scored),
            "tokens_indeterminate": sum(len(one.completion.token_ids) for one in lost),
        }
        expected, *totals = distributed.sum_over_ranks([samples_drawn, *counts.values()])
        for name, total in zip(counts, totals, strict=True):
            setattr(self, name, getattr(self, name) + int(total))
        self.tokens_trained += round(tokens_trained)
        drawn = int(totals[list(counts).index("samples_drawn")])
        self._refuse_unequal("samples of the step", int(expected), drawn)
        self.check()

    def check(self) -> None:
        """Raise PolicyError when something was lost without being counted."""
        sums = {
            "rows": (self.rows_read, self.prompts_usable + self.rows_over_length),
            "samples": (self.samples_drawn, self.samples_trained + self.samples_indeterminate),
            "tokens": (self.tokens_drawn, self.tokens_trained + self.tokens_indeterminate),
        }
        for what, (drawn, accounted) in sums.items():
            self._refuse_unequal(what, drawn, accounted)

    def _refuse_unequal(self, what: str, drawn: int, accounted: int) -> None:
        if drawn != accounted:
            raise PolicyError(
                f"the ledger does not balance: {drawn} {what} came in, {accounted} are accounted for ({self}). "
                "This is a bug of the engine: some were lost without notice."
            )

    def save(self, path: pathlib.Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

"""What became of every row, prompt, sample and token. The sums must balance."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from rlvr import distributed
from rlvr.errors import PolicyError
from rlvr.groups import Draw, Signal, signals
from rlvr.prompts import PromptSet


@dataclasses.dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts over the whole run, over all ranks."""

    rows_read: int = 0
    rows_over_length: int = 0
    prompts_usable: int = 0
    prompts_drawn: int = 0
    prompts_abandoned: int = 0
    groups_with_signal: int = 0
    groups_all_equal: int = 0
    """Groups, of one sample or more, whose known rewards are all the same."""
    groups_under_two_known: int = 0
    groups_missing: int = 0
    """Groups that dynamic sampling did not find within its rounds: steps were smaller by so many."""
    samples_drawn: int = 0
    samples_trained: int = 0
    samples_indeterminate: int = 0
    samples_without_signal: int = 0
    """Known samples of groups that were left out because they had no signal."""
    samples_abandoned: int = 0
    """Asked for ahead of a step that was not reached, because the run was stopped; a resumed run asks again."""
    tokens_drawn: int = 0
    tokens_trained: int = 0
    tokens_indeterminate: int = 0
    tokens_without_signal: int = 0
    tokens_abandoned: int = 0
    """Of abandoned samples, those that had finished."""

    @classmethod
    def open(cls, prompts: PromptSet) -> Ledger:
        report = prompts.report
        return cls(rows_read=report.rows, rows_over_length=report.over_length, prompts_usable=len(prompts.prompts))

    def add(self, draw: Draw, samples_per_prompt: int, tokens_trained: float) -> None:
        """Enter one step. Collective.

        `tokens_trained`, over all ranks, is counted where the learner takes its gradient (one epoch's worth), so that
        packing, minibatches and filler rows are checked by the balance.
        """
        parts = {
            "drawn": draw.scored,
            "trained": [one for one in draw.kept if one.reward is not None],
            "indeterminate": [one for one in draw.scored if one.reward is None],
            "without_signal": [one for one in draw.dropped if one.reward is not None],
        }
        counts = {f"samples_{name}": len(part) for name, part in parts.items()}
        for name, part in parts.items():
            if name != "trained":  # the learner counts them
                counts[f"tokens_{name}"] = sum(len(one.completion.token_ids) for one in part)
        found = list(signals(draw.scored).values())
        counts |= {f"groups_{signal}": found.count(signal) for signal in Signal}
        counts["prompts_drawn"] = draw.prompts
        expected, *totals = distributed.sum_over_ranks([draw.prompts * samples_per_prompt, *counts.values()])
        for name, total in zip(counts, totals, strict=True):
            setattr(self, name, getattr(self, name) + int(total))
        self.tokens_trained += round(tokens_trained)
        self.groups_missing += draw.groups_missing
        drawn = int(totals[list(counts).index("samples_drawn")])
        self._refuse_unequal("samples of the step", int(expected), drawn)
        self.check()

    def abandon(self, prompts: int, samples: int, tokens: int) -> None:
        """Enter what this rank has asked for and will not use. Collective."""
        totals = [int(total) for total in distributed.sum_over_ranks([prompts, samples, tokens])]
        self.prompts_drawn += totals[0]
        self.prompts_abandoned += totals[0]
        self.samples_drawn += totals[1]
        self.samples_abandoned += totals[1]
        self.tokens_drawn += totals[2]
        self.tokens_abandoned += totals[2]
        self.check()

    def check(self) -> None:
        """Raise PolicyError when something was lost without being counted."""
        sums = {
            "rows": (self.rows_read, self.prompts_usable + self.rows_over_length),
            "prompts": (
                self.prompts_drawn,
                self.groups_with_signal + self.groups_all_equal + self.groups_under_two_known + self.prompts_abandoned,
            ),
            "samples": (
                self.samples_drawn,
                self.samples_trained
                + self.samples_indeterminate
                + self.samples_without_signal
                + self.samples_abandoned,
            ),
            "tokens": (
                self.tokens_drawn,
                self.tokens_trained + self.tokens_indeterminate + self.tokens_without_signal + self.tokens_abandoned,
            ),
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

"""Rows become prompts: tokenized when they are drawn, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlvr import watch
from rlvr.data import TOKENIZED_AT_ONCE, Row
from rlvr.data_report import DataReport, parts_of, report_of
from rlvr.errors import DataError
from rlvr.mixing import Lazy, ordered_batch, shuffled
from rlvr.records import Prompt
from rlvr.seeds import derive


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts of one or more sources, in a fixed order, with the count of what was left out."""

    prompts: Sequence[Prompt]
    """Made when they are asked for: a set may be larger than memory."""
    report: DataReport
    """What was left out, and why."""
    longest_dropped_tokens: int = 0
    """Of the prompts with more than `data.max_prompt_tokens` tokens."""
    verifiers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many tasks of the prompts each verifier has."""

    @property
    def name(self) -> str:
        """Of the set, in metrics."""
        return self.report.name

    def batch(self, step: int, size: int, seed: int) -> list[Prompt]:
        """The prompts of a step: the endless sequence of epochs, each in an order of its own, cut in pieces of `size`.

        A function of its arguments alone, so a resumed run continues the same sequence. No prompt is left out at an
        epoch's end.
        """
        return ordered_batch(self.prompts, step, size, seed)

    def spare(self, step: int, size: int, seed: int) -> Sequence[Prompt]:
        """Every prompt that is not in the step's batch, in an order of its own: what a step is refilled from.

        A function of its arguments alone, so a resumed run is refilled alike. Prompts drawn here come up again in
        their own turn.
        """
        count = len(self.prompts)
        drawn = set(ordered_batch(range(count), step, size, seed))
        order = [place for place in shuffled(count, derive(seed, "spare", step)) if place not in drawn]
        return Lazy(len(order), lambda place: self.prompts[order[place]])

    def summary(self) -> str:
        """What was read and what was dropped, and where more than one filter acted, the counts of each source.

        Ends with the longest dropped prompt, so that the limit can be set.
        """
        kept = ", ".join(f"{name} {count}" for name, count in sorted(self.verifiers.items()))
        line = f"{self.name}: {self.report.rows} rows, {len(self.prompts)} prompts ({kept})"
        if over := self.report.over_length:
            line += f"; dropped {over} over the length limit (longest {self.longest_dropped_tokens} tokens)"
        return "\n  ".join([line, *self.report.details()])


def make_prompts(name: str, rows: Sequence[Row], tokenizer: Any, max_prompt_tokens: int) -> PromptSet:
    """Tokenize once to drop (and count) prompts over the limit; a prompt's tokens are made again when it is drawn.

    Raises DataError when none is left.
    """
    from rlvr.chat import encode_prompts

    kept: list[int] = []
    dropped: dict[int, int] = {}
    verifiers: collections.Counter[str] = collections.Counter()
    numbered = enumerate(rows)
    while piece := list(itertools.islice(numbered, TOKENIZED_AT_ONCE)):
        encoded = encode_prompts(tokenizer, [row.messages for _, row in piece])
        watch.moved()
        for (prompt_id, row), token_ids in zip(piece, encoded, strict=True):
            if len(token_ids) > max_prompt_tokens:
                dropped[prompt_id] = len(token_ids)
                continue
            kept.append(prompt_id)
            verifiers.update(task.verifier for task in row.tasks)
    if not kept:
        raise DataError(
            f"{name}: all {len(rows)} prompts are longer than data.max_prompt_tokens={max_prompt_tokens} "
            f"(shortest {min(dropped.values())}, longest {max(dropped.values())}): raise the limit"
        )
    places = np.array(kept, dtype=np.int64)

    def make(index: int) -> Prompt:
        prompt_id = int(places[index])
        row = rows[prompt_id]
        (token_ids,) = encode_prompts(tokenizer, [row.messages])
        text = row.messages[-1]["content"]
        return Prompt(prompt_id=prompt_id, token_ids=token_ids, text=text, tasks=row.tasks, columns=row.columns)

    return PromptSet(
        prompts=Lazy(len(places), make),
        report=report_of(name, rows, len(kept), dropped),
        longest_dropped_tokens=max(dropped.values(), default=0),
        verifiers=dict(verifiers),
    )


def verifier_names(row_sets: Sequence[Sequence[Row]]) -> list[str]:
    """Every verifier that some row names."""
    return sorted({name for rows in row_sets for part in parts_of(rows) for name in part.counts.verifiers})

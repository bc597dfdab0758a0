"""Move samples between ranks, so that every rank learns from nearly as many tokens.

A rank samples its own prompts, and lengths differ: with 64 ranks of 8 samples each the longest share of a step is
about 1.4 times the mean, and all others wait. Whole groups (the samples of one prompt) move, so that group baselines
stay within a rank. Cost: every rank is sent all samples of the step, some 8 bytes a token, against hundreds of
thousands of operations a token in the update. Which minibatch a sample is in depends on its place alone
(`Learner.update`), so nothing else changes.

A minibatch is some of every group, so what is even over the step is uneven there: by chance one of 8 ranks has half as
many tokens again as the mean. With several minibatches samples therefore move once more, singly, when their targets are
known and groups have nothing more to say. Then every rank keeps the whole step while it learns: tens of bytes a token.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from rlvr import distributed
from rlvr.packing import spread
from rlvr.records import Targets, Trajectories

Record = TypeVar("Record", Trajectories, Targets)

PER_TOKEN = ("sampler_logprobs",)
"""Fields of `Trajectories` with an entry for each completion token; all others have one for each sample."""


def balance(batch: Trajectories) -> Trajectories:
    """This rank's part of the whole step's samples: whole groups, with tokens spread evenly over ranks. Collective."""
    if distributed.world_size() == 1:
        return batch
    everyone = [sample for samples in distributed.gather_objects(split(batch)) for sample in samples]
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for sample in everyone:
        groups[int(sample["groups"])].append(sample)
    tokens = {group: sum(map(_tokens, samples)) for group, samples in groups.items()}
    mine = spread(tokens, distributed.world_size())[distributed.rank()]
    ordered = sorted((sample for group in mine for sample in groups[group]), key=lambda sample: int(sample["places"]))
    return join(ordered, batch)


def whole_step(batch: Trajectories, targets: Targets) -> tuple[Trajectories, Targets]:
    """The samples of all ranks and their targets, in one order on every rank. Collective."""
    if distributed.world_size() == 1:
        return batch, targets
    batches, of_batches = zip(*distributed.gather_objects((batch, targets)), strict=True)
    return _laid_end_to_end(batches), _laid_end_to_end(of_batches)


def share_of_minibatch(batch: Trajectories, part: Sequence[int]) -> list[int]:
    """This rank's share of a minibatch of the whole step, with tokens spread evenly over ranks.

    Args:
        part: which samples of `batch` the minibatch has.
    """
    tokens = {i: len(batch.prompt_ids[i]) + len(batch.completion_ids[i]) for i in part}
    return spread(tokens, distributed.world_size())[distributed.rank()]


def _laid_end_to_end(parts: Sequence[Record]) -> Record:
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            columns[field.name] = None
        elif isinstance(values[0], torch.Tensor):
            columns[field.name] = torch.cat(values)
        else:
            columns[field.name] = tuple(itertools.chain.from_iterable(values))
    return type(parts[0])(**columns)


def split(batch: Trajectories) -> list[dict[str, Any]]:
    """A batch as its samples: field name to the sample's own part."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        column = getattr(batch, field.name)
        if field.name in PER_TOKEN:  # clones: a view would take the whole array along when it is sent
            column = [part.clone() for part in column.split(batch.lengths.tolist())]
        elif isinstance(column, torch.Tensor):
            column = [one.clone() for one in column]
        columns[field.name] = column
    return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def join(samples: list[dict[str, Any]], like: Trajectories) -> Trajectories:
    """The batch of these samples: `split` undone. Dtypes are those of `like`."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(like):
        parts, model = [sample[field.name] for sample in samples], getattr(like, field.name)
        if not isinstance(model, torch.Tensor):
            columns[field.name] = tuple(parts)
        elif field.name in PER_TOKEN:
            columns[field.name] = torch.cat([model[:0], *parts])
        else:
            columns[field.name] = torch.stack(parts) if parts else model[:0]
    return Trajectories(**columns)


def _tokens(sample: dict[str, Any]) -> int:
    return len(sample["prompt_ids"]) + len(sample["completion_ids"])

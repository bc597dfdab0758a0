"""Packing without padding: sequences laid end to end in rows of at most `max_tokens`, shortest first.

Attention never crosses sequences (`rlvr.attention`).
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

import torch

from rlvr.records import PackedRow


def pack(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    device: torch.device | str = "cpu",
    select: Sequence[int] | None = None,
) -> list[PackedRow]:
    """Lay samples end to end in as few rows as first-fit needs; every completion token is a target.

    Args:
        prompt_ids, completion_ids: tokens of the B samples; neither is empty.
        max_tokens: most tokens of a row.
        select: which samples to pack (default all); `token_index` still counts over all B.
    """
    sequences = [(*prompt, *completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    targets = [range(len(p), len(p) + len(c)) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return pack_sequences(sequences, targets, max_tokens=max_tokens, device=device, select=select)


def pack_sequences(
    sequences: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    device: torch.device | str = "cpu",
    select: Sequence[int] | None = None,
    together: int = 1,
) -> list[PackedRow]:
    """Lay token sequences end to end. A sequence longer than `max_tokens` gets a row of its own: nothing is cut.

    Args:
        sequences: tokens of each of B sequences.
        targets: positions, ascending and above 0, of the tokens to predict in each sequence; never empty.
        together: sequences 0 .. together-1, the next so many, and so on share a row; `select` has all of them or none.
    """
    chosen = range(len(sequences)) if select is None else select
    sizes: dict[int, int] = collections.defaultdict(int)
    for i in chosen:
        sizes[i // together] += targets[i][-1]  # what follows the last target is never read
    offsets = [0, *itertools.accumulate(len(t) for t in targets)]
    rows = []
    for units in bins(sizes, max_tokens):
        members = [unit * together + place for unit in units for place in range(together)]
        members.sort(key=lambda i: (targets[i][-1], i))
        rows.append(_row(members, sequences, targets, offsets, device))
    return rows


def bins(sizes: dict[int, int], max_tokens: int) -> list[list[int]]:
    """First-fit decreasing; each bin is returned shortest first, ties by index.

    >>> bins({0: 5, 1: 3, 2: 4, 3: 2}, max_tokens=7)
    [[3, 0], [1, 2]]
    """
    filled: list[list[int]] = []
    room: list[int] = []
    for index in sorted(sizes, key=lambda i: (-sizes[i], i)):
        fit = next((b for b, free in enumerate(room) if free >= sizes[index]), None)
        if fit is None:
            filled.append([])
            room.append(max_tokens)
            fit = len(room) - 1
        filled[fit].append(index)
        room[fit] -= sizes[index]
    return [sorted(group, key=lambda i: (sizes[i], i)) for group in filled]


def _row(
    group: list[int],
    sequences: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    offsets: list[int],
    device: torch.device | str,
) -> PackedRow:
    tokens: list[int] = []
    read_at: list[int] = []
    token_index: list[int] = []
    target_ids: list[int] = []
    for i in group:
        start = len(tokens)
        tokens.extend(sequences[i][: targets[i][-1]])
        read_at.extend(start + position - 1 for position in targets[i])  # the token before predicts it
        token_index.extend(range(offsets[i], offsets[i] + len(targets[i])))
        target_ids.extend(sequences[i][position] for position in targets[i])
    lengths = tuple(targets[i][-1] for i in group)
    return PackedRow(
        sequences=tuple(group),
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None].to(device),
        lengths=lengths,
        read_at=torch.tensor(read_at, device=device),
        targets=torch.tensor(target_ids, device=device),
        token_index=torch.tensor(token_index, device=device),
    )

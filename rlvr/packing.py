"""Packing without padding: sequences laid end to end in rows of at most `max_tokens`, shortest first.

Attention never crosses sequences (`rlvr.attention`). Every rank makes the same number of rows, of nearly equal length,
since ranks wait for each other at every row (ZeRO-2 and 3) or at least at every step.
"""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Mapping, Sequence

import torch

from rlvr import distributed
from rlvr.records import PackedRow


def pack(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    device: torch.device | str = "cpu",
    select: Sequence[int] | None = None,
    least_rows: int = 1,
) -> list[PackedRow]:
    """Lay samples end to end in as few rows as first-fit needs; every completion token is a target.

    Args:
        prompt_ids, completion_ids: tokens of the B samples; neither is empty.
        max_tokens: most tokens of a row.
        select: which samples to pack (default all); `token_index` still counts over all B.
        least_rows: make so many rows, where there are as many samples.
    """
    wanted = range(len(prompt_ids)) if select is None else frozenset(select)
    pairs = enumerate(zip(prompt_ids, completion_ids, strict=True))
    sequences = [(*prompt, *completion) if i in wanted else () for i, (prompt, completion) in pairs]
    targets = [range(len(p), len(p) + len(c)) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return pack_sequences(
        sequences, targets, max_tokens=max_tokens, device=device, select=select, least_rows=least_rows
    )


def pack_sequences(
    sequences: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    device: torch.device | str = "cpu",
    select: Sequence[int] | None = None,
    together: int = 1,
    least_rows: int = 1,
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
    for units in bins(sizes, max_tokens, least_rows):
        members = [unit * together + place for unit in units for place in range(together)]
        members.sort(key=lambda i: (targets[i][-1], i))
        rows.append(_row(members, sequences, targets, offsets, device))
    return rows


def bins(sizes: Mapping[int, int], max_tokens: int, least: int = 1) -> list[list[int]]:
    """As many bins as first-fit decreasing needs, or `least`, filled evenly; each is returned shortest first.

    An item over `max_tokens` gets a bin of its own. The fullest bin comes first, so that the n-th rows of ranks are
    of like length.

    >>> bins({0: 5, 1: 3, 2: 4, 3: 2, 4: 2}, max_tokens=12)
    [[3, 4, 0], [1, 2]]
    """
    filled = _first_fit(sizes, max_tokens)
    even = spread(sizes, min(max(len(filled), least), len(sizes)))
    if all(len(group) == 1 or _load(group, sizes) <= max_tokens for group in even):
        filled = even
    return sorted(filled, key=lambda group: -_load(group, sizes))


def spread(sizes: Mapping[int, int], count: int) -> list[list[int]]:
    """Items in `count` bins of nearly equal load: largest first, each to the emptiest bin (Graham, 1969: the fullest
    is at most 4/3 of the best possible). Each bin is returned smallest item first.

    >>> spread({0: 5, 1: 3, 2: 4, 3: 2}, 2)
    [[3, 0], [1, 2]]
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, b) for b in range(count)]
    for index in _largest_first(sizes):
        load, b = heapq.heappop(emptiest)
        groups[b].append(index)
        heapq.heappush(emptiest, (load + sizes[index], b))
    return [sorted(group, key=lambda i: (sizes[i], i)) for group in groups]


def _first_fit(sizes: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """First-fit decreasing; smallest item first in each bin."""
    filled: list[list[int]] = []
    room: list[int] = []
    for index in _largest_first(sizes):
        fit = next((b for b, free in enumerate(room) if free >= sizes[index]), None)
        if fit is None:
            filled.append([])
            room.append(max_tokens)
            fit = len(room) - 1
        filled[fit].append(index)
        room[fit] -= sizes[index]
    return [sorted(group, key=lambda i: (sizes[i], i)) for group in filled]


def _largest_first(sizes: Mapping[int, int]) -> list[int]:
    return sorted(sizes, key=lambda i: (-sizes[i], i))


def _load(group: Sequence[int], sizes: Mapping[int, int]) -> int:
    return sum(sizes[i] for i in group)


def pack_on_every_rank(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    select: Sequence[int] | None = None,
) -> list[PackedRow]:
    """`pack` into as many rows as the rank that needs most of them. Collective."""
    chosen = range(len(prompt_ids)) if select is None else select
    sizes = {i: len(prompt_ids[i]) + len(completion_ids[i]) - 1 for i in chosen}
    most = int(distributed.max_over_ranks([float(len(_first_fit(sizes, max_tokens)))])[0])
    device = distributed.device()
    rows = pack(
        prompt_ids, completion_ids, max_tokens=max_tokens, device=device, select=select, least_rows=max(most, 1)
    )
    return same_number_on_every_rank(rows)


def same_number_on_every_rank(rows: list[PackedRow]) -> list[PackedRow]:
    """Add filler rows (one token, nothing to predict) up to the largest count of any rank. Collective.

    ZeRO-2 and ZeRO-3 communicate in every forward and backward, so all ranks must make the same number of them. A
    filler's loss is a sum over no tokens: 0, with gradient 0, whatever the model says.
    """
    most = int(distributed.max_over_ranks([float(len(rows))])[0])
    one = torch.zeros(1, dtype=torch.int64, device=distributed.device())
    filler = PackedRow(
        sequences=(),
        input_ids=one[None],
        position_ids=one[None],
        lengths=(1,),
        read_at=one[:0],
        targets=one[:0],
        token_index=one[:0],
    )
    return rows + [filler] * (most - len(rows))


def packing_metrics(rows: Sequence[PackedRow]) -> dict[str, float]:
    """`packing_shares` of rows that all ranks have computed one after another. Collective."""
    shapes = [(sum(row.lengths), bool(row.sequences)) for row in rows]
    return {f"packing/{name}": value for name, value in packing_shares(distributed.gather_objects(shapes)).items()}


def packing_shares(ranks: Sequence[Sequence[tuple[int, bool]]]) -> dict[str, float]:
    """What share of the computing was on real tokens.

    Args:
        ranks: for each rank, tokens of each row and whether they are real (else a filler); the same number of rows.
    Returns:
        `efficiency`: real tokens / computed tokens. `balance`: real tokens / tokens that could have been computed if
        no rank had waited for the longest of the n-th rows; of ZeRO-2 and 3, and a lower bound for the others.
        `heaviest_rank`: real tokens of the rank that has most, over the mean of ranks.

    >>> packing_shares([[(90, True), (60, True)], [(100, True), (1, False)]])  # 250 / 251; 250 / (2 x 160); 150 / 125
    {'efficiency': 0.9960..., 'balance': 0.78125, 'heaviest_rank': 1.2}
    """
    of_ranks = [sum(tokens for tokens, is_real in rows if is_real) for rows in ranks]
    real = sum(of_ranks)
    computed = sum(tokens for rows in ranks for tokens, _ in rows)
    longest = sum(max(tokens for tokens, _ in nth) for nth in zip(*ranks, strict=True))
    return {
        "efficiency": real / max(computed, 1),
        "balance": real / max(len(ranks) * longest, 1),
        "heaviest_rank": max(of_ranks) * len(ranks) / max(real, 1),
    }


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

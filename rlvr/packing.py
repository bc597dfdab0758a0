"""Packing without padding, and attention that never crosses sequences.

Sequences are laid end to end in rows of at most `max_tokens`, shortest first. Sequences of equal length are then
neighbours, so one scaled-dot-product call serves all of them as a batch: exact, no mask, and no wasted token. On
GPUs flash-attn's variable-length kernel does the same from the cumulative lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from rlvr.records import PackedRow

ATTENTION_NAME = "packed_sdpa"


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
) -> list[PackedRow]:
    """Lay token sequences end to end. A sequence longer than `max_tokens` gets a row of its own: nothing is cut.

    Args:
        sequences: tokens of each of B sequences.
        targets: positions, ascending and above 0, of the tokens to predict in each sequence; never empty.
    """
    chosen = range(len(sequences)) if select is None else select
    sizes = {i: targets[i][-1] for i in chosen}  # what follows the last target is never read
    offsets = [0, *itertools.accumulate(len(t) for t in targets)]
    return [_row(group, sequences, targets, offsets, device) for group in bins(sizes, max_tokens)]


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


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(count, length) of each run of equal lengths.

    >>> list(runs([3, 3, 5]))
    [(2, 3), (1, 5)]
    """
    for length, same in itertools.groupby(lengths):
        yield len(list(same)), length


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sequence_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed row; the `transformers` attention interface.

    Args:
        query: [1, H, T, D]; key, value: [1, H_kv, T, D].
        sequence_lengths: lengths that sum to T, as `PackedRow.lengths`.
    Returns:
        [1, T, H, D] and None (no attention weights).
    """
    if sequence_lengths is None:
        raise ValueError(f"{ATTENTION_NAME} attention needs sequence_lengths=...; call the model through rlvr.model")
    if unused.get("softcap") is not None:
        raise NotImplementedError("attention-logit soft-capping (Gemma 2) is not supported by packed attention")
    heads, _, head_size = query.shape[1:]
    out = torch.empty_like(query[0].transpose(0, 1)) if not query.requires_grad else None
    pieces = []
    start = 0
    for count, length in runs(sequence_lengths):
        stop = start + count * length
        q, k, v = (_batch(x, start, stop, count, length) for x in (query, key, value))
        mask = _window(length, sliding_window, query.device)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout,
            enable_gqa=key.shape[1] != heads,
        )  # fmt: skip
        piece = attended.transpose(1, 2).reshape(count * length, heads, head_size)
        if out is None:
            pieces.append(piece)
        else:
            out[start:stop] = piece
        start = stop
    return (torch.cat(pieces) if out is None else out)[None], None


def _batch(x: torch.Tensor, start: int, stop: int, count: int, length: int) -> torch.Tensor:
    """[1, H, T, D] -> [count, H, length, D] for tokens start..stop, without a copy."""
    return x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1)


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Boolean mask of a sliding window that is narrower than the sequence, else None (plain causal)."""
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(ATTENTION_NAME, packed_attention)

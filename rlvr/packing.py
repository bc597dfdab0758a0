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
    """Lay samples end to end in as few rows as first-fit needs.

    A sample longer than `max_tokens` gets a row of its own: nothing is cut or dropped.

    Args:
        prompt_ids, completion_ids: tokens of the B samples; completions are not empty.
        max_tokens: most tokens of a row.
        select: which samples to pack (default all); `token_index` still counts over all B.
    """
    chosen = range(len(prompt_ids)) if select is None else select
    sizes = {i: len(prompt_ids[i]) + len(completion_ids[i]) - 1 for i in chosen}
    offsets = [0, *itertools.accumulate(len(c) for c in completion_ids)]
    return [_row(group, prompt_ids, completion_ids, sizes, offsets, device) for group in bins(sizes, max_tokens)]


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
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    sizes: dict[int, int],
    offsets: list[int],
    device: torch.device | str,
) -> PackedRow:
    tokens: list[int] = []
    read_at: list[int] = []
    token_index: list[int] = []
    targets: list[int] = []
    for i in group:
        prompt, completion = prompt_ids[i], completion_ids[i]
        first = len(tokens) + len(prompt) - 1  # the prompt's last token predicts the completion's first
        tokens.extend(prompt)
        tokens.extend(completion[:-1])
        read_at.extend(range(first, first + len(completion)))
        token_index.extend(range(offsets[i], offsets[i] + len(completion)))
        targets.extend(completion)
    lengths = tuple(sizes[i] for i in group)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return PackedRow(
        sequences=tuple(group),
        input_ids=torch.tensor([tokens], device=device),
        position_ids=positions[None].to(device),
        lengths=lengths,
        read_at=torch.tensor(read_at, device=device),
        targets=torch.tensor(targets, device=device),
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

"""Attention that never crosses the sequences of a packed row: three back ends, one rule for which is taken.

| back end | where | how | soft-capping |
|---|---|---|---|
| `flash_attention_2` | CUDA, bfloat16, flash-attn installed | its variable-length kernel, by `transformers` | kernel |
| `packed_varlen` | CUDA, bfloat16, no flash-attn | PyTorch's own (`torch.nn.attention.varlen`) | exact, slow |
| `packed_sdpa` | everything else | one call for each run of sequences of equal length | exact, slow |

The two `packed_*` are registered with `transformers`' attention interface, and take the lengths of the sequences as an
argument of the forward pass: forgetting them is an error, never a plain causal mask over the row.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from rlvr.records import PackedRow


def attention_name(dtype: str) -> str:
    """Back end of a model of this dtype in this process: the first of the module's table that fits."""
    if torch.cuda.is_available() and dtype == "bfloat16":  # neither kernel takes float32
        for name, installed in (("flash_attention_2", _has_flash_attn), ("packed_varlen", _has_varlen)):
            if installed():
                return name
    return "packed_sdpa"


def _has_flash_attn() -> bool:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _has_varlen() -> bool:
    """Whether torch has the variable-length kernel, with windows and grouped heads (2.11; 2.10 had neither)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def boundaries(name: str, row: PackedRow) -> dict[str, Any]:
    """The keyword arguments by which back end `name` learns where the row's sequences end."""
    if name == "packed_sdpa":
        return {"sequence_lengths": row.lengths}
    ends = torch.tensor([0, *row.lengths], device=row.input_ids.device).cumsum(0, dtype=torch.int32)
    longest = max(row.lengths)
    kernel = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return kernel if name == "flash_attention_2" else kernel | {"sequence_lengths": row.lengths}


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sequence_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed row; the `transformers` attention interface.

    Sequences of equal length are neighbours in a row, so one call serves all of them as a batch: exact, without a
    mask (but for a window), and without a wasted token.

    Args:
        query: [1, H, T, D]; key, value: [1, H_kv, T, D].
        sequence_lengths: lengths that sum to T, as `PackedRow.lengths`.
        sliding_window: how many tokens, itself included, a token sees; None is all before it.
        softcap: c in c tanh(score / c) before the softmax (Gemma 2, arXiv 2408.00118, section 2).
    Returns:
        [1, T, H, D] and None (no attention weights).
    Raises ValueError without `sequence_lengths`, and for attention with sinks (gpt-oss).
    """
    if sequence_lengths is None:
        raise ValueError("packed attention needs sequence_lengths=...; call the model through rlvr.model")
    _refuse_sinks(unused)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _attend if softcap is None else _attend_softcapped(softcap)
    pieces = []
    start = 0
    for count, length in runs(sequence_lengths):
        stop = start + count * length
        q, k, v = (_batch(x, start, stop, count, length) for x in (query, key, value))
        attended = attend(q, k, v, _window(length, sliding_window, query.device), scale)
        pieces.append(attended.transpose(1, 2).reshape(count * length, query.shape[1], value.shape[-1]))
        start = stop
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces))[None], None


def packed_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As `packed_sdpa`, by PyTorch's variable-length FlashAttention kernel; arguments as there.

    Args:
        cu_seq_lens_q: int32 [sequences + 1], where each sequence starts and the last one ends.
        max_length_q: longest sequence, tokens.
    """
    if softcap is not None:  # PyTorch's binding of the kernel leaves soft-capping out
        return packed_sdpa(
            module, query, key, value, attention_mask, scaling, sliding_window=sliding_window, softcap=softcap, **others
        )
    _refuse_sinks(others)
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("packed attention needs cu_seq_lens_q=...; call the model through rlvr.model")
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)  # how far to the left, and not to the right
    attended: Any = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=window, enable_gqa=k.shape[1] != q.shape[1],
    )  # fmt: skip
    return attended[None], None


def _refuse_sinks(options: dict[str, Any]) -> None:
    if options.get("s_aux") is not None:
        raise ValueError(
            "packed attention has no sinks (s_aux), which this model's softmax counts: it cannot be trained"
        )


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(count, length) of each run of equal lengths.

    >>> list(runs([3, 3, 5]))
    [(2, 3), (1, 5)]
    """
    for length, same in itertools.groupby(lengths):
        yield len(list(same)), length


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )


def _attend_softcapped(softcap: float) -> Attend:
    """Plain matrix products, since no fused kernel of PyTorch caps: [length, length] scores of each head are held."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        length = q.shape[2]
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril() if mask is None else mask
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1, dtype=torch.float32).to(v.dtype) @ v

    return attend


def _batch(x: torch.Tensor, start: int, stop: int, count: int, length: int) -> torch.Tensor:
    """[1, H, T, D] -> [count, H, length, D] for tokens start..stop, without a copy."""
    return x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1)


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Boolean mask of a sliding window that is narrower than the sequence, else None (plain causal)."""
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register("packed_sdpa", packed_sdpa)
AttentionInterface.register("packed_varlen", packed_varlen)

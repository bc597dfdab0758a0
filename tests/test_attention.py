"""Packed attention is plain causal attention of each sequence by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvr.attention import _has_varlen, attention_name, packed_sdpa, packed_varlen, runs


def test_runs_of_equal_lengths() -> None:
    assert list(runs([2, 2, 2, 5, 7, 7])) == [(3, 2), (1, 5), (2, 7)]
    assert list(runs([])) == []


def slow_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One token at a time, one head at a time; [1, H, T, D] in, [1, T, H, D] out."""
    _, heads, total, size = query.shape
    shared = heads // key.shape[1]
    out = torch.zeros(1, total, heads, size)
    begins = [begin for i, length in enumerate(lengths) for begin in [sum(lengths[:i])] * length]
    for t in range(total):
        first = begins[t] if window is None else max(begins[t], t - window + 1)
        for head in range(heads):
            keys, values = key[0, head // shared, first : t + 1], value[0, head // shared, first : t + 1]
            scores = keys @ query[0, head, t] / size**0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[0, t, head] = torch.softmax(scores, dim=0) @ values
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 0.8])
def test_packed_attention_equals_a_loop_over_tokens_in_values_and_gradients(
    window: int | None, heads_of_keys: int, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [2, 2, 5, 6, 6, 6]
    query = torch.randn(1, 4, sum(lengths), 8, generator=generator)
    key, value = (torch.randn(1, heads_of_keys, sum(lengths), 8, generator=generator) for _ in range(2))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    ours, weights = packed_sdpa(
        torch.nn.Module(), *inputs, None, sequence_lengths=lengths, sliding_window=window, softcap=softcap
    )
    assert weights is None
    slow = slow_attention(query, key, value, lengths, window, softcap)
    torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-6)
    direction = torch.randn(ours.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(slow, inputs, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_attention_without_the_boundaries_of_sequences_is_refused() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="sequence_lengths"):
        packed_sdpa(torch.nn.Module(), x, x, x, None)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        packed_varlen(torch.nn.Module(), x, x, x, None)


@pytest.mark.parametrize("back_end", [packed_sdpa, packed_varlen])
def test_attention_with_sinks_is_refused_instead_of_computed_without(back_end: Any) -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="sinks"):
        back_end(torch.nn.Module(), x, x, x, None, sequence_lengths=[2], s_aux=torch.zeros(1))


@pytest.mark.parametrize(
    ("on_a_gpu", "flash_attn", "varlen", "dtype", "expected"),
    [
        (False, True, True, "bfloat16", "packed_sdpa"),
        (True, True, True, "bfloat16", "flash_attention_2"),
        (True, False, True, "bfloat16", "packed_varlen"),
        (True, False, False, "bfloat16", "packed_sdpa"),
        (True, True, True, "float32", "packed_sdpa"),
    ],
)
def test_the_first_back_end_that_fits_is_taken(
    on_a_gpu: bool, flash_attn: bool, varlen: bool, dtype: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_a_gpu)
    monkeypatch.setattr("rlvr.attention._has_flash_attn", lambda: flash_attn)
    monkeypatch.setattr("rlvr.attention._has_varlen", lambda: varlen)
    assert attention_name(dtype) == expected


def test_this_torch_has_the_variable_length_kernel() -> None:
    assert _has_varlen()  # so that a renamed argument is noticed without a GPU


def documented_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` is documented to compute: [T, H, D] in and out, (left, right) keys
    beside each query's own place seen, -1 for all of that side; grouped heads only where they are asked for."""
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths = cu_seq_q.diff()
    assert (max_q, max_k) == (int(lengths.max()), int(cu_seq_k.diff().max()))
    shared = query.shape[1] // key.shape[1]
    assert enable_gqa == (shared > 1)
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    ahead = torch.arange(len(query)) - torch.arange(len(query))[:, None]  # key's place minus query's
    left, right = window_size
    seen = (sequence == sequence[:, None]) & ((ahead >= -left) | (left < 0)) & ((ahead <= right) | (right < 0))
    keys, values = (x.repeat_interleave(shared, dim=1).transpose(0, 1) for x in (key, value))
    scores = query.transpose(0, 1) @ keys.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1)


def inputs_of(lengths: list[int], heads_of_keys: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, sum(lengths), size) for heads in (4, heads_of_keys, heads_of_keys)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def by_varlen(inputs: list[torch.Tensor], lengths: list[int], window: int | None, scaling: float | None) -> Any:
    ends = torch.tensor([0, *lengths], device=inputs[0].device).cumsum(0, dtype=torch.int32)
    most = max(lengths)
    return packed_varlen(
        torch.nn.Module(), *inputs, None, scaling, cu_seq_lens_q=ends, max_length_q=most, sliding_window=window,
        sequence_lengths=lengths,
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_variable_length_call_asks_for_what_the_block_diagonal_path_computes(
    window: int | None, heads_of_keys: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself is for GPUs; here its documented meaning stands in for it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    lengths = [2, 2, 5, 6, 6, 6]
    inputs = inputs_of(lengths, heads_of_keys, 8)
    ours, weights = by_varlen(inputs, lengths, window, scaling)
    assert weights is None
    expected, _ = packed_sdpa(
        torch.nn.Module(), *inputs, None, scaling, sequence_lengths=lengths, sliding_window=window
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_the_variable_length_kernel_takes_our_call_and_has_gradients(window: int | None) -> None:
    """Without a GPU its shapes are computed by torch's own description of it: names and types of arguments count."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        inputs = [torch.empty(1, heads, 27, 32, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)]
        ours, _ = packed_varlen(
            torch.nn.Module(), *inputs, None, 0.1,
            cu_seq_lens_q=torch.empty(7, dtype=torch.int32), max_length_q=6, sliding_window=window,
        )  # fmt: skip
        assert ours.shape == (1, 27, 4, 32)
        gradients = torch.autograd.grad(ours.sum(), inputs)
        assert [gradient.shape for gradient in gradients] == [one.shape for one in inputs]


def test_soft_capped_attention_leaves_the_kernel_that_cannot_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)
    lengths = [2, 5, 6]
    inputs = inputs_of(lengths, 2, 8)
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ours, _ = packed_varlen(
        torch.nn.Module(), *inputs, None, cu_seq_lens_q=ends, max_length_q=6, sliding_window=3, softcap=0.8,
        sequence_lengths=lengths,
    )  # fmt: skip
    torch.testing.assert_close(ours, slow_attention(*inputs, lengths, 3, 0.8), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_variable_length_kernel_equals_the_block_diagonal_path_of_the_cpu_in_values_and_gradients(
    window: int | None, heads_of_keys: int, scaling: float | None
) -> None:
    lengths = [2, 2, 5, 6, 6, 6, 200]
    inputs = [x.detach().bfloat16() for x in inputs_of(lengths, heads_of_keys, 32)]
    on_gpu = [x.cuda().requires_grad_() for x in inputs]
    on_cpu = [x.float().requires_grad_() for x in inputs]
    ours, _ = by_varlen(on_gpu, lengths, window, scaling)
    expected, _ = packed_sdpa(
        torch.nn.Module(), *on_cpu, None, scaling, sequence_lengths=lengths, sliding_window=window
    )
    torch.testing.assert_close(ours.float().cpu(), expected, rtol=2e-2, atol=2e-2)  # bfloat16 has 8 bits
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    for one, other in zip(
        torch.autograd.grad(ours, on_gpu, direction.cuda()),
        torch.autograd.grad(expected, on_cpu, direction.float()),
        strict=True,
    ):
        torch.testing.assert_close(one.float().cpu(), other, rtol=5e-2, atol=5e-2)

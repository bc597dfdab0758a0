"""Packed attention is plain causal attention of each sequence by itself."""

from __future__ import annotations

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


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
def test_the_variable_length_kernel_of_pytorch_equals_a_loop_over_tokens(
    window: int | None, heads_of_keys: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [2, 2, 5, 6, 6, 6]
    query = torch.randn(1, 4, sum(lengths), 32, generator=generator).bfloat16()
    key, value = (torch.randn(1, heads_of_keys, sum(lengths), 32, generator=generator).bfloat16() for _ in range(2))
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).cuda()
    ours, _ = packed_varlen(
        torch.nn.Module(), query.cuda(), key.cuda(), value.cuda(), None,
        cu_seq_lens_q=ends, max_length_q=6, sliding_window=window,
    )  # fmt: skip
    slow = slow_attention(query.float(), key.float(), value.float(), lengths, window, None)
    torch.testing.assert_close(ours.float().cpu(), slow, rtol=2e-2, atol=2e-2)  # bfloat16 has 8 bits

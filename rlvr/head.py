"""Log-probabilities from hidden states, without ever holding the logits of a whole row.

Logits are made for a chunk of tokens at a time, in one buffer. Backward makes a chunk's logits again and turns them
into their gradient in place: 4 matrix products where full logits take 3, but no pass over `[T, V]` in main memory.
A row that fits one chunk keeps its probabilities and needs no fourth.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rlvr.truncation import Truncation, truncated_logprobs

CHUNK_MIB = 256
"""Float32 logits of a chunk, unless its tokens are given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How logits become log-probabilities."""

    temperature: float
    softcap: float | None
    """Logits become softcap x tanh(logits / softcap) first (Gemma 2)."""
    chunk_tokens: int
    truncation: Truncation | None
    entropy: bool
    keep: bool
    """A gradient will be asked for, so what a single chunk has computed is worth its memory."""


class TokenHead(nn.Module):
    """The output layer, applied to a chunk of tokens at a time.

    One call a row, however many chunks: ZeRO-3 gathers a module's weights from all ranks at each call, and ranks whose
    rows differ in length would wait for each other for ever if each chunk called the output layer.
    """

    def __init__(self, output: nn.Linear, *, chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens or max(CHUNK_MIB * 2**18 // output.out_features, 1)
        self.borrowed = (output.weight, output.bias)
        """The transformer's own; in a tuple, so that they are not counted as this module's too."""

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        softcap: float | None,
        truncation: Truncation | None = None,
        positions: torch.Tensor | None = None,
        *,
        entropy: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read the tokens that follow.

        Args:
            hidden: [N, hidden size]; targets: int64 [N].
            truncation: read this truncated distribution, without gradient; None reads the whole softmax.
            positions: int64 [N], place of each token in its completion; needed for a truncation.
        Returns:
            Log-probabilities of the targets, float32 [N], nats; and the entropies, float32 [N] without gradient, or
            None when they are not asked for.
        """
        reading = Reading(
            temperature=temperature,
            softcap=softcap,
            chunk_tokens=self.chunk_tokens,
            truncation=truncation,
            entropy=entropy,
            keep=torch.is_grad_enabled() and softcap is None and len(targets) <= self.chunk_tokens,
        )
        logprobs, entropies = _Read.apply(hidden, *self.borrowed, targets, positions, reading)
        return logprobs, entropies


class _Read(torch.autograd.Function):
    """With p = softmax(z), z = logits / temperature: d log p[y] / d z = onehot(y) - p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        positions: torch.Tensor | None,
        reading: Reading,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        step = reading.chunk_tokens
        logits = _buffer(hidden, weight, step)
        powers = torch.empty_like(logits) if reading.entropy else logits
        logprobs, normalizers = (torch.empty(len(targets), device=hidden.device) for _ in range(2))
        entropies = torch.empty_like(logprobs) if reading.entropy else None
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            z = _logits(hidden[part], weight, bias, reading, logits)
            wanted = z.gather(1, targets[part, None]).squeeze(1)
            truncated = None
            if reading.truncation is not None and positions is not None:
                truncated = truncated_logprobs(z, targets[part], positions[part], reading.truncation)
            largest = z.amax(dim=1, keepdim=True)
            e = torch.sub(z, largest, out=powers[: len(z)]).exp_()
            total = e.sum(dim=1)
            torch.add(total.log(), largest.squeeze(1), out=normalizers[part])
            logprobs[part] = wanted - normalizers[part] if truncated is None else truncated
            if entropies is not None:  # H = log sum exp(z) - sum p z
                mean = torch.einsum("tv,tv->t", e, z) / total
                torch.sub(normalizers[part], mean, out=entropies[part])
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.reading = reading
        ctx.kept = (powers, total) if reading.keep and len(targets) else None
        constant = (None if reading.truncation is None else logprobs, entropies)
        ctx.mark_non_differentiable(*(x for x in constant if x is not None))
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        if upstream is None:
            return (None,) * 6
        reading, kept = ctx.reading, ctx.kept
        ctx.kept = None  # it is overwritten below: a second backward makes the logits again
        for_hidden, for_weight, for_bias = (
            torch.zeros_like(x) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        logits = _buffer(hidden, weight, reading.chunk_tokens) if kept is None else kept[0]
        scale = upstream / reading.temperature
        for start in range(0, len(targets), reading.chunk_tokens):
            part = slice(start, start + reading.chunk_tokens)
            slope = None
            if kept is None:
                z = _logits(hidden[part], weight, bias, reading, logits)
                if reading.softcap is not None:
                    slope = 1.0 - (z * (reading.temperature / reading.softcap)) ** 2
                d = z.sub_(normalizers[part, None]).exp_().mul_(-scale[part, None])
            else:
                d = kept[0].mul_((-scale / kept[1])[:, None])
            d.scatter_add_(1, targets[part, None], scale[part, None])
            if slope is not None:
                d.mul_(slope)
            if for_bias is not None:
                for_bias.add_(d.sum(dim=0))
            d = d.to(weight.dtype)
            if for_hidden is not None:
                for_hidden[part] = d @ weight
            if for_weight is not None:
                for_weight.addmm_(d.t(), hidden[part], beta=float(start > 0))
        return for_hidden, for_weight, for_bias, None, None, None


def _buffer(hidden: torch.Tensor, weight: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    rows = min(len(hidden), chunk_tokens)
    return torch.empty(rows, len(weight), dtype=torch.float32, device=hidden.device)


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, reading: Reading, out: torch.Tensor
) -> torch.Tensor:
    """Logits over temperature, float32 [tokens, V], in the first rows of `out`."""
    z = out[: len(hidden)]
    if weight.dtype != torch.float32:
        z.copy_(nn.functional.linear(hidden, weight, bias))
    elif bias is None:
        torch.mm(hidden, weight.t(), out=z)
    else:
        torch.addmm(bias, hidden, weight.t(), out=z)
    if reading.softcap is not None:
        z.div_(reading.softcap).tanh_().mul_(reading.softcap)
    if reading.temperature != 1.0:
        z.div_(reading.temperature)
    return z

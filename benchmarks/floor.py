"""Bare torch: the same update as the learner's with nothing around it, as a floor to measure against.

Standard `transformers` models with scaled-dot-product attention, loss at completion tokens only (full logits of a
micro-batch, cross-entropy), gradients accumulated over micro-batches, fused AdamW. No clipping, no check, no metric,
no engine. Sequences of one length make a batch without padding; with `padded`, neighbours are padded to the longest.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.nn import functional

from rlvr import distributed
from rlvr.records import Targets, Trajectories


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Sequences of one length, or padded to one."""

    input_ids: torch.Tensor
    """int64 [B, L]; the last token of a sequence is predicted, never read."""
    mask: torch.Tensor | None
    """int64 [B, L], 0 on padding; None without any."""
    read_at: torch.Tensor
    """int64 [N]: position in B x L that predicts each completion token."""
    targets: torch.Tensor
    """int64 [N]"""
    token_index: torch.Tensor
    """int64 [N]: position in the batch's per-token arrays."""


class Floor:
    """Policy and critic in bare torch. bfloat16 weights are stepped through float32 copies, as in DeepSpeed."""

    def __init__(self, path: str, batches: Sequence[MicroBatch], *, dtype: str, rates: tuple[float, float]) -> None:
        kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification)
        extra: tuple[dict[str, Any], ...] = ({}, {"num_labels": 1})
        self.policy, self.critic = (
            kind.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa", **more)
            .to(distributed.device())
            .train()
            for kind, more in zip(kinds, extra, strict=True)
        )
        self.batches = batches
        self.steps = [MasterAdamW(model, rate) for model, rate in zip((self.policy, self.critic), rates, strict=True)]

    def update(self, targets: Targets, tokens_in_global_batch: float) -> None:
        """Forward, backward and AdamW of both models, with PPO's losses; of the policy alone without returns."""
        for batch in self.batches:
            old, advantages = targets.old_logprobs[batch.token_index], targets.advantages[batch.token_index]
            ratio = torch.exp(self.logprobs(batch) - old.to(batch.targets.device))
            advantages = advantages.to(batch.targets.device)
            loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).sum()
            (loss / tokens_in_global_batch).backward()
        for batch in self.batches if targets.returns is not None else ():
            wanted = targets.returns[batch.token_index].to(batch.targets.device)
            loss = 0.5 * ((self.values(batch) - wanted) ** 2).sum()
            (0.1 * loss / tokens_in_global_batch).backward()
        for step in self.steps if targets.returns is not None else self.steps[:1]:
            step()

    def forward(self) -> None:
        """Log-probabilities and values without gradient."""
        with torch.no_grad():
            for batch in self.batches:
                self.logprobs(batch)
                self.values(batch)

    def logprobs(self, batch: MicroBatch) -> torch.Tensor:
        logits = self.policy.lm_head(_hidden(self.policy, batch)).float()
        return -functional.cross_entropy(logits, batch.targets, reduction="none")

    def values(self, batch: MicroBatch) -> torch.Tensor:
        return self.critic.score(_hidden(self.critic, batch)).squeeze(-1).float()


def _hidden(model: Any, batch: MicroBatch) -> torch.Tensor:
    output = model.base_model(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)[batch.read_at]


class MasterAdamW:
    """Fused AdamW on the weights themselves (float32) or on float32 copies of them (bfloat16)."""

    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        half = self.weights[0].dtype != torch.float32
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.weights] if half else self.weights
        self.adamw = torch.optim.AdamW(self.masters, lr=rate, fused=True)

    def __call__(self) -> None:
        if distributed.world_size() > 1:
            flat = torch.cat([p.grad.flatten() for p in self.weights])
            dist.all_reduce(flat)
            for p, reduced in zip(self.weights, flat.split([p.numel() for p in self.weights]), strict=True):
                p.grad.copy_(reduced.view_as(p))
        if self.masters is not self.weights:
            for master, p in zip(self.masters, self.weights, strict=True):
                master.grad = p.grad.float()
        self.adamw.step()
        if self.masters is not self.weights:
            torch._foreach_copy_([p.data for p in self.weights], [m.data for m in self.masters])
        for p in {*self.masters, *self.weights}:
            p.grad = None


def micro_batches(batch: Trajectories, *, max_tokens: int, padded: bool, by_length: bool = True) -> list[MicroBatch]:
    """Batches of at most `max_tokens` positions, padding included.

    Args:
        padded: mix lengths; else a batch holds sequences of one length.
        by_length: sort by length first (without it, padding is what sample order makes it).
    """
    sizes = [len(p) + len(c) - 1 for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i]) if by_length else range(len(sizes))
    groups: Iterable[Iterable[int]] = [order] if padded else (g for _, g in itertools.groupby(order, sizes.__getitem__))
    made = []
    for group in groups:
        held: list[int] = []
        for index in group:
            longest = max([sizes[index], *(sizes[i] for i in held)])
            if held and longest * (len(held) + 1) > max_tokens:
                made.append(_micro_batch(batch, held, sizes))
                held = []
            held.append(index)
        made.append(_micro_batch(batch, held, sizes))
    return made


def _micro_batch(batch: Trajectories, held: Sequence[int], sizes: Sequence[int]) -> MicroBatch:
    offsets = [0, *itertools.accumulate(batch.lengths.tolist())]
    longest = max(sizes[i] for i in held)
    ids = torch.zeros(len(held), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    read_at, targets, token_index = [], [], []
    for row, i in enumerate(held):
        prompt, completion = batch.prompt_ids[i], batch.completion_ids[i]
        ids[row, : sizes[i]] = torch.tensor((prompt + completion)[:-1])
        mask[row, : sizes[i]] = 1
        first = row * longest + len(prompt) - 1
        read_at.extend(range(first, first + len(completion)))
        targets.extend(completion)
        token_index.extend(range(offsets[i], offsets[i + 1]))
    device = distributed.device()
    return MicroBatch(
        input_ids=ids.to(device),
        mask=None if bool(mask.all()) else mask.to(device),
        read_at=torch.tensor(read_at, device=device),
        targets=torch.tensor(targets, device=device),
        token_index=torch.tensor(token_index),
    )

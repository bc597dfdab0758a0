"""The learner: policy, critic and reference, and one PPO update of the first two.

An update runs K epochs over the step's samples, each in `minibatches` parts; each part is packed into rows, one
forward and backward a row, and one optimizer step. Losses are divided once by the part's tokens over all ranks.
"""

from __future__ import annotations

import copy
import math
import pathlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlvr import distributed
from rlvr.advantage import generalized_advantage_estimation, token_rewards, whiten
from rlvr.config import Config
from rlvr.engine import Engine
from rlvr.errors import NonFiniteError
from rlvr.loss import clipped_policy_loss, clipped_value_loss, kl_estimate, truncated_importance_weights
from rlvr.model import PolicyModel, load_critic, load_policy
from rlvr.packing import pack
from rlvr.records import PackedRow, Targets, Trajectories
from rlvr.seeds import derive
from rlvr.truncation import Truncation


class Learner:
    """Policy and critic under DeepSpeed, and the frozen reference."""

    def __init__(self, config: Config, *, total_updates: int, end_token_ids: Sequence[int] = ()) -> None:
        self.config = config
        self._truncation = Truncation.of(config.rollout, end_token_ids)
        dtype, checkpointing = config.model.dtype, config.model.gradient_checkpointing
        policy = load_policy(
            config.model.path,
            dtype=dtype,
            gradient_checkpointing=checkpointing,
            logits_chunk_tokens=config.learner.logits_chunk_tokens,
        )
        critic = load_critic(
            config.critic.init,
            config.model.path,
            dtype=dtype,
            gradient_checkpointing=checkpointing,
            generator=torch.Generator().manual_seed(config.seed),
        )
        self.reference = _frozen_copy(policy) if config.algorithm.kl_coefficient > 0 else None
        stage = config.learner.zero_stage
        self.policy = Engine(
            "policy", policy, config.optimizer, zero_stage=stage, dtype=dtype, total_updates=total_updates
        )
        self.critic = Engine(
            "critic", critic, config.critic.optimizer, zero_stage=stage, dtype=dtype, total_updates=total_updates
        )

    def targets(self, batch: Trajectories) -> tuple[Targets, dict[str, float]]:
        """Forward passes before the update, then KL penalty, GAE and whitening.

        Returns the per-token arrays, and metrics of them over all ranks.
        """
        algorithm = self.config.algorithm
        rows = self.rows(batch)
        if algorithm.old_logprobs == "learner":
            learner, entropy = self.logprobs(batch, rows)
            old, weights = learner, None
            if algorithm.importance_cap is not None:
                weights = truncated_importance_weights(learner, batch.sampler_logprobs, cap=algorithm.importance_cap)
        else:
            learner, entropy, old, weights = None, None, batch.sampler_logprobs, None
        reference = None if self.reference is None else self._reference_logprobs(self.reference, batch, rows)
        with self.critic.inference():
            values = self._read(batch, rows, self.critic)
        kl = None if reference is None else kl_estimate(old, reference, algorithm.kl_estimator)
        in_reward = kl if algorithm.kl_placement == "reward" else None
        rewards = token_rewards(batch.rewards, batch.lengths, in_reward, algorithm.kl_coefficient)
        advantages, returns = generalized_advantage_estimation(
            rewards, values, batch.lengths, gamma=algorithm.gamma, gae_lambda=algorithm.gae_lambda
        )
        mean, variance = global_moments(advantages)
        differences = None if learner is None else self._differences(batch, rows, learner)
        metrics = _target_metrics(batch, learner, differences, entropy, reference, values, returns)
        if algorithm.whiten_advantages:
            advantages = whiten(advantages, mean=mean, variance=variance)
        return Targets(
            old_logprobs=old,
            reference_logprobs=reference,
            old_values=values,
            advantages=advantages,
            returns=returns,
            importance_weights=weights,
        ), metrics

    def update(self, batch: Trajectories, targets: Targets, *, step: int) -> dict[str, float]:
        """K epochs of PPO on one rollout batch. Returns metrics over all ranks."""
        totals: dict[str, float] = defaultdict(float)
        norms = []
        for epoch in range(self.config.algorithm.epochs):
            for part in self._minibatches(batch.places.tolist(), step=step, epoch=epoch):
                rows = self.rows(batch, part)
                tokens = sum(len(batch.completion_ids[i]) for i in part)
                tokens_in_global_batch = distributed.sum_over_ranks([tokens])[0]
                if tokens_in_global_batch == 0:  # fewer samples than minibatches on every rank: nothing to learn here
                    continue
                self._backward_policy(rows, targets, tokens_in_global_batch, totals)
                self._backward_critic(rows, targets, tokens_in_global_batch, totals)
                self._stop_unless_finite(totals)
                norms.append((self.policy.step(), self.critic.step()))
                totals["tokens"] += tokens
        return _update_metrics(totals, norms)

    def learning_rates(self) -> dict[str, float]:
        """Rates of the coming update."""
        return {"optim/lr": self.policy.learning_rate(), "optim/critic_lr": self.critic.learning_rate()}

    def _backward_policy(
        self, rows: list[PackedRow], targets: Targets, tokens_in_global_batch: float, totals: dict[str, float]
    ) -> None:
        algorithm = self.config.algorithm
        for row in rows:
            logprobs, _ = self.policy(row, self.config.rollout.temperature)
            old = _at(targets.old_logprobs, row)
            losses, clipped = clipped_policy_loss(
                logprobs, old, _at(targets.advantages, row), clip_ratio=algorithm.clip_ratio
            )
            if targets.importance_weights is not None:
                losses = losses * _at(targets.importance_weights, row)
            if algorithm.kl_placement == "loss" and targets.reference_logprobs is not None:
                reference = _at(targets.reference_logprobs, row)
                losses = losses + algorithm.kl_coefficient * kl_estimate(logprobs, reference, algorithm.kl_estimator)
            loss = losses.sum() / tokens_in_global_batch
            totals["policy_loss"] += loss.item() * tokens_in_global_batch
            totals["clipped"] += clipped.sum().item()
            totals["approximate_kl"] += ((logprobs.detach() - old) ** 2 / 2).sum().item()
            self.policy.backward(loss)

    def _backward_critic(
        self, rows: list[PackedRow], targets: Targets, tokens_in_global_batch: float, totals: dict[str, float]
    ) -> None:
        algorithm = self.config.algorithm
        for row in rows:
            losses, clipped = clipped_value_loss(
                self.critic(row),
                _at(targets.old_values, row),
                _at(targets.returns, row),
                value_clip=algorithm.value_clip,
            )
            loss = losses.sum() / tokens_in_global_batch
            totals["value_loss"] += loss.item() * tokens_in_global_batch
            totals["value_clipped"] += clipped.sum().item()
            self.critic.backward(algorithm.value_coefficient * loss)

    def _stop_unless_finite(self, totals: dict[str, float]) -> None:
        seen = {name: totals[name] for name in ("policy_loss", "value_loss")}
        broken = not all(math.isfinite(value) for value in seen.values())
        # both gradients before either step: a broken critic must not leave an updated policy behind
        for engine in (self.policy, self.critic):
            if not engine.gradient_is_finite():
                seen[f"{engine.name}_gradient"] = math.nan
                broken = True
        if distributed.max_over_ranks([float(broken)])[0]:
            raise NonFiniteError(
                f"a loss or gradient is not finite before update {self.policy.updates + 1} (this rank: {seen}); "
                "no weight was changed. Lower optimizer.learning_rate, or look for inf/NaN in the samples and rewards."
            )

    def logprobs(self, batch: Trajectories, rows: Sequence[PackedRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probability and entropy at each completion token: float32 [N] each, nats."""
        entropy = torch.zeros(int(batch.lengths.sum()))

        def read(row: PackedRow) -> torch.Tensor:
            logprobs, entropies = self.policy(row, self.config.rollout.temperature)
            entropy[row.token_index.cpu()] = entropies.cpu()
            return logprobs

        with self.policy.inference():
            return self._read(batch, rows, read), entropy

    def sampler_differences(self, batch: Trajectories, rows: Sequence[PackedRow]) -> torch.Tensor:
        """Sampler's log-probability minus the learner's, of the distribution that was sampled (truncation too).

        Returns:
            float32 [tokens of `rows`], nats.
        """
        positions = torch.cat([torch.zeros(0, dtype=torch.int64), *map(torch.arange, batch.lengths.tolist())])
        found = [torch.zeros(0)]
        with self.policy.inference():
            for row in rows:
                at = row.token_index.cpu()
                here = positions[at].to(row.targets.device)
                learned, _ = self.policy(row, self.config.rollout.temperature, self._truncation, here)
                found.append(batch.sampler_logprobs[at] - learned.float().cpu())
        return torch.cat(found)

    def _differences(self, batch: Trajectories, rows: Sequence[PackedRow], learner: torch.Tensor) -> torch.Tensor:
        """Of every token where the whole softmax was sampled; else, for one more forward pass, of one packed row."""
        if self._truncation is None:
            return batch.sampler_logprobs - learner
        return self.sampler_differences(batch, rows[:1])

    def _reference_logprobs(
        self, reference: PolicyModel, batch: Trajectories, rows: Sequence[PackedRow]
    ) -> torch.Tensor:
        with torch.no_grad():
            return self._read(batch, rows, lambda row: reference(row, self.config.rollout.temperature)[0])

    def _read(
        self, batch: Trajectories, rows: Sequence[PackedRow], forward: Callable[[PackedRow], torch.Tensor]
    ) -> torch.Tensor:
        """Run `forward` over the rows and put its tokens back in sample order: float32 [N] on the CPU."""
        out = torch.zeros(int(batch.lengths.sum()))
        for row in rows:
            out[row.token_index.cpu()] = forward(row).float().cpu()
        return out

    def rows(self, batch: Trajectories, select: Sequence[int] | None = None) -> list[PackedRow]:
        """Pack samples (default all) for this rank, as many rows as every other rank. Collective."""
        rows = pack(
            batch.prompt_ids,
            batch.completion_ids,
            max_tokens=self.config.learner.max_tokens_per_micro_batch,
            device=distributed.device(),
            select=select,
        )
        return same_number_on_every_rank(rows)

    def _minibatches(self, places: Sequence[int], *, step: int, epoch: int) -> list[list[int]]:
        """This rank's samples in `minibatches` parts, by an order of the whole step drawn from (seed, step, epoch).

        Which part a sample falls in depends on its place in the step alone, so every number of ranks makes the same
        parts.
        """
        parts = self.config.algorithm.minibatches
        total = self.config.rollout.prompts_per_step * self.config.rollout.samples_per_prompt
        generator = torch.Generator().manual_seed(derive(self.config.seed, "minibatches", step, epoch))
        order = torch.randperm(total, generator=generator)
        part_of = torch.empty(total, dtype=torch.int64)
        part_of[order] = torch.arange(total) * parts // total
        split: list[list[int]] = [[] for _ in range(parts)]
        for index, place in enumerate(places):
            split[int(part_of[place])].append(index)
        return split

    def save(self, folder: str) -> None:
        """Collective."""
        self.policy.save(folder)
        self.critic.save(folder)

    def load(self, folder: str) -> None:
        """Collective."""
        self.policy.load(folder)
        self.critic.load(folder)


def save_pretrained(policy: Engine, folder: pathlib.Path, tokenizer: Any) -> None:
    """Write a policy as a Hugging Face folder: weights, config, tokenizer, chat template. Collective."""
    on_first_rank = distributed.rank() == 0
    state = {name: weight.cpu() for name, weight in policy.named_weights() if on_first_rank}
    if on_first_rank:
        policy.engine.module.transformer.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    distributed.barrier()


def _frozen_copy(policy: PolicyModel) -> PolicyModel:
    reference = copy.deepcopy(policy).to(distributed.device())
    return reference.requires_grad_(requires_grad=False).eval()


def _at(values: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """A per-token array at a row's tokens, on the row's device."""
    return values[row.token_index.to(values.device)].to(row.targets.device)


def same_number_on_every_rank(rows: list[PackedRow]) -> list[PackedRow]:
    """Add filler rows (one token, nothing to predict) up to the largest count of any rank.

    ZeRO-2 and ZeRO-3 communicate in every forward and backward, so all ranks must make the same number of them. A
    filler's loss is a sum over no tokens: 0, with gradient 0, whatever the model says.
    """
    most = int(distributed.max_over_ranks([float(len(rows))])[0])
    device = distributed.device()
    one = torch.zeros(1, dtype=torch.int64, device=device)
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


def global_moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and unbiased variance over the tokens of all ranks."""
    count, total = distributed.sum_over_ranks([float(values.numel()), values.double().sum().item()])
    mean = total / max(count, 1.0)
    squares = distributed.sum_over_ranks([((values.double() - mean) ** 2).sum().item()])[0]
    return mean, squares / max(count - 1.0, 1.0)


def _target_metrics(
    batch: Trajectories,
    learner: torch.Tensor | None,
    differences: torch.Tensor | None,
    entropy: torch.Tensor | None,
    reference: torch.Tensor | None,
    values: torch.Tensor,
    returns: torch.Tensor,
) -> dict[str, float]:
    _, variance_of_returns = global_moments(returns)
    _, variance_of_errors = global_moments(returns - values)
    tokens = values.numel()
    policy = batch.sampler_logprobs if learner is None else learner
    sums = {
        "policy/kl_reference": 0.0 if reference is None else (policy - reference).sum().item(),
        "policy/kept_mass": 0.0 if learner is None else (learner - batch.sampler_logprobs).exp().sum().item(),
        "policy/entropy": 0.0 if entropy is None else entropy.sum().item(),
        "value/mean": values.sum().item(),
        "value/return_mean": returns.sum().item(),
    }
    total, *summed = distributed.sum_over_ranks([float(tokens), *sums.values()])
    metrics = {name: value / max(total, 1.0) for name, value in zip(sums, summed, strict=True)}
    if differences is None:
        del metrics["policy/entropy"], metrics["policy/kept_mass"]
    else:
        metrics |= _agreement(differences)
    if reference is None:
        del metrics["policy/kl_reference"]
    explained = math.nan if variance_of_returns == 0 else 1.0 - variance_of_errors / variance_of_returns
    return metrics | {"value/explained_variance": explained}


def _agreement(differences: torch.Tensor) -> dict[str, float]:
    """Learner against sampler over the tokens compared, of all ranks."""
    compared, signed, absolute = distributed.sum_over_ranks(
        [float(differences.numel()), differences.sum().item(), differences.abs().sum().item()]
    )
    count = max(compared, 1.0)
    return {"policy/kl_sampler": signed / count, "policy/sampler_difference": absolute / count}


def _update_metrics(totals: dict[str, float], norms: list[tuple[float, float]]) -> dict[str, float]:
    names = ("policy_loss", "clipped", "approximate_kl", "value_loss", "value_clipped")
    tokens, *sums = distributed.sum_over_ranks([totals["tokens"], *(totals[name] for name in names)])
    policy_loss, clipped, approximate_kl, value_loss, value_clipped = (value / max(tokens, 1.0) for value in sums)
    return {
        "update/tokens": tokens,
        "policy/loss": policy_loss,
        "policy/clip_fraction": clipped,
        "policy/kl_old": approximate_kl,
        "value/loss": value_loss,
        "value/clip_fraction": value_clipped,
        "optim/grad_norm": sum(policy for policy, _ in norms) / max(len(norms), 1),
        "optim/critic_grad_norm": sum(critic for _, critic in norms) / max(len(norms), 1),
    }

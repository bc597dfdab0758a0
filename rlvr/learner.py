"""The learner: policy, critic and reference, and one update of the first two.

An update runs K epochs over the step's samples, each in `minibatches` parts; each part is packed into rows, one
forward and backward a row, and one optimizer step. Losses are divided once by the part's totals over all ranks.
There is a critic only where the advantage needs one, and a reference only where there is a KL term.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from rlvr import distributed
from rlvr.balance import share_of_minibatch, whole_step
from rlvr.config import Config
from rlvr.engine import Engine
from rlvr.engines import Reference, make_critic, make_policy, make_reference
from rlvr.errors import NonFiniteError
from rlvr.importance import Correction, importance_weights
from rlvr.loss import POLICY_LOSSES, Clip, Denominators, aggregate, clipped_value_loss, kl_estimate
from rlvr.packing import pack_on_every_rank, packing_metrics
from rlvr.records import PackedRow, Targets, Trajectories
from rlvr.seeds import derive
from rlvr.targets import advantages_and_returns, target_metrics
from rlvr.truncation import Truncation

UPDATE_METRICS = {
    "policy/loss": "policy_loss",
    "policy/clip_fraction_low": "clipped_low",
    "policy/clip_fraction_high": "clipped_high",
    "policy/clip_fraction_dual": "clipped_dual",
    "policy/kl_old": "approximate_kl",
    "value/loss": "value_loss",
    "value/clip_fraction": "value_clipped",
}
"""Means over an update's tokens, and the sums that they are made of."""


class Learner:
    """Policy and critic under DeepSpeed, and the frozen reference."""

    def __init__(self, config: Config, *, total_updates: int, end_token_ids: Sequence[int] = ()) -> None:
        self.config = config
        self._truncation = Truncation.of(config.rollout, end_token_ids)
        # one after another: what is split over the ranks is split before the next model is read
        self.policy = make_policy(config, total_updates=total_updates)
        self.reference = make_reference(config, self.policy)
        has_critic = config.algorithm.advantage == "gae"
        self.critic = make_critic(config, total_updates=total_updates) if has_critic else None

    def engines(self) -> list[Engine]:
        """What is trained."""
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def targets(self, batch: Trajectories) -> tuple[Targets, dict[str, float]]:
        """Forward passes before the update, then KL penalty, advantages and whitening.

        Returns the per-token arrays, and metrics of them over all ranks.
        """
        algorithm = self.config.algorithm
        rows = self.rows(batch)
        learner, entropy, weights = None, None, None
        if algorithm.old_logprobs == "learner":
            learner, entropy = self.logprobs(batch, rows)
            if algorithm.corrects_importance:
                correction = Correction(
                    cap=algorithm.importance_cap, mask=algorithm.importance_mask, level=algorithm.importance_level
                )
                weights = importance_weights(learner, batch.sampler_logprobs, _sample_of_token(batch), correction)
        old = batch.sampler_logprobs if learner is None else learner
        reference = None if self.reference is None else self._reference_logprobs(self.reference, batch, rows)
        values = None
        if self.critic is not None:
            with self.critic.inference():
                values = self._read(batch, rows, self.critic)
        penalty = None
        if reference is not None and algorithm.kl_placement == "reward":
            penalty = kl_estimate(old, reference, algorithm.kl_estimator)
        advantages, returns = advantages_and_returns(algorithm, batch, penalty, values)
        targets = Targets(
            old_logprobs=old,
            reference_logprobs=reference,
            old_values=values,
            advantages=advantages,
            returns=returns,
            importance_weights=weights,
        )
        differences = None if learner is None else self._differences(batch, rows, learner)
        return targets, target_metrics(batch, targets, learner, entropy, differences)

    def update(self, batch: Trajectories, targets: Targets, *, step: int) -> dict[str, float]:
        """K epochs on one rollout batch. Returns metrics over all ranks."""
        totals: dict[str, float] = defaultdict(float)
        norms: list[list[float]] = []
        spreads = self.config.algorithm.minibatches > 1 and distributed.world_size() > 1
        if spreads:
            batch, targets = whole_step(batch, targets)
        samples = _sample_of_token(batch)
        packed: list[PackedRow] = []
        for epoch in range(self.config.algorithm.epochs):
            for minibatch in self._minibatches(batch.places.tolist(), step=step, epoch=epoch):
                part = share_of_minibatch(batch, minibatch) if spreads else minibatch
                rows = self.rows(batch, part)
                tokens = sum(len(batch.completion_ids[i]) for i in part)
                over = self._denominators(tokens, len(part))
                if over.tokens_in_global_batch == 0:  # fewer samples than minibatches on every rank: nothing to learn
                    continue
                self._backward_policy(rows, targets, samples, over, totals)
                self._backward_critic(rows, targets, over, totals)
                self._stop_unless_finite(totals)
                norms.append([engine.step() for engine in self.engines()])
                packed += rows
                totals["tokens"] += tokens
        return self._update_metrics(totals, norms) | packing_metrics(packed)

    def _denominators(self, tokens: int, samples: int) -> Denominators:
        """Totals over all ranks of one part's tokens and samples. Collective."""
        all_tokens, all_samples = distributed.sum_over_ranks([tokens, samples])
        return Denominators(
            tokens_in_global_batch=all_tokens,
            samples_in_global_batch=all_samples,
            max_tokens=self.config.rollout.max_tokens,
        )

    def _update_metrics(self, totals: dict[str, float], norms: list[list[float]]) -> dict[str, float]:
        names = UPDATE_METRICS if self.critic is not None else [n for n in UPDATE_METRICS if not n.startswith("value/")]
        tokens, *sums = distributed.sum_over_ranks(
            [totals["tokens"], *(totals[UPDATE_METRICS[name]] for name in names)]
        )
        metrics = {name: value / max(tokens, 1.0) for name, value in zip(names, sums, strict=True)}
        bounds = [metrics[f"policy/clip_fraction_{bound}"] for bound in ("low", "high", "dual")]
        metrics |= {"policy/clip_fraction": sum(bounds), "update/tokens": tokens}
        for index, name in enumerate(("grad_norm", "critic_grad_norm")[: len(self.engines())]):
            metrics[f"optim/{name}"] = sum(norm[index] for norm in norms) / max(len(norms), 1)
        return metrics

    def learning_rates(self) -> dict[str, float]:
        """Rates of the coming update."""
        rates = {"optim/lr": self.policy.learning_rate()}
        return rates if self.critic is None else rates | {"optim/critic_lr": self.critic.learning_rate()}

    def _backward_policy(
        self,
        rows: list[PackedRow],
        targets: Targets,
        samples: torch.Tensor,
        over: Denominators,
        totals: dict[str, float],
    ) -> None:
        algorithm = self.config.algorithm
        high = algorithm.clip_ratio if algorithm.clip_ratio_high is None else algorithm.clip_ratio_high
        clip = Clip(low=algorithm.clip_ratio, high=high, dual=algorithm.dual_clip)
        objective = POLICY_LOSSES[algorithm.loss]
        for row in rows:
            logprobs, _ = self.policy(row, self.config.rollout.temperature, entropy=False)
            old, sample = _at(targets.old_logprobs, row), _at(samples, row)
            found = objective(logprobs, old, _at(targets.advantages, row), sample, clip)
            losses = found.losses
            if targets.importance_weights is not None:
                losses = losses * _at(targets.importance_weights, row)
            if algorithm.kl_placement == "loss" and targets.reference_logprobs is not None:
                reference = _at(targets.reference_logprobs, row)
                losses = losses + algorithm.kl_coefficient * kl_estimate(logprobs, reference, algorithm.kl_estimator)
            loss = aggregate(losses, sample, algorithm.loss_aggregation, over)
            totals["policy_loss"] += loss.item() * over.tokens_in_global_batch
            for bound in ("clipped_low", "clipped_high", "clipped_dual"):
                totals[bound] += getattr(found, bound).sum().item()
            totals["approximate_kl"] += ((logprobs.detach() - old) ** 2 / 2).sum().item()
            self.policy.backward(loss)

    def _backward_critic(
        self, rows: list[PackedRow], targets: Targets, over: Denominators, totals: dict[str, float]
    ) -> None:
        if self.critic is None or targets.old_values is None or targets.returns is None:
            return
        algorithm = self.config.algorithm
        for row in rows:
            losses, clipped = clipped_value_loss(
                self.critic(row),
                _at(targets.old_values, row),
                _at(targets.returns, row),
                value_clip=algorithm.value_clip,
            )
            loss = losses.sum() / over.tokens_in_global_batch
            totals["value_loss"] += loss.item() * over.tokens_in_global_batch
            totals["value_clipped"] += clipped.sum().item()
            self.critic.backward(algorithm.value_coefficient * loss)

    def _stop_unless_finite(self, totals: dict[str, float]) -> None:
        seen: dict[str, float] = {name: totals[name] for name in ("policy_loss", "value_loss") if name in totals}
        broken = not all(math.isfinite(value) for value in seen.values())
        # both gradients before either step: a broken critic must not leave an updated policy behind
        for engine in self.engines():
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

    def _reference_logprobs(self, reference: Reference, batch: Trajectories, rows: Sequence[PackedRow]) -> torch.Tensor:
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
        return pack_on_every_rank(
            batch.prompt_ids,
            batch.completion_ids,
            max_tokens=self.config.learner.max_tokens_per_micro_batch,
            select=select,
        )

    def _minibatches(self, places: Sequence[int], *, step: int, epoch: int) -> list[list[int]]:
        """The samples at `places` in `minibatches` parts, by an order of the whole step drawn from (seed, step, epoch).

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
        for engine in self.engines():
            engine.save(folder)

    def load(self, folder: str) -> None:
        """Collective."""
        for engine in self.engines():
            engine.load(folder)


def _at(values: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """A per-token array at a row's tokens, on the row's device."""
    return values[row.token_index.to(values.device)].to(row.targets.device)


def _sample_of_token(batch: Trajectories) -> torch.Tensor:
    """Which sample of the batch each completion token belongs to: int64 [N]."""
    return torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)

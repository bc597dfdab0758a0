"""What an update aims at, over all ranks: advantages by `algorithm.advantage`, and measures of the batch."""

from __future__ import annotations

import math

import torch

from rlvr import distributed
from rlvr.advantage import (
    GROUP_ADVANTAGES,
    generalized_advantage_estimation,
    group_moments,
    rewards_to_go,
    token_rewards,
    whiten,
)
from rlvr.config import Algorithm
from rlvr.importance import mismatch_metrics, mismatch_sums
from rlvr.records import Targets, Trajectories


def advantages_and_returns(
    algorithm: Algorithm, batch: Trajectories, penalty: torch.Tensor | None, values: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Advantages, whitened where the recipe says so, and what the critic should say, if there is one. Collective.

    Args:
        penalty: float32 [N], nats, KL estimate of each token that is taken from the reward; None for none.
        values: float32 [N], of the critic; None without one.
    Returns:
        float32 [N] each.
    """
    returns = None
    if values is not None:
        rewards = token_rewards(batch.rewards, batch.lengths, penalty, algorithm.kl_coefficient)
        advantages, returns = generalized_advantage_estimation(
            rewards, values, batch.lengths, gamma=algorithm.gamma, gae_lambda=algorithm.gae_lambda
        )
    elif algorithm.compares_groups:
        advantages = group_advantages(algorithm, batch, penalty).repeat_interleave(batch.lengths)
    else:
        rewards = token_rewards(batch.rewards, batch.lengths, penalty, algorithm.kl_coefficient)
        advantages = rewards_to_go(rewards, batch.lengths, gamma=algorithm.gamma)
    mean, variance = global_moments(advantages)
    return whiten(advantages, mean=mean, variance=variance) if algorithm.whitened else advantages, returns


def group_advantages(algorithm: Algorithm, batch: Trajectories, penalty: torch.Tensor | None) -> torch.Tensor:
    """Each sample's reward, less its own KL penalty over all its tokens, against its group's. Collective.

    A group's samples are usually on one rank; they may be on several. Samples whose verdict is indeterminate are not
    in the batch, hence not in the baseline.

    Returns:
        float32 [B].
    """
    rewards = batch.rewards.double()
    if penalty is not None:
        samples = torch.arange(len(rewards)).repeat_interleave(batch.lengths)
        rewards = rewards - algorithm.kl_coefficient * torch.zeros_like(rewards).index_add(0, samples, penalty.double())
    everywhere = distributed.gather_objects((batch.groups.tolist(), rewards.tolist()))
    groups = torch.tensor([group for names, _ in everywhere for group in names], dtype=torch.int64)
    all_rewards = torch.tensor([reward for _, numbers in everywhere for reward in numbers], dtype=torch.float64)
    found = GROUP_ADVANTAGES[algorithm.advantage](all_rewards, group_moments(all_rewards, groups))
    before = sum(len(names) for names, _ in everywhere[: distributed.rank()])
    return found[before : before + len(rewards)].float()


def global_moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and unbiased variance over the tokens of all ranks."""
    count, total = distributed.sum_over_ranks([float(values.numel()), values.double().sum().item()])
    mean = total / max(count, 1.0)
    squares = distributed.sum_over_ranks([((values.double() - mean) ** 2).sum().item()])[0]
    return mean, squares / max(count - 1.0, 1.0)


def target_metrics(
    batch: Trajectories,
    targets: Targets,
    learner: torch.Tensor | None,
    entropy: torch.Tensor | None,
    differences: torch.Tensor | None,
) -> dict[str, float]:
    """Measures of the batch before the update, over all ranks. Collective.

    Args:
        learner, entropy: float32 [N], the policy's log-probabilities and entropies; None where it was not asked.
        differences: float32 [tokens compared], nats, the sampler's log-probability minus the learner's, both of the
            distribution that was sampled.
    """
    sums = {}
    policy = batch.sampler_logprobs if learner is None else learner
    if targets.reference_logprobs is not None:
        sums["policy/kl_reference"] = (policy - targets.reference_logprobs).sum().item()
    if learner is not None and entropy is not None:
        sums["policy/kept_mass"] = (learner - batch.sampler_logprobs).exp().sum().item()
        sums["policy/entropy"] = entropy.sum().item()
    if targets.importance_weights is not None:
        sums["policy/importance_weight"] = targets.importance_weights.sum().item()
        sums["policy/importance_masked"] = float((targets.importance_weights == 0).sum())
    if targets.old_values is not None and targets.returns is not None:
        sums["value/mean"] = targets.old_values.sum().item()
        sums["value/return_mean"] = targets.returns.sum().item()
    total, *summed = distributed.sum_over_ranks([float(policy.numel()), *sums.values()])
    metrics = {name: value / max(total, 1.0) for name, value in zip(sums, summed, strict=True)}
    if targets.old_values is not None and targets.returns is not None:
        _, variance_of_returns = global_moments(targets.returns)
        _, variance_of_errors = global_moments(targets.returns - targets.old_values)
        explained = math.nan if variance_of_returns == 0 else 1.0 - variance_of_errors / variance_of_returns
        metrics["value/explained_variance"] = explained
    if learner is not None and differences is not None:
        metrics |= _agreement(differences) | _mismatch(learner, batch.sampler_logprobs)
    return metrics


def _agreement(differences: torch.Tensor) -> dict[str, float]:
    """Learner against sampler over the tokens compared, of all ranks."""
    compared, signed, absolute = distributed.sum_over_ranks(
        [float(differences.numel()), differences.sum().item(), differences.abs().sum().item()]
    )
    count = max(compared, 1.0)
    return {"policy/kl_sampler": signed / count, "policy/sampler_difference": absolute / count}


def _mismatch(learner: torch.Tensor, sampler: torch.Tensor) -> dict[str, float]:
    sums = mismatch_sums(learner, sampler)
    totals = dict(zip(sums, distributed.sum_over_ranks(list(sums.values())), strict=True))
    return {f"policy/sampler_{name}": value for name, value in mismatch_metrics(totals).items()}

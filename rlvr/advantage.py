"""From rewards to advantages. Pure functions of flat arrays: N completion tokens, sample after sample, of B samples.

Two families (docs/objectives.md has them in one table). `gae` and `reinforce_plus_plus` look at each token's reward
to go; the others give all tokens of a sample one number, its reward against the rewards of its group: the samples of
one prompt. Whitening comes after, where the recipe asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pad_sequence

WHITEN_EPSILON = 1e-8
GROUP_EPSILON = 1e-8


def token_rewards(
    rewards: torch.Tensor, lengths: torch.Tensor, kl: torch.Tensor | None, kl_coefficient: float
) -> torch.Tensor:
    """Reward of each token: minus the KL penalty everywhere, plus the sample's reward on its last token.

    Tülu 3's code puts the reward one slot after EOS (its arrays keep a padding slot there); without padding the last
    real token is the same place in time (arXiv 2411.15124, Eq. 7-8 and section 6.2).

    Args:
        rewards: float32 [B].
        lengths: int64 [B], completion tokens of each sample, summing to N.
        kl: float32 [N], nats, estimate of KL(policy || reference) at each token; None for no penalty.
        kl_coefficient: beta.
    Returns:
        float32 [N].
    """
    per_token = torch.zeros(int(lengths.sum())) if kl is None else -kl_coefficient * kl
    last = lengths.cumsum(0) - 1
    return per_token.index_add(0, last, rewards)


def generalized_advantage_estimation(
    rewards: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, *, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (Schulman et al. 2016, arXiv 1506.02438, Eq. 16). The state after the last token is worth 0.

        delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lambda A_{t+1}

    Args:
        rewards, values: float32 [N]; `values[t]` is of the state before token t.
        lengths: int64 [B], summing to N.
    Returns:
        Advantages and returns (advantage + value), float32 [N] each.

    >>> advantages, returns = generalized_advantage_estimation(
    ...     torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([2]), gamma=1.0, gae_lambda=0.5)
    >>> advantages.tolist(), returns.tolist()   # delta: -0.25, 0.75; A_1 = 0.75, A_0 = -0.25 + 0.5 x 0.75
    ([0.125, 0.75], [0.625, 1.0])
    """
    split = lengths.tolist()
    if not split:  # a rank may be left without samples
        return rewards, values
    rewards_BT = pad_sequence(list(rewards.split(split)), batch_first=True)
    values_BT = pad_sequence(list(values.split(split)), batch_first=True)
    within_BT = torch.arange(rewards_BT.shape[1]) < lengths[:, None]
    advantages_BT = torch.zeros_like(rewards_BT)
    advantage_B = torch.zeros(len(split))
    next_value_B = torch.zeros(len(split))
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # past a sample's end nothing accumulates, so its last token sees zeros, as it should
        advantage_B = torch.where(within_BT[:, t], delta_B + gamma * gae_lambda * advantage_B, 0.0)
        next_value_B = torch.where(within_BT[:, t], values_BT[:, t], 0.0)
        advantages_BT[:, t] = advantage_B
    advantages = advantages_BT[within_BT]
    return advantages, advantages + values


def rewards_to_go(rewards: torch.Tensor, lengths: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """REINFORCE++: discounted sum of a token's own and later rewards, without a baseline (Hu et al., arXiv 2501.03262).

    The KL penalty is among the rewards; the paper then whitens over the whole batch, and has gamma = 1.

    Args:
        rewards: float32 [N], of each token.
        lengths: int64 [B], summing to N.
    Returns:
        float32 [N].

    >>> rewards_to_go(torch.tensor([-0.5, 10.0, -1.0]), torch.tensor([2, 1]), gamma=1.0).tolist()
    [9.5, 10.0, -1.0]
    """
    advantages, _ = generalized_advantage_estimation(
        rewards, torch.zeros_like(rewards), lengths, gamma=gamma, gae_lambda=1.0
    )
    return advantages


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rewards of the samples of one prompt whose verdicts are known, as float64 numbers of each of the B samples."""

    count: torch.Tensor
    """How many there are."""
    mean: torch.Tensor
    deviation: torch.Tensor
    """Standard deviation, unbiased (divided by count - 1); 0 where all rewards are equal or there is only one."""


def group_moments(rewards: torch.Tensor, groups: torch.Tensor) -> Group:
    """Moments of each sample's group.

    Args:
        rewards: float [B], of every sample whose group is asked for, from every rank that holds part of the group.
        groups: int64 [B], equal for samples of one group.

    >>> group_moments(torch.tensor([10.0, 0.0, 4.0]), torch.tensor([7, 7, 3])).mean.tolist()
    [5.0, 5.0, 4.0]
    """
    names, index = groups.unique(return_inverse=True)
    exact = rewards.double()
    count = torch.zeros(len(names), dtype=torch.float64).index_add(0, index, torch.ones_like(exact))
    mean = torch.zeros(len(names), dtype=torch.float64).index_add(0, index, exact) / count
    squares = torch.zeros(len(names), dtype=torch.float64).index_add(0, index, (exact - mean[index]) ** 2)
    extreme = exact.new_zeros(2, len(names))
    largest = extreme[0].scatter_reduce(0, index, exact, "amax", include_self=False)
    smallest = extreme[1].scatter_reduce(0, index, exact, "amin", include_self=False)
    # equal rewards have a mean that is not always exactly theirs: what is left must not be divided by itself
    deviation = torch.where(largest == smallest, 0.0, (squares / (count - 1).clamp(min=1)).sqrt())
    return Group(count=count[index], mean=mean[index], deviation=deviation[index])


def grpo(rewards: torch.Tensor, group: Group) -> torch.Tensor:
    """Reward minus the group's mean, over the group's standard deviation (DeepSeekMath, arXiv 2402.03300, 4.1.2).

    The deviation is unbiased, as in Tülu 3.1's code, verl and TRL (torch.std); open-instruct's later grpo_fast takes
    numpy's biased one, a factor sqrt(G / (G - 1)) at G samples. A group of equal rewards gets exactly 0.
    """
    return torch.where(group.deviation > 0, (rewards - group.mean) / (group.deviation + GROUP_EPSILON), 0.0)


def dr_grpo(rewards: torch.Tensor, group: Group) -> torch.Tensor:
    """Reward minus the group's mean, not divided (Dr. GRPO, arXiv 2503.20783, section 3.2; Olmo 3: "centered")."""
    return torch.where(group.deviation > 0, rewards - group.mean, 0.0)


def rloo(rewards: torch.Tensor, group: Group) -> torch.Tensor:
    """Reward minus the mean of the group's *other* samples (RLOO, Ahmadian et al., arXiv 2402.14740, Eq. 4).

    That is `dr_grpo` times count / (count - 1).
    """
    return dr_grpo(rewards, group) * group.count / (group.count - 1).clamp(min=1)


GROUP_ADVANTAGES: dict[str, Callable[[torch.Tensor, Group], torch.Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus_baseline": dr_grpo,  # and whitened over the batch (arXiv 2501.03262)
}
"""By `algorithm.advantage`. Each takes float64 [B] rewards and their groups, and gives float64 [B]: 0 for a sample that
is alone in its group, which has no baseline."""


def whiten(advantages: torch.Tensor, *, mean: float, variance: float) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation **of the whole step's tokens, over all ranks**.

    The caller sums over ranks (`rlvr.targets.global_moments`). Tülu 3's code whitens each rank's batch by itself,
    which makes the gradient depend on the number of ranks; this is the one place where we differ.

    Args:
        advantages: float32 [N], this rank's.
        mean, variance: of all tokens of the step; the variance is unbiased.
    """
    return (advantages - mean) * (variance + WHITEN_EPSILON) ** -0.5

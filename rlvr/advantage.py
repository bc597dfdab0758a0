"""From rewards to advantages. Pure functions of flat per-token arrays: N completion tokens, sample after sample."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

WHITEN_EPSILON = 1e-8


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


def whiten(advantages: torch.Tensor, *, mean: float, variance: float) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation **of the whole step's tokens, over all ranks**.

    The caller sums over ranks (`rlvr.learner.global_moments`). Tülu 3's code whitens each rank's batch by itself,
    which makes the gradient depend on the number of ranks; this is the one place where we differ.

    Args:
        advantages: float32 [N], this rank's.
        mean, variance: of all tokens of the step; the variance is unbiased.
    """
    return (advantages - mean) * (variance + WHITEN_EPSILON) ** -0.5

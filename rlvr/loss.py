"""The objective, token by token. Pure functions: arrays of N completion tokens in, arrays of N out.

Nothing is averaged here. The learner sums a row's tokens and divides once by `tokens_in_global_batch`, so that the
gradient does not depend on ranks, micro-batches or accumulation.
"""

from __future__ import annotations

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")


def clipped_policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, *, clip_ratio: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's pessimistic surrogate, negated (Schulman et al. 2017, arXiv 1707.06347, Eq. 7).

    Args:
        logprobs, old_logprobs: float32 [N], nats; the gradient flows through the first.
        advantages: float32 [N].
    Returns:
        Loss to minimise, float32 [N]; and, without gradient, 1.0 where the clip took the gradient away, float32 [N].

    >>> loss, clipped = clipped_policy_loss(
    ...     torch.tensor([1.5, 0.5]).log(), torch.zeros(2), torch.tensor([2.0, 2.0]), clip_ratio=0.2)
    >>> [round(x, 4) for x in loss.tolist()], clipped.tolist()   # min(3.0, 2.4); min(1.0, 1.6)
    ([-2.4, -1.0], [1.0, 0.0])
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio)
    return torch.maximum(unclipped, clipped), (clipped > unclipped).float().detach()


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, value_clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the larger squared error, of the value and of the value kept within `value_clip` of its old self.

    As in Tülu 3 (and OpenAI's `lm-human-preferences`); the coefficient 0.1 is applied by the learner.

    Args:
        values, old_values, returns: float32 [N]; the gradient flows through the first.
    Returns:
        Loss, float32 [N]; and, without gradient, 1.0 where the clipped error is the larger, float32 [N].

    >>> loss, clipped = clipped_value_loss(
    ...     torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0]), value_clip=0.2)
    >>> [round(x, 4) for x in loss.tolist()], clipped.tolist()   # 0.5 max((1 - 2)^2, (0.2 - 2)^2)
    ([1.62], [1.0])
    """
    near = old_values + (values - old_values).clamp(-value_clip, value_clip)
    unclipped = (values - returns) ** 2
    clipped = (near - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), (clipped > unclipped).float().detach()


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled token.

    Source: J. Schulman 2020, "Approximating KL Divergence".
    With d = log policy - log reference: k1 = d (unbiased, may be negative); k2 = d^2 / 2 (biased, low variance);
    k3 = exp(-d) - 1 + d (unbiased, never negative).

    Args:
        logprobs, reference_logprobs: float32 [N], nats.
    Returns:
        float32 [N], nats.

    >>> d = torch.tensor([0.5])
    >>> [round(kl_estimate(d, torch.zeros(1), k).item(), 4) for k in ("k1", "k2", "k3")]
    [0.5, 0.125, 0.1065]
    """
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        return torch.exp(-difference) - 1 + difference
    raise ValueError(f"kl_estimator must be one of {', '.join(KL_ESTIMATORS)}; got {estimator!r}")


def truncated_importance_weights(
    learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, *, cap: float
) -> torch.Tensor:
    """min(learner / sampler, cap) for each token: corrects for tokens drawn by a slightly different policy.

    Source: truncated importance sampling (Ionides 2008) as used for sampler-learner mismatch in Olmo 3
    (arXiv 2512.13961, Eq. 1, cap 2.0).

    Args:
        learner_logprobs, sampler_logprobs: float32 [N], nats, of the same policy version.
    Returns:
        float32 [N], without gradient.
    """
    return torch.exp(learner_logprobs - sampler_logprobs).clamp(max=cap).detach()

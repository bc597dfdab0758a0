"""The objective, token by token. Pure functions: arrays of N completion tokens in, arrays of N out.

Only `aggregate` averages, and what it divides by are totals of the whole optimizer step that the caller gives, so that
the gradient does not depend on ranks, micro-batches or accumulation. docs/objectives.md compares them in one table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token", "sequence", "constant")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How far the ratio policy / old policy may go before the gradient stops."""

    low: float
    """The ratio's lower bound is 1 - low."""
    high: float
    """Its upper bound is 1 + high; larger than `low` is DAPO's clip-higher (arXiv 2503.14476, Eq. 8-10)."""
    dual: float | None = None
    """Bound c > 1 of the ratio where the advantage is negative (arXiv 1912.09729, Eq. 5); None for none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Each float32 [N]. The last three carry no gradient and are 1.0 where a bound acted, else 0.0."""

    losses: torch.Tensor
    """To minimise."""
    clipped_low: torch.Tensor
    """Below 1 - low with a negative advantage (`cispo`: with any)."""
    clipped_high: torch.Tensor
    """Above 1 + high with a positive advantage (`cispo`: with any)."""
    clipped_dual: torch.Tensor
    """Above the dual bound with a negative advantage."""


def clipped_policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, samples: torch.Tensor, clip: Clip
) -> PolicyLoss:
    """PPO's pessimistic surrogate, negated (Schulman et al. 2017, arXiv 1707.06347, Eq. 7).

    With a dual clip, a negative advantage's loss is at most -c A (Ye et al. 2020, arXiv 1912.09729, Eq. 5).

    Args:
        logprobs, old_logprobs: float32 [N], nats; the gradient flows through the first.
        advantages: float32 [N].
        samples: int64 [N], equal for tokens of one sample; not used here.

    >>> loss = clipped_policy_loss(torch.tensor([1.5, 0.5]).log(), torch.zeros(2), torch.tensor([2.0, 2.0]),
    ...                            torch.tensor([0, 0]), Clip(low=0.2, high=0.2))
    >>> [round(x, 4) for x in loss.losses.tolist()], loss.clipped_high.tolist()   # min(3.0, 2.4); min(1.0, 1.6)
    ([-2.4, -1.0], [1.0, 0.0])
    """
    return _surrogate(torch.exp(logprobs - old_logprobs), advantages, clip)


def _surrogate(ratio: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> PolicyLoss:
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    acted = (clipped > unclipped).float().detach()
    losses = torch.maximum(unclipped, clipped)
    dual = torch.zeros_like(acted)
    if clip.dual is not None:
        bound = -clip.dual * advantages
        dual = ((advantages < 0) & (losses > bound)).float().detach()
        losses = torch.where(dual > 0, bound, losses)
    above = (ratio > 1.0).float().detach()
    return PolicyLoss(losses=losses, clipped_low=acted * (1 - above), clipped_high=acted * above, clipped_dual=dual)


def sequence_policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, samples: torch.Tensor, clip: Clip
) -> PolicyLoss:
    """GSPO: PPO's surrogate with one ratio for a whole sample, the geometric mean of its tokens' ratios.

    Source: Zheng et al. 2025, arXiv 2507.18071, in its token form (GSPO-token), where each token has the sample's
    ratio as value and its own log-probability's gradient. With one advantage for all tokens of a sample, averaged over
    samples (`loss_aggregation = "sequence"`), that is GSPO.

    Args:
        samples: int64 [N], equal for tokens of one sample, all of which must be here. The others as in
            `clipped_policy_loss`.
    """
    log_ratio = mean_over_sample(logprobs.detach() - old_logprobs, samples)
    return _surrogate(torch.exp(log_ratio + logprobs - logprobs.detach()), advantages, clip)


def weighted_policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, samples: torch.Tensor, clip: Clip
) -> PolicyLoss:
    """CISPO: the bounded ratio is a constant weight of -A log p, so that no token's gradient is lost.

    Source: MiniMax-M1, arXiv 2506.13585, Eq. 4-5, which leaves the lower bound out: `low` of 1 does.
    Arguments as in `clipped_policy_loss`.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    losses = -ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantages * logprobs
    return PolicyLoss(
        losses=losses,
        clipped_low=(ratio < 1.0 - clip.low).float(),
        clipped_high=(ratio > 1.0 + clip.high).float(),
        clipped_dual=torch.zeros_like(ratio),
    )


POLICY_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Clip], PolicyLoss]] = {
    "ppo": clipped_policy_loss,
    "gspo": sequence_policy_loss,
    "cispo": weighted_policy_loss,
}
"""By `algorithm.loss`."""


def mean_over_sample(values: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """The mean over each token's own sample, at each token: float32 [N].

    >>> mean_over_sample(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([4, 4, 9])).tolist()
    [2.0, 2.0, 5.0]
    """
    return sum_over_sample(values, samples) / sum_over_sample(torch.ones_like(values), samples)


def sum_over_sample(values: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """The sum over each token's own sample, at each token: float32 [N].

    >>> sum_over_sample(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([4, 4, 9])).tolist()
    [4.0, 4.0, 5.0]
    """
    names, index = samples.unique(return_inverse=True)
    return values.new_zeros(len(names)).index_add(0, index, values)[index]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """What one optimizer step's losses are divided by: totals over all ranks, rows and micro-batches."""

    tokens_in_global_batch: float
    samples_in_global_batch: float
    max_tokens: int
    """`rollout.max_tokens`, the longest completion."""


def aggregate(losses: torch.Tensor, samples: torch.Tensor, aggregation: str, over: Denominators) -> torch.Tensor:
    """One number whose sum over all rows and ranks is the step's loss.

    token: every token counts the same (DAPO, arXiv 2503.14476, Eq. 8; Tülu 3).
    sequence: every sample counts the same, its tokens' mean (GRPO, arXiv 2402.03300, Eq. 3; GSPO).
    constant: divided by samples x longest completion, so that no length is favoured (Dr. GRPO, arXiv 2503.20783).

    Args:
        losses: float32 [N] of one row.
        samples: int64 [N], equal for tokens of one sample, all of which must be in the row.

    >>> over = Denominators(tokens_in_global_batch=3, samples_in_global_batch=2, max_tokens=4)
    >>> losses, samples = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
    >>> [aggregate(losses, samples, how, over).item() for how in AGGREGATIONS]  # 9 / 3; (2 + 5) / 2; 9 / (2 x 4)
    [3.0, 3.5, 1.125]
    """
    if aggregation == "token":
        return losses.sum() / over.tokens_in_global_batch
    if aggregation == "sequence":
        lengths = sum_over_sample(torch.ones_like(losses), samples)
        return (losses / lengths).sum() / over.samples_in_global_batch
    if aggregation == "constant":
        return losses.sum() / (over.samples_in_global_batch * over.max_tokens)
    raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}; got {aggregation!r}")


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

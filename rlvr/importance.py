"""The difference between the policy that sampled and the policy that learns: weights against it, and measures of it.

vLLM and the learner compute the same weights' probabilities with other kernels, and an asynchronous sampler has older
weights. Pure functions of flat arrays of N completion tokens.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from rlvr.loss import sum_over_sample

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are kept within this before exp: a sample's sum over thousands of tokens would be infinite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """How the ratio learner / sampler becomes a weight of the policy loss."""

    cap: float | None = None
    """The weight is at most this (truncated importance sampling: Ionides 2008; Olmo 3, arXiv 2512.13961: 2.0)."""
    mask: tuple[float, float] | None = None
    """Outside of these bounds the weight is 0: IcePop's region (Ring-1T, 2025: 0.5 to 5), or, from 0 up, masked
    importance sampling. The tokens still count in the loss's denominator."""
    level: str = "token"
    """`token`: each token's own ratio. `sequence`: the product over its sample, which is unbiased and noisier."""


def importance_weights(
    learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, samples: torch.Tensor, correction: Correction
) -> torch.Tensor:
    """The learner / sampler ratio, 0 outside the mask, at most the cap.

    Args:
        learner_logprobs, sampler_logprobs: float32 [N], nats.
        samples: int64 [N], equal for tokens of one sample.
    Returns:
        float32 [N], without gradient.

    >>> ratios = torch.tensor([0.4, 1.5, 3.0, 6.0])
    >>> correction = Correction(cap=2.0, mask=(0.5, 5.0))
    >>> weights = importance_weights(ratios.log(), torch.zeros(4), torch.arange(4), correction)
    >>> [round(w, 4) for w in weights.tolist()]
    [0.0, 1.5, 2.0, 0.0]
    """
    ratio = _ratio(learner_logprobs, sampler_logprobs, samples, correction.level)
    weights = ratio
    if correction.cap is not None:
        weights = weights.clamp(max=correction.cap)
    if correction.mask is not None:
        low, high = correction.mask
        weights = torch.where((ratio >= low) & (ratio <= high), weights, 0.0)
    return weights


def _ratio(learner: torch.Tensor, sampler: torch.Tensor, samples: torch.Tensor, level: str) -> torch.Tensor:
    log_ratio = (learner - sampler).detach()
    if level == "sequence":
        log_ratio = sum_over_sample(log_ratio, samples)
    elif level != "token":
        raise ValueError(f"level must be token or sequence; got {level!r}")
    return torch.exp(log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def mismatch_sums(learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor) -> dict[str, float]:
    """Sums over this rank's tokens, from which `mismatch_metrics` makes measures of the whole step.

    Args:
        learner_logprobs, sampler_logprobs: float32 [N], nats.
    """
    learner, sampler = learner_logprobs.detach().double(), sampler_logprobs.detach().double()
    ratio = torch.exp((learner - sampler).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    return {
        "tokens": float(ratio.numel()),
        "ratio": ratio.sum().item(),
        "ratio_squared": (ratio**2).sum().item(),
        "gap": (learner.exp() - sampler.exp()).abs().sum().item(),
    }


def mismatch_metrics(sums: dict[str, float]) -> dict[str, float]:
    """How much the sampler's tokens are worth to the learner, from `mismatch_sums` added over ranks.

    ess: effective sample size (sum r)^2 / (N sum r^2) of the token ratios r = learner / sampler; 1 is on-policy.
    chi2: mean r^2 - 1, the estimate of the chi-square divergence of learner from sampler; 0 is on-policy.
    probability_gap: mean absolute difference of the sampled tokens' probabilities.

    >>> sums = mismatch_sums(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log())  # ratios 2 and 1
    >>> {name: round(value, 4) for name, value in mismatch_metrics(sums).items()}  # 9 / 10; 5 / 2 - 1; 0.25 / 2
    {'ess': 0.9, 'chi2': 1.5, 'probability_gap': 0.125}
    """
    tokens = sums["tokens"]
    if tokens == 0:
        return dict.fromkeys(("ess", "chi2", "probability_gap"), math.nan)
    return {
        "ess": sums["ratio"] ** 2 / (tokens * sums["ratio_squared"]),
        "chi2": sums["ratio_squared"] / tokens - 1.0,
        "probability_gap": sums["gap"] / tokens,
    }

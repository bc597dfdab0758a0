"""The distribution that was sampled, where it is not the whole softmax: top-k, top-p, min-p and a least length.

The sampler draws from q = softmax(logits / temperature) restricted to a kept set and renormalised, and records log q.
The learner's policy stays the whole softmax p, so for a sampled token log p = log q + log(kept mass). The learner
works the kept set out again from its own logits, so that log q can be compared with the sampler's (the contract), and
the ratio of PPO is p_new / p_old, as it is without truncation. docs/rollouts.md says what follows from that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from rlvr.config import Rollout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """What restricts the tokens that may be sampled; each at its default keeps all of them."""

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    min_tokens: int = 0
    """Positions before this one cannot hold an end token."""
    end_token_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout, end_token_ids: Sequence[int]) -> Truncation | None:
        """The recipe's truncation; None where it samples from the whole softmax."""
        if not rollout.truncates:
            return None
        return cls(
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            min_p=rollout.min_p,
            min_tokens=rollout.min_tokens,
            end_token_ids=tuple(end_token_ids),
        )


def truncated_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor, truncation: Truncation
) -> torch.Tensor:
    """Log-probability of each sampled token under the truncated distribution: float32 [N], nats.

    The order is vLLM's: least length, then min-p, top-k and top-p, each on what the one before has left. A sampled
    token counts as kept: where rounding puts learner and sampler on two sides of a threshold, the difference is then
    that of the masses, not infinity.

    Args:
        logits: float32 [N, V], divided by the temperature.
        targets: int64 [N], the sampled tokens.
        positions: int64 [N], place of each token in its completion, from 0.

    >>> logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    >>> one, zero = torch.tensor([1]), torch.tensor([0])
    >>> truncated_logprobs(logits, one, zero, Truncation(top_p=0.8)).exp()    # 0.3 / (0.5 + 0.3)
    tensor([0.3750])
    >>> truncated_logprobs(logits, one, zero, Truncation(min_p=0.2)).exp()    # 0.3 / 0.95: 0.05 < 0.2 x 0.5
    tensor([0.3158])
    """
    logits = logits.clone()
    if truncation.min_tokens and truncation.end_token_ids:
        early = (positions < truncation.min_tokens)[:, None]
        end = torch.tensor(truncation.end_token_ids, device=logits.device)
        logits[:, end] = logits[:, end].masked_fill(early, -torch.inf)
    sampled = logits.gather(-1, targets[:, None])
    if truncation.min_p:
        probabilities = logits.softmax(-1)
        least = truncation.min_p * probabilities.amax(-1, keepdim=True)
        logits.masked_fill_(probabilities < least, -torch.inf)
    if truncation.top_k is not None and truncation.top_k < logits.shape[-1]:
        logits.masked_fill_(logits < logits.topk(truncation.top_k).values[:, -1:], -torch.inf)
    if truncation.top_p < 1.0:
        ascending, order = logits.sort(-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1.0 - truncation.top_p
        dropped[:, -1] = False
        logits.masked_fill_(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    logits.scatter_(-1, targets[:, None], sampled)
    return (sampled - logits.logsumexp(-1, keepdim=True)).squeeze(-1)

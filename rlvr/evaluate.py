"""Held-out evaluation with the run's own sampler and verifiers: pass@1, greedy and sampled, and pass@k."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rlvr import distributed
from rlvr.config import Config
from rlvr.disaggregated import AnySampler
from rlvr.judges import evaluation_names
from rlvr.prompts import PromptSet
from rlvr.records import Prompt, Scored
from rlvr.reward import Scorer
from rlvr.rollout import roll_out, share_of_rank
from verifiers.base import Outcome
from verifiers.pool import VerifierPool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """One prompt's results."""

    verifier: str
    """The prompt's verifiers, joined by `+`."""
    correct: int
    """Sampled completions that every verifier judged correct."""
    judged: int
    """Sampled completions with a verdict; indeterminate ones are left out."""
    greedy: bool | None
    """The greedy completion; None when indeterminate."""


def evaluate(
    config: Config, sampler: AnySampler, tokenizer: Any, pool: VerifierPool, held_out: PromptSet
) -> dict[str, float]:
    """Evaluate on every prompt of a set. Collective; every rank gets the metrics.

    The draw depends on the seed, the set and the prompt only, so evaluations before and after differ by the policy.

    Returns `eval/<set>/...`: `pass_at_1` (mean over samples at the rollout's temperature), `pass_at_<k>` (unbiased),
    `pass_at_1_greedy`, their 95% half-widths `..._ci95`, `indeterminate` (share of the samples that no verdict could
    be given on), `prompts` (a count), and the same under `eval/<set>/<verifier>/`.
    """
    prompts = share_of_rank(held_out.prompts)
    sampled = _score(config, sampler, tokenizer, pool, prompts, held_out.name, config.rollout.temperature)
    greedy = _score(config, sampler, tokenizer, pool, prompts, held_out.name, 0.0)
    per_prompt = config.evaluation.samples_per_prompt
    graded = [
        _grade(prompt, sampled[i * per_prompt : (i + 1) * per_prompt], greedy[i]) for i, prompt in enumerate(prompts)
    ]
    everyone = [g for part in distributed.gather_objects(graded) for g in part]
    metrics = _summary(f"eval/{held_out.name}", everyone, per_prompt)
    for verifier in sorted({g.verifier for g in everyone}):
        own = [g for g in everyone if g.verifier == verifier]
        metrics |= _summary(f"eval/{held_out.name}/{verifier}", own, per_prompt)
    return metrics


def _score(
    config: Config,
    sampler: AnySampler,
    tokenizer: Any,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    name: str,
    temperature: float,
) -> list[Scored]:
    scorer = evaluation_scorer(config, pool, prompts)
    roll_out(
        sampler,
        tokenizer,
        prompts,
        samples_per_prompt=config.evaluation.samples_per_prompt if temperature > 0 else 1,
        temperature=temperature,
        max_tokens=config.rollout.max_tokens,
        seed=(config.seed, "evaluate", name),
        on_completion=scorer.submit,
    )
    return scorer.collect()


def evaluation_scorer(config: Config, pool: VerifierPool, prompts: Sequence[Prompt]) -> Scorer:
    """Judges by the rows' own verifiers with the options of evaluation, whatever training does."""
    asked = {task.verifier for prompt in prompts for task in prompt.tasks}
    return Scorer(pool, config.reward, remap=evaluation_names(config, asked))


def is_correct(one: Scored) -> bool | None:
    """All verifiers say correct; None when one of them could not tell."""
    outcomes = {verdict.outcome for verdict in one.verdicts}
    return None if Outcome.INDETERMINATE in outcomes else outcomes == {Outcome.CORRECT}


def _grade(prompt: Prompt, sampled: Sequence[Scored], greedy: Scored) -> Graded:
    judged = [c for c in map(is_correct, sampled) if c is not None]
    verifier = "+".join(dict.fromkeys(task.verifier for task in prompt.tasks))
    return Graded(verifier=verifier, correct=sum(judged), judged=len(judged), greedy=is_correct(greedy))


def _summary(prefix: str, graded: Sequence[Graded], k: int) -> dict[str, float]:
    metrics = {f"{prefix}/prompts": float(len(graded))}
    usable = [g for g in graded if g.judged]
    series = {
        "pass_at_1": [g.correct / g.judged for g in usable],
        f"pass_at_{k}": [pass_at_k(g.judged, g.correct, min(k, g.judged)) for g in usable],
        "pass_at_1_greedy": [float(g.greedy) for g in graded if g.greedy is not None],
    }
    for name, values in series.items():
        mean, half_width = mean_and_half_width(values)
        metrics[f"{prefix}/{name}"] = mean
        metrics[f"{prefix}/{name}_ci95"] = half_width
    metrics[f"{prefix}/indeterminate"] = sum(k - g.judged for g in graded) / (k * len(graded))
    return metrics


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is correct, unbiased (Chen et al. 2021, arXiv 2107.03374, Eq. 1).

    >>> round(pass_at_k(4, 1, 2), 4)   # 1 - C(3,2)/C(4,2) = 1 - 3/6
    0.5
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean over prompts and half the width of its 95% confidence interval (normal approximation).

    >>> [round(x, 4) for x in mean_and_half_width([1.0, 0.0, 1.0, 0.0])]   # s = 0.5774, 1.96 s / 2
    [0.5, 0.5658]
    """
    count = len(values)
    if count < 2:
        return (values[0] if values else math.nan), math.nan
    mean = sum(values) / count
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    return mean, 1.96 * math.sqrt(variance / count)

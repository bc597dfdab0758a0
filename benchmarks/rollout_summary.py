"""What the turns of `benchmarks.rollout` add up to: rates, ratios, utilization, latencies by length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.machine import Peaks, spread

if TYPE_CHECKING:
    from benchmarks.rollout_contest import Contest
    from rlvr.sampler_statistics import Finished, SamplerStatistics

PHASES = ("generate", "score", "sleep", "update", "wake", "sync", "proof")
"""Of a step, in order."""
LATENCY_BANDS = 4


def summarize(contest: Contest, peak: Peaks) -> dict[str, Any]:
    """Rates, ratios and shares of the repeats. Adds `step` and `floors` to the contest's seconds."""
    seconds = contest.seconds
    steps = [sum(parts) for parts in zip(*(seconds[name] for name in PHASES if seconds.get(name)), strict=True)]
    rates, ratios = compare(seconds, contest.tokens, contest.raw_tokens)
    if seconds.get("bare_update"):
        floors = [a + b for a, b in zip(seconds["raw_generate"], seconds["bare_update"], strict=True)]
        ratios["step / floors"] = [a / b for a, b in zip(steps, floors, strict=True)]
        seconds["floors"] = floors
    seconds["step"] = steps
    ranks = len(contest.statistics[0]) * contest.config.sampler.tensor_parallel_size
    moved = statistics.median(seconds["sync"])
    return {
        "requests": contest.config.rollout.prompts_per_step * contest.config.rollout.samples_per_prompt,
        "tokens": statistics.median(contest.tokens),
        "sampling_ranks": ranks,
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "tokens_per_second_per_sampling_rank": {
            name: spread([value / ranks for value in values]) for name, values in rates.items()
        },
        "ratios": {name: spread(values) for name, values in ratios.items()},
        **sampling(contest, peak),
        "idle_share": sum(seconds["idle_while_scoring"]) / sum(steps),
        "sleep_returned_mib": spread(contest.returned_mib),
        "sync_bytes": contest.bytes_sent,
        "sync_gb_per_second": contest.bytes_sent / moved / 1e9,
        "sync_share_of_bandwidth": 2 * contest.bytes_sent / moved / peak.bytes_per_second,  # read and written
    }


def compare(
    seconds: Mapping[str, Sequence[float]], tokens: Sequence[float], raw_tokens: Sequence[float]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Tokens/s of each contestant, and this project's over the others', repeat by repeat.

    >>> seconds = {"generate": [2.0], "raw_generate": [1.0]}
    >>> compare(seconds, [100.0], [110.0])
    ({'ours': [50.0], 'raw vLLM': [110.0]}, {'ours / raw vLLM': [0.45454545454545453]})
    """
    contestants = {
        "ours": (tokens, "generate"),
        "raw vLLM": (raw_tokens, "raw_generate"),
        "transformers": (tokens, "transformers_generate"),
    }
    rates = {
        name: [t / x for t, x in zip(made, seconds[phase], strict=True)]
        for name, (made, phase) in contestants.items()
        if seconds.get(phase)
    }
    ratios = {
        f"ours / {name}": [a / b for a, b in zip(rates["ours"], values, strict=True)]
        for name, values in rates.items()
        if name != "ours"
    }
    return rates, ratios


def sampling(contest: Contest, peak: Peaks) -> dict[str, Any]:
    """What vLLM says of the rollouts: medians over repeats of means over engines; latencies of all repeats together."""
    repeats = [[engine.summary() for engine in engines] for engines in contest.statistics]
    means = [{name: statistics.fmean(one[name] for one in engines) for name in engines[0]} for engines in repeats]
    all_engines = [engine for engines in contest.statistics for engine in engines]
    used = [
        utilization(contest, engines, seconds, peak)
        for engines, seconds in zip(contest.statistics, contest.seconds["generate"], strict=True)
    ]
    first = [seconds for engine in all_engines for seconds in engine.first_token_seconds]
    return {
        "sampler": {name: statistics.median(one[name] for one in means) for name in means[0]},
        "first_token_seconds": {"p50": percentile(first, 0.5), "p95": percentile(first, 0.95)},
        "latency_by_length": latencies([done for engine in all_engines for done in engine.finished]),
        "mfu": statistics.median(mfu for mfu, _ in used),
        "mbu": statistics.median(mbu for _, mbu in used),
    }


def utilization(
    contest: Contest, engines: Sequence[SamplerStatistics], seconds: float, peak: Peaks
) -> tuple[float, float]:
    """MFU and MBU of one rollout over all its engines (formulas: benchmarks/rollout.py)."""
    policy = contest.parts.learner.policy
    config = policy.engine.module.transformer.config
    shapes = [shape for _, _, shape in policy.named_shapes() if len(shape) > 1]  # whole, under ZeRO-3 too
    matrices = sum(math.prod(shape) for shape in shapes)
    if not config.tie_word_embeddings:  # a table that is looked up, not multiplied by
        matrices -= config.vocab_size * config.hidden_size
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = {"float32": 4, "bfloat16": 2}[contest.config.model.dtype]
    flops = moved = 0.0
    for engine in engines:
        read = sum(one.prompt_tokens + one.tokens for one in engine.finished) - engine.prefix_hits
        # a token at context c reads c keys and c values: 4 x heads' width x c FLOP a layer
        contexts = sum(one.tokens * (one.prompt_tokens + one.tokens / 2) for one in engine.finished)
        flops += 2 * matrices * read
        flops += 4 * config.num_attention_heads * heads * config.num_hidden_layers * contexts
        moved += engine.steps * matrices * element
        moved += 2 * config.num_key_value_heads * heads * config.num_hidden_layers * element * contexts
    available = seconds * len(engines) * contest.config.sampler.tensor_parallel_size
    return flops / available / peak.flops_per_second, moved / available / peak.bytes_per_second


def latencies(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """Seconds from arrival to last token, in bands of equally many requests by length."""
    done = sorted((one.tokens, one.seconds) for one in finished)
    size = max(-(-len(done) // LATENCY_BANDS), 1)
    bands = [done[i : i + size] for i in range(0, len(done), size)]
    return [
        {
            "tokens": [band[0][0], band[-1][0]],
            "p50": percentile([x for _, x in band], 0.5),
            "p95": percentile([x for _, x in band], 0.95),
        }
        for band in bands
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed.

    >>> [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.95)]
    [2.0, 4.0]
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]

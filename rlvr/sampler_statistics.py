"""vLLM's own statistics of a rollout: occupancy, KV cache, prefix cache, preemptions, time to first token."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rlvr import distributed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One request that vLLM finished."""

    prompt_tokens: int
    tokens: int
    """Sampled."""
    seconds: float
    """From its arrival in the queue to its last token."""


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplerStatistics:
    """A vLLM stat logger (`vllm.v1.metrics.loggers.StatLoggerBase`) that keeps what happened since `take` or `clear`.

    Rollouts alone count: `Sampler.sequence_logprobs` switches `is_recording` off.
    """

    max_num_seqs: int
    speaks: bool = True
    """Whether this rank is its engine's first. The others see the same, which is not counted again."""
    is_recording: bool = True
    steps: int = 0
    """Engine steps, each one token for every running request."""
    sampled: int = 0
    """Tokens sampled, which is what a step's running requests are. (vLLM's own count comes after the step, without
    those that ended in it.)"""
    kv_cache_usage_max: float = 0.0
    """Share of the KV cache's blocks."""
    kv_cache_usage_sum: float = 0.0
    prefix_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    preemptions: int = 0
    first_token_seconds: list[float] = dataclasses.field(default_factory=list)
    """Of each request, from its arrival in the queue."""
    finished: list[Finished] = dataclasses.field(default_factory=list)

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_: Any) -> None:
        """Called by vLLM after each engine step."""
        if not self.is_recording:
            return
        if scheduler_stats is not None:
            self.steps += 1
            self.kv_cache_usage_max = max(self.kv_cache_usage_max, scheduler_stats.kv_cache_usage)
            self.kv_cache_usage_sum += scheduler_stats.kv_cache_usage
            self.prefix_tokens += scheduler_stats.prefix_cache_stats.queries
            self.prefix_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.sampled += iteration_stats.num_generation_tokens
            self.preemptions += iteration_stats.num_preempted_reqs
            self.first_token_seconds += iteration_stats.time_to_first_tokens_iter
            self.finished += [
                Finished(prompt_tokens=one.num_prompt_tokens, tokens=one.num_generation_tokens, seconds=one.e2e_latency)
                for one in iteration_stats.finished_requests
            ]

    def log(self) -> None:
        """Called by vLLM now and then; nothing is printed."""

    def record_sleep_state(self, *_: Any) -> None:
        """Called by vLLM at sleep and wake-up."""

    def clear(self) -> None:
        """Begin anew."""
        fresh = SamplerStatistics(max_num_seqs=self.max_num_seqs, speaks=self.speaks)
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(fresh, field.name))

    def take(self) -> list[SamplerStatistics]:
        """What this rank's engine has done, as a list of one (of none, where another speaks), and begin anew."""
        taken = dataclasses.replace(self)
        self.clear()
        return [taken] if self.speaks else []

    def summary(self) -> dict[str, float]:
        """`sampler/...` numbers of one engine."""
        steps = max(self.steps, 1)
        return {
            "sampler/steps": float(self.steps),
            "sampler/occupancy": self.sampled / steps / self.max_num_seqs,
            "sampler/kv_cache_usage": self.kv_cache_usage_sum / steps,
            "sampler/kv_cache_usage_max": self.kv_cache_usage_max,
            "sampler/prefix_cache_hits": self.prefix_hits / max(self.prefix_tokens, 1),
            "sampler/preemptions": float(self.preemptions),
            "sampler/first_token_seconds": statistics.median(self.first_token_seconds or [0.0]),
        }

    def metrics(self) -> dict[str, float]:
        """`summary`, mean over engines, and begin anew. Collective."""
        return mean_over_engines(self.take())


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteStatistics:
    """Those of engines in other processes, with the same methods."""

    take: Callable[[], list[SamplerStatistics]]
    """Asks the engines that this learner rank answers for; they begin anew."""

    def metrics(self) -> dict[str, float]:
        return mean_over_engines(self.take())

    def clear(self) -> None:
        self.take()


def mean_over_engines(engines: Sequence[SamplerStatistics]) -> dict[str, float]:
    """`summary`, mean over all engines of the run. Collective.

    Args:
        engines: those that this rank answers for; a rank may have none, but the run has one or more.
    """
    names = list(SamplerStatistics(max_num_seqs=1).summary())
    own = [sum(one.summary()[name] for one in engines) for name in names]
    *sums, count = distributed.sum_over_ranks([*own, float(len(engines))])
    return {name: value / count for name, value in zip(names, sums, strict=True)}

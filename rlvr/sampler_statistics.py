"""vLLM's own statistics of a rollout: occupancy, KV cache, prefix cache, preemptions, time to first token."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from rlvr import distributed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One request that vLLM finished."""

    tokens: int
    seconds: float
    """From its arrival in the queue to its last token."""


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplerStatistics:
    """A vLLM stat logger (`vllm.v1.metrics.loggers.StatLoggerBase`) that keeps what happened since `clear`."""

    max_num_seqs: int
    is_recording: bool = True
    steps: int = 0
    """Engine steps, each one token for every running request."""
    running: int = 0
    """Running requests, summed over the steps."""
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
            self.running += scheduler_stats.num_running_reqs
            self.kv_cache_usage_max = max(self.kv_cache_usage_max, scheduler_stats.kv_cache_usage)
            self.kv_cache_usage_sum += scheduler_stats.kv_cache_usage
            self.prefix_tokens += scheduler_stats.prefix_cache_stats.queries
            self.prefix_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs
            self.first_token_seconds += iteration_stats.time_to_first_tokens_iter
            self.finished += [
                Finished(tokens=one.num_generation_tokens, seconds=one.e2e_latency)
                for one in iteration_stats.finished_requests
            ]

    def log(self) -> None:
        """Called by vLLM now and then; nothing is printed."""

    def record_sleep_state(self, *_: Any) -> None:
        """Called by vLLM at sleep and wake-up."""

    def clear(self) -> None:
        """Begin anew."""
        fresh = SamplerStatistics(max_num_seqs=self.max_num_seqs)
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(fresh, field.name))

    def summary(self) -> dict[str, float]:
        """`sampler/...` numbers of this rank."""
        steps = max(self.steps, 1)
        return {
            "sampler/steps": float(self.steps),
            "sampler/occupancy": self.running / steps / self.max_num_seqs,
            "sampler/kv_cache_usage": self.kv_cache_usage_sum / steps,
            "sampler/kv_cache_usage_max": self.kv_cache_usage_max,
            "sampler/prefix_cache_hits": self.prefix_hits / max(self.prefix_tokens, 1),
            "sampler/preemptions": float(self.preemptions),
            "sampler/first_token_seconds": statistics.median(self.first_token_seconds or [0.0]),
        }

    def metrics(self) -> dict[str, float]:
        """`summary`, mean over ranks, and begin anew. Collective."""
        local = self.summary()
        self.clear()
        total = distributed.sum_over_ranks(list(local.values()))
        return {name: value / distributed.world_size() for name, value in zip(local, total, strict=True)}

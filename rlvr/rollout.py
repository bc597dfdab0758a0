"""Sampling: prompts in, completions out, each with a seed of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from rlvr import distributed, watch
from rlvr.colocated import Request, Sampled
from rlvr.disaggregated import AnySampler
from rlvr.records import Completion, Prompt, Scored, Stop, Trajectories
from rlvr.seeds import derive

BAR_DELAY_SECONDS = 5.0
"""A stage shorter than this shows no progress bar."""


def share_of_rank(items: Sequence[Any]) -> list[Any]:
    """This rank's part of a list that every rank holds: every world-size-th item, so that all are used."""
    return list(items[distributed.rank() :: distributed.world_size()])


class RollOut:
    """Completions on their way."""

    def __init__(self, sampler: AnySampler, batch: Any, found: dict[int, Completion], bar: Any) -> None:
        self._sampler, self._batch, self._bar = sampler, batch, bar
        self.found = found
        """Those that have finished, by index."""

    def collect(self) -> list[Completion]:
        """Wait for all, and return them in prompt order."""
        with self._bar:
            self._sampler.wait(self._batch)
        return [self.found[index] for index in sorted(self.found)]


def roll_out(sampler: AnySampler, tokenizer: Any, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
    """Sample completions of each prompt, as `start_roll_out` is told, and wait for them; they are in prompt order."""
    return start_roll_out(sampler, tokenizer, prompts, **options).collect()


def start_roll_out(
    sampler: AnySampler,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    samples_per_prompt: int,
    temperature: float,
    max_tokens: int,
    seed: tuple[int | str, ...],
    on_completion: Callable[[int, Completion], None] = lambda index, completion: None,
    lengths: Sequence[int] | None = None,
    first_slot: int = 0,
    shows_progress: bool = True,
) -> RollOut:
    """Ask for `samples_per_prompt` completions of each prompt.

    Args:
        prompts: this rank's share of the step's prompts.
        temperature: 0 is greedy.
        seed: what the draw is for; each completion's generator is seeded by it, the prompt's slot in the step and id,
            and the sample number: a prompt that is drawn twice in a step gets two sets of samples.
        on_completion: called with (index in the result, completion) as each one finishes.
        lengths: for benchmarks, tokens of each completion of the result: nothing else ends it.
        first_slot: slot in the step of the first of all ranks' prompts.
        shows_progress: by a bar on rank 0; without, where others are waited for meanwhile.
    """
    # slots of the whole step, whatever the number of ranks, as `share_of_rank` deals them out
    slots = range(first_slot + distributed.rank(), 10**12, distributed.world_size())
    plan = [(slot, p, sample) for slot, p in zip(slots, prompts, strict=False) for sample in range(samples_per_prompt)]
    requests = [
        Request(
            token_ids=prompt.token_ids,
            seed=derive(*seed, slot, prompt.prompt_id, sample),
            temperature=temperature,
            max_tokens=max_tokens if lengths is None else lengths[index],
            ignore_ends=lengths is not None,
        )
        for index, (slot, prompt, sample) in enumerate(plan)
    ]
    completions: dict[int, Completion] = {}
    bar = tqdm(
        total=len(plan), desc="rollout", unit="sample", delay=BAR_DELAY_SECONDS, leave=False,
        disable=distributed.rank() != 0 or not shows_progress,
    )  # fmt: skip
    started, tokens = time.perf_counter(), 0

    def finished(index: int, sampled: Sampled) -> None:
        slot, prompt, sample = plan[index]
        completions[index] = Completion(
            prompt=prompt,
            sample=sample,
            place=slot * samples_per_prompt + sample,
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            text=_text(tokenizer, sampled),
            stop=_stop(sampled),
            policy_version=sampled.policy_version,
            version_changes=sampled.version_changes,
        )
        on_completion(index, completions[index])
        watch.moved()
        nonlocal tokens
        tokens += len(sampled.token_ids)
        bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):,.0f} tok/s this rank", refresh=False)
        bar.update()

    return RollOut(sampler, sampler.submit(requests, finished), completions, bar)


def _stop(sampled: Sampled) -> Stop:
    if sampled.stop_string is not None:
        return Stop.STRING
    return Stop.EOS if sampled.stopped else Stop.LENGTH


def _text(tokenizer: Any, sampled: Sampled) -> str:
    """What the verifiers read: nothing after a stop string, though its last token may go on."""
    text: str = tokenizer.decode(sampled.token_ids, skip_special_tokens=True)
    if sampled.stop_string is None or sampled.stop_string not in text:
        return text
    return text[: text.index(sampled.stop_string) + len(sampled.stop_string)]


def trajectories(scored: Sequence[Scored]) -> Trajectories:
    """What the learner needs of the scored completions; indeterminate ones are left out."""
    kept = [one for one in scored if one.reward is not None]
    completions = [one.completion for one in kept]
    return Trajectories(
        prompt_ids=tuple(c.prompt.token_ids for c in completions),
        completion_ids=tuple(c.token_ids for c in completions),
        lengths=torch.tensor([len(c.token_ids) for c in completions], dtype=torch.int64),
        places=torch.tensor([c.place for c in completions], dtype=torch.int64),
        groups=torch.tensor([c.group for c in completions], dtype=torch.int64),
        rewards=torch.tensor([one.reward for one in kept], dtype=torch.float32),
        sampler_logprobs=torch.tensor([p for c in completions for p in c.logprobs], dtype=torch.float32),
    )


def rollout_metrics(
    completions: Sequence[Completion], seconds: float, *, idle_seconds: float = 0.0
) -> dict[str, float]:
    """Lengths, truncation and speed over all ranks.

    Args:
        seconds: of the rollout.
        idle_seconds: how long scoring kept this rank's sampler waiting.
    """
    lengths = [len(c.token_ids) for c in completions]
    count, tokens, truncated = distributed.sum_over_ranks(
        [len(lengths), sum(lengths), sum(c.stop is Stop.LENGTH for c in completions)]
    )
    longest, slowest, idle = distributed.max_over_ranks([max(lengths, default=0), seconds, idle_seconds])
    return {
        "rollout/tokens": tokens,
        "rollout/completions": count,
        "rollout/length_mean_tokens": tokens / count if count else math.nan,
        "rollout/length_max_tokens": longest,
        "rollout/truncated": truncated / count if count else math.nan,
        "rollout/tokens_per_second": tokens / slowest if slowest else math.nan,
        "rollout/idle_while_scoring_seconds": idle,
    }

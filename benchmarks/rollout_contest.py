"""The contestants of `benchmarks.rollout`: this project's step, vLLM alone, transformers, and vLLM with bare torch."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.machine import synchronize
from benchmarks.memory import free_mib
from benchmarks.workload import gsm8k_lengths
from rlvr import distributed
from rlvr.balance import balance
from rlvr.colocated import Request
from rlvr.config import Config
from rlvr.disaggregated import RemoteSampler
from rlvr.errors import ConfigError
from rlvr.parts import Parts
from rlvr.prompts import PromptSet
from rlvr.records import Prompt, Scored
from rlvr.reward import Scorer
from rlvr.rollout import roll_out, share_of_rank, trajectories
from rlvr.sampler_statistics import SamplerStatistics
from rlvr.seeds import derive

TRANSFORMERS_TOKENS = 16384
"""Most tokens, padding included, of one batch of transformers' `generate`."""


class Contest:
    """Everybody's turns on the same requests, and their seconds."""

    def __init__(self, parts: Parts, lengths: str, against: Sequence[str], *, startup_seconds: float) -> None:
        self.parts = parts
        self.config = parts.config
        self.against = list(against)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.seconds["startup"].append(startup_seconds)
        self.tokens: list[float] = []
        self.raw_tokens: list[float] = []
        self.returned_mib: list[float] = []
        self.bytes_sent = 0
        self.statistics: list[list[SamplerStatistics]] = []
        """Of each repeat's rollout: one of every engine of the run."""
        self._lengths = lengths
        self._llm = None if isinstance(parts.sampler, RemoteSampler) else parts.sampler._llm
        self._wake_seconds = 0.0
        if self._llm is not None and torch.cuda.is_available():
            self._time_wake_up(self._llm)
        self._floor: Any = None

    def _time_wake_up(self, llm: Any) -> None:
        wake = llm.wake_up

        def timed(**options: Any) -> None:
            started = time.perf_counter()
            wake(**options)
            self._wake_seconds += time.perf_counter() - started

        llm.wake_up = timed

    def turn(self, repeat: int, *, record: bool) -> None:
        """One step of every contestant, in an order that alternates."""
        prompts, lengths = self._work(repeat)
        seed = (self.config.seed, "benchmark", repeat)
        before = {name: len(values) for name, values in self.seconds.items()}
        order = ["raw", "ours"] if repeat % 2 else ["ours", "raw"]
        wanted = [name for name in order if name == "ours" or {"raw", "floor"} & set(self.against)]
        scored: list[Scored] = []
        for name in wanted:
            if self._llm is not None:  # engines elsewhere work once a turn, with new weights and an empty cache
                self._llm.reset_prefix_cache()
            distributed.barrier()
            if name == "raw":
                self._raw(prompts, lengths, seed)
            else:
                scored = self._generate(prompts, lengths, seed)
        self._learn_and_sync(scored, repeat)
        if "transformers" in self.against:
            self._transformers(scored)
        if not record:
            for name, values in self.seconds.items():
                del values[max(before.get(name, 0), 1 if name == "startup" else 0) :]
            self.tokens.clear()
            self.raw_tokens.clear()
            self.returned_mib.clear()
            self.statistics.clear()

    def _work(self, repeat: int) -> tuple[list[Prompt], list[int] | None]:
        """This rank's prompts, and the length of each of its completions (None where they run free)."""
        vocabulary = self.parts.learner.policy.engine.module.transformer.config.vocab_size
        work = share_of_rank(work_of_step(self.config, self.parts.train_set, self._lengths, repeat, vocabulary))
        lengths = [length for _, of_prompt in work for length in of_prompt or ()]
        return [prompt for prompt, _ in work], None if self._lengths == "free" else lengths

    def _generate(
        self, prompts: Sequence[Prompt], lengths: Sequence[int] | None, seed: tuple[int | str, ...]
    ) -> list[Scored]:
        """The project's own rollout, verdicts included."""
        rollout, parts = self.config.rollout, self.parts
        scorer = Scorer(parts.pool, self.config.reward, self.config.verification.remap)
        recorded = parts.sampler.statistics
        if recorded is not None:
            recorded.clear()
            distributed.barrier()  # before anything is asked of engines that several ranks share
        started = time.perf_counter()
        completions = roll_out(
            parts.sampler,
            parts.tokenizer,
            prompts,
            samples_per_prompt=rollout.samples_per_prompt,
            temperature=rollout.temperature,
            max_tokens=rollout.max_tokens,
            seed=seed,
            on_completion=scorer.submit,
            lengths=lengths,
        )
        generated = time.perf_counter()
        scored = scorer.collect()
        self._note("score", time.perf_counter() - generated)
        self._note("generate", generated - started)
        self._note("idle_while_scoring", scorer.idle_seconds)
        self.tokens.append(distributed.sum_over_ranks([float(sum(len(c.token_ids) for c in completions))])[0])
        if recorded is not None:
            self.statistics.append([one for rank in distributed.gather_objects(recorded.take()) for one in rank])
        return scored

    def _raw(self, prompts: Sequence[Prompt], lengths: Sequence[int] | None, seed: tuple[int | str, ...]) -> None:
        """`LLM.generate` on the same requests."""
        rollout = self.config.rollout
        sampler, llm = self.parts.sampler, self._llm
        if isinstance(sampler, RemoteSampler) or llm is None:
            raise ConfigError("vLLM alone needs the engine in this process: the colocated placement")
        count = rollout.samples_per_prompt
        slots = range(distributed.rank(), 10**12, distributed.world_size())
        own = [
            Request(
                token_ids=prompt.token_ids,
                seed=derive(*seed, slot, prompt.prompt_id, sample),
                temperature=rollout.temperature,
                max_tokens=rollout.max_tokens if lengths is None else lengths[place * count + sample],
                ignore_ends=lengths is not None,
            )
            for place, (slot, prompt) in enumerate(zip(slots, prompts, strict=False))
            for sample in range(count)
        ]
        members = sampler.group.gather(own)  # ranks that hold one engine together sample together
        requests = [request for member in members for request in member]
        inputs: list[Any] = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        params = [sampler.sampling_params(request) for request in requests]
        started = time.perf_counter()
        outputs = llm.generate(inputs, params, use_tqdm=False)
        self._note("raw_generate", time.perf_counter() - started)
        tokens = sum(len(o.outputs[0].token_ids) for o in outputs) / sampler.group.size
        self.raw_tokens.append(distributed.sum_over_ranks([tokens])[0])

    def _learn_and_sync(self, scored: Sequence[Scored], repeat: int) -> None:
        learner = self.parts.learner
        free, started = free_mib(), time.perf_counter()
        self.parts.sampler.sleep()
        self._note("sleep", time.perf_counter() - started)
        self.returned_mib.append(free_mib() - free)
        if {"learner", "floor"} & set(self.against):
            started = time.perf_counter()
            batch = balance(trajectories([dataclasses.replace(one, reward=one.reward or 0.0) for one in scored]))
            balanced = time.perf_counter() - started
            if repeat % 2 and "floor" in self.against:
                self._bare(batch)
            synchronize()
            started = time.perf_counter()
            targets, _ = learner.targets(batch)
            learner.update(batch, targets, step=repeat)
            synchronize()
            self._note("update", balanced + time.perf_counter() - started)
            if not repeat % 2 and "floor" in self.against:
                self._bare(batch)
        self._wake_seconds = 0.0
        report = self.parts.sync.publish()
        self.bytes_sent = report.bytes_sent
        self._note("wake", self._wake_seconds)
        self._note("sync", report.transfer_seconds - self._wake_seconds)
        self._note("proof", report.proof_seconds)

    def _bare(self, batch: Any) -> None:
        """The same passes in bare torch: old and reference log-probs, values, and one update an epoch."""
        from benchmarks.floor import Floor, micro_batches

        config = self.config
        if self._floor is None:
            rates = (config.optimizer.learning_rate, config.critic.optimizer.learning_rate)
            self._floor = Floor(config.model.path, [], dtype=config.model.dtype, rates=rates)
        floor = self._floor
        targets, _ = self.parts.learner.targets(batch)
        started = time.perf_counter()
        padded = len(set(batch.lengths.tolist())) > 1
        floor.batches = micro_batches(batch, max_tokens=config.learner.max_tokens_per_micro_batch, padded=padded)
        reads = (config.algorithm.old_logprobs == "learner") + (config.algorithm.kl_coefficient > 0)
        with torch.no_grad():
            for part in floor.batches:
                for _ in range(reads):
                    floor.logprobs(part)
                if self.parts.learner.critic is not None:
                    floor.values(part)
        for _ in range(config.algorithm.epochs):
            floor.update(targets, float(batch.lengths.sum()))
        synchronize()
        self._note("bare_update", time.perf_counter() - started)

    def _transformers(self, scored: Sequence[Scored]) -> None:
        """Batched `generate` of the learner's own model, to the lengths that were just sampled."""
        module = self.parts.learner.policy.engine.module.transformer
        name = module.config._attn_implementation
        module.set_attn_implementation("sdpa")
        rows = sorted((len(s.completion.token_ids), s.completion.prompt.token_ids) for s in scored)
        started = time.perf_counter()
        with torch.no_grad():
            while rows:
                longest = max(len(prompt) for _, prompt in rows) + rows[-1][0]
                batch, rows = (
                    rows[-(TRANSFORMERS_TOKENS // longest or 1) :],
                    rows[: -(TRANSFORMERS_TOKENS // longest or 1)],
                )
                width = max(len(prompt) for _, prompt in batch)
                ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for _, prompt in batch])
                mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for _, prompt in batch])
                module.generate(
                    ids.to(module.device),
                    attention_mask=mask.to(module.device),
                    do_sample=True,
                    temperature=self.config.rollout.temperature,
                    top_k=0,
                    max_new_tokens=batch[-1][0],
                    min_new_tokens=batch[-1][0],
                    pad_token_id=0,
                )
        synchronize()
        self._note("transformers_generate", time.perf_counter() - started)
        module.set_attn_implementation(name)

    def _note(self, name: str, seconds: float) -> None:
        """The slowest rank's."""
        self.seconds[name].append(distributed.max_over_ranks([seconds])[0])


def work_of_step(
    config: Config, train_set: PromptSet, lengths: str, step: int, vocabulary_size: int
) -> list[tuple[Prompt, list[int] | None]]:
    """The step's prompts, over all ranks, and the length of each of their completions (None: free)."""
    count = config.rollout.samples_per_prompt
    prompts = train_set.batch(step, config.rollout.prompts_per_step, config.seed)
    if lengths == "free":
        return [(prompt, None) for prompt in prompts]
    if lengths != "gsm8k":
        return [(prompt, [int(lengths)] * count) for prompt in prompts]
    draw = random.Random(step)
    drawn = gsm8k_lengths(len(prompts) * count, seed=step)
    work: list[tuple[Prompt, list[int] | None]] = []
    for at, prompt in enumerate(prompts):
        group = drawn[at * count : (at + 1) * count]
        tokens = tuple(draw.choices(range(vocabulary_size), k=group[0][0]))
        work.append((dataclasses.replace(prompt, token_ids=tokens), [completion for _, completion in group]))
    return work

"""The contestants of `benchmarks.rollout`: this project's step, vLLM alone, transformers, and vLLM with bare torch."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.machine import Peaks, spread, synchronize
from benchmarks.workload import gsm8k_lengths
from rlvr import distributed
from rlvr.balance import balance
from rlvr.colocated import Request, Sampled
from rlvr.parts import Parts
from rlvr.records import Prompt, Scored
from rlvr.reward import Scorer
from rlvr.rollout import roll_out, share_of_rank, trajectories
from rlvr.seeds import derive

LATENCY_BANDS = 4
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
        self.bytes_sent = 0
        self.statistics: Any = None
        self._lengths = lengths
        self._sampled: list[Sampled] = []
        self._reads_of_keys = 0.0
        llm: Any = parts.sampler._llm
        self._llm = llm
        self._wake_seconds = 0.0
        if torch.cuda.is_available():
            wake = llm.wake_up

            def timed(**options: Any) -> None:
                started = time.perf_counter()
                wake(**options)
                self._wake_seconds += time.perf_counter() - started

            llm.wake_up = timed
        self._floor: Any = None

    def turn(self, repeat: int, *, record: bool) -> None:
        """One step of every contestant, in an order that alternates."""
        prompts, lengths = self._work(repeat)
        seed = (self.config.seed, "benchmark", repeat)
        before = {name: len(values) for name, values in self.seconds.items()}
        order = ["raw", "ours"] if repeat % 2 else ["ours", "raw"]
        wanted = [name for name in order if name == "ours" or {"raw", "floor"} & set(self.against)]
        scored: list[Scored] = []
        for name in wanted:
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

    def _work(self, repeat: int) -> tuple[list[Prompt], list[int] | None]:
        """This rank's prompts, and the length of each of its completions (None where they run free)."""
        rollout = self.config.rollout
        prompts = share_of_rank(self.parts.train_set.batch(repeat, rollout.prompts_per_step, self.config.seed))
        count = rollout.samples_per_prompt
        if self._lengths == "free":
            return prompts, None
        if self._lengths != "gsm8k":
            return prompts, [int(self._lengths)] * (len(prompts) * count)
        drawn = share_of_rank(gsm8k_lengths(rollout.prompts_per_step * count, seed=repeat))
        draw = random.Random(repeat)
        vocabulary = self.parts.learner.policy.engine.module.transformer.config.vocab_size
        prompts = [
            dataclasses.replace(p, token_ids=tuple(draw.choices(range(vocabulary), k=drawn[i * count][0])))
            for i, p in enumerate(prompts)
        ]
        return prompts, [completion for _, completion in drawn]

    def _generate(
        self, prompts: Sequence[Prompt], lengths: Sequence[int] | None, seed: tuple[int | str, ...]
    ) -> list[Scored]:
        """The project's own rollout, verdicts included."""
        rollout, parts = self.config.rollout, self.parts
        scorer = Scorer(parts.pool, self.config.reward, self.config.verification.remap)
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
        collected = time.perf_counter()
        parts.sampler.sleep()
        self._note("generate", generated - started)
        self._note("score", collected - generated)
        self._note("idle_while_scoring", scorer.idle_seconds)
        self._note("sleep", time.perf_counter() - collected)
        self.tokens.append(distributed.sum_over_ranks([float(sum(len(c.token_ids) for c in completions))])[0])
        statistics_of_rollout = parts.sampler.statistics
        if statistics_of_rollout is not None:
            self.statistics = dataclasses.replace(statistics_of_rollout)
            statistics_of_rollout.clear()
        return scored

    def _raw(self, prompts: Sequence[Prompt], lengths: Sequence[int] | None, seed: tuple[int | str, ...]) -> None:
        """`LLM.generate` on the same requests."""
        rollout, sampler = self.config.rollout, self.parts.sampler
        count = rollout.samples_per_prompt
        slots = range(distributed.rank(), 10**12, distributed.world_size())
        inputs: list[Any] = []
        params = []
        for slot, prompt in zip(slots, prompts, strict=False):
            for sample in range(count):
                index = len(inputs)
                inputs.append({"prompt_token_ids": list(prompt.token_ids)})
                request = Request(
                    token_ids=prompt.token_ids,
                    seed=derive(*seed, slot, prompt.prompt_id, sample),
                    temperature=rollout.temperature,
                    max_tokens=rollout.max_tokens if lengths is None else lengths[index],
                    ignore_ends=lengths is not None,
                )
                params.append(sampler.sampling_params(request))
        started = time.perf_counter()
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        self._note("raw_generate", time.perf_counter() - started)
        self.raw_tokens.append(
            distributed.sum_over_ranks([float(sum(len(o.outputs[0].token_ids) for o in outputs))])[0]
        )

    def _learn_and_sync(self, scored: Sequence[Scored], repeat: int) -> None:
        learner = self.parts.learner
        if {"learner", "floor"} & set(self.against):
            batch = balance(trajectories([dataclasses.replace(one, reward=one.reward or 0.0) for one in scored]))
            if repeat % 2 and "floor" in self.against:
                self._bare(batch)
            synchronize()
            started = time.perf_counter()
            targets, _ = learner.targets(batch)
            learner.update(batch, targets, step=repeat)
            synchronize()
            self._note("update", time.perf_counter() - started)
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

    def summary(self, peak: Peaks) -> dict[str, Any]:
        """Rates, ratios and shares of the repeats."""
        s = self.seconds
        rates = {"ours": [t / x for t, x in zip(self.tokens, s["generate"], strict=True)]}
        if s.get("raw_generate"):
            rates["raw vLLM"] = [t / x for t, x in zip(self.raw_tokens, s["raw_generate"], strict=True)]
        if s.get("transformers_generate"):
            pairs = zip(self.tokens, s["transformers_generate"], strict=True)
            rates["transformers"] = [t / x for t, x in pairs]
        ratios = {
            f"ours / {n}": [a / b for a, b in zip(rates["ours"], r, strict=True)]
            for n, r in rates.items()
            if n != "ours"
        }
        stages = ("generate", "score", "sleep", "update", "wake", "sync", "proof")
        steps = [sum(parts) for parts in zip(*(s[name] for name in stages if s.get(name)), strict=True)]
        if s.get("bare_update"):
            floors = [a + b for a, b in zip(s["raw_generate"], s["bare_update"], strict=True)]
            ratios["step / floors"] = [a / b for a, b in zip(steps, floors, strict=True)]
            s["floors"] = floors
        s["step"] = steps
        moved = statistics.median(s["sync"])
        generate = statistics.median(s["generate"])
        mfu, mbu = self._utilization(peak, generate)
        return {
            "requests": self.config.rollout.prompts_per_step * self.config.rollout.samples_per_prompt,
            "tokens": statistics.median(self.tokens),
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "ratios": {name: spread(values) for name, values in ratios.items()},
            "sampler": {} if self.statistics is None else self.statistics.summary(),
            "latency_by_length": self._latencies(),
            "mfu": mfu,
            "mbu": mbu,
            "idle_share": sum(s["idle_while_scoring"]) / sum(steps),
            "sync_bytes": self.bytes_sent,
            "sync_gb_per_second": self.bytes_sent / moved / 1e9,
            "sync_share_of_bandwidth": 2 * self.bytes_sent / moved / peak.bytes_per_second,  # read and written
        }

    def _utilization(self, peak: Peaks, seconds: float) -> tuple[float, float]:
        """MFU and MBU of this rank's last rollout (formulas: benchmarks/rollout.py)."""
        transformer = self.parts.learner.policy.engine.module.transformer
        config = transformer.config
        embedding = transformer.get_input_embeddings().weight
        head = transformer.get_output_embeddings().weight
        matrices = sum(p.numel() for p in transformer.parameters() if p.dim() > 1)
        if head is not embedding:
            matrices -= embedding.numel()
        finished = self.statistics.finished if self.statistics is not None else []
        sampled = sum(one.tokens for one in finished)
        prompts = max(self.statistics.prefix_tokens - self.statistics.prefix_hits, 0) if finished else 0
        mean_prompt = self.statistics.prefix_tokens / max(len(finished), 1) if finished else 0.0
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # a token at context c reads c keys and c values: 4 x heads' width x c FLOP a layer
        contexts = sum(one.tokens * (mean_prompt + one.tokens / 2) for one in finished)
        attention = 4 * config.num_attention_heads * heads * config.num_hidden_layers * contexts
        flops = 2 * matrices * (sampled + prompts) + attention
        size = next(transformer.parameters()).element_size()
        keys = 2 * config.num_key_value_heads * heads * config.num_hidden_layers * size * contexts
        steps = self.statistics.steps if self.statistics is not None else 0
        moved = steps * matrices * size + keys
        return flops / seconds / peak.flops_per_second, moved / seconds / peak.bytes_per_second

    def _latencies(self) -> list[dict[str, Any]]:
        """Seconds from arrival to last token, in bands of equally many requests by length."""
        done = sorted((one.tokens, one.seconds) for one in (self.statistics.finished if self.statistics else []))
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

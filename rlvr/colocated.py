"""The sampler of each rank: a vLLM engine, or with `sampler.tensor_parallel_size` a part of one, in the learner's
own process.

Requests go in one by one, each with its own seed, and come out as they finish, so that verdicts start while
others are still being sampled. Weights come from the learner (`rlvr.weight_sync`); the engine starts with dummies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import transformers

from rlvr import distributed, watch
from rlvr.checksums import LoadedChecksums
from rlvr.config import Config
from rlvr.contradictions import indivisible
from rlvr.digests import LoadedDigests, proof_by_digest
from rlvr.direct_load import Arrived, DirectLoader, memory_kept
from rlvr.errors import ConfigError
from rlvr.sampler_statistics import SamplerStatistics
from rlvr.tensor_parallel import Group, add_up_over_gloo

CPU_KV_CACHE_MIB = 512
CPU_BATCHED_TOKENS = 8192
PROGRESS_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to sample."""

    token_ids: Sequence[int]
    """The prompt."""
    seed: int
    """Of this request's own generator."""
    temperature: float
    """0 is greedy, and the recipe's truncation does nothing."""
    max_tokens: int
    ignore_ends: bool = False
    """Sample `max_tokens` tokens whatever they are: no end token and no stop string ends the completion."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What vLLM gave back for one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Nats, under the distribution that was sampled."""
    stopped: bool
    """True when the last token is an end token, or completes a stop string."""
    stop_string: str | None
    """The stop string that ended it."""
    policy_version: int
    """Of the weights that sampled the first token."""
    version_changes: tuple[tuple[int, int], ...] = ()
    """(token, version) where newer weights took over."""


class Sampler:
    """A vLLM engine. With `load_format="dummy"`, `load_weights` must be called before the first `generate`; with
    `"auto"` it holds the weights of `model.path`."""

    def __init__(
        self,
        config: Config,
        *,
        stop_token_ids: Sequence[int],
        max_model_len: int,
        load_format: Literal["dummy", "auto"] = "dummy",
        **engine_options: Any,
    ) -> None:
        from vllm import LLM

        self.group = Group(config.sampler.tensor_parallel_size)
        """The ranks that hold this engine together."""
        if self.group.size > 1:
            model = transformers.AutoConfig.from_pretrained(config.model.path).to_dict()
            if fault := indivisible(model, self.group.size):
                raise ConfigError(f"model.path={config.model.path!r}: {fault}")
            add_up_over_gloo()
        self.stop_token_ids = list(stop_token_ids)
        self.policy_version = -1 if load_format == "dummy" else 0
        """Weight updates received in this process after the first, which makes it 0."""
        self._request_count = 0
        self._proof_priority = 0
        self.rollout = config.rollout
        self._can_sleep = torch.cuda.is_available() and config.sampler.sleep
        self._asleep = False
        _keep_process_group()
        self._llm = LLM(
            model=config.model.path,
            skip_tokenizer_init=not config.rollout.stop_strings,  # which vLLM looks for in the text
            load_format=load_format,
            dtype=config.model.dtype,
            seed=config.seed,
            max_model_len=max_model_len,
            max_num_seqs=config.sampler.max_num_seqs,
            enforce_eager=config.sampler.enforce_eager,
            enable_prefix_caching=config.sampler.prefix_caching,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled, not of the raw logits
            kv_cache_dtype=config.sampler.kv_cache_dtype,
            disable_log_stats=not config.sampler.statistics,
            tensor_parallel_size=self.group.size,
            # one engine a rank inside torchrun's process group, on the rank's own device
            distributed_executor_backend="external_launcher" if _is_launched() else None,
            **_memory(config, max_model_len),
            **engine_options,
        )
        self.statistics: SamplerStatistics | None = None
        """vLLM's statistics since they were last taken; None unless the recipe asks for them."""
        if config.sampler.statistics:
            first = self.group.rank == 0
            self.statistics = SamplerStatistics(max_num_seqs=config.sampler.max_num_seqs, speaks=first)
            self._llm.llm_engine.logger_manager.stat_loggers = [self.statistics]  # in place of Prometheus counters
        arrived: Arrived = {}
        self._checksums = (
            LoadedDigests(self.model(), self.group, arrived)
            if proof_by_digest(config)
            else LoadedChecksums(self.model(), self.group)
        )
        self._loader = DirectLoader(self.model(), self._checksums.learner_names, arrived)
        self._versions: dict[str, list[tuple[int, int]]] = {}
        self._ended: list[tuple[str, Sampled]] = []
        self._counted_at = 0.0
        self._counted = 0

    def generate(self, requests: Sequence[Request], on_finish: Callable[[int, Sampled], None]) -> None:
        """Sample every request; `on_finish(index, sampled)` is called as each one ends, in any order.

        Collective over the engine's ranks: together they sample what any of them asks for, and each is given its own.
        """
        members = self.group.gather(list(requests))
        own = sum(map(len, members[: self.group.rank]))
        for index, request in enumerate(request for member in members for request in member):
            self.add(f"{self._request_count}-{index}", request)
        self._request_count += 1
        tokens: list[tuple[int, tuple[int, ...]]] = []
        while self.is_busy():
            for key, sampled in self.step():
                index = int(key.rpartition("-")[2])
                tokens.append((index, sampled.token_ids))
                if own <= index < own + len(requests):
                    on_finish(index - own, sampled)
            self._show_progress()
        self.group.refuse_divergence(tokens)

    def _show_progress(self) -> None:
        """A step that samples nothing is none: so once in a while, tokens are counted."""
        if time.monotonic() - self._counted_at < PROGRESS_SECONDS:
            return
        self._counted_at = time.monotonic()
        tokens = self.tokens_under_way()
        if tokens != self._counted:
            self._counted = tokens
            watch.moved()

    def tokens_under_way(self) -> int:
        """Tokens of unfinished completions."""
        states = self._llm.llm_engine.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def submit(self, requests: Sequence[Request], on_finish: Callable[[int, Sampled], None]) -> Any:
        """Something for `wait`. An engine in this process samples only while it is waited for."""
        return requests, on_finish

    def wait(self, batch: Any) -> None:
        """Sample what was submitted."""
        self.generate(*batch)

    def add(self, key: str, request: Request) -> None:
        """Queue one request under a name of the caller's; `step` samples it."""
        prompt: Any = {"prompt_token_ids": list(request.token_ids), "cache_salt": str(self.policy_version)}
        params = self.sampling_params(request)
        self._llm.llm_engine.add_request(key, prompt, params, arrival_time=self._arrival_time())
        self._versions[key] = [(0, self.policy_version)]

    def _arrival_time(self) -> float | None:
        """Of the next request; None for the time by vLLM's clock. First come, first served whatever it is, here."""
        return None

    def is_busy(self) -> bool:
        """Whether requests are unfinished, or ended and not yet returned by `step`."""
        return bool(self._ended or self._llm.llm_engine.has_unfinished_requests())

    def step(self) -> list[tuple[str, Sampled]]:
        """Sample one more token of the running requests; returns those that ended, by name."""
        outputs = self._llm.llm_engine.step() if self._llm.llm_engine.has_unfinished_requests() else []
        ended = self._ended + [(o.request_id, self._sampled(o.request_id, o.outputs[0])) for o in outputs if o.finished]
        self._ended = []
        return ended

    def sampling_params(self, request: Request) -> Any:
        """One request as vLLM's SamplingParams, the recipe's truncation and stop strings included."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rollout = self.rollout
        stop_strings = [] if request.ignore_ends else rollout.stop_strings
        truncation: dict[str, Any] = {}
        if request.temperature > 0:
            truncation = {"top_p": rollout.top_p, "top_k": rollout.top_k or 0, "min_p": rollout.min_p}
        return SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            min_tokens=0 if request.ignore_ends else rollout.min_tokens,
            stop_token_ids=[] if request.ignore_ends else self.stop_token_ids,
            ignore_eos=request.ignore_ends,
            stop=stop_strings,
            include_stop_str_in_output=bool(stop_strings),
            detokenize=bool(stop_strings),
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
            **truncation,
        )

    def _sampled(self, key: str, output: Any) -> Sampled:
        token_ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True))
        versions = dict(self._versions.pop(key))  # of two changes before the same token, the later one counts
        changes = tuple((token, version) for token, version in versions.items() if 0 < token < len(token_ids))
        return Sampled(
            token_ids=token_ids,
            logprobs=logprobs,
            stopped=output.finish_reason == "stop",
            stop_string=output.stop_reason if isinstance(output.stop_reason, str) else None,
            policy_version=versions[0],
            version_changes=changes,
        )

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """Log-probability (temperature 1) of every token but the first of each sequence, in nats.

        Returns one list for each engine that this rank has to prove: here, its own, whose ranks all ask for the same.
        """
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        keys = [f"sequence-{self._request_count}-{index}" for index in range(len(sequences))]
        self._request_count += 1
        for key, sequence in zip(keys, sequences, strict=True):
            prompt: Any = {"prompt_token_ids": list(sequence)}
            engine.add_request(key, prompt, params, arrival_time=self._arrival_time(), priority=self._proof_priority)
        found: dict[str, list[float]] = {}
        if self.statistics is not None:  # they are of rollouts alone
            self.statistics.is_recording = False
        while len(found) < len(keys):
            for output in engine.step():
                if output.finished and output.request_id in keys:
                    sequence = sequences[keys.index(output.request_id)]
                    steps: Any = output.prompt_logprobs
                    pairs = zip(sequence[1:], steps[1:], strict=True)
                    found[output.request_id] = [step[token].logprob for token, step in pairs]
                elif output.finished:  # others go on meanwhile
                    self._ended.append((output.request_id, self._sampled(output.request_id, output.outputs[0])))
        if self.statistics is not None:
            self.statistics.is_recording = True
        return [[found[key] for key in keys]]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights and forget every cached prefix: its keys and values came from the old ones."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._checksums.clear()
        if self._loader.is_ready:
            self._loader.load(weights)
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._loader.watch(weights)})
        if self._asleep:  # the KV cache comes last, when the learner's gathered weights are gone again
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self.weights_changed()

    def weights_changed(self) -> None:
        """Bring what vLLM derives from its weights up to date, and stamp what goes on under the new ones.

        Requests that are running keep their keys and values, and their prefixes stay in the cache; the salt of
        requests to come, their weights' version, keeps them from finding those.
        """
        self._llm.apply_model(_repack_tied_head)
        self.policy_version += 1
        running = self._llm.llm_engine.output_processor.request_states.values()
        for state in running:
            self._versions[state.external_req_id].append((state.detokenizer.num_output_tokens(), self.policy_version))
        if not running and not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache, although no request is running")

    def model(self) -> torch.nn.Module:
        """vLLM's own module, which holds the weights in fused layouts."""
        return self._llm.apply_model(lambda model: model)[0]

    def compare(self, expected: dict[str, torch.Tensor]) -> str | None:
        """What differs between the tensors loaded and the learner's (row checksums by Hugging Face name), or None."""
        problem = self._checksums.compare(expected)
        refuses = problem is None and self._loader.take_over()
        if refuses and self.group.rank == distributed.rank() == 0 and not torch.cuda.is_available():
            print(f"weights go through vLLM's own reload, which is slower: {self._loader.reason}", flush=True)
        return problem

    @property
    def checksum_seconds(self) -> float:
        """Spent on checksums within the last `load_weights`."""
        return self._checksums.seconds

    def sleep(self) -> None:
        """Give the GPU memory of weights and KV cache to the learner, until `load_weights`. Does nothing on a CPU."""
        if self._can_sleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Shut the engine down, and leave the process group to the learner and to an engine that may follow."""
        self._llm.llm_engine.engine_core.shutdown()


def _is_launched() -> bool:
    """Whether torchrun's environment says which group and which GPU are vLLM's; by itself it takes the first GPU."""
    return distributed.world_size() > 1 or bool(distributed.device().index)


def _keep_process_group() -> None:
    """Let an engine that ends destroy its own groups only: vLLM 0.32 would end torch's default one with them."""
    from vllm.distributed.parallel_state import destroy_model_parallel
    from vllm.v1.engine import core

    core.cleanup_dist_env_and_memory = destroy_model_parallel


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Give a tied output head the new weights.

    On the CPU, vLLM 0.32 multiplies by packed copies. A tied head is a layer of its own that shares the embedding's
    weight but keeps its own copy, and a reload packs only the embedding: the head would stay the old one.
    """
    if torch.cuda.is_available() or not getattr(model.config, "tie_word_embeddings", False):
        return
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    head: Any = getattr(model, "lm_head", None)
    if not isinstance(head, ParallelLMHead):  # Gemma 2 and 3: the embedding itself is the head
        return
    with memory_kept():
        head.cpu_linear = None  # the old packed copy goes first: the new one takes its memory
        head.quant_method.process_weights_after_loading(head)


def _memory(config: Config, max_model_len: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if config.sampler.block_size is not None:
        options["block_size"] = config.sampler.block_size
    if torch.cuda.is_available():
        options["gpu_memory_utilization"] = config.sampler.gpu_memory_utilization
        options["enable_sleep_mode"] = config.sampler.sleep
        if config.sampler.kv_cache_mib is not None:
            options["kv_cache_memory_bytes"] = config.sampler.kv_cache_mib * 2**20
    else:
        options["kv_cache_memory_bytes"] = (config.sampler.kv_cache_mib or CPU_KV_CACHE_MIB) * 2**20
        # vLLM 0.32 rewinds the generator of a seeded request whose prefill was cut in two, which a CPU generator
        # cannot do ("CPU Generator does not use offset"): so prefills are never cut
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(max_model_len, CPU_BATCHED_TOKENS)
    return options

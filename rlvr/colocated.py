"""The sampler of each rank: a vLLM engine in the learner's own process.

Requests go in one by one, each with its own seed, and come out as they finish, so that verdicts start while
others are still being sampled. Weights come from the learner (`rlvr.weight_sync`); the engine starts with dummies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch

from rlvr import distributed
from rlvr.config import Config
from rlvr.sampler_statistics import SamplerStatistics

CPU_KV_CACHE_MIB = 512
CPU_BATCHED_TOKENS = 8192


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
    ) -> None:
        from vllm import LLM

        self.stop_token_ids = list(stop_token_ids)
        self.policy_version = -1 if load_format == "dummy" else 0
        """Weight updates received in this process after the first, which makes it 0."""
        self._request_count = 0
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
            # one engine a rank inside torchrun's process group, on the rank's own device
            distributed_executor_backend="external_launcher" if distributed.world_size() > 1 else None,
            **_memory(config, max_model_len),
        )
        self.statistics: SamplerStatistics | None = None
        """vLLM's statistics since they were last cleared; None unless the recipe asks for them."""
        if config.sampler.statistics:
            self.statistics = SamplerStatistics(max_num_seqs=config.sampler.max_num_seqs)
            self._llm.llm_engine.logger_manager.stat_loggers = [self.statistics]  # in place of Prometheus counters

    def generate(self, requests: Sequence[Request], on_finish: Callable[[int, Sampled], None]) -> None:
        """Sample every request; `on_finish(index, sampled)` is called as each one ends, in any order."""
        if self.statistics is not None:
            self.statistics.clear()
        for index, request in enumerate(requests):
            self.add(f"{self._request_count}-{index}", request)
        self._request_count += 1
        while self.is_busy():
            for key, sampled in self.step():
                on_finish(int(key.rpartition("-")[2]), sampled)

    def add(self, key: str, request: Request) -> None:
        """Queue one request under a name of the caller's; `step` samples it."""
        prompt: Any = {"prompt_token_ids": list(request.token_ids)}
        self._llm.llm_engine.add_request(key, prompt, self.sampling_params(request))

    def is_busy(self) -> bool:
        """Whether requests are unfinished."""
        return bool(self._llm.llm_engine.has_unfinished_requests())

    def step(self) -> list[tuple[str, Sampled]]:
        """Sample one more token of the running requests; returns those that ended, by name."""
        outputs = self._llm.llm_engine.step()
        return [(output.request_id, self._sampled(output.outputs[0])) for output in outputs if output.finished]

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

    def _sampled(self, output: Any) -> Sampled:
        token_ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True))
        return Sampled(
            token_ids=token_ids,
            logprobs=logprobs,
            stopped=output.finish_reason == "stop",
            stop_string=output.stop_reason if isinstance(output.stop_reason, str) else None,
        )

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability (temperature 1) of every token but the first of each sequence, in nats."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompts: Any = [{"prompt_token_ids": list(s)} for s in sequences]
        if self.statistics is not None:  # they are of rollouts alone
            self.statistics.is_recording = False
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        if self.statistics is not None:
            self.statistics.is_recording = True
        return [
            [step[token].logprob for token, step in zip(s[1:], output.prompt_logprobs[1:], strict=True)]
            for s, output in zip(sequences, outputs, strict=True)
        ]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights and forget every cached prefix: its keys and values came from the old ones."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.apply_model(_repack_tied_head)
        if self._asleep:  # the KV cache comes last, when the learner's gathered weights are gone again
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running during a weight update")
        self.policy_version += 1

    def model(self) -> torch.nn.Module:
        """vLLM's model, for the proof of sync."""
        return self._llm.apply_model(lambda model: model)[0]

    def sleep(self) -> None:
        """Give the GPU memory of weights and KV cache to the learner, until `load_weights`. Does nothing on a CPU."""
        if self._can_sleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Shut the engine down, and leave the process group to the learner and to an engine that may follow."""
        self._llm.llm_engine.engine_core.shutdown()


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
    head: Any = getattr(model, "lm_head", None)
    if head is None:  # Gemma 2 and 3: the embedding itself is the head
        return
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

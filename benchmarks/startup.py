"""Seconds from the start of a process to the first token sampled: this project's sampler over vLLM's own `LLM`.

    python -m benchmarks.startup --shape 30m --output benchmarks/results/startup_30m.json

Three processes take turns, each a fresh interpreter, with one model, one set of engine options and one prompt:

    vllm      `vllm.LLM` loads the model's folder and generates
    sampler   `rlvr.colocated.Sampler` starts with dummy weights, gets those of a transformers model, and samples
    run       all that a run builds: rows, tokenizer, learner and critic under DeepSpeed, sampler, weights, their proof

`run` is for information: most of it is the learner. The engine works in the process itself, for all three.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from rlvr import environment, recipe
from rlvr.config import Config

RECIPE = "launch/recipes/quickstart.toml"
ROLES = ("vllm", "sampler", "run")
PROMPT = (5, 6, 7, 8)
SAID = "first token"


def with_vllm(config: Config) -> None:
    from vllm import LLM, SamplingParams

    from rlvr.colocated import CPU_BATCHED_TOKENS, CPU_KV_CACHE_MIB

    kv_cache_mib: Any = config.sampler.kv_cache_mib or CPU_KV_CACHE_MIB
    llm = LLM(
        model=config.model.path,
        skip_tokenizer_init=True,
        dtype=config.model.dtype,
        seed=config.seed,
        max_model_len=max_model_len(config),
        max_num_seqs=config.sampler.max_num_seqs,
        enforce_eager=config.sampler.enforce_eager,
        enable_prefix_caching=config.sampler.prefix_caching,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        kv_cache_memory_bytes=kv_cache_mib * 2**20,
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(max_model_len(config), CPU_BATCHED_TOKENS),
        **({} if config.sampler.block_size is None else {"block_size": config.sampler.block_size}),
    )
    prompt: Any = {"prompt_token_ids": list(PROMPT)}
    llm.generate([prompt], SamplingParams(max_tokens=1, seed=1, logprobs=0, detokenize=False), use_tqdm=False)
    print(SAID, flush=True)


def with_sampler(config: Config) -> None:
    import transformers

    from rlvr import distributed
    from rlvr.colocated import Sampler

    distributed.start()
    sampler = Sampler(config, stop_token_ids=[0], max_model_len=max_model_len(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.path, dtype=config.model.dtype)
    sampler.load_weights((name, weight.detach()) for name, weight in model.named_parameters())
    sample(sampler)


def with_run(config: Config) -> None:
    from rlvr import distributed
    from rlvr.parts import run_parts

    distributed.start()
    with run_parts(config) as parts:
        parts.sync.publish()
        sample(parts.sampler)


def sample(sampler: Any) -> None:
    from rlvr.colocated import Request

    sampler.generate([Request(token_ids=PROMPT, seed=1, temperature=1.0, max_tokens=1)], lambda index, sampled: None)
    print(SAID, flush=True)


def max_model_len(config: Config) -> int:
    return config.data.max_prompt_tokens + config.rollout.max_tokens


def seconds_to_first_token(role: str, overrides: list[str]) -> float:
    """Of a fresh process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.startup", "--role", role, *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(SAID):
                seconds = time.perf_counter() - started
                break
        else:
            raise SystemExit(f"the process of {role!r} ended without a token")
        process.stdout.read()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.option=value")
    parser.add_argument("--shape", default="30m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.role:
        config = recipe.load(RECIPE, arguments.overrides)
        environment.prepare(enforce_eager=config.sampler.enforce_eager)
        {"vllm": with_vllm, "sampler": with_sampler, "run": with_run}[arguments.role](config)
        return

    from benchmarks.machine import about, spread, write_result
    from benchmarks.rollout import shape_overrides

    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        overrides = shape_overrides(arguments.shape, "64", folder)
        overrides += [f"run_dir={folder / 'run'}", "evaluation.enabled=false", *arguments.overrides]
        seconds_to_first_token("vllm", overrides)  # files into the page cache
        for repeat in range(arguments.repeats):
            for role in ROLES if repeat % 2 else reversed(ROLES):
                seconds[role].append(seconds_to_first_token(role, overrides))
    found = {role: spread(values) for role, values in seconds.items()}
    ratios = {role: spread([a / b for a, b in zip(seconds[role], seconds["vllm"], strict=True)]) for role in ROLES[1:]}
    for role, value in found.items():
        ratio = f", {ratios[role]['median']:.2f} x vLLM's" if role in ratios else ""
        print(f"{role:8}{value['median']:7.1f} s ({value['min']:.1f}-{value['max']:.1f}){ratio}")
    if arguments.output:
        result = {**about(), "shape": arguments.shape, "overrides": arguments.overrides}
        write_result(arguments.output, result | {"seconds_to_first_token": found, "over_vllm": ratios})


if __name__ == "__main__":
    main()

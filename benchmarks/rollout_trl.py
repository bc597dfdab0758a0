"""A GRPO step of this project against TRL's GRPOTrainer, on the same work and machine, in turns.

    python -m benchmarks.rollout_trl --trl-python VENV/bin/python --shape 30m --lengths gsm8k --ranks 2

TRL is installed apart (`pip install trl==1.16.0 --no-deps` in an environment that has this project's packages). Both
sides run under torchrun with one thread a rank: the same weights, prompts (recorded or random tokens), numbers of
sampled tokens, group size, optimizer and one update a step, GRPO without a reference. Both judge every completion. TRL
is run with its transformers generation, its colocated vLLM, or both (`--generation`); its best median counts. It takes
one length for all requests, so the wrapped `generate` below gives each request its own, which helps TRL; transformers
samples up to the longest and is cut. A micro-batch of TRL's is padded to its longest sample.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

RECIPE = "launch/recipes/quickstart-grpo.toml"
# GRPO without a reference; the two options of the KL term go back to their defaults, since there is none
OURS = [
    "algorithm.kl_placement=reward",
    "algorithm.kl_estimator=k1",
    "algorithm.kl_coefficient=0",
    "algorithm.minibatches=1",
    "algorithm.old_logprobs=sampler",
    "optimizer.learning_rate=1e-6",
    "rollout.temperature=1.0",
]


def main() -> None:
    arguments = parse()
    if arguments.worker:
        trl_steps(arguments)
        return
    from benchmarks.machine import about, spread, write_result

    seconds: dict[str, list[float]] = {"ours": [], **{f"trl {kind}": [] for kind in arguments.generation}}
    for _ in range(arguments.rounds):
        for name in seconds:
            seconds[name] += ours(arguments) if name == "ours" else trl(arguments, name.removeprefix("trl "))
            print(f"{name}: {', '.join(f'{one:.1f}' for one in seconds[name])} s a step", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name != "ours"), key=medians.__getitem__)
    result = {
        **about(),
        "shape": arguments.shape,
        "lengths": arguments.lengths,
        "ranks": arguments.ranks,
        "samples": arguments.prompts * arguments.samples,
        "step_seconds": {name: spread(values) for name, values in seconds.items()},
        "best_of_trl": best,
        "ours_over_trl": medians["ours"] / medians[best],
    }
    for name, value in result["step_seconds"].items():
        print(f"{name:18}{value['median']:8.3f} s a step ({value['min']:.3f}-{value['max']:.3f})")
    print(f"ours / {best}: {result['ours_over_trl']:.3f}")
    if arguments.output:
        write_result(arguments.output, result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=pathlib.Path, help="Python of the environment that has TRL")
    parser.add_argument("--shape", default="30m")
    parser.add_argument("--lengths", default="gsm8k", help="gsm8k, or tokens of every completion")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="of each prompt")
    parser.add_argument("--steps", type=int, default=4, help="of each process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=4, help="TRL's per_device_train_batch_size")
    parser.add_argument("--generation", nargs="+", default=["transformers", "vllm"], choices=("transformers", "vllm"))
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def torchrun(arguments: argparse.Namespace, python: str, words: list[str]) -> None:
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.ranks), *words]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")


def ours(arguments: argparse.Namespace) -> list[float]:
    """Seconds of each of this project's steps."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "ours.json"
        words = ["-m", "benchmarks.rollout", RECIPE, "--shape", arguments.shape, "--lengths", arguments.lengths]
        words += ["--against", "learner", "--repeats", str(arguments.steps - 1), "--output", str(output), *OURS]
        words += [f"rollout.prompts_per_step={arguments.prompts}", f"rollout.samples_per_prompt={arguments.samples}"]
        torchrun(arguments, sys.executable, words)
        return list(json.loads(output.read_text())["series"]["step"])


def trl(arguments: argparse.Namespace, kind: str) -> list[float]:
    """Seconds of each of TRL's steps, measured in processes of its own environment."""
    from benchmarks.rollout import shape_overrides

    with tempfile.TemporaryDirectory() as folder:
        shape_overrides(arguments, pathlib.Path(folder))
        words = [__file__, "--worker", folder, "--generation", kind, "--lengths", arguments.lengths]
        for name in ("prompts", "samples", "steps", "micro_batch", "ranks"):
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        torchrun(arguments, str(arguments.trl_python), words)
        return list(json.loads((pathlib.Path(folder) / "seconds.json").read_text()))


def trl_steps(arguments: argparse.Namespace) -> None:
    """The worker: GRPOTrainer over `steps` steps, its time between the ends of steps."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1")
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        TRL_EXPERIMENTAL_SILENCE="1",
        TORCHDYNAMO_DISABLE="1",
        VLLM_USE_AOT_COMPILE="0",
    )
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.workload import gsm8k_lengths

    folder = pathlib.Path(arguments.worker)
    uses_vllm = arguments.generation == ["vllm"]
    count = arguments.prompts * arguments.samples
    is_fixed = arguments.lengths != "gsm8k"
    longest = int(arguments.lengths) if is_fixed else 512
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    vocabulary = transformers.AutoConfig.from_pretrained(folder / "model").vocab_size
    rank = int(os.environ["RANK"])
    marks: list[float] = []

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    def lengths_of_step(step: int) -> list[tuple[int, int]]:
        if is_fixed:
            return [(16, longest)] * count
        return gsm8k_lengths(count, seed=step)

    class SameWork(GRPOTrainer):  # type: ignore[misc]
        """Prompts and completions of given lengths."""

        def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
            made = []
            for prompt in prompts:
                index = int(prompt)
                lengths = lengths_of_step(self.state.global_step)
                size = lengths[index % arguments.prompts * arguments.samples][0]
                made.append(random.Random(index).choices(range(vocabulary), k=size))
            return made, None, {}

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
            drawn = lengths_of_step(self.state.global_step)
            share = len(prompt_ids)
            wanted = [completion for _, completion in drawn][rank * share : (rank + 1) * share]
            if not uses_vllm:
                ids, logprobs = super()._generate_single_turn(prompt_ids, *rest, **named)
                return [one[:size] for one, size in zip(ids, wanted, strict=True)], logprobs
            llm = self.vllm_generation.llm
            plain = llm.generate

            def each_its_length(prompts: Any, sampling_params: Any, **more: Any) -> Any:
                params = [sampling_params.clone() for _ in prompts]
                for one, size in zip(params, wanted, strict=True):
                    one.max_tokens, one.ignore_eos = size, True
                return plain(prompts, sampling_params=params, **more)

            llm.generate = each_its_length
            try:
                return super()._generate_single_turn(prompt_ids, *rest, **named)
            finally:
                llm.generate = plain

    def judge(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text.split())) % 2) for text in completions]

    rows = datasets.Dataset.from_dict({"prompt": [str(i) for i in range(arguments.prompts * arguments.steps)]})
    per_rank = count // arguments.ranks
    settings = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=arguments.micro_batch,
        gradient_accumulation_steps=per_rank // arguments.micro_batch,
        num_generations=arguments.samples,
        max_completion_length=longest,
        max_steps=arguments.steps,
        beta=0.0,
        learning_rate=1e-6,
        temperature=1.0,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        use_vllm=uses_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=1024 if uses_vllm else None,
        generation_kwargs=None if uses_vllm else {"min_new_tokens": longest},
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = SameWork(
        model=str(folder / "model"),
        reward_funcs=judge,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Timed()],
    )
    trainer.train()
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps([b - a for a, b in itertools.pairwise(marks)]))


if __name__ == "__main__":
    main()

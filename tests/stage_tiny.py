"""A tiny model with a tokenizer, and rows for the stages before RLVR."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import torch
import transformers
from tiny import model_config, weights

from rlvr.chat import load_tokenizer
from sft_dpo import config, dpo, reward_model, sft, value_model
from sft_dpo.quickstart_task import train_tokenizer
from sft_dpo.training import Fit, train_step

PAIRS = [
    ("What is 2 + 3?", "2 + 3 = 5", "2 + 3 = 6"),
    ("Say red three times", "red red red", "red"),
    ("Name an animal", "a bear", "a very long answer about a bear and a fox and a third animal"),
    ("Shout", "OK", "ok then"),
    ("Count to nine", "1 2 3 4 5 6 7 8 9", "1 2 3"),
    ("Hi", "Hello there", "Bye"),
]
ADAPTERS = {"rank": 3, "alpha": 6.0}
OPTIMIZER = {"learning_rate": 1e-2, "schedule": "constant", "epsilon": 1e-3, "warmup_ratio": 0.0}


def pair_row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    question = {"role": "user", "content": prompt}
    sides = {
        name: [question, {"role": "assistant", "content": answer}]
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    }
    return {"id": prompt, "prompt": prompt, **sides, "source": "test"}


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_folder(folder: pathlib.Path) -> None:
    """Write `model/`, `pairs.jsonl`, `conversations.jsonl` and `samples.jsonl`."""
    tokenizer = train_tokenizer([text for row in PAIRS for text in row])
    shape = model_config("Llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [pair_row(*row) for row in PAIRS]
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "conversations.jsonl", [{"messages": row["chosen"]} for row in rows])
    judged = [
        {"prompt_id": number, "sample": 0, "prompt_token_ids": asked, "token_ids": said, "reward": reward}
        for number, (asked, said, reward) in enumerate(SAMPLES)
    ]
    write_rows(folder / "samples.jsonl", judged)


def table(folder: pathlib.Path, rows: str = "pairs.jsonl", **more: Any) -> dict[str, Any]:
    """A recipe's table; sections of `more` are laid over it."""
    base: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": [str(folder / rows)]},
        "optimizer": OPTIMIZER,
        "training": {"epochs": 2, "examples_per_step": 4},
    }
    return base | {key: base.get(key, {}) | value if isinstance(value, dict) else value for key, value in more.items()}


SAMPLES = [([5, 6, 7], [8, 9, 0], 10.0), ([5, 6], [9, 0], 0.0), ([7, 7, 7, 8], [1, 2, 3, 0], 10.0), ([6], [4], -10.0)]
"""Prompt tokens, completion tokens and reward."""
STAGES = {
    "sft": ("Sft", sft.work, "conversations.jsonl"),
    "dpo": ("Dpo", dpo.work, "pairs.jsonl"),
    "reward": ("Reward", reward_model.work, "pairs.jsonl"),
    "value": ("Value", value_model.work, "samples.jsonl"),
}


def stage_config(folder: pathlib.Path, stage: str, **more: Any) -> Any:
    schema, _, rows = STAGES[stage]
    if stage == "dpo":
        more = {"preference": {"reference_cache": str(folder / f"cache_{os.environ.get('WORLD_SIZE', '1')}")}} | more
    return getattr(config, schema).model_validate(table(folder, rows, **more))


def outcome(
    folder: pathlib.Path, stage: str, zero_stage: int, steps: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps and the weights reached. Collective."""
    model = {
        "gradient_checkpointing": zero_stage == 3
    }  # where ranks that do it and ranks that do not would gather unlike
    learner = {"zero_stage": zero_stage, "max_tokens_per_micro_batch": 60}
    made = stage_config(folder, stage, model=model, learner=learner)
    fit = Fit(made, STAGES[stage][1](made, load_tokenizer(made.model.path, None)))
    fit.work.train.before_first_update(fit.engine)
    losses = [train_step(fit.engine, fit.work.train, fit.batch(step))["loss"] for step in range(steps)]
    return losses, weights(fit.engine)

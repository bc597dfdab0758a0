"""Imitation: the loss is a mean over the assistant's tokens of the whole step, whatever the micro-batches."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from tiny import largest_difference, model_config, weights

from rlvr import distributed
from rlvr.chat import encode_conversations
from rlvr.config import Optimizer
from rlvr.data import read_conversations, read_mixture
from rlvr.engine import Engine
from rlvr.errors import DataError, NonFiniteError, RunDirectoryError
from rlvr.log import read_metrics
from rlvr.model import load_policy
from rlvr.recipe import load_as
from sft_dpo.config import Sft
from sft_dpo.quickstart_task import train_tokenizer
from sft_dpo.sft import Imitation, imitation, work
from sft_dpo.training import evaluate, run, train_step

TURNS = [
    [("user", "What is 2 + 3?"), ("assistant", "2 + 3 = 5")],
    [("user", "Hi"), ("assistant", "Hello"), ("user", "Say red red red"), ("assistant", "red red red")],
    [("system", "Be brief"), ("user", "Name an animal"), ("assistant", "a very long answer about a bear and a fox")],
    [("user", "Shout"), ("assistant", "OK")],
    [("user", "Count"), ("assistant", "1 2 3 4 5 6 7 8 9")],
    [("user", "Hi"), ("assistant", "Hello there")],
    [("user", "What is 9 - 4?"), ("assistant", "5")],
    [("user", "Name two"), ("assistant", "a fox"), ("user", "And?"), ("assistant", "a bear with a very long name")],
]
ROWS = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in TURNS]
ROOT = pathlib.Path(__file__).parents[1]
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OPTIMIZER = {"learning_rate": 1e-2, "schedule": "constant", "epsilon": 1e-3}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([text for turns in TURNS for _, text in turns])


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    distributed.start()
    folder = tmp_path_factory.mktemp("sft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = model_config("Llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def recipe(folder: pathlib.Path, **more: Any) -> Sft:
    table: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": [str(folder / "rows.jsonl")]},
        "optimizer": OPTIMIZER,
    }
    return Sft.model_validate(table | more)


def conversations(config: Sft, tokenizer: Any) -> Imitation:
    return imitation(config, "sft", read_mixture(config.data, read_conversations, lambda turns: turns), tokenizer)


def engine_of(folder: pathlib.Path, stage: int = 0) -> Engine:
    model = load_policy(str(folder / "model"), dtype="float32", gradient_checkpointing=False, logits_chunk_tokens=1024)
    return Engine("policy", model, Optimizer(**OPTIMIZER), zero_stage=stage, dtype="float32", total_updates=10)


def slow_losses(folder: pathlib.Path, data: Imitation) -> tuple[list[torch.Tensor], Any]:
    """Cross-entropy of each conversation's target tokens, by `transformers` and a loop."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    losses = []
    for tokens, targets in data.conversations:
        logits = plain(input_ids=torch.tensor([tokens])).logits[0]
        each = [torch.nn.functional.cross_entropy(logits[t - 1], torch.tensor(tokens[t])) for t in targets]
        losses.append(torch.stack(each))
    return losses, plain


def said(tokenizer: Any, tokens: tuple[int, ...], targets: tuple[int, ...]) -> str:
    return str(tokenizer.decode([tokens[t] for t in targets]))


def test_only_what_the_assistant_says_is_imitated_in_every_turn_with_its_end_token(tokenizer: Any) -> None:
    encoded = encode_conversations(tokenizer, [row["messages"] for row in ROWS])
    end = tokenizer.eos_token
    assert said(tokenizer, *encoded[0]) == f"2 + 3 = 5{end}"
    assert said(tokenizer, *encoded[1]) == f"Hello{end}red red red{end}"  # two turns, not the newline between them
    assert said(tokenizer, *encoded[2]) == f"a very long answer about a bear and a fox{end}"
    assert tokenizer.decode(encoded[1][0]) == (
        f"<|user|>\nHi\n<|assistant|>\nHello{end}\n<|user|>\nSay red red red\n<|assistant|>\nred red red{end}"
    )


def test_only_the_last_turn_is_imitated_where_the_recipe_says_so(folder: pathlib.Path, tokenizer: Any) -> None:
    config = recipe(folder, data={"train": [str(folder / "rows.jsonl")], "turns": "last"})
    data = conversations(config, tokenizer)
    end = tokenizer.eos_token
    assert said(tokenizer, *data.conversations[1]) == f"red red red{end}"
    assert said(tokenizer, *data.conversations[7]) == f"a bear with a very long name{end}"
    everything = conversations(recipe(folder), tokenizer)
    assert [tokens for tokens, _ in data.conversations] == [tokens for tokens, _ in everything.conversations]


def test_the_loss_and_the_update_equal_a_slow_mean_over_all_target_tokens(folder: pathlib.Path, tokenizer: Any) -> None:
    data = conversations(recipe(folder), tokenizer)
    losses, plain = slow_losses(folder, data)
    loss = torch.cat(losses).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.01).step()
    engine = engine_of(folder)
    assert evaluate(engine, data, 3)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    ours = train_step(engine, data, range(len(ROWS)))
    assert ours["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert ours["tokens"] == sum(len(s) - 1 for s, _ in data.conversations)  # each but its last token is read
    assert largest_difference(weights(engine), dict(plain.named_parameters())) < 1e-5


def test_eight_micro_batches_of_one_update_as_one_of_eight_which_a_mean_of_means_does_not(
    folder: pathlib.Path, tokenizer: Any
) -> None:
    results = []
    for most, stage, rows in ((10_000, 0, 1), (1, 0, 8), (1, 2, 8), (120, 0, 2)):
        data = conversations(recipe(folder, learner={"max_tokens_per_micro_batch": most}), tokenizer)
        assert len(data.pack(range(8))) == rows
        engine = engine_of(folder, stage)
        results.append((train_step(engine, data, range(8))["loss"], weights(engine)))
    for loss, reached in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        assert largest_difference(reached, results[0][1]) < 1e-5
    losses, plain = slow_losses(folder, data)
    mean_of_means = torch.stack([loss.mean() for loss in losses]).mean()  # what a mean per micro-batch would have given
    assert abs(mean_of_means.item() - results[0][0]) > 1e-2
    mean_of_means.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.01).step()
    assert largest_difference(dict(plain.named_parameters()), results[0][1]) > 1e-3  # a tenth of the learning rate


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(folder: pathlib.Path, tokenizer: Any) -> None:
    data = conversations(recipe(folder), tokenizer)
    for bad in (math.nan, math.inf):
        engine = engine_of(folder)
        engine.engine.module.transformer.lm_head.weight.data[0, 0] = bad
        before = weights(engine)
        with pytest.raises(NonFiniteError, match="before update 1"):
            train_step(engine, data, range(len(ROWS)))
        after = weights(engine)
        assert all(torch.equal(before[n].nan_to_num(7.0), after[n].nan_to_num(7.0)) for n in before)


def test_long_conversations_are_dropped_whole_and_counted(folder: pathlib.Path, tokenizer: Any) -> None:
    everything = conversations(recipe(folder), tokenizer)
    lengths = [len(tokens) for tokens, _ in everything.conversations]
    longest = max(lengths)
    data_options = {"train": [str(folder / "rows.jsonl")], "max_tokens": longest - 1}
    data = conversations(recipe(folder, data=data_options), tokenizer)
    assert data.report.over_length == lengths.count(longest)
    assert list(data.conversations) == [one for one in everything.conversations if len(one[0]) < longest]
    assert data.weight(range(len(data))) == sum(len(targets) for _, targets in data.conversations)
    with pytest.raises(DataError, match="max_tokens=1"):
        conversations(recipe(folder, data=data_options | {"max_tokens": 1}), tokenizer)


def test_the_command_learns_the_demonstrations_saves_them_and_overwrites_nothing(
    folder: pathlib.Path, tokenizer: Any
) -> None:
    saved = folder / "saved"
    recipe_file = folder / "recipe.toml"
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    recipe_file.write_text(
        f"""
        stage = "sft"
        run_dir = "{saved}"
        model = {{ path = "{folder / "model"}", dtype = "float32" }}
        data = {{ train = "{folder / "rows.jsonl"}", eval = "{folder / "held_out.jsonl"}" }}
        optimizer = {{ learning_rate = 1e-2, schedule = "constant", epsilon = 1e-3 }}
        training = {{ epochs = 12, examples_per_step = 3, evaluate_every = 30 }}
        """
    )
    config = load_as(Sft, recipe_file)
    command = [sys.executable, "-m", "sft_dpo", "sft", str(recipe_file)]
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=180, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"sft: {len(ROWS)} conversations, 0 dropped" in done.stdout
    data = conversations(config, tokenizer)
    before = torch.cat(slow_losses(folder, data)[0]).mean().item()
    after = torch.cat(slow_losses(saved, data)[0]).mean().item()
    assert before > 5.0  # about ln of the vocabulary
    assert after < 0.8 * before
    log = read_metrics(saved / "metrics.jsonl")
    evaluated = {line["step"]: line["eval/held_out/loss"] for line in log if "eval/held_out/loss" in line}
    assert list(evaluated) == [0, 30, 36]  # 3 steps of an epoch x 12; before, at 30, at the end
    held_out = [torch.cat(slow_losses(where, data)[0][:2]).mean().item() for where in (folder, saved)]
    assert [evaluated[0], evaluated[36]] == pytest.approx(held_out, abs=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(saved / "model").chat_template == tokenizer.chat_template
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        run(config, work, recipe_text="", resume=False, leave=False)

"""The critic before PPO: a regression on the returns of judged completions."""

from __future__ import annotations

import math
import pathlib

import pytest
import torch
import transformers
from stage_tiny import SAMPLES, make_folder, stage_config, write_rows

from rlvr import distributed
from rlvr.chat import load_tokenizer
from rlvr.engine import Engine
from rlvr.errors import ConfigError, DataError
from rlvr.recipe import validate
from sft_dpo.config import Value
from sft_dpo.training import train_step
from sft_dpo.value_model import discounted, work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    distributed.start()
    folder = tmp_path_factory.mktemp("value")
    make_folder(folder)
    return folder


def test_the_return_of_a_token_is_the_last_reward_discounted() -> None:
    assert discounted(8.0, 4, 0.5).tolist() == [1.0, 2.0, 4.0, 8.0]
    assert discounted(-10.0, 2, 1.0).tolist() == [-10.0, -10.0]


def test_the_loss_equals_a_slow_regression_and_falls(folder: pathlib.Path) -> None:
    config = stage_config(folder, "value", gamma=0.9)
    tokenizer = load_tokenizer(config.model.path, None)
    made = work(config, tokenizer)
    made.model.transformer.save_pretrained(folder / "start")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "start", dtype=torch.float32)
    errors, returns = [], []
    for prompt, completion, reward in SAMPLES:
        hidden = plain.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        for place in range(len(completion)):
            value = plain.score(hidden[len(prompt) + place - 1]).item()  # of the state before the token
            returns.append(reward * 0.9 ** (len(completion) - 1 - place))
            errors.append(value - returns[-1])
    engine = Engine("critic", made.model, config.optimizer, zero_stage=0, dtype="float32", total_updates=40)
    first = train_step(engine, made.train, range(len(SAMPLES)))
    assert first["loss"] == pytest.approx(sum(e**2 for e in errors) / 2 / len(errors), rel=1e-4)
    mean = sum(returns) / len(returns)
    variance = sum((r - mean) ** 2 for r in returns) / len(returns)
    explained = 1 - sum(e**2 for e in errors) / len(errors) / variance
    assert first["explained_variance"] == pytest.approx(explained, abs=1e-4)
    for _ in range(15):
        last = train_step(engine, made.train, range(len(SAMPLES)))
    assert last["loss"] < 0.5 * first["loss"]


def test_samples_of_another_model_and_idle_options_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    row = {"prompt_id": 0, "sample": 0, "prompt_token_ids": [1], "token_ids": [99_999], "reward": 1.0}
    path = write_rows(tmp_path / "samples.jsonl", [row, {"prompt_id": 1}])
    config = stage_config(folder, "value", data={"train": [path]})
    with pytest.raises(DataError) as caught:
        work(config, load_tokenizer(config.model.path, None))
    assert "token 99999 is beyond the tokenizer's" in str(caught.value)
    assert "missing sample, prompt_token_ids" in str(caught.value)
    wrong = [
        {"token_ids": 5},
        {"token_ids": []},
        {"token_ids": [-1]},
        {"prompt_token_ids": [1.5]},
        {"reward": "high"},
        {"reward": math.nan},
        {"sample": [0]},
    ]
    write_rows(tmp_path / "samples.jsonl", [row | {"token_ids": [2]} | one for one in wrong])
    with pytest.raises(DataError, match=rf"{len(wrong)} bad rows of {len(wrong)} .*: {len(wrong)} wrong type"):
        work(config, load_tokenizer(config.model.path, None))
    table = {"run_dir": "r", "model": {"path": "m", "dtype": "float32"}}
    data = {"train": ["s.jsonl"], "decontaminate": {"against": ["e.jsonl"]}}
    with pytest.raises(ConfigError, match=r"data\.decontaminate does nothing with samples"):
        validate(Value, table | {"data": data}, "r")

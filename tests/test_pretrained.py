"""The saved folder is what `transformers` would have written: equal weights and answers, and all that goes along."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import FAMILIES, largest_difference, make_model, weights

from rlvr import distributed
from rlvr.config import Optimizer
from rlvr.engine import Engine
from rlvr.model import load_critic, load_policy
from rlvr.pretrained import save_pretrained
from sft_dpo.quickstart_task import train_tokenizer

CAUSAL = transformers.AutoModelForCausalLM


@pytest.fixture(scope="module", autouse=True)
def _process_group() -> None:
    distributed.start()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["some text"])


def engine_of(model: torch.nn.Module, dtype: str = "float32") -> Engine:
    return Engine("model", model, Optimizer(), zero_stage=1, dtype=dtype, total_updates=1)


def policy_of(path: str, dtype: str = "float32") -> Engine:
    return engine_of(load_policy(path, dtype=dtype, gradient_checkpointing=False, logits_chunk_tokens=None), dtype)


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 2, 7, 1, 3, 3, 8]])).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_this_family_is_loaded_as_it_was(
    family: str, dtype: str, tokenizer: Any, tmp_path: pathlib.Path
) -> None:
    path = make_model(tmp_path / "start", family)
    engine = policy_of(path, dtype)
    with torch.no_grad():
        for parameter in engine.engine.module.parameters():
            parameter.mul_(0.9)  # what is saved is what is there, not what was loaded
    save_pretrained(engine, tmp_path / "saved", tokenizer)
    loaded, found = CAUSAL.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(found.values())  # no weight is missing, unexpected or of another shape
    assert loaded.dtype == getattr(torch, dtype)
    assert largest_difference(dict(loaded.named_parameters()), weights(engine)) == 0.0
    expected = CAUSAL.from_pretrained(path, dtype=loaded.dtype)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(0.9)
    assert torch.equal(answers(loaded), answers(expected))


def test_files_are_as_large_as_asked_and_an_earlier_save_leaves_nothing(tokenizer: Any, tmp_path: pathlib.Path) -> None:
    engine = policy_of(make_model(tmp_path / "start"))
    folder = tmp_path / "saved"
    save_pretrained(engine, folder, tokenizer, max_shard_bytes=4000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        held = load_file(file)
        assert sum(weight.nbytes for weight in held.values()) <= 4000 or len(held) == 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights(engine).values())
    assert set(index["weight_map"]) == set(weights(engine))

    for size, names in ((2**30, ["model.safetensors"]), (4000, [file.name for file in files])):
        with torch.no_grad():
            engine.engine.module.transformer.lm_head.weight.add_(1.0)
        save_pretrained(engine, folder, tokenizer, max_shard_bytes=size)
        assert sorted(file.name for file in folder.glob("*.safetensors")) == names
        loaded = CAUSAL.from_pretrained(folder)
        assert largest_difference(dict(loaded.named_parameters()), weights(engine)) == 0.0


def test_tokenizer_template_and_generation_config_go_along(tokenizer: Any, tmp_path: pathlib.Path) -> None:
    start = pathlib.Path(make_model(tmp_path / "start"))
    # as some published models have it: `transformers` reads this with a warning, and refuses to write it
    (start / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [0, 5]}))
    save_pretrained(policy_of(str(start)), tmp_path / "saved", tokenizer)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "saved").temperature == 0.6
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [0, 5]
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read.chat_template == tokenizer.chat_template
    assert (read.eos_token, read.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


def test_a_critic_is_saved_as_a_sequence_classifier(tokenizer: Any, tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path / "start")
    options = {"dtype": "float32", "gradient_checkpointing": False, "generator": torch.Generator().manual_seed(0)}
    engine = engine_of(load_critic("policy", path, **options))
    save_pretrained(engine, tmp_path / "saved", tokenizer)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert largest_difference(dict(loaded.named_parameters()), weights(engine)) == 0.0
    assert loaded.config.architectures == ["LlamaForSequenceClassification"]

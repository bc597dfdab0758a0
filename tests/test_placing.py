"""Rank 0 alone reads what ZeRO-3 splits, and every rank gets the same weights, bit for bit."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_learner import start
from tiny import FAMILIES, make_model

from rlvr import distributed, placing
from rlvr.errors import ConfigError
from rlvr.model import DTYPES, load_critic, load_policy

WORKER = pathlib.Path(__file__).with_name("placing_worker.py")
CAUSAL, CLASSIFIER = transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("auto_class", [CAUSAL, CLASSIFIER])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_is_the_model_but_for_them(
    family: str, auto_class: Any, dtype: str, tmp_path: pathlib.Path
) -> None:
    path = make_model(tmp_path, family, kind="CausalLM" if auto_class is CAUSAL else "SequenceClassification")
    read = auto_class.from_pretrained(path, dtype=DTYPES[dtype])
    config = transformers.AutoConfig.from_pretrained(path)
    state = torch.random.get_rng_state()
    made = placing.without_weights(auto_class, config, dtype=DTYPES[dtype])
    assert torch.equal(state, torch.random.get_rng_state())
    assert [(n, p.shape, p.dtype) for n, p in made.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in read.named_parameters()
    ]
    assert all(p.untyped_storage().nbytes() <= 4 for p in made.parameters())  # one number each
    ours, theirs = dict(made.named_buffers()), dict(read.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        assert ours[name].dtype == buffer.dtype
        assert torch.equal(ours[name], buffer)


def untied(folder: pathlib.Path) -> str:
    """Weights whose config says that they are tied, and they are not: `transformers` leaves them apart."""
    path = make_model(folder, "Llama tied")
    held = load_file(folder / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + 1.0
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return path


def sharded(folder: pathlib.Path) -> str:
    CAUSAL.from_pretrained(make_model(folder / "whole", "Llama")).save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return str(folder)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("placing")
    found = {family: {"path": make_model(folder / family, family), "dtype": "float32"} for family in FAMILIES}
    llama, gemma = found["Llama"]["path"], found["Gemma2"]["path"]
    rewards = make_model(folder / "rewards", "Llama", kind="SequenceClassification")
    return found | {
        "many files": {"path": sharded(folder / "files"), "dtype": "float32"},
        "read in bfloat16": {"path": gemma, "dtype": "bfloat16"},
        "critic from the policy": {"path": llama, "critic": "policy", "dtype": "float32"},
        "critic from scratch": {"path": llama, "critic": "scratch", "dtype": "float32"},
        "critic from a reward model": {"path": llama, "critic": rewards, "dtype": "float32"},
        "not tied": {"path": untied(folder / "untied"), "dtype": "float32"},
    }


@pytest.fixture(scope="module")
def sent(cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the second rank was sent, which has read no weights."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}", str(WORKER)]
    return start([*torchrun, "{cases}", "{out}"], tmp_path_factory.mktemp("sent"), cases)


def read_whole(case: dict[str, str]) -> Any:
    options: dict[str, Any] = {"dtype": case["dtype"], "gradient_checkpointing": False}
    if "critic" in case:
        generator = torch.Generator().manual_seed(7)
        return load_critic(case["critic"], case["path"], generator=generator, **options).transformer
    return load_policy(case["path"], logits_chunk_tokens=None, **options).transformer


MORE = ["many files", "read in bfloat16", "critic from the policy", "critic from scratch", "critic from a reward model"]


@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_a_rank_that_reads_nothing_gets_the_weights_bit_for_bit(
    name: str, cases: dict[str, Any], sent: dict[str, Any]
) -> None:
    read = read_whole(cases[name])
    expected, found = dict(read.named_parameters()), sent[name]["weights"]
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        assert torch.equal(found[key], weight.float()), key
        # two ranks hold half each, rounded up
        assert sent[name]["parts"][f"transformer.{key}"] == (weight.numel() + 1) // 2
    buffers = dict(read.named_buffers())
    assert buffers.keys() == sent[name]["buffers"].keys()
    assert all(torch.equal(buffers[key], buffer) for key, buffer in sent[name]["buffers"].items())


def test_weights_that_are_not_what_the_config_says_stop_every_rank(sent: dict[str, Any]) -> None:
    assert len(sent["not tied"]) == 2
    assert all("lm_head.weight" in error and "tie_word_embeddings" in error for error in sent["not tied"])


def test_a_model_without_weights_is_never_taken_for_one_that_has_them(tmp_path: pathlib.Path) -> None:
    config = transformers.AutoConfig.from_pretrained(make_model(tmp_path))
    model = placing.without_weights(CAUSAL, config)
    with pytest.raises(ValueError, match="without weights"):
        placing.place(model, {"zero_optimization": {"stage": 2}})


def test_models_that_differ_in_order_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, mine[::-1]])
    with pytest.raises(ConfigError, match=r"0\.weight"):
        placing._refuse_other_shapes(model)

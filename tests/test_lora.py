"""Adapters: only they are trained, off they leave the reference, and merged they are what is synced and saved."""

from __future__ import annotations

import pathlib
from typing import Any

import peft
import pytest
import torch
import transformers
from tiny import FAMILIES, largest_difference, make_model, recipe, trajectories, weights

from rlvr import distributed
from rlvr.errors import ConfigError
from rlvr.learner import Learner
from rlvr.lora import adapted_layers
from rlvr.pretrained import save_pretrained
from sft_dpo.quickstart_task import train_tokenizer

LORA = {"model.lora": {"rank": 3, "alpha": 6.0}, "optimizer.learning_rate": 3e-2, "algorithm.epochs": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    distributed.start()
    return make_model(tmp_path_factory.mktemp("policy"), "Llama")


def learner_of(model: str, **options: Any) -> Learner:
    return Learner(recipe(model, LORA | options), total_updates=10)


def update(learner: Learner, step: int = 0) -> dict[str, float]:
    batch = trajectories(seed=step)
    targets, metrics = learner.targets(batch)
    return metrics | learner.update(batch, targets, step=step)


@pytest.mark.parametrize("stage", range(4))
def test_only_adapters_are_trained_and_merged_weights_move(stage: int, model: str) -> None:
    learner = learner_of(model, **{"learner.zero_stage": stage})
    start = dict(transformers.AutoModelForCausalLM.from_pretrained(model).named_parameters())
    before = weights(learner.policy)
    assert largest_difference(before, start) == 0.0  # B begins at 0
    update(learner)
    after = weights(learner.policy)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert moved == {name for name in after if name.split(".")[-2] in linear}
    trained = {n.rpartition(".lora_")[2] for n, p in learner.policy.engine.module.named_parameters() if p.requires_grad}
    assert trained == {"A.default.weight", "B.default.weight"}
    critic = [n for n, p in learner.critic.engine.module.named_parameters() if p.requires_grad and ".lora_" not in n]
    assert critic == ["transformer.score.weight"]


def test_a_merged_weight_is_its_own_plus_the_scaled_product(model: str) -> None:
    learner = learner_of(model, **{"learner.zero_stage": 0})
    update(learner)
    name = "model.layers.1.self_attn.q_proj"
    layer = adapted_layers(learner.policy.engine.module)[f"transformer.{name}"]
    # alpha / rank = 6 / 3 = 2
    expected = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(weights(learner.policy)[f"{name}.weight"], expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_the_merged_weights_answers_as_the_adapted_one(family: str, tmp_path: pathlib.Path) -> None:
    model = make_model(tmp_path, family)
    learner, plain = learner_of(model), Learner(recipe(model), total_updates=1)
    update(learner)
    merged = weights(learner.policy)
    assert largest_difference(merged, weights(plain.policy)) > 1e-2
    with torch.no_grad():
        for name, parameter in plain.policy.engine.module.transformer.named_parameters():
            parameter.copy_(merged[name])
    batch = trajectories(seed=5)
    ours, _ = learner.logprobs(batch, learner.rows(batch))
    theirs, _ = plain.logprobs(batch, plain.rows(batch))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_gradient_checkpointing_changes_nothing(stage: int, model: str) -> None:
    reached = []
    for checkpointing in (False, True):
        learner = learner_of(model, **{"learner.zero_stage": stage, "model.gradient_checkpointing": checkpointing})
        update(learner)
        reached.append(weights(learner.policy))
    assert largest_difference(*reached) < 1e-6
    assert (
        largest_difference(
            reached[0], dict(transformers.AutoModelForCausalLM.from_pretrained(model).named_parameters())
        )
        > 1e-3
    )


@pytest.mark.parametrize("stage", [1, 3])
def test_the_reference_is_the_policy_with_its_adapters_off(stage: int, model: str) -> None:
    learner = learner_of(model, **{"learner.zero_stage": stage})
    copied = Learner(recipe(model), total_updates=1)
    batch = trajectories(seed=7)
    expected, _ = copied.targets(batch)
    for step in range(2):
        reference, _ = learner.targets(batch)
        assert reference.reference_logprobs is not None
        assert expected.reference_logprobs is not None
        torch.testing.assert_close(reference.reference_logprobs, expected.reference_logprobs, rtol=0, atol=1e-5)
        update(learner, step)
    moved, _ = learner.targets(batch)
    assert (moved.old_logprobs - expected.old_logprobs).abs().max() > 1e-2
    trained = [p.requires_grad for n, p in learner.policy.engine.module.named_parameters() if ".lora_" in n]
    assert all(trained)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_holds_adapters_and_restores_them(stage: int, model: str, tmp_path: pathlib.Path) -> None:
    options = {"learner.zero_stage": stage}
    whole, second = learner_of(model, **options), learner_of(model, **options)
    update(whole, 0)
    whole.save(str(tmp_path))
    second.load(str(tmp_path))
    assert largest_difference(weights(whole.policy), weights(second.policy)) == 0.0
    assert update(whole, 1) == update(second, 1)
    assert largest_difference(weights(whole.critic), weights(second.critic)) == 0.0


@pytest.mark.parametrize("stage", [1, 3])
def test_the_saved_folder_is_merged_and_the_adapters_are_beside_it(
    stage: int, model: str, tmp_path: pathlib.Path
) -> None:
    learner = learner_of(model, **{"learner.zero_stage": stage})
    update(learner)
    save_pretrained(learner.policy, tmp_path, train_tokenizer(["some text"]))
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert largest_difference(dict(merged.named_parameters()), weights(learner.policy)) == 0.0
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 2, 7, 1]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=0, atol=1e-4)


def test_a_layer_that_is_not_there_is_a_config_error_that_names_those_that_are(model: str) -> None:
    with pytest.raises(ConfigError, match=r"query_key_value.*q_proj"):
        learner_of(model, **{"model.lora": {"rank": 2, "alpha": 2.0, "target_modules": ["query_key_value"]}})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model.lora": {"rank": 2, "alpha": 2.0, "target_modules": ["lm_head"]}}, "lm_head"),
        ({"critic.init": "scratch"}, "critic.init='scratch' with model.lora"),
        ({"learner.offload_reference": True}, "does nothing with model.lora"),
    ],
)
def test_what_adapters_cannot_be_combined_with_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recipe("unused", LORA | options)

"""Preference tuning: each loss against a slow one, in one forward or two, with a reference that is read once."""

from __future__ import annotations

import copy
import math
import pathlib
from typing import Any

import pytest
import torch
import transformers
from stage_tiny import PAIRS, make_folder, pair_row, table, write_rows
from tiny import largest_difference, make_model, weights

import sft_dpo.dpo
from rlvr import distributed
from rlvr.chat import load_tokenizer
from rlvr.engine import Engine
from rlvr.log import read_metrics
from sft_dpo import reference
from sft_dpo.config import Dpo, Preference
from sft_dpo.dpo import PreferenceTuning, answer_rewards, preference_loss, work
from sft_dpo.training import evaluate, run, train_step

LOSSES: dict[str, dict[str, Any]] = {
    "dpo_norm": {"loss": "dpo_norm"},
    "dpo": {"loss": "dpo", "beta": 0.1},
    "simpo": {"loss": "simpo", "beta": 2.0, "margin": 1.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    distributed.start()
    folder = tmp_path_factory.mktemp("dpo")
    make_folder(folder)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    for parameter in other.parameters():  # a reference that differs from the policy: log-ratios are not all 0
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    other.save_pretrained(folder / "other")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: pathlib.Path) -> Any:
    return load_tokenizer(str(folder / "model"), None)


def recipe(folder: pathlib.Path, preference: dict[str, Any], **more: Any) -> Dpo:
    if preference.get("loss") != "simpo":
        preference = {"reference_cache": str(folder / "cache"), **preference}
    return Dpo.model_validate(table(folder, preference=preference, **more))


def made(config: Dpo, tokenizer: Any) -> tuple[Engine, PreferenceTuning]:
    done = work(config, tokenizer)
    stage = config.learner.zero_stage
    engine = Engine("policy", done.model, config.optimizer, zero_stage=stage, dtype="float32", total_updates=9)
    done.train.before_first_update(engine)
    assert isinstance(done.train, PreferenceTuning)
    return engine, done.train


def slow_logprobs(model: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of each answer (chosen and rejected in turn), and its length, by `transformers` and a loop."""
    totals, lengths = [], []
    for row in (pair_row(*pair) for pair in PAIRS):
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template(row[side], return_dict=True)["input_ids"]
            asked = tokenizer.apply_chat_template(row[side][:1], add_generation_prompt=True, return_dict=True)
            start = len(asked["input_ids"])
            logprobs = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0], dim=-1)
            totals.append(sum(logprobs[i - 1, whole[i]] for i in range(start, len(whole))))
            lengths.append(float(len(whole) - start))
    return torch.stack(totals), torch.tensor(lengths), torch.arange(len(totals)) % 2


def slow_loss(folder: pathlib.Path, tokenizer: Any, preference: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """The mean loss, from the papers' formulas."""
    policy = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "other", dtype=torch.float32)
    logprobs, lengths, _ = slow_logprobs(policy, tokenizer)
    with torch.no_grad():
        references, _, _ = slow_logprobs(other, tokenizer)
    beta = preference.get("beta", 5.0)
    losses = []
    for k in range(len(PAIRS)):
        c, r = 2 * k, 2 * k + 1
        if preference["loss"] == "simpo":
            lead = beta / lengths[c] * logprobs[c] - beta / lengths[r] * logprobs[r] - preference["margin"]
        elif preference["loss"] == "dpo":
            lead = beta * ((logprobs[c] - references[c]) - (logprobs[r] - references[r]))
        else:
            lead = beta / lengths[c] * (logprobs[c] - references[c]) - beta / lengths[r] * (logprobs[r] - references[r])
        losses.append(torch.log(1 + torch.exp(-lead)))
    return torch.stack(losses).mean(), policy


def test_rewards_and_losses_by_hand() -> None:
    logprobs, references = torch.tensor([-4.0]), torch.tensor([-6.0])
    by_loss = {
        name: answer_rewards(logprobs, references, torch.tensor([4.0]), Preference(loss=name, beta=2.0)).item()  # type: ignore[arg-type]
        for name in ("dpo", "dpo_norm", "simpo")
    }
    assert by_loss == {"dpo": 4.0, "dpo_norm": 1.0, "simpo": -2.0}  # 2 x 2, 2 x 2 / 4, 2 x -4 / 4
    # a lead of 3 over a margin of 1: ln(1 + e^-2)
    assert preference_loss(torch.tensor([5.0]), torch.tensor([2.0]), 1.0).item() == pytest.approx(
        math.log1p(math.e**-2)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_and_the_update_equal_a_slow_one(folder: pathlib.Path, tokenizer: Any, name: str) -> None:
    preference = LOSSES[name]
    loss, plain = slow_loss(folder, tokenizer, preference)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0).step()
    of = {} if name == "simpo" else {"reference": str(folder / "other")}
    engine, objective = made(recipe(folder, preference | of), tokenizer)
    ours = train_step(engine, objective, range(len(PAIRS)))
    assert ours["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert ours["margin"] == pytest.approx(ours["reward_chosen"] - ours["reward_rejected"], abs=1e-5)
    start = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        logprobs, _, side = slow_logprobs(start, tokenizer)
    assert ours["logprob_chosen"] == pytest.approx(logprobs[side == 0].mean().item(), abs=1e-4)
    assert ours["logprob_rejected"] == pytest.approx(logprobs[side == 1].mean().item(), abs=1e-4)
    assert largest_difference(weights(engine), dict(plain.named_parameters())) < 1e-5


def test_separate_and_concatenated_forwards_in_any_rows_give_one_update(folder: pathlib.Path, tokenizer: Any) -> None:
    results = []
    for forwards, most, stage in (
        ("concatenated", 10_000, 0),
        ("concatenated", 1, 0),
        ("separate", 1, 0),
        ("separate", 40, 2),
    ):
        preference = {"reference": str(folder / "other"), "forwards": forwards}
        learner = {"max_tokens_per_micro_batch": most, "zero_stage": stage}
        engine, objective = made(recipe(folder, preference, learner=learner), tokenizer)
        if most == 1:  # a row holds one pair, or one answer
            assert len(objective.pack(range(6))) == {"concatenated": 6, "separate": 12}[forwards]
        held_out = evaluate(engine, objective, 4)
        metrics = train_step(engine, objective, range(6))
        assert {k: held_out[k] for k in ("loss", "margin")} == pytest.approx(
            {k: metrics[k] for k in ("loss", "margin")}, abs=1e-5
        )
        del metrics["tokens"]
        results.append((metrics, weights(engine)))
    for metrics, reached in results[1:]:
        assert metrics == pytest.approx(results[0][0], abs=1e-4)
        assert largest_difference(reached, results[0][1]) < 1e-5


def test_the_reference_is_the_policy_before_its_first_update(folder: pathlib.Path, tokenizer: Any) -> None:
    engine, objective = made(recipe(folder, {}), tokenizer)
    first = train_step(engine, objective, range(6))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # no lead yet
    assert first["reward_chosen"] == pytest.approx(0.0, abs=1e-5)
    later = train_step(engine, objective, range(6))
    assert later["margin"] > 0.1
    assert later["accuracy"] > 0.5


def test_reference_logprobs_are_computed_once_for_each_model_data_and_template(
    folder: pathlib.Path, tokenizer: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = {"reference_cache": str(tmp_path / "cache")}

    def outcome(config: Dpo, spoken: Any = tokenizer) -> str:
        made(config, spoken)
        return capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2]

    config = recipe(folder, cache)
    assert outcome(config) == "computed"
    assert outcome(config) == "from the cache"
    assert outcome(recipe(folder, cache | {"beta": 1.0})) == "from the cache"  # it does not depend on the loss
    assert outcome(recipe(folder, cache | {"reference": str(folder / "other")})) == "computed"
    other_rows = write_rows(tmp_path / "rows.jsonl", [pair_row(*row) for row in PAIRS[:5]])
    assert outcome(recipe(folder, cache, data={"train": [other_rows]})) == "computed"
    spoken = copy.deepcopy(tokenizer)
    spoken.chat_template = spoken.chat_template.replace("<|user|>", "<|system|>")
    assert outcome(config, spoken) == "computed"
    assert outcome(config) == "from the cache"


def test_the_key_of_a_reference_names_what_changed(
    folder: pathlib.Path, tokenizer: Any, tmp_path: pathlib.Path
) -> None:
    pairs = made(recipe(folder, LOSSES["simpo"]), tokenizer)[1].pairs
    keys = [
        reference.inputs(str(folder / model), dtype, template, pairs)
        for model, dtype, template in (
            ("model", "float32", "t"),
            ("other", "float32", "t"),
            ("model", "bfloat16", "t"),
            ("model", "float32", "u"),
        )
    ]
    changed = [[name for name in keys[0] if key[name] != keys[0][name]] for key in keys[1:]]
    assert changed == [["model"], ["dtype"], ["template"]]
    one = make_model(tmp_path / "one", seed=1)
    assert reference.model_hash(one) != reference.model_hash(make_model(tmp_path / "two", seed=2))


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_reference_of_its_own_is_freed_before_the_first_update(
    zero_stage: int, folder: pathlib.Path, tokenizer: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    alive: list[Any] = []
    load = sft_dpo.dpo.load_policy

    def watched(path: str, **options: Any) -> Any:
        model = load(path, **options)
        if path.endswith("other"):
            alive.append(weakref.ref(model))
            assert sum(parameter.numel() for parameter in model.parameters()) > 1000
        return model

    monkeypatch.setattr(sft_dpo.dpo, "load_policy", watched)
    own = {"reference": str(folder / "other"), "reference_cache": str(tmp_path)}
    _, tuning = made(recipe(folder, own, learner={"zero_stage": zero_stage}), tokenizer)
    (left,) = (model() for model in alive)
    assert left is None or zero_stage == 3
    for parameter in () if left is None else left.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.ds_tensor.untyped_storage().nbytes() == 0
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "other", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(tuning.references, slow_logprobs(plain, tokenizer)[0], rtol=0, atol=1e-4)


def test_a_run_prefers_the_chosen_answers_and_logs_how_far(folder: pathlib.Path, tokenizer: Any) -> None:
    data = {"eval": [str(folder / "pairs.jsonl")]}
    saved = folder / "saved"
    config = recipe(folder, {}, run_dir=str(saved), data=data, training={"epochs": 6, "examples_per_step": 3})
    run(config, work, recipe_text="", resume=False, leave=False)
    log = read_metrics(saved / "metrics.jsonl")
    assert log[0]["eval/pairs/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["eval/pairs/accuracy"] == 1.0
    assert log[-1]["eval/pairs/margin"] > 0.5
    trained = transformers.AutoModelForCausalLM.from_pretrained(saved / "model", dtype=torch.float32)
    start = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        after, lengths, _ = slow_logprobs(trained, tokenizer)
        before, _, _ = slow_logprobs(start, tokenizer)
    ratios = (after - before) / lengths
    assert (ratios[::2] > ratios[1::2]).all()

"""The recipe's options: Tülu 3's values as defaults, and combinations that are refused."""

from __future__ import annotations

import json
import typing
from typing import Any

import pydantic
import pytest

from rlvr.config import Algorithm, Config
from sft_dpo.config import Preferences, Sft, Value

LEAST: dict[str, Any] = {
    "run_dir": "runs/x",
    "model": {"path": "owner/name", "dtype": "float32"},
    "data": {"train": "rows.jsonl"},
    "rollout": {"prompts_per_step": 4},
    "training": {"steps": 2},
}


def config(**sections: Any) -> Config:
    table = {
        name: value | sections.pop(name, {}) if isinstance(value, dict) else value for name, value in LEAST.items()
    }
    return Config.model_validate_json(json.dumps(table | sections))


def problems(**sections: Any) -> list[str]:
    with pytest.raises(pydantic.ValidationError) as caught:
        config(**sections)
    (error,) = caught.value.errors()
    return error["ctx"]["problems"]


def test_defaults_are_those_of_tulu_3_table_21() -> None:
    made = config()
    algorithm, optimizer = made.algorithm, made.optimizer
    assert (algorithm.gamma, algorithm.gae_lambda, algorithm.clip_ratio, algorithm.value_coefficient) == (
        1,
        0.95,
        0.2,
        0.1,
    )
    assert (algorithm.epochs, algorithm.minibatches, algorithm.kl_coefficient) == (4, 1, 0.05)
    assert (algorithm.kl_estimator, algorithm.kl_placement, algorithm.whitened) == ("k1", "reward", True)
    assert (algorithm.advantage, algorithm.loss, algorithm.loss_aggregation) == ("gae", "ppo", "token")
    assert (algorithm.clip_ratio_high, algorithm.dual_clip, algorithm.corrects_importance) == (None, None, False)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_ratio) == (3e-7, "linear", 0.0)
    assert (optimizer.max_gradient_norm, optimizer.weight_decay) == (1.0, 0.01)
    assert (made.reward.verification_reward, made.reward.no_eos_score) == (10.0, -10.0)
    assert (made.rollout.temperature, made.rollout.max_tokens, made.data.max_prompt_tokens) == (1.0, 2048, 2048)
    assert (made.seed, made.rollout.samples_per_prompt) == (3, 1)


def test_a_verifier_may_not_be_slower_than_the_limit_for_ranks_that_hang() -> None:
    (problem,) = problems(verification={"timeout_seconds": 60.0}, training={"stall_timeout_seconds": 60.0})
    assert problem.startswith("verification.timeout_seconds=60 is not below training.stall_timeout_seconds=60")


@pytest.mark.parametrize(
    ("learner", "refused"),
    [
        ({"offload_optimizer": True, "zero_stage": 0}, "offload_optimizer=true needs split state"),
        ({"offload_parameters": True, "zero_stage": 2}, "zero_stage=2: only stage 3 splits weights"),
        ({"offload_parameters": True}, "zero_stage=1: only stage 3 splits weights"),
    ],
)
def test_what_cannot_be_offloaded_is_refused_in_every_stage_of_training(learner: dict[str, Any], refused: str) -> None:
    (problem,) = problems(learner=learner)
    assert refused in problem
    with pytest.raises(pydantic.ValidationError, match=refused):
        Sft.model_validate({name: LEAST[name] for name in ("run_dir", "model", "data")} | {"learner": learner})


def test_offloading_a_reference_that_is_not_there_is_refused() -> None:
    (problem,) = problems(learner={"offload_reference": True}, algorithm={"kl_coefficient": 0.0})
    assert "offload_reference=true does nothing with algorithm.kl_coefficient=0" in problem
    with pytest.raises(pydantic.ValidationError, match="offload_reference=true does nothing in this stage"):
        Sft.model_validate(
            {name: LEAST[name] for name in ("run_dir", "model", "data")} | {"learner": {"offload_reference": True}}
        )


def test_every_offload_that_works_is_taken() -> None:
    for stage in (1, 2, 3):
        assert config(learner={"zero_stage": stage, "offload_optimizer": True, "offload_reference": True})
    assert config(learner={"zero_stage": 3, "offload_parameters": True})


def test_adapters_where_nothing_is_trained_are_refused() -> None:
    model = {"path": "m", "dtype": "float32", "lora": {"rank": 2, "alpha": 4.0}}
    table = {"run_dir": "o", "model": model, "data": {"train": "t.jsonl"}, "rollout": LEAST["rollout"]}
    with pytest.raises(pydantic.ValidationError, match=r"model\.lora does nothing in this stage"):
        Preferences.model_validate(table | {"rollout": {"prompts_per_step": 4, "samples_per_prompt": 4}})
    with pytest.raises(pydantic.ValidationError, match=r"init='scratch' with model\.lora"):
        Value.model_validate({"run_dir": "o", "model": model, "data": {"train": "t.jsonl"}, "init": "scratch"})


def test_the_defaults_of_sft_are_those_of_tulu_3_table_11() -> None:
    made = Sft.model_validate_json(
        '{"run_dir": "o", "model": {"path": "m", "dtype": "float32"}, "data": {"train": "t.jsonl"}}'
    )
    assert (made.optimizer.learning_rate, made.optimizer.schedule, made.optimizer.warmup_ratio) == (
        5e-6,
        "linear",
        0.03,
    )
    assert (made.optimizer.weight_decay, made.data.max_tokens) == (0.0, 4096)
    assert (made.training.epochs, made.training.examples_per_step) == (2, 128)


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        ("a.jsonl", ["a.jsonl"]),
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["a.jsonl", {"path": "b.parquet", "count": 3}], ["a.jsonl", "b.parquet"]),
    ],
)
def test_rows_may_be_one_path_or_a_list_of_paths_and_tables(written: Any, paths: list[str]) -> None:
    assert [source.path for source in config(data={"train": written}).data.train] == paths


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("rollout", {"temperature": 0.0}),
        ("rollout", {"temperature": True}),
        ("rollout", {"max_tokens": 0}),
        ("rollout", {"max_tokens": 12.0}),
        ("sampler", {"gpu_memory_utilization": 0.0}),
        ("optimizer", {"beta1": 1.0}),
        ("optimizer", {"beta2": 1.0}),
        ("optimizer", {"learning_rate": "3e-7"}),
        ("reward", {"no_eos_score": "none"}),
        ("learner", {"zero_stage": 4}),
        ("algorithm", {"kl_estimator": "k4"}),
        ("algorithm", {"gamma": 1.1}),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(section: str, values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        config(**{section: values})


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        config(reward={"verification_reward": float("nan")})


def test_a_config_cannot_be_changed_after_it_is_made() -> None:
    with pytest.raises(pydantic.ValidationError):
        config().rollout.temperature = 0.5  # type: ignore[misc]


def test_more_minibatches_than_samples_are_impossible() -> None:
    assert problems(algorithm={"minibatches": 5}) == [
        "algorithm.minibatches=5 is more than the 4 samples of a step "
        "(rollout.prompts_per_step x rollout.samples_per_prompt): lower it"
    ]
    assert config(algorithm={"minibatches": 4}).algorithm.minibatches == 4


def test_bfloat16_without_zero_is_refused_for_every_stage_of_training() -> None:
    (problem,) = problems(model={"dtype": "bfloat16"}, learner={"zero_stage": 0})
    assert problem.startswith("model.dtype='bfloat16' with learner.zero_stage=0")
    assert config(model={"dtype": "bfloat16"}, learner={"zero_stage": 1}).learner.zero_stage == 1
    with pytest.raises(pydantic.ValidationError, match="contradictions"):
        Sft.model_validate_json(
            '{"run_dir": "o", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "learner": {"zero_stage": 0}}'
        )


@pytest.mark.parametrize("name", ["kl_estimator", "kl_placement"])
def test_options_of_a_kl_term_that_is_switched_off_are_refused(name: str) -> None:
    value = {"kl_estimator": "k3", "kl_placement": "loss"}[name]
    (problem,) = problems(algorithm={"kl_coefficient": 0.0, name: value})
    assert f"algorithm.{name}='{value}' does nothing with kl_coefficient=0" in problem


GROUPED: dict[str, Any] = {"prompts_per_step": 4, "samples_per_prompt": 2}


def test_each_advantage_is_whitened_as_it_is_defined() -> None:
    whitened = {
        name: config(rollout=GROUPED, algorithm={"advantage": name}).algorithm.whitened
        for name in typing.get_args(Algorithm.model_fields["advantage"].annotation)
    }
    assert whitened == {
        "gae": True,
        "grpo": False,
        "dr_grpo": False,
        "rloo": False,
        "reinforce_plus_plus": True,
        "reinforce_plus_plus_baseline": True,
    }
    assert not config(algorithm={"whiten_advantages": False}).algorithm.whitened


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"algorithm": {"advantage": "grpo"}, "critic": {"init": "scratch"}},
            "critic.init does nothing with algorithm.advantage='grpo', which has no critic: remove it",
        ),
        (
            {"algorithm": {"advantage": "rloo"}, "critic": {"optimizer": {"learning_rate": 1e-3}}},
            "critic.optimizer does nothing with algorithm.advantage='rloo', which has no critic: remove it",
        ),
        (
            {"algorithm": {"advantage": "reinforce_plus_plus", "gae_lambda": 0.9}},
            "algorithm.gae_lambda does nothing with algorithm.advantage='reinforce_plus_plus', which has no critic: "
            "remove it",
        ),
        (
            {"algorithm": {"advantage": "grpo", "gamma": 0.9}},
            "algorithm.gamma=0.9 does nothing with algorithm.advantage='grpo': remove it",
        ),
        (
            {"algorithm": {"advantage": "grpo"}, "rollout": {"prompts_per_step": 4}},
            "algorithm.advantage='grpo' compares the samples of one prompt: set rollout.samples_per_prompt to 2 or "
            "more",
        ),
        (
            {"algorithm": {"advantage": "dr_grpo", "whiten_advantages": True}},
            "algorithm.advantage='dr_grpo' is defined without whitening over the batch: remove "
            "algorithm.whiten_advantages=true, or set algorithm.advantage to 'reinforce_plus_plus_baseline', the one "
            "that whitens",
        ),
        (
            {"algorithm": {"advantage": "reinforce_plus_plus_baseline", "whiten_advantages": False}},
            "algorithm.advantage='reinforce_plus_plus_baseline' is defined with whitening over the batch: remove "
            "algorithm.whiten_advantages=false, or set algorithm.advantage to 'dr_grpo'",
        ),
        (
            {"algorithm": {"loss": "cispo", "dual_clip": 3.0}},
            "algorithm.dual_clip=3 belongs to algorithm.loss='ppo': remove it",
        ),
        (
            {"rollout": GROUPED | {"drop_groups_without_signal": True}},
            "rollout.drop_groups_without_signal with algorithm.advantage='gae' would leave out samples that it learns "
            "from: remove it",
        ),
        (
            {"algorithm": {"advantage": "grpo"}, "rollout": GROUPED | {"refill_rounds": 3}},
            "rollout.refill_rounds=3 does nothing without rollout.drop_groups_without_signal=true: set it, or remove "
            "refill_rounds",
        ),
        (
            {"reward": {"overlong_penalty": 1.0}},
            "reward.overlong_penalty does nothing without reward.overlong_tokens: set it, or remove the penalty",
        ),
        (
            {"reward": {"overlong_tokens": [2048, 4096]}},
            "reward.overlong_tokens=[2048, 4096] does nothing: no completion is longer than rollout.max_tokens=2048",
        ),
        (
            {"reward": {"overlong_tokens": [1024, 1024]}},
            "reward.overlong_tokens=[1024, 1024]: the punishment must end after it begins",
        ),
        (
            {"reward": {"overlong_tokens": [1024, 2048], "overlong_penalty": 0.0}},
            "reward.overlong_tokens=[1024, 2048] does nothing with reward.overlong_penalty=0: remove both",
        ),
        (
            {"algorithm": {"importance_mask": [0.5, 5.0], "old_logprobs": "sampler"}},
            "algorithm.importance_mask=[0.5, 5.0] does nothing with old_logprobs='sampler', whose ratio is to the "
            "sampler already: remove it, or set algorithm.old_logprobs='learner'",
        ),
        (
            {"algorithm": {"importance_level": "sequence"}},
            "algorithm.importance_level='sequence' does nothing without importance_cap or importance_mask: set one, "
            "or remove it",
        ),
        (
            {"algorithm": {"importance_mask": [1.5, 5.0]}},
            "algorithm.importance_mask=[1.5, 5.0] must hold 1, the ratio of equal policies, inside",
        ),
        (
            {"algorithm": {"importance_mask": [0.5, 2.0], "importance_cap": 2.0}},
            "algorithm.importance_cap=2 does nothing with importance_mask=[0.5, 2.0], which drops what is above it: "
            "remove the cap, or lower it",
        ),
    ],
)
def test_options_of_another_objective_are_refused(sections: dict[str, Any], problem: str) -> None:
    assert problems(**({"rollout": GROUPED} | sections)) == [problem]


def test_a_written_config_of_another_objective_is_a_valid_recipe() -> None:
    """It has every option, those of the critic too, at their defaults."""
    made = config(rollout=GROUPED, algorithm={"advantage": "grpo", "importance_mask": [0.5, 5.0]})
    assert Config.model_validate_json(made.model_dump_json()) == made


def test_options_of_an_evaluation_that_never_happens_are_refused() -> None:
    assert problems(training={"evaluate_every": 5}) == [
        "training.evaluate_every=5 does nothing without data.eval: remove one"
    ]
    off = {"samples_per_prompt": 8, "enabled": False}
    assert problems(data={"eval": "held.jsonl"}, evaluation=off, training={"evaluate_every": 5}) == [
        "training.evaluate_every=5 does nothing with evaluation.enabled=false: remove one",
        "evaluation.samples_per_prompt=8 does nothing with evaluation.enabled=false: remove one",
    ]
    assert config(data={"eval": "held.jsonl"}, training={"evaluate_every": 5}).training.evaluate_every == 5


APART = {"mode": "disaggregated", "learner_ranks": 1, "sampler_ranks": 2}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"placement": {"sampler_ranks": 2}}, "does nothing with placement.mode='colocated'"),
        (
            {"placement": {"mode": "disaggregated", "learner_ranks": 1}},
            "needs placement.learner_ranks and",
        ),
        ({"placement": APART, "sampler": {"tensor_parallel_size": 3}}, "=3 does not divide placement.sampler_ranks=2"),
        (
            {"placement": APART | {"learner_ranks": 2, "share_gpus": True}, "sampler": {"tensor_parallel_size": 2}},
            "share_gpus=true gives each sampler the GPU of one learner",
        ),
        ({"placement": APART, "sampler": {"sleep": False}}, "sampler.sleep=false does nothing"),
        ({"placement": {"share_gpus": True}}, "share_gpus=True does nothing with placement.mode='colocated'"),
        (
            {"placement": APART | {"learner_ranks": 1, "sampler_ranks": 2, "share_gpus": True}},
            "each sampler shares the GPU of one learner",
        ),
        ({"placement": APART, "asynchronous": {"max_staleness": 0, "recompute_kv_cache": True}}, "no sample is unfin"),
        ({"placement": APART, "asynchronous": {"max_staleness": 1}}, "learns from samples of older weights"),
        ({"asynchronous": {"max_staleness": 0}}, "asynchronous needs placement.mode='disaggregated'"),
    ],
)
def test_placements_that_cannot_be_and_options_without_effect_are_refused(
    sections: dict[str, Any], problem: str
) -> None:
    (found,) = problems(**sections)
    assert problem in found


def test_sampling_ahead_with_an_importance_weight_is_a_valid_recipe() -> None:
    made = config(placement=APART, asynchronous={"max_staleness": 2}, algorithm={"importance_cap": 2.0})
    assert Config.model_validate_json(made.model_dump_json()) == made

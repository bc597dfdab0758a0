"""From completions to rewards by the real verifier pool: +10, 0, the score of a completion without EOS, or nothing."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rlvr.config import Config, Reward
from rlvr.errors import IndeterminateError
from rlvr.records import Completion, Prompt, Scored, Stop, Task
from rlvr.reward import Scorer, reward_metrics, score, start_pool
from verifiers import registry
from verifiers.base import Outcome, Verdict
from verifiers.errors import UnknownVerifierError

PLUGIN = """
from verifiers.registry import register

@register("breaks")
def breaks(completion, ground_truth):
    raise RuntimeError("out of order")

@register("half")
def half(completion, ground_truth):
    return 0.5

@register("always")
def always(completion, ground_truth):
    return True
"""
RECIPE: dict[str, Any] = {
    "run_dir": "runs/x",
    "model": {"path": "owner/name", "dtype": "float32"},
    "data": {"train": "rows.jsonl"},
    "rollout": {"prompts_per_step": 4},
    "training": {"steps": 2},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    plugin = tmp_path_factory.mktemp("plugins") / "plugin.py"
    plugin.write_text(PLUGIN)
    before = dict(registry._registered)
    yield Config.model_validate(RECIPE | {"plugins": [str(plugin)]})
    registry._registered.clear()  # other tests see only their own plugins
    registry._registered.update(before)


def verifying(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"verification": config.verification.model_copy(update=changes)})


def completion(text: str, *tasks: tuple[str, Any], number: int = 0, stop: Stop = Stop.EOS) -> Completion:
    return Completion(
        prompt=Prompt(
            prompt_id=number,
            token_ids=(1,),
            text="1 + 2?",
            tasks=tuple(Task(verifier=name, ground_truth=truth) for name, truth in tasks),
        ),
        sample=0,
        place=2 * number,
        token_ids=(1, 2),
        logprobs=(-0.5, -0.5),
        text=text,
        stop=stop,
        policy_version=0,
    )


def judged(config: Config, completions: Sequence[Completion]) -> list[Scored]:
    names = {task.verifier for one in completions for task in one.prompt.tasks}
    with start_pool(config, names) as pool:
        scorer = Scorer(pool, config.reward, config.verification.remap)
        for index in reversed(range(len(completions))):  # they finish in any order
            scorer.submit(index, completions[index])
        return scorer.collect()


def test_the_rule_of_tulu_3_through_real_verifiers(config: Config) -> None:
    math3, says3 = ("math", "3"), "The answer is 3."
    scored = judged(
        config,
        [
            completion(says3, math3),
            completion("The answer is 4.", math3),
            completion(says3, math3, stop=Stop.LENGTH),
            completion("The answer is 4.", math3, stop=Stop.LENGTH),
            completion(says3, math3, ("length", {"max": 2})),
            completion(says3, math3, ("half", None)),
            completion(says3, math3, ("breaks", None)),
            completion(says3, ("breaks", None), stop=Stop.LENGTH),
        ],
    )
    # right 10 x 1; wrong 0; without EOS the score is replaced by -10, right or wrong; of two verifiers the mean
    # counts: 10 x (1 + 0) / 2 and 10 x (1 + 0.5) / 2; a verifier that fails leaves no reward, EOS or not
    assert [one.reward for one in scored] == [10.0, 0.0, -10.0, -10.0, 5.0, 7.5, None, None]
    assert [one.score for one in scored] == [1.0, 0.0, 1.0, 0.0, 0.5, 0.75, None, None]
    assert [verdict.outcome for verdict in scored[6].verdicts] == [Outcome.CORRECT, Outcome.INDETERMINATE]
    assert "out of order" in scored[6].verdicts[1].detail


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Reward(no_eos_score=0.0), 0.0),  # Tülu 3.1
        (Reward(no_eos_score="keep"), 10.0),
        (Reward(no_eos_score="keep", verification_reward=1.0), 1.0),
        (Reward(no_eos_score=-3.0, verification_reward=1.0), -3.0),
    ],
)
def test_the_score_without_eos_is_an_option_and_is_not_weighted(reward: Reward, expected: float) -> None:
    cut = completion("The answer is 3.", ("math", "3"), stop=Stop.LENGTH)
    assert score(cut, (Verdict.correct(),), reward).reward == expected
    assert score(cut, (Verdict.correct(),), reward).score == 1.0


def test_a_remap_judges_rows_of_one_verifier_by_another(config: Config) -> None:
    remapped = verifying(config, remap={"MATH": "Always"})
    (scored,) = judged(remapped, [completion("The answer is 4.", ("math", "3"))])
    assert scored.reward == 10.0


def test_a_verifier_given_by_file_may_have_capitals_in_its_path(config: Config, tmp_path: pathlib.Path) -> None:
    (tmp_path / "Mine.py").write_text("def Yes(completion, ground_truth):\n    return True\n")
    name = f"{tmp_path / 'Mine.py'}:Yes"
    remapped = verifying(config, remap={"math": name})
    (scored,) = judged(remapped, [completion("The answer is 4.", ("math", "3"))])
    assert scored.reward == 10.0


def test_options_of_the_recipe_reach_the_pool(config: Config) -> None:
    changed = verifying(config, options={"Length": {"unit": "characters"}})
    limited = completion("twelve chars", ("length", {"max": 5}))
    assert [judged(made, [limited])[0].reward for made in (config, changed)] == [10.0, 0.0]


def test_an_unknown_verifier_stops_the_run_before_its_first_sample(config: Config) -> None:
    with pytest.raises(UnknownVerifierError, match="Did you mean 'math'"):
        start_pool(config, ["mth"])


def test_metrics_of_a_step_by_verifier(config: Config) -> None:
    right, wrong = "The answer is 3.", "The answer is 4."
    scored = judged(
        config,
        [
            completion(right, ("math", "3"), number=1),
            completion(wrong, ("math", "3"), number=1),
            completion(right, ("math", "3"), number=2),
            completion(right, ("math", "3"), number=2),
            completion(right, ("half", None), number=3),
            completion(right, ("breaks", None), number=3),
        ],
    )
    # five rewards: 10, 0, 10, 10, 5. Groups 2 and 3 (one reward is left of two) give no signal, group 1 does.
    metrics = reward_metrics(scored, max_indeterminate_share=0.2)
    assert metrics == {
        "reward/mean": 7.0,
        "reward/math": 7.5,
        "reward/half": 5.0,
        "verifier/math/indeterminate": 0,
        "verifier/half/indeterminate": 0,
        "verifier/breaks/indeterminate": 1.0,  # all of its verdicts, one
        "verifier/math/correct": 0.75,
        "verifier/half/correct": 0.0,
        "rollout/groups_without_signal": pytest.approx(2 / 3),
        "rollout/groups_under_two_known": pytest.approx(1 / 3),
        "rollout/groups_all_correct": pytest.approx(1 / 3),
        "rollout/groups_all_wrong": 0.0,
    }


@pytest.mark.parametrize(("tokens", "expected"), [(2, 10.0), (4, 10.0), (5, 9.0), (8, 6.0), (9, 6.0)])
def test_a_completion_loses_reward_in_a_straight_line_between_two_lengths(tokens: int, expected: float) -> None:
    # 4 at most from 4 to 8 tokens: 1 a token
    reward = Reward(overlong_tokens=(4, 8), overlong_penalty=4.0, no_eos_score="keep")
    one = dataclasses.replace(completion("x"), token_ids=(1,) * tokens, logprobs=(-1.0,) * tokens)
    assert score(one, (Verdict.correct(),), reward).reward == pytest.approx(expected)
    assert score(one, (Verdict.correct(),), reward).score == 1.0


def test_the_score_of_a_completion_without_eos_is_replaced_before_it_is_punished_for_its_length() -> None:
    one = completion("x", stop=Stop.LENGTH)  # 2 tokens: half way
    reward = Reward(overlong_tokens=(1, 3), overlong_penalty=4.0, no_eos_score=-10.0)
    assert score(one, (Verdict.correct(),), reward).reward == -12.0
    assert score(one, (Verdict.indeterminate("?"),), reward).reward is None


def test_too_many_indeterminate_verdicts_stop_the_run_and_say_why(config: Config) -> None:
    broken = completion("x", ("breaks", None))
    right = completion("The answer is 3.", ("math", "3"))
    scored = judged(config, [broken, broken, right, right, right])
    with pytest.raises(IndeterminateError) as caught:
        reward_metrics(scored, max_indeterminate_share=0.39)
    text = str(caught.value)
    assert text.startswith(
        "2 of 5 verdicts of this step are indeterminate (40.0%, limit reward.max_indeterminate_share=0.39): breaks: "
    )
    assert "out of order" in text
    assert "(2 times)" in text
    assert reward_metrics(scored, max_indeterminate_share=0.4)["reward/mean"] == 10.0


def test_a_step_of_which_nothing_is_left_has_no_mean(config: Config) -> None:
    metrics = reward_metrics(judged(config, [completion("x", ("breaks", None))]), max_indeterminate_share=1.0)
    assert math.isnan(metrics["reward/mean"])
    assert metrics["rollout/groups_without_signal"] == metrics["rollout/groups_under_two_known"] == 1.0
    assert metrics["verifier/breaks/indeterminate"] == 1

"""`trl`: reward functions in TRL's calling convention."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from verifiers.base import Outcome, Sample
from verifiers.errors import PluginError, VerifierOptionError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec
from verifiers.trl_adapter import TrlVerifier

REWARDS = pathlib.Path(__file__).with_name("acceptance") / "trl_rewards.py"


def verifier(function: str, **options: Any) -> TrlVerifier:
    built = TrlVerifier.from_options({"function": function, **options})
    assert isinstance(built, TrlVerifier)
    return built


def test_every_argument_is_a_list_of_one_under_its_column_name(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "f.py"
    file.write_text(
        "def reward(prompts, completions, **columns):\n"
        "    assert prompts == ['2 + 2?'] and completions == ['4'], (prompts, completions)\n"
        "    assert columns == {'solution': ['4'], 'level': [3], 'tags': [['a', 'b']]}, columns\n"
        "    return [1.0]\n"
    )
    sample = Sample(completion="4", ground_truth="4", prompt="2 + 2?", columns={"level": 3, "tags": ["a", "b"]})
    verdict = verifier(f"{file}:reward", ground_truth_column="solution").verify(sample)
    assert verdict.outcome is Outcome.CORRECT, verdict.detail


def test_messages_are_given_where_the_function_expects_them(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "f.py"
    file.write_text(
        "def reward(prompts, completions):\n"
        "    return [float(prompts == [[{'role': 'user', 'content': 'hi'}]]\n"
        "            and completions == [[{'role': 'assistant', 'content': 'yo'}]])]\n"
    )
    sample = Sample(completion="yo", ground_truth=None, prompt="hi")
    assert verifier(f"{file}:reward", conversational=True).verify(sample).outcome is Outcome.CORRECT
    assert verifier(f"{file}:reward").verify(sample).outcome is Outcome.WRONG


def test_none_is_indeterminate_and_never_a_zero() -> None:
    verdict = verifier(f"{REWARDS}:graded").verify(Sample(completion="none", ground_truth=None))
    assert (verdict.outcome, verdict.detail) == (Outcome.INDETERMINATE, "the reward function returned None")


def test_rewards_are_scaled_from_their_stated_range() -> None:
    scaled = verifier(f"{REWARDS}:graded", minimum=-1.0, maximum=2.0)
    scores = [scaled.verify(Sample(completion=text, ground_truth=None)).score for text in ("bad", "fair", "good")]
    assert scores == [0.0, 0.5, 1.0]  # (-1 + 1) / 3, (0.5 + 1) / 3, (2 + 1) / 3
    outside = verifier(f"{REWARDS}:graded").verify(Sample(completion="good", ground_truth=None))
    assert outside.outcome is Outcome.INDETERMINATE
    assert "2.0 lies outside 0 to 1" in outside.detail


def test_it_runs_in_a_worker() -> None:
    spec = VerifierSpec(name="trl", options={"function": f"{REWARDS}:matches_answer", "ground_truth_column": "answer"})
    with VerifierPool({"trl": spec}) as pool:
        for key, completion in enumerate(["4", "5"]):
            pool.submit(key, "trl", Sample(completion=completion, ground_truth="4"))
        verdicts = dict(pool.wait())
    assert [verdicts[key].outcome for key in (0, 1)] == [Outcome.CORRECT, Outcome.WRONG]


@pytest.mark.parametrize(
    ("function", "options", "error"),
    [
        (f"{REWARDS}:absent", {}, PluginError),
        (f"{REWARDS}:__doc__", {}, PluginError),
        ("json:dumps_nothing", {}, PluginError),
        ("json:loads", {"minimum": 1.0}, VerifierOptionError),
        ("math:hypot", {}, PluginError),
        ("json:detect_encoding", {}, VerifierOptionError),
    ],
)
def test_what_is_not_a_reward_function_is_refused_when_it_is_built(
    function: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        verifier(function, **options)


def test_a_column_that_the_function_needs_and_the_row_has_not_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("def reward(completions, answer, level=1, **columns): return [1.0]\n")
    verdict = verifier(f"{file}:reward").verify(Sample(completion="4", ground_truth="4"))
    assert verdict.outcome is Outcome.INDETERMINATE
    assert "needs 'answer'" in verdict.detail
    assert "ground_truth_column (now 'ground_truth')" in verdict.detail
    named = verifier(f"{file}:reward", ground_truth_column="answer")
    assert named.verify(Sample(completion="4", ground_truth="4")).outcome is Outcome.CORRECT

"""The numbers of an evaluation: pass@k, its interval, and what indeterminate verdicts do to both."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.evaluate import Graded, _grade, _summary, mean_and_half_width, pass_at_k
from rlvr.records import Completion, Prompt, Scored, Stop, Task
from verifiers.base import Outcome, Verdict


def test_pass_at_k_by_hand() -> None:
    # 5 samples, 2 correct, choose 3: all wrong in C(3,3) = 1 of C(5,3) = 10 choices
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(1, 1, 1) == 1.0


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_choices_with_a_correct_sample(drawn: tuple[int, int, int]) -> None:
    samples, correct, k = drawn
    choices = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20))
def test_the_interval_is_that_of_the_standard_error(values: list[float]) -> None:
    mean, half_width = mean_and_half_width(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert half_width == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    mean, half_width = mean_and_half_width([0.5])
    assert mean == 0.5
    assert math.isnan(half_width)
    assert all(math.isnan(x) for x in mean_and_half_width([]))


PROMPT = Prompt(
    prompt_id=1,
    token_ids=(1,),
    text="?",
    tasks=(Task(verifier="math", ground_truth="1"), Task(verifier="exact", ground_truth="1")),
)


def scored(*outcomes: Outcome) -> Scored:
    completion = Completion(
        prompt=PROMPT, sample=0, place=0, token_ids=(1,), logprobs=(-1.0,), text="1", stop=Stop.EOS, policy_version=0
    )
    scores = {Outcome.CORRECT: 1.0, Outcome.WRONG: 0.0, Outcome.INDETERMINATE: 0.0}
    verdicts = tuple(Verdict(outcome=o, score=scores[o], detail="", seconds=0.0) for o in outcomes)
    return Scored(completion=completion, verdicts=verdicts, score=None, reward=None)


def test_a_sample_is_correct_only_by_all_its_verifiers_and_undecided_by_any() -> None:
    right, wrong, unknown = Outcome.CORRECT, Outcome.WRONG, Outcome.INDETERMINATE
    sampled = [scored(right, right), scored(right, wrong), scored(wrong, unknown), scored(right, right)]
    graded = _grade(PROMPT, sampled, scored(right, unknown))
    assert graded == Graded(verifier="math+exact", correct=2, judged=3, greedy=None)
    assert _grade(PROMPT, sampled, scored(right, wrong)).greedy is False
    assert _grade(PROMPT, sampled, scored(right, right)).greedy is True


def test_a_summary_by_hand() -> None:
    graded = [
        Graded(verifier="math", correct=1, judged=4, greedy=True),
        Graded(verifier="math", correct=0, judged=2, greedy=False),  # two indeterminate
        Graded(verifier="math", correct=0, judged=0, greedy=None),  # all four indeterminate
    ]
    metrics = _summary("eval/x", graded, 4)
    assert metrics["eval/x/prompts"] == 3
    assert metrics["eval/x/pass_at_1"] == pytest.approx((0.25 + 0.0) / 2)
    assert metrics["eval/x/pass_at_4"] == pytest.approx((1.0 + 0.0) / 2)
    assert metrics["eval/x/pass_at_1_greedy"] == pytest.approx(0.5)
    assert metrics["eval/x/indeterminate"] == (0 + 2 + 4) / 12
    # 0.25 and 0: s = 0.176777; 1.96 x 0.176777 / sqrt(2) = 0.245
    assert metrics["eval/x/pass_at_1_ci95"] == pytest.approx(0.245, abs=1e-4)

"""`combine`: all, any or the weighted mean, with three-valued logic."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from verifiers.base import Outcome, Sample, Verdict
from verifiers.combine import CombineVerifier, _combined
from verifiers.errors import UnknownVerifierError, VerifierOptionError

CORRECT, WRONG, UNKNOWN = Verdict.correct(), Verdict.wrong(), Verdict.indeterminate("")


def possible_outcomes(mode: str, verdicts: tuple[Verdict, ...]) -> set[bool]:
    """Every answer that the whole could have, trying both answers for each indeterminate part: the slow way."""
    answers = [
        {Outcome.CORRECT: [True], Outcome.WRONG: [False], Outcome.INDETERMINATE: [True, False]}[verdict.outcome]
        for verdict in verdicts
    ]
    return {any(world) if mode == "any" else all(world) for world in itertools.product(*answers)}


@pytest.mark.parametrize("mode", ["all", "any"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_whole_is_indeterminate_exactly_when_an_indeterminate_part_decides_it(mode: str, count: int) -> None:
    for verdicts in itertools.product([CORRECT, WRONG, UNKNOWN], repeat=count):
        _, outcome = _combined(mode, [1.0] * count, verdicts)
        possible = possible_outcomes(mode, verdicts)
        expected = (
            Outcome.INDETERMINATE if len(possible) == 2 else Outcome.CORRECT if possible == {True} else Outcome.WRONG
        )
        assert outcome is expected, verdicts


def test_a_weighted_score_is_the_mean_with_weights() -> None:
    # (3 x 1 + 1 x 0) / 4 = 0.75; (3 x 0.5 + 1 x 1) / 4 = 0.625
    assert _combined("weighted", [3.0, 1.0], [CORRECT, WRONG]) == (0.75, Outcome.WRONG)
    assert _combined("weighted", [3.0, 1.0], [Verdict.wrong(score=0.5), CORRECT]) == (0.625, Outcome.WRONG)
    assert _combined("weighted", [0.1, 0.2, 0.7], [CORRECT] * 3) == (1.0, Outcome.CORRECT)
    assert _combined("weighted", [1.0, 1.0], [CORRECT, UNKNOWN])[1] is Outcome.INDETERMINATE


def test_a_part_that_raises_is_indeterminate_and_named() -> None:
    options: dict[str, Any] = {"verifiers": [{"name": "exact"}, {"name": "regex"}]}
    verdict = CombineVerifier.from_options(options).verify(Sample(completion="(", ground_truth="("))
    assert verdict.outcome is Outcome.INDETERMINATE
    assert "exact correct" in verdict.detail
    assert "regex indeterminate (GroundTruthError: verifier 'regex' cannot compile '('" in verdict.detail


def test_a_gold_completion_satisfies_every_part_or_is_not_given() -> None:
    parts = [{"name": "length", "ground_truth_key": "l"}, {"name": "exact", "ground_truth_key": "e"}]
    verifier = CombineVerifier.from_options({"verifiers": parts})
    assert verifier.gold_completion({"l": {"max": 2}, "e": "blue whale"}) == "blue whale"
    assert verifier.gold_completion({"l": {"max": 1}, "e": "blue whale"}) is None


@pytest.mark.parametrize("options", [{}, {"verifiers": []}, {"verifiers": [{"name": "exact", "weight": 0.0}]}])
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(VerifierOptionError):
        CombineVerifier.from_options(options)


def test_unknown_parts_and_their_options_are_refused_when_it_is_built() -> None:
    with pytest.raises(UnknownVerifierError):
        CombineVerifier.from_options({"verifiers": [{"name": "exakt"}]})
    with pytest.raises(VerifierOptionError, match="ExactVerifier: mod"):
        CombineVerifier.from_options({"verifiers": [{"name": "exact", "options": {"mod": 1}}]})

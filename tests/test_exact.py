"""`exact`: equal strings, equal after normalisation, the same option letter."""

from __future__ import annotations

import string
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError, VerifierOptionError
from verifiers.exact import ExactVerifier, find_choice, normalise


def judge(completion: str, ground_truth: Any, **options: Any) -> Outcome:
    verifier = ExactVerifier.from_options(options)
    return verifier.verify(Sample(completion=completion, ground_truth=ground_truth)).outcome


def slow_letter(statement: str, choices: str) -> str | None:
    """A second way to read "The answer is X.": the one token that is a choice, if there is exactly one."""
    tokens = statement.replace("(", " ").replace(")", " ").replace(".", " ").replace(",", " ").replace("/", " ").split()
    found = [token for token in tokens if len(token) == 1 and token in choices]
    return found[0] if len(set(found)) == 1 else None


@pytest.mark.parametrize("join", [", ", " or ", "/", " and ", ") or ("])
@pytest.mark.parametrize("letters", ["B", "AB", "BB", "ABCDE", "DC"])
def test_a_stated_choice_agrees_with_a_slow_reading_of_its_letters(join: str, letters: str) -> None:
    statement = (
        f"The answer is ({join.join(letters)})." if join.startswith(")") else f"The answer is {join.join(letters)}."
    )
    expected = slow_letter(statement.removeprefix("The answer is"), "ABCDE")
    assert find_choice(statement, "ABCDE")[0] == (expected or "")


@hypothesis.given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_and_spacing_and_case_do_not_count(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"  {text}\n") == once


@hypothesis.given(st.text(alphabet=string.ascii_letters + " .-5", min_size=1, max_size=12))
def test_a_completion_is_correct_in_mode_string_exactly_when_the_trimmed_texts_are_equal(text: str) -> None:
    for ground_truth in (text, text.swapcase(), text + "x", "x " + text):
        if ground_truth.strip():
            equal = bool(text.strip()) and text.strip() == ground_truth.strip()
            assert (judge(text, ground_truth) is Outcome.CORRECT) == equal


@hypothesis.given(st.text(max_size=60), st.sampled_from(["string", "normalised", "choice"]))
def test_any_text_gets_a_verdict_in_every_mode(text: str, mode: str) -> None:
    assert judge(text, "B", mode=mode) in {Outcome.CORRECT, Outcome.WRONG}


@pytest.mark.parametrize(
    "options", [{}, {"mode": "normalised"}, {"take": "boxed"}, {"take": "after_marker"}, {"take": "last_line"}]
)
@pytest.mark.parametrize("ground_truth", ["Paris", "42", ["x y", "z"]])
def test_its_gold_completion_is_correct(options: dict[str, Any], ground_truth: Any) -> None:
    gold = ExactVerifier.from_options(options).gold_completion(ground_truth)
    assert gold is not None
    assert judge(gold, ground_truth, **options) is Outcome.CORRECT


@pytest.mark.parametrize("letter", ["A", "(b)", "E."])
def test_the_gold_completion_of_a_choice_is_correct(letter: str) -> None:
    verifier = ExactVerifier.from_options({"mode": "choice"})
    assert judge(verifier.gold_completion(letter), letter, mode="choice") is Outcome.CORRECT


@pytest.mark.parametrize("ground_truth", [None, 5, "", " ", [], ["x", 5], {"a": 1}])
def test_an_unreadable_ground_truth_is_an_error_that_shows_it(ground_truth: Any) -> None:
    with pytest.raises(GroundTruthError, match=r"needs .*; got"):
        ExactVerifier().check_ground_truth(ground_truth)


@pytest.mark.parametrize(
    "options", [{"choices": "abc"}, {"choices": "AA"}, {"choices": "A"}, {"marker": " "}, {"mode": "fuzzy"}]
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(VerifierOptionError):
        ExactVerifier.from_options(options)

"""`regex`, `json_schema` and `length`."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from verifiers.base import Outcome, Sample, Verifier
from verifiers.errors import GroundTruthError, VerifierOptionError
from verifiers.text_rules import JsonSchemaVerifier, LengthVerifier, RegexVerifier, read_json


def judge(verifier: type[Verifier], completion: str, ground_truth: Any, **options: Any) -> Outcome:
    return verifier.from_options(options).verify(Sample(completion=completion, ground_truth=ground_truth)).outcome


@hypothesis.given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_literal_pattern_matches_exactly_the_texts_that_contain_it(literal: str, around: str) -> None:
    for completion in (around + literal + around, around):
        expected = bool(completion.strip()) and literal in completion
        if literal.strip():
            assert (judge(RegexVerifier, completion, re.escape(literal)) is Outcome.CORRECT) == expected


def test_the_last_capture_decides_and_the_group_called_answer_is_preferred() -> None:
    pattern = r"(?:x|y)=(?P<unit>\w)?(?P<answer>\d+)"
    assert judge(RegexVerifier, "x=a1 y=b2", "2", pattern=pattern) is Outcome.CORRECT
    assert judge(RegexVerifier, "x=a1 y=b2", "1", pattern=pattern) is Outcome.WRONG
    assert judge(RegexVerifier, "x=a1 y=b2", "b", pattern=pattern) is Outcome.WRONG


def test_a_pattern_without_a_group_is_refused_when_it_is_an_option_and_reported_when_it_is_a_row() -> None:
    with pytest.raises(VerifierOptionError, match="has no group"):
        RegexVerifier.from_options({"pattern": r"\d+"})
    with pytest.raises(VerifierOptionError, match="cannot compile"):
        RegexVerifier.from_options({"pattern": "("})
    with pytest.raises(GroundTruthError, match="cannot compile"):
        RegexVerifier().check_ground_truth("(")
    RegexVerifier.from_options({"pattern": r"(\d+)"}).check_ground_truth("(")  # text to compare, not a pattern


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@hypothesis.given(JSON_VALUES)
def test_any_json_value_is_read_back_and_satisfies_its_own_const(value: Any) -> None:
    text = json.dumps(value)
    assert read_json(text) == value
    assert judge(JsonSchemaVerifier, text, {"const": value}) is Outcome.CORRECT
    assert judge(JsonSchemaVerifier, f"```json\n{text}\n```", {"const": value}) is Outcome.CORRECT
    assert judge(JsonSchemaVerifier, f"{text} {text}", {}) is Outcome.WRONG


def test_a_schema_agrees_with_a_check_written_by_hand() -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 1, "uniqueItems": True}
    for value in ([2], [2, 3], [], [1], [2, 2], [2, "3"], [2.5], [2.0], {"0": 2}, 2, [[2]], [True]):
        by_hand = (
            isinstance(value, list)
            and len(value) >= 1
            and all(
                not isinstance(x, bool) and isinstance(x, int | float) and x == math.floor(x) and x >= 2 for x in value
            )
            and len(set(map(str, value))) == len(value)
        )
        assert (judge(JsonSchemaVerifier, json.dumps(value), schema) is Outcome.CORRECT) == by_hand, value


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "NaN", "-Infinity", "[" * 100_000, "1 2", "", "9" * 5000, "{'a': 1}"]
)
def test_what_is_not_standard_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_json(text)


def test_a_schema_gives_its_first_example_as_gold() -> None:
    schema = {"type": "integer", "examples": [7, 8]}
    verifier = JsonSchemaVerifier()
    assert verifier.gold_completion(schema) == "7"
    assert verifier.gold_completion(json.dumps({"const": "x"})) == '"x"'
    assert verifier.gold_completion({"type": "integer"}) is None


@hypothesis.given(
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=12), st.integers(1, 10), st.integers(0, 6)
)
def test_words_between_the_bounds_are_correct_and_no_others(words: list[str], minimum: int, more: int) -> None:
    completion = " \n".join(words)
    bounds = {"min": minimum, "max": minimum + more}
    counted = 0  # the slow way: count the changes from white space to text
    for before, character in zip(" " + completion, completion, strict=False):
        counted += before.isspace() and not character.isspace()
    expected = minimum <= counted <= minimum + more
    assert (judge(LengthVerifier, completion, bounds) is Outcome.CORRECT) == expected


def test_tokens_are_those_that_were_sampled() -> None:
    verifier = LengthVerifier.from_options({"unit": "tokens", "maximum": 4})
    outcomes = [
        verifier.verify(Sample(completion="a b c d e f", ground_truth=None, completion_tokens=count)).outcome
        for count in (4, 5, None)
    ]
    assert outcomes == [Outcome.CORRECT, Outcome.WRONG, Outcome.INDETERMINATE]


@pytest.mark.parametrize("ground_truth", [{"min": 3}, {"min": 2, "max": 2}, None])
def test_the_gold_completion_has_the_shortest_length_allowed(ground_truth: Any) -> None:
    for unit in ("words", "characters"):
        gold = LengthVerifier.from_options({"unit": unit}).gold_completion(ground_truth)
        assert gold is not None
        assert judge(LengthVerifier, gold, ground_truth, unit=unit) is Outcome.CORRECT

"""The 25 constraints of Tülu 3: correct verdicts by default, the original's under `compat`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError, VerifierError
from verifiers.ifeval.tulu3 import FUNCTIONS, KNOWN_ARGUMENTS, Tulu3IFEvalVerifier, read_constraint

DEFAULT = Tulu3IFEvalVerifier()
COMPAT = Tulu3IFEvalVerifier.from_options({"compat": True})
C, W, INDETERMINATE = Outcome.CORRECT, Outcome.WRONG, "raises"

# function, arguments, completion, verdict by default, verdict of the original
CASES = [
    ("verify_keywords", {"keyword_list": ["Cat", "sea salt"]}, "A cat likes sea\nsalt.", C, W),  # a line break inside
    ("verify_keywords", {"keyword_list": ["cat"]}, "Concatenate them.", W, C),
    ("verify_keywords", {"keyword_list": ["cat", "dog"]}, "A cat.", W, W),
    ("verify_keyword_frequency", {"word": "hi", "N": 3}, "Hi, hi! HI.", C, C),
    ("verify_keyword_frequency", {"word": "hi", "N": 3}, "hi hi his", W, W),
    ("verify_keyword_frequency", {"word": "ice-cream", "N": 2}, "Ice-cream and ice-cream.", C, W),
    ("verify_keyword_frequency", {"word": "C++", "N": 1}, "I like C++ a lot", C, W),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate them.", C, W),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "The Cat sat.", W, W),
    ("verify_letter_frequency", {"letter": "e", "N": 3}, "Every eel", W, C),  # E, e, e, e are four
    ("verify_letter_frequency", {"letter": "e", "N": 2}, "eel", C, C),
    ("validate_response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", C, C),
    ("validate_response_language", {"language": "German"}, "This is plainly an English sentence.", W, W),
    (
        "validate_response_language",
        {"language": "zh"},
        "今天天气很好，我们去公园散步。",
        C,
        W,
    ),  # "zh-cn" to the original
    ("validate_response_language", {"language": "en"}, "12345", W, INDETERMINATE),
    ("verify_paragraph_count", {"N": 2}, "One.\n* * *\nTwo.", C, C),
    ("verify_paragraph_count", {"N": 2}, "One.\n* * *\n", W, W),
    ("validate_word_constraint", {"N": 10, "quantifier": "around"}, "a b c d e f g h i", C, C),  # 10 - 1
    ("validate_word_constraint", {"N": 10, "quantifier": "around"}, "a b c d e f g h", W, W),
    ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "- - -", W, C),
    ("validate_word_constraint", {"N": 2, "quantifier": "at most"}, "one two three", W, W),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "at least"}, "Go! Run! Now!", C, W),
    ("verify_sentence_constraint", {"N": 1, "quantifier": "at most"}, "Ask Dr. Meyer, e.g. on Monday.", C, C),
    ("verify_sentence_constraint", {"N": 1, "quantifier": "at most"}, "Go! Run! Now!", W, C),
    ("validate_paragraphs", {"N": 2, "first_word": "The", "i": 2}, "One.\n\nThe end.", C, C),
    ("validate_paragraphs", {"N": 2, "first_word": "The", "i": 2}, "One.\n\nTheory.", W, C),
    ("validate_paragraphs", {"N": 2, "first_word": "the", "i": 1}, "\n\n**The** one.\n\n\nTwo.", C, W),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Dear Ann, all is well.\n\nP.S. Write soon.", C, C),
    ("verify_postscript", {"postscript_marker": "P.S."}, "P.S. Write soon.", W, C),
    ("verify_postscript", {"postscript_marker": "P.S."}, "All is well. P.S.", W, W),
    ("validate_placeholders", {"N": 2}, "Dear [name], meet at [place].", C, C),
    ("validate_placeholders", {"N": 2}, "Dear Ann,", W, C),  # the original's tuple is always true
    ("validate_placeholders", {"N": 2}, "[] [ ]", W, C),
    ("verify_bullet_points", {"N": 2}, "Two things:\n* one\n- two", C, C),
    ("verify_bullet_points", {"N": 1}, "**Bold** text\n* one", C, W),
    ("verify_bullet_points", {"N": 2}, "a\n* * *\n-5 degrees", W, C),
    ("validate_title", {}, "<<A title>>\ntext", C, C),
    ("validate_title", {}, "<<>> text", W, C),
    ("validate_choice", {"options": ["yes", "no", "no opinion"]}, "Yes.", C, W),
    ("validate_choice", {"options": ["yes", "no", "no opinion"]}, "I have no opinion on that.", C, W),
    ("validate_choice", {"options": ["yes", "no"]}, "e", W, C),
    ("validate_choice", {"options": ["yes", "no"]}, "yes or no", W, W),
    ("validate_choice", {"options": "yes/no"}, "no", C, W),  # the original tries the letters of the text
    ("validate_highlighted_sections", {"N": 2}, "*one* and **two words**", C, C),
    ("validate_highlighted_sections", {"N": 2}, "**one** only", W, C),
    ("validate_highlighted_sections", {"N": 1}, "2 * 3 * 4", W, C),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Section 1\nIt began.\nSection 2\nIt ended.", C, C),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Intro.\n# Section 1\nA.\n# Section 2\nB.", C, W),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Section 1\nSection 2", W, C),
    ("validate_json_format", {}, '{"a": [1, 2]}', C, C),
    ("validate_json_format", {}, "7", W, C),
    ("validate_json_format", {}, "[NaN]", W, C),
    ("validate_json_format", {}, "{'a': 1}", W, W),
    ("validate_repeat_prompt", {"original_prompt": "Say hi."}, "Say hi. Hi there!", C, C),
    ("validate_repeat_prompt", {"original_prompt": "Say hi."}, "Say hi.", W, C),
    ("validate_two_responses", {}, "One way.\n******\nAnother way.", C, C),
    ("validate_two_responses", {}, "******One way.", W, C),
    ("validate_two_responses", {}, "Same.\n******\nsame.", W, C),
    ("validate_uppercase", {}, "HELLO THERE!", C, C),
    ("validate_uppercase", {}, "123 !", W, C),
    ("validate_uppercase", {}, "HELLO there", W, W),
    ("validate_lowercase", {}, "hello there", C, C),
    ("validate_lowercase", {}, "你好", W, C),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "NASA and ESA", C, C),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "I am A", W, C),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "around"}, "NASA, ESA, CNES", C, W),
    ("validate_end", {"end_phrase": "The end."}, "It was so. The end.\n", C, W),
    ("validate_end", {"end_phrase": "end"}, "It did bend", W, C),
    ("validate_quotation", {}, '"All of it."', C, C),
    ("validate_quotation", {}, '"', W, C),
    ("validate_quotation", {}, "“All of it.”\n", C, W),
    ("validate_no_commas", {}, "None at all.", C, C),
    ("validate_no_commas", {}, "One, two.", W, W),
    ("validate_no_commas", {}, "一，二", W, C),
]
ARGUMENTS = {
    "N": 2,
    "quantifier": "at most",
    "end_phrase": "x",
    "keyword_list": ["x"],
    "word": "x",
    "forbidden_words": ["x"],
    "letter": "x",
    "i": 1,
    "first_word": "x",
    "postscript_marker": "P.S.",
    "options": ["x"],
    "section_splitter": "Section",
    "original_prompt": "x",
    "language": "en",
}


def row(name, arguments):
    """As in the public rows: a JSON string with every unused argument null."""
    return json.dumps({"func_name": name} | dict.fromkeys(KNOWN_ARGUMENTS) | arguments)


def outcome(verifier, name, arguments, completion):
    try:
        return verifier.verify(Sample(completion=completion, ground_truth=row(name, arguments))).outcome
    except VerifierError:
        return INDETERMINATE


@pytest.mark.parametrize(("name", "arguments", "completion", "default", "compat"), CASES)
def test_the_verdict_is_what_the_constraint_says_and_compat_is_what_the_original_said(
    name, arguments, completion, default, compat
):
    assert outcome(DEFAULT, name, arguments, completion) == default
    assert outcome(COMPAT, name, arguments, completion) == compat


def test_the_cases_cover_every_function_both_ways():
    for name in FUNCTIONS:
        assert {case[3] for case in CASES if case[0] == name} == {C, W}, name


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("completion", ["", " ", "\n\t\n"])
def test_an_empty_completion_never_passes(name, completion):
    arguments = {key: ARGUMENTS[key] for key in read_constraint(row(name, ARGUMENTS)).arguments}
    assert outcome(DEFAULT, name, arguments, completion) is W


def test_an_empty_completion_passes_the_original_where_it_did():
    names = ("validate_no_commas", "validate_uppercase", "validate_choice", "validate_placeholders", "validate_title")
    passed = set()
    for name in names:
        arguments = {key: ARGUMENTS[key] for key in read_constraint(row(name, ARGUMENTS)).arguments}
        if outcome(COMPAT, name, arguments, "") is C:
            passed.add(name)
    assert passed == set(names) - {"validate_title"}


def test_a_mapping_and_its_json_give_the_same_verdict():
    truth = {"func_name": "verify_bullet_points", "N": 2, "word": None}
    for ground_truth in (truth, json.dumps(truth), truth | {"N": 2.0}):
        assert DEFAULT.verify(Sample(completion="* a\n* b", ground_truth=ground_truth)).outcome is C


@pytest.mark.parametrize(
    "ground_truth",
    [
        None,
        7,
        "",
        "not json",
        "[]",
        "{}",
        {"func_name": 3},
        {"func_name": "no_such"},
        {"func_name": "validate_end"},
        {"func_name": "validate_end", "end_phrase": " "},
        {"func_name": "verify_bullet_points", "N": "2"},
        {"func_name": "verify_bullet_points", "N": -1},
        {"func_name": "verify_bullet_points", "N": True},
        {"func_name": "verify_letter_frequency", "letter": "ab", "N": 1},
        {"func_name": "verify_keywords", "keyword_list": []},
        {"func_name": "validate_word_constraint", "N": 3, "quantifier": "exactly"},
        {"func_name": "validate_paragraphs", "N": 2, "i": 3, "first_word": "x"},
        {"func_name": "validate_title", "colour": "red"},
        {"func_name": "validate_response_language", "language": "Klingon"},
    ],
)
def test_an_unreadable_ground_truth_is_an_error_that_says_what_to_do(ground_truth):
    for verifier in (DEFAULT, COMPAT):
        with pytest.raises(GroundTruthError, match="Fix the row or remove it"):
            verifier.check_ground_truth(ground_truth)
        with pytest.raises(GroundTruthError):
            verifier.verify(Sample(completion="x", ground_truth=ground_truth))


def test_the_language_verdict_does_not_depend_on_what_was_judged_before():
    text = "No Mas Tal Ve"  # short and ambiguous: unseeded, the detector changes its mind
    verdicts = {outcome(DEFAULT, "validate_response_language", {"language": "es"}, text) for _ in range(20)}
    assert len(verdicts) == 1


@given(st.text(max_size=200), st.sampled_from(FUNCTIONS))
def test_any_text_gets_a_verdict(text, name):
    arguments = {key: ARGUMENTS[key] for key in read_constraint(row(name, ARGUMENTS)).arguments}
    assert outcome(DEFAULT, name, arguments, text) in (C, W)

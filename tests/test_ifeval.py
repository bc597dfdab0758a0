"""The `ifeval` verifier: ground truths, modes, scores, and verdicts on cases worked out by hand."""

import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ifeval_corpus import SHARED

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError, VerifierOptionError
from verifiers.ifeval import IFEvalVerifier
from verifiers.ifeval.ifeval import INSTRUCTION_TYPES, score_benchmark
from verifiers.ifeval.instruction import judge, variants
from verifiers.ifeval.text_units import detect_language, split_sentences

VERIFIER = IFEvalVerifier()

# instruction, kwargs, a response that follows it, one that does not
CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "DOGS concatenate", "cats only"),
    ("keywords:existence", {"keywords": ["C++"]}, "I like C++.", "I like C."),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Seaside sea", "The sea"),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, "The sea", "sea, sea"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "A Cat."),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, "Ee, e", "ee"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# #", "# x"),
    ("language:response_language", {"language": "de"}, "Das ist ein deutscher Satz.", "This is an English sentence."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two!", "A! B? C."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "well-known man", "well-known"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "a\n\nSo, b",
        "a\n\nSome b",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] [b\n]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. x", "Bye. PS x"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S x", "Bye. P.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "** a\n- b"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* *b*", "*a* * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1 a PART2 b",
        "Part 1 PART 2",
    ),
    ("detectable_format:json_format", {}, "```json\n{}\n```", "{'a': 1}"),
    ("detectable_format:title", {}, "<<a>>", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, 'Bye. "any questions?"', "Any questions? No."),
    ("startend:quotation", {}, ' "a" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "NASA went",
        "I AM",
    ),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCE.", "This IS AN ENGLISH SENTENCE."),
    ("change_case:english_lowercase", {}, "this is an english sentence.", "das ist ein deutscher satz."),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


def truth(*instructions):
    return {"instruction_id": [name for name, _ in instructions], "kwargs": [kwargs for _, kwargs in instructions]}


def verdict(completion, *instructions, **options):
    verifier = IFEvalVerifier.from_options(options)
    return verifier.verify(Sample(completion=completion, ground_truth=truth(*instructions)))


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_each_instruction_tells_a_response_that_follows_from_one_that_does_not(name, kwargs, good, bad):
    assert verdict(good, (name, kwargs)).outcome is Outcome.CORRECT
    assert verdict(bad, (name, kwargs)).outcome is Outcome.WRONG


def test_the_cases_cover_the_25_instruction_types():
    assert {case[0] for case in CASES} == set(INSTRUCTION_TYPES)
    assert len(INSTRUCTION_TYPES) == 25


@pytest.mark.parametrize("name", INSTRUCTION_TYPES)
def test_an_empty_completion_never_passes(name):
    kwargs = next(case[1] for case in CASES if case[0] == name)
    for mode in ("strict", "loose"):
        for completion in ("", " \n\t"):
            assert verdict(completion, (name, kwargs), mode=mode).outcome is Outcome.WRONG


def test_all_instructions_must_hold_or_the_mean_is_the_score():
    three = (("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}))
    assert verdict('"A plain reply."', *three).score == 0.0
    partial = verdict('"A plain reply."', *three, score="mean")
    assert partial.score == pytest.approx(2 / 3)
    assert partial.outcome is Outcome.WRONG
    assert "detectable_format:title" in partial.detail
    assert verdict('"<<Title>>"', *three, score="mean").outcome is Outcome.CORRECT


def test_loose_mode_forgives_an_opening_line_a_closing_line_and_asterisks():
    instruction = ("startend:quotation", {})
    for completion in ('Sure!\n"x"', '"x"\nBye', 'Sure!\n"x"\nBye', '**"x"**', 'Sure!\n*"x"*\nBye'):
        assert verdict(completion, instruction).outcome is Outcome.WRONG
        assert verdict(completion, instruction, mode="loose").outcome is Outcome.CORRECT
    assert verdict('Sure!\nSo:\n"x"', instruction, mode="loose").outcome is Outcome.WRONG
    assert len(variants("a*\nb\nc", "loose")) == 8 - 2  # "b\nc" and "b" have no asterisk to lose


def test_the_four_benchmark_scores_count_prompts_and_instructions():
    both = truth(("punctuation:no_comma", {}), ("startend:quotation", {}))
    one = truth(("startend:quotation", {}))
    scores = score_benchmark(VERIFIER, [(both, '"a"'), (both, "a"), (one, 'Sure!\n"a"'), (one, "")])
    assert (scores.prompt_strict, scores.prompt_loose) == (1 / 4, 2 / 4)
    assert (scores.instruction_strict, scores.instruction_loose) == (3 / 6, 4 / 6)
    assert (scores.rows, scores.instructions) == (4, 6)
    with pytest.raises(ValueError, match="at least one row"):
        score_benchmark(VERIFIER, [])


def test_every_published_form_of_a_ground_truth_is_read():
    row = {
        "instruction_id": ["keywords:existence", "punctuation:no_comma"],
        "kwargs": [{"keywords": ["x"], "letter": None}, None],
    }
    benchmark_row = {"instruction_id_list": row["instruction_id"], "kwargs": row["kwargs"]}
    for form in (row, [row], json.dumps(row), json.dumps([row]), repr(row), repr([row]), benchmark_row):
        assert [instruction.id for instruction in VERIFIER.read(form)] == row["instruction_id"]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        3,
        "",
        "nope(",
        "[]",
        {},
        {"instruction_id": [], "kwargs": []},
        {"instruction_id": ["punctuation:no_comma"], "kwargs": [{}, {}]},
        {"instruction_id": ["no:such"], "kwargs": [{}]},
        {"instruction_id": ["keywords:existence"], "kwargs": [{}]},
        {"instruction_id": ["keywords:existence"], "kwargs": [3]},
        {"instruction_id": ["keywords:existence"], "kwargs": [{"keywords": "x"}]},
        {"instruction_id": ["punctuation:no_comma"], "kwargs": [{"colour": 1}]},
        {"instruction_id": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "about"}]},
        {"instruction_id": ["length_constraints:number_words"], "kwargs": [{"num_words": -3, "relation": "at least"}]},
        {
            "instruction_id": ["length_constraints:nth_paragraph_first_word"],
            "kwargs": [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "x"}],
        },
        "__import__('os').system('true')",
    ],
)
def test_an_unreadable_ground_truth_is_an_error_that_says_what_to_do(bad):
    with pytest.raises(GroundTruthError, match="Fix the row or remove it"):
        VERIFIER.check_ground_truth(bad)


def test_unknown_options_are_refused():
    for options in ({"modes": "loose"}, {"mode": "lax"}, {"score": "sum"}, {"guard": 3}):
        with pytest.raises(VerifierOptionError):
            IFEvalVerifier.from_options(options)


def test_the_package_loads_neither_nltk_nor_langdetect_until_they_are_needed():
    names = ("nltk", "langdetect", "verifiers.ifeval.ifeval")
    code = f"import sys, verifiers.ifeval; print([name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_sentences_end_where_the_reference_ends_them():
    assert split_sentences("Dr. Meyer, of the U.S. survey, left. Why? Ha!") == [
        "Dr. Meyer, of the U.S. survey, left.",
        "Why?",
        "Ha!",
    ]
    assert split_sentences("Let it be x. And then y.") == ["Let it be x.", "And then y."]
    assert split_sentences("J. K. Rowling wrote it.") == ["J. K. Rowling wrote it."]


def test_the_detected_language_does_not_depend_on_earlier_calls():
    text = "No Mas Tal Ve"
    first = detect_language(text)
    for other in ("Guten Tag zusammen", "bonjour tout le monde"):
        detect_language(other)
        assert detect_language(text) == first
    assert detect_language("?!") is None


HOSTILE = (
    "[" * 20000,
    "<" * 20000,
    "\n" * 20000 + "x",
    " " * 20000 + "x",
    "*" * 20000,
    "P.S. " * 4000,
    "A. " * 6000,
    "<<" * 9000,
    "[" * 9000 + "]" * 9000,
    '"' * 20000,
    "```json" * 3000,
    "-\n" * 9000,
    "\x00" * 20000,
    "\u0301" * 20000,
)


@pytest.mark.parametrize("response", HOSTILE, ids=lambda text: repr(text[:4]))
def test_a_verdict_on_a_hostile_response_comes_back(response):
    # 20,000 characters: patterns that take quadratic time would need minutes here
    for name, kwargs, _, _ in CASES:
        assert judge(VERIFIER.read(truth((name, kwargs))), response) in ([True], [False])


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict_for_every_instruction(response):
    for name, kwargs, _, _ in CASES:
        assert judge(VERIFIER.read(truth((name, kwargs))), response, "loose") in ([True], [False])


@pytest.mark.skipif(not SHARED.exists(), reason=f"no public data at {SHARED}")
def test_every_row_of_the_benchmark_is_read():
    rows = [json.loads(line) for line in pathlib.Path(SHARED / "ifeval/input_data.jsonl").read_text().splitlines()]
    assert len(rows) == 541
    assert sum(len(VERIFIER.read(row)) for row in rows) == 834

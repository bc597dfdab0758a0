"""Extraction of answers: order of places, broken places, and one pass over hostile text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.extract import MAX_ANSWER_CHARACTERS, Source, boxed_answers, extract


@pytest.mark.parametrize(
    ("completion", "source", "answers"),
    [
        (r"so \boxed{\frac{1}{2}}", Source.BOXED, (r"\frac{1}{2}",)),
        (r"\boxed {7}", Source.BOXED, ("7",)),
        (r"\fbox{7}", Source.BOXED, ("7",)),
        (r"\boxed 7", Source.BOXED, ("7",)),
        (r"\boxed{\{1,2\}}", Source.BOXED, (r"\{1,2\}",)),
        (r"\boxed{\boxed{4}}", Source.BOXED, (r"\boxed{4}",)),
        (r"\boxed{3}, no: \boxed{4}", Source.BOXED, ("3", "4")),
        (r"\boxed{4} and again \boxed{4}", Source.BOXED, ("4",)),
        (r"Write \boxed{} around it: \boxed{4}", Source.BOXED, ("4",)),
        (r"The answer is 3, so \boxed{4}", Source.BOXED, ("4",)),
        ("The answer is 42.", Source.ANSWER_IS, ("42",)),
        ("The answer is $\\frac{1}{2}$.", Source.ANSWER_IS, ("\\frac{1}{2}",)),
        ("The final answer is: **12 apples**.", Source.ANSWER_IS, ("12 apples",)),
        ("Answer: B", Source.ANSWER_IS, ("B",)),
        ("The answer to the question is 3.5. Check it!", Source.ANSWER_IS, ("3.5",)),
        ("The answer is 3, because 1 + 2 is 3.", Source.ANSWER_IS, ("3",)),
        ("The answer is 3.\n#### 4", Source.ANSWER_IS, ("3",)),
        ("1 + 3\n#### 4", Source.HASHES, ("4",)),
        ("Thus $x = 5$.", Source.LAST, ("x = 5",)),
        ("He has $x = 5$ apples and 7 pears.", Source.LAST, ("7",)),
        ("It costs $1,250.50 in all.", Source.LAST, ("$1,250.50",)),
        ("<think>\\boxed{1}</think> so \\boxed{2}", Source.BOXED, ("2",)),
    ],
)
def test_the_first_place_that_exists_holds_the_answer(completion, source, answers):
    found = extract(completion)
    assert (found.source, found.answers, found.problem) == (source, answers, "")


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        (r"\boxed{\frac{1}{2} and then 42", "never closed"),
        (r"\boxed{} 42", "empty"),
        (r"written in \boxed form: 42", "holds nothing"),
        (r"\boxed{" + "1" * (MAX_ANSWER_CHARACTERS + 1) + "} 42", "characters"),
        ("####\n42", "empty"),
        ("no idea", "no answer"),
        ("", "no answer"),
    ],
)
def test_a_broken_place_is_no_reason_to_look_further(completion, problem):
    found = extract(completion)
    assert found.answers == ()
    assert problem in found.problem


@pytest.mark.parametrize("forbidden", list(Source))
def test_each_place_can_be_forbidden(forbidden):
    completion = "The answer is 2\n#### 3\nthat is \\boxed{1}, or 4"
    expected = {Source.BOXED: "2", Source.ANSWER_IS: "1", Source.HASHES: "1", Source.LAST: "1"}
    found = extract(completion, allow=[source for source in Source if source is not forbidden])
    assert found.answers == (expected[forbidden],)


def test_only_the_last_number_may_be_left():
    assert extract("The answer is 2, \\boxed{1}, or 4", allow=[Source.LAST]).answers == ("4",)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "{" * 100_000,
        "\\boxed{" + "{" * 50_000 + "}" * 50_000 + "}",
        "answer " * 20_000,
        "answer is" + " " * 100_000,
        "$" * 20_000,
        "\\(" * 20_000,
        "####" * 20_000,
        "1" * 1_000_000,
        "1," * 100_000,
        "\n" * 100_000,
        "the final answer to " * 10_000,
        "\x00" * 100_000 + "\\boxed{\u202e1}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_extracted_or_refused_in_bounded_time(text):
    found = extract(text)  # a quadratic scan of these would take minutes
    assert found.answers == () or max(map(len, found.answers)) <= MAX_ANSWER_CHARACTERS


@given(st.lists(st.from_regex(r"[a-z0-9+ ]{1,8}(\{[a-z0-9]{1,4}\}){0,2}", fullmatch=True), min_size=1, max_size=4))
def test_every_closed_box_is_found_in_order(contents):
    text = " then ".join(f"\\boxed{{{content}}}" for content in contents)
    assert boxed_answers(text) == (contents, "")


@given(st.text(max_size=200))
def test_any_text_gives_answers_or_a_problem_and_never_both(text):
    found = extract(text)
    assert bool(found.answers) != bool(found.problem)

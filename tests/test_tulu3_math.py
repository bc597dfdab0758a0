"""Tülu 3's verdicts, quirks included."""

import pytest

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError
from verifiers.tulu3_math import Tulu3Gsm8k, Tulu3Math, extracted_answers, hendrycks_equal, minerva_normalised


def verdict(verifier, completion, gold):
    return verifier.verify(Sample(completion=completion, ground_truth=gold)).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("completion", "gold", "is_correct"),
    [
        ("2 + 6 = 8", "8", True),
        ("It is 1,234 in all.", "1234", True),
        ("It is 8.0", "8", False),  # strings are compared
        ("It is -8", "8", True),  # [-+] belongs to decimals only, so an integer loses its sign
        ("It is -8.5", "-8.5", True),
        ("It is -8", "-8", False),
        ("8 apples, or 9", "8", False),
        ("eight", "eight", True),  # without numbers the whole text is compared
        ("Question: 7<|assistant|>\n8", "8", True),
    ],
)
def test_gsm8k_compares_the_last_number_as_a_string(completion, gold, is_correct):
    assert verdict(Tulu3Gsm8k(), completion, gold) is is_correct


@pytest.mark.parametrize(
    ("completion", "gold", "is_correct"),
    [
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{5 \text{ cm}}", "5", True),
        (r"\boxed{4}", "5", False),
        (r"\boxed{4}. Final Answer: The final answer is 5. I hope it is correct.", "5", True),  # either may match
        ("so $4$ and $5$", "5", True),
        ("so $4$ and $5$ are all", "5", True),
        ("5", "5", True),
        (r"\boxed{2\cdot 3}", "6", True),  # sympy
        (r"\boxed{x+x}", "2x", True),
        (r"\boxed{(1,2)}", "(1, 2)", True),
    ],
)
def test_math_accepts_any_extracted_answer(completion, gold, is_correct):
    assert verdict(Tulu3Math(), completion, gold) is is_correct


def test_without_sympy_only_strings_count_as_in_later_versions():
    verifier = Tulu3Math.from_options({"symbolic": False})
    assert verdict(verifier, r"\boxed{2\cdot 3}", "6") is False
    assert verdict(verifier, r"\boxed{\tfrac 12}", r"\frac{1}{2}") is True


def test_bombs_are_wrong_and_not_calculated():
    for bomb in ("9^{9^{9}}", "10^{1000000000}", "(10^9)!", "{" * 5_000):
        assert verdict(Tulu3Math(), rf"\boxed{{{bomb}}}", "5") is False


def test_a_slash_between_letters_has_no_normal_form_so_raw_strings_are_compared():
    assert hendrycks_equal("x/2", "x/2")
    assert not hendrycks_equal("x/2 ", "x/2")  # "3 /4" and "3/4" would be equal
    assert hendrycks_equal("3 /4", "3/4")


def test_minerva_takes_the_last_side_of_an_equation_and_drops_units():
    assert minerva_normalised("x = 3 = 12 inches") == "12"
    assert minerva_normalised(r"\sqrt2") == r"\sqrt{2}"
    assert extracted_answers(r"so \boxed{3}") == ["3"]


def test_a_ground_truth_that_is_no_text_is_refused_at_start():
    for verifier in (Tulu3Gsm8k(), Tulu3Math()):
        with pytest.raises(GroundTruthError, match="non-empty string"):
            verifier.check_ground_truth(None)

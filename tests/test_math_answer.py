r"""`math` and `gsm8k`: the policy table, hostile input, the two paths against each other, real gold answers."""

import json
import pathlib
import subprocess
import sys
import threading
from fractions import Fraction

import math_pairs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError, VerifierOptionError
from verifiers.math_answer import Gsm8kVerifier, MathVerifier
from verifiers.math_judge import judge_fast, judge_slow
from verifiers.math_reader import _SIMPLE_NUMBER, read_answer
from verifiers.math_symbolic import refuse_costly, symbolically_equal
from verifiers.math_tokens import tokenize
from verifiers.math_tree import Node
from verifiers.math_unicode import Refused
from verifiers.math_values import exact, numeric

ROOT = pathlib.Path(__file__).parents[1]
needs_data = pytest.mark.skipif(not math_pairs.DATA.exists(), reason="needs the public data in ../shared/data")


def outcome(completion, gold, verifier=None):
    return (verifier or MathVerifier()).verify(Sample(completion=completion, ground_truth=gold)).outcome


def boxed(answer, gold):
    return outcome(rf"\boxed{{{answer}}}", gold)


@pytest.mark.parametrize("name", ["math", "gsm8k"])
def test_the_hand_written_cases_hold_on_the_fast_path_alone_where_it_decides(name):
    verifier = {"math": MathVerifier, "gsm8k": Gsm8kVerifier}[name]()
    allowed = {"must_pass": {"correct"}, "must_fail": {"wrong"}, "hack": {"wrong"}, "indeterminate": {"indeterminate"}}
    for line in (ROOT / f"tests/acceptance/{name}.jsonl").read_text().splitlines():
        case = json.loads(line)
        sample = Sample(completion=case["completion"] * case.get("repeat", 1), ground_truth=case["ground_truth"])
        fast = verifier.verify_fast(sample)
        assert fast is None or fast.outcome in allowed[case["kind"]], line
        assert verifier.verify(sample).outcome in allowed[case["kind"]], line


BOMBS = [
    "9**9**9",
    "9^9^9",
    "9^{9^{9}}",
    "5^(5^(5^5))",
    "10^{1000000000}",
    "(2^{100})^{1000}",
    "1e999999",
    "10^{10^{10}} - 10^{10^{10}}",
    "1000000!",
    "(10^9)!",
    "5!!!!!!",
    r"\binom{10^9}{5}",
    r"\sum_{n=1}^{10^{9}} n",
    r"\prod_{k=1}^{10^{9}} k",
    r"\int_0^1 x^{x^x} dx",
    r"\exp(\exp(\exp(100)))",
    r"\exp(\exp(100)) + \sqrt[3]{-8}",
    r"e^{\exp(100)} + \sqrt[3]{-8}",
    r"\sqrt[3]{-8} + (((((12^{12})^{12})^{12})^{12})^{12})^{12}",
    r"\sqrt[3]{-8} + (99!)^{12}",
    r"\sin(10^{100000})",
    r"\sqrt[10^9]{2}",
    "x^{1000000}",
    "(x+y+z)^{500}",
    r"\log((x+y+z)^{500})",
    r"\exp1234567890 x",
    "((((((((((1))))))))))^{99999}",
    "{" * 900 + "1" + "}" * 900,
    "(" * 900,
    r"\frac{1}{" * 200 + "2" + "}" * 200,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    "-" * 1_900 + "5",
    "1+" * 900 + "1",
    "1," * 900 + "1",
    "9" * 1_999,
    "0." + "3" * 1_900,
    "|" * 1_900,
    "=" * 1_900,
    r"\cup" * 400,
    r"\begin{pmatrix}" * 100,
    "\x00" * 100,
    "\u202e5",
    "\u200f" * 500,
    "٩" * 1_500,
    r"\text{" * 300,
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: repr(bomb[:24]))
@pytest.mark.parametrize("gold", ["4", r"\log x", "1, 2", "(1, 2)", "x = 4"])
def test_a_bomb_gets_a_verdict_without_being_calculated(bomb, gold):
    assert boxed(bomb, gold) is Outcome.WRONG  # calculating any of these would take minutes or gigabytes


@pytest.mark.parametrize("size", [10**6])
def test_a_completion_of_a_million_characters_gets_a_verdict(size):
    for text in ("9" * size, "\\boxed{" + "9" * size, "{" * size, "1 " * (size // 2)):
        assert outcome(text, "4") is Outcome.WRONG
        assert outcome(text, "4", Gsm8kVerifier()) is Outcome.WRONG


def test_no_path_runs_model_text():
    """A process with an audit hook judges code in every place of every verifier: no compile, exec, import or open."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/audit_math.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        timeout=240,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["verdicts"] > 1_000
    assert result["control"] == 1  # the hook did see the compile() that it was shown
    assert result["events"] == []


def test_the_slow_path_works_in_a_thread_and_leaves_no_alarm():
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(judge_slow(r"\sqrt[3]{-8}+x", r"x+\sqrt[3]{-8}")))
    thread.start()
    thread.join()
    assert outcomes == [True]


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{1}{", "9^{9^{9}}", "1 +", "\x00", None, ["4"], True])
def test_an_unreadable_gold_answer_is_refused_at_start_and_indeterminate_in_a_run(gold):
    with pytest.raises(GroundTruthError, match="gold answer"):
        MathVerifier().check_ground_truth(gold)
    for completion in (r"\boxed{4}", "", rf"\boxed{{{gold}}}"):
        assert outcome(completion, gold) is Outcome.INDETERMINATE


def test_a_number_may_be_the_gold_answer():
    assert outcome("#### 0.5", 0.5) is Outcome.CORRECT
    assert outcome("#### 7", 7, Gsm8kVerifier()) is Outcome.CORRECT


def test_options_forbid_places_and_choose_what_several_boxes_mean():
    strict = MathVerifier.from_options({"answer_is": False, "hashes": False, "last": False})
    assert outcome("The answer is 4", "4", strict) is Outcome.WRONG
    assert outcome(r"\boxed{4}", "4", strict) is Outcome.CORRECT
    last = MathVerifier.from_options({"several_boxes": "last"})
    assert outcome(r"\boxed{3} \boxed{4}", "4") is Outcome.WRONG
    assert outcome(r"\boxed{3} \boxed{4}", "4", last) is Outcome.CORRECT
    with pytest.raises(VerifierOptionError, match="every place"):
        MathVerifier.from_options({"boxed": False, "answer_is": False, "hashes": False, "last": False})


@pytest.mark.parametrize("allowed", ["boxed", "answer_is", "hashes", "last"])
def test_the_gold_completion_uses_an_allowed_place_and_is_correct(allowed):
    options = {place: place == allowed for place in ("boxed", "answer_is", "hashes", "last")}
    for verifier, gold in (
        (MathVerifier.from_options(options), r"\frac{1}{2}"),
        (Gsm8kVerifier.from_options(options), "a\n#### 72"),
    ):
        completion = verifier.gold_completion(gold)
        assert verifier.verify(Sample(completion=completion, ground_truth=gold)).outcome is Outcome.CORRECT


# ---- the two paths against each other


_ATOMS = st.sampled_from(["1", "2", "3", "7", "12", "0.5", r"\pi", "x", "y", r"\sqrt{2}", r"\sqrt{3}", r"\frac{1}{3}"])


def _combined(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot "]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(inner, inner).map(lambda t: rf"\frac{{{t[0]}}}{{{t[1]}}}"),
        inner.map(lambda t: f"({t})^{{2}}"),
        inner.map(lambda t: f"-{t}"),
    )


_EXPRESSIONS = st.recursive(_ATOMS, _combined, max_leaves=5)
_REWRITINGS = st.sampled_from(
    [
        lambda text: text,
        lambda text: f"{text}+0",
        lambda text: rf"2\cdot({text})-({text})",
        lambda text: rf"\frac{{3\cdot({text})}}{{3}}",
        lambda text: f"1+({text})-1",
        lambda text: f"({text})+1",
        lambda text: f"-({text})",
        lambda text: rf"2\cdot({text})",
    ]
)


def _slow(gold, answer):
    try:
        return symbolically_equal(gold, answer)
    except Refused:
        return None


@settings(max_examples=80, deadline=None)
@given(_EXPRESSIONS, _EXPRESSIONS, _REWRITINGS)
def test_the_fast_path_never_contradicts_sympy_on_expressions(gold, other, rewrite):
    for answer in (rewrite(gold), other):
        fast, slow = judge_fast(gold, answer), _slow(gold, answer)
        assert fast is None or slow is None or fast is slow, (gold, answer, fast, slow)


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_rational_numbers_are_equal_exactly_when_fractions_are(first, second):
    def latex(value):
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    assert judge_fast(latex(first), latex(second)) is (first == second)
    assert judge_fast(latex(first), f"{first.numerator}/{first.denominator}") is True


@given(st.integers(-(10**18), 10**18), st.integers(0, 12))
def test_decimals_are_exact(digits, places):
    value = Fraction(digits, 10**places)
    text = f"{'-' if digits < 0 else ''}{abs(digits) // 10**places}" + (
        f".{abs(digits) % 10**places:0{places}d}" if places else ""
    )
    assert exact(read_answer(text)) == value
    assert judge_fast(str(digits + 1), str(digits)) is False


@given(st.from_regex(_SIMPLE_NUMBER, fullmatch=True))
def test_the_short_cut_for_numbers_builds_the_parsers_tree(text):
    assert read_answer(text) == read_answer(f"{{{text}}}")


@settings(max_examples=150, deadline=None)
@given(_EXPRESSIONS)
def test_values_agree_with_sympy_to_15_digits(text):
    import sympy

    from verifiers.math_symbolic import parse

    tree, parsed = read_answer(text), parse(text)
    if symbols := parsed.free_symbols:
        parsed = parsed.subs(
            {symbol: sympy.Float(str(numeric(Node("symbol", value=symbol.name))), 60) for symbol in symbols}
        )
    expected = parsed.doit().evalf(40)
    if expected.is_finite is False or expected is sympy.nan:
        return
    value = numeric(tree)
    assert abs(complex(expected) - complex(value)) <= 1e-14 * max(1, abs(complex(expected)))


@settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from(["4", "x+1", "(1,2)", r"\text{red}", r"\log x"]))
def test_any_text_gets_a_verdict(text, gold):
    verdict = MathVerifier().verify_fast(Sample(completion=rf"\boxed{{{text}}}", ground_truth=gold))
    assert verdict is None or verdict.outcome in (Outcome.CORRECT, Outcome.WRONG)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_what_goes_to_sympy_is_tokenized_first_or_refused(text):
    try:
        refuse_costly(text)
    except Refused:
        return
    assert len(tokenize(text)) <= 60


# ---- real gold answers


@needs_data
def test_every_gold_answer_of_math_is_readable_and_its_own_gold_completion_is_correct():
    verifier = MathVerifier()
    unreadable = []
    for gold in math_pairs.math_golds():
        try:
            verifier.check_ground_truth(gold)
        except GroundTruthError:
            unreadable.append(gold)
            continue
        sample = Sample(completion=verifier.gold_completion(gold), ground_truth=gold)
        assert verifier.verify(sample).outcome is Outcome.CORRECT, gold
    assert len(unreadable) <= 3, unreadable


@needs_data
def test_no_labelled_pair_made_from_real_gold_answers_is_misjudged():
    verifier = MathVerifier()
    wrong = [
        pair
        for pair in math_pairs.math_pairs(seed=3, golds_per_edit=60)
        if (outcome(pair.completion, pair.gold, verifier) is Outcome.CORRECT) != pair.is_correct
    ]
    assert wrong == []


@needs_data
@pytest.mark.parametrize("verifier", [MathVerifier(), Gsm8kVerifier()], ids=["math", "gsm8k"])
def test_gsm8k_solutions_are_correct_and_with_another_number_wrong(verifier):
    wrong = [
        pair
        for pair in math_pairs.gsm8k_pairs(seed=3)
        if (outcome(pair.completion, pair.gold, verifier) is Outcome.CORRECT) != pair.is_correct
    ]
    assert wrong == []


def test_the_pairs_labelled_by_hand_have_their_verdicts():
    """Reordered, reformatted and mistaken answers of the styles of GSM8K and MATH; none is in the acceptance tables."""
    verifiers = {"math": MathVerifier(), "gsm8k": Gsm8kVerifier()}
    pairs = [json.loads(line) for line in (ROOT / "tests/data/math_hand_pairs.jsonl").read_text().splitlines()]
    assert {pair["correct"] for pair in pairs} == {True, False}
    for pair in pairs:
        found = outcome(pair["completion"], pair["gold"], verifiers[pair["verifier"]])
        assert found is (Outcome.CORRECT if pair["correct"] else Outcome.WRONG), pair

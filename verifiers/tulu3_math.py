r"""`tulu3_math` and `tulu3_gsm8k`: the verdicts that Tülu 3 was trained with, quirks included, to compare runs with it.

Source: allenai/open-instruct, open_instruct/ground_truth_utils.py and math_utils.py at 9c2d44bec (November 2024), whose
normalisations are appendix D of Lewkowycz et al. 2022 (arXiv 2206.14858) and Hendrycks et al. 2021 (arXiv 2103.03874).
Do not train with these: an integer's minus sign is lost, "8.0" is not "8", any of several extracted answers may match.

One intended difference: the originals parse with `parse_latex` of sympy, which wants ANTLR 4.11, under SIGALRM;
here latex2sympy parses after the size limits of verifiers/math_symbolic.py, and the pool keeps the time.
"""

from __future__ import annotations

import re
from typing import Any

from verifiers.base import Sample, Verdict, Verifier, require_text
from verifiers.math_unicode import Refused
from verifiers.math_units import words
from verifiers.registry import register

_ASSISTANT_TURN = "<|assistant|>\n"
_COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


def _last_turn(completion: str) -> str:
    return completion.rsplit(_ASSISTANT_TURN, 1)[-1].strip()


@register("tulu3_gsm8k")
class Tulu3Gsm8k(Verifier):
    """Tülu 3's check of GSM8K: the last number of the text, compared as a string."""

    cannot_hang = True

    def check_ground_truth(self, ground_truth: Any) -> None:
        """Raise GroundTruthError where the ground truth is no text."""
        require_text(ground_truth, verifier="tulu3_gsm8k")

    def gold_completion(self, ground_truth: Any) -> str:
        """The answer in a sentence; a negative gold answer has none, because the original loses its sign."""
        return f"So the answer is {require_text(ground_truth, verifier='tulu3_gsm8k')}."

    def verify_fast(self, sample: Sample) -> Verdict:
        """The verdict; always decided."""
        return self.verify(sample)

    def verify(self, sample: Sample) -> Verdict:
        """Correct when the last number, commas dropped, is the gold text letter for letter."""
        gold = require_text(sample.ground_truth, verifier="tulu3_gsm8k")
        text = _COMMA_IN_NUMBER.sub(r"\1\2", _last_turn(sample.completion))
        numbers = _NUMBER.findall(text)
        answer = numbers[-1] if numbers else text
        is_correct = answer.lower() == gold.lower()
        return (Verdict.correct if is_correct else Verdict.wrong)(f"{answer[:80]!r} against {gold[:80]!r} as strings")


# Appendix D of Lewkowycz et al. 2022: replaced in this order, then removed in this order.
_REPLACED = (
    *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text")),
    *((",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}")),
)
_REMOVED = (
    *words("square ways integers dollars mph inches ft hours km units \\ldots sue points feet minutes digits cents"),
    *words("degrees cm gm pounds meters meals edges students childrentickets multiples \\text{s} \\text{.}"),
    *("\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}"),
    *("\\;", ",\\!", "{,}", '"', "\\dots"),
)
_BETWEEN_DOLLARS = re.compile(r"(.*?)(\$)(.*?)(\$)(.*)")
_WRAPPERS = tuple(
    re.compile(rf"\\{command}\{{({inside})\}}")
    for command, inside in (("text", ".*?"), ("textbf", ".*?"), ("overline", ".*?"), ("boxed", ".*"))
)


def minerva_normalised(answer: str) -> str:
    r"""Minerva's normal form of an answer.

    >>> minerva_normalised(r"x = 12 \text{ inches}"), minerva_normalised(r"\frac12"), minerva_normalised("1,000")
    ('12', '\\frac{1}{2}', '1000')
    """
    answer = answer.split("=")[-1]
    for before, after in _REPLACED:
        answer = answer.replace(before, after)
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    answer = _BETWEEN_DOLLARS.sub(r"$\3$", answer)
    for wrapper in _WRAPPERS:
        answer = wrapper.sub(r"\1", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{])", r"sqrt{\1}", answer)
    answer = answer.replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


class _NoNormalForm(Exception):
    """Where the original's normalisation raises, and it falls back to comparing the raw strings."""


def _braced_fractions(text: str) -> str:
    first, *rest = text.split("\\frac")
    done = [first]
    for part in rest:
        if not part:
            raise _NoNormalForm
        if part[0] == "{":
            done.append(part)
        elif len(part) < 2:
            return text
        else:
            second = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            done.append(f"{{{part[0]}}}{second}{part[2:]}")
    return "\\frac".join(done)


def _braced_roots(text: str) -> str:
    first, *rest = text.split("\\sqrt")
    if any(not part for part in rest):
        raise _NoNormalForm
    return "\\sqrt".join([first, *(part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}" for part in rest)])


def _slash_as_fraction(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        numerator, denominator = map(int, parts)
    except ValueError as error:
        raise _NoNormalForm from error
    is_plain = text == f"{numerator}/{denominator}"
    return f"\\frac{{{numerator}}}{{{denominator}}}" if is_plain else text


def hendrycks_normalised(text: str) -> str:
    r"""The normal form of MATH's own grader. Raises _NoNormalForm where that grader raises.

    >>> hendrycks_normalised(r"x=\dfrac12"), hendrycks_normalised("0.5"), hendrycks_normalised(r"3\text{ cm}")
    ('\\frac{1}{2}', '\\frac{1}{2}', '3')
    """
    for before, after in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")):
        text = text.replace(before, after)
    for removed in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(removed, "")
    if text.count("\\text{ ") > 1:
        raise _NoNormalForm
    text = text.split("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = f"0{text}" if text[0] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    return _slash_as_fraction("\\frac{1}{2}" if text == "0.5" else text)


def hendrycks_equal(first: str, second: str) -> bool:
    """MATH's own equality: of the normal forms, or of the raw strings where one has none."""
    try:
        return hendrycks_normalised(first) == hendrycks_normalised(second)
    except _NoNormalForm:
        return first == second


def _last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, or of `\boxed ` up to the next dollar; None where it is not closed."""
    if "\\boxed " in text:
        return text.rsplit("\\boxed ", 1)[1].split("$")[0]
    start = text.rfind("\\boxed{")
    if start < 0 or start != text.rfind("\\boxed"):
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + brace.start()]
    return None


def extracted_answers(text: str) -> list[str]:
    """Every answer that the original would compare, any of which may match."""
    answers = []
    box = _last_box(text)
    if box is not None:
        answers.append(box)
    final = re.search(r"Final Answer: The final answer is(.*?). I hope it is correct.", f"{text}I hope it is correct.")
    if final:
        answers.append(minerva_normalised(final.group(1).strip()))
    if not answers:
        dollars = [match.start() for match in re.finditer(r"\$", text)]
        if len(dollars) > 1:
            answers.append(minerva_normalised(text[dollars[-2] + 1 : dollars[-1]]))
    return answers or [minerva_normalised(text)]


def sympy_equal(first: str, second: str) -> bool:
    """Whether sympy simplifies the difference to 0. False where one cannot be parsed or costs too much."""
    from verifiers.math_symbolic import parse, simplifies_to_zero

    try:
        parsed = parse(first), parse(second)
    except Refused:
        return False
    return simplifies_to_zero(*parsed)


@register("tulu3_math")
class Tulu3Math(Verifier):
    """Tülu 3's check of MATH: any extracted answer that sympy or MATH's own grader calls equal to the gold answer."""

    class Config(Verifier.Config):
        """Options of `tulu3_math`."""

        symbolic: bool = True
        """Ask sympy too, as in November 2024. False is what later versions do: in threads that half always fails."""

    def check_ground_truth(self, ground_truth: Any) -> None:
        """Raise GroundTruthError where the ground truth is no text."""
        require_text(ground_truth, verifier="tulu3_math")

    def gold_completion(self, ground_truth: Any) -> str:
        """The gold answer in a box."""
        return rf"\boxed{{{require_text(ground_truth, verifier='tulu3_math')}}}"

    def verify_fast(self, sample: Sample) -> Verdict | None:
        """Decided by strings where they are equal, or where sympy is not to be asked."""
        gold = require_text(sample.ground_truth, verifier="tulu3_math")
        answers = extracted_answers(_last_turn(sample.completion))
        for answer in answers:
            if hendrycks_equal(answer, gold):
                return Verdict.correct(f"{answer[:80]} == {gold[:80]} (strings)")
        if self.config.symbolic:
            return None
        return Verdict.wrong(f"none of {[answer[:40] for answer in answers]} is {gold[:80]}")

    def verify(self, sample: Sample) -> Verdict:
        """The verdict by strings, then by sympy."""
        verdict = self.verify_fast(sample)
        if verdict is not None:
            return verdict
        gold = require_text(sample.ground_truth, verifier="tulu3_math")
        answers = extracted_answers(_last_turn(sample.completion))
        for answer in answers:
            if sympy_equal(answer, gold):
                return Verdict.correct(f"{answer[:80]} == {gold[:80]} (sympy)")
        return Verdict.wrong(f"none of {[answer[:40] for answer in answers]} is {gold[:80]}")

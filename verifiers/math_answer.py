r"""`math` and `gsm8k`: is the final answer of a completion the gold answer?"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pydantic

from verifiers.base import Sample, Verdict, Verifier, require_text
from verifiers.errors import GroundTruthError
from verifiers.extract import Extraction, Source, extract
from verifiers.registry import register


class AnswerConfig(Verifier.Config):
    """Options shared by the verifiers of final answers: which places of a completion may hold the answer."""

    boxed: bool = True
    r"""Read the last `\boxed{}` (or `\fbox{}`)."""
    answer_is: bool = True
    """Read what follows the last "the answer is" or "answer:"."""
    hashes: bool = True
    """Read what follows the last `####`, GSM8K's mark."""
    last: bool = True
    """Read the last number or formula where nothing marks the answer."""

    @pydantic.model_validator(mode="after")
    def _some_place_is_allowed(self) -> AnswerConfig:
        if not (self.boxed or self.answer_is or self.hashes or self.last):
            raise ValueError("every place of an answer is forbidden; allow boxed, answer_is, hashes or last")
        return self

    def allowed_sources(self) -> tuple[Source, ...]:
        """The places that may hold an answer, in order of preference."""
        allowed = {
            Source.BOXED: self.boxed,
            Source.ANSWER_IS: self.answer_is,
            Source.HASHES: self.hashes,
            Source.LAST: self.last,
        }
        return tuple(source for source, is_allowed in allowed.items() if is_allowed)


_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:/\d+)?\Z")


def plain_number(text: str) -> Fraction | None:
    """A number with optional sign, thousands separators, decimals, currency sign, percent sign or unit; None otherwise."""
    text = text.strip().replace("\\$", "").replace("\\!", "").replace("{,}", ",").strip("$ .")
    text = text.replace("\u2212", "-").replace("- ", "-").replace("-$", "-")
    text = re.sub(r"\\?%$|\s+[A-Za-z][A-Za-z .]*$", "", text).strip()
    if len(text) > 100 or not _PLAIN_NUMBER.match(text) or not any(map(str.isdigit, text)):
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)


@register("gsm8k")
class Gsm8kVerifier(Verifier):
    """Is the final number of the completion the gold number? Ground truth: a number, or GSM8K's `answer` text (`#### 72`)."""

    Config = AnswerConfig
    cannot_hang = True

    def check_ground_truth(self, ground_truth: Any) -> None:
        self._gold(ground_truth)

    def _gold(self, ground_truth: Any) -> Fraction:
        if isinstance(ground_truth, int | float) and not isinstance(ground_truth, bool):
            ground_truth = repr(ground_truth)
        text = require_text(ground_truth, verifier="gsm8k").rsplit("####", 1)[-1]
        number = plain_number(text)
        if number is None:
            raise GroundTruthError(f"verifier 'gsm8k' needs a number as ground truth; got {ground_truth!r}.")
        return number

    def gold_completion(self, ground_truth: Any) -> str:
        text = str(ground_truth).rsplit("####", 1)[-1].strip()
        return f"#### {text}" if self.config.hashes else rf"The answer is \boxed{{{text}}}."

    def verify(self, sample: Sample) -> Verdict:
        try:
            gold = self._gold(sample.ground_truth)
        except GroundTruthError as error:
            return Verdict.indeterminate(str(error))
        found = extract(sample.completion, allow=self.config.allowed_sources())
        if not found.answers:
            return Verdict.wrong(found.problem)
        values = [plain_number(answer) for answer in found.answers]
        if all(value == gold for value in values):
            return Verdict.correct(f"{found.answers[0]} == {gold} ({found.source})")
        return Verdict.wrong(f"{', '.join(found.answers)[:80]} != {gold} ({found.source})")


@register("math")
class MathVerifier(Verifier):
    """Is the final answer of the completion equal to the gold answer (LaTeX)?"""

    Config = AnswerConfig

    def check_ground_truth(self, ground_truth: Any) -> None:
        require_text(ground_truth, verifier="math")

    def gold_completion(self, ground_truth: Any) -> str:
        return rf"\boxed{{{ground_truth}}}"

    def verify(self, sample: Sample) -> Verdict:
        gold = require_text(sample.ground_truth, verifier="math")
        found = extract(sample.completion, allow=self.config.allowed_sources())
        if not found.answers:
            return Verdict.wrong(found.problem)
        return self._judge(found, gold)

    def _judge(self, found: Extraction, gold: str) -> Verdict:
        gold_number = plain_number(gold)
        for answer in found.answers:
            if "".join(answer.split()) == "".join(gold.split()):
                continue
            number = plain_number(answer)
            if number is not None and gold_number is not None and number == gold_number:
                continue
            if (number is None or gold_number is None) and _symbolically_equal(answer, gold):
                continue
            return Verdict.wrong(f"{answer[:80]} != {gold} ({found.source})")
        return Verdict.correct(f"{found.answers[0][:80]} == {gold} ({found.source})")


def _symbolically_equal(answer: str, gold: str) -> bool:
    import math_verify

    config = [math_verify.LatexExtractionConfig()]
    parsed = [
        math_verify.parse(rf"\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)
        for text in (gold, answer)
    ]
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None))

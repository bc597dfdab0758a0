r"""`math` and `gsm8k`: is the final answer of a completion the gold answer?

completion -> extract (verifiers/extract.py) -> equal text -> equal trees (fast path: bounded pure Python)
           -> math-verify and sympy (slow path: guarded, and killed by the pool when it hangs)

docs/math.md states the policy with examples. Model text is never given to eval, sympify or parse_expr.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pydantic

from verifiers.base import Sample, Verdict, Verifier
from verifiers.errors import GroundTruthError
from verifiers.extract import Extraction, Source, extract
from verifiers.math_compare import same_answer
from verifiers.math_judge import check_gold, judge_all, judge_fast, judge_slow, read_gold
from verifiers.math_reader import read_answer
from verifiers.math_tree import Node
from verifiers.math_unicode import Refused
from verifiers.math_values import exact
from verifiers.registry import register


class AnswerConfig(Verifier.Config):
    """Options of the verifiers of final answers: which places of a completion may hold the answer."""

    boxed: bool = True
    r"""Read the last `\boxed{}` (or `\fbox{}`)."""
    answer_is: bool = True
    """Read what follows the last "the answer is" or "answer:"."""
    hashes: bool = True
    """Read what follows the last `####`, GSM8K's mark."""
    last: bool = True
    """Read the last number or formula where nothing marks the answer."""
    several_boxes: Literal["must_agree", "last"] = "must_agree"
    """With boxes that differ: wrong, unless together they are the gold list; or read only the last one."""

    @pydantic.model_validator(mode="after")
    def _some_place_is_allowed(self) -> AnswerConfig:
        if not self.allowed_sources():
            raise ValueError("every place of an answer is forbidden; allow boxed, answer_is, hashes or last")
        return self

    def allowed_sources(self) -> tuple[Source, ...]:
        """The places that may hold an answer, in order of preference."""
        allowed = (self.boxed, self.answer_is, self.hashes, self.last)
        return tuple(source for source, is_allowed in zip(Source, allowed, strict=True) if is_allowed)


Judge = Callable[[str, str], bool | None]


class _AnswerVerifier(Verifier):
    """What `math` and `gsm8k` share: extraction, several boxes, and the words of a verdict."""

    Config = AnswerConfig
    name: ClassVar[str]

    def gold_text(self, ground_truth: Any) -> str:
        """The gold answer as text. Raises GroundTruthError for what is neither text nor a number."""
        if isinstance(ground_truth, int | float) and not isinstance(ground_truth, bool):
            return repr(ground_truth)
        if not isinstance(ground_truth, str) or not ground_truth.strip():
            raise GroundTruthError(
                f"verifier {self.name!r} needs the gold answer as non-empty text or a number; got {ground_truth!r}. "
                "Fix the row or remove it."
            )
        return ground_truth.strip()

    def gold_completion(self, ground_truth: Any) -> str:
        """The gold answer in the most preferred place that the options allow."""
        gold = self.gold_text(ground_truth)
        if self.config.boxed:
            return rf"\boxed{{{gold}}}"
        if self.config.answer_is:
            return f"The answer is ${gold}$"
        return f"#### {gold}" if self.config.hashes else f"${gold}$"

    def _extract(self, sample: Sample) -> Extraction:
        found = extract(sample.completion, allow=self.config.allowed_sources())
        if self.config.several_boxes == "last" and len(found.answers) > 1:
            return Extraction(source=found.source, answers=found.answers[-1:])
        return found

    def _judge(self, sample: Sample, judge: Judge, check: Callable[[str], object]) -> Verdict | None:
        """The verdict by one path, or None when it cannot decide.

        `check` raises GroundTruthError for an unreadable gold answer, which says nothing about any completion, not even
        an empty one.
        """
        try:
            gold = self.gold_text(sample.ground_truth)
            check(gold)
            found = self._extract(sample)
            if not found.answers:
                return Verdict.wrong(found.problem)
            is_correct = judge_all(gold, found.answers, judge)
        except GroundTruthError as error:
            return Verdict.indeterminate(str(error))
        except Refused as error:
            return Verdict.wrong(f"refused: {error}")
        if is_correct is None:
            return None
        answers, gold = _shorten(" | ".join(found.answers)), _shorten(gold)
        if is_correct:
            return Verdict.correct(f"{answers} == {gold} ({found.source})")
        return Verdict.wrong(f"{answers} != {gold} ({found.source})")


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


@register("math")
class MathVerifier(_AnswerVerifier):
    r"""Is the final answer the gold answer? Ground truth: LaTeX text such as `\frac{1}{2}`, or a number.

    Reads numbers, expressions, lists, sets, tuples, intervals, equations, matrices, units, percentages, choices and
    words; asks sympy where trees do not decide.
    """

    name = "math"

    def check_ground_truth(self, ground_truth: Any) -> None:
        """Raise GroundTruthError where neither path can read the gold answer."""
        check_gold(self.gold_text(ground_truth))

    def verify_fast(self, sample: Sample) -> Verdict | None:
        """The verdict of the fast path: bounded-time pure Python, no sympy."""
        try:
            if read_gold(self.gold_text(sample.ground_truth)) is None:
                return None  # only the symbolic path can tell whether the gold answer is readable
        except GroundTruthError as error:
            return Verdict.indeterminate(str(error))
        return self._judge(sample, judge_fast, read_gold)

    def verify(self, sample: Sample) -> Verdict:
        """The verdict: the fast path's where it decides, else the symbolic path's."""
        verdict = self.verify_fast(sample)
        if verdict is None:
            verdict = self._judge(sample, _judge_both, check_gold)
        if verdict is None:
            return Verdict.wrong(
                f"the answer cannot be read as mathematics or text; gold {self.gold_text(sample.ground_truth)}"
            )
        return verdict


def _judge_both(gold: str, answer: str) -> bool | None:
    decided = judge_fast(gold, answer)
    return judge_slow(gold, answer) if decided is None else decided


_NUMBER_IN_PROSE = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
_COMPARISON = re.compile(
    r"\b(?:not|than|least|most|between|or|either)\b|n't|[<>\u2264\u2265]|\\[gln]eq?(?![a-z])|\d\s*\+\s*$", re.IGNORECASE
)


@register("gsm8k")
class Gsm8kVerifier(_AnswerVerifier):
    """Is the final number the gold number? Ground truth: a number, or GSM8K's `answer` with its `####`.

    Units and percent signs are ignored; 18 and 18.00 are equal. A marked answer in prose ("The answer is that Janet
    makes $18 a day") counts when it holds exactly one number.
    """

    name = "gsm8k"
    cannot_hang = True

    def gold_text(self, ground_truth: Any) -> str:
        """The gold number as text, from behind the last `####` where there is one."""
        return super().gold_text(ground_truth).rsplit("####", 1)[-1].strip()

    def check_ground_truth(self, ground_truth: Any) -> None:
        """Raise GroundTruthError where the ground truth holds no number."""
        _gold_number(self.gold_text(ground_truth))

    def verify_fast(self, sample: Sample) -> Verdict | None:
        """The verdict; always decided."""
        return self.verify(sample)

    def verify(self, sample: Sample) -> Verdict:
        """The verdict; bounded-time pure Python."""
        verdict = self._judge(sample, _judge_number, _gold_number)
        return verdict if verdict is not None else Verdict.wrong("the answer cannot be read as a number")


def _gold_number(gold: str) -> Node:
    try:
        tree = read_answer(gold)
        if tree is not None and exact(_without_unit(tree)) is not None:
            return _without_unit(tree)
        reason = "it is no number"
    except Refused as error:
        reason = str(error)
    raise GroundTruthError(f"the gold answer {gold[:80]!r} cannot be read: {reason}. Fix the row or remove it.")


def _without_unit(tree: Node) -> Node:
    return tree.parts[0] if tree.kind in ("quantity", "percent") else tree


def _judge_number(gold: str, answer: str) -> bool | None:
    number = _gold_number(gold)
    tree = read_answer(answer)
    if tree is None or tree.kind == "text":
        found = {match.group().lstrip("$") for match in _NUMBER_IN_PROSE.finditer(answer)}
        if len(found) != 1 or _COMPARISON.search(answer):
            return False
        tree = read_answer(found.pop().rstrip(","))
    if tree is None:
        return False
    return bool(same_answer(number, _without_unit(tree)))

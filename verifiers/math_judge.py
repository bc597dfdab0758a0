r"""Judge an answer against a gold answer: equal text, then equal trees, then sympy. docs/math.md states the policy."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from verifiers.errors import GroundTruthError
from verifiers.math_compare import same_answer
from verifiers.math_reader import read_answer
from verifiers.math_tree import Node
from verifiers.math_unicode import Refused

_CHOICE = re.compile(r"\s*(?:\\text(?:bf)?\{)?\s*\(?([A-Z])(?:\)|[.:](?=\s)|\s*\}\s*[.:)])\s*\}?\s*\S*")


_TAKES_CHOICE_BACK = re.compile(
    r"\([A-Z]\)|(?:\b(?:or|and|nor|not)\b|[,/;&])[\s}]*(?:\\text(?:bf)?\{)?\s*\(?[A-Z]\b(?!\w)\)?|(?<=[)}])\s*\}?\s*is\b"
)
"""A second letter, or "(A) is wrong"."""


@functools.lru_cache(maxsize=8_192)
def read_gold(gold: str) -> Node | None:
    r"""The gold answer as a tree, or None where only the symbolic path may read it.

    Raises GroundTruthError for a gold answer that no path may read.

    >>> read_gold("9^{9^{9}}")
    Traceback (most recent call last):
    ...
    verifiers.errors.GroundTruthError: the gold answer '9^{9^{9}}' cannot be read: a power in the answer is too large...
    """
    try:
        tree = read_answer(gold)
        if tree is not None:
            same_answer(tree, tree)
    except Refused as error:
        raise GroundTruthError(
            f"the gold answer {gold[:80]!r} cannot be read: {error}. Fix the row or remove it."
        ) from error
    return tree


def check_gold(gold: str) -> None:
    """Raise GroundTruthError where neither path can read the gold answer. May import sympy."""
    if read_gold(gold) is not None:
        return
    from verifiers.math_symbolic import is_parsable

    try:
        if is_parsable(gold):
            return
        reason = "it is neither in the fast path's grammar nor in latex2sympy's"
    except Refused as error:
        reason = str(error)
    raise GroundTruthError(f"the gold answer {gold[:80]!r} cannot be read: {reason}. Fix the row or remove it.")


def judge_fast(gold: str, answer: str) -> bool | None:
    """Whether an answer is the gold answer, None when only the symbolic path can tell.

    Raises Refused for an answer that no stage may read, GroundTruthError as `read_gold` does.
    """
    gold_tree = read_gold(gold)
    if gold_tree is None:
        return None
    if _same_text(gold, answer):
        return True
    answer_tree = read_answer(_choice_letter(gold_tree, answer))
    return same_answer(gold_tree, answer_tree) if answer_tree is not None else None


_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def _same_text(gold: str, answer: str) -> bool:
    """Equal but for white space, except between digits: 1 1/2 is not 11/2."""
    return "".join(answer.split()) == "".join(gold.split()) and _SPACE.sub("", answer) == _SPACE.sub("", gold)


def _choice_letter(gold: Node, answer: str) -> str:
    """The letter of "(B) 12 apples" or "B. twelve" where the gold answer is such a letter, else the answer itself."""
    if gold.kind == "symbol" and len(gold.value) == 1 and gold.value.isupper() and (match := _CHOICE.match(answer)):
        return answer if _TAKES_CHOICE_BACK.search(answer, match.end(1)) else match.group(1)
    return answer


def judge_slow(gold: str, answer: str) -> bool | None:
    """The symbolic path's judgement; None where it cannot parse the answer, which is then not the gold answer.

    Raises Refused for an answer that costs too much, GroundTruthError for a gold answer that nothing can read.
    """
    from verifiers.math_symbolic import symbolically_equal

    check_gold(gold)
    if _same_text(gold, answer):
        return True
    try:
        return symbolically_equal(gold, answer)
    except Refused:
        if _is_too_costly(gold):  # the gold answer is readable by the fast path only, and that could not decide
            return False
        raise


def _is_too_costly(text: str) -> bool:
    from verifiers.math_symbolic import refuse_costly

    try:
        refuse_costly(text)
    except Refused:
        return True
    return False


def judge_all(
    gold: str, answers: Sequence[str], judge: Callable[[str, str], Any], *, may_list: bool = True
) -> bool | None:
    r"""Whether each of several answers is the gold answer, or all together are the list that the gold answer is.

    >>> judge_all("1, 2", ["2", "1"], judge_fast), judge_all("2", ["1", "2"], judge_fast)
    (True, False)
    """
    decisions = [judge(gold, answer) for answer in answers]
    if all(decisions):
        return True
    gold_tree = read_gold(gold)
    if len(answers) > 1 and may_list and gold_tree is not None and gold_tree.kind in ("list", "set"):
        together = judge(gold, ", ".join(answers))
        return True if together else None if None in (together, *decisions) else False
    return False if False in decisions else None

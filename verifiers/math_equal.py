"""Equality of two expressions by their values.

Two expressions are equal when their exact values are, or when they agree to 40 digits, at three points if they have
variables (which are taken as positive). That two different analytic expressions agree at points with random digits is
out of the question for answers that a person would write (the Schwartz-Zippel argument, with 40 digits of room).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from verifiers.math_tree import Node
from verifiers.math_values import Point, contains, exact, mp, numeric, symbols

_POINTS = 3
_MIN_DECIMALS = 6
"""A decimal with at least as many places stands for a number without finite decimals, if it is its correct rounding."""


def _literal(node: Node) -> tuple[Fraction, int] | None:
    """Value and decimals of a decimal literal with its sign, else None."""
    if node.kind == "negate":
        inner = _literal(node.parts[0])
        return (-inner[0], inner[1]) if inner else None
    return (node.value, node.note or 0) if node.kind == "number" else None


def _has_finite_decimals(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def is_rounding(decimal: Node, other: Node, *, min_decimals: int = _MIN_DECIMALS) -> bool:
    """Whether a decimal literal is the correct rounding of a number that has no finite decimals.

    Called only for expressions without variables. 0.333333 is 1/3; 0.33 is not (too few places), nor is 0.333334.
    """
    literal = _literal(decimal)
    if literal is None or literal[1] < min_decimals:
        return False
    value = exact(other)
    half_unit = Fraction(1, 2 * 10 ** literal[1])
    if value is not None:
        return not _has_finite_decimals(value) and abs(value - literal[0]) <= half_unit
    difference = numeric(other) - mp().mpf(literal[0].numerator) / literal[0].denominator
    return bool(mp().im(difference) == 0 and abs(difference) * half_unit.denominator <= half_unit.numerator)


def same_value(gold: Node, answer: Node) -> bool | None:
    """Whether two expressions are equal; None where the numbers are too close or too odd to tell.

    Raises Refused where a number is too large, Unreadable where an expression has no value.
    """
    first, second = exact(gold), exact(answer)
    if first is not None and second is not None:
        return first == second or is_rounding(answer, gold) or is_rounding(gold, answer)
    if gold == answer:
        return True
    if contains(gold, "constant", "infty") or contains(answer, "constant", "infty"):
        return _same_infinity(gold, answer)
    if contains(gold, "call") != contains(answer, "call"):
        return None  # f(x) and f times x
    has_variables = bool(symbols(gold) | symbols(answer)) or contains(gold, "call")
    decisions = {
        _agree_everywhere(gold, answer, points) for points in _readings(gold, answer, has_variables=has_variables)
    }
    if len(decisions) != 1:
        return None
    decided = decisions.pop()
    if decided is False and not has_variables:
        return is_rounding(answer, gold) or is_rounding(gold, answer)
    return decided


def _readings(gold: Node, answer: Node, *, has_variables: bool) -> list[list[Point]]:
    """For each way to read the notation, the points at which the two expressions must agree."""
    draws = range(_POINTS if has_variables else 1)
    has_bars = contains(gold, "absolute") or contains(answer, "absolute")
    signs = (False, True) if has_bars and has_variables else (False,)
    has_log = contains(gold, "function", "log") or contains(answer, "function", "log")
    bases = (0, 10) if has_log else (0,)
    return [[Point(draw, has_negatives, log_base) for has_negatives in signs for draw in draws] for log_base in bases]


def _agree_everywhere(gold: Node, answer: Node, points: list[Point]) -> bool | None:
    for point in points:
        decided = _agree(numeric(gold, point), numeric(answer, point))
        if not decided:
            return decided
    return True


def _same_infinity(gold: Node, answer: Node) -> bool | None:
    def sign(node: Node) -> int | None:
        if node.kind == "negate":
            inner = sign(node.parts[0])
            return -inner if inner is not None else None
        if node.kind == "constant" and node.value == "infty":
            return 1
        return 0 if not contains(node, "constant", "infty") else None

    signs = sign(gold), sign(answer)
    return None if None in signs else signs[0] == signs[1]


def _agree(first: Any, second: Any) -> bool | None:
    scale = max(abs(first), abs(second))
    if scale == 0:
        return True
    if scale < 1e-30:
        return None  # as small as what cancellation leaves behind
    relative = abs(first - second) / scale
    if relative <= 1e-40:
        return True
    return False if relative > 1e-25 else None


def proportional(first: Node, second: Node) -> int | None:
    """Sign of the constant c with first = c * second at every point; 0 where there is none, None where unknown."""
    if not symbols(first):
        return None
    if symbols(first) != symbols(second):
        return 0
    signs = {_sign_of_ratio(first, second, points) for points in _readings(first, second, has_variables=True)}
    return signs.pop() if len(signs) == 1 else None


def _sign_of_ratio(first: Node, second: Node, points: list[Point]) -> int | None:
    ratios = []
    for point in points:
        denominator = numeric(second, point)
        if abs(denominator) < 1e-30:
            return None
        ratios.append(numeric(first, point) / denominator)
    decisions = {_agree(ratios[0], ratio) for ratio in ratios[1:]}
    if decisions != {True}:
        return None if None in decisions else 0
    if mp().im(ratios[0]) != 0 or abs(ratios[0]) < 1e-30:
        return None
    return 1 if mp().re(ratios[0]) > 0 else -1

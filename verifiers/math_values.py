"""Values of expressions: exact rationals, else 60-digit numbers at fixed points. Every step is bounded.

Two expressions are equal when their exact values are, or when they agree to 40 digits, at three points if they have
variables (which are taken as positive). Agreement at random points of two different analytic expressions is the
Schwartz-Zippel argument: with 40 digits a coincidence is out of the question for answers that a person would write.
"""

from __future__ import annotations

import functools
import math
import zlib
from fractions import Fraction
from typing import Any

from verifiers.math_tokens import Unreadable
from verifiers.math_tree import Node
from verifiers.math_unicode import Refused

MAX_BITS = 20_000
"""Largest integer that is calculated: about 6,000 digits."""
_DIGITS = 60
_POINTS = 3
_MIN_DECIMALS = 6
"""A decimal with at least as many places stands for a number without finite decimals, if it is its correct rounding."""


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables of an expression."""
    if node.kind == "symbol":
        return frozenset((node.value,))
    return frozenset().union(*map(symbols, node.parts)) if node.parts else frozenset()


def contains(node: Node, kind: str, value: Any = None) -> bool:
    """Whether a node of this kind (and value) occurs in the tree."""
    if node.kind == kind and (value is None or node.value == value):
        return True
    return any(contains(part, kind, value) for part in node.parts)


def exact(node: Node) -> Fraction | None:
    """The rational value, or None where there is none. Raises Refused above MAX_BITS, Unreadable for x/0."""
    if node.kind == "number":
        return node.value
    if node.kind not in _EXACT:
        return None
    parts = []
    for part in node.parts:
        value = exact(part)
        if value is None:
            return None
        parts.append(value)
    result = _EXACT[node.kind](*parts)
    if result is not None and max(result.numerator.bit_length(), result.denominator.bit_length()) > MAX_BITS:
        raise Refused("a number of the answer is too large to calculate")
    return result


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise Unreadable("a division by zero")
    return a / b


def _multiply(*factors: Fraction) -> Fraction:
    product = Fraction(1)
    for factor in factors:
        product *= factor
    return product


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _root_of(_power_checked(base, exponent.numerator), Fraction(exponent.denominator))
    return _power_checked(base, exponent.numerator)


def _power_checked(base: Fraction, exponent: int) -> Fraction:
    if base == 0 and exponent <= 0:
        raise Unreadable("0 to a power that is not positive")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and (bits - 1) * abs(exponent) > MAX_BITS:
        raise Refused("a power in the answer is too large to calculate")
    if base in (0, 1, -1):
        exponent %= 2
        return base**exponent if base else base
    return base**exponent


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > 1_000:
            return None
        root = round(value ** (1 / degree))
    return root if root**degree == value else None


def _root_of(radicand: Fraction, degree: Fraction) -> Fraction | None:
    if degree.denominator != 1 or not 1 <= degree <= 100 or radicand < 0:
        return None
    numerator = _integer_root(radicand.numerator, int(degree))
    denominator = _integer_root(radicand.denominator, int(degree))
    return Fraction(numerator, denominator) if numerator is not None and denominator else None


def _factorial(n: Fraction) -> Fraction | None:
    if n.denominator != 1 or n < 0:
        return None
    if n > 1_500:
        raise Refused("a factorial in the answer is too large to calculate")
    return Fraction(math.factorial(int(n)))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or n < 0:
        return None
    if n > 5_000:
        raise Refused("a binomial in the answer is too large to calculate")
    return Fraction(math.comb(int(n), int(k)) if k >= 0 else 0)


_EXACT: dict[str, Any] = {
    "add": lambda *terms: sum(terms, Fraction(0)),
    "multiply": _multiply,
    "divide": _divide,
    "negate": lambda a: -a,
    "power": _power,
    "root": _root_of,
    "absolute": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceiling": lambda a: Fraction(math.ceil(a)),
    "factorial": _factorial,
    "binomial": _binomial,
}


@functools.cache
def _mp() -> Any:
    """A private mpmath context: its precision is ours alone, whatever other code sets."""
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.dps = _DIGITS
    return context


def _point(name: str, index: int) -> Any:
    """A fixed positive number for a variable: 0.3 to 3.3, with 9 digits that no answer contains."""
    return _mp().mpf(300_000_007 + zlib.crc32(f"{name} {index}".encode()) % 3_000_000_019) / 1_000_000_000


def numeric(node: Node, index: int) -> Any:
    """The value at the point `index`, to 60 digits. Raises Unreadable where it is undefined or has two readings."""
    value = None if node.kind in ("symbol", "constant", "function") else exact(node)
    if value is not None:
        return _mp().mpf(value.numerator) / value.denominator
    if node.kind == "symbol":
        return _point(node.value, index)
    if node.kind == "constant":
        return _constant(node.value)
    if node.kind == "function":
        return _function(node, index)
    if node.kind not in _NUMERIC:
        raise Unreadable(f"a {node.kind} has no value")
    if node.kind in ("floor", "ceiling") and symbols(node):
        raise Unreadable("a floor of variables is not analytic")
    try:
        result = _NUMERIC[node.kind](*[numeric(part, index) for part in node.parts])
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Unreadable("the expression has no value at a test point") from error
    if not _mp().isfinite(result):
        raise Unreadable("the expression has no finite value")
    return result


def _constant(name: str) -> Any:
    if name == "infty":
        raise Unreadable("infinity has no value")
    return {"pi": +_mp().pi, "e": _mp().e + 0, "i": _mp().mpc(0, 1)}[name]


def _numeric_power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 5_000 or (base != 0 and abs(exponent * _mp().log(abs(base))) > 20_000):
        raise Refused("a power in the answer is too large to calculate")
    return base**exponent


def _numeric_root(radicand: Any, degree: Any) -> Any:
    if degree == 0 or abs(degree) > 1_000:
        raise Unreadable("a root of this degree")
    if degree != 2 and (_mp().im(radicand) != 0 or radicand < 0):
        raise Unreadable("a root of a negative number has two readings")
    return _mp().sqrt(radicand) if degree == 2 else radicand ** (1 / degree)


def _numeric_factorial(n: Any) -> Any:
    if abs(n) > 200:
        raise Refused("a factorial in the answer is too large to calculate")
    return _mp().gamma(n + 1)


def _numeric_product(*factors: Any) -> Any:
    product = _mp().mpf(1)
    for factor in factors:
        product *= factor
    return product


def _numeric_binomial(n: Any, k: Any) -> Any:
    return _numeric_factorial(n) / (_numeric_factorial(k) * _numeric_factorial(n - k))


_NUMERIC: dict[str, Any] = {
    "add": lambda *terms: sum(terms, _mp().mpf(0)),
    "multiply": _numeric_product,
    "divide": lambda a, b: a / b,
    "negate": lambda a: -a,
    "power": _numeric_power,
    "root": _numeric_root,
    "absolute": abs,
    "floor": lambda a: _mp().floor(a),
    "ceiling": lambda a: _mp().ceil(a),
    "factorial": _numeric_factorial,
    "binomial": _numeric_binomial,
}
_FUNCTION_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _function(node: Node, index: int) -> Any:
    mp = _mp()
    arguments = [numeric(part, index) for part in node.parts]
    if any(abs(argument) > 10_000 for argument in arguments):
        raise Unreadable("a function of a large number")
    name = node.value
    try:
        if name == "log":
            if len(arguments) == 1:
                raise Unreadable("log without a base has two readings")
            return mp.log(arguments[0]) / mp.log(arguments[1])
        if len(arguments) != 1:
            raise Unreadable(f"{name} with an index")
        return getattr(mp, _FUNCTION_NAMES.get(name, name))(arguments[0])
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Unreadable("a function has no value at a test point") from error


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
    mp = _mp()
    difference = numeric(other, 0) - mp.mpf(literal[0].numerator) / literal[0].denominator
    return bool(mp.im(difference) == 0 and abs(difference) * half_unit.denominator <= half_unit.numerator)


def same_value(gold: Node, answer: Node) -> bool | None:
    """Whether two expressions are equal; None where the numbers are too close or too odd to tell.

    Raises Refused where a number is too large, Unreadable where an expression has no value.
    """
    first, second = exact(gold), exact(answer)
    if first is not None and second is not None:
        if first == second:
            return True
        return is_rounding(answer, gold) or is_rounding(gold, answer)
    if gold == answer:
        return True
    infinite = [contains(node, "constant", "infty") for node in (gold, answer)]
    if any(infinite):
        return _same_infinity(gold, answer)
    variables = symbols(gold) | symbols(answer)
    if not variables:
        decided = _agree(numeric(gold, 0), numeric(answer, 0))
        return decided if decided is not False else is_rounding(answer, gold) or is_rounding(gold, answer)
    for index in range(_POINTS):
        decided = _agree(numeric(gold, index), numeric(answer, index))
        if not decided:
            return decided
    return None if contains(gold, "absolute") != contains(answer, "absolute") else True


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
    """Sign of the constant c with first = c * second at every point; None where there is none."""
    if symbols(first) != symbols(second) or not symbols(first):
        return None
    ratios = []
    for index in range(_POINTS):
        denominator = numeric(second, index)
        if abs(denominator) < 1e-30:
            return None
        ratios.append(numeric(first, index) / denominator)
    if _mp().im(ratios[0]) != 0 or abs(ratios[0]) < 1e-30 or not all(_agree(ratios[0], ratio) for ratio in ratios[1:]):
        return None
    return 1 if _mp().re(ratios[0]) > 0 else -1

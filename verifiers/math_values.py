"""Values of expressions: exact rationals, else 60-digit numbers at fixed points. Every step is bounded.

Nothing here decides; verifiers/math_equal.py compares.
"""

from __future__ import annotations

import functools
import math
import zlib
from fractions import Fraction
from typing import Any, NamedTuple

from verifiers.math_tokens import Unreadable
from verifiers.math_tree import Node
from verifiers.math_unicode import Refused

MAX_BITS = 20_000
"""Largest integer that is calculated: about 6,000 digits."""
_DIGITS = 60


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
    if n > 2_100:
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
def mp() -> Any:
    """A private mpmath context: its precision is ours alone, whatever other code sets."""
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.dps = _DIGITS
    return context


class Point(NamedTuple):
    """Where expressions are evaluated: values of the variables, and the reading of notation that has two."""

    draw: int = 0
    has_negatives: bool = False
    """Whether half of the variables are negative; otherwise all are positive."""
    log_base: int = 0
    """Base of a logarithm that is written without one; 0 is the natural logarithm."""


def _value_of(name: str, point: Point) -> Any:
    """A fixed number for a variable: 0.3 to 3.3 in size, with 9 digits that no answer contains.

    With negatives, every other draw is one, so that |x| and x differ at one of two draws whatever x is called.
    """
    size = mp().mpf(300_000_007 + zlib.crc32(f"{name} {point.draw}".encode()) % 3_000_000_019) / 1_000_000_000
    is_negative = point.has_negatives and (zlib.crc32(name.encode()) + point.draw) % 2
    return -size if is_negative else size


def numeric(node: Node, point: Point = Point()) -> Any:  # noqa: B008 - an immutable default
    """The value at a point, to 60 digits. Raises Unreadable where it is undefined, Refused where it is too large."""
    value = None if node.kind in ("symbol", "constant", "function", "call") else exact(node)
    if value is not None:
        return mp().mpf(value.numerator) / value.denominator
    if node.kind == "symbol":
        return _value_of(node.value, point)
    if node.kind == "constant":
        return _constant(node.value)
    if node.kind == "function":
        return _function(node, point)
    if node.kind == "call":  # f(x): some fixed analytic function that belongs to the name
        return mp().cos(
            _value_of(node.value, point) * numeric(node.parts[0], point) + _value_of(f"{node.value}(", point)
        )
    if node.kind not in _NUMERIC:
        raise Unreadable(f"a {node.kind} has no value")
    if node.kind in ("floor", "ceiling") and symbols(node):
        raise Unreadable("a floor of variables is not analytic")
    try:
        result = _NUMERIC[node.kind](*[numeric(part, point) for part in node.parts])
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Unreadable("the expression has no value at a test point") from error
    if not mp().isfinite(result):
        raise Unreadable("the expression has no finite value")
    return result


def _constant(name: str) -> Any:
    if name == "infty":
        raise Unreadable("infinity has no value")
    return {"pi": +mp().pi, "e": mp().e + 0, "i": mp().mpc(0, 1)}[name]


def _numeric_power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 5_000 or (base != 0 and abs(exponent * mp().log(abs(base))) > 20_000):
        raise Refused("a power in the answer is too large to calculate")
    return base**exponent


def _numeric_root(radicand: Any, degree: Any) -> Any:
    if degree == 0 or abs(degree) > 1_000:
        raise Unreadable("a root of this degree")
    if degree != 2 and (mp().im(radicand) != 0 or radicand < 0):
        raise Unreadable("a root of a negative number has two readings")
    return mp().sqrt(radicand) if degree == 2 else radicand ** (1 / degree)


def _numeric_factorial(n: Any) -> Any:
    if abs(n) > 200:
        raise Refused("a factorial in the answer is too large to calculate")
    return mp().gamma(n + 1)


def _numeric_product(*factors: Any) -> Any:
    product = mp().mpf(1)
    for factor in factors:
        product *= factor
    return product


def _numeric_binomial(n: Any, k: Any) -> Any:
    return _numeric_factorial(n) / (_numeric_factorial(k) * _numeric_factorial(n - k))


_NUMERIC: dict[str, Any] = {
    "add": lambda *terms: sum(terms, mp().mpf(0)),
    "multiply": _numeric_product,
    "divide": lambda a, b: a / b,
    "negate": lambda a: -a,
    "power": _numeric_power,
    "root": _numeric_root,
    "absolute": abs,
    "floor": lambda a: mp().floor(a),
    "ceiling": lambda a: mp().ceil(a),
    "factorial": _numeric_factorial,
    "binomial": _numeric_binomial,
}
_FUNCTION_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _function(node: Node, point: Point) -> Any:
    arguments = [numeric(part, point) for part in node.parts]
    if any(abs(argument) > 10_000 for argument in arguments):
        raise Unreadable("a function of a large number")
    name = node.value
    try:
        if name == "log":
            base = arguments[1] if len(arguments) > 1 else point.log_base or mp().e
            return mp().log(arguments[0]) / mp().log(base)
        if len(arguments) != 1:
            raise Unreadable(f"{name} with an index")
        return getattr(mp(), _FUNCTION_NAMES.get(name, name))(arguments[0])
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Unreadable("a function has no value at a test point") from error

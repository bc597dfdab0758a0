"""The judge's half of a test: evaluate `<value> == [1, 2]` here, on plain values that the program's process sent.

A small evaluator of Python expressions, not `eval`: literals, comparisons, arithmetic and a few pure functions. The
values come from an untrusted process, so every operation whose cost could grow out of bounds is limited.
"""

from __future__ import annotations

import ast
import decimal
import fractions
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from verifiers.sandbox_values import MOST_FRACTION_BITS, Opaque, Stream, checked_keys

_LONGEST = 1_000_000
_MOST_BITS = 100_000
_MOST_JOINED = 10_000
_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_NUMBERS = (bool, int, float, complex, fractions.Fraction, decimal.Decimal)


class NotEvaluable(Exception):
    """An expression outside the small language: the test must run as Python, in a process of its own."""


class TestFailed(Exception):
    """The operands do not allow the comparison (a `TypeError` in Python), or it would cost too much."""

    __test__ = False  # pytest: not a test class


def _items(value: Any) -> list[Any]:
    if isinstance(value, range) and len(value) > _LONGEST:
        raise TestFailed(f"a range of {len(value)} items")
    if isinstance(value, Opaque) or not hasattr(value, "__iter__"):
        raise TestFailed(f"{_name(value)} has no items")
    return list(value)


def _name(value: Any) -> str:
    return value.type_name if isinstance(value, Opaque) else type(value).__name__


def _real(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, fractions.Fraction)):
        raise TestFailed(f"{_name(value)} is not a real number")
    return value


def _length(value: Any) -> int:
    if isinstance(value, (Opaque, Stream)):
        raise TestFailed(f"{_name(value)} has no length")
    return len(value)


def _sum(value: Any, start: Any = 0) -> Any:
    total, items = start, _items(value)
    if not isinstance(start, _NUMBERS) and len(items) > _MOST_JOINED:
        raise TestFailed(f"a sum of {len(items)} sequences")  # each addition copies all before it
    for item in items:
        total = _arithmetic(ast.Add, total, item)
    return total


def _round(value: Any, digits: Any = None) -> Any:
    if digits is not None and not (isinstance(digits, int) and abs(digits) <= 1000):
        raise TestFailed("rounding to more than 1000 digits")
    return round(_real(value), digits)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": _length,
    "list": lambda value=(): _items(value),
    "tuple": lambda value=(): tuple(_items(value)),
    "set": lambda value=(): set(checked_keys(_items(value))),
    "frozenset": lambda value=(): frozenset(checked_keys(_items(value))),
    "sorted": lambda value, reverse=False: sorted(_items(value), reverse=reverse),
    "sum": _sum,
    "min": lambda *values: min(_items(values[0]) if len(values) == 1 else values),
    "max": lambda *values: max(_items(values[0]) if len(values) == 1 else values),
    "all": lambda value: all(_items(value)),
    "any": lambda value: any(_items(value)),
    "round": _round,
    "bool": lambda value=False: bool(value),
    "float": lambda value=0.0: float(value) if isinstance(value, (int, float, str)) else float(_real(value)),
    "isinstance": isinstance,
    "type": type,
    "math.isclose": lambda a, b, rel_tol=1e-9, abs_tol=0.0: math.isclose(
        _real(a), _real(b), rel_tol=rel_tol, abs_tol=abs_tol
    ),
    "math.fabs": lambda value: math.fabs(_real(value)),
    "math.sqrt": lambda value: math.sqrt(_real(value)),
    "math.floor": lambda value: math.floor(_real(value)),
    "math.ceil": lambda value: math.ceil(_real(value)),
    "math.isnan": lambda value: math.isnan(_real(value)),
    "math.isinf": lambda value: math.isinf(_real(value)),
}
"""Functions that tests may apply to values here; none can take long."""
CONSTANTS = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "inf", "nan", "tau")}

_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, owner: item in (_items(owner) if isinstance(owner, Stream) else owner),
    ast.NotIn: lambda item, owner: item not in (_items(owner) if isinstance(owner, Stream) else owner),
}
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def _is_sized(value: Any) -> bool:
    return isinstance(value, (str, bytes, list, tuple))


def _bits(value: Any) -> int:
    if isinstance(value, fractions.Fraction):
        return max(value.numerator.bit_length(), value.denominator.bit_length())
    return value.bit_length() if isinstance(value, int) else 0


def _arithmetic(kind: type, left: Any, right: Any) -> Any:
    numbers = isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)
    for value in (left, right):
        if _bits(value) > (MOST_FRACTION_BITS if isinstance(value, fractions.Fraction) else _MOST_BITS):
            raise TestFailed(f"arithmetic on a number of {_bits(value)} bits")
    if kind is ast.Pow and not (numbers and abs(right) <= 1000 and _bits(left) <= 100):
        raise TestFailed("a power too large to compute here")
    if kind is ast.Mult and not numbers:
        sized, count = (left, right) if _is_sized(left) else (right, left)
        if not (_is_sized(sized) and isinstance(count, int) and len(sized) * count <= _LONGEST):
            raise TestFailed(f"cannot multiply {_name(left)} by {_name(right)} here")
    elif (
        not numbers
        and not (kind is ast.Add and _is_sized(left))
        and not (kind is ast.Sub and isinstance(left, (set, frozenset)))
    ):
        raise TestFailed(f"no such operation on {_name(left)} and {_name(right)}")
    return ARITHMETIC[kind](left, right)


def evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """The value of an expression in which `values` stand for the calls.

    Args:
        node: from `split` in code_convert.
        values: placeholder name to value; a value that is an exception is raised when the expression reaches it.

    Raises:
        TestFailed: the operands do not allow it.
        NotEvaluable: a construct outside the small language.
    """
    try:
        return _evaluate(node, values)
    except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, decimal.DecimalException) as error:
        raise TestFailed(f"{type(error).__name__}: {error}") from error


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    def inner(child: ast.expr) -> Any:
        return _evaluate(child, values)

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in values:
            if isinstance(values[name], Exception):
                raise values[name]
            return values[name]
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Compare(left=left, ops=operators, comparators=others):
            return _compare(inner(left), operators, others, inner)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(inner(part) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(inner(part) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not inner(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -inner(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +inner(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return _arithmetic(type(op), inner(left), inner(right))
        case ast.List(elts=items):
            return [inner(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(inner(item) for item in items)
        case ast.Set(elts=items):
            return {inner(item) for item in items}
        case ast.Dict(keys=keys, values=items) if None not in keys:
            return {inner(k): inner(v) for k, v in zip(keys, items, strict=True) if k is not None}
        case ast.Subscript(value=owner, slice=index) if not isinstance(index, ast.Slice):
            return inner(owner)[inner(index)]
        case ast.Attribute() if (constant := ast.unparse(node)) in CONSTANTS:
            return CONSTANTS[constant]
        case ast.Call(func=function, args=arguments, keywords=keywords) if (
            called := ast.unparse(function)
        ) in FUNCTIONS:
            named = {keyword.arg: inner(keyword.value) for keyword in keywords if keyword.arg}
            return FUNCTIONS[called](*[inner(argument) for argument in arguments], **named)
    raise NotEvaluable(ast.unparse(node)[:80])


def _compare(left: Any, operators: list[ast.cmpop], others: list[ast.expr], inner: Callable[[ast.expr], Any]) -> bool:
    for op, other in zip(operators, others, strict=True):
        right = inner(other)
        if isinstance(op, (ast.Is, ast.IsNot)):
            # identity means something for None, True and False only, once a value has crossed between processes
            if not any(isinstance(value, (type(None), bool, type)) for value in (left, right)):
                raise NotEvaluable("identity of objects")
            holds = (left is right) == isinstance(op, ast.Is)
        else:
            holds = bool(_COMPARISONS[type(op)](left, right))
        if not holds:
            return False
        left = right
    return True

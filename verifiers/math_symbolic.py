r"""The slow path: ask math-verify and sympy, for answers that the fast path cannot read or decide.

Text reaches latex2sympy's grammar only (an ANTLR parser), never `parse_expr`, `sympify` or `eval`: math-verify's
extraction of plain expressions, which calls `parse_expr`, is not used. What could take long to parse or to simplify
is refused first; what still hangs is for the pool to kill. math-verify's own timeouts need SIGALRM and the
main thread, and cancel an outer alarm, so they are off.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from verifiers.math_tokens import FUNCTIONS, Token, Unreadable, tokenize
from verifiers.math_tree import check_nesting, number, split_top
from verifiers.math_unicode import Refused, to_latex
from verifiers.math_units import words

MAX_CHARACTERS = 300
_MAX_DIGITS = 30
_MAX_SYMBOLIC_TOKENS = 60
_MAX_FUNCTIONS = 3
_MAX_POWERS = 4
_MAX_EXPONENT = 12
_MAX_FACTORIAL = 100
_MAX_ARGUMENT = 10_000
_COSTLY = frozenset(
    words(
        "int iint iiint oint sum prod lim limsup liminf partial frac\\partial det gcd lcm binom choose pmod bmod mod "
        "exp sinh cosh tanh begin end xrightarrow operatorname norm to rightarrow Rightarrow"
    )
)
_DROPPED = frozenset(words("' ldots cdots dots dotsc dotsb vdots ddots prime"))
"""What latex2sympy's grammar or its normalisation forgets: 4 and 4... are not the same answer."""
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1},}}")
_COMMA_NUMBER = re.compile(r"\s*-?\d{1,3}(,\d{3})+(\.\d+)?\s*")


def refuse_costly(text: str) -> None:
    """Raise Refused for what sympy could take long over: size, towers, large powers and factorials, sums, integrals.

    >>> refuse_costly("x^{2}+1")
    >>> refuse_costly("9^{9^9}")
    Traceback (most recent call last):
    ...
    verifiers.math_unicode.Refused: a power of a power is not given to the symbolic path
    """
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"{len(text)} characters are too many for the symbolic path (at most {MAX_CHARACTERS})")
    text = to_latex(text)
    if _LONG_NUMBER.search(text):
        raise Refused(f"a number of more than {_MAX_DIGITS} digits is not given to the symbolic path")
    tokens = tokenize(text)
    try:
        check_nesting(tokens)
    except Unreadable as error:
        raise Refused(f"not given to the symbolic path: {error}") from error
    if "phantom" in text:
        raise Refused("\\phantom is not given to the symbolic path, which would read what it hides")
    for position, token in enumerate(tokens):
        if token.text == "!" and token.kind == "sign":
            _refuse_factorial(tokens, position)
        if token.text in _DROPPED and token.kind in ("sign", "command"):
            raise Refused(f"{token.text} is not given to the symbolic path, which would pass it over")
        if token.kind == "begin" or (token.kind == "command" and token.text in _COSTLY):
            raise Refused(f"\\{token.text} is not given to the symbolic path")
    functions = sum(token.kind == "command" and token.text in FUNCTIONS for token in tokens)
    if len(tokens) > _MAX_SYMBOLIC_TOKENS or functions > _MAX_FUNCTIONS:
        raise Refused(f"{len(tokens)} tokens with {functions} functions are too many for the symbolic path")
    if functions and any(token.kind == "number" and float(token.text) > _MAX_ARGUMENT for token in tokens):
        raise Refused(f"a function beside a number above {_MAX_ARGUMENT} is not given to the symbolic path")
    _refuse_powers(tokens)


def _refuse_factorial(tokens: list[Token], position: int) -> None:
    """A factorial is of one letter, or of one number up to 100."""
    operand = tokens[position - 1] if position else None
    if operand is not None and operand.kind == "letter":
        return
    is_small = operand is not None and operand.kind == "number" and len(operand.text) <= 3 and operand.text.isdigit()
    if operand is None or not is_small or int(operand.text) > _MAX_FACTORIAL:
        raise Refused(f"only factorials of a letter or of up to {_MAX_FACTORIAL} are given to the symbolic path")


def _refuse_powers(tokens: list[Token]) -> None:
    """At most four powers; an exponent holds no further power or function, and no number above 12."""
    if sum(token.kind == "sign" and token.text == "^" for token in tokens) > _MAX_POWERS:
        raise Refused(f"more than {_MAX_POWERS} powers are not given to the symbolic path")
    for index, token in enumerate(tokens):
        if token.text != "^" or token.kind != "sign":
            continue
        exponent, depth = [], 0
        for following in tokens[index + 1 :]:
            depth += (following.text in ("{", "(")) - (following.text in ("}", ")"))
            exponent.append(following)
            if depth <= 0 and following.text != "-":
                break
        if any(part.text in ("^", "!") or part.text in FUNCTIONS for part in exponent) or tokens[
            index + 1 + len(exponent) :
        ][:1] == [token]:
            raise Refused("a power of a power is not given to the symbolic path")
        numbers = [part.text for part in exponent if part.kind == "number"]
        if any(len(number) > 6 or float(number) > _MAX_EXPONENT for number in numbers):
            raise Refused(f"an exponent above {_MAX_EXPONENT} is not given to the symbolic path")


@functools.cache
def _math_verify() -> Any:
    import math_verify

    # It warns once per process that its timeouts are off, which is the intent.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)
    return math_verify


@functools.cache
def _grammar() -> tuple[Any, Any]:
    """latex2sympy's converter with exact numbers, and its normalisation of LaTeX.

    The converter turns digits into numbers with `sympy.Number(text)`, which sympifies the text; here `int` does it.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

    class Converter(_Latex2Sympy):  # type: ignore[misc]
        def parse_number(self, text: str) -> Any:
            value = number(text.replace(",", "")).value
            return sympy.Rational(value.numerator, value.denominator)

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    conversion = ConversionConfig(lowercase_symbols=False)
    return (
        functools.partial(Converter, config=conversion),
        functools.partial(normalize_latex, config=normalization),
    )


@functools.lru_cache(maxsize=1_024)
def parse(text: str) -> Any:
    """A sympy object, or None where the grammar does not accept the text. Raises Refused for costly text."""
    refuse_costly(text)
    from math_verify.grader import should_treat_as_complex

    converter, normalized = _grammar()
    text = to_latex(text)
    if _COMMA_NUMBER.fullmatch(text):  # the one place where the converter does not ask parse_number
        text = text.replace(",", "")
    try:
        return converter(is_real=not should_treat_as_complex(text)).parse(normalized(text))
    except Exception:  # noqa: BLE001 - its listener raises bare Exception for a syntax error, sympy anything for odd input
        return None


def symbolically_equal(gold: str, answer: str) -> bool | None:
    """math-verify's judgement, strict, to 12 decimals; None where one of the two cannot be parsed. Raises Refused."""
    if _shape(gold) != _shape(answer) or _has_number_after_words(answer):
        return False
    parsed = parse(gold), parse(answer)
    if parsed[0] is None or parsed[1] is None:
        return None
    from sympy.core.relational import Relational

    if isinstance(parsed[0], Relational) and isinstance(parsed[1], Relational):
        # math-verify would ask sympy's solve, which takes seconds
        is_same_type = type(parsed[0]) is type(parsed[1])
        return is_same_type and simplifies_to_zero(*(relation.lhs - relation.rhs for relation in parsed))
    return bool(
        _math_verify().verify(
            parsed[0], parsed[1], float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None
        )
    )


def simplifies_to_zero(first: Any, second: Any) -> bool:
    """Whether sympy simplifies the difference of two parsed expressions to 0; False for anything but expressions."""
    import sympy

    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return False
    try:
        return bool(sympy.simplify(first.doit() - second.doit()) == 0)
    except (TypeError, ValueError, AttributeError, NotImplementedError, ArithmeticError, RecursionError):
        return False


def is_parsable(text: str) -> bool:
    """Whether the symbolic path can read the text. Raises Refused for costly text."""
    return parse(text) is not None


def _has_number_after_words(text: str) -> bool:
    """5 apples and 3 pears: math-verify would drop everything behind the first unit."""
    kinds = [token.kind for token in tokenize(text)]
    has_words = [kind in ("text", "word") for kind in kinds]
    return any(has_words) and "number" in kinds[has_words.index(True) :]


def _shape(text: str) -> tuple[int, bool, bool, tuple[str, ...]]:
    """What math-verify forgets and the policy keeps: number of elements, brackets around them, a chain, a base."""
    tokens = tokenize(text)
    elements, _ = split_top(tokens, (",", ";", "and", "or"))
    is_in_brackets = bool(tokens) and tokens[0].text in ("(", "[", "{") and len(elements) == 1 and len(tokens) > 2
    has_comma_inside = is_in_brackets and any(token.text == "," for token in tokens)
    sides, _ = split_top(tokens, ("=",))
    bases = tuple(
        "".join(part.text for part in tokens[index + 1 : index + 4]).strip("{}")
        for index, token in enumerate(tokens)
        if token.text == "_" and index and tokens[index - 1].kind in ("number", "text")
    )
    return len(elements), has_comma_inside, len(sides) > 2, bases

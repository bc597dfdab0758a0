"""Trees of answers: the node type, and splitting tokens at the top level of brackets."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import Any, NamedTuple

from verifiers.math_tokens import Token, Unreadable
from verifiers.math_unicode import Refused

MAX_TOKENS = 600
MAX_DEPTH = 40


class Node(NamedTuple):
    """An expression or an answer made of expressions.

    Expressions: `number` (value: Fraction; note: decimals), `symbol`, `constant` and `call` (value: name), `add`,
    `multiply`, `divide`, `power`, `negate`, `root` (radicand, degree), `function` (value: name), `absolute`, `floor`,
    `ceiling`, `factorial`, `binomial`.

    Answers: `list`, `set`, `tuple`, `interval` (note: its brackets), `union`, `matrix`
    (note: columns), `ratio`, `relation` (value: operators), `percent`, `quantity` (value: unit), `based`
    (value: digits and base), `text` (value: normalised text), `cases` of `case` (value and condition).
    """

    kind: str
    parts: tuple[Node, ...] = ()
    value: Any = None
    note: Any = None


def number(text: str) -> Node:
    """The exact value of a decimal, with its count of decimals: 0.50 is 1/2 with 2.

    >>> number("0.50").value, number("0.50").note
    (Fraction(1, 2), 2)
    """
    if len(text) <= 1_000 and text.isdigit():
        return Node("number", value=Fraction(int(text)), note=0)
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > 1_000 or len(exponent) > 5 or abs(int(exponent or 0)) > 1_000:
        raise Refused(f"the number {text[:20]}... is too large to read")
    decimals = len(mantissa.partition(".")[2])
    value = Fraction(mantissa.rstrip(".") or "0")
    if exponent:
        value *= Fraction(10) ** int(exponent)
    return Node("number", value=value, note=decimals)


_OPENERS = frozenset("([{") | {"lfloor", "lceil", "langle"}
_CLOSERS = frozenset(")]}") | {"rfloor", "rceil", "rangle"}


def nesting_step(token: Token) -> int:
    """1 for a token that opens a bracket, -1 for one that closes it, else 0."""
    if token.kind in ("sign", "command"):
        return (token.text in _OPENERS) - (token.text in _CLOSERS)
    return (token.kind == "begin") - (token.kind == "end")


def check_nesting(tokens: list[Token]) -> None:
    """Raise Refused for too many tokens or levels, Unreadable for brackets that do not match in number."""
    if len(tokens) > MAX_TOKENS:
        raise Refused(f"the answer has {len(tokens)} tokens; at most {MAX_TOKENS} are read")
    depth = deepest = 0
    for token in tokens:
        depth += nesting_step(token)
        deepest = max(deepest, depth)
        if depth < 0:
            raise Unreadable("a bracket closes that was never opened")
    if deepest > MAX_DEPTH:
        raise Refused(f"the answer nests {deepest} brackets; at most {MAX_DEPTH} are read")
    if depth:
        raise Unreadable("a bracket is never closed")


def split_top(tokens: list[Token], separators: Collection[str]) -> tuple[list[list[Token]], list[str]]:
    """Split at separator tokens outside all brackets: the pieces, and the separators between them."""
    if not any(token.text in separators for token in tokens):
        return [tokens], []
    pieces: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        depth += nesting_step(token)
        if depth == 0 and token.kind in ("sign", "command", "word") and token.text in separators:
            pieces.append([])
            found.append(token.text)
        else:
            pieces[-1].append(token)
    return pieces, found


def closing_index(tokens: list[Token], start: int) -> int:
    """Index of the token that closes the bracket at `start`."""
    depth = 0
    for index in range(start, len(tokens)):
        depth += nesting_step(tokens[index])
        if depth == 0:
            return index
    raise Unreadable("a bracket is never closed")

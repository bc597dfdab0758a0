"""Equality of unions of intervals as sets of real numbers: [1, 2] and (2, 3] together are [1, 3]."""

from __future__ import annotations

from typing import Any, NamedTuple

from verifiers.math_tokens import Unreadable
from verifiers.math_tree import Node
from verifiers.math_values import contains, exact, mp, numeric, symbols

_INFINITY = Node("constant", value="infty")
REAL_NUMBERS = Node("interval", (Node("negate", (_INFINITY,)), _INFINITY), note="()")


class _Piece(NamedTuple):
    """An interval between two numbers, or a point."""

    low: Any
    is_open_low: bool
    high: Any
    is_open_high: bool


def same_union(gold: Node, answer: Node) -> bool | None:
    """Whether two unions of intervals and points are the same set; None where an end is no real number."""
    first, second = _pieces(gold), _pieces(answer)
    if first is None or second is None:
        return None
    first, second = _merged(first), _merged(second)
    if len(first) != len(second):
        return False
    return all(
        (one.is_open_low, one.is_open_high) == (other.is_open_low, other.is_open_high)
        and _is_same(one.low, other.low)
        and _is_same(one.high, other.high)
        for one, other in zip(first, second, strict=True)
    )


def without_points(whole: Node, points: Node) -> Node:
    r"""All real numbers but some: \mathbb{R} \setminus \{2, -2\} as a union of intervals. Raises Unreadable."""
    values = {part: exact(part) for part in points.parts}
    if whole != REAL_NUMBERS or points.kind != "set" or not values or None in values.values():
        raise Unreadable("a difference of sets, but not of all real numbers and some of them")
    cuts = sorted(values, key=lambda part: values[part] or 0)
    ends = zip((REAL_NUMBERS.parts[0], *cuts), (*cuts, REAL_NUMBERS.parts[1]), strict=True)
    return Node("union", tuple(Node("interval", pair, note="()") for pair in ends))


def _is_same(first: Any, second: Any) -> bool:
    return bool(first == second or abs(first - second) <= 1e-40 * max(abs(first), abs(second)))


def _pieces(node: Node) -> list[_Piece] | None:
    if node.kind == "union":
        found = [_pieces(part) for part in node.parts]
        return None if None in found else [piece for pieces in found if pieces for piece in pieces]
    ends = [_end(part) for part in node.parts]
    if None in ends:
        return None
    if node.kind == "set":
        return [_Piece(end, False, end, False) for end in ends]
    if len(ends) != 2 or not ends[0] < ends[1]:
        return None
    brackets = node.note or "()"
    return [_Piece(ends[0], brackets[0] == "(", ends[1], brackets[1] == ")")]


def _end(node: Node) -> Any:
    if contains(node, "constant", "infty"):
        is_negative = node.kind == "negate"
        return mp().ninf if is_negative else mp().inf
    if symbols(node) or node.kind in ("quantity", "percent", "text", "relation"):
        return None
    value = numeric(node)
    return value if mp().im(value) == 0 else None


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Disjoint pieces in order; two that touch are one where at least one of them holds the common end."""
    merged: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.low, piece.is_open_low)):
        last = merged[-1] if merged else None
        touches = last is not None and (
            piece.low < last.high or (_is_same(piece.low, last.high) and not (piece.is_open_low and last.is_open_high))
        )
        if last is None or not touches:
            merged.append(piece)
        elif _is_same(piece.high, last.high):
            merged[-1] = last._replace(is_open_high=last.is_open_high and piece.is_open_high)
        elif piece.high > last.high:
            merged[-1] = last._replace(high=piece.high, is_open_high=piece.is_open_high)
    return merged

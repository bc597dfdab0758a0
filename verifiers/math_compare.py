"""Compare two answers as trees: True, False, or None where sympy must be asked. docs/math.md is the policy."""

from __future__ import annotations

from collections.abc import Sequence

from verifiers.math_equal import is_rounding, proportional, same_value
from verifiers.math_sets import REAL_NUMBERS, same_union, without_points
from verifiers.math_tokens import Unreadable
from verifiers.math_tree import Node, number
from verifiers.math_values import symbols

_HUNDRED = number("100")
_MAX_UNORDERED = 40
_STRUCTURES = frozenset(
    ("list", "set", "tuple", "interval", "union", "matrix", "ratio", "based", "text", "relation", "cases")
)
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_ARTICLES = ("a ", "an ", "the ")


def same_answer(gold: Node, answer: Node) -> bool | None:
    """Whether `answer` is the gold answer; None when undecided. Raises Refused for numbers too large to calculate."""
    try:
        return _same(gold, answer)
    except Unreadable:
        return None


def _same(gold: Node, answer: Node) -> bool | None:
    if gold.kind == "relation" or answer.kind == "relation":
        return _same_with_relation(gold, answer)
    gold, answer = _bare(gold), _bare(answer)
    if {gold.kind, answer.kind} == {"quantity", "percent"}:
        return False
    if "quantity" in (gold.kind, answer.kind):
        units = [node.value for node in (gold, answer) if node.kind == "quantity"]
        if len(units) == 2 and units[0] != units[1]:
            return False
        gold, answer = (node.parts[0] if node.kind == "quantity" else node for node in (gold, answer))
    if "percent" in (gold.kind, answer.kind):
        return _same_percent(gold, answer)
    if "text" in (gold.kind, answer.kind):
        return _same_text(gold, answer)
    if gold.kind not in _STRUCTURES and answer.kind not in _STRUCTURES:
        return same_value(gold, answer)
    return _same_structure(gold, answer)


def _bare(node: Node) -> Node:
    """A set of one element is its element; an open interval of two ends is written like a pair."""
    if node.kind == "set" and len(node.parts) == 1:
        return _bare(node.parts[0])
    if node.kind == "interval" and node.note == "()":
        return Node("tuple", node.parts)
    return node


def _same_percent(gold: Node, answer: Node) -> bool | None:
    """50% is 1/2, and the sign may be left out or added: 50% is 50."""
    if gold.kind == answer.kind:
        return same_value(gold.parts[0], answer.parts[0])
    percent, plain = (gold, answer) if gold.kind == "percent" else (answer, gold)
    if plain.kind in _STRUCTURES:
        return False
    hundredth = Node("divide", (percent.parts[0], _HUNDRED))
    return _any_of([same_value(plain, percent.parts[0]), same_value(plain, hundredth)])


def _any_of(decisions: Sequence[bool | None]) -> bool | None:
    return True if True in decisions else None if None in decisions else False


def _all_of(decisions: Sequence[bool | None]) -> bool | None:
    return False if False in decisions else None if None in decisions else True


def _same_text(gold: Node, answer: Node) -> bool:
    first, second = _words(gold), _words(answer)
    if first is None or second is None:
        return False
    if first == second:
        return True
    is_short = max(len(first), len(second)) <= 3 and (first.isupper() or second.isupper())
    return not is_short and first.lower() == second.lower()


def _words(node: Node) -> str | None:
    """The text of an answer in words, or of letters side by side ("no" is read as n times o); None for mathematics."""
    if node.kind == "text":
        text = str(node.note)
        for article in _ARTICLES:
            if text.lower().startswith(article):
                return text[len(article) :]
        return text
    if node.kind in ("symbol", "constant"):
        return str(node.value)
    if node.kind == "multiply":
        letters = [_words(part) for part in node.parts]
        return "".join(letter for letter in letters if letter) if None not in letters else None
    return None


def _same_structure(gold: Node, answer: Node) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if kinds == {"list"} or kinds == {"list", "set"} or kinds == {"set"}:
        return _same_unordered(gold, answer)
    if kinds == {"list", "tuple"}:
        return _same_point(gold, answer)
    if "list" in kinds and kinds & {"union", "interval"}:
        return _same_as_inequalities(gold, answer)
    if "union" in kinds and kinds <= {"union", "tuple", "interval", "set"}:
        return _same_unordered(gold, answer) or same_union(gold, answer)
    if gold.kind != answer.kind:
        return False
    if gold.kind == "cases":
        return _same_cases(gold, answer)
    if gold.kind == "based":
        return bool(gold.value == answer.value)
    if gold.note != answer.note or len(gold.parts) != len(answer.parts):
        return False
    return _all_of([_same(first, second) for first, second in zip(gold.parts, answer.parts, strict=True)])


def _same_cases(gold: Node, answer: Node) -> bool | None:
    """The same values under the same conditions, in any order; "otherwise" is what the other cases leave."""
    if len(gold.parts) != len(answer.parts):
        return False
    left = list(answer.parts)
    for value, condition in (case.parts for case in gold.parts):
        for case in left:
            has_rest = "text" in (condition.kind, case.parts[1].kind)
            if _same(value, case.parts[0]) and (has_rest or _same(condition, case.parts[1])):
                left.remove(case)
                break
        else:
            return False
    return True


def _same_point(gold: Node, answer: Node) -> bool | None:
    """x = 1, y = 2 against (1, 2): the coordinates in the order of their names. A bare list is no point."""
    labelled, point = (gold, answer) if gold.kind == "list" else (answer, gold)
    named = {
        part.parts[0].value: part.parts[1]
        for part in labelled.parts
        if part.kind == "relation" and part.value == ("=",) and part.parts[0].kind == "symbol"
    }
    if len(named) != len(labelled.parts) or len(named) != len(point.parts):
        return False
    values = [named[name] for name in sorted(named)]
    return _all_of([_same(first, second) for first, second in zip(point.parts, values, strict=True)])


def _same_as_inequalities(gold: Node, answer: Node) -> bool | None:
    """x < -1 or x > 1 against a union of intervals."""
    inequalities, intervals = (gold, answer) if gold.kind == "list" else (answer, gold)
    if any(part.kind != "relation" for part in inequalities.parts):
        return False
    pieces = tuple(piece for part in inequalities.parts if (piece := _as_interval(part)) is not None)
    return same_union(Node("union", pieces), intervals) if len(pieces) == len(inequalities.parts) else None


def _same_unordered(gold: Node, answer: Node) -> bool | None:
    """The same elements, each as often as the other has it; sets know no repetition."""
    first, second = list(gold.parts), list(answer.parts)
    if "set" in (gold.kind, answer.kind):
        first, second = _distinct(first), _distinct(second)
    if len(first) != len(second):
        return False
    if len(first) > _MAX_UNORDERED:
        return None
    if _has_different_labels(first) != _has_different_labels(second):  # x = 1, y = 2 against 1, 2: the order counts
        return _all_of([_same(one, other) for one, other in zip(first, second, strict=True)])
    is_undecided = False
    for element in first:
        for index, candidate in enumerate(second):
            decided = _same(element, candidate)
            if decided:
                del second[index]
                break
            is_undecided = is_undecided or decided is None
        else:
            return None if is_undecided else False
    return True


def _distinct(nodes: list[Node]) -> list[Node]:
    if len(nodes) > _MAX_UNORDERED:
        return nodes
    kept: list[Node] = []
    for node in nodes:
        if not any(_same(node, other) for other in kept):
            kept.append(node)
    return kept


def _has_different_labels(nodes: list[Node]) -> bool:
    labels = {node.parts[0] for node in nodes if node.kind == "relation" and _is_label(node.parts[0])}
    return len(labels) > 1


def _is_label(node: Node) -> bool:
    """A name for the answer: x, x_1, f(x), (x, y), "Area", or a product of letters such as AB."""
    if node.kind in ("symbol", "text", "call"):
        return True
    if node.kind in ("multiply", "tuple", "list", "set"):
        return bool(node.parts) and all(map(_is_label, node.parts))
    return False


def _is_name_of_value(node: Node) -> bool:
    """What may stand before "= 5" when 5 is the answer: a label, or an expression that is no equation to solve.

    x + y = 5 and x^2 = 25 name a value; x + 1 = 5 and 2x = 5 are equations, whose answer is another number.
    """
    if _is_label(node):
        return True
    if node.kind in ("list", "tuple", "set", "interval", "union", "matrix", "relation"):
        return False
    return len(symbols(node)) > 1 or not _has_coefficients(node)


def _has_coefficients(node: Node) -> bool:
    if node.kind == "number":
        return True
    parts = node.parts[:1] if node.kind in ("power", "root") else node.parts
    return node.kind != "call" and any(map(_has_coefficients, parts))


def _same_with_relation(gold: Node, answer: Node) -> bool | None:
    if gold.kind == "relation" and answer.kind == "relation":
        return _same_relations(gold, answer)
    relation, plain = (gold, answer) if gold.kind == "relation" else (answer, gold)
    if set(relation.value) <= {"=", "approx", "in", "equiv"}:
        if relation is gold:  # the gold names its variable, the answer does not
            if _is_label(gold.parts[0]):
                return _same(gold.parts[-1], answer)
            return _any_of([_same(part, answer) for part in gold.parts]) if set(gold.value) == {"approx"} else None
        return _value_of_chain(gold, answer)
    if relation.value == ("ne",) and plain.kind == "union" and _is_label(relation.parts[0]):
        return same_union(plain, without_points(REAL_NUMBERS, Node("set", relation.parts[1:])))
    if plain.kind in ("interval", "tuple", "union"):
        interval = _as_interval(relation)
        if interval is None:
            return None
        return _same(interval, plain) if relation is gold else _same(plain, interval)
    return False if plain.kind in ("number", "text", "matrix", "list") else None


def _value_of_chain(gold: Node, chain: Node) -> bool | None:
    """a = b = c is the gold answer when every side is, names of the value apart: 3 = 5 is not 5, 2 + 3 = 5 is."""
    sides = list(zip(("=", *chain.value), chain.parts, strict=True))
    decisions: list[bool | None] = []
    for index, (operator, side) in enumerate(sides):
        if operator == "approx":
            is_same = _same(gold, side)
            decisions.append(is_same or (bool(decisions) and is_rounding(side, gold, min_decimals=1)))
            continue
        if index < len(sides) - 1 and _is_label(side) and side != gold:
            continue
        is_constant = gold.kind not in _STRUCTURES and not symbols(gold)
        if is_constant and index < len(sides) - 1 and symbols(side) and _is_name_of_value(side):
            continue
        decisions.append(_same(gold, side))
    if chain.value[-1] == "approx" and len(decisions) > 1 and decisions[0] is False:
        return _same(gold, sides[-1][1])  # the gold itself is the rounded number
    return _all_of(decisions)


def _same_relations(gold: Node, answer: Node) -> bool | None:
    is_equation = [set(node.value) <= {"=", "in", "approx", "equiv"} for node in (gold, answer)]
    if is_equation[0] != is_equation[1]:
        return False
    labels = _is_label(gold.parts[0]), _is_label(answer.parts[0])
    if all(is_equation) and all(labels):
        if len(gold.parts) == 2 and gold.parts[0] == answer.parts[0]:
            value = Node("relation", answer.parts[1:], answer.value[1:]) if len(answer.parts) > 2 else answer.parts[1]
            return _same(gold.parts[1], value)
        if (
            not symbols(gold.parts[-1])
            and not symbols(answer.parts[-1])
            and "text"
            not in (
                gold.parts[0].kind,
                answer.parts[0].kind,
            )
        ):
            return False if gold.parts[0] != answer.parts[0] else None
        if (gold.parts[0].kind == "call") != (answer.parts[0].kind == "call") and len(gold.parts) == len(answer.parts):
            return _same(gold.parts[-1], answer.parts[-1])  # f(x) = x^2 and y = x^2
    if len(gold.parts) == 2 and len(answer.parts) == 2:
        return _same_two_sided(gold, answer)
    return _same_chain_of_inequalities(gold, answer)


def _same_two_sided(gold: Node, answer: Node) -> bool | None:
    if any(part.kind in _STRUCTURES for part in (*gold.parts, *answer.parts)):
        return None
    differences = [Node("add", (node.parts[0], Node("negate", (node.parts[1],)))) for node in (gold, answer)]
    sign = proportional(*differences)
    if not sign:
        return False if sign == 0 else None
    operator = answer.value[0]
    return bool(gold.value[0] == (operator if sign > 0 else _FLIPPED.get(operator, operator)))


def _same_chain_of_inequalities(gold: Node, answer: Node) -> bool | None:
    if len(gold.parts) != len(answer.parts):
        return None
    parts, operators = answer.parts, answer.value
    if operators and gold.value and operators[0] not in (gold.value[0], {"<": "le", "le": "<"}.get(gold.value[0])):
        parts = parts[::-1]
        operators = tuple(_FLIPPED.get(operator, operator) for operator in operators[::-1])
    decisions = [_same(first, second) for first, second in zip(gold.parts, parts, strict=True)]
    if operators != gold.value:
        return False if _all_of(decisions) else None
    return True if _all_of(decisions) else None


def _as_interval(relation: Node) -> Node | None:
    """1 <= x < 2 as [1, 2), x > 3 as (3, infinity); None for anything else."""
    parts, operators = list(relation.parts), list(relation.value)
    if len(parts) == 2 and symbols(parts[0]) and not symbols(parts[1]):
        parts, operators = parts[::-1], [_FLIPPED.get(operators[0], "")]
    infinity = Node("constant", value="infty")
    if len(parts) == 2:
        is_upper = operators[0] in (">", "ge")  # bound > x
        parts = [Node("negate", (infinity,)), parts[1], parts[0]] if is_upper else [*parts, infinity]
        operators = ["<", _FLIPPED.get(operators[0], "")] if is_upper else [operators[0], "<"]
    elif len(parts) == 3 and operators[0] in (">", "ge"):
        parts, operators = parts[::-1], [_FLIPPED.get(operator, "") for operator in operators[::-1]]
    if len(parts) != 3 or not set(operators) <= {"<", "le"} or not _is_label(parts[1]):
        return None
    if symbols(parts[0]) or symbols(parts[2]):
        return None
    brackets = ("[" if operators[0] == "le" else "(") + ("]" if operators[1] == "le" else ")")
    return Node("interval", (parts[0], parts[2]), note=brackets)

r"""Read an answer: lists, sets, tuples, intervals, relations, ratios, matrices, units and text around expressions."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from verifiers.math_expression import ExpressionParser
from verifiers.math_notation import spelled_out
from verifiers.math_sets import without_points
from verifiers.math_tokens import Token, Unreadable, tokenize
from verifiers.math_tree import Node, check_nesting, closing_index, number, split_top
from verifiers.math_units import canonical_unit, words

_SEPARATORS = frozenset((",", ";", "and", "or", "And", "Or", "AND", "OR"))
_RELATIONS = frozenset(("=", "<", ">", "le", "ge", "ne", "approx", "in", "equiv", "sim"))
_SIMPLE_NUMBER = re.compile(r"(-?)(\d{1,18}(?:\.\d{1,18})?)", re.ASCII)
_PLUS_OR_MINUS = "pm"
_LEADING_FILLERS = frozenset(
    words("about approximately exactly roughly only is are the answer final approx around nearly simply just so a an")
)
_CURRENCIES = {"$": "dollar", "euro": "euro", "pounds": "pound sterling", "yen": "yen"}
_BASE_WORDS = {word: str(base) for base, word in enumerate(words("two three four five six seven eight nine ten"), 2)}
_NOT_ONLY_A_UNIT = frozenset(
    words("or ish not wrong incorrect least most negative minus plus half halves third thirds fourths fifths sixths")
) | frozenset(words("sevenths eighths ninths tenths hundredths thousandths unknown"))
_SCALES = {"dozen": "12", "hundred": "100", "thousand": "1e3", "million": "1e6", "billion": "1e9", "trillion": "1e12"}
_CONDITION_WORDS = frozenset(words("if for when where"))
_PUNCTUATION = re.compile(r"[\s.,;:!?\"'*_()-]+")
_LABEL_COMMANDS = frozenset(("angle", "triangle", "measuredangle", "text", "overline", "odot", "triangleq"))


@functools.lru_cache(maxsize=8_192)
def read_answer(text: str) -> Node | None:
    r"""The answer as a tree, or None where it is outside the grammar. Raises Refused for what no stage may read.

    >>> read_answer(r"\text{sunday}").value, read_answer("(1, 2]").kind, read_answer(r"x = 1 \pm \sqrt{2}").kind
    ('sunday', 'interval', 'list')
    >>> read_answer("1 +") is None
    True
    """
    if simple := _SIMPLE_NUMBER.fullmatch(text):  # a third of all answers; the tree is the one that the parser builds
        node = number(simple[2])
        return Node("negate", (node,)) if simple[1] else node
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    tokens = _trim(tokenize(spelled_out(text)))
    try:
        check_nesting(tokens)
        return _read_list(tokens) if tokens else None
    except Unreadable:
        return None


def _trim(tokens: list[Token]) -> list[Token]:
    """Drop maths delimiters, a final full stop, and boxes or braces around everything."""
    if sum(token.kind == "sign" and token.text == "$" for token in tokens) % 2 == 0:
        tokens = [token for token in tokens if token.kind != "sign" or token.text != "$"]
    while tokens and tokens[-1].kind in ("sign", "command") and tokens[-1].text in (".", ",", ";", ":", "\\"):
        tokens = tokens[:-1]
    if tokens and tokens[-1].kind == "number" and tokens[-1].text.endswith("."):
        tokens = [*tokens[:-1], tokens[-1]._replace(text=tokens[-1].text.rstrip("."))]
    while tokens and tokens[0].text in ("boxed", "fbox") and len(tokens) > 1 and _is_one_bracket(tokens[1:], "{"):
        tokens = tokens[2:-1]
    while _is_one_bracket(tokens, "{") and tokens[0].kind == "sign" and not split_top(tokens[1:-1], _SEPARATORS)[1]:
        tokens = tokens[1:-1]
    return tokens


def _is_one_bracket(tokens: list[Token], opener: str) -> bool:
    if len(tokens) < 2 or tokens[0].text != opener:
        return False
    try:
        return closing_index(tokens, 0) == len(tokens) - 1
    except Unreadable:
        return False


def _read_list(tokens: list[Token]) -> Node:
    items = _read_items(tokens)
    if not items:
        raise Unreadable("nothing between separators")
    return items[0] if len(items) == 1 else Node("list", tuple(items))


def _read_items(tokens: list[Token]) -> list[Node]:
    pieces, separators = split_top(tokens, _SEPARATORS)
    if not separators and _is_text(tokens):
        return [_text_node(tokens)]
    items: list[Node] = []
    for index, piece in enumerate(pieces):
        if not piece:  # ", and" leaves an empty piece; "1,,2" and "1," are no lists
            if 0 < index < len(pieces) - 1 and separators[index] not in (",", ";"):
                continue
            raise Unreadable("an element is missing")
        items += _read_signed_items(piece)
    return items


def _read_signed_items(piece: list[Token]) -> list[Node]:
    r"""One item, or two where it holds \pm: every \pm is read as plus in the first and as minus in the second."""
    if not any(token.kind == "command" and token.text == _PLUS_OR_MINUS for token in piece):
        return [_read_item(piece)]
    both = []
    for sign in "+-":
        substituted = [
            Token("sign", sign, token.is_spaced) if token.kind == "command" and token.text == _PLUS_OR_MINUS else token
            for token in piece
        ]
        both.append(_read_item(substituted))
    return both


def _read_item(tokens: list[Token]) -> Node:
    if _is_text(tokens) or any(token.kind in ("text", "word") and _takes_back(token.text) for token in tokens[1:]):
        return _text_node(tokens)
    sides, operators = split_top(tokens, _RELATIONS)
    if operators and not sides[0] and operators[0] == "approx":
        sides, operators = sides[1:], operators[1:]
    if not operators:
        return _read_side(sides[0])
    parts = [_read_label(side) if index == 0 else _read_side(side) for index, side in enumerate(sides)]
    return Node("relation", tuple(parts), tuple(operators))


def _read_label(tokens: list[Token]) -> Node:
    r"""The left side of a relation: an expression, or a name for the answer such as `\text{Area}` or `\angle ABC`."""
    if any(token.kind in ("text", "word") or token.text in _LABEL_COMMANDS for token in tokens):
        if any(token.kind == "number" for token in tokens):
            raise Unreadable("a label with numbers")
        return _text_node(tokens)
    return _read_side(tokens)


def _takes_back(text: str) -> bool:
    """Whether words behind a number make it another number, or none: 4 or so, 4 and a half."""
    said = re.findall("[a-z]+", text.lower())
    return not _NOT_ONLY_A_UNIT.isdisjoint(said) or said[:1] in (["squared"], ["cubed"])


def _is_text(tokens: list[Token]) -> bool:
    """Words with nothing to calculate."""
    has_words = False
    for token in tokens:
        has_words = has_words or token.kind in ("text", "word")
        if token.kind not in ("text", "word", "letter") and (token.kind != "sign" or token.text not in "',.-()&:?\"/!"):
            return False
    return has_words


def _text_node(tokens: Iterable[Token]) -> Node:
    words = _PUNCTUATION.sub(" ", " ".join(token.text for token in tokens)).strip()
    return Node("text", value=words.lower(), note=words)


def _read_side(tokens: list[Token]) -> Node:
    """An expression with its unit, a union of intervals, or a ratio."""
    start = 0
    while start < len(tokens) and tokens[start].kind in ("word", "text"):
        if not set(tokens[start].text.lower().strip(" :").split()) <= _LEADING_FILLERS:
            break
        start += 1
    tokens = tokens[start:]
    if not tokens:
        raise Unreadable("a side of the answer is empty")
    for separator, kind in (("cup", "union"), (":", "ratio"), ("to", "ratio")):
        pieces, found = split_top(tokens, (separator,))
        if found:
            return Node(kind, tuple(_read_side(piece) for piece in pieces))
    pieces, found = split_top(tokens, ("setminus", "backslash"))
    if len(found) == 1:
        return without_points(*map(_read_side, pieces))
    return _read_quantity(tokens)


def _read_quantity(tokens: list[Token]) -> Node:
    negative = len(tokens) > 1 and tokens[0].text == "-" and tokens[1].text in _CURRENCIES
    tokens = tokens[1:] if negative else tokens
    currency = _CURRENCIES.get(tokens[0].text) if tokens[0].kind != "letter" else None
    if currency:
        tokens = tokens[1:]
    if len(tokens) > 4 and [token.text for token in tokens[:4:2]] == ["(", ")"] and tokens[3].text == "_":
        tokens = [tokens[1], *tokens[3:]]  # (1011)_2
    if len(tokens) >= 3 and tokens[1].text == "_" and tokens[0].kind == "number":
        return _read_based(tokens, "")
    if len(tokens) >= 4 and tokens[2].text == "_" and tokens[1].kind == "number" and tokens[0].text == "-":
        return _read_based(tokens[1:], "-")
    parser = ExpressionParser(list(tokens), _read_group)
    node = parser.sum()
    if negative:
        node = Node("negate", (node,))
    rest = parser.tokens[parser.index :]
    if len(rest) >= 2 and rest[0].text.strip().lower() == "base" and node.kind == "number":
        return _read_based([tokens[0], tokens[0], *rest[1:]], "")
    return _with_unit(node, rest, currency, has_degrees=parser.has_degrees)


def _with_unit(node: Node, rest: list[Token], currency: str | None, *, has_degrees: bool) -> Node:
    if rest and rest[0].kind in ("text", "word"):
        scale, _, others = rest[0].text.strip().partition(" ")
        if scale.lower() in _SCALES:  # 4 million apples
            node = Node("multiply", (node, number(_SCALES[scale.lower()])))
            rest = [*([rest[0]._replace(text=others)] if others else []), *rest[1:]]
    if rest and rest[0].kind in ("sign", "command") and rest[0].text == "%":
        if len(rest) > 1 and _unit(rest[1:]) is not None:
            raise Unreadable("a percentage with a unit")
        return Node("percent", (node,))
    unit = _unit(rest) if rest else None
    if has_degrees:
        letters = "".join(token.text for token in rest)
        unit = f"deg{letters}" if letters in ("C", "F") else "deg"
    if unit == "%":
        return Node("percent", (node,))
    unit = currency or unit
    return Node("quantity", (node,), unit) if unit else node


def _unit(rest: list[Token]) -> str | None:
    """The unit that the tokens after an expression spell; None for words that are no unit. Raises Unreadable."""
    words: list[str] = []
    for index, token in enumerate(rest):
        follows_power = index > 0 and words[-1:] == ["^"]
        if token.kind in ("text", "word", "letter"):
            words.append(token.text)
        elif token.kind == "number" and follows_power and token.text.isdigit():
            words[-1] = f"^{token.text}"
        elif token.kind == "sign" and token.text in "^/$.()":
            words.append(token.text)
        elif token.kind == "sign" and token.text in "{}" and index > 0:
            continue
        elif token.kind == "command" and token.text in ("$", "circ"):
            words.append("$" if token.text == "$" else "deg")
        else:
            raise Unreadable(f"{token.text!r} after the expression is no unit")
    if not any(token.kind in ("text", "word") for token in rest) and rest[0].kind == "letter" and len(rest) > 1:
        raise Unreadable("letters after the expression are no unit")
    return canonical_unit(words)


def _read_based(tokens: list[Token], sign: str) -> Node:
    r"""A number in a base: 2516_8, 2516_{8}, 2516_{\text{eight}}, 2516 base 8."""
    base = "".join(token.text for token in tokens[2:]).strip("{}() ").lower()
    base = _BASE_WORDS.get(base, base)
    if not base.isdigit():
        raise Unreadable("the base is no number")
    return Node("based", value=(sign + (tokens[0].text.lstrip("0") or "0"), base))


def _read_group(group: list[Token]) -> Node:
    r"""A bracket: grouping, a tuple, an interval, a set or a matrix."""
    opener, closer, inner = group[0], group[-1], group[1:-1]
    if opener.kind == "begin":
        return _read_matrix(opener.text, inner)
    is_escaped = opener.kind == "command"
    if opener.text == "{" and is_escaped:
        name, bar = split_top(inner, ("|", ":"))
        if len(bar) == 1 and (len(name[0]) == 1 or [token.text for token in name[0][1:]] == ["in", "mathbbR"]):
            return _read_item(name[1])  # {x | x > 3}
        return Node("set", tuple(_read_items(inner)) if inner else ())
    if not inner:
        raise Unreadable("an empty bracket")
    items = _read_items(inner)
    brackets = opener.text + closer.text
    if brackets == "{}" and len(items) > 1:
        return Node("set", tuple(items))
    if len(items) == 1 and brackets in ("()", "[]", "{}"):
        return items[0]
    if len(items) == 2 and brackets in ("[]", "(]", "[)"):
        return Node("interval", tuple(items), note=brackets)
    if brackets in ("()", "[]") or opener.text == "langle":
        return Node("tuple", tuple(items))
    raise Unreadable(f"the brackets {brackets!r} hold {len(items)} elements")


def _read_case(row: list[Token]) -> Node:
    r"""A line of a function by cases, `x^2, & \text{if } x > 0`: the value and the condition."""
    cells, _ = split_top(row, ("&",))
    if len(cells) != 2 or not cells[0]:
        raise Unreadable("a case needs a value and a condition")
    value, condition = cells
    if value[-1].text in (",", ";"):
        value = value[:-1]
    while condition and (condition[0].text.strip(" ,").lower() in _CONDITION_WORDS or condition[0].text == ","):
        condition = condition[1:]
    while condition and condition[-1].text in (",", ";", "."):
        condition = condition[:-1]
    return Node("case", (_read_side(value), _read_item(condition)))


def _read_matrix(environment: str, inner: list[Token]) -> Node:
    if environment not in ("cases", "pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"):
        raise Unreadable(f"the environment {environment!r}")
    if environment == "array" and inner and inner[0].text == "{":
        inner = inner[closing_index(inner, 0) + 1 :]
    rows, _ = split_top(inner, ("\\",))
    if rows and not rows[-1]:
        rows = rows[:-1]
    if environment == "cases":
        return Node("cases", tuple(map(_read_case, rows)))
    cells = [[_read_side(cell) for cell in split_top(row, ("&",))[0]] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("a matrix with rows of different lengths")
    return Node("matrix", tuple(cell for row in cells for cell in row), note=len(cells[0]))

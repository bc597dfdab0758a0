r"""Read one expression: a recursive-descent parser over tokens, for what answers are made of. Nothing is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from verifiers.math_sets import REAL_NUMBERS
from verifiers.math_tokens import FUNCTIONS, Token, Unreadable
from verifiers.math_tree import Node, closing_index, number
from verifiers.math_unicode import Refused
from verifiers.math_units import words

GREEK = frozenset(
    words(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega "
        "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell mathbbZ mathbbN mathbbQ mathbbC"
    )
)
_ACCENTS = frozenset(("overline", "vec", "hat", "bar", "widehat", "tilde", "overrightarrow"))
_REPEATING = frozenset(("overline", "bar", "dot"))
_ONE = number("1")
_TWO = number("2")
_FUNCTION_LETTERS = frozenset("fghFGHP")
_STARTS_FACTOR = GREEK | FUNCTIONS | _ACCENTS | {"pi", "infty", "frac", "binom", "lfloor", "lceil"}

ReadGroup = Callable[[list[Token]], Node]
"""Reads a bracket with everything in it: it may be a tuple, interval or set, which is the answer parser's business."""


class ExpressionParser:
    """Reads a sum from the front of `tokens`; `index` then points at what is left (units, words)."""

    def __init__(self, tokens: list[Token], read_group: ReadGroup) -> None:
        self.tokens = tokens
        self.index = 0
        self.read_group = read_group
        self.has_degrees = False

    def peek(self, offset: int = 0) -> Token | None:
        """The token `offset` places ahead, or None past the end."""
        position = self.index + offset
        return self.tokens[position] if position < len(self.tokens) else None

    def _next_is(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind in ("sign", "command") and token.text in texts

    def sum(self) -> Node:
        """sum := term (("+" | "-") term)*"""
        terms = [self._signed_term()]
        while self._next_is("+", "-"):
            terms.append(self._signed_term())
        return terms[0] if len(terms) == 1 else _elementwise("add", *terms)

    def _signed_term(self) -> Node:
        negative = False
        while self._next_is("+", "-"):
            negative ^= self.tokens[self.index].text == "-"
            self.index += 1
        term = self._term()
        return _elementwise("negate", term) if negative else term

    def _term(self) -> Node:
        node = self._factor()
        divided = False
        while (token := self.peek()) is not None:
            if self._next_is("*"):
                self.index += 1
                node = _product(node, self._signed_factor())
            elif self._next_is("/"):
                self.index += 1
                node = Node("divide", (_scalar(node), _scalar(self._signed_factor())))
                divided = True
            elif self._starts_factor(token):
                if divided:
                    raise Unreadable("1/2x can be read in two ways")
                node = _product(node, self._factor())
            else:
                break
        return node

    def _signed_factor(self) -> Node:
        if self._next_is("-"):
            self.index += 1
            return Node("negate", (_scalar(self._factor()),))
        return self._factor()

    def _starts_factor(self, token: Token) -> bool:
        if token.kind == "number":
            previous = self.tokens[self.index - 1]
            if previous.kind == "number":
                raise Unreadable("two numbers stand side by side")
            return previous.text not in ("circ", "%")
        if token.kind == "letter":
            is_scale = self.has_degrees and token.text in "CF" and self.index == len(self.tokens) - 1
            return not is_scale  # 45^\circ C is a temperature
        if token.kind == "sign":
            return token.text in ("(", "[", "{")
        if token.kind == "begin":
            return True
        return token.kind == "command" and (token.text in _STARTS_FACTOR or token.text == "sqrt")

    def _factor(self) -> Node:
        node = self._primary()
        while (token := self.peek()) is not None and token.kind == "sign" and token.text in "^!":
            self.index += 1
            if token.text == "!":
                if self._next_is("!"):
                    raise Unreadable("a double factorial")
                node = Node("factorial", (_scalar(node),))
            elif self._is_degree_sign():
                self.has_degrees = True
            else:
                node = Node("power", (_scalar(node), self._argument(is_exponent=True)))
                if self._next_is("^"):
                    raise Refused("a^b^c without brackets can be read in two ways")
        return node

    def _is_degree_sign(self) -> bool:
        texts = [token.text for token in self.tokens[self.index : self.index + 3]]
        width = 1 if texts[:1] == ["circ"] else 3 if texts == ["{", "circ", "}"] else 0
        self.index += width
        return width > 0

    def _argument(self, *, is_exponent: bool = False) -> Node:
        r"""What follows `^`, `\sqrt` and `\frac`: a group, or one token (for an exponent or root, a whole number)."""
        token = self.peek()
        if token is None:
            raise Unreadable("an argument is missing")
        if is_exponent and self._next_is("-"):
            self.index += 1
            return Node("negate", (self._argument(is_exponent=True),))
        if token.kind == "number" and not is_exponent and len(token.text) > 1 and token.text.isdigit():
            # \frac12 is \frac{1}{2}
            self.tokens[self.index] = Token("number", token.text[1:], is_spaced=False)
            return number(token.text[0])
        return _scalar(self._primary(is_argument=True))

    def _primary(self, *, is_argument: bool = False) -> Node:
        token = self.peek()
        if token is None:
            raise Unreadable("an operand is missing")
        if (
            (token.kind == "sign" and token.text in ("(", "[", "{"))
            or token.text in ("langle",)
            or token.kind == "begin"
        ):
            return self._bracket()
        if token.kind == "command" and token.text == "{":
            return self._bracket()
        self.index += 1
        if token.kind == "number":
            return self._number(token, is_argument=is_argument)
        if token.kind == "letter":
            return self._letter(token.text)
        if token.kind == "word" and len(token.text) <= 4 and not is_argument:
            letters = tuple(_letter_node(letter) for letter in token.text)
            return Node("multiply", letters)
        if token.kind == "sign" and token.text == "|":
            return self._absolute()
        if token.kind == "command":
            return self._command(token.text)
        raise Unreadable(f"{token.text!r} is no operand")

    def _bracket(self) -> Node:
        end = closing_index(self.tokens, self.index)
        group = self.tokens[self.index : end + 1]
        self.index = end + 1
        return self.read_group(group)

    def _number(self, token: Token, *, is_argument: bool) -> Node:
        node = number(token.text)
        if is_argument:
            return node
        following, after = self.peek(), self.peek(1)
        if following is None:
            return node
        if following.kind == "command" and following.text in _REPEATING and "." in token.text:
            return self._repeating(token.text)
        if following.kind == "command" and following.text == "frac" and token.text.isdigit():
            return self._mixed(node)
        if following.kind == "number" and following.is_spaced and after is not None and after.text == "/":
            return self._mixed_plain(node)
        if following.kind == "sign" and following.text == "_":
            raise Unreadable("a number with a base inside an expression")
        return node

    def _repeating(self, stem: str) -> Node:
        self.index += 1
        digits = "".join(token.text for token in self.tokens[self.index : closing_index(self.tokens, self.index) + 1])
        digits = digits.strip("{}")
        if not digits.isdigit() or len(digits) > 100:
            raise Unreadable("not a repeating decimal")
        self.index = closing_index(self.tokens, self.index) + 1
        places = len(stem.partition(".")[2])
        tail = Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
        return Node("number", value=Fraction(stem.rstrip(".") or "0") + tail, note=0)

    def _mixed(self, whole: Node) -> Node:
        fraction = self._primary()
        numbers = [part.value for part in fraction.parts if part.kind == "number"]
        if len(numbers) == 2 and all(value.denominator == 1 for value in numbers) and 0 <= numbers[0] < numbers[1]:
            return Node("number", value=whole.value + numbers[0] / numbers[1], note=0)
        return Node("multiply", (whole, fraction))

    def _mixed_plain(self, whole: Node) -> Node:
        texts = [token.text for token in self.tokens[self.index : self.index + 3]]
        if len(texts) < 3 or not (texts[0].isdigit() and texts[2].isdigit()) or int(texts[0][:9]) >= int(texts[2][:9]):
            raise Unreadable("two numbers stand side by side")
        self.index += 3
        value = Fraction(number(texts[0]).value, number(texts[2]).value)
        return Node("number", value=whole.value + value, note=0)

    def _letter(self, letter: str) -> Node:
        name = letter + self._subscript()
        while self._next_is("'"):
            self.index += 1
            name += "'"
        following = self.peek()
        is_call = following is not None and following.text == "(" and not following.is_spaced
        if is_call and letter in _FUNCTION_LETTERS:
            return Node("call", (_scalar(self._bracket()),), name)
        return _letter_node(name)

    def _subscript(self) -> str:
        if not self._next_is("_"):
            return ""
        self.index += 1
        token = self.peek()
        if token is None:
            raise Unreadable("a subscript is missing")
        end = closing_index(self.tokens, self.index) if token.text == "{" else self.index
        texts = [part.text for part in self.tokens[self.index : end + 1]]
        self.index = end + 1
        return "_" + "".join(texts).strip("{}")

    def _absolute(self) -> Node:
        for end in range(self.index, len(self.tokens)):
            if self.tokens[end].text == "|":
                break
        else:
            raise Unreadable("a bar is never closed")
        inner = ExpressionParser(self.tokens[self.index : end], self.read_group)
        node = inner.sum()
        if inner.peek() is not None:
            raise Unreadable("bars hold more than an expression")
        self.index = end + 1
        return Node("absolute", (_scalar(node),))

    def _command(self, name: str) -> Node:
        if name in ("pi", "infty"):
            return Node("constant", value=name)
        if name in GREEK:
            return Node("symbol", value=name + self._subscript())
        if name in ("frac", "binom"):
            first, second = self._argument(), self._argument()
            return Node("divide" if name == "frac" else "binomial", (first, second))
        if name == "sqrt":
            return self._root()
        if name in ("lfloor", "lceil"):
            self.index -= 1
            return self._rounding(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name in ("boxed", "fbox", "displaylimits", "mathop"):
            return self._primary()
        if name in _ACCENTS:
            start = self.index
            self._bracket() if self._next_is("{") else self._primary()
            return Node("symbol", value=name + "".join(token.text for token in self.tokens[start : self.index]))
        if name == "emptyset":
            return Node("set")
        if name == "mathbbR":
            return REAL_NUMBERS
        raise Unreadable(f"the command {name!r} is unknown")

    def _root(self) -> Node:
        degree = _TWO
        if self._next_is("["):
            degree = _scalar(self._bracket())
        token = self.peek()
        is_plain = token is not None and token.kind == "number"
        radicand = self._argument(is_exponent=is_plain)
        return Node("root", (radicand, degree))

    def _rounding(self, name: str) -> Node:
        end = closing_index(self.tokens, self.index)
        inner = ExpressionParser(self.tokens[self.index + 1 : end], self.read_group)
        node = inner.sum()
        if inner.peek() is not None:
            raise Unreadable("a floor holds more than an expression")
        self.index = end + 1
        return Node("floor" if name == "lfloor" else "ceiling", (_scalar(node),))

    def _function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self._next_is("^", "_"):
            is_power = self.tokens[self.index].text == "^"
            self.index += 1
            argument = self._argument(is_exponent=True)
            power, base = (argument, base) if is_power else (power, argument)
        had_degrees, self.has_degrees = self.has_degrees, False
        argument = self._function_argument()
        if self.has_degrees:
            argument = Node("multiply", (argument, Node("divide", (Node("constant", value="pi"), number("180")))))
        self.has_degrees = had_degrees
        if power is not None and power.kind == "negate":
            if power.parts[0] != _ONE or name not in ("sin", "cos", "tan"):
                raise Unreadable("a negative power of a function")
            return Node("function", (argument,), "arc" + name)
        parts = (argument,) if base is None else (argument, base)
        node = Node("function", parts, name)
        return Node("power", (node, power)) if power is not None else node

    def _function_argument(self) -> Node:
        """A bracket, or factors side by side up to the next function or operator: sin 2x cos x is (sin 2x)(cos x)."""
        if self._next_is("-"):
            self.index += 1
            return Node("negate", (self._function_argument(),))
        if self._next_is("(", "{"):
            return _scalar(self._factor())
        node = _scalar(self._factor())
        while (token := self.peek()) is not None and self._starts_factor(token) and token.text not in FUNCTIONS:
            if token.text == "(":
                raise Unreadable("a bracket after a function's bare argument")
            node = Node("multiply", (node, _scalar(self._factor())))
        return node


def _product(first: Node, second: Node) -> Node:
    """A product of scalars, or of a scalar and a matrix."""
    if (first.kind == "matrix") != (second.kind == "matrix"):
        matrix, factor = (first, second) if first.kind == "matrix" else (second, first)
        cells = tuple(Node("multiply", (_scalar(factor), _scalar(cell))) for cell in matrix.parts)
        return matrix._replace(parts=cells)
    return Node("multiply", (_scalar(first), _scalar(second)))


def _elementwise(kind: str, *operands: Node) -> Node:
    """A sum or the opposite of scalars, or of matrices of one shape."""
    if {operand.kind for operand in operands} != {"matrix"}:
        return Node(kind, tuple(map(_scalar, operands)))
    if len({(operand.note, len(operand.parts)) for operand in operands}) != 1:
        raise Unreadable("matrices of different shapes")
    columns = zip(*(operand.parts for operand in operands), strict=True)
    return operands[0]._replace(parts=tuple(Node(kind, tuple(map(_scalar, cells))) for cells in columns))


def _letter_node(name: str) -> Node:
    return Node("constant" if name in ("e", "i") else "symbol", value=name)


_NOT_SCALAR = frozenset(
    ("tuple", "interval", "set", "list", "matrix", "union", "relation", "text", "ratio", "based", "cases")
)


def _scalar(node: Node) -> Node:
    if node.kind in _NOT_SCALAR:
        raise Unreadable(f"a {node.kind} inside arithmetic")
    return node

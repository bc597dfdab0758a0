r"""Tokens of an answer: LaTeX or plain text, spacing and style removed, Unicode read as LaTeX (math_unicode.py)."""

from __future__ import annotations

import re
from typing import NamedTuple

from verifiers.math_unicode import to_latex
from verifiers.math_units import canonical_unit, is_unit_word, words


class Unreadable(Exception):
    """The text is outside the grammar of the fast path: ask the slow path."""


class Token(NamedTuple):
    r"""A unit of an answer.

    `kind` is `number` (digits with at most one point), `letter`, `word` (a bare run of letters that reads as a word),
    `text` (content of `\text{...}`), `command` (name without backslash), `begin`, `end` or `sign`.
    """

    kind: str
    text: str
    is_spaced: bool
    """Whether white space stands before it."""


_TOKEN = re.compile(
    r"(?P<space>(?:\s|~|\\[,!;:> ]|\\(?:quad|qquad|thinspace|displaystyle|textstyle|limits|left|right|middle"
    r"|[bB]igg?[lrm]?|mathstrut|nonumber|tiny|small|normalsize|large|Large|LARGE|huge|Huge|underline|boldsymbol|bm)(?![A-Za-z])\.?"
    r"|\\(?:text)?color\s*\{[^{}]*\}|\\[hv]space\*?\{[^{}]*\}|\\phantom\s*(?:\{[^{}]*\}|.))+)"
    r"|\\(?P<style>text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathcal|operatorname\*?"
    r"|bf|rm|it)\s*\{(?P<content>(?:[^{}]|\{[^{}]*\})*)\}"
    r"|\\(?P<edge>begin|end)\s*\{(?P<environment>[A-Za-z]+)\*?\}"
    r"|\\mathbb\s*\{?\s*(?P<blackboard>[A-Z])\s*\}?"
    r"|\\(?P<command>[A-Za-z]+|[{}%$#&_|\\])"
    r"|(?P<grouped>\d{1,3}(?:(?:,\\!|\{,\}|\\!,|\\,|,\\ |\\!)\s?\d{3})+(?!\d)(?:\.\d+)?)"
    r"|(?P<commas>\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?! ?\d)(?:\.\d+)?)"
    r"|(?P<number>\d+(?:\.\d+)?[eE][-+]?\d+(?![\d.A-Za-z])|\d+(?:\.\d+|\.(?!\d))?|\.\d+)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign><=|>=|!=|\*\*|.)",
    re.DOTALL,
)
_UPRIGHT = frozenset(words("text textrm textnormal mbox hbox mathrm rm"))
_DIGITS = re.compile(r"\d+")
_WORD_INSIDE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or)\b)[A-Za-z]{2,}")
_NOT_OF_A_NUMBER = re.compile(r"[^\d.]")
_ALIASES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "<="), "le"),
    **dict.fromkeys(("geq", "geqslant", ">="), "ge"),
    **dict.fromkeys(("neq", "!="), "ne"),
    **dict.fromkeys(("infinity", "inf", "oo"), "infty"),
    **dict.fromkeys(("varnothing", "empty"), "emptyset"),
    **dict.fromkeys(("thickapprox", "simeq", "doteq"), "approx"),
    **dict.fromkeys(("degree", "degrees"), "circ"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("**",), "^"),
    **dict.fromkeys(("ast", "cdot", "times", "*"), "*"),
    **dict(zip(words("lbrace rbrace lbrack rbrack lparen rparen div lt gt"), "{}[]()/<>", strict=True)),
    **dict(zip(words("asin acos atan varphi vartheta mp"), words("arcsin arccos arctan phi theta pm"), strict=True)),
}
_SIGNS_FROM_COMMANDS = frozenset("*/|<>[]()^")
FUNCTIONS = frozenset(
    words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt asin acos atan")
)
_NAMES = FUNCTIONS | frozenset(words("pi theta infinity infty inf oo alpha beta gamma lambda phi omega pm"))
_OPENING, _CLOSING = frozenset("(["), frozenset(")]")


def _letters(run: str, *, follows_digit: bool, is_spaced: bool) -> list[Token]:
    """Split a bare run of letters: a function name, a unit, a word, or a product of variables."""
    lower = run.lower()
    if len(run) > 1 and run in _NAMES:
        return [Token("command", _ALIASES.get(run, run), is_spaced)]
    if lower in ("and", "or") or is_unit_word(run) or (len(run) > 2 and not follows_digit):
        return [Token("word", run, is_spaced)]
    return [Token("letter", letter, is_spaced and index == 0) for index, letter in enumerate(run)]


def _styled(style: str, content: str, *, is_spaced: bool) -> list[Token]:
    stripped = content.strip()
    if stripped in _NAMES and not style.startswith("text"):
        return [Token("command", _ALIASES.get(stripped, stripped), is_spaced)]
    if len(stripped) == 1 and not style.startswith(("text", "mbox")) and stripped.isalpha():
        return [Token("letter", stripped, is_spaced)]
    if stripped.strip(" ,").lower() in ("and", "or", "to"):
        return [Token("word", stripped.strip(" ,").lower(), is_spaced)]
    if not _WORD_INSIDE.search(stripped) or stripped[:1].isdigit():
        return tokenize(stripped)  # \text{(A)}, \text{A, B}, \text{5 cm}
    return [Token("text", content, is_spaced)]


def _command(name: str, is_spaced: bool) -> Token:
    name = _ALIASES.get(name, name)
    return Token("sign" if name in _SIGNS_FROM_COMMANDS else "command", name, is_spaced)


def _tokens_of(match: re.Match[str], *, follows_digit: bool, is_spaced: bool) -> list[Token]:
    groups = match.groupdict()
    kind = match.lastgroup
    if kind == "letters":
        return _letters(groups["letters"], follows_digit=follows_digit, is_spaced=is_spaced)
    if kind in ("content", "style"):
        return _styled(groups["style"], groups["content"], is_spaced=is_spaced)
    if kind == "environment":
        return [Token(groups["edge"], groups["environment"], is_spaced)]
    if kind == "blackboard":
        return [Token("command", f"mathbb{groups['blackboard']}", is_spaced)]
    if kind == "command":
        return [_command(groups["command"], is_spaced)]
    if kind == "sign":
        sign = groups["sign"]
        return [_command(sign, is_spaced) if sign in _ALIASES else Token("sign", sign, is_spaced)]
    return [Token("number", match.group() if kind == "number" else _NOT_OF_A_NUMBER.sub("", match.group()), is_spaced)]


def _is_unit(match: re.Match[str]) -> bool:
    r"""Whether `\text{...}` spells a unit of measure."""
    return match["style"] in _UPRIGHT and canonical_unit([match["content"]]) is not None


def tokenize(text: str) -> list[Token]:
    r"""The tokens of an answer, spacing and style removed. One pass. Raises Refused as `to_latex` does.

    A comma between groups of three digits belongs to the number outside brackets, and separates elements inside.

    >>> [token.text for token in tokenize(r"\left( 1,\!000 , \dfrac{1}{2} \right)")]
    ['(', '1000', ',', 'frac', '{', '1', '}', '{', '2', '}', ')']
    """
    text = to_latex(text)
    tokens: list[Token] = []
    depth = position = 0
    is_spaced = follows_digit = False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"cannot read {text[position]!r}")
        if match.lastgroup == "space":
            is_spaced = not match.group().startswith(("\\left", "\\big", "\\Big"))
            follows_digit, position = False, match.end()
            continue
        if match.lastgroup == "commas" and depth > 0:
            match = _DIGITS.match(text, position) or match
            tokens.append(Token("number", match.group(), is_spaced))
        else:
            read = _tokens_of(match, follows_digit=follows_digit, is_spaced=is_spaced)
            if tokens and (tokens[-1].kind == "number" or tokens[-1].text in ("}", ")")) and _is_unit(match):
                read = [Token("text", match["content"], is_spaced)]  # 5\text{ m} is five metres, 5m is 5 times m
            tokens += read
        if tokens and (tokens[-1].kind == "sign" or tokens[-1].text in ("{", "}")):
            is_escaped_brace = tokens[-1].kind == "command"
            depth += (tokens[-1].text in _OPENING) or (is_escaped_brace and tokens[-1].text == "{")
            depth -= (tokens[-1].text in _CLOSING) or (is_escaped_brace and tokens[-1].text == "}")
        follows_digit = match.group()[-1].isdigit()
        is_spaced, position = False, match.end()
    return tokens

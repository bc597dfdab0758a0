r"""Find the answer of a completion: last `\boxed{}`, "the answer is", `#### x`, then last number or formula.

The first place that exists decides. A place that exists but cannot be read is a wrong answer, never a reason to look
further: a model must not be paid for a broken box followed by a lucky number. Every scan is one pass over the text.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import re
from collections.abc import Sequence

MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is refused: gold answers of MATH, GSM8K and OlympiadBench have fewer than 400."""
TAIL_CHARACTERS = 4_000
"""Where the last number or formula is looked for: the end of the completion."""


_END_OF_THOUGHT = "</think>"
"""What a reasoning model writes before it is draft, and no answer."""


class Source(enum.StrEnum):
    """Where in a completion an answer was found, in the order of preference."""

    BOXED = "boxed"
    ANSWER_IS = "answer_is"
    HASHES = "hashes"
    LAST = "last"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What a completion gives as its answer."""

    source: Source | None
    """None when no allowed place holds an answer."""
    answers: tuple[str, ...]
    """Distinct answers in the order of the text. More than one only for boxes. Empty when `problem` is set."""
    problem: str = ""
    """Why there is no answer, in words."""


_BOX = re.compile(r"\\f?boxed(?![A-Za-z])|\\fbox(?![A-Za-z])")
_BOX_OR_BRACE = re.compile(r"\\f?boxed(?![A-Za-z])\s{0,9}|\\fbox(?![A-Za-z])\s{0,9}|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(
    r"[-+]?\d[\d.,/]*\d|\d|[A-Za-z](?![A-Za-z])"
)  # TeX boxes the next token; "in \boxed form" is prose


def boxed_answers(text: str) -> tuple[list[str], str]:
    r"""Contents of the outermost boxes, and a problem when the last one is not closed. One pass, any nesting depth.

    >>> boxed_answers(r"\boxed{1} then \fbox {\frac{1}{2}}")
    (['1', '\\frac{1}{2}'], '')
    >>> boxed_answers(r"\boxed{\frac{1}{2}")
    ([], 'the last box is never closed')
    """
    answers: list[str] = []
    depth = 0
    box_start = -1  # first character inside the outermost open box
    box_depth = 0
    expects_brace_at = -1
    first = _BOX.search(text)
    for match in _BOX_OR_BRACE.finditer(text, first.start() if first else len(text)):
        token = match.group()
        if token == "{":
            depth += 1
            if box_start < 0 and match.start() == expects_brace_at:
                box_start, box_depth = match.end(), depth
        elif token == "}":
            if box_start >= 0 and depth == box_depth:
                answers.append(text[box_start : match.start()])
                box_start = -1
            depth = max(depth - 1, 0)
        elif len(token) > 2 and box_start < 0:
            if text.startswith("{", match.end()):
                expects_brace_at = match.end()
            elif bare := _BARE_BOX.match(text, match.end()):
                answers.append(bare.group())
    if box_start >= 0:
        return [], "the last box is never closed"
    return answers, ""


_ANSWER_IS = re.compile(
    r"\b(?:answer|correct\s(?:choice|option))\b[*_]{0,3}"
    r"(?:(?:\s(?:to|for)\s[^.:\n]{1,80}?)?\s{0,3}\bis(?:\b|(?=n['\u2019]t))[*_]{0,3}\s{0,3}:?|\s{0,3}:|\s{0,3}=)[*_]{0,3}\s{0,9}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n\s*\n|[.!?](?=\s+(?:[A-Z]|$)|\s*$)|[.!?]?\s*I hope it is correct", re.MULTILINE)
_MATHS_SPAN = re.compile(
    r"\$\$(.{1,600}?)\$\$|(?<!\\)\$((?:[^$\\]|\\.){1,600}?)\$|\\\((.{1,600}?)\\\)|\\\[(.{1,600}?)\\\]", re.DOTALL
)
_REASON = re.compile(
    r"[,;]?\s+(?:because|since|which|as\s+(?:we|the|it)|so\s+that|where|when)\b.*", re.DOTALL | re.IGNORECASE
)
_ONLY_FILLER = re.compile(r"[\s.,;:!*_]*\Z")


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return collections.deque(pattern.finditer(text), maxlen=1).pop() if pattern.search(text) else None


def _after_answer_is(text: str) -> str | None:
    """The clause after the last "answer is", or None when nobody says so."""
    last = _last_match(_ANSWER_IS, text)
    if last is None:
        return None
    rest = text[last.end() : last.end() + MAX_ANSWER_CHARACTERS].lstrip()
    span = _MATHS_SPAN.match(rest)
    if span and _ONLY_FILLER.match(_first_sentence(rest[span.end() :])):
        return next(group for group in span.groups() if group is not None)
    clause = _REASON.sub("", _first_sentence(rest))
    return clause.strip().strip("*_ ").rstrip(".,;: ").strip("*_ ")


def _first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    text = text[: end.start()] if end else text
    return text.split("\n", 1)[0] if text.strip() else ""


_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_LAST_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?\s?[$\u20ac\u00a3]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.?|\.(?=\d))\d*"
    r"(?:[eE][-+]?\d+\b)?(?:\s?/\s?\d+)?\s?%?"
)


def _last_formula_or_number(text: str) -> str | None:
    """The last formula between maths delimiters, or the last number when it comes later."""
    tail = text[-TAIL_CHARACTERS:]
    span, number = _last_match(_MATHS_SPAN, tail), _last_match(_LAST_NUMBER, tail)
    if span is not None and (number is None or number.end() <= span.end()):
        return next(group for group in span.groups() if group is not None)
    return number.group().strip().rstrip(".") if number is not None else None


def extract(text: str, *, allow: Sequence[Source] = tuple(Source)) -> Extraction:
    """The answer of `text`, from the first allowed place that exists.

    >>> extract("So the answer is 42.").answers
    ('42',)
    >>> extract("6 times 7 is 42", allow=[Source.BOXED]).problem
    'no answer in an allowed place (boxed)'
    """
    text = text.rpartition(_END_OF_THOUGHT)[2]
    for source in Source:
        if source not in allow:
            continue
        found: list[str] = []
        if source is Source.BOXED:
            if not _BOX.search(text):
                continue
            found, problem = boxed_answers(text)
            if problem:
                return Extraction(source=source, answers=(), problem=problem)
            if len(found) > 1 and found[-1].strip():  # "write \\boxed{} around the answer" is no answer
                found = [answer for answer in found if answer.strip()]
            if not found:
                return Extraction(source=source, answers=(), problem="the box holds nothing")
        else:
            finder = {
                Source.ANSWER_IS: _after_answer_is,
                Source.HASHES: _last_hashes,
                Source.LAST: _last_formula_or_number,
            }[source]
            answer = finder(text)
            if answer is None:
                continue
            found = [answer]
        return _checked(source, found)
    allowed = ", ".join(source.value for source in Source if source in allow)
    return Extraction(source=None, answers=(), problem=f"no answer in an allowed place ({allowed})")


def _last_hashes(text: str) -> str | None:
    position = text.rfind("####")
    if position < 0:
        return None
    match = _HASHES.match(text, position)
    return match.group(1).strip() if match else None


def _checked(source: Source, found: list[str]) -> Extraction:
    distinct = tuple(dict.fromkeys(answer.strip() for answer in found))
    if any(not answer for answer in distinct):
        return Extraction(source=source, answers=(), problem=f"the answer ({source.value}) is empty")
    longest = max(map(len, distinct))
    if longest > MAX_ANSWER_CHARACTERS:
        return Extraction(
            source=source,
            answers=(),
            problem=f"the answer ({source.value}) has {longest} characters; at most {MAX_ANSWER_CHARACTERS} are read",
        )
    return Extraction(source=source, answers=distinct)

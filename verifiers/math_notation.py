r"""Notations that the tokens cannot carry, written as ones that they can: 0.333... and intervals like ]1, 3[."""

from __future__ import annotations

import re

_MARKS = ("[", "]", "...", "dots", "\u2026")
_CONTINUED = re.compile(r"(?<![\d.])(\d{0,18}\.)(\d{2,36})\s?(?:\.\.\.|\\[lc]?dots(?![A-Za-z])|\u2026)")
_LONGEST_PERIOD = 12
_UNION = re.compile(r"(\\cup(?![A-Za-z])|\u222a)")
_SIDES = re.compile(r"\s*(?:\\left\s*)?([\[\]])([^\[\]]{1,200}?)(?:\\right\s*)?([\[\]])\s*")
_OUTWARD = {("]", "["): "()", ("[", "["): "[)", ("]", "]"): "(]"}


def spelled_out(text: str) -> str:
    r"""The text with its repeating decimals and outward brackets respelled.

    >>> spelled_out("0.1666..."), spelled_out("3.14159..."), spelled_out(r"]-\infty, 1] \cup [2, 3[")
    ('0.1\\overline{6}', '3.14159...', '(-\\infty, 1]\\cup[2, 3)')
    """
    if not any(mark in text for mark in _MARKS):
        return text
    text = _CONTINUED.sub(_repeating, text)
    if "[" in text or "]" in text:
        text = "".join(map(_inward, _UNION.split(text)))
    return text


def _repeating(decimal: re.Match[str]) -> str:
    """A decimal that shows its period: a digit three times, or a longer run twice. Any other stays as it is."""
    start, digits = decimal.groups()
    for size in range(1, _LONGEST_PERIOD + 1):
        period, times = digits[-size:], 3 if size == 1 else 2
        if digits.endswith(period * times):
            while digits.endswith(period):
                digits = digits[:-size]
            return f"{start}{digits}\\overline{{{period}}}"
    return decimal.group()


def _inward(piece: str) -> str:
    sides = _SIDES.fullmatch(piece)
    brackets = _OUTWARD.get((sides[1], sides[3])) if sides else None
    return f"{brackets[0]}{sides[2]}{brackets[1]}" if sides and brackets else piece

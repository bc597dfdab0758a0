"""Compare what a script printed with what it should have printed."""

from __future__ import annotations

import math


def same_output(
    printed: str, expected: str, *, ignore_trailing_space: bool = True, float_tolerance: float | None = None
) -> str | None:
    r"""None when the outputs agree line by line, else the first difference.

    Args:
        ignore_trailing_space: spaces at the ends of lines, and blank lines at the end, do not count.
        float_tolerance: words that are both numbers may differ by this, absolutely or relatively. None: exact text.

    >>> same_output("1 2 \n3\n\n", "1 2\n3")
    >>> same_output("0.33333", "0.333334", float_tolerance=1e-4)
    >>> same_output("4", "5")
    "line 1: printed '4', expected '5'"
    """
    printed_lines, expected_lines = (_lines(text, ignore_trailing_space) for text in (printed, expected))
    for number, (got, wanted) in enumerate(zip(printed_lines, expected_lines, strict=False), start=1):
        if got != wanted and not (float_tolerance and _close(got, wanted, float_tolerance)):
            return f"line {number}: printed {got[:80]!r}, expected {wanted[:80]!r}"
    if len(printed_lines) != len(expected_lines):
        return f"{len(printed_lines)} lines printed, {len(expected_lines)} expected"
    return None


def _lines(text: str, ignore_trailing_space: bool) -> list[str]:
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()  # the newline that ends the last line
    if ignore_trailing_space:
        lines = [line.rstrip() for line in lines]
        while lines and not lines[-1]:
            lines.pop()
    return lines


def _close(got: str, wanted: str, tolerance: float) -> bool:
    got_words, wanted_words = got.split(), wanted.split()
    return len(got_words) == len(wanted_words) and all(
        a == b or _close_numbers(a, b, tolerance) for a, b in zip(got_words, wanted_words, strict=True)
    )


def _close_numbers(got: str, wanted: str, tolerance: float) -> bool:
    try:
        numbers = float(got), float(wanted)
    except ValueError:
        return False
    return math.isclose(*numbers, rel_tol=tolerance, abs_tol=tolerance)

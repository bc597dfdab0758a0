"""IFEval's instructions on what a response says: keywords, language, detectable content.

Verdicts are those of google-research's `instruction_following_eval`; where a rule looks odd, it is the reference's.
Keywords and markers are taken literally, where the reference runs them as regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from verifiers.ifeval.instruction import InstructionType, compare, number, positive, relation, text, texts
from verifiers.ifeval.languages import language_code
from verifiers.ifeval.text_units import detect_language

_MARKERS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
"""The two markers of the benchmark, which may be written with a space inside."""


def has_keywords(response: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword occurs, also as a part of a longer word."""
    return all(re.search(re.escape(keyword), response, re.IGNORECASE) for keyword in keywords)


def keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Occurrences, also as a part of longer words."""
    count = len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE))
    return compare(count, relation, frequency)


def lacks_words(response: str, *, forbidden_words: Sequence[str]) -> bool:
    """No forbidden word stands between word boundaries."""
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Occurrences of the letter in either case."""
    return compare(response.lower().count(letter.lower()), let_relation, let_frequency)


def is_in_language(response: str, *, language: str) -> bool:
    """The detected language is the one asked for. Text without letters passes for any language, as in the reference."""
    detected = detect_language(response)
    return detected is None or detected == language


def has_placeholders(response: str, *, num_placeholders: int) -> bool:
    """At least so many pairs of square brackets, each on one line; empty ones count."""
    count = 0
    for line in response.split("\n"):
        opening = line.find("[")
        while opening >= 0 and (closing := line.find("]", opening)) >= 0:
            count += 1
            opening = line.find("[", closing)
    return count >= num_placeholders


def has_postscript(response: str, *, postscript_marker: str) -> bool:
    """The marker occurs anywhere, in either case."""
    marker = postscript_marker.strip()
    if marker in _MARKERS:
        return _MARKERS[marker].search(response.lower()) is not None
    return marker.lower() in response.lower()


def one_letter(value: object) -> str:
    letter = text(value).strip()
    if len(letter) != 1:
        raise ValueError("must be a single character")
    return letter


def known_language(value: object) -> str:
    code = language_code(text(value))
    if code is None:
        raise ValueError("must be a language that the detector knows, as a code ('de') or a name ('German')")
    return code


CONTENT: dict[str, InstructionType] = {
    "keywords:existence": InstructionType(check=has_keywords, kwargs={"keywords": texts}),
    "keywords:frequency": InstructionType(
        check=keyword_frequency, kwargs={"keyword": text, "frequency": number, "relation": relation}
    ),
    "keywords:forbidden_words": InstructionType(check=lacks_words, kwargs={"forbidden_words": texts}),
    "keywords:letter_frequency": InstructionType(
        check=letter_frequency, kwargs={"letter": one_letter, "let_frequency": number, "let_relation": relation}
    ),
    "language:response_language": InstructionType(check=is_in_language, kwargs={"language": known_language}),
    "detectable_content:number_placeholders": InstructionType(
        check=has_placeholders, kwargs={"num_placeholders": positive}
    ),
    "detectable_content:postscript": InstructionType(check=has_postscript, kwargs={"postscript_marker": text}),
}

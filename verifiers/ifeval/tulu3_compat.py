"""Tülu 3's constraint verdicts as they were: quirks included, for matching published runs.

Behaviour read from open-instruct's `if_functions.py` at commit 9c2d44bec, the version the released models were trained
with. One deliberate difference: the language detector is seeded. A reply that made the original raise raises here too,
and the verdict is then indeterminate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from verifiers.errors import VerifierError
from verifiers.ifeval.text_units import detect_language

_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?])\s")


def _compare(count: int, target: int, quantifier: str, *, tolerance: int) -> bool:
    verdicts = {"at least": count >= target, "at most": count <= target, "around": abs(count - target) <= tolerance}
    return verdicts.get(quantifier, False)


def verify_keywords(text: str, keyword_list: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keyword_list)


def verify_keyword_frequency(text: str, word: str, N: int) -> bool:
    return re.findall(r"\b\w+\b", text.lower()).count(word.lower()) == N


def validate_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(word.lower() in text.lower() for word in forbidden_words)


def verify_letter_frequency(text: str, letter: str, N: int) -> bool:
    return text.count(letter) == N


def validate_response_language(text: str, language: str) -> bool:
    detected = detect_language(text)
    if detected is None:
        raise VerifierError(
            f"the original validate_response_language raises on text without letters; got {text[:80]!r}. "
            "Set compat = false for a verdict."
        )
    return detected == language


def verify_paragraph_count(text: str, N: int) -> bool:
    stripped = "\n".join(map(str.strip, text.splitlines()))
    paragraphs = stripped.split("* * *")
    return len(paragraphs) == N and all(map(str.strip, paragraphs))


def validate_word_constraint(text: str, N: int, quantifier: str) -> bool:
    return _compare(len(text.split()), N, quantifier, tolerance=max(round(N * 0.1), 1))


def verify_sentence_constraint(text: str, N: int, quantifier: str) -> bool:
    return _compare(len(_SENTENCE_END.split(text)), N, quantifier, tolerance=1)


def validate_paragraphs(text: str, N: int, first_word: str, i: int) -> bool:
    paragraphs = text.split("\n\n")
    return len(paragraphs) == N and paragraphs[i - 1].strip().startswith(first_word)


def verify_postscript(text: str, postscript_marker: str) -> bool:
    _, marker, rest = text.partition(postscript_marker)
    return bool(marker) and len((marker + rest).strip()) > len(marker)


def validate_placeholders(text: str, N: int) -> bool:
    """Always true: the original returns a non-empty tuple."""
    return True


def verify_bullet_points(text: str, N: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


def validate_title(text: str) -> bool:
    return any(">>" in rest for line in text.split("\n") for rest in line.split("<<", 1)[1:])


def validate_choice(text: str, options: Sequence[str]) -> bool:
    return any(text in option for option in options)


def validate_highlighted_sections(text: str, N: int) -> bool:
    """Pairs of asterisks on a line."""
    return sum(line.count("*") // 2 for line in text.split("\n")) >= N


def validate_sections(text: str, N: int, section_splitter: str) -> bool:
    sections = text.split(section_splitter)
    return len(sections) - (sections[0] == "") == N


def validate_json_format(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def validate_repeat_prompt(text: str, original_prompt: str) -> bool:
    return text.startswith(original_prompt)


def validate_two_responses(text: str) -> bool:
    first, separator, second = text.partition("******")
    return bool(separator) and "******" not in second and first.strip() != second.strip()


def validate_uppercase(text: str) -> bool:
    return text == text.upper()


def validate_lowercase(text: str) -> bool:
    return text == text.lower()


def validate_frequency_capital_words(text: str, N: int, quantifier: str) -> bool:
    """ "around" is "exactly" here."""
    return _compare(len(re.findall(r"\b[A-Z]+\b", text)), N, quantifier, tolerance=0)


def validate_end(text: str, end_phrase: str) -> bool:
    return text.endswith(end_phrase)


def validate_quotation(text: str) -> bool:
    return text.startswith('"') and text.endswith('"')


def validate_no_commas(text: str) -> bool:
    return "," not in text

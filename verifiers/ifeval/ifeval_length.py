"""IFEval's instructions on length, letter case and punctuation. Verdicts are the reference's."""

from __future__ import annotations

from verifiers.ifeval.instruction import InstructionType, compare, number, positive, relation, text
from verifiers.ifeval.text_units import count_words, detect_language, split_sentences, tokenize_words

_WORD_ENDS = ".,?!'\""


def number_sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    return compare(len(split_sentences(response)), relation, num_sentences)


def number_words(response: str, *, num_words: int, relation: str) -> bool:
    return compare(count_words(response), relation, num_words)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Paragraphs between `***`; the first and last may be empty and then do not count, one between may not."""
    paragraphs = [paragraph.strip() for paragraph in response.split("***")]
    if not all(paragraphs[1:-1]):
        return False
    return sum(map(bool, paragraphs)) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Number of paragraphs between blank lines, and the first word of one of them, up to its punctuation.

    Blank paragraphs do not count towards the number, but do count for which is the n-th: so it is in the reference.
    """
    paragraphs = [paragraph.strip() for paragraph in response.split("\n\n")]
    count = sum(map(bool, paragraphs))
    if nth_paragraph > count or not (paragraph := paragraphs[nth_paragraph - 1]):
        return False
    word = paragraph.split()[0].lstrip("'").lstrip('"')
    end = next((place for place, character in enumerate(word) if character in _WORD_ENDS), len(word))
    return count == num_paragraphs and "".join(map(str.lower, word[:end])) == first_word.lower()


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Words in capitals, "I" and "A" included."""
    count = sum(1 for word in tokenize_words(response) if word.isupper())
    return compare(count, capital_relation, capital_frequency)


def _reads_as_english(response: str) -> bool:
    # text that the detector cannot judge passes, as in the reference
    return detect_language(response) in ("en", None)


def english_capital(response: str) -> bool:
    return response.isupper() and _reads_as_english(response)


def english_lowercase(response: str) -> bool:
    return response.islower() and _reads_as_english(response)


def no_comma(response: str) -> bool:
    return "," not in response


LENGTH: dict[str, InstructionType] = {
    "length_constraints:number_sentences": InstructionType(
        check=number_sentences, kwargs={"num_sentences": number, "relation": relation}
    ),
    "length_constraints:number_paragraphs": InstructionType(check=number_paragraphs, kwargs={"num_paragraphs": number}),
    "length_constraints:number_words": InstructionType(
        check=number_words,
        kwargs={"num_words": number, "relation": relation},
        most_words=lambda num_words, relation: max(1, num_words - 1) if relation == "less than" else num_words,
    ),
    "length_constraints:nth_paragraph_first_word": InstructionType(
        check=nth_paragraph_first_word,
        kwargs={"num_paragraphs": positive, "nth_paragraph": positive, "first_word": text},
        fault=lambda num_paragraphs, nth_paragraph, first_word: (
            f"paragraph {nth_paragraph} of {num_paragraphs}" if nth_paragraph > num_paragraphs else None
        ),
    ),
    "change_case:capital_word_frequency": InstructionType(
        check=capital_word_frequency, kwargs={"capital_frequency": number, "capital_relation": relation}
    ),
    "change_case:english_capital": InstructionType(check=english_capital),
    "change_case:english_lowercase": InstructionType(check=english_lowercase),
    "punctuation:no_comma": InstructionType(check=no_comma),
}

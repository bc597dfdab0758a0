"""The 25 constraints of Tülu 3, judged by what their sentence asks of the reply.

Where the original function (open-instruct `if_functions.py` at commit 9c2d44bec) judges something else, the docstring
says so; docs/ifeval.md has the table. `tulu3_compat.py` keeps the original verdicts. No text of a row or of a model is
ever used as a regular expression, and every check takes time linear in the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from verifiers.ifeval.text_units import MORE_ABBREVIATIONS, detect_language, split_sentences

_MARKUP = " \t>#*_\"'“”‘’`~("
"""What may stand before the first word of a line or paragraph without being part of it."""
_COMMAS = re.compile("[,\uff0c\u060c\u3001\ufe50\ufe10\uff64\u1802]")
_BULLET = re.compile(r"^[ \t]*+[*+-][ \t]++.*[^\W_]", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\]")
_TITLE = re.compile(r"<<([^<>\n]*)>>")
_SIX_ASTERISKS = re.compile(r"(?<!\*)\*{6}(?!\*)")
_BLANK_LINES = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")
_EMPHASIS = re.compile(r"(?<![*\w])(\*{1,3}+)([^*\n]++)(\*++)(?!\w)")
_CAPITAL_WORD = re.compile(r"[^\W\d_]+(?:['’.&-]?[^\W\d_]+)*")


def has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def holds(count: int, target: int, quantifier: str, *, tolerance: int) -> bool:
    """Whether `count` is at least, at most, or around (within `tolerance`) the target.

    >>> holds(9, 10, "around", tolerance=1), holds(9, 10, "at least", tolerance=1)
    (True, False)
    """
    if quantifier == "at least":
        return count >= target
    if quantifier == "at most":
        return count <= target
    return abs(count - target) <= tolerance


def ten_percent(target: int) -> int:
    """Tülu 3's meaning of "around": within 10%, and never less than 1."""
    return max(round(target * 0.1), 1)


def count_phrase(text: str, phrase: str) -> int:
    """Occurrences of a word or phrase that are not part of a longer word; letter case does not matter.

    >>> count_phrase("The cat, a Cat; concatenate.", "cat")
    2
    """
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.casefold().split())) + r"(?!\w)"
    return len(re.findall(pattern, text.casefold()))


def verify_keywords(text: str, keyword_list: Sequence[str]) -> bool:
    """Every keyword occurs as a word. The original also takes "cat" from "concatenate"."""
    return all(count_phrase(text, keyword) > 0 for keyword in keyword_list)


def verify_keyword_frequency(text: str, word: str, N: int) -> bool:
    """The word occurs exactly N times. The original can never count a word with a hyphen or a space."""
    return count_phrase(text, word) == N


def validate_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """No forbidden word occurs as a word. The original also rejects "concatenate" when "cat" is forbidden."""
    return all(count_phrase(text, word) == 0 for word in forbidden_words)


def verify_letter_frequency(text: str, letter: str, N: int) -> bool:
    """The letter occurs exactly N times, in either case. The original counts one case only."""
    return text.casefold().count(letter.casefold()) == N


def validate_response_language(text: str, language: str) -> bool:
    """The reply's language is the one asked for; "zh" takes both Chinese scripts.

    The original raises on text without letters.
    """
    detected = detect_language(text)
    return detected is not None and (detected == language or detected.split("-")[0] == language)


def verify_paragraph_count(text: str, N: int) -> bool:
    """N non-empty paragraphs divided by `* * *`."""
    paragraphs = text.split("* * *")
    return len(paragraphs) == N and all(has_word(paragraph) for paragraph in paragraphs)


def validate_word_constraint(text: str, N: int, quantifier: str) -> bool:
    """Number of words: whitespace-separated, with a letter or digit. The original counts "- - -" as three words."""
    count = sum(1 for word in text.split() if has_word(word))
    return holds(count, N, quantifier, tolerance=ten_percent(N))


def verify_sentence_constraint(text: str, N: int, quantifier: str) -> bool:
    """Number of sentences. The original's does not end at "!"."""
    count = sum(1 for sentence in split_sentences(text, abbreviations=MORE_ABBREVIATIONS) if has_word(sentence))
    return holds(count, N, quantifier, tolerance=1)


def validate_paragraphs(text: str, N: int, first_word: str, i: int) -> bool:
    """N paragraphs divided by blank lines, the i-th (from 1) starting with a word.

    The original counts empty paragraphs, and takes "Theory" for "The".
    """
    paragraphs = _BLANK_LINES.split(text.strip())
    if len(paragraphs) != N:
        return False
    start = paragraphs[i - 1].lstrip(_MARKUP).casefold()
    wanted = first_word.strip().casefold()
    return start.startswith(wanted) and not start[len(wanted) : len(wanted) + 1].isalnum()


def verify_postscript(text: str, postscript_marker: str) -> bool:
    """Something is said, then the marker at the start of a word, then something more.

    The original takes a reply that is a postscript only.
    """
    folded, marker = text.casefold(), postscript_marker.strip().casefold()
    position = folded.rfind(marker)
    if position < 0 or (position > 0 and folded[position - 1] not in _MARKUP + "\r\n"):
        return False
    return has_word(folded[:position]) and has_word(folded[position + len(marker) :])


def validate_placeholders(text: str, N: int) -> bool:
    """At least N placeholders such as `[address]`. The original returns a tuple, which is true whatever the reply."""
    return sum(1 for inside in _PLACEHOLDER.findall(text) if has_word(inside)) >= N


def verify_bullet_points(text: str, N: int) -> bool:
    """Exactly N markdown bullets with text. The original also counts `* * *`, `**bold**` and `-5 degrees`."""
    return len(_BULLET.findall(text)) == N


def validate_title(text: str) -> bool:
    """A title in double angle brackets. The original takes the empty `<<>>`."""
    return any(has_word(title) for title in _TITLE.findall(text))


def validate_choice(text: str, options: Sequence[str]) -> bool:
    """The reply is one of the options, or names exactly one of them.

    An option inside a longer option that the reply names ("no" in "no opinion") does not count as named. The original
    asks whether the reply is a part of an option, so that "e" answers "yes".
    """
    bare = text.strip(_MARKUP + ").!\n\r").casefold()
    folded = [" ".join(option.casefold().split()) for option in options]
    if any(bare == option.strip(_MARKUP + ").!") for option in folded):
        return True
    remaining, named = " ".join(text.casefold().split()), 0
    for option in sorted(set(folded), key=len, reverse=True):
        parts = re.split(r"(?<!\w)" + re.escape(option) + r"(?!\w)", remaining)
        named += len(parts) > 1
        remaining = "\n".join(parts)
    return named == 1


def validate_highlighted_sections(text: str, N: int) -> bool:
    """At least N stretches in `*one*` to `***three***` asterisks. The original counts `**bold**` and `****` twice."""
    count = position = 0
    while match := _EMPHASIS.search(text, position):
        opening, inside, closing = match.groups()
        whole = opening == closing and inside == inside.strip() and has_word(inside)
        count += whole
        position = match.end() if whole else match.end(1)
    return count >= N


def validate_sections(text: str, N: int, section_splitter: str) -> bool:
    """Exactly N sections, each a line that begins with the splitter and a label, and then content.

    The original counts every occurrence of the splitter, and text before the first one, as a section.
    """
    splitter = re.escape(section_splitter.strip())
    heading = re.compile(rf"^[ \t>#*_]*{splitter}(?!\w)[ \t]*+\S++", re.MULTILINE | re.IGNORECASE)
    headings = list(heading.finditer(text))
    ends = [match.start() for match in headings[1:]] + [len(text)]
    contents = (text[match.end() : end] for match, end in zip(headings, ends, strict=True))
    return len(headings) == N and all(map(has_word, contents))


def validate_json_format(text: str) -> bool:
    """The whole reply is a JSON object or array. The original takes the bare scalar `1`, and `NaN`."""
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def validate_repeat_prompt(text: str, original_prompt: str) -> bool:
    """The request word for word, then an answer. The original takes the request alone."""
    prompt, reply = original_prompt.strip(), text.strip()
    return reply.startswith(prompt) and has_word(reply[len(prompt) :])


def validate_two_responses(text: str) -> bool:
    """Two different replies around one `******`. The original takes an empty one, and any run of 6 to 11 asterisks."""
    replies = [" ".join(part.casefold().split()) for part in _SIX_ASTERISKS.split(text)]
    return len(replies) == 2 and all(map(has_word, replies)) and replies[0] != replies[1]


def _mostly_english_letters(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and 2 * sum(character.isascii() for character in letters) > len(letters)


def validate_uppercase(text: str) -> bool:
    """English in capitals: no small letter, and most letters are A to Z. The original takes text without letters."""
    return text == text.upper() and _mostly_english_letters(text)


def validate_lowercase(text: str) -> bool:
    """English in small letters: no capital, and most letters are a to z. The original takes text without letters."""
    return text == text.lower() and _mostly_english_letters(text)


def validate_frequency_capital_words(text: str, N: int, quantifier: str) -> bool:
    """Number of words of two or more letters, all capital.

    The original counts "I" and "A", and reads "around" as "exactly".
    """
    words = _CAPITAL_WORD.findall(text)
    count = sum(1 for word in words if word.isupper() and sum(map(str.isalpha, word)) >= 2)
    return holds(count, N, quantifier, tolerance=ten_percent(N))


def validate_end(text: str, end_phrase: str) -> bool:
    """The last words are the phrase; white space after them does not matter (it does to the original)."""
    reply, phrase = text.rstrip(), end_phrase.strip()
    before = reply[: -len(phrase)]
    return reply.endswith(phrase) and not (phrase[0].isalnum() and before[-1:].isalnum())


def validate_quotation(text: str) -> bool:
    """Wrapped in double quotation marks, straight or curly, with words inside. The original takes a lone mark."""
    reply = text.strip()
    pairs = (('"', '"'), ("“", "”"))
    return any(reply.startswith(a) and reply.endswith(b) for a, b in pairs) and has_word(reply[1:-1])


def validate_no_commas(text: str) -> bool:
    """No comma of any script. The original knows the ASCII one only."""
    return _COMMAS.search(text) is None

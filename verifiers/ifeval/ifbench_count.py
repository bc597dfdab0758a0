"""IFBench's `count:` and `ratio:` instructions. Verdicts are the reference's, quirks named in the docstrings."""

from __future__ import annotations

import re
import string

from verifiers.ifeval.instruction import InstructionType, number, positive, text
from verifiers.ifeval.text_units import count_words, split_sentences, tokenize_words

_STRIP = string.punctuation + " "
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
_CONJUNCTIONS = frozenset({"and", "but", "for", "nor", "or", "so", "yet"})
_INTERROBANGS = ("?!", "!?", "‽")

_STOP_WORD_LIST = """
a about above after again against ain all am an and any are aren as at be because been before being below between both
but by can couldn d did didn do does doesn doing don down during each few for from further had hadn has hasn have haven
having he her here hers herself him himself his how i if in into is isn it its itself just ll m ma me mightn more most
mustn my myself needn no nor not now o of off on once only or other our ours ourselves out over own re s same shan she
should shouldn so some such t than that the their theirs them themselves then there these they this those through to
too under until up ve very was wasn we were weren what when where which while who whom why will with won wouldn y you
your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
"""English stop words without an apostrophe: a word with one is two for the check."""

_NAME_LIST = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""
NAMES = tuple(_NAME_LIST.split())
"""The names that the instruction's text lists."""

_PRONOUN_LIST = """
i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves
yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever whomever
whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone something each
either neither both all some any none
"""
PRONOUNS = frozenset(_PRONOUN_LIST.split())


def word_count_range(response: str, *, min_words: int, max_words: int) -> bool:
    return min_words <= count_words(response) <= max_words


def unique_word_count(response: str, *, N: int) -> bool:
    """At least N different words. A token of punctuation only counts, once, as the empty word."""
    return len({word.strip(_STRIP) for word in response.lower().split()}) >= N


def stop_words(response: str, *, percentage: int) -> bool:
    """Stop words are at most so many percent of the words."""
    words = _WORD.findall(response)
    # divided first, as in the reference: 7 of 25 is then 28.000000000000004%
    return bool(words) and sum(word.lower() in STOP_WORDS for word in words) / len(words) * 100 <= percentage


def sentence_type(response: str) -> bool:
    """Twice as many sentences end in a period as in a question mark; none of either will do."""
    sentences = split_sentences(response)
    return sum(s.endswith(".") for s in sentences) == 2 * sum(s.endswith("?") for s in sentences)


def sentence_balance(response: str) -> bool:
    """As many sentences end in `.` as in `?` and in `!`; none of any will do."""
    sentences = split_sentences(response)
    return len({sum(s.endswith(mark) for s in sentences) for mark in ".?!"}) == 1


def sentence_words(response: str) -> bool:
    """Three sentences of the same number of characters, with no word twice."""
    sentences = split_sentences(response)
    if len(sentences) != 3 or len({len(sentence.strip()) for sentence in sentences}) != 1:
        return False
    words = " ".join(sentences).lower().translate(_NO_PUNCTUATION).split()
    return len(words) == len(set(words))


def conjunctions(response: str, *, small_n: int) -> bool:
    """At least so many different coordinating conjunctions; "and", "And" and "and," are three, as in the reference."""
    return len({word for word in response.split() if word.strip(_STRIP).lower() in _CONJUNCTIONS}) >= small_n


def person_names(response: str, *, N: int) -> bool:
    return sum(re.search(rf"\b{name}\b", response) is not None for name in NAMES) >= N


def numbers(response: str, *, N: int) -> bool:
    """Exactly N runs of digits once punctuation is taken out, so that 1,000.5 is one number."""
    return len(_DIGITS.findall(response.translate(_NO_PUNCTUATION))) == N


def punctuation(response: str) -> bool:
    """All of `. , ! ? ; :` besides one interrobang, which may be written `?!`, `!?` or `‽`."""
    if not any(mark in response for mark in _INTERROBANGS):
        return False
    mark = "?!" if "?!" in response else "!?"
    rest = response.replace(mark, "", 1)
    return all(needed in rest for needed in ".,!?;:")


def pronouns(response: str, *, N: int) -> bool:
    return sum(word in PRONOUNS for word in tokenize_words(response.replace("/", " ").lower())) >= N


def words_japanese(response: str, *, N: int) -> bool:
    """Every N-th token has a Japanese character, unless it is a number or punctuation."""
    nth = (word.strip(_STRIP) for word in response.split()[N - 1 :: N])
    return all(_JAPANESE.search(word) for word in nth if word and not word.isdigit())


def keywords_multiple(
    response: str, *, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """The keywords occur exactly 1, 2, 3, 5 and 7 times as words."""
    wanted = ((keyword1, 1), (keyword2, 2), (keyword3, 3), (keyword4, 5), (keyword5, 7))
    return all(
        len(re.findall(rf"\b{re.escape(keyword.strip())}\b", response, re.IGNORECASE)) == count
        for keyword, count in wanted
    )


def overlap(response: str, *, reference_text: str, percentage: int) -> bool:
    """So many percent (2 more or less) of the response's different word trigrams stand in the reference text."""
    trigrams = _trigrams(response)
    if not trigrams:
        return False
    share = 100 * (len(trigrams & _trigrams(reference_text)) / len(trigrams))
    return percentage - 2 <= share <= percentage + 2


def _trigrams(words: str) -> set[tuple[str, ...]]:
    tokens = tokenize_words(words)
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


COUNT: dict[str, InstructionType] = {
    "count:word_count_range": InstructionType(
        check=word_count_range,
        kwargs={"min_words": number, "max_words": number},
        most_words=lambda min_words, max_words: max(1, min_words),
        fault=lambda min_words, max_words: f"{min_words} to {max_words} words" if min_words > max_words else None,
    ),
    "count:unique_word_count": InstructionType(check=unique_word_count, kwargs={"N": number}),
    "ratio:stop_words": InstructionType(check=stop_words, kwargs={"percentage": number}),
    "ratio:sentence_type": InstructionType(check=sentence_type),
    "ratio:sentence_balance": InstructionType(check=sentence_balance),
    "ratio:sentence_words": InstructionType(check=sentence_words),
    "count:conjunctions": InstructionType(check=conjunctions, kwargs={"small_n": number}),
    "count:person_names": InstructionType(check=person_names, kwargs={"N": number}),
    "ratio:overlap": InstructionType(
        check=overlap, kwargs={"reference_text": text, "percentage": number}, may_copy=True
    ),
    "count:numbers": InstructionType(check=numbers, kwargs={"N": number}),
    "count:punctuation": InstructionType(check=punctuation),
    "count:words_japanese": InstructionType(check=words_japanese, kwargs={"N": positive}),
    "count:pronouns": InstructionType(check=pronouns, kwargs={"N": number}),
    "count:keywords_multiple": InstructionType(
        check=keywords_multiple, kwargs={f"keyword{place}": text for place in range(1, 6)}
    ),
}

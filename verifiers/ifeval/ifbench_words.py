"""IFBench's `words:` and `sentence:` instructions. Verdicts are the reference's, quirks named in the docstrings."""

from __future__ import annotations

import collections
import itertools
import re
import string

from verifiers.ifeval.instruction import InstructionType, number, positive, text
from verifiers.ifeval.syllables import count_syllables
from verifiers.ifeval.text_units import split_sentences, tokenize_words
from verifiers.ifeval.verbs import starts_with_verb

_STRIP = string.punctuation + " "
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CONSONANT_CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
_PRIMES = frozenset({2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97})


def bare_words(response: str) -> list[str]:
    """Lower-case words with all ASCII punctuation taken out.

    >>> bare_words("Don't -- stop!")
    ['dont', 'stop']
    """
    return response.lower().translate(_NO_PUNCTUATION).split()


def alphabet(response: str) -> bool:
    """Each word starts with the letter after the one before it, A after Z."""
    words = bare_words(response)
    if not words or words[0][0] not in string.ascii_lowercase:
        return False
    first = ord(words[0][0]) - ord("a")
    return all(word[0] == string.ascii_lowercase[(first + place) % 26] for place, word in enumerate(words))


def vowel(response: str) -> bool:
    """One line, with at most three of the five vowels."""
    paragraph = response.strip()
    return "\n" not in paragraph and len(set("aeiou") & set(paragraph.lower())) <= 3


def consonants(response: str) -> bool:
    """Every token has two consonants next to each other; so a lone "-" does not pass."""
    return all(_CONSONANT_CLUSTER.search(word) for word in response.lower().split())


def palindrome(response: str) -> bool:
    """At least ten palindromes of five letters or more; the same one ten times will do."""
    return sum(len(word) >= 5 and word == word[::-1] for word in bare_words(response)) >= 10


def prime_lengths(response: str) -> bool:
    """All words have a prime length below 100."""
    return all(len(word) in _PRIMES for word in response.translate(_NO_PUNCTUATION).split())


def repeats(response: str, *, small_n: int) -> bool:
    """No word occurs more than so many times."""
    return max(collections.Counter(bare_words(response)).values(), default=0) <= small_n


def no_consecutive(response: str) -> bool:
    """No two neighbours start with the same letter."""
    return all(a[0] != b[0] for a, b in itertools.pairwise(bare_words(response)))


def odd_even_syllables(response: str) -> bool:
    """Numbers of syllables alternate between odd and even."""
    parities = [count_syllables(word) % 2 for word in bare_words(response)]
    return all(a != b for a, b in itertools.pairwise(parities))


def last_first(response: str) -> bool:
    """The last word of each sentence is the first of the next."""
    for sentence, following in itertools.pairwise(split_sentences(response)):
        last, first = sentence.rstrip(_STRIP).split(), following.lstrip(_STRIP).split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


def paragraph_last_first(response: str) -> bool:
    """Each line with words ends with the word it started with."""
    lines = (line.strip().lower().strip(_STRIP).split() for line in response.split("\n"))
    return all(words[0] == words[-1] for words in lines if words)


def keywords_specific_position(response: str, *, keyword: str, n: int, m: int) -> bool:
    """The keyword is the m-th word of the n-th sentence, both from 1."""
    sentences = split_sentences(response)
    if len(sentences) < n:
        return False
    words = _tokens_with_letters(sentences[n - 1])
    return len(words) >= m and words[m - 1].lower() == keyword.strip().lower()


def words_position(response: str, *, keyword: str) -> bool:
    """The second word, and the last but one, are the keyword."""
    words = _tokens_with_letters(response)
    return len(words) >= 2 and words[1].lower() == words[-2].lower() == keyword.strip().lower()


def _tokens_with_letters(response: str) -> list[str]:
    return [token for token in tokenize_words(response) if any(map(str.isalnum, token))]


def alliteration_increment(response: str) -> bool:
    """More alliterating words in each sentence than in the one before it; runs within a sentence add up."""
    before = -1
    for sentence in split_sentences(response):
        words = [word for token in sentence.lower().split() if (word := token.lstrip(_STRIP))]
        same = [a[0] == b[0] for a, b in itertools.pairwise(words)]
        # a run of k equal pairs holds k + 1 words
        count = sum(same) + sum(1 for run, _ in itertools.groupby(same) if run)
        if count <= before:
            return False
        before = count
    return True


def increment(response: str, *, small_n: int) -> bool:
    """Each sentence has exactly so many words more than the one before it; one sentence alone will do."""
    counts = [len(sentence.translate(_NO_PUNCTUATION).split()) for sentence in split_sentences(response)]
    return all(b == a + small_n for a, b in itertools.pairwise(counts))


def sentence_keyword(response: str, *, word: str, N: int) -> bool:
    """The word stands in the N-th sentence."""
    sentences = split_sentences(response)
    pattern = rf"\b{re.escape(word)}\b"
    return len(sentences) >= N and re.search(pattern, sentences[N - 1], re.IGNORECASE) is not None


WORDS: dict[str, InstructionType] = {
    "words:alphabet": InstructionType(check=alphabet),
    "words:vowel": InstructionType(check=vowel),
    "words:consonants": InstructionType(check=consonants),
    "words:palindrome": InstructionType(check=palindrome),
    "words:prime_lengths": InstructionType(check=prime_lengths),
    "words:start_verb": InstructionType(check=starts_with_verb),
    "words:repeats": InstructionType(check=repeats, kwargs={"small_n": positive}),
    "words:odd_even_syllables": InstructionType(check=odd_even_syllables),
    "words:last_first": InstructionType(check=last_first),
    "words:paragraph_last_first": InstructionType(check=paragraph_last_first),
    "words:no_consecutive": InstructionType(check=no_consecutive),
    "words:keywords_specific_position": InstructionType(
        check=keywords_specific_position, kwargs={"keyword": text, "n": positive, "m": positive}
    ),
    "words:words_position": InstructionType(check=words_position, kwargs={"keyword": text}),
    "sentence:alliteration_increment": InstructionType(check=alliteration_increment),
    "sentence:increment": InstructionType(check=increment, kwargs={"small_n": number}),
    "sentence:keyword": InstructionType(check=sentence_keyword, kwargs={"word": text, "N": positive}),
}

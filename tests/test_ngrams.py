"""The n-gram index against a slow one that compares every text with every instance."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr import ngrams
from rlvr.ngrams import NgramIndex, split_words

TEXT = st.lists(st.sampled_from("abcd"), max_size=22).map(" ".join)


def slow(instances: list[list[str]], texts: list[str], ngram: int, share: float) -> set[tuple[int, int, int]]:
    def words(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())

    found = set()
    for t, text in enumerate(texts):
        said = words(text)
        grams = {tuple(said[i : i + ngram]) for i in range(len(said) - ngram + 1)}
        for n, turns in enumerate(instances):
            covered = 0
            for turn in map(words, turns):
                places = [i for i in range(len(turn) - ngram + 1) if tuple(turn[i : i + ngram]) in grams]
                covered += len({i + k for i in places for k in range(ngram)})
            if covered > share * sum(len(words(turn)) for turn in turns):
                found.add((t, n, covered))
    return found


def fast(instances: list[list[str]], texts: list[str], ngram: int, share: float) -> set[tuple[int, int, int]]:
    matches = NgramIndex(instances, ngram).match(texts, share)
    return set(zip(matches.texts.tolist(), matches.instances.tolist(), matches.words.tolist(), strict=True))


@given(
    instances=st.lists(st.lists(TEXT, min_size=1, max_size=2), min_size=1, max_size=5),
    texts=st.lists(TEXT, min_size=1, max_size=5),
    ngram=st.sampled_from([1, 2, 3, 8]),
    share=st.sampled_from([0.0, 0.3, 0.5]),
    at_once=st.sampled_from([1, 7, 10**6]),
)
def test_it_finds_what_comparing_all_with_all_finds(
    instances: list[list[str]], texts: list[str], ngram: int, share: float, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PAIRS_AT_ONCE", at_once)  # however small the pieces are
        assert fast(instances, texts, ngram, share) == slow(instances, texts, ngram, share)


def test_more_than_half_means_more_than_half_and_by_the_same_text() -> None:
    # 16 words; the first text has the first 8 (50%), the second the last 9 (56%): 2 of its 8-grams
    instance = " ".join(f"w{n}" for n in range(16))
    texts = [" ".join(f"w{n}" for n in range(8)), " ".join(f"w{n}" for n in range(7, 16))]
    assert fast([[instance]], texts, 8, 0.5) == {(1, 0, 9)}
    # two texts that together have all of it, 8 words each: neither overlaps
    halves = [" ".join(f"w{n}" for n in part) for part in (range(8), range(8, 16))]
    assert fast([[instance]], halves, 8, 0.5) == set()


def test_an_ngram_reaches_neither_from_turn_to_turn_nor_from_text_to_text() -> None:
    assert fast([["a b", "c d"]], ["a b c d"], 3, 0.0) == set()
    assert fast([["a b c d"]], ["a b", "c d"], 3, 0.0) == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's 1,000 + 2?", "what s 1 000 2"),
        ("x_1^{2}\\frac12", "x 1 2 frac12"),
        ("Janet\u2019s caf\u00e9", "janet s caf\u00e9"),  # a curly apostrophe is one; letters of any script stay
        ("cafe\u0301", "caf\u00e9"),  # however the accent is spelt
        ("STRASSE", "strasse"),
        ("Stra\u00dfe", "strasse"),
        ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60\u597d \u4e16\u754c"),
        ("a\x01b", "a b"),  # the boundary is no word of a text
        ("", ""),
    ],
)
def test_words_are_letters_and_digits_in_lower_case(text: str, words: str) -> None:
    assert split_words([text])[:-1] == words.encode().split()


def test_colliding_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # one slot of the table for all n-grams: every known n-gram is a candidate everywhere, and words decide
    monkeypatch.setattr(ngrams, "TABLE_BITS", 1)
    assert fast([["a b c"], ["b c d"]], ["x a b c", "d c b"], 3, 0.0) == {(0, 0, 3)}

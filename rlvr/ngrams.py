"""Which texts share runs of words with others: exact, without a server, in one pass over the texts that are searched.

Words are numbered by a dictionary, so equal numbers are equal words. A hash of each n-gram finds candidates, whose
words are then compared one by one: a collision costs time, never a wrong match.
"""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
TABLE_BITS = 24
PAIRS_AT_ONCE = 4_000_000
"""Matched words held at once; bounds memory where a phrase is in every text."""
_UNKNOWN, _BOUNDARY = -1, -2
_BOUNDARY_WORD = b"\x01"
_SPACE = ord(" ")


class _WordCharacters(dict[int, int]):
    """`str.translate` table: letters and digits of any script stay, all else becomes a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if chr(code).isalnum() else _SPACE
        return self[code]


_CHARACTERS = _WordCharacters()
_BYTES = bytes(
    byte if byte >= 128 or byte == _BOUNDARY_WORD[0] else ord(chr(byte).lower()) if chr(byte).isalnum() else _SPACE
    for byte in range(256)
)


def split_words(texts: Sequence[str]) -> list[bytes]:
    """The words of all texts: runs of letters and digits, in lower case, with a boundary word after each text.

    >>> split_words(["What's 1,000 + 2?"])
    [b'what', b's', b'1', b'000', b'2', b'\\x01']
    """
    plain = [_plain(text) for text in texts]
    return " \x01 ".join([*plain, ""]).encode("utf-8").translate(_BYTES).split()


def _plain(text: str) -> str:
    if not text.isascii():
        return unicodedata.normalize("NFC", text).casefold().translate(_CHARACTERS)
    return text.replace("\x01", " ") if "\x01" in text else text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of a searched text and an instance that shares enough of its words."""

    texts: Integers
    """[M]: number of the searched text."""
    instances: Integers
    """[M]: number of the instance."""
    words: Integers
    """[M]: words of the instance that lie in an n-gram shared with the text."""


class NgramIndex:
    """The n-grams of a list of instances (of evaluation sets)."""

    def __init__(self, instances: Sequence[Sequence[str]], ngram: int) -> None:
        """Args:
        instances: the texts of each instance; an n-gram does not reach from one text into the next.
        ngram: words of an n-gram.
        """
        self.ngram = ngram
        words = split_words([text for texts in instances for text in texts])
        self._vocabulary: dict[bytes, int] = {_BOUNDARY_WORD: _BOUNDARY}
        for word in words:
            self._vocabulary.setdefault(word, len(self._vocabulary))
        ids = self._numbers(words)
        text_instance = np.repeat(np.arange(len(instances)), [len(texts) for texts in instances])
        instance_of = text_instance[self._text_of(ids)] if ids.size else ids
        self.lengths = np.bincount(instance_of[ids != _BOUNDARY], minlength=len(instances)).astype(np.int64)
        """int64 [instances]: words of each; one with fewer than `ngram` cannot match."""
        self._build(ids, instance_of)

    def _numbers(self, words: list[bytes]) -> Integers:
        numbers = map(self._vocabulary.get, words, itertools.repeat(_UNKNOWN))
        return np.fromiter(numbers, dtype=np.int64, count=len(words))

    @staticmethod
    def _text_of(ids: Integers) -> Integers:
        """Number of the text that each word, or the boundary after it, belongs to."""
        is_boundary = ids == _BOUNDARY
        return np.cumsum(is_boundary) - is_boundary

    def _hashes(self, ids: Integers) -> tuple[Hashes, Integers]:
        """Hash of the n-gram at each position where one lies within a text and has known words only."""
        count = max(len(ids) - self.ngram + 1, 0)
        gaps = np.concatenate([[0], np.cumsum(ids < 0)])
        whole = np.flatnonzero(gaps[self.ngram :][:count] == gaps[:count])
        total = np.zeros(len(whole), dtype=np.uint64)
        for offset, factor in enumerate(self._factors):
            total += ids[whole + offset].astype(np.uint64) * factor
        return total, whole

    def _build(self, ids: Integers, instance_of: Integers) -> None:
        for attempt in itertools.count():  # other factors if two n-grams had one hash: about once in 10^8 builds
            draw = np.random.Generator(np.random.PCG64(attempt))
            self._factors = draw.integers(1, 2**63, self.ngram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            hashes, positions = self._hashes(ids)
            order = np.argsort(hashes, kind="stable")
            self._keys, starts = np.unique(hashes[order], return_index=True)
            self._positions = positions[order]
            self._starts = np.append(starts, len(order)).astype(np.int64)
            self._grams = _windows(ids, self._positions[starts], self.ngram)
            which = np.repeat(np.arange(len(starts)), np.diff(self._starts))
            if np.array_equal(_windows(ids, self._positions, self.ngram), self._grams[which]):
                break
        self._instance_of = instance_of
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self._slots(self._keys)] = True

    @staticmethod
    def _slots(hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - TABLE_BITS)

    def match(self, texts: Sequence[str], min_overlap: float) -> Matches:
        """The pairs in which more than `min_overlap` of an instance's words are matched by one and the same text."""
        ids = self._numbers(split_words(texts))
        hashes, positions = self._hashes(ids)
        candidates = np.flatnonzero(self._table[self._slots(hashes)])
        hashes, positions = hashes[candidates], positions[candidates]
        gram = np.searchsorted(self._keys, hashes)
        known = gram < len(self._keys)
        known[known] = self._keys[gram[known]] == hashes[known]
        gram, positions = gram[known], positions[known]
        same = (_windows(ids, positions, self.ngram) == self._grams[gram]).all(axis=1)
        text = self._text_of(ids)[positions[same]]
        pairs = np.unique(np.stack([text, gram[same]]), axis=1) if same.any() else np.empty((2, 0), dtype=np.int64)
        return self._overlaps(pairs[0], pairs[1], min_overlap)

    def _overlaps(self, text: Integers, gram: Integers, min_overlap: float) -> Matches:
        """Count each instance's words that the shared n-grams of each text cover. `text` is sorted."""
        occurrences = self._starts[gram + 1] - self._starts[gram]
        load = np.concatenate([[0], np.cumsum(occurrences)])
        found: list[tuple[Integers, Integers, Integers]] = []
        begin = 0
        while begin < len(text):
            end = max(int(np.searchsorted(load, load[begin] + PAIRS_AT_ONCE, side="right")) - 1, begin + 1)
            # to the end of a text: all of its n-grams are counted together
            end = int(np.searchsorted(text, text[end - 1], side="right"))
            piece = slice(begin, end)
            found.append(self._covered(text[piece], gram[piece], occurrences[piece], min_overlap))
            begin = end
        columns = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else [gram[:0]] * 3
        return Matches(texts=columns[0], instances=columns[1], words=columns[2])

    def _covered(
        self, text: Integers, gram: Integers, occurrences: Integers, min_overlap: float
    ) -> tuple[Integers, Integers, Integers]:
        inside = np.arange(occurrences.sum()) - np.repeat(np.cumsum(occurrences) - occurrences, occurrences)
        position = self._positions[np.repeat(self._starts[gram], occurrences) + inside]
        text = np.repeat(text, occurrences)
        order = np.lexsort((position, text))
        text, position = text[order], position[order]
        instance = self._instance_of[position]
        new = np.flatnonzero((np.diff(text, prepend=-1) != 0) | (np.diff(instance, prepend=-1) != 0))
        reach = np.minimum(np.diff(position, append=0), self.ngram)  # words up to the next shared n-gram
        reach[np.append(new[1:] - 1, len(reach) - 1)] = self.ngram
        words = np.add.reduceat(reach, new) if new.size else reach
        enough = words > min_overlap * self.lengths[instance[new]]
        return text[new][enough], instance[new][enough], words[enough]


def _windows(ids: Integers, positions: Integers, ngram: int) -> npt.NDArray[np.int32]:
    """int32 [positions, ngram]: the words from each position on."""
    return ids[positions[:, None] + np.arange(ngram)].astype(np.int32)

"""How much of each source a run takes: a share (a float) or a number of rows (an integer), drawn from a fixed order."""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from rlvr.seeds import derive

Item = TypeVar("Item", covariant=True)
Whole = TypeVar("Whole")


class LazySequence(Sequence[Item]):
    """A sequence whose items are made when they are asked for, so that only what is used is held in memory."""

    def _item(self, index: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        places = range(len(self))[index]
        return self._item(places) if isinstance(places, int) else tuple(map(self._item, places))

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, range(len(self)))


class Lazy(LazySequence[Item]):
    """`make(0) .. make(length - 1)`.

    >>> squares = Lazy(4, lambda n: n * n)
    >>> squares[-1], squares[1:3], len(squares)
    (9, (1, 4), 4)
    """

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def _item(self, index: int) -> Item:
        return self._make(index)


class Joined(LazySequence[Item], Generic[Item]):
    """Several sequences end to end."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def _item(self, index: int) -> Item:
        part = self.part_of(index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    def part_of(self, index: int) -> int:
        """Number of the part that item `index` is in."""
        return bisect.bisect_right(self._ends, index)

    def __iter__(self) -> Iterator[Item]:
        for part in self.parts:
            yield from part


@functools.lru_cache(maxsize=4)  # a step asks for the order of its epoch
def _order(count: int, seed: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


def shuffled(count: int, seed: int) -> list[int]:
    """A permutation of 0 .. count-1."""
    return list(_order(count, seed))


def ordered_batch(items: Sequence[Any], step: int, size: int, seed: int) -> list[Any]:
    """The items of a step: the endless sequence of epochs, each in an order of its own, cut in pieces of `size`.

    A function of its arguments alone, so a resumed run continues the same sequence. No item is left out at an epoch's
    end.
    """
    chosen = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(items))
        chosen.append(items[_order(len(items), derive(seed, "order", epoch))[index]])
    return chosen


def taken(rows: int, *, weight: float | None, count: int | None) -> npt.NDArray[np.int64]:
    """Which of a source's rows a run takes.

    `weight` 2.5 and `count` 2.5 x rows are the same: two whole passes, and half of the rows once more. What is less
    than a pass is the beginning of one fixed order of the source's rows, so a smaller share is part of a larger one,
    and runs with different seeds train (and are evaluated) on the same rows.

    Args:
        rows: how many usable rows the source has.
        weight: share of them; 0.5 rows are rounded up.
        count: how many, instead of a share. With neither, all are taken once.

    Returns int64 [taken], each pass in the order of the file.

    >>> taken(4, weight=None, count=None), taken(4, weight=2.5, count=None).size, taken(4, weight=None, count=3).size
    (array([0, 1, 2, 3]), 10, 3)
    """
    wanted = count if count is not None else rows if weight is None else int(weight * rows + 0.5)
    passes, rest = divmod(wanted, rows)
    beginning = sorted(shuffled(rows, derive("mix", rows))[:rest]) if rest else []
    return np.concatenate([np.tile(np.arange(rows, dtype=np.int64), passes), np.array(beginning, dtype=np.int64)])

"""Which rows of a source are good, and where each of them begins: they are read from disk when they are asked for.

One pass finds the bad rows and remembers where each good one begins (16 bytes a row), so a file may be larger than
memory. Bad rows are listed by file and line and counted by kind; above the allowed share they stop the run.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import zlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rlvr import watch
from rlvr.config import Source
from rlvr.errors import DataError
from rlvr.mixing import LazySequence
from rlvr.row_files import Kind, Lines, RowFault, Table, open_rows

MOST_SHOWN = 10
T = TypeVar("T")
Build = Callable[[Any, str], T]
"""Makes a row from its JSON value and its place. Raises RowFault."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was left out."""

    place: str
    """File and line, or set and row number."""
    kind: Kind
    text: str
    """What is wrong, with the value seen."""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """What became of the rows of one source, filter by filter, in the order in which they act."""

    path: str
    rows: int
    """Read, blank lines not counted."""
    checksum: int = 0
    """CRC-32 of all of them, so that a resumed run can tell that its data has changed."""
    bad: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Left out, by kind."""
    kept_duplicates: int = 0
    """Rows that repeat an earlier prompt, with `duplicates = "keep"`."""
    contaminated: int = 0
    """Removed because they occur in an evaluation set."""
    verifiers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Tasks by verifier, before the filters below."""
    taken: int | None = None
    """After `weight` or `count`; more than there are where rows are repeated. None where neither is set."""
    over_length: int = 0

    def line(self) -> str:
        """The counts on one line, filters that did nothing left out.

        >>> SourceCounts(path="a.jsonl", rows=9, bad={"not JSON": 1}, taken=16, over_length=3).line()
        'a.jsonl: 9 rows - 1 bad (1 not JSON) = 8; mixed to 16; - 3 over the length limit = 13'
        """
        left = self.rows
        text = f"{self.path}: {self.rows} rows"
        if self.bad:
            left -= sum(self.bad.values())
            text += f" - {sum(self.bad.values())} bad ({_by_kind(self.bad)}) = {left}"
        if self.contaminated:
            left -= self.contaminated
            text += f" - {self.contaminated} contaminated = {left}"
        if self.taken is not None:
            left = self.taken
            text += f"; mixed to {left}"
        if self.over_length:
            text += f"; - {self.over_length} over the length limit = {left - self.over_length}"
        if self.kept_duplicates:
            text += f"; {self.kept_duplicates} repeat an earlier prompt and are kept"
        return text


def _by_kind(kinds: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


class Rows(LazySequence[T]):
    """The good rows of a source, or some of them; each is read from disk when it is asked for."""

    def __init__(
        self,
        reader: Lines | Table,
        build: Build[T],
        places: npt.NDArray[np.uint64],
        numbers: npt.NDArray[np.uint64],
        counts: SourceCounts,
        bad: tuple[BadRow, ...],
    ) -> None:
        self._reader, self._build = reader, build
        self._places, self._numbers = places, numbers
        self.counts = counts
        self.bad = bad
        """Every bad row that was left out, and every duplicate that was kept."""
        self.contamination: tuple[Any, ...] = ()
        """What decontamination found, a `PairReport` for each evaluation set."""

    def __len__(self) -> int:
        return len(self._places)

    def place(self, index: int) -> str:
        """File and line of a row, or its set and number."""
        return self._reader.name(int(self._numbers[index]))

    def _item(self, index: int) -> T:
        place = self.place(index)
        return self._build(self._reader.read(int(self._places[index]), place), place)

    def select(self, chosen: npt.NDArray[np.int64], **counts: Any) -> Rows[T]:
        """These rows, in this order, with some of the counts replaced."""
        replaced = dataclasses.replace(self.counts, **counts)
        rows = Rows(self._reader, self._build, self._places[chosen], self._numbers[chosen], replaced, self.bad)
        rows.contamination = self.contamination
        return rows


def read(
    source: Source,
    build: Build[T],
    identity: Callable[[T], Hashable],
    *,
    max_bad_share: float = 0.0,
    duplicates: Literal["bad", "keep"] = "keep",
    each: Callable[[T], None] = lambda row: None,
) -> Rows[T]:
    """Read a source once, and index its good rows.

    Args:
        build: makes a row of its JSON value, or raises RowFault.
        identity: two rows with equal identities are duplicates.
        max_bad_share: bad rows of all rows, above which the source is refused.
        duplicates: whether the second and later rows of one identity are bad, or only counted.
        each: called with every row that could be built, in order; may raise RowFault too.

    Raises DataError that lists the bad rows, or when there is no row.
    """
    reader = open_rows(source)
    bad: list[BadRow] = []
    places, numbers, hashes = array.array("Q"), array.array("Q"), array.array("q")
    total = checksum = 0
    for place, number, raw in reader.scan():
        watch.moved()
        total += 1
        as_bytes = raw if isinstance(raw, bytes) else repr(raw).encode("utf-8", "surrogatepass")
        checksum = zlib.crc32(as_bytes, checksum)
        name = reader.name(number)
        try:
            row = build(raw, name)
            each(row)
        except RowFault as fault:
            bad.append(BadRow(place=name, kind=fault.kind, text=str(fault)))
            continue
        places.append(place)
        numbers.append(number)
        hashes.append(hash(identity(row)))
    if not total:
        raise DataError(f"{source.path} holds no rows")
    rows = Rows(
        reader,
        build,
        np.array(places, dtype=np.uint64),
        np.array(numbers, dtype=np.uint64),
        SourceCounts(path=source.path, rows=total, checksum=checksum),
        (),
    )
    repeated = _repeated(rows, np.array(hashes, dtype=np.int64), identity)
    bad += repeated.values()
    kept = np.array([n for n in range(len(rows)) if duplicates == "keep" or n not in repeated], dtype=np.int64)
    kinds = collections.Counter(row.kind for row in bad)
    if duplicates == "keep":
        del kinds["duplicate prompt"]
    if (wrong := sum(kinds.values())) > max_bad_share * total:
        _refuse(source.path, [row for row in bad if row.kind in kinds], wrong, total, kinds, max_bad_share)
    if not kept.size:
        raise DataError(f"{source.path}: all {total} rows are bad, first {bad[0]}")
    kept_duplicates = len(repeated) if duplicates == "keep" else 0
    chosen = rows.select(kept, bad=dict(kinds), kept_duplicates=kept_duplicates)
    chosen.bad = tuple(bad)
    return chosen


def _repeated(rows: Rows[T], hashes: npt.NDArray[np.int64], identity: Callable[[T], Hashable]) -> dict[int, BadRow]:
    """Rows whose identity an earlier row has. Equal hashes are only candidates: the rows themselves are compared."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    groups: dict[int, list[int]] = {}
    for place in equal:
        groups.setdefault(int(hashes[order[place]]), [int(order[place])]).append(int(order[place + 1]))
    found: dict[int, BadRow] = {}
    for group in groups.values():
        first: dict[Hashable, int] = {}
        for number in group:
            earlier = first.setdefault(identity(rows[number]), number)
            if earlier != number:
                text = f"the same prompt as {rows.place(earlier)}"
                found[number] = BadRow(place=rows.place(number), kind="duplicate prompt", text=text)
    return dict(sorted(found.items()))


def _refuse(
    path: str, bad: list[BadRow], wrong: int, total: int, kinds: Mapping[Kind, int], max_bad_share: float
) -> None:
    shown = "\n  ".join(map(str, bad[:MOST_SHOWN]))
    more = f"\n  and {len(bad) - MOST_SHOWN} more" if len(bad) > MOST_SHOWN else ""
    count = "1 bad row" if wrong == 1 else f"{wrong} bad rows"
    allowed = f" is more than max_bad_share={max_bad_share:g} allows" if max_bad_share else ""
    keep = ' (duplicates = "keep" keeps the last kind)' if "duplicate prompt" in kinds else ""
    raise DataError(
        f"{count} of {total} in {path}{allowed}: {_by_kind(kinds)}{keep}; correct or remove:\n  {shown}{more}"
    )

"""Rows of JSONL and Parquet files, `datasets` folders and the Hub, read from disk when they are asked for.

One pass finds the bad rows and remembers where each good one begins (16 bytes a row), so a file may be larger than
memory. Bad rows are listed by file and line and counted by kind; above the allowed share they stop the run.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rlvr.config import Source
from rlvr.errors import DataError
from rlvr.mixing import LazySequence

LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet")
MOST_SHOWN = 10
IN_MEMORY_BYTES = 256 * 2**20
"""A Parquet file of more than this, decompressed, is memory-mapped through `datasets`' cache instead."""

Kind = Literal[
    "not UTF-8",
    "not JSON",
    "truncated last line",
    "missing keys",
    "wrong type",
    "wrong roles",
    "empty prompt",
    "empty ground truth",
    "unknown verifier",
    "duplicate prompt",
]
T = TypeVar("T")
Build = Callable[[Any, str], T]
"""Makes a row from its JSON value and its place. Raises RowFault."""


class RowFault(DataError):
    """What is wrong with one row."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind: Kind = kind


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
        reader: _Lines | _Table,
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
    reader = _open(source)
    bad: list[BadRow] = []
    places, numbers, hashes = array.array("Q"), array.array("Q"), array.array("q")
    total = checksum = 0
    for place, number, raw in reader.scan():
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


class _Lines:
    """A JSONL file. A row's place is the byte at which its line begins."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._version = self._stat()

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def name(self, number: int) -> str:
        return f"{self._path}:{number}"

    def scan(self) -> Iterator[tuple[int, int, Any]]:
        place = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield place, number, line
                place += len(line)

    def read(self, place: int, name: str) -> bytes:
        if self._stat() != self._version:
            raise DataError(f"{self._path} was changed while it was in use (at {name}); start again")
        pieces = []
        while piece := os.pread(self._file.fileno(), 1 << 16, place):
            end = piece.find(b"\n") + 1
            pieces.append(piece[:end] if end else piece)
            if end:
                break
            place += len(piece)
        return b"".join(pieces)


class _Table:
    """An Arrow table, in memory or memory-mapped. A row's place is its number."""

    def __init__(self, path: str, table: Any) -> None:
        self._path, self._table = path, table

    def name(self, number: int) -> str:
        return f"{self._path}[{number}]"

    def scan(self) -> Iterator[tuple[int, int, Any]]:
        number = 0
        for batch in self._table.to_batches(max_chunksize=1000):
            for raw in batch.to_pylist():
                yield number, number, raw
                number += 1

    def read(self, place: int, name: str) -> Any:
        return self._table.slice(place, 1).to_pylist()[0]


def parsed(raw: Any, place: str) -> Mapping[str, Any]:
    """The row's columns, from a line of JSONL or a row of a table. Raises RowFault."""
    value = _parse(raw, first=place.endswith(":1")) if isinstance(raw, bytes) else raw
    if not isinstance(value, dict):
        raise RowFault("wrong type", f"a row is an object, not {type(value).__name__}")
    return value


def _parse(line: bytes, *, first: bool) -> Any:
    try:
        return json.loads(
            line.rstrip().decode("utf-8-sig" if first else "utf-8")
        )  # a byte order mark may begin a file only
    except UnicodeDecodeError as error:
        raise RowFault(
            "not UTF-8", f"not UTF-8 (byte {line[error.start]:#04x} at byte {error.start + 1} of the line)"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        if line.endswith(b"\n"):
            raise RowFault("not JSON", f"not one JSON object on a line ({error})") from None
        raise RowFault(
            "truncated last line", f"the last line has no end and is not one JSON object: cut off? ({error})"
        ) from None


def open_table(source: Source) -> Any:
    """The Arrow table of a Parquet file, a `datasets` folder or a Hub id. Raises DataError."""
    path = pathlib.Path(source.path)
    return _parquet(path) if path.suffix == ".parquet" and path.is_file() else _dataset(source, path)


def _open(source: Source) -> _Lines | _Table:
    path = pathlib.Path(source.path)
    if path.suffix in LOCAL_SUFFIXES and not path.exists():
        raise DataError(f"there is no file {path} (looked in {pathlib.Path.cwd()})")
    if path.suffix in (".jsonl", ".json") and path.is_file():
        return _Lines(path)
    return _Table(source.path, open_table(source))


def _parquet(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
        size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
        if size <= IN_MEMORY_BYTES:
            return pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error
    import datasets

    return datasets.load_dataset("parquet", data_files=str(path), split="train").data.table


def _dataset(source: Source, path: pathlib.Path) -> Any:
    import datasets

    try:
        if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            loaded = datasets.load_from_disk(str(path))
            loaded = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(source.path, split=source.split)
    except KeyError as error:
        raise DataError(f"{source.path} has no split {source.split!r}; it has {', '.join(loaded)}") from error
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise DataError(
            f"cannot read {source.path!r} as a JSONL or Parquet file, a `datasets` folder or a Hub id: {error}"
        ) from error
    return loaded.flatten_indices().data.table if loaded._indices is not None else loaded.data.table

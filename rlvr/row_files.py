"""Where rows lie: JSONL and Parquet files, `datasets` folders and the Hub. None is held in memory when it is large."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rlvr.config import Source
from rlvr.errors import DataError

LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet")
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


class RowFault(DataError):
    """What is wrong with one row."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind: Kind = kind


class Lines:
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


class Table:
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
    refuse_idle_options(source.path, source.subset, source.split)
    return _parquet(path) if path.suffix == ".parquet" and path.is_file() else _dataset(source, path)


def open_rows(source: Source) -> Lines | Table:
    """The file, table or folder that a source names. Raises DataError."""
    path = pathlib.Path(source.path)
    if path.suffix in LOCAL_SUFFIXES and not path.exists():
        raise DataError(f"there is no file {path} (looked in {pathlib.Path.cwd()})")
    if path.suffix in (".jsonl", ".json") and path.is_file():
        refuse_idle_options(source.path, source.subset, source.split)
        return Lines(path)
    return Table(source.path, open_table(source))


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


def refuse_idle_options(path: str, subset: str | None, split: str) -> None:
    """Raise DataError for a subset or a split of what has none: a file, or a folder that `datasets` saved."""
    place = pathlib.Path(path)
    saved = any((place / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    if subset is not None and (place.is_file() or saved):
        raise DataError(f"{path}: subset={subset!r} does nothing, because only sets of the Hub have any. Remove it.")
    if place.is_file() and split != Source.model_fields["split"].default:
        raise DataError(f"{path}: split={split!r} does nothing, because a file is one split. Remove it.")


def _dataset(source: Source, path: pathlib.Path) -> Any:
    import datasets

    try:
        if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            loaded = datasets.load_from_disk(str(path))
            loaded = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(source.path, source.subset, split=source.split)
    except KeyError as error:
        raise DataError(f"{source.path} has no split {source.split!r}; it has {', '.join(loaded)}") from error
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        remedy = "\nName it as `subset`." if "Config name is missing" in str(error) else ""
        raise DataError(
            f"cannot read {source.path!r} as a JSONL or Parquet file, a `datasets` folder or a Hub id: {error}{remedy}"
        ) from error
    return loaded.flatten_indices().data.table if loaded._indices is not None else loaded.data.table

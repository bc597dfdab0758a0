"""The texts of rows in any layout, block by block: what decontamination compares."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rlvr.config import Source, TextSource
from rlvr.errors import DataError
from rlvr.recipe import nearest_file
from rlvr.row_files import RowFault, open_table, parsed, refuse_idle_options
from rlvr.rows import MOST_SHOWN

BLOCK_BYTES = 4 * 2**20
BLOCK_ROWS = 5000
CONVERSATIONS = ("messages", "chosen")
"""Columns that hold turns; those of the user are compared."""
TEXT_COLUMNS = ("prompt", "question", "problem", "instruction", "input", "text")
"""Columns of public sets that hold the prompt. Where a row has several, the source must say which."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is compared of one row."""

    place: str
    """File and line, or set and row number."""
    turns: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rows of a file in a row, not yet parsed: small enough to be sent to another process."""

    source: TextSource
    first: int
    """Number of the first line or row."""
    lines: bytes | None = None
    """Of JSONL."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """Of a table, or of a JSON array."""


def name_of(source: TextSource) -> str:
    """As the command line spells it.

    >>> name_of(TextSource(path="openai/gsm8k", subset="main", split="test"))
    'openai/gsm8k:main@test'
    """
    subset = f":{source.subset}" if source.subset else ""
    return source.path + subset + (f"@{source.split}" if source.split != "train" else "")


def blocks(source: TextSource) -> Iterator[Block]:
    """The rows of a JSONL file (`.gz` too), a JSON array, a Parquet file, a `datasets` folder or a Hub id.

    Raises DataError when there is no such thing.
    """
    path = pathlib.Path(source.path)
    is_lines = path.suffix in (".jsonl", ".json", ".gz")
    if (is_lines or path.suffix == ".parquet") and not path.is_file():
        raise DataError(f"there is no file {path} (looked in {pathlib.Path.cwd()}).{nearest_file(path)}")
    refuse_idle_options(source.path, source.subset, source.split)
    if not is_lines:
        table = open_table(Source(path=source.path, subset=source.subset, split=source.split))
        for first in range(0, table.num_rows, BLOCK_ROWS):
            yield Block(source=source, first=first, rows=tuple(table.slice(first, BLOCK_ROWS).to_pylist()))
        return
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from _array(source, path)
            return
        file.seek(0)
        first = 1
        while lines := file.read(BLOCK_BYTES):
            lines += file.readline()  # to the end of the line
            yield Block(source=source, first=first, lines=lines)
            first += lines.count(b"\n")


def _array(source: TextSource, path: pathlib.Path) -> Iterator[Block]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:  # UnicodeDecodeError is one
        raise DataError(f"{path} begins like a JSON array and is none: {error}") from error
    for first in range(0, len(rows), BLOCK_ROWS):
        yield Block(source=source, first=first, rows=tuple(rows[first : first + BLOCK_ROWS]))


def texts_in(block: Block) -> list[Text]:
    """The texts of a block's rows. Raises DataError that lists rows without one by file and line."""
    found: list[Text] = []
    problems: list[str] = []
    for place, raw in numbered(block):
        try:
            found.append(Text(place=place, turns=_turns(parsed(raw, place), block.source)))
        except RowFault as fault:
            problems.append(f"{place}: {fault}")
    if problems:
        more = f"\n  and {len(problems) - MOST_SHOWN} more in the same block" if len(problems) > MOST_SHOWN else ""
        shown = "\n  ".join(problems[:MOST_SHOWN])
        raise DataError(f"rows of {block.source.path} that cannot be compared; correct or remove:\n  {shown}{more}")
    return found


def numbered(block: Block) -> Iterator[tuple[str, Any]]:
    """Place and value of each row; a line of JSONL is not parsed yet."""
    if block.lines is None:
        yield from ((f"{block.source.path}[{number}]", row) for number, row in enumerate(block.rows, block.first))
        return
    for number, line in enumerate(block.lines.split(b"\n"), block.first):
        if line.strip(b" \t\r\xef\xbb\xbf"):
            yield f"{block.source.path}:{number}", line + b"\n"


def _turns(row: Mapping[str, Any], source: TextSource) -> tuple[str, ...]:
    columns = source.columns or _known(row)
    found: list[str] = []
    for column in columns:
        if row.get(column) is None:
            raise RowFault("missing keys", f"missing {column} (it has {', '.join(map(str, row))})")
        found += _texts(column, row[column])
    return tuple(found)


def _known(row: Mapping[str, Any]) -> list[str]:
    for column in CONVERSATIONS:
        if row.get(column) is not None:
            return [column]
    present = [column for column in TEXT_COLUMNS if isinstance(row.get(column), str)]
    if len(present) == 1:
        return present
    what = f"{', '.join(present)} may each be the prompt" if present else "no known column of text"
    raise RowFault("missing keys", f"{what} (it has {', '.join(map(str, row))}): name it, as PATH::column")


def _texts(column: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and {*map(type, value)} == {dict}:
        turns = [turn.get("content") for turn in value if turn.get("role") == "user"]
        if {*map(type, turns)} == {str}:
            return turns
        raise RowFault("wrong roles", f"{column} has no user turn with text, got {value!r:.120}")
    raise RowFault("wrong type", f"{column} must be text or a list of turns, got {value!r:.80}")

"""Rows with the columns `messages, ground_truth, dataset` become prompts; every row is accounted for."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr.config import Source
from rlvr.errors import DataError
from rlvr.records import Prompt, Task
from rlvr.seeds import derive

ROLES = ("system", "user", "assistant")
LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet")
MOST_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One valid row."""

    place: str
    """File and line, for messages."""
    messages: tuple[Mapping[str, str], ...]
    """Without a last assistant turn, which is the answer."""
    dataset: tuple[str, ...]
    """Verifier names as the row has them, in lower case, before `remap`."""
    tasks: tuple[Task, ...]
    columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts of one or more sources, in a fixed order, with the count of what was left out."""

    name: str
    prompts: tuple[Prompt, ...]
    rows: int
    over_length: int
    """Rows dropped because the prompt has more than `data.max_prompt_tokens` tokens."""
    longest_dropped_tokens: int

    def batch(self, step: int, size: int, seed: int) -> list[Prompt]:
        """The prompts of a step: the endless sequence of epochs, each in an order of its own, cut in pieces of `size`.

        A function of its arguments alone, so a resumed run continues the same sequence. No prompt is left out at an
        epoch's end.
        """
        chosen = []
        orders: dict[int, list[int]] = {}
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, len(self.prompts))
            if epoch not in orders:
                orders[epoch] = shuffled(len(self.prompts), derive(seed, "order", epoch))
            chosen.append(self.prompts[orders[epoch][index]])
        return chosen

    def summary(self) -> str:
        """One line on what was read and what was dropped.

        Ends with the longest dropped prompt, so that the limit can be set.
        """
        by_verifier = collections.Counter(task.verifier for prompt in self.prompts for task in prompt.tasks)
        kept = ", ".join(f"{name} {count}" for name, count in sorted(by_verifier.items()))
        line = f"{self.name}: {self.rows} rows, {len(self.prompts)} prompts ({kept})"
        if self.over_length:
            line += f"; dropped {self.over_length} over the length limit (longest {self.longest_dropped_tokens} tokens)"
        return line


def shuffled(count: int, seed: int) -> list[int]:
    """A permutation of 0 .. count-1."""
    import random

    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def read_rows(source: Source) -> list[Row]:
    """Read and validate one source. Raises DataError that lists bad rows by file and line."""
    rows: list[Row] = []
    problems: list[str] = []
    for place, raw in _raw_rows(source):
        if source.count is not None and len(rows) + len(problems) >= source.count:
            break
        try:
            rows.append(_row(raw, place, source.remap))
        except DataError as error:
            problems.append(str(error))
    _refuse(problems, source)
    if not rows:
        raise DataError(f"{source.path} holds no rows")
    _refuse_idle_remap(source, rows)
    return rows


def _refuse_idle_remap(source: Source, rows: Sequence[Row]) -> None:
    """A misspelt name in `remap` would leave its rows with another verifier than the recipe means."""
    if source.count is not None:  # the first rows need not name every verifier
        return
    named = {name for row in rows for name in row.dataset}
    idle = sorted({verifier_key(name) for name in source.remap} - named)
    if idle:
        raise DataError(
            f"remap of {source.path} replaces {', '.join(idle)}, which no row names; rows name "
            f"{', '.join(sorted(named))}. Correct the name, or remove it."
        )


def _refuse(problems: Sequence[str], source: Source) -> None:
    if problems:
        shown = "\n  ".join(problems[:MOST_SHOWN])
        more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        raise DataError(f"{count} in {source.path}; correct or remove:\n  {shown}{more}")


def read_conversations(source: Source) -> list[tuple[Mapping[str, str], ...]]:
    """Read the column `messages` alone, last assistant turn included, for supervised stages."""
    conversations: list[tuple[Mapping[str, str], ...]] = []
    problems: list[str] = []
    for place, raw in _raw_rows(source):
        if source.count is not None and len(conversations) + len(problems) >= source.count:
            break
        try:
            if isinstance(raw, DataError):
                raise raw
            conversations.append(_turns(raw.get("messages") if isinstance(raw, Mapping) else None, place))
        except DataError as error:
            problems.append(str(error))
    _refuse(problems, source)
    return conversations


def _raw_rows(source: Source) -> Iterator[tuple[str, Any]]:
    path = pathlib.Path(source.path)
    if path.suffix in (".jsonl", ".json") and path.is_file():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
        return
    if path.suffix in LOCAL_SUFFIXES and not path.exists():
        raise DataError(f"there is no file {path} (looked in {pathlib.Path.cwd()})")
    for number, raw in enumerate(_table_rows(source, path)):
        yield f"{source.path}[{number}]", raw


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"{place}: not UTF-8 (byte {line[error.start]:#04x} at byte {error.start + 1} of the line)")
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        return DataError(f"{place}: not one JSON object on a line ({error})")


def _table_rows(source: Source, path: pathlib.Path) -> Any:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {path} as Parquet: {error}") from error
    import datasets

    try:
        if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            loaded = datasets.load_from_disk(str(path))
            return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(source.path, split=source.split)
    except KeyError as error:
        raise DataError(f"{source.path} has no split {source.split!r}; it has {', '.join(loaded)}") from error
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise DataError(
            f"cannot read {source.path!r} as a JSONL or Parquet file, a `datasets` folder or a Hub id: {error}"
        ) from error


def _row(raw: Any, place: str, remap: Mapping[str, str]) -> Row:
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, Mapping):
        raise DataError(f"{place}: a row is an object, not {type(raw).__name__}")
    missing = [name for name in ("messages", "dataset") if raw.get(name) is None]
    if "ground_truth" not in raw:  # null is a ground truth of verifiers that need none
        missing.append("ground_truth")
    if missing:
        raise DataError(f"{place}: missing {', '.join(missing)} (it has {', '.join(map(str, raw))})")
    messages = _messages(raw["messages"], place)
    names, truths = raw["dataset"], raw["ground_truth"]
    if isinstance(names, str):
        names, truths = [names], [truths]
    if not isinstance(names, list) or not isinstance(truths, list) or len(names) != len(truths) or not names:
        raise DataError(
            f"{place}: dataset and ground_truth must both be one value or lists of one length, "
            f"got {names!r:.80} and {truths!r:.80}"
        )
    named = tuple(verifier_key(str(name)) for name in names)
    replaced = {verifier_key(key): verifier_key(value) for key, value in remap.items()}
    tasks = tuple(
        Task(verifier=replaced.get(name, name), ground_truth=truth) for name, truth in zip(named, truths, strict=True)
    )
    columns = {key: value for key, value in raw.items() if key not in ("messages", "ground_truth", "dataset")}
    return Row(place=place, messages=messages, dataset=named, tasks=tasks, columns=columns)


def verifier_key(name: str) -> str:
    """The one spelling of a verifier's name; a location such as "rules/My.py:Attr" keeps its case.

    >>> verifier_key(" MATH"), verifier_key("rules/My.py:Attr")
    ('math', 'rules/My.py:Attr')
    """
    return name.strip() if ":" in name else name.strip().casefold()


def _messages(value: Any, place: str) -> tuple[Mapping[str, str], ...]:
    """The prompt: all turns but a last assistant turn."""
    turns = _turns(value, place)
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"{place}: the prompt must end with a user turn")
    return turns


def _turns(value: Any, place: str) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: messages must be a non-empty list of turns, got {value!r:.80}")
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise DataError(f"{place}: a turn needs a role of {'/'.join(ROLES)} and text content, got {turn!r:.80}")
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
            raise DataError(f"{place}: a {turn['role']} turn holds text that is not Unicode ({error})") from None
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in value)


def make_prompts(name: str, rows: Sequence[Row], tokenizer: Any, max_prompt_tokens: int) -> PromptSet:
    """Tokenize, and drop (and count) prompts over the limit. Raises DataError when none is left."""
    from rlvr.chat import encode_prompts

    prompts, dropped = [], []
    encoded = encode_prompts(tokenizer, [row.messages for row in rows])
    for prompt_id, (row, token_ids) in enumerate(zip(rows, encoded, strict=True)):
        if len(token_ids) > max_prompt_tokens:
            dropped.append(len(token_ids))
            continue
        text = row.messages[-1]["content"]
        prompts.append(
            Prompt(prompt_id=prompt_id, token_ids=token_ids, text=text, tasks=row.tasks, columns=row.columns)
        )
    if not prompts:
        raise DataError(
            f"{name}: all {len(rows)} prompts are longer than data.max_prompt_tokens={max_prompt_tokens} "
            f"(shortest {min(dropped)}, longest {max(dropped)}): raise the limit"
        )
    return PromptSet(
        name=name, prompts=tuple(prompts), rows=len(rows), over_length=len(dropped),
        longest_dropped_tokens=max(dropped, default=0),
    )  # fmt: skip


def verifier_names(row_sets: Sequence[Sequence[Row]]) -> list[str]:
    """Every verifier that some row names."""
    return sorted({task.verifier for rows in row_sets for row in rows for task in row.tasks})

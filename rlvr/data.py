"""What a row must hold, for each stage: `messages, ground_truth, dataset`, or a conversation, or a pair."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from rlvr.config import Data, RowOptions, Source
from rlvr.errors import DataError
from rlvr.mixing import Joined, taken
from rlvr.records import Task
from rlvr.row_files import RowFault, parsed
from rlvr.rows import Rows, read
from verifiers import registry
from verifiers.errors import UnknownVerifierError

ROLES = ("system", "user", "assistant")
TOKENIZED_AT_ONCE = 1000
T = TypeVar("T")
Turns = tuple[Mapping[str, str], ...]
"""A conversation: `role` and `content` of each turn."""
Duplicates = Literal["bad", "keep"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One valid row."""

    place: str
    """File and line, for messages."""
    messages: Turns
    """Without a last assistant turn, which is the answer."""
    dataset: tuple[str, ...]
    """Verifier names as the row has them, in lower case, before `remap`."""
    tasks: tuple[Task, ...]
    columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One preference: two conversations that differ in their last turn."""

    place: str
    prompt: Turns
    """Ends with a user turn."""
    chosen: str
    """The better answer of the assistant."""
    rejected: str


def read_rows(
    source: Source,
    *,
    max_bad_share: float = 0.0,
    duplicates: Duplicates = "keep",
    plugins: Sequence[str] = (),
) -> Rows[Row]:
    """Read and validate one source, `weight` and `count` not yet applied. Raises DataError that lists bad rows by file
    and line, and what importing a plugin raises."""
    named: set[str] = set()
    verifiers: collections.Counter[str] = collections.Counter()
    claims = _Claims(plugins)

    def build(raw: Any, place: str) -> Row:
        return _row(parsed(raw, place), place, source.remap)

    def each(row: Row) -> None:
        for task in row.tasks:
            claims.refuse_unclaimed(task.verifier)
        named.update(row.dataset)
        verifiers.update(task.verifier for task in row.tasks)

    rows = read(source, build, _prompt_of, max_bad_share=max_bad_share, duplicates=duplicates, each=each)
    rows.counts = dataclasses.replace(rows.counts, verifiers=dict(verifiers))
    if idle := sorted({verifier_key(name) for name in source.remap} - named):
        raise DataError(  # a misspelt name would leave its rows with another verifier than the recipe means
            f"remap of {source.path} replaces {', '.join(idle)}, which no row names; rows name "
            f"{', '.join(sorted(named))}. Correct the name, or remove it."
        )
    return rows


class _Claims:
    """Which names some verifier answers to."""

    def __init__(self, plugins: Sequence[str]) -> None:
        self._plugins = plugins
        self._unknown: dict[str, str | None] = {}

    def refuse_unclaimed(self, name: str) -> None:
        if name not in self._unknown:
            try:
                registry.resolve(name, self._plugins)
                self._unknown[name] = None
            except UnknownVerifierError as error:
                self._unknown[name] = str(error)
        if text := self._unknown[name]:
            raise RowFault("unknown verifier", text)


def _prompt_of(row: Row) -> tuple[tuple[str, str], ...]:
    return _texts(row.messages)


def _texts(turns: Turns) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in turns)


def read_conversations(source: Source, *, max_bad_share: float = 0.0, duplicates: Duplicates = "keep") -> Rows[Turns]:
    """The column `messages` alone, last assistant turn included, for supervised stages. Only a whole conversation that
    occurs again is a duplicate. Raises as `read_rows` does."""

    refuse_remap(source)

    def build(raw: Any, place: str) -> Turns:
        turns = _turns(parsed(raw, place).get("messages"))
        if not any(turn["role"] == "assistant" for turn in turns):
            raise RowFault("wrong roles", "a conversation to imitate needs an assistant turn")
        return turns

    return read(source, build, _texts, max_bad_share=max_bad_share, duplicates=duplicates)


def refuse_remap(source: Source) -> None:
    """Raise DataError for a `remap` where no verifier judges."""
    if source.remap:
        raise DataError(f"{source.path}: remap does nothing for rows that no verifier judges. Remove it.")


def read_pairs(source: Source, *, max_bad_share: float = 0.0, duplicates: Duplicates = "keep") -> Rows[Pair]:
    """The columns `chosen` and `rejected`, each a conversation (allenai's preference mixtures), for preference stages.

    Only a pair that occurs again is a duplicate. Raises as `read_rows` does.
    """

    refuse_remap(source)

    def build(raw: Any, place: str) -> Pair:
        row = parsed(raw, place)
        chosen, rejected = _turns(row.get("chosen"), "chosen"), _turns(row.get("rejected"), "rejected")
        if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"} or len(chosen) < 2:
            raise RowFault("wrong roles", "chosen and rejected must end with an assistant turn, after a user turn")
        if chosen[:-1] != rejected[:-1]:
            raise RowFault("wrong roles", "chosen and rejected must be the same up to their last turn")
        if chosen[-1] == rejected[-1]:
            raise RowFault("wrong type", f"chosen and rejected are the same answer {chosen[-1]['content']!r:.80}")
        answers = chosen[-1]["content"], rejected[-1]["content"]
        return Pair(place=place, prompt=_prompt(chosen), chosen=answers[0], rejected=answers[1])

    def identity(pair: Pair) -> Any:
        return _texts(pair.prompt), pair.chosen, pair.rejected

    return read(source, build, identity, max_bad_share=max_bad_share, duplicates=duplicates)


def read_mixture(options: RowOptions, read_one: Callable[..., Rows[T]], turns: Callable[[T], Turns]) -> Joined[T]:
    """All training sources of a recipe: read, decontaminated, and mixed by their `weight` or `count`.

    Args:
        read_one: `read_rows`, `read_conversations` or `read_pairs`.
        turns: the conversation of a row whose user turns are compared with the evaluation sets.

    Returns the rows; `rlvr.data_report.report_of` them tells what became of each source. Raises DataError.
    """
    parts = [
        read_one(source, max_bad_share=options.max_bad_share, duplicates=options.duplicates) for source in options.train
    ]
    if options.decontaminate.against:
        from rlvr.decontaminate import clean

        parts = clean(options.decontaminate, parts, turns)
    return Joined([mixed(source, part) for source, part in zip(options.train, parts, strict=True)])


def mixed(source: Source, rows: Rows[T]) -> Rows[T]:
    """The rows that `weight` or `count` take. Raises DataError when there are none."""
    if (source.weight is None and source.count is None) or not len(rows):
        return rows
    chosen = taken(len(rows), weight=source.weight, count=source.count)
    if not chosen.size:
        raise DataError(f"weight={source.weight} of the {len(rows)} usable rows of {source.path} is no row: raise it")
    return rows.select(chosen, taken=chosen.size)


def read_training(data: Data, plugins: Sequence[str]) -> Joined[Row]:
    """The training rows of a recipe, all filters but the length limit applied."""

    return read_mixture(data, functools.partial(read_rows, plugins=plugins), lambda row: row.messages)


def read_source(data: Data, source: Source, plugins: Sequence[str]) -> Rows[Row]:
    """One source of a recipe, before decontamination and mixing."""
    return read_rows(source, max_bad_share=data.max_bad_share, duplicates=data.duplicates, plugins=plugins)


def read_held_out(data: Data, source: Source, plugins: Sequence[str]) -> Rows[Row]:
    """A held-out set of a recipe."""
    return mixed(source, read_source(data, source, plugins))


def _row(raw: Mapping[str, Any], place: str, remap: Mapping[str, str]) -> Row:
    missing = [name for name in ("messages", "dataset") if raw.get(name) is None]
    if "ground_truth" not in raw:  # null is a ground truth of verifiers that need none
        missing.append("ground_truth")
    if missing:
        raise RowFault("missing keys", f"missing {', '.join(missing)} (it has {', '.join(map(str, raw))})")
    messages = _prompt(_turns(raw["messages"]))
    names, truths = raw["dataset"], raw["ground_truth"]
    if isinstance(names, str):
        names, truths = [names], [truths]
    if not isinstance(names, list) or not isinstance(truths, list) or len(names) != len(truths) or not names:
        raise RowFault(
            "wrong type",
            f"dataset and ground_truth must both be one value or lists of one length, "
            f"got {names!r:.80} and {truths!r:.80}",
        )
    if not all(isinstance(name, str) for name in names):
        raise RowFault("wrong type", f"dataset holds names of verifiers, got {names!r:.80}")
    for name, truth in zip(names, truths, strict=True):
        if truth == [] or (isinstance(truth, str) and not truth.strip()):
            raise RowFault("empty ground truth", f"the ground truth for {name!r} is empty ({truth!r:.20})")
    named = tuple(map(verifier_key, names))
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


def _prompt(turns: Turns) -> Turns:
    """All turns but a last assistant turn."""
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user":
        raise RowFault("wrong roles", "the prompt must end with a user turn")
    if not turns[-1]["content"].strip():
        raise RowFault("empty prompt", f"the last user turn is empty ({turns[-1]['content']!r:.20})")
    return turns


def _turns(value: Any, column: str = "messages") -> Turns:
    if not isinstance(value, list) or not value:
        kind: Literal["missing keys", "wrong type"] = "missing keys" if value is None else "wrong type"
        raise RowFault(kind, f"{column} must be a non-empty list of turns, got {value!r:.80}")
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            is_role = isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and turn["role"] not in ROLES
            raise RowFault(
                "wrong roles" if is_role else "wrong type",
                f"a turn needs a role of {'/'.join(ROLES)} and text content, got {turn!r:.80}",
            )
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
            text = f"a {turn['role']} turn holds text that is not Unicode ({error})"
            raise RowFault("not UTF-8", text) from None
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in value)

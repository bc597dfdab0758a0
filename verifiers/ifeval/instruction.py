"""What IFEval and IFBench share: instructions with ids and kwargs, ground truths that list them, and judging."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from verifiers.errors import GroundTruthError

Mode = Literal["strict", "loose"]
Reader = Callable[[Any], Any]
"""Reads one kwarg; raises ValueError saying what it must be."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstructionType:
    """A kind of instruction: how its kwargs are read, and how a response is checked."""

    check: Callable[..., bool]
    """Called as `check(response, **kwargs)` with a response that is not blank."""
    kwargs: Mapping[str, Reader] = dataclasses.field(default_factory=dict)
    most_words: Callable[..., int] | None = None
    """Called with the kwargs: how short the instruction allows a response to be; for the content guard."""
    may_copy: bool = False
    """The instruction asks for words of the prompt; for the content guard."""
    may_lack_letters: bool = False
    """The instruction asks for numbers; for the content guard."""
    fault: Callable[..., str | None] | None = None
    """Called with the kwargs: why no response can follow this instruction, or None."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a row, read and checked."""

    id: str
    kind: InstructionType
    kwargs: Mapping[str, Any]

    def holds(self, response: str) -> bool:
        return bool(response.strip()) and bool(self.kind.check(response, **self.kwargs))

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r:.60}" for key, value in self.kwargs.items())
        return f"{self.id}({arguments})"


def number(value: Any) -> int:
    """A whole number, not negative; 4.0 counts as 4, as some data sets write it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("must be a whole number, not negative")
    return value


def positive(value: Any) -> int:
    """A whole number of at least 1."""
    if (count := number(value)) < 1:
        raise ValueError("must be a whole number of at least 1")
    return count


def text(value: Any) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text that is not blank")
    return value


def texts(value: Any) -> list[str]:
    """A list of at least one text."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of at least one text")
    return [text(item) for item in value]


def relation(value: Any) -> str:
    """IFEval's two comparisons."""
    if value not in ("less than", "at least"):
        raise ValueError("must be 'less than' or 'at least'")
    return str(value)


def compare(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def read_instructions(
    ground_truth: Any, types: Mapping[str, InstructionType], *, verifier: str
) -> tuple[Instruction, ...]:
    """The instructions of a ground truth.

    Args:
        ground_truth: `{"instruction_id": [...], "kwargs": [...]}` ("instruction_id_list", as the benchmarks' own files
            say, is read too), or a list of one such mapping, or the text of either as JSON or as a Python literal.
            One kwargs mapping per id, None for none; None values and kwargs that belong to other types are ignored.
        types: the instruction types by id.
        verifier: its name, for error messages.

    Raises:
        GroundTruthError: not such a mapping; an unknown id or kwarg; a kwarg missing or ill-typed.
    """
    row = _unwrap(ground_truth, verifier)
    ids = row.get("instruction_id", row.get("instruction_id_list"))
    all_kwargs = row.get("kwargs")
    ids = [ids] if isinstance(ids, str) else ids
    all_kwargs = [all_kwargs] if isinstance(all_kwargs, Mapping) else all_kwargs
    if all_kwargs is None and isinstance(ids, list | tuple):
        all_kwargs = [None] * len(ids)
    if not isinstance(ids, list | tuple) or not isinstance(all_kwargs, list | tuple) or not ids:
        raise _fault(verifier, "it needs 'instruction_id' and 'kwargs', two lists", ground_truth)
    if len(ids) != len(all_kwargs):
        raise _fault(verifier, f"{len(ids)} ids but {len(all_kwargs)} kwargs", ground_truth)
    return tuple(_read_one(i, k, types, verifier) for i, k in zip(ids, all_kwargs, strict=True))


def _fault(verifier: str, reason: str, value: Any) -> GroundTruthError:
    return GroundTruthError(
        f"{verifier} cannot read this ground truth: {reason}; got {value!r:.400}. Fix the row or remove it."
    )


def _unwrap(ground_truth: Any, verifier: str) -> Mapping[str, Any]:
    row = ground_truth
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except ValueError:
            try:
                row = ast.literal_eval(row.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise _fault(verifier, f"it is neither JSON nor a Python literal ({error})", ground_truth) from error
    if isinstance(row, list | tuple) and len(row) == 1:
        row = row[0]
    if not isinstance(row, Mapping):
        raise _fault(verifier, "it must be a mapping, or a list of one", ground_truth)
    return row


def _read_one(name: Any, kwargs: Any, types: Mapping[str, InstructionType], verifier: str) -> Instruction:
    if name not in types:
        raise _fault(verifier, f"unknown instruction id; the ids are {', '.join(types)}", name)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise _fault(verifier, f"the kwargs of {name} must be a mapping or None", kwargs)
    given = {key: value for key, value in (kwargs or {}).items() if value is not None}
    known = {key for kind in types.values() for key in kind.kwargs}
    if unknown := sorted(set(given) - known):
        raise _fault(
            verifier, f"no instruction has the kwargs {unknown}; those of {name} are {_names(types[name])}", given
        )
    read = {}
    for key, reader in types[name].kwargs.items():
        if key not in given:
            raise _fault(verifier, f"{name} needs the kwarg {key!r} (the reference would draw one at random)", given)
        try:
            read[key] = reader(given[key])
        except ValueError as error:
            raise _fault(verifier, f"{key!r} of {name} {error}", given[key]) from error
    if (fault := types[name].fault) is not None and (reason := fault(**read)) is not None:
        raise _fault(verifier, f"no response can follow {name}: {reason}", read)
    return Instruction(id=name, kind=types[name], kwargs=read)


def _names(kind: InstructionType) -> list[str]:
    return sorted(kind.kwargs)


def variants(response: str, mode: Mode) -> list[str]:
    r"""The texts of which one must follow an instruction: the response, and in loose mode up to seven edits of it.

    Loose mode forgives an opening line, a closing line, and markdown asterisks: each of them, and all together.

    >>> variants("Sure!\n*Yes*", "loose")
    ['Sure!\n*Yes*', 'Sure!\nYes', '*Yes*', 'Yes', 'Sure!']
    """
    if mode == "strict":
        return [response]
    lines = response.split("\n")
    cuts = [response, *("\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1]))]
    every = (edit for cut in cuts for edit in (cut, cut.replace("*", "")))
    return list(dict.fromkeys(edit for edit in every if edit.strip()))


def judge(instructions: Sequence[Instruction], response: str, mode: Mode = "strict") -> list[bool]:
    """Whether each instruction holds. A blank response follows none."""
    edits = variants(response, mode)
    return [any(instruction.holds(edit) for edit in edits) for instruction in instructions]

"""Read the ground truth of the code verifiers: the forms that public data sets use."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import zlib
from typing import Any

from verifiers.code_convert import Plan, plan_tests
from verifiers.errors import GroundTruthError

_TESTS, _SETUP = ("tests", "test_list", "test"), ("setup", "test_setup_code", "prompt")
_OTHER = frozenset(
    [
        "task_id",
        "text",
        "code",
        "canonical_solution",
        "challenge_test_list",
        "source_file",
        "entry_point",
        "test_imports",
    ]
)
"""Columns of HumanEval and MBPP that may stand beside the tests. `challenge_test_list` is not used."""


def read_tests(ground_truth: Any) -> Plan:
    """The tests of a `code` ground truth.

    Args:
        ground_truth: a list of assert statements; or an object with the tests under `tests`, `test_list` (MBPP) or
            `test` (HumanEval), and optionally `entry_point` and `setup` (or `test_setup_code`, `prompt`,
            `test_imports`); or JSON text of either.

    Raises:
        GroundTruthError: none of these, or not Python.
    """
    return _read_tests(json.dumps(_from_text(ground_truth), sort_keys=True))


@functools.lru_cache(maxsize=4096)  # the completions of one prompt share their tests
def _read_tests(document: str) -> Plan:
    row = json.loads(document)
    if isinstance(row, list):
        row = {"tests": row}
    if not isinstance(row, dict):
        raise GroundTruthError(f"a code ground truth is a list of asserts or an object with 'tests'; got {row!r:.200}")
    unknown = set(row) - set(_TESTS) - set(_SETUP) - _OTHER
    if unknown:
        raise GroundTruthError(
            f"unknown keys {sorted(unknown)} in a code ground truth; known: {sorted({*_TESTS, *_SETUP, *_OTHER})}"
        )
    tests = _only_one(row, _TESTS) or []
    if isinstance(tests, str):
        tests = [tests]
    imports = row.get("test_imports") or []
    setup = "\n".join([*imports, _only_one(row, _SETUP) or ""])
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise GroundTruthError(f"a code ground truth needs one test or more, as text; got {tests!r:.200}")
    entry_point = row.get("entry_point") or None
    if entry_point is not None and not (isinstance(entry_point, str) and entry_point.isidentifier()):
        raise GroundTruthError(f"'entry_point' must be a function's name; got {entry_point!r}")
    return plan_tests(tuple(tests), entry_point=entry_point, setup=setup)


def _only_one(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    present = [key for key in keys if row.get(key)]
    if len(present) > 1:
        raise GroundTruthError(f"a code ground truth has both {present[0]!r} and {present[1]!r}; keep one")
    return row[present[0]] if present else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Standard input and the output that it asks for."""

    stdin: str
    stdout: str


def read_cases(ground_truth: Any, *, longest_output: int) -> list[Case]:
    """The cases of a `code_stdio` ground truth: a list of {"input", "output"} objects, or JSON text of one.

    Raises:
        GroundTruthError: not that, no expected output at all, or one longer than `longest_output` characters, which the
            sandbox would cut.
    """
    rows = _from_text(ground_truth)
    if not isinstance(rows, list) or not rows:
        raise GroundTruthError(
            f'a code_stdio ground truth is a list of {{"input", "output"}} objects; got {rows!r:.200}'
        )
    cases = []
    for row in rows:
        if not (
            isinstance(row, dict) and set(row) == {"input", "output"} and all(isinstance(v, str) for v in row.values())
        ):
            raise GroundTruthError(f'a case needs the texts "input" and "output" and nothing else; got {row!r:.200}')
        if len(row["output"].encode()) > longest_output:
            raise GroundTruthError(
                f"an expected output of {len(row['output'])} characters; raise output_kib ({longest_output} bytes)"
            )
        cases.append(Case(stdin=row["input"], stdout=row["output"]))
    if not any(case.stdout.strip() for case in cases):
        raise GroundTruthError(
            f"no case of {len(cases)} expects any output: a program that does nothing would be right. Fix or remove it."
        )
    return cases


def _from_text(ground_truth: Any) -> Any:
    if not isinstance(ground_truth, str):
        return ground_truth
    try:
        return json.loads(ground_truth)
    except ValueError:
        if _is_pickle(ground_truth):
            raise GroundTruthError(
                "the ground truth is pickled (base64 of a compressed pickle): reading it would run whatever code it "
                "holds, so it is refused. "
                "Convert the rows to JSON once, in a place where you trust them."
            ) from None
    if "assert" in ground_truth or "def check" in ground_truth:
        return [ground_truth]
    raise GroundTruthError(
        f"a code ground truth given as text must be JSON or Python tests; got {ground_truth[:200]!r}"
    )


def _is_pickle(text: str) -> bool:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    with contextlib.suppress(zlib.error):  # a bare pickle
        data = zlib.decompressobj().decompress(data, 64)
    return data[:1] == b"\x80"

"""Does the sandbox tell a wrong program from a right one? Reference solutions, and the same with one operator changed.

    python -m benchmarks.code_mutants [--data DIR] [--workers 2] [--output FILE.json]

Every reference solution of HumanEval and MBPP must be judged correct. Then one operator of each (the first of its tree
that has a counterpart: `+` and `-`, `<` and `<=`, `and` and `or`, ...) is changed, and the verdict must be wrong,
unless the tests that come with the problem do not notice. Whether they do is not the sandbox's doing, so each changed
program is also run the plain way, its tests after it in a new interpreter; the two must say the same.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import copy
import gzip
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from verifiers.base import Sample
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PLAIN_SECONDS = 60.0

_PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    (ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Add), (ast.Div, ast.Mult), (ast.FloorDiv, ast.Mult),
    (ast.Mod, ast.FloorDiv), (ast.Pow, ast.Mult), (ast.BitAnd, ast.BitOr), (ast.BitOr, ast.BitAnd),
    (ast.BitXor, ast.BitOr),
    (ast.Lt, ast.LtE), (ast.LtE, ast.Lt), (ast.Gt, ast.GtE), (ast.GtE, ast.Gt), (ast.Eq, ast.NotEq),
    (ast.NotEq, ast.Eq),
    (ast.And, ast.Or), (ast.Or, ast.And),
]  # fmt: skip
COUNTERPARTS = dict(_PAIRS)


def one_operator_changed(program: str) -> tuple[str, str] | None:
    """The program with its first operator that has a counterpart changed, and the change; None where there is none.

    >>> one_operator_changed("def f(a, b):\\n    return a + b * 2")
    ('def f(a, b):\\n    return a - b * 2', 'Add -> Sub')
    >>> one_operator_changed("def f(a):\\n    return sorted(a)")
    """
    tree = copy.deepcopy(ast.parse(program))
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and (new := COUNTERPARTS.get(type(node.op))):
            change = f"{type(node.op).__name__} -> {new.__name__}"
            node.op = new()  # type: ignore[assignment]
            return ast.unparse(tree), change
        if isinstance(node, ast.Compare) and (new := COUNTERPARTS.get(type(node.ops[0]))):
            change = f"{type(node.ops[0]).__name__} -> {new.__name__}"
            node.ops[0] = new()  # type: ignore[assignment]
            return ast.unparse(tree), change
    return None


def humaneval(data: pathlib.Path) -> Iterator[tuple[str, str, Any, str]]:
    """Name, reference solution, ground truth, and the tests as statements to run after it."""
    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            program = row["prompt"] + row["canonical_solution"]
            truth = {"test": row["test"], "entry_point": row["entry_point"]}
            yield row["task_id"], program, truth, f"{row['test']}\ncheck({row['entry_point']})"


def mbpp(data: pathlib.Path) -> Iterator[tuple[str, str, Any, str]]:
    with (data / "mbpp/mbpp.jsonl").open() as lines:
        for row in map(json.loads, lines):
            truth = {"test_list": row["test_list"], "test_setup_code": row["test_setup_code"]}
            yield f"MBPP/{row['task_id']}", row["code"], truth, "\n".join([row["test_setup_code"], *row["test_list"]])


def passes_plainly(program_and_tests: str) -> bool:
    """Run the way that most engines do. Public programs with one operator changed: no model wrote them."""
    try:
        command = [sys.executable, "-I", "-c", program_and_tests]
        return subprocess.run(command, capture_output=True, timeout=PLAIN_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def measure(
    rows: Callable[[pathlib.Path], Iterator[tuple[str, str, Any, str]]], data: pathlib.Path, workers: int
) -> Any:
    """Verdicts on the reference solutions and on their mutants."""
    references, mutants, plain, changes = {}, {}, {}, {}
    for name, program, truth, tests in rows(data):
        references[name] = Sample(completion=f"```python\n{program}\n```", ground_truth=truth)
        if (found := one_operator_changed(program)) is not None:
            changed, changes[name] = found
            mutants[name] = Sample(completion=f"```python\n{changed}\n```", ground_truth=truth)
            plain[name] = f"{changed}\n{tests}"
    of_reference, of_mutant = judge(references, workers), judge(mutants, workers)
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        passed = dict(zip(plain, executor.map(passes_plainly, plain.values()), strict=True))
    survivors = {name for name, outcome in of_mutant.items() if outcome == "correct"}
    return {
        "reference_solutions": dict(collections.Counter(of_reference.values())),
        "references_not_correct": sorted(name for name, outcome in of_reference.items() if outcome != "correct"),
        "mutants": len(plain),
        "mutants_by_verdict": dict(collections.Counter(of_mutant.values())),
        "survivors": sorted(survivors),
        "mutants_by_change": dict(collections.Counter(changes.values()).most_common()),
        "survivors_by_change": dict(collections.Counter(changes[name] for name in survivors).most_common()),
        "plain_run_says_otherwise": sorted(name for name in plain if passed[name] != (name in survivors)),
    }


def judge(samples: dict[str, Sample], workers: int) -> dict[str, str]:
    """Outcomes of the verifier `code`, with limits that a busy machine does not reach."""
    spec = VerifierSpec(name="code", options={"test_seconds": 30.0, "program_seconds": 40.0})
    with VerifierPool({"code": spec}, workers=workers, timeout_seconds=240.0) as pool:
        for name, sample in samples.items():
            pool.submit(name, "code", sample)
        return {str(name): verdict.outcome.value for name, verdict in pool.wait()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, default=REPOSITORY / "benchmarks/results/code_mutants.json")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"no data at {arguments.data}: give --data DIR with humaneval/ and mbpp/")
    from benchmarks.machine import about, write_result  # it imports torch, which the measurement does not need

    result: dict[str, Any] = about()
    for name, rows in (("HumanEval", humaneval), ("MBPP", mbpp)):
        found = result[name] = measure(rows, arguments.data, arguments.workers)
        print(
            f"{name}: reference solutions {found['reference_solutions']}; {found['mutants']} mutants, of which "
            f"{len(found['survivors'])} survive the tests; a plain run says otherwise of "
            f"{len(found['plain_run_says_otherwise'])}"
        )
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()

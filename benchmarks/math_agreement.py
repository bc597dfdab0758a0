"""How `math` agrees with known labels, and how fast, beside calling math-verify for every pair.

The pairs come from real gold answers by edits of known effect (tests/math_pairs.py), so the data must lie in
../shared/data. Both graders judge the same pairs in this process; math-verify is called as its README does, with its
own timeouts. A gold answer occurs at most once for each edit, so caches help little.

    python -m benchmarks.math_agreement --golds-per-edit 100 --output benchmarks/results/math_agreement.json
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import logging
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from verifiers.base import Outcome, Sample
from verifiers.math_answer import MathVerifier

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import math_pairs

Judge = Callable[[math_pairs.Pair], bool]


def _ours() -> tuple[Judge, collections.Counter[str]]:
    verifier = MathVerifier()
    paths: collections.Counter[str] = collections.Counter()

    def judge(pair: math_pairs.Pair) -> bool:
        sample = Sample(completion=pair.completion, ground_truth=pair.gold)
        verdict = verifier.verify_fast(sample)
        paths["fast" if verdict is not None else "slow"] += 1
        return (verdict or verifier.verify(sample)).outcome is Outcome.CORRECT

    return judge, paths


def _math_verify() -> Judge:
    from math_verify import parse, verify

    def judge(pair: math_pairs.Pair) -> bool:
        return bool(verify(parse(f"${pair.gold}$"), parse(pair.completion)))

    return judge


def measure(judge: Judge, pairs: Sequence[math_pairs.Pair]) -> dict:
    """Errors by kind of edit, and milliseconds of wall-clock and CPU time per verdict."""
    errors: dict[bool, collections.Counter[str]] = {True: collections.Counter(), False: collections.Counter()}
    wall: list[float] = []
    cpu_start = time.process_time()
    for pair in pairs:
        start = time.perf_counter()
        is_correct = judge(pair)
        wall.append(1e3 * (time.perf_counter() - start))
        if is_correct != pair.is_correct:
            errors[pair.is_correct][pair.kind] += 1
    cpu_seconds = time.process_time() - cpu_start
    wall.sort()
    return {
        "false_negatives": errors[True].total(),
        "false_positives": errors[False].total(),
        "false_negatives_by_kind": dict(errors[True].most_common()),
        "false_positives_by_kind": dict(errors[False].most_common()),
        "p50_ms": round(wall[len(wall) // 2], 4),
        "p99_ms": round(wall[int(len(wall) * 0.99)], 3),
        "max_ms": round(wall[-1], 1),
        "pairs_per_cpu_second": round(len(pairs) / cpu_seconds, 1),
    }


def main() -> None:
    """Print a table, and write the numbers with versions and commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golds-per-edit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if not math_pairs.DATA.exists():
        raise SystemExit(f"the public data is missing: {math_pairs.DATA} (see its README for the sources)")
    logging.disable(logging.WARNING)
    pairs = list(math_pairs.math_pairs(seed=arguments.seed, golds_per_edit=arguments.golds_per_edit))
    ours, paths = _ours()
    theirs = _math_verify()
    warm_up = pairs[:20]
    for judge in (ours, theirs):
        measure(judge, warm_up)
    paths.clear()
    results = {"math": measure(ours, pairs), "math-verify": measure(theirs, pairs)}
    report = {
        "pairs": {
            "correct": sum(pair.is_correct for pair in pairs),
            "wrong": sum(not pair.is_correct for pair in pairs),
        },
        "paths": dict(paths),
        "graders": results,
        "throughput_ratio": round(
            results["math"]["pairs_per_cpu_second"] / results["math-verify"]["pairs_per_cpu_second"], 1
        ),
        "versions": {
            name: importlib.metadata.version(name) for name in ("math-verify", "sympy", "latex2sympy2_extended")
        },
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, one core",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Programs judged per second, and the time of each, by isolation layer and against one interpreter or one bubblewrap
per program.

    python -m benchmarks.sandbox [--seconds 4] [--workers 2] [--json FILE] [--bwrap PATH]

Every row judges the same program against the same three tests, one program at a time in each of `--workers` processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verifiers.base import Outcome, Sample
from verifiers.code_ground_truth import read_tests
from verifiers.code_run import Budget, Runner
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec
from verifiers.sandbox import LAYERS, Sandbox

PROGRAM = """
def similar_elements(first, second):
    return tuple(sorted(set(first) & set(second)))
"""
TESTS = [
    "assert similar_elements((3, 4, 5, 6), (5, 7, 4, 10)) == (4, 5)",
    "assert similar_elements((1, 2, 3, 4), (5, 4, 3, 7)) == (3, 4)",
    "assert similar_elements((11, 12, 14, 13), (17, 15, 14, 13)) == (13, 14)",
]
NAMESPACES = (*tuple(layer for layer in LAYERS if layer.endswith("namespace")), "capabilities")
BASE = ("unprivileged user", "no new privileges", "rlimits")
LAYER_SETS = {
    "zygote, rlimits": BASE,
    "zygote, + Landlock, seccomp": (*BASE, "landlock", "seccomp"),
    "zygote, + six namespaces": (*BASE, *NAMESPACES),
    "zygote, all layers": LAYERS,
}


def in_sandbox(layers: tuple[str, ...]) -> Callable[[], bool]:
    """Judge in a sandbox with these layers, as the verifier `code` does."""
    runner = Runner(
        Sandbox(isolation="rlimits", layers=layers),
        Budget(test_seconds=1.0, program_seconds=10.0, stop_at_first_failure=True),
        allow_inside=False,
    )
    plan = read_tests(TESTS)
    return lambda: runner.run(PROGRAM, plan).passed == len(TESTS)


def in_subprocess(command: list[str]) -> Callable[[], bool]:
    """Judge the way many engines do: the tests after the program, in a new interpreter, by its exit status."""
    script = PROGRAM + "\n".join(TESTS)
    return lambda: (
        subprocess.run([*command, "-c", script], capture_output=True, timeout=10, check=False).returncode == 0
    )


def bubblewrap_command(bwrap: str) -> list[str]:
    python = os.path.realpath(sys.executable)
    prefix = str(Path(python).parents[1])
    shown = [path for path in dict.fromkeys(["/usr", "/lib", "/lib64", prefix]) if os.path.exists(path)]
    binds = [part for path in shown for part in ("--ro-bind", path, path)]
    return [
        bwrap,
        "--unshare-all",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/tmp",
        *binds,
        python,
        "-I",
        "-S",
    ]


def worker(name: str, bwrap: str, seconds: float, results: Any) -> None:
    methods: dict[str, Callable[[], Callable[[], bool]]] = {
        **{label: (lambda layers=layers: in_sandbox(layers)) for label, layers in LAYER_SETS.items()},
        "a new `python -I -S` each": lambda: in_subprocess([sys.executable, "-I", "-S"]),
        "a new `python` each": lambda: in_subprocess([sys.executable]),
        "a bubblewrap with `python -I -S` each": lambda: in_subprocess(bubblewrap_command(bwrap)),
    }
    judge = methods[name]()
    for _ in range(5):
        if not judge():
            raise SystemExit(f"{name}: the right program was not judged correct")
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        judge()
        times.append(time.perf_counter() - started)
    results.put(times)


def measure(name: str, bwrap: str, seconds: float, workers: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=worker, args=(name, bwrap, seconds, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    times = sorted(value for _ in processes for value in results.get(timeout=seconds + 60))
    for process in processes:
        process.join()
    return {
        "method": name,
        "programs_per_second": round(len(times) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(times), 2),
        "p99_ms": round(1000 * times[int(0.99 * len(times))], 2),
    }


def hang_beside_others(workers: int) -> dict[str, Any]:
    """One program that hangs for 10 s among 200 that do not: when do the others have their verdicts?"""
    options = {"test_seconds": 10.0, "program_seconds": 10.0}
    right = Sample(completion=f"```python\n{PROGRAM}\n```", ground_truth=TESTS)
    hang = Sample(completion="```python\ndef similar_elements(a, b):\n    while True: pass\n```", ground_truth=TESTS)
    with VerifierPool({"code": VerifierSpec(name="code", options=options)}, workers=workers) as pool:
        pool.submit("warm", "code", right)
        pool.wait()
        started = time.monotonic()
        finished = {}
        for number in range(200):
            pool.submit("hang" if number == 10 else number, "code", hang if number == 10 else right)
        while pool.pending:
            time.sleep(0.002)
            for key, verdict in pool.poll():
                finished[key] = time.monotonic() - started
                expected = Outcome.WRONG if key == "hang" else Outcome.CORRECT
                if verdict.outcome is not expected:
                    raise SystemExit(f"sample {key}: {verdict}")
    others = [seconds for key, seconds in finished.items() if key != "hang"]
    return {"hang_seconds": round(finished["hang"], 2), "last_of_the_others_seconds": round(max(others), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of each row")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--bwrap", default=shutil.which("bwrap") or "", help="bubblewrap's program; its row is left out without one"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()

    names = [*LAYER_SETS, "a new `python -I -S` each", "a new `python` each"]
    if arguments.bwrap:
        names.append("a bubblewrap with `python -I -S` each")
    else:
        print("no bubblewrap here: its row is left out (--bwrap PATH)", file=sys.stderr)
    rows = [measure(name, arguments.bwrap, arguments.seconds, arguments.workers) for name in names]
    with Sandbox(isolation="rlimits") as sandbox:
        missing = sandbox.missing()
    hang = None if missing else hang_beside_others(max(2, arguments.workers))
    from benchmarks.machine import about  # it imports torch, which the measured processes must not

    said = [arguments.bwrap, "--version"] if arguments.bwrap else ["true"]
    bwrap = subprocess.run(said, capture_output=True, text=True, check=True).stdout.split()
    machine = {
        **about(),
        "kernel": platform.release(),
        "workers": arguments.workers,
        "missing_layers": missing,
        "bubblewrap": bwrap[-1] if bwrap else None,
    }

    print(f"| {arguments.workers} workers, {os.cpu_count()} CPUs | programs/s | p50 ms | p99 ms |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['programs_per_second']} | {row['p50_ms']} | {row['p99_ms']} |")
    if missing:
        print(f"layers missing on this machine: {missing}; the hang row needs them all")
    else:
        print(f"one program that hangs for 10 s among 200: {hang}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows, "hang": hang}, indent=1) + "\n")


if __name__ == "__main__":
    main()

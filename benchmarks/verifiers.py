"""Verdicts per second, time of one verdict, cost of the pool, and what hanging samples cost.

    python -m benchmarks.verifiers [--data DIR] [--rows 1000] [--repeat 3] [--output FILE.json]

Rows are real: GSM8K and MATH test solutions (half of them against another row's answer, so half are wrong), and IFEval
prompts, whose own text stands in for a response. Beside the pool are measured math-verify called directly, and what a
thread pool makes of it: its time limit is a signal, which works in the main thread only.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import importlib.metadata
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from verifiers.base import Outcome, Sample, Verdict
from verifiers.pool import VerifierPool
from verifiers.pool_worker import judge
from verifiers.registry import VerifierSpec, build

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CHEAP = "def verify(completion, ground_truth):\n    return completion == ground_truth\n"
HANG = """
import time
def verify(completion, ground_truth):
    while completion == 'hang':
        time.sleep(60)
    return True
"""


def read_rows(data: pathlib.Path, count: int) -> dict[str, list[Sample]]:
    """`count` samples per verifier, spread over the files."""
    gsm8k = [json.loads(line) for line in (data / "gsm8k/test.jsonl").open()]
    math = [json.loads(line) for line in (data / "math/math500.jsonl").open()]
    ifeval = [json.loads(line) for line in (data / "ifeval/input_data.jsonl").open()]
    answers = [row["answer"].rpartition("####")[2].strip() for row in gsm8k]
    return {
        "gsm8k": _half_wrong([row["answer"] for row in gsm8k], answers, count),
        "math": _half_wrong([row["solution"] for row in math], [row["answer"] for row in math], count),
        "ifeval": [
            Sample(
                completion=row["prompt"] * 4,
                ground_truth={"instruction_id": row["instruction_id_list"], "kwargs": row["kwargs"]},
                prompt=row["prompt"],
            )
            for row in _cycle(ifeval, count)
        ],
    }


def _half_wrong(completions: Sequence[str], answers: Sequence[str], count: int) -> list[Sample]:
    return [
        Sample(completion=completions[i % len(answers)], ground_truth=answers[(i + i % 2) % len(answers)])
        for i in range(count)
    ]


def _cycle(rows: Sequence[Any], count: int) -> Iterable[Any]:
    return (rows[index % len(rows)] for index in range(count))


def run_seconds(repeat: int, run: Callable[[], Any]) -> list[float]:
    """Wall-clock times of `repeat` runs, ascending."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return sorted(times)


def median_seconds(repeat: int, run: Callable[[], Any]) -> float:
    return statistics.median(run_seconds(repeat, run))


def quantiles_ms(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """p50, p99 and maximum of the verdicts' own seconds, in milliseconds."""
    seconds = sorted(verdict.seconds for verdict in verdicts)
    at = [seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.99)]
    return {"p50_ms": round(at[0] * 1e3, 4), "p99_ms": round(at[1] * 1e3, 3), "max_ms": round(seconds[-1] * 1e3, 2)}


def through_pool(pool: VerifierPool, name: str, samples: Sequence[Sample]) -> list[Verdict]:
    for index, sample in enumerate(samples):
        pool.submit(index, name, sample)
    verdicts = dict(pool.wait())
    return [verdicts[index] for index in range(len(samples))]


def measure_verifier(name: str, samples: Sequence[Sample], repeat: int) -> list[dict[str, Any]]:
    """Verdicts per second: directly in this process, and through 1 and 2 workers."""
    spec = VerifierSpec(name=name)
    verifier = build(spec)
    judge(verifier, samples[0])
    rows = []
    verdicts: list[Verdict] = []

    def direct() -> None:
        verdicts[:] = [judge(verifier, sample) for sample in samples]

    seconds = median_seconds(repeat, direct)
    rows.append(_row(name, "called directly", samples, seconds, verdicts))
    if verifier.cannot_hang:
        return rows
    for workers in (1, 2):
        with VerifierPool({name: spec}, workers=workers, timeout_seconds=10.0) as pool:
            through_pool(pool, name, samples[:64])

            def pooled(pool: VerifierPool = pool) -> None:
                verdicts[:] = through_pool(pool, name, samples)

            seconds = median_seconds(repeat, pooled)
            rows.append(_row(name, f"pool, {workers} workers", samples, seconds, verdicts))
    return rows


def _row(name: str, how: str, samples: Sequence[Sample], seconds: float, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    outcomes = collections.Counter(verdict.outcome.value for verdict in verdicts)
    return {
        "verifier": name,
        "how": how,
        "rows": len(samples),
        "verdicts_per_second": round(len(samples) / seconds, 1),
        **quantiles_ms(verdicts),
        "outcomes": {outcome.value: outcomes[outcome.value] for outcome in Outcome},
    }


def measure_math_verify(samples: Sequence[Sample], repeat: int) -> list[dict[str, Any]]:
    """math-verify as its documentation calls it, directly and in the thread pool of an asynchronous trainer."""
    import math_verify

    def one(sample: Sample) -> Verdict:
        started = time.perf_counter()
        try:
            gold = math_verify.parse(f"${sample.ground_truth}$")
            verdict = Verdict.from_score(float(math_verify.verify(gold, math_verify.parse(sample.completion))))
        except ValueError as error:  # its signal is refused outside the main thread
            verdict = Verdict.indeterminate(f"{error}")
        seconds = time.perf_counter() - started
        return Verdict(outcome=verdict.outcome, score=verdict.score, detail=verdict.detail, seconds=seconds)

    verdicts: list[Verdict] = []

    def direct() -> None:
        verdicts[:] = map(one, samples)

    def threads() -> None:
        with concurrent.futures.ThreadPoolExecutor(2) as executor:
            verdicts[:] = executor.map(one, samples)

    rows = [_row("math-verify", "called directly", samples, median_seconds(repeat, direct), verdicts)]
    rows.append(_row("math-verify", "2 threads", samples, median_seconds(repeat, threads), verdicts))
    return rows


def measure_overhead(repeat: int) -> dict[str, float]:
    """Microseconds per comparison of two strings, in a worker and in the caller: 4,096 texts of 1,000 characters."""
    samples = [Sample(completion="word " * 200, ground_truth="word " * 200)] * 4096
    with tempfile.TemporaryDirectory() as folder:
        plugin = pathlib.Path(folder) / "cheap.py"
        plugin.write_text(CHEAP)
        specs = {
            "worker": VerifierSpec(name=f"{plugin}:verify"),
            "caller": VerifierSpec(name="exact"),
        }
        with VerifierPool(specs, workers=1) as pool:
            result = {}
            for name in specs:
                through_pool(pool, name, samples[:256])
                before = time.process_time()
                times = run_seconds(repeat, lambda name=name: through_pool(pool, name, samples))  # type: ignore[misc]
                result[f"{name}_median_microseconds"] = round(statistics.median(times) / len(samples) * 1e6, 2)
                result[f"{name}_best_microseconds"] = round(times[0] / len(samples) * 1e6, 2)
                caller = (time.process_time() - before) / repeat / len(samples)
                result[f"{name}_cpu_microseconds_of_caller"] = round(caller * 1e6, 2)
    return result


def measure_hangs(timeout_seconds: float = 0.5) -> dict[str, float]:
    """64 hanging samples among 4,096 on 2 workers: when the others are done; bound: timeout x ceil(64 / 2)."""
    completions = ["hang" if index % 64 == 13 else "fine" for index in range(4096)]
    samples = [Sample(completion=completion, ground_truth=None) for completion in completions]
    with tempfile.TemporaryDirectory() as folder:
        plugin = pathlib.Path(folder) / "hang.py"
        plugin.write_text(HANG)
        spec = VerifierSpec(name=f"{plugin}:verify")
        with VerifierPool({"h": spec}, workers=2, timeout_seconds=timeout_seconds) as pool:
            through_pool(pool, "h", [sample for sample in samples if sample.completion == "fine"][:256])
            started = time.perf_counter()
            for index, sample in enumerate(samples):
                pool.submit(index, "h", sample)
            arrivals = {}
            while pool.pending:
                for key, verdict in pool.poll():
                    arrivals[key] = (time.perf_counter() - started, verdict)
                time.sleep(0.001)
    others = [seconds for key, (seconds, _) in arrivals.items() if completions[int(str(key))] == "fine"]
    timed_out = sum(verdict.outcome is Outcome.INDETERMINATE for _, verdict in arrivals.values())
    return {
        "timeout_seconds": timeout_seconds,
        "hanging": 64,
        "indeterminate": timed_out,
        "bound_seconds": timeout_seconds * 32,
        "all_done_seconds": round(max(seconds for seconds, _ in arrivals.values()), 3),
        "others_median_seconds": round(statistics.median(others), 3),
        "others_last_seconds": round(max(others), 3),
    }


def environment() -> dict[str, Any]:
    """Hardware, versions and commit of a measurement."""
    from benchmarks.machine import about  # it imports torch, which workers need not

    libraries = ("math-verify", "sympy", "latex2sympy2_extended", "pydantic", "langdetect", "nltk")
    return {**about(), "libraries": {name: importlib.metadata.version(name) for name in libraries}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=1000, help="rows per verifier")
    parser.add_argument("--repeat", type=int, default=3, help="runs; medians are reported")
    parser.add_argument("--output", type=pathlib.Path, default=REPOSITORY / "benchmarks" / "results" / "verifiers.json")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no data at {arguments.data}: give --data DIR with gsm8k/, math/ and ifeval/", file=sys.stderr)
        return 2
    samples = read_rows(arguments.data, arguments.rows)
    results: dict[str, Any] = {"environment": environment(), "verifiers": []}
    for name, rows in samples.items():
        results["verifiers"] += measure_verifier(name, rows, arguments.repeat)
    results["verifiers"] += measure_math_verify(samples["math"], 1)
    results["overhead"] = {"target_microseconds": 50, **measure_overhead(max(9, arguments.repeat))}
    results["hangs"] = measure_hangs()
    for row in results["verifiers"]:
        outcomes = " ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
        print(
            f"{row['verifier']:12} {row['how']:16} {row['verdicts_per_second']:9.0f}/s  p50 {row['p50_ms']:8.3f} ms  "
            f"p99 {row['p99_ms']:8.2f} ms  max {row['max_ms']:8.1f} ms  {outcomes}"
        )
    print("overhead", json.dumps(results["overhead"]))
    print("hangs", json.dumps(results["hangs"]))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

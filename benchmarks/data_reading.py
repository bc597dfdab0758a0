"""Memory and time of a training file that is larger than what a process should hold.

    python -m benchmarks.data_reading [--gib 1] [--output FILE.json]

A generated JSONL file of RLVR rows is indexed as a run does it (`rlvr.data.read_rows`), and rows are then drawn in the
shuffled order of an epoch. Beside it stands what the same rows take when they are all held as Python objects, measured
on a part of the file.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import resource
import sys
import tempfile
import time
from typing import Any

import psutil

from rlvr.config import Source
from rlvr.data import read_rows
from rlvr.mixing import ordered_batch

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
HELD_ROWS = 50_000
DRAWN = 20_000


def write_rows(path: pathlib.Path, size: int) -> int:
    """Rows of about 1 KiB up to `size` bytes. Returns how many."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(5000)]
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            content = f"{number} {' '.join(draw.choices(words, k=140))}"
            row = {"messages": [{"role": "user", "content": content}], "ground_truth": "3", "dataset": "math"}
            written += file.write(json.dumps(row) + "\n")
            number += 1
    return number


def measure(path: pathlib.Path, count: int) -> dict[str, Any]:
    process = psutil.Process()

    def rss() -> float:
        return process.memory_info().rss / 2**20

    before = rss()
    started = time.perf_counter()
    rows = read_rows(Source(path=str(path)))
    indexed_seconds = time.perf_counter() - started
    indexed = rss()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    started = time.perf_counter()
    for step in range(DRAWN // 100):
        ordered_batch(rows, step, 100, seed=1)
    drawn_seconds = time.perf_counter() - started
    drawn = rss()
    held = rows[:HELD_ROWS]
    return {
        "rows": count,
        "file_mib": path.stat().st_size / 2**20,
        "rss_before_mib": before,
        "rss_indexed_mib": indexed,
        "peak_while_indexing_mib": peak,
        "rss_after_drawing_mib": drawn,
        "index_seconds": indexed_seconds,
        "rows_indexed_per_second": count / indexed_seconds,
        "microseconds_per_row_drawn": drawn_seconds / DRAWN * 1e6,
        "held_as_objects_would_take_mib": (rss() - drawn) * count / len(held),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=REPOSITORY / "benchmarks" / "results" / "data_reading.json"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        reading = measure(path, write_rows(path, int(arguments.gib * 2**30)))
    from benchmarks.machine import about, write_result  # torch, which would count as memory of the rows

    print(json.dumps(reading, indent=1))
    write_result(arguments.output, {**about(), "reading": reading})
    return 0


if __name__ == "__main__":
    sys.exit(main())

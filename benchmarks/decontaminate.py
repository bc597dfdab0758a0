"""Training rows searched per second against every evaluation set there is, and what public sets have in common.

    python -m benchmarks.decontaminate [--data DIR] [--rows 400000] [--workers 2] [--repeat 3] [--output FILE.json]

The rows to be searched are real prompts (GSM8K, MATH and MBPP training problems, self-instruct's seeds), each with a
three-figure number before it so that no two rows are the same, written as `messages` rows with an answer.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

from rlvr.config import Decontamination, TextSource
from rlvr.data_commands import text_source
from rlvr.decontaminate import Evaluations, search_files
from rlvr.overlaps import PairReport
from rlvr.texts import blocks, texts_in

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MBPP_SPLITS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
TRAINING = (
    "gsm8k/train.jsonl", "math/math_train_7474.json", "mbpp/mbpp.jsonl::text", "instructions/seed_tasks.jsonl",
)  # fmt: skip
EVALUATION = (
    "gsm8k/test.jsonl", "math/math500.jsonl", "math/math_test_5000.jsonl", "ifeval/input_data.jsonl",
    "ifbench/IFBench_test.jsonl", "humaneval/HumanEval.jsonl.gz", "mbpp/new_mbpp.json::prompt",
    "instructions/user_oriented_instructions.jsonl", "math_eval/aime24.jsonl::problem",
    "math_eval/amc23.jsonl::problem",
    "math_eval/asdiv.jsonl::body,question", "math_eval/mawps.jsonl", "math_eval/minerva_math.jsonl",
    "math_eval/olympiadbench.jsonl", "math_eval/svamp.jsonl::Body,Question",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="timed runs; the median is reported")
    parser.add_argument(
        "--output", type=pathlib.Path, default=REPOSITORY / "benchmarks" / "results" / "decontaminate.json"
    )
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no data at {arguments.data}: give --data DIR with {', '.join(TRAINING)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        speed = measure(arguments.data, pathlib.Path(folder), arguments)
        pairs = [record(report) for report in public_pairs(arguments.data, pathlib.Path(folder))]
    print(json.dumps(speed, indent=1))
    for pair in pairs:
        print(pair)
    from benchmarks.machine import about, write_result  # torch; worker processes import this file and need none

    write_result(arguments.output, {**about(), "speed": speed, "pairs": pairs})
    return 0


def sources(data: pathlib.Path, names: tuple[str, ...]) -> list[TextSource]:
    return [text_source(str(data / name)) for name in names]


def measure(data: pathlib.Path, folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of the whole command, and of the search alone."""
    training = TextSource(path=str(folder / "train.jsonl"))
    prompts = [t for source in sources(data, TRAINING) for block in blocks(source) for t in texts_in(block)]
    answer = {"role": "assistant", "content": "Let us think step by step. " * 10}
    with open(training.path, "w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            content = f"{number // len(prompts)} {' '.join(prompts[number % len(prompts)].turns)}"
            row = {"messages": [{"role": "user", "content": content}, answer], "ground_truth": "0", "dataset": "math"}
            file.write(json.dumps(row) + "\n")
    against = sources(data, EVALUATION)
    started = time.perf_counter()
    evaluations = Evaluations(against, Decontamination())
    index_seconds = time.perf_counter() - started
    seconds = []
    cpu_before = _cpu_seconds()
    for _ in range(arguments.repeat):
        started = time.perf_counter()
        search_files([training], against, Decontamination(), workers=arguments.workers)
        seconds.append(time.perf_counter() - started)
    total = statistics.median(seconds)
    cpu = (_cpu_seconds() - cpu_before) / arguments.repeat
    own, children = (
        resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "training_rows": arguments.rows,
        "training_mib": round(pathlib.Path(training.path).stat().st_size / 2**20, 1),
        "evaluation_sets": len(against),
        "evaluation_instances": len(evaluations.texts),
        "evaluation_words": int(evaluations.index.lengths.sum()),
        "workers": arguments.workers,
        "index_seconds": round(index_seconds, 2),
        "whole_seconds": [round(one, 2) for one in seconds],
        "cpu_seconds": round(cpu, 2),
        "rows_per_cpu_second": round(arguments.rows / cpu),
        "rows_per_second": round(arguments.rows / total),
        "rows_per_second_without_the_index": round(arguments.rows / (total - index_seconds)),
        "peak_rss_mib": {"this process": own, "largest worker, at most": children},
    }


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for: what the work costs however busy the machine is."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def public_pairs(data: pathlib.Path, folder: pathlib.Path) -> list[PairReport]:
    """Training sets against the test sets that belong to them."""
    mbpp = [json.loads(line) for line in (data / "mbpp/mbpp.jsonl").open(encoding="utf-8")]
    for split, ids in MBPP_SPLITS.items():
        rows = [json.dumps({"text": row["text"]}) for row in mbpp if row["task_id"] in ids]
        (folder / f"mbpp_{split}.jsonl").write_text("\n".join(rows) + "\n")
    math_test = ("math/math500.jsonl", "math/math_test_5000.jsonl")
    asked: list[tuple[str, list[TextSource]]] = [
        ("gsm8k/train.jsonl", sources(data, ("gsm8k/test.jsonl", *EVALUATION[8:]))),
        ("math/math_train_7474.json", sources(data, (*math_test, *EVALUATION[8:]))),
        (str(folder / "mbpp_train.jsonl"), sources(folder, ("mbpp_test.jsonl", "mbpp_validation.jsonl"))),
        (str(folder / "mbpp_train.jsonl"), sources(data, ("humaneval/HumanEval.jsonl.gz",))),
    ]
    return [
        report
        for training, against in asked
        for report in search_files([TextSource(path=str(data / training))], against, Decontamination(), workers=1)
    ]


def record(report: PairReport) -> dict[str, Any]:
    return {
        "training": pathlib.Path(report.training).name,
        "evaluation": pathlib.Path(report.evaluation).name,
        "training_rows": report.training_rows,
        "instances": report.instances,
        "too_short": report.too_short,
        "overlapping": len(report.overlaps),
        "in_every_word": sum(overlap.share == 1.0 for overlap in report.overlaps),
        "share": round(report.share, 4),
        "contaminated": report.contaminated,
        "matching_rows": len(report.matching_rows),
        "example": [list(report.overlaps[0].evaluation.turns), list(report.overlaps[0].training.turns)]
        if report.overlaps
        else None,
    }


if __name__ == "__main__":
    sys.exit(main())

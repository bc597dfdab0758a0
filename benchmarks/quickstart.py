"""Collect finished quickstart runs in one result: before and after on each seed, time, and the random-reward control.

    for seed in 1 2 3; do RUN=runs/seed_$seed SEED=$seed make quickstart; done
    python -m benchmarks.quickstart --run-seeds 1 2 3 --mix code --output benchmarks/results/quickstart_code.json
    python -m benchmarks.quickstart runs/seed_1/rlvr runs/seed_2/rlvr runs/seed_3/rlvr --control runs/coin \
        --output benchmarks/results/quickstart.json

The control is a run of `benchmarks/random_reward.py` (its docstring has the command) from one of the same starts.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
from typing import Any

from rlvr.log import STAGES, read_metrics
from rlvr.run_directory import RunDirectory


def describe(path: pathlib.Path) -> dict[str, Any]:
    """What one run learnt, and where its time went."""
    run = RunDirectory(path)
    lines = read_metrics(run.metrics)
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    steps = [line for line in lines if line["step"] > 0]
    config = json.loads((path / "config.json").read_text())
    names = [name for name in evaluated[0] if "pass_at" in name]
    seconds = {stage: sum(line.get(f"time/{stage}_seconds", 0.0) for line in steps) for stage in STAGES}
    return {
        "seed": config["seed"],
        "steps": len(steps),
        "before": {name: round(evaluated[0][name], 4) for name in names},
        "after": {name: round(evaluated[-1][name], 4) for name in names},
        "curve": [[line["step"], round(line["reward/mean"], 3)] for line in steps],
        "step_seconds_median": round(statistics.median(line["time/step_seconds"] for line in steps), 3),
        "seconds_by_stage": {stage: round(value, 1) for stage, value in seconds.items()},
        "proof_seconds": round(sum(line["sync/proof_seconds"] for line in steps), 2),
        "rollout_tokens_per_second_median": round(statistics.median(s["rollout/tokens_per_second"] for s in steps)),
        "kl_reference_last": round(steps[-1]["policy/kl_reference"], 4),
        "sampler_difference_max": max(line["policy/sampler_difference"] for line in steps),
    }


def run_seeds(seeds: list[int], mix: str) -> tuple[list[pathlib.Path], list[float]]:
    """`make quickstart` once for each seed, as a user would. Returns the run directories and the minutes.

    Raises CalledProcessError when one fails, FileExistsError for a folder that is there already.
    """
    runs, minutes = [], []
    for seed in seeds:
        folder = pathlib.Path("runs") / f"quickstart_{mix}_{seed}"
        if folder.exists():
            raise FileExistsError(f"{folder} is there already: remove it, so that its seed is run anew")
        started = time.perf_counter()
        environment = os.environ | {"RUN": str(folder), "SEED": str(seed), "MIX": mix}
        subprocess.run(["bash", "launch/quickstart.sh"], env=environment, check=True)
        minutes.append(round((time.perf_counter() - started) / 60, 1))
        runs.append(folder / "rlvr")
    return runs, minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=pathlib.Path)
    parser.add_argument("--run-seeds", nargs="+", type=int, default=[], help="run these first, in runs/")
    parser.add_argument("--mix", choices=("plain", "code"), default="plain", help="of --run-seeds")
    parser.add_argument("--control", type=pathlib.Path)
    parser.add_argument("--minutes", nargs="*", type=float, help="wall clock of each `make quickstart`, as it printed")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.run_seeds):
        parser.error("give finished runs, or --run-seeds")
    if arguments.run_seeds:
        arguments.runs, arguments.minutes = run_seeds(arguments.run_seeds, arguments.mix)
    result = {
        "what": "make quickstart, after set-up",
        "minutes": arguments.minutes,
        "versions": json.loads((arguments.runs[0] / "versions.json").read_text()),
        "runs": [describe(path) for path in arguments.runs],
        "control": describe(arguments.control) if arguments.control else None,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for run in [*result["runs"], result["control"]]:
        if run is not None:
            before, after = (run[side]["eval/heldout/pass_at_1"] for side in ("before", "after"))
            greedy = [run[side]["eval/heldout/pass_at_1_greedy"] for side in ("before", "after")]
            print(f"seed {run['seed']}: pass@1 {before:.1%} -> {after:.1%}, greedy {greedy[0]:.1%} -> {greedy[1]:.1%}")


if __name__ == "__main__":
    main()

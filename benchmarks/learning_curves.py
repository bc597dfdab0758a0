"""Learning curves of the objectives on the quickstart task, from one start and at equal samples.

    python -m benchmarks.learning_curves --seeds 1 2 3 --reward-model runs/reward/model \
        --output benchmarks/results/learning_curves.json

Every run starts from the same imitated policy (made once under RUNS/start, or given by --start), draws as many samples
a step for as many steps, and is evaluated on the same held-out prompts. Only the objective differs, and what its recipe
sets with it (scale of the reward, KL);
the seed changes prompts, samples and minibatches. Nothing was tuned for one variant: all take the learning rates of
launch/recipes/quickstart.toml. Finished runs are kept and not repeated, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.machine import about
from rlvr.log import read_metrics
from rlvr.run_directory import RunDirectory

RECIPES = pathlib.Path("launch/recipes")
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "ppo-policy": ("quickstart.toml", ["critic.init=policy"]),
    "ppo-scratch": ("quickstart.toml", ["critic.init=scratch"]),
    "ppo-reward-model": ("quickstart.toml", []),
    "grpo": ("quickstart-grpo.toml", []),
    "rloo": ("quickstart-rloo.toml", []),
}
"""Recipe and overrides; `ppo-reward-model` starts its critic from --reward-model."""
CURVES = {
    "pass_at_1": "eval/heldout/pass_at_1",
    "pass_at_1_greedy": "eval/heldout/pass_at_1_greedy",
}
STEPS = {
    "groups_without_signal": "rollout/groups_without_signal",
    "length_mean_tokens": "rollout/length_mean_tokens",
    "kl_reference": "policy/kl_reference",
    "entropy": "policy/entropy",
    "explained_variance": "value/explained_variance",
}
"""Metrics of single steps, of which the last step before each evaluation is kept."""


def torchrun(processes: int, *command: str) -> None:
    """Run one command of the project, and stop when it fails."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1"}
    subprocess.run([*ranks, *command], check=True, env=environment)


def make_start(folder: pathlib.Path, processes: int) -> None:
    """Steps 1 and 2 of `make quickstart`, once."""
    if (folder / "sft" / "model" / "config.json").exists():
        return
    task = folder / "task"
    if not (task / "train.jsonl").exists():
        subprocess.run(
            [sys.executable, "-m", "sft_dpo", "quickstart-task", str(task), "--seed", "1", "--demonstrations", "16000"],
            check=True,
        )
    torchrun(
        processes, "sft_dpo", "sft", str(RECIPES / "quickstart-sft.toml"), f"model.path={task / 'model'}",
        f"data.train={task / 'demonstrations.jsonl'}", f"run_dir={folder / 'sft'}", "seed=1",
    )  # fmt: skip


def train(variant: str, seed: int, arguments: argparse.Namespace) -> pathlib.Path:
    """One run, unless it is finished already. Returns its folder."""
    folder = pathlib.Path(arguments.runs) / f"{variant}-{seed}"
    if (folder / "model" / "config.json").exists():
        return folder
    recipe, overrides = VARIANTS[variant]
    if variant == "ppo-reward-model":
        overrides = [f"critic.init={arguments.reward_model}"]
    start = pathlib.Path(arguments.start or pathlib.Path(arguments.runs) / "start")
    torchrun(
        arguments.processes, "rlvr", "train", str(RECIPES / recipe), *overrides,
        f"model.path={start / 'sft' / 'model'}", f"data.train={start / 'task' / 'train.jsonl'}",
        f"data.eval={start / 'task' / 'heldout.jsonl'}", f"run_dir={folder}", f"seed={seed}",
        f"training.steps={arguments.steps}", f"training.evaluate_every={arguments.evaluate_every}",
        "log.tensorboard=false",
    )  # fmt: skip
    return folder


def describe(folder: pathlib.Path, variant: str, seed: int) -> dict[str, Any]:
    """Curves of one run over the samples it has drawn, and its time."""
    run = RunDirectory(folder)
    lines = read_metrics(run.metrics)
    points: dict[str, list[Any]] = collections.defaultdict(list)
    drawn = 0.0
    for line in lines:
        drawn += line.get("rollout/completions", 0.0)
        if CURVES["pass_at_1"] not in line:
            continue
        points["samples"].append(int(drawn))
        for name, key in CURVES.items():
            points[name].append(round(line[key], 4))
        for name, key in STEPS.items():
            value = line.get(key)
            points[name].append(None if value is None else round(value, 4))
    steps = [line for line in lines if line["step"] > 0]
    return {
        "variant": variant,
        "seed": seed,
        **points,
        "reward_by_step": [round(line["reward/mean"], 3) for line in steps],
        "step_seconds_median": round(statistics.median(line["time/step_seconds"] for line in steps), 3),
        "ledger": json.loads(run.ledger.read_text()),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each variant: the mean, least and greatest held-out pass@1 over seeds, at each number of samples."""
    found = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in runs if run["variant"] == variant]
        columns = list(zip(*(run["pass_at_1"] for run in mine), strict=True))
        found.append(
            {
                "variant": variant,
                "seeds": [run["seed"] for run in mine],
                "samples": mine[0]["samples"],
                "pass_at_1_mean": [round(statistics.fmean(column), 4) for column in columns],
                "pass_at_1_min": [min(column) for column in columns],
                "pass_at_1_max": [max(column) for column in columns],
                "greedy_last": [run["pass_at_1_greedy"][-1] for run in mine],
            }
        )
    return found


def plot(summaries: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Means as lines, least to greatest as bands. Raises SystemExit when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("a plot needs matplotlib: pip install 'rlvr[plots]', or leave --plot out") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for one in summaries:
        label = f"{one['variant']} ({len(one['seeds'])} seeds)"
        (line,) = axes.plot(one["samples"], one["pass_at_1_mean"], label=label)
        axes.fill_between(
            one["samples"], one["pass_at_1_min"], one["pass_at_1_max"], color=line.get_color(), alpha=0.15, linewidth=0
        )
    axes.set(xlabel="samples drawn", ylabel="held-out pass@1 (temperature 1)", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="default: all that can run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--reward-model", help="folder of a reward model, for ppo-reward-model")
    parser.add_argument("--start", help="folder with task/ and sft/model/ of a quickstart; default: made in RUNS/start")
    parser.add_argument("--runs", default="runs/learning_curves", help="where the runs go")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--evaluate-every", type=int, default=8)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG file")
    arguments = parser.parse_args(words)
    if arguments.variants is None:
        arguments.variants = [name for name in VARIANTS if arguments.reward_model or name != "ppo-reward-model"]
    if "ppo-reward-model" in arguments.variants and not arguments.reward_model:
        parser.error("--variants ppo-reward-model needs --reward-model FOLDER")
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.start is None:
        make_start(pathlib.Path(arguments.runs) / "start", arguments.processes)
    runs = []
    for seed in arguments.seeds:  # seed by seed: after the first, every variant has a curve
        for variant in arguments.variants:
            runs.append(describe(train(variant, seed, arguments), variant, seed))
            result = {
                "what": "held-out pass@1 by samples drawn, from one imitated policy; shared settings: quickstart.toml",
                **about(),
                "processes": arguments.processes,
                "summary": summary(sorted(runs, key=lambda run: arguments.variants.index(run["variant"]))),
                "runs": runs,
            }
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for one in result["summary"]:
        first, last = one["pass_at_1_mean"][0], one["pass_at_1_mean"][-1]
        spread = f"{one['pass_at_1_min'][-1]:.1%} to {one['pass_at_1_max'][-1]:.1%}"
        print(f"{one['variant']:17} pass@1 {first:.1%} -> {last:.1%} ({spread}) after {one['samples'][-1]} samples")
    if arguments.plot:
        plot(result["summary"], arguments.plot)


if __name__ == "__main__":
    main()

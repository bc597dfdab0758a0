"""A GRPO step of this project against TRL's GRPOTrainer, on the same work and machine, in turns.

    python -m benchmarks.rollout_trl --trl-python VENV/bin/python --shape 30m --lengths 64 gsm8k --ranks 2

TRL is installed apart (`pip install trl==1.16.0 --no-deps` in an environment that has this project's packages). Both
sides run under torchrun with one thread a rank: the same weights and dtype, the same prompts token for token, the same
numbers of sampled tokens, group size, optimizer and one update a step, GRPO without a reference. Both judge every
completion (this project with its verifiers, TRL with a function of two lines). TRL is run with its transformers
generation, its colocated vLLM, or both (`--generation`), with each of `--micro-batch`; its best median counts.

What is chosen in TRL's favour (benchmarks/trl_worker.py): it takes one length for all requests, so a wrapped `generate`
gives each request its own, and transformers samples to the longest of a rank's share, no further; no importance
correction, which would cost a forward pass; no search for unused parameters; on a CPU vLLM is eager, as in our recipe.
TRL pads the samples of a rank to the longest of them, whatever the micro-batch.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.rollout import shape_overrides
from benchmarks.rollout_summary import PHASES

RECIPE = "launch/recipes/quickstart-grpo.toml"
# GRPO without a reference; the two options of the KL term go back to their defaults, since there is none
OURS = [
    "algorithm.kl_placement=reward",
    "algorithm.kl_estimator=k1",
    "algorithm.kl_coefficient=0",
    "algorithm.minibatches=1",
    "algorithm.old_logprobs=sampler",
    "optimizer.learning_rate=1e-6",
    "rollout.temperature=1.0",
]
WORKER = pathlib.Path(__file__).parent / "trl_worker.py"

Measured = dict[str, Any]
"""`series`: seconds of every counted step; `phases`: the same by phase; of TRL also `versions` and `tokens`."""


def main() -> None:
    from benchmarks.machine import about, write_result

    arguments = parse()
    result = {
        **about(),
        "shape": arguments.shape,
        "ranks": arguments.ranks,
        "threads_of_a_rank": 1,
        "prompts": arguments.prompts,
        "samples": arguments.prompts * arguments.samples,
        "recipe": RECIPE,
        "overrides": OURS,
        "lengths": {},
    }
    for lengths in arguments.lengths:
        found = compare(arguments, lengths)
        result["trl_versions"] = found.pop("trl_versions")
        result["lengths"][lengths] = found
        print_table(lengths, found)
        if arguments.output:  # after each, so that an interrupted comparison leaves what it has
            write_result(arguments.output, result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=pathlib.Path, required=True, help="of the environment that has TRL")
    parser.add_argument("--shape", default="30m")
    parser.add_argument("--lengths", nargs="+", default=["64", "gsm8k"], help="gsm8k, or tokens of every completion")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="of each prompt")
    parser.add_argument("--steps", type=int, default=4, help="of each process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8], help="TRL's per_device_train_batch_size")
    parser.add_argument("--generation", nargs="+", default=["transformers", "vllm"], choices=("transformers", "vllm"))
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    for lengths in arguments.lengths:
        if lengths != "gsm8k" and not lengths.isdecimal():
            parser.error(f"--lengths is gsm8k or a number of tokens; got {lengths!r}")
    share = arguments.prompts // arguments.ranks * arguments.samples
    if arguments.prompts % arguments.ranks or any(share % size for size in arguments.micro_batch):
        parser.error(
            f"--prompts {arguments.prompts} must be a multiple of --ranks {arguments.ranks}, and a rank's {share} "
            f"samples a multiple of each --micro-batch {arguments.micro_batch}"
        )
    return arguments


def compare(arguments: argparse.Namespace, lengths: str) -> Measured:
    """Everybody in turns, `rounds` times."""
    from benchmarks.machine import spread

    runs: dict[str, list[Measured]] = {"ours": []}
    contestants = {
        f"trl {kind}, micro-batch {n}": (kind, n) for kind in arguments.generation for n in arguments.micro_batch
    }
    runs |= {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, done in runs.items():
            done.append(ours(arguments, lengths) if name == "ours" else trl(arguments, lengths, *contestants[name]))
            print(f"{lengths}: {name}: {', '.join(f'{x:.2f}' for x in done[-1]['series'])} s a step", flush=True)
    seconds = {name: [x for one in done for x in one["series"]] for name, done in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(contestants, key=medians.__getitem__)
    of_rounds = [
        statistics.median(a["series"]) / statistics.median(b["series"])
        for a, b in zip(runs["ours"], runs[best], strict=True)
    ]
    tokens = {name: [one["tokens"] for one in done] for name, done in runs.items()}
    return {
        "tokens_of_a_step": tokens["ours"][0],
        "trl_tokens_of_a_step": tokens[best][0],
        "step_seconds": {name: spread(values) for name, values in seconds.items()},
        "phases": {name: phases(done) for name, done in runs.items()},
        "series": seconds,
        "best_of_trl": best,
        "ours_over_trl": medians["ours"] / medians[best],
        "ours_over_trl_of_rounds": of_rounds,
        "trl_versions": runs[best][0]["versions"],
    }


def phases(done: list[Measured]) -> dict[str, float]:
    """Median seconds of each phase that took any time."""
    names = dict.fromkeys(name for one in done for name in one["phases"])
    medians = {name: statistics.median(x for one in done for x in one["phases"].get(name, [0.0])) for name in names}
    return {name: value for name, value in medians.items() if value > 0.0}


def torchrun(arguments: argparse.Namespace, python: str, words: list[str]) -> None:
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.ranks), *words]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")


def ours(arguments: argparse.Namespace, lengths: str) -> Measured:
    """This project's steps."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "ours.json"
        words = ["-m", "benchmarks.rollout", RECIPE, "--shape", arguments.shape, "--lengths", lengths]
        words += ["--against", "learner", "--repeats", str(arguments.steps - 1), "--output", str(output)]
        torchrun(arguments, sys.executable, [*words, *overrides(arguments)])
        found = json.loads(output.read_text())
        series = found["series"]
        return {
            "series": series["step"],
            "phases": {name: series[name] for name in PHASES if name in series},
            "tokens": found["tokens"],
        }


def overrides(arguments: argparse.Namespace) -> list[str]:
    return [*OURS, f"rollout.prompts_per_step={arguments.prompts}", f"rollout.samples_per_prompt={arguments.samples}"]


def trl(arguments: argparse.Namespace, lengths: str, kind: str, micro_batch: int) -> Measured:
    """TRL's steps, in processes of its own environment, on the prompts and lengths that ours draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        task = {
            "generation": kind,
            "samples": arguments.samples,
            "micro_batch": micro_batch,
            "work": work(arguments, lengths, folder),
        }
        (folder / "task.json").write_text(json.dumps(task))
        torchrun(arguments, str(arguments.trl_python), [str(WORKER), str(folder)])
        found: Measured = json.loads((folder / "found.json").read_text())
        return found


def work(arguments: argparse.Namespace, lengths: str, folder: pathlib.Path) -> list[list[Any]]:
    """Of each step: the prompts' token ids and the lengths of their completions, those of a rank side by side."""
    from benchmarks.rollout_contest import work_of_step
    from benchmarks.workload import model_config
    from rlvr import recipe
    from rlvr.chat import load_tokenizer
    from rlvr.parts import load_prompts

    words = [*shape_overrides(arguments.shape, lengths, folder), f"run_dir={folder / 'run'}", *overrides(arguments)]
    config = recipe.load(RECIPE, words)
    train_set, _, _ = load_prompts(config, load_tokenizer(config.model.path, config.model.chat_template))
    vocabulary_size = model_config(arguments.shape).vocab_size
    steps = []
    for step in range(arguments.steps):
        dealt = work_of_step(config, train_set, lengths, step, vocabulary_size)
        by_rank = [one for rank in range(arguments.ranks) for one in dealt[rank :: arguments.ranks]]
        steps.append([(prompt.token_ids, of_prompt) for prompt, of_prompt in by_rank])
    return steps


def print_table(lengths: str, found: Measured) -> None:
    print(f"\n{lengths} tokens each" if lengths.isdecimal() else f"\n{lengths} lengths")
    for name, value in found["step_seconds"].items():
        parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in found["phases"][name].items())
        print(f"  {name:34}{value['median']:8.3f} s a step ({value['min']:.3f}-{value['max']:.3f}): {parts}")
    print(f"  ours / {found['best_of_trl']}: {found['ours_over_trl']:.3f}")


if __name__ == "__main__":
    main()

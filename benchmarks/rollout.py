"""Rollout throughput of a recipe, with real weight sync and real verification, and the same requests elsewhere.

    python -m benchmarks.rollout launch/recipes/quickstart.toml model.path=... data.train=...
    python -m benchmarks.rollout launch/recipes/quickstart.toml --shape 30m --lengths 64 --against raw floor
    torchrun --nproc-per-node 2 -m benchmarks.rollout launch/recipes/quickstart.toml --shape 1m --lengths gsm8k
    python -m benchmarks.rollout RECIPE --sweep sampler.max_num_seqs=64,256 sampler.prefix_caching=true,false

`--lengths free` samples until the model ends (or `rollout.max_tokens`); a number, or `gsm8k` (recorded token counts of
questions and solutions: benchmarks/gsm8k_lengths.json), fixes each request's length, end tokens ignored, so that two
engines do the same work. `--shape` takes random weights of a shape (benchmarks/workload.py) and the quickstart's rows.

Phases of a step, each once a repeat: *generate* (requests in, completions out, text decoded, verdicts asked for as
completions end), *score* (verdicts still to wait for), *sleep*, *update* (with `--against learner` or `floor`), *wake*,
*sync* (GB/s of weights) and *proof*. Contestants take turns within a repeat, in alternating order: `raw` is vLLM's own
`LLM.generate` on the same engine and the same requests (prompt, length, seed, log-probs); `transformers` its batched
`generate`, right after; `floor` adds to `raw` one bare torch update on the same tokens (benchmarks/floor.py). The
prefix cache is emptied before each. TRL runs apart: benchmarks/rollout_trl.py.

MFU is (2 x weights of matrix products x tokens read + attention) / seconds / peak FLOP/s; MBU is (engine steps x bytes
of weights + bytes of keys and values read) / seconds / peak bytes/s. Peaks: benchmarks/machine.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlvr import environment, recipe
from rlvr.config import Config

if TYPE_CHECKING:
    from benchmarks.rollout_contest import Contest

CONTESTANTS = ("raw", "transformers", "learner", "floor")


def main() -> None:
    arguments = parse()
    if arguments.sweep:
        from benchmarks.rollout_sweep import sweep

        sweep(arguments)
        return
    written = recipe.load(arguments.recipe, arguments.overrides)
    environment.prepare(enforce_eager=written.sampler.enforce_eager)  # before torch is imported
    with tempfile.TemporaryDirectory() as folder:
        config = configure(arguments, pathlib.Path(folder))
        with contestants(config, arguments) as contest:
            result = measure(contest, arguments)
    if result is None:  # not the first rank
        return
    from benchmarks.machine import write_result

    print_table(result)
    if arguments.output:
        write_result(arguments.output, result)
    if arguments.plot:
        from benchmarks.rollout_plot import plot

        plot(result, arguments.plot)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value")
    parser.add_argument("--lengths", default="free", help="free, gsm8k, or tokens of every completion")
    parser.add_argument("--shape", help="random weights of this shape, and the quickstart's rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", nargs="*", default=["raw"], choices=CONTESTANTS)
    parser.add_argument("--sweep", nargs="+", metavar="section.option=a,b")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, help="PNG")
    parsed, late = parser.parse_known_intermixed_args(words)
    if late:
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if parsed.lengths not in ("free", "gsm8k") and not parsed.lengths.isdecimal():
        parser.error(f"--lengths is free, gsm8k or a number of tokens; got {parsed.lengths!r}")
    return parsed


def configure(arguments: argparse.Namespace, folder: pathlib.Path) -> Config:
    """The recipe, with what the benchmark sets: statistics on, its own rows and weights with `--shape`."""
    overrides = ["sampler.statistics=true", f"run_dir={folder / 'run'}", "evaluation.enabled=false"]
    if arguments.shape:
        overrides += shape_overrides(arguments, folder)
    return recipe.load(arguments.recipe, [*overrides, *arguments.overrides])


def shape_overrides(arguments: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """Write rows, tokenizer and random weights (each rank its own: they are the same), and name them."""
    import transformers

    from benchmarks.workload import make_model
    from sft_dpo import quickstart_task

    quickstart_task.write(folder / "task", seed=1, demonstrations=200, train=2048, held_out=4, flawed_share=0.5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "task" / "model")
    tokenizer.save_pretrained(make_model(arguments.shape, folder / "model", dtype="float32"))
    longest = {"free": 64, "gsm8k": 512}.get(arguments.lengths) or int(arguments.lengths)
    return [
        f"model.path={folder / 'model'}",
        f"data.train={folder / 'task' / 'train.jsonl'}",
        "data.eval=[]",
        "data.max_prompt_tokens=320",
        f"rollout.max_tokens={longest}",
        "sampler.kv_cache_mib=512",
    ]


@contextlib.contextmanager
def contestants(config: Config, arguments: argparse.Namespace) -> Iterator[Contest]:
    """The parts of a run with its first weights published, and those that it is compared with."""
    from benchmarks.rollout_contest import Contest
    from rlvr import distributed
    from rlvr.parts import run_parts

    distributed.start()
    started = time.perf_counter()
    with run_parts(config) as parts:
        parts.sync.publish()
        yield Contest(parts, arguments.lengths, arguments.against, startup_seconds=time.perf_counter() - started)


def measure(contest: Contest, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Warm up once, then take turns. Returns the result on the first rank."""
    from benchmarks.machine import about, peaks, spread
    from rlvr import distributed

    contest.turn(0, record=False)
    for repeat in range(1, arguments.repeats + 1):
        contest.turn(repeat, record=True)
    peak = peaks(contest.config.model.dtype)
    found = contest.summary(peak)
    if distributed.rank() != 0:
        return None
    return {
        **about(),
        "recipe": arguments.recipe,
        "overrides": arguments.overrides,
        "shape": arguments.shape,
        "lengths": arguments.lengths,
        "ranks": distributed.world_size(),
        "peaks": dataclasses.asdict(peak),
        **found,
        "seconds": {name: spread(values) for name, values in contest.seconds.items()},
        "series": dict(contest.seconds),
    }


def print_table(result: dict[str, Any]) -> None:
    rates, ratios = result["tokens_per_second"], result["ratios"]
    print(f"\n{result['requests']} requests, {result['tokens']:,.0f} tokens a repeat, {result['ranks']} rank(s)")
    for name, value in rates.items():
        per_rank = value["median"] / result["ranks"]
        extremes = f"{value['min']:,.0f}-{value['max']:,.0f}"
        print(f"  {name:14}{value['median']:>12,.0f} tokens/s ({extremes}; {per_rank:,.0f} a rank)")
    for name, value in ratios.items():
        print(f"  {name}: {value['median']:.3f} ({value['min']:.3f}-{value['max']:.3f})")
    print("seconds (median): " + ", ".join(f"{k} {v['median']:.4g}" for k, v in result["seconds"].items()))
    sampler = ", ".join(f"{name.removeprefix('sampler/')} {value:.4g}" for name, value in result["sampler"].items())
    print(f"vLLM: {sampler}\nMFU {result['mfu']:.1%}, MBU {result['mbu']:.1%} of {result['peaks']['source']} peaks")
    print(
        f"sync {result['sync_gb_per_second']:.2f} GB/s = {result['sync_share_of_bandwidth']:.0%} of a copy's bandwidth"
    )
    print(f"idle while scoring: {result['idle_share']:.2%} of the step's time measured here")
    for row in result["latency_by_length"]:
        print(f"  {row['tokens'][0]:>5}-{row['tokens'][1]:<5} tokens: p50 {row['p50']:.3f} s, p95 {row['p95']:.3f} s")


if __name__ == "__main__":
    sys.exit(main())

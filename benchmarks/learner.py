"""Tokens/s, peak memory and MFU of one PPO update (policy and critic), and its time over that of bare torch.

    python -m benchmarks.learner --shape 30m --threads 2 --output benchmarks/results/learner_30m.json
    python -m benchmarks.learner --shape 30m --lengths gsm8k --against exact sorted shuffled
    torchrun --nproc-per-node 2 -m benchmarks.learner --shape 30m --threads 1 --zero 0 1 2 3
    python -m benchmarks.learner --shape 0.5b --dtype bfloat16 --zero 1 --row-tokens 8192 --checkpointing off on
    python -m benchmarks.learner --recipe launch/recipes/quickstart.toml learner.zero_stage=1

Every contestant does the same update on the same tokens, in turns, so that a noisy machine is noisy for all. `update`
is `Learner.update` (one epoch, one minibatch) against bare forward, backward and AdamW of both models
(`benchmarks/floor.py`); `targets` is `Learner.targets` (old log-probs, values, GAE) against two bare forwards. On a
GPU, and for memory, each contestant runs in a process of its own.

FLOPs of a forward are 2 x (weights of matrix products) x tokens, heads at completion tokens only, and 4 x width of the
heads x (pairs of tokens, L (L + 1) / 2 for a sequence) x layers of attention; a backward is twice that (Kaplan et al.
2020, arXiv 2001.08361, section 2.1). What checkpointing or a head in chunks computes again is not counted. MFU is that
over the peak: a measured matrix product on a CPU, the data sheet's on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.floor import Floor, micro_batches
from benchmarks.machine import about, peaks, seconds_of, spread, write_result
from benchmarks.memory import memory_mib, reset_peak
from benchmarks.workload import LENGTHS, SHAPES, gsm8k_lengths, make_model, random_sequences
from rlvr import distributed, recipe
from rlvr.config import Config
from rlvr.learner import Learner
from rlvr.records import Trajectories

SAMPLES = {"1m": 64, "30m": 24, "0.5b": 128, "1.5b": 128}
ROW_TOKENS = {"1m": 2048, "30m": 2048, "0.5b": 8192, "1.5b": 8192}
FLOORS = {
    "exact": "sequences of one length in a batch, no padding",
    "sorted": "padded to the longest of a micro-batch, sorted by length",
    "shuffled": "padded to the longest of a micro-batch, in sample order",
}


class Ours:
    """The learner of a recipe."""

    def __init__(self, config: Config, batch: Trajectories) -> None:
        self.learner = Learner(config, total_updates=10**6)
        self.batch = batch
        self.computed, _ = self.learner.targets(batch)
        self.step = 0

    def update(self) -> None:
        self.step += 1
        self.learner.update(self.batch, self.computed, step=self.step)

    def targets(self) -> None:
        self.learner.targets(self.batch)


class Bare:
    """One of `FLOORS`."""

    def __init__(self, config: Config, batch: Trajectories, kind: str, targets: Any) -> None:
        batches = micro_batches(
            batch,
            max_tokens=config.learner.max_tokens_per_micro_batch,
            padded=kind != "exact",
            by_length=kind != "shuffled",
        )
        rates = (config.optimizer.learning_rate, config.critic.optimizer.learning_rate)
        self.floor = Floor(config.model.path, batches, dtype=config.model.dtype, rates=rates)
        self.computed = targets
        self.tokens = distributed.sum_over_ranks([float(batch.lengths.sum())])[0]

    def update(self) -> None:
        self.floor.update(self.computed, self.tokens)

    def targets(self) -> None:
        self.floor.forward()


def trajectories(lengths: Sequence[tuple[int, int]], vocabulary: int) -> Trajectories:
    """This rank's share of random samples of the given (prompt, completion) lengths."""
    rank, ranks = distributed.rank(), distributed.world_size()
    pairs = list(random_sequences(lengths, vocabulary=vocabulary))[rank::ranks]
    counts = torch.tensor([len(completion) for _, completion in pairs])
    generator = torch.Generator().manual_seed(rank)
    return Trajectories(
        prompt_ids=tuple(prompt for prompt, _ in pairs),
        completion_ids=tuple(completion for _, completion in pairs),
        lengths=counts,
        places=torch.arange(len(lengths))[rank::ranks],
        groups=torch.arange(len(lengths))[rank::ranks],
        rewards=10.0 * torch.randint(0, 2, (len(pairs),), generator=generator).float(),
        sampler_logprobs=torch.zeros(int(counts.sum())),
    )


def forward_flops(config: Any, lengths: Sequence[tuple[int, int]]) -> dict[str, float]:
    """FLOPs of one forward of policy and critic over samples of (prompt, completion) lengths; see the module's text."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads * head_size
    projections = config.hidden_size * (2 * heads + 2 * config.num_key_value_heads * head_size)
    layer = projections + 3 * config.hidden_size * config.intermediate_size
    read = [prompt + completion - 1 for prompt, completion in lengths]
    trunk = 2.0 * config.num_hidden_layers * layer * sum(read)
    attention = 4.0 * config.num_hidden_layers * heads * sum(n * (n + 1) / 2 for n in read)
    answered = sum(completion for _, completion in lengths)
    head = 2.0 * config.hidden_size * answered
    return {"policy": trunk + attention + head * config.vocab_size, "critic": trunk + attention + head}


def configs(arguments: argparse.Namespace, folder: str) -> dict[str, Config]:
    """The learner's contestants: every ZeRO stage with and without checkpointing."""
    made = {}
    for stage in arguments.zero:
        for checkpointing in arguments.checkpointing:
            table: dict[str, Any] = {
                "run_dir": "unused",
                "data": {"train": ["unused.jsonl"]},
                "training": {"steps": 1},
                "rollout": {},
            }
            if arguments.recipe:
                table = recipe.read_toml(pathlib.Path(arguments.recipe))
                for override in arguments.overrides:
                    recipe.apply_override(table, override)
            for section in ("model", "learner", "algorithm"):
                table.setdefault(section, {})
            table["rollout"] |= {"prompts_per_step": arguments.samples, "samples_per_prompt": 1}
            table["algorithm"] |= {"epochs": 1, "minibatches": 1}
            if not arguments.recipe:
                table["model"] |= {"path": folder, "dtype": arguments.dtype}
                table["algorithm"] |= {"kl_coefficient": 0.0}
                table["learner"] |= {"max_tokens_per_micro_batch": arguments.row_tokens}
            table["model"]["gradient_checkpointing"] = checkpointing == "on"
            table["learner"]["zero_stage"] = stage
            made[f"ours, ZeRO {stage}" + (", checkpointing" if checkpointing == "on" else "")] = recipe.validate(
                Config, table, arguments.recipe or "benchmark"
            )
    return made


def contest(arguments: argparse.Namespace, folder: str, names: Sequence[str]) -> dict[str, Any]:
    """Time the named contestants in turns. Collective."""
    import transformers

    made = configs(arguments, folder)
    plain = next(iter(made.values()))
    model = transformers.AutoConfig.from_pretrained(plain.model.path)
    lengths = sample_lengths(arguments)
    batch = trajectories(lengths, model.vocab_size)
    contestants: dict[str, Any] = {}
    computed = None
    baseline = memory_mib()
    for name in names:
        if name in made:
            contestants[name] = Ours(made[name], batch)
            computed = contestants[name].computed
        else:
            contestants[name] = Bare(plain, batch, name, computed or stand_in(batch))
    held = memory_mib()
    seconds: dict[str, dict[str, list[float]]] = {name: {"update": [], "targets": []} for name in names}
    peak = dict.fromkeys(names, 0.0)
    for turn in range(arguments.repeat + 1):
        for name, contestant in contestants.items():
            reset_peak()
            for what in ("targets", "update"):
                distributed.barrier()
                took = seconds_of(getattr(contestant, what))
                if turn:  # the first warms up
                    seconds[name][what].append(took)
            peak[name] = max(peak[name], memory_mib(peak=True))
    result = {
        name: {"update_seconds": seconds[name]["update"], "targets_seconds": seconds[name]["targets"]} for name in names
    }
    if len(names) == 1:
        name = names[0]
        result[name] |= {"held_mib": held - baseline, "peak_above_held_mib": peak[name] - held}
    return result


def stand_in(batch: Trajectories) -> Any:
    """Targets of no meaning, for a floor that runs alone."""
    from rlvr.records import Targets

    zeros = torch.zeros(int(batch.lengths.sum()))
    return Targets(
        old_logprobs=zeros - 9.0,
        reference_logprobs=None,
        old_values=zeros,
        advantages=zeros + 0.5,
        returns=zeros + 1.0,
        importance_weights=None,
    )


def sample_lengths(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """(prompt, completion) lengths: GSM8K's, or all equal to GSM8K's means."""
    real = gsm8k_lengths(arguments.samples)
    if arguments.lengths == "gsm8k":
        return real
    prompt, completion = (round(sum(pair[side] for pair in real) / len(real)) for side in (0, 1))
    return [(prompt, completion)] * len(real)


def alone(arguments: argparse.Namespace, name: str, repeat: int) -> dict[str, Any]:
    """One contestant in a process of its own: its times, and its memory."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks.learner", *sys.argv[1:]]
        command += ["--only", name, "--repeat", str(repeat), "--output", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(pathlib.Path(file.name).read_text())
        return found


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, dict[str, Any]]:
    names = [*configs(arguments, folder), *arguments.against]
    if arguments.only:
        return contest(arguments, folder, [arguments.only])
    if torch.cuda.is_available() and distributed.world_size() == 1:
        return {name: alone(arguments, name, arguments.repeat)[name] for name in names}
    found = contest(arguments, folder, names)
    if arguments.memory and distributed.world_size() == 1:
        for name in names:
            measured = alone(arguments, name, 1)[name]
            found[name] |= {key: value for key, value in measured.items() if key.endswith("_mib")}
    return found


def summarize(arguments: argparse.Namespace, folder: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rates, MFU and ratios to the first floor, from times; ratios are of times of the same turn."""
    import transformers

    plain = next(iter(configs(arguments, folder).values()))
    lengths = sample_lengths(arguments)
    flops = sum(forward_flops(transformers.AutoConfig.from_pretrained(plain.model.path), lengths).values())
    tokens = sum(prompt + completion - 1 for prompt, completion in lengths)
    peak = peaks(plain.model.dtype)
    ranks = distributed.world_size()
    rows = {}
    for name, one in found.items():
        row: dict[str, Any] = {key: value for key, value in one.items() if key.endswith("_mib")}
        for what, passes in (("update", 3), ("targets", 1)):
            seconds = spread(one[f"{what}_seconds"])
            row[f"{what}_seconds"] = seconds
            row[f"{what}_tokens_per_second"] = tokens / seconds["median"]
            row[f"{what}_mfu"] = passes * flops / seconds["median"] / (peak.flops_per_second * ranks)
            for floor in arguments.against:
                pairs = zip(one[f"{what}_seconds"], found[floor][f"{what}_seconds"], strict=True)
                if floor != name:
                    row[f"{what}_over_{floor}"] = spread([ours / bare for ours, bare in pairs])
        rows[name] = row
    return {
        **about(),
        "what": "one PPO update of policy and critic; see benchmarks/learner.py",
        "ranks": ranks,
        "shape": arguments.recipe or arguments.shape,
        "dtype": plain.model.dtype,
        "samples": len(lengths),
        "tokens": tokens,
        "lengths": f"{arguments.lengths}: {json.loads(LENGTHS.read_text())['source']}",
        "row_tokens": plain.learner.max_tokens_per_micro_batch,
        "peaks": dataclasses.asdict(peak),
        "floors": {name: FLOORS[name] for name in arguments.against},
        "contestants": rows,
    }


def print_table(result: dict[str, Any]) -> None:
    for name, row in result["contestants"].items():
        memory = f"{row['peak_above_held_mib']:7.0f} MiB" if "peak_above_held_mib" in row else ""
        ratios = "  ".join(f"{k}: {v['median']:.3f}" for k, v in row.items() if "_over_" in k)
        print(
            f"{name:26} update {row['update_seconds']['median']:8.3f} s  {row['update_tokens_per_second']:9,.0f} tok/s"
            f"  MFU {row['update_mfu']:6.1%}  {memory}  {ratios}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="30m")
    parser.add_argument("--recipe", help="take model, losses, optimizer and row size from a recipe instead")
    parser.add_argument("overrides", nargs="*", help="a.b=value, for --recipe")
    parser.add_argument("--zero", nargs="+", type=int, default=[0], choices=(0, 1, 2, 3))
    parser.add_argument("--checkpointing", nargs="+", choices=("off", "on"), default=["off"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lengths", choices=("equal", "gsm8k"), default="equal")
    parser.add_argument("--samples", type=int, help="over all ranks")
    parser.add_argument("--row-tokens", type=int, help="tokens of a packed row, and of a floor's micro-batch")
    parser.add_argument("--against", nargs="+", choices=FLOORS, default=["exact"])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of each rank; default torch's own choice")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peaks too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.overrides and not arguments.recipe:
        parser.error(f"{' '.join(arguments.overrides)}: overrides need --recipe")
    arguments.samples = arguments.samples or SAMPLES[arguments.shape]
    arguments.row_tokens = arguments.row_tokens or ROW_TOKENS[arguments.shape]
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            scratch if arguments.recipe else make_model(arguments.shape, pathlib.Path(scratch), dtype=arguments.dtype)
        )
        distributed.start()  # after each rank has its model: in a process group, transformers saves on rank 0 alone
        found = measure(arguments, folder)
        if arguments.only:
            arguments.output.write_text(json.dumps(found))
            return
        result = summarize(arguments, folder, found)
    if distributed.rank() == 0:
        print_table(result)
        if arguments.output:
            write_result(arguments.output, result)
    distributed.stop()


if __name__ == "__main__":
    main()

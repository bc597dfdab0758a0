"""Weights between processes: GB/s of a disaggregated run's updates over those of a bare gloo broadcast.

    python -m benchmarks.transfer --shape 30m --output benchmarks/results/transfer_30m.json

The run is `rlvr train` with one learning and one sampling rank; its figure is `sync/transfer_seconds` of every step but
the first: from the learner's call to the moment when vLLM has loaded and repacked the last weight. The bare broadcast
has two processes, one flat tensor, and nobody who does anything with it. Both take turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.machine import about, spread, write_result
from benchmarks.workload import SHAPES, make_model
from rlvr.log import read_metrics
from rlvr.run_directory import RunDirectory

RECIPE = "launch/recipes/quickstart.toml"


def updates(folder: pathlib.Path, run: pathlib.Path, steps: int) -> list[tuple[int, float]]:
    """(bytes, seconds) of each weight update of a short disaggregated run, the first left out."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    overrides = [
        f"run_dir={run}",
        f"model.path={folder / 'model'}",
        f"data.train={folder / 'task' / 'train.jsonl'}",
        "data.eval=[]",
        "placement.mode=disaggregated",
        "placement.learner_ranks=1",
        "placement.sampler_ranks=1",
        f"training.steps={steps + 1}",
        "rollout.prompts_per_step=2",
        "rollout.samples_per_prompt=4",
        "rollout.max_tokens=16",
        "algorithm.minibatches=1",
        "sampler.kv_cache_mib=128",
        "log.tensorboard=false",
    ]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    subprocess.run([*torchrun, "rlvr", "train", RECIPE, *overrides], check=True, env=environment)
    lines = [line for line in read_metrics(RunDirectory(run).metrics) if line["step"] > 1]
    return [(int(line["sync/bytes_sent"]), line["sync/transfer_seconds"]) for line in lines]


def broadcast(rank: int, size: int, repeats: int, folder: str) -> None:
    """One of two processes: seconds of each broadcast go to a file."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    torch.set_num_threads(1)
    flat = torch.ones(size, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        started = time.perf_counter()
        dist.broadcast(flat, src=0)
        dist.barrier()  # the last to have it ends the clock
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        pathlib.Path(folder, "seconds.json").write_text(json.dumps(seconds[1:]))
    dist.destroy_process_group()


def bare(size: int, repeats: int) -> list[float]:
    """Bytes/s of bare broadcasts."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(broadcast, args=(size, repeats, folder), nprocs=2)
        return [size / one for one in json.loads(pathlib.Path(folder, "seconds.json").read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="30m")
    parser.add_argument("--steps", type=int, default=6, help="updates measured in each run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of run and bare broadcast")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    ours: list[float] = []
    floor: list[float] = []
    size = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_task(folder, arguments.shape)
        for number in range(arguments.rounds):
            for size, seconds in updates(folder, folder / f"run_{number}", arguments.steps):
                ours.append(size / seconds)
            floor += bare(size, arguments.steps)
    result = {
        **about(),
        "shape": arguments.shape,
        "bytes": size,
        "bytes_per_second": spread(ours),
        "bare_gloo_bytes_per_second": spread(floor),
        "share_of_bare_gloo": spread(ours)["median"] / spread(floor)["median"],
    }
    print(
        f"{size / 1e6:.0f} MB: {spread(ours)['median'] / 1e9:.2f} GB/s, bare gloo broadcast "
        f"{spread(floor)['median'] / 1e9:.2f} GB/s: {result['share_of_bare_gloo']:.0%} of it"
    )
    if arguments.output:
        write_result(arguments.output, result)


def write_task(folder: pathlib.Path, shape: str) -> None:
    """Rows, tokenizer and random weights."""
    import transformers

    from sft_dpo import quickstart_task

    quickstart_task.write(folder / "task", seed=1, demonstrations=200, train=256, held_out=4, flawed_share=0.5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "task" / "model")
    tokenizer.save_pretrained(make_model(shape, folder / "model", dtype="float32"))


if __name__ == "__main__":
    main()

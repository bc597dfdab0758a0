"""Host memory of each rank while a model is read and split over the ranks (ZeRO-3), on a machine without a GPU.

    torchrun --nproc-per-node 2 -m benchmarks.loading                      # rank 0 reads
    torchrun --nproc-per-node 2 -m benchmarks.loading --read everywhere    # every rank reads, for comparison

A random float32 Llama of 480 MB is read as a reference is: `rlvr.model.load_policy`, then `FrozenEngine`. MiB above
what the process held before, sampled every 2 ms: `own` is memory that only this process can use (RssAnon), `mapped` is
the checkpoint's pages in the page cache (RssFile), which ranks of a machine share and the kernel may drop.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import threading
from typing import Any

import torch

from rlvr import distributed
from rlvr.engine import FrozenEngine
from rlvr.model import load_policy

MEBIBYTE_OF_KIB = 1024
STATUS = pathlib.Path("/proc/self/status")
FIELDS = {"own": "RssAnon", "mapped": "RssFile", "resident": "VmRSS"}
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}


class Peaks:
    """The highest of each kind of memory while it is watched, MiB above the start."""

    def __enter__(self) -> Peaks:
        self.start, self.highest = held(), held()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.end = held()

    def _watch(self) -> None:
        while not self._stopped.wait(0.002):
            self.highest = {name: max(value, self.highest[name]) for name, value in held().items()}

    def above_start(self) -> dict[str, float]:
        return {f"peak {name}": value - self.start[name] for name, value in self.highest.items()} | {
            f"kept {name}": value - self.start[name] for name, value in self.end.items()
        }


def held() -> dict[str, float]:
    """MiB of this process now, by kind."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {name: int(lines[field].split()[0]) / MEBIBYTE_OF_KIB for name, field in FIELDS.items()}


def make_model(folder: pathlib.Path, dtype: str) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE)
    transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)


def measure(folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Read the model, split it, and say what this rank needed. Collective."""
    warm_up = torch.zeros(1)
    distributed.barrier()
    with Peaks() as peaks:
        policy = load_policy(
            folder,
            dtype=arguments.dtype,
            gradient_checkpointing=False,
            logits_chunk_tokens=None,
            everywhere=arguments.read == "everywhere",
        )
        engine = FrozenEngine(policy, split=True, offload=False, dtype=arguments.dtype)
    del warm_up, engine
    return peaks.above_start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", choices=("first", "everywhere"), default="first", help="which ranks read the weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="that the model is read in")
    arguments = parser.parse_args()
    import deepspeed  # noqa: F401 - its own memory is not the model's

    distributed.start()
    folder: list[Any] = [None]
    with tempfile.TemporaryDirectory() as made:
        if distributed.rank() == 0:
            make_model(pathlib.Path(made), "float32")
            folder = [made]
        found = distributed.gather_objects(measure(distributed.gather_objects(folder[0])[0], arguments))
        if distributed.rank() == 0:
            size = sum(file.stat().st_size for file in pathlib.Path(made).glob("*.safetensors")) / 2**20
            print(f"weights on disk: {size:.0f} MiB, read by {arguments.read}, as {arguments.dtype}")
            for rank, one in enumerate(found):
                print(f"rank {rank}: " + ", ".join(f"{name} {value:.0f}" for name, value in one.items()) + " MiB")
                print(json.dumps({"rank": rank, **one}))
        distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    main()

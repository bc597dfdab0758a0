"""Ranks: who am I, and the few collectives that the engine uses by itself.

Works without torchrun too, as one rank. DeepSpeed brings its own collectives for gradients and parameters.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from rlvr.errors import ConfigError


def start(timeout_seconds: float = 1800.0) -> None:
    """Join the process group that torchrun describes in the environment, or make one of a single rank."""
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {os.environ['RANK']} has no GPU: torchrun started {local_rank + 1} or more processes on a "
                f"machine with {torch.cuda.device_count()} GPUs. Lower --nproc-per-node."
            )
        torch.cuda.set_device(local_rank)
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if os.environ["WORLD_SIZE"] == "1":  # a store of its own: no port, so that runs side by side do not meet
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Sum each number over all ranks, in float64; every rank gets the sums."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """Largest of each number over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` (plain picklable data), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait for every rank."""
    sum_over_ranks([0.0])

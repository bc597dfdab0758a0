"""Ranks: who am I, and the few collectives that the engine uses by itself.

Works without torchrun too, as one rank. DeepSpeed brings its own collectives for gradients and parameters.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from rlvr import devices, watch
from rlvr.config import Config
from rlvr.errors import ConfigError


def start(timeout_seconds: float = 1800.0, *, stall_timeout_seconds: float | None = None) -> None:
    """Join the process group that torchrun describes in the environment, or make one of a single rank.

    Args:
        timeout_seconds: torch's own, of one collective.
        stall_timeout_seconds: watch this rank from here on (`rlvr.watch`); torch's deadline is then ten times as long,
            so that the error which names ranks comes first, and ranks that work on may be waited for.
    """
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
    backend = _backend()
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if os.environ["WORLD_SIZE"] == "1":  # a store of its own: no port, so that runs side by side do not meet
        store, rank, world_size = dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    else:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    _join_group(backend, store, rank, world_size, timeout, stall_timeout_seconds)


def _join_group(
    backend: str,
    store: Any,
    rank: int,
    world_size: int,
    timeout: datetime.timedelta,
    stall_timeout_seconds: float | None,
) -> None:
    if stall_timeout_seconds is not None:
        timeout = datetime.timedelta(seconds=10 * stall_timeout_seconds)
        watched = dist.PrefixStore("watch", store)  # type: ignore[attr-defined]
        watch.start(watched, rank=rank, world_size=world_size, limit_seconds=stall_timeout_seconds)
    group = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=group, rank=rank, world_size=world_size, timeout=timeout)


def join(config: Config) -> Place | None:
    """Take this process's place in a run, and watch it; None where every rank learns and samples."""
    if config.placement.mode == "disaggregated":
        return start_apart(config)
    start(stall_timeout_seconds=config.training.stall_timeout_seconds)
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this process stands in a run whose learner and sampler have different ranks."""

    samples: bool
    replica: int
    """Which vLLM engine this process holds, or holds a part of; -1 where it learns."""
    run_rank: int
    """Among all processes of the run."""
    store: Any
    """torchrun's store, which every process of the run reaches."""
    follows: bool = False
    """Whether another rank of the same engine speaks for it."""


def start_apart(config: Config, timeout_seconds: float = 1800.0) -> Place:
    """Join the process group of this process's own kind: the learners, or the ranks of one vLLM engine.

    They never meet in a collective: torchrun's store is split by a prefix for each group, so that DeepSpeed and vLLM
    see a world of their own. Learners watch each other, and have deadlines for each sampling rank.
    Raises ConfigError when torchrun started another number of ranks than the recipe says.
    """
    learners, samplers = config.placement.learner_ranks or 0, config.placement.sampler_ranks or 0
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != learners + samplers:
        raise ConfigError(
            f"the recipe has {learners} learner_ranks and {samplers} sampler_ranks, but {started} ranks were started: "
            f"use torchrun with {learners + samplers} in all (--nproc-per-node times nodes), or change the recipe."
        )
    if config.placement.share_gpus:
        gpu = devices.shared_gpu(
            config.placement,
            run_rank=int(os.environ["RANK"]),
            ranks=started,
            ranks_here=int(os.environ["LOCAL_WORLD_SIZE"]),
            gpus=torch.cuda.device_count(),
        )
        os.environ["LOCAL_RANK"] = str(gpu)  # read by `_backend`, DeepSpeed and vLLM
    timeout = datetime.timedelta(seconds=timeout_seconds)
    common, run_rank, _ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    samples = run_rank >= learners
    size, rank, replica = learners, run_rank, -1
    if samples:
        size = config.sampler.tensor_parallel_size
        replica, rank = divmod(run_rank - learners, size)
    group = dist.PrefixStore(f"sampler {replica}" if samples else "learners", common)  # type: ignore[attr-defined]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))  # read by DeepSpeed and vLLM
    watched = None if samples else config.training.stall_timeout_seconds
    _join_group(_backend(), group, rank, size, timeout, watched)
    store = dist.PrefixStore("run", common)  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        own = str(torch.cuda.get_device_properties(device()).uuid)
        names = devices.names_of_all(store, run_rank, started, own, config.placement.start_timeout_seconds)
        devices.refuse_mixed(config.placement, names)
    return Place(samples=samples, replica=replica, run_rank=run_rank, store=store, follows=samples and rank > 0)


def _backend() -> str:
    """Take this process's device, and say what its collectives run on."""
    if torch.cuda.is_available():
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {os.environ['RANK']} has no GPU: torchrun started {local_rank + 1} or more processes on a "
                f"machine with {torch.cuda.device_count()} GPUs. Lower --nproc-per-node."
            )
        torch.cuda.set_device(local_rank)
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def stop() -> None:
    """Leave the process group."""
    watch.stop()
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

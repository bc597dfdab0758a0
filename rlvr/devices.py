"""Which GPU a process has, whether learners and samplers share theirs, and how a handle of CUDA IPC travels.

NCCL refuses two ranks on one GPU, and CUDA IPC reaches only processes of the same GPU. So the GPUs decide which of
vLLM's engines carries the weights, and a run that has some of both is refused. Nothing here needs a GPU.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.storage import TypedStorage

from rlvr.config import Placement
from rlvr.errors import ConfigError, SamplerError, WeightSyncError

HANDLE_FIELDS = (
    "tensor_cls",
    "tensor_size",
    "tensor_stride",
    "tensor_offset",
    "storage_cls",
    "dtype",
    "storage_device",
    "storage_handle",
    "storage_size_bytes",
    "storage_offset_bytes",
    "requires_grad",
    "ref_counter_handle",
    "ref_counter_offset",
    "event_handle",
    "event_sync_required",
)
"""Arguments of torch's `rebuild_cuda_tensor`, which a handle is."""


def shared_gpu(placement: Placement, *, run_rank: int, ranks: int, ranks_here: int, gpus: int) -> int:
    """The GPU of a rank where learners and samplers share: learner i has GPU i, and so has sampler i.

    Args:
        run_rank: among all `ranks` of the run, of which `ranks_here` are on this machine, which has `gpus`.

    Raises ConfigError when the machine cannot hold such a run.
    """
    learners = placement.learner_ranks or 0
    if gpus == 0:
        raise ConfigError("placement.share_gpus=true does nothing on a machine without a GPU: remove it")
    if ranks != ranks_here:
        raise ConfigError(
            f"placement.share_gpus=true needs all {ranks} ranks on one machine, where this one has {ranks_here}: CUDA "
            "IPC reaches no further. Start fewer ranks, or give learners and samplers GPUs of their own."
        )
    if learners > gpus:
        raise ConfigError(
            f"placement.learner_ranks={learners}, but this machine has {gpus} GPUs: lower it; with share_gpus=true "
            "each learner has a GPU, which the sampler of the same number shares"
        )
    return run_rank if run_rank < learners else run_rank - learners


def names_of_all(store: Any, run_rank: int, ranks: int, own: str, timeout_seconds: float) -> list[str]:
    """The name that only its GPU has, of every rank of the run, told over the run's store.

    Raises SamplerError, which names the ranks that have told nothing before the deadline.
    """
    keys = [f"gpu {rank}" for rank in range(ranks)]
    store.set(keys[run_rank], own)
    try:
        store.wait(keys, datetime.timedelta(seconds=timeout_seconds))
    except dist.DistError as error:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise SamplerError(
            f"ranks {missing} did not come within {timeout_seconds:g} s (see placement.start_timeout_seconds)"
        ) from error
    return [store.get(key).decode() for key in keys]


def refuse_mixed(placement: Placement, names: Sequence[str]) -> None:
    """Stop where weights could travel by neither of vLLM's engines.

    Args:
        names: of each rank's GPU, as only that GPU is called, in order of the ranks: learners, then samplers.

    Raises ConfigError, alike on every rank.
    """
    learners = placement.learner_ranks or 0
    holders: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        holders.setdefault(name, []).append(rank)
    if placement.share_gpus:
        alone = [rank for rank in range(learners, len(names)) if holders[names[rank]][0] >= learners]
        if alone:
            raise ConfigError(
                f"placement.share_gpus=true, but sampling ranks {alone} have GPUs that no learner has. Start torchrun "
                "without a CUDA_VISIBLE_DEVICES of its own for each rank, or set share_gpus=false."
            )
    for name, ranks in holders.items():
        groups = [[r for r in ranks if r < learners], [r for r in ranks if r >= learners]]
        if all(len(group) <= 1 for group in (groups if placement.share_gpus else [ranks])):
            continue
        remedy = (
            "" if placement.share_gpus else ", or set placement.share_gpus=true for one learner and one sampler each"
        )
        raise ConfigError(
            f"ranks {ranks} have the same GPU ({name}), which NCCL refuses: start fewer ranks on a machine{remedy}"
        )


def plain_handle(arguments: Sequence[Any]) -> list[Any]:
    """A handle of CUDA IPC (arguments of `rebuild_cuda_tensor`) as msgpack can carry it: vLLM would pickle it.

    Raises WeightSyncError for a handle that is not of a plain tensor of bytes, which is what vLLM packs weights into.
    """
    named = dict(zip(HANDLE_FIELDS, arguments, strict=True))
    found = (named["tensor_cls"], named["storage_cls"], named["dtype"])
    if found != (torch.Tensor, TypedStorage, torch.uint8):
        raise WeightSyncError(f"a CUDA IPC handle of {found}, where a torch.Tensor of torch.uint8 was expected")
    named |= {"tensor_cls": None, "storage_cls": None, "dtype": None}
    named |= {"tensor_size": list(named["tensor_size"]), "tensor_stride": list(named["tensor_stride"])}
    return list(named.values())


def handle(plain: Sequence[Any]) -> tuple[Any, ...]:
    """What `plain_handle` was made of."""
    named = dict(zip(HANDLE_FIELDS, plain, strict=True))
    named |= {"tensor_cls": torch.Tensor, "storage_cls": TypedStorage, "dtype": torch.uint8}
    named |= {"tensor_size": torch.Size(named["tensor_size"]), "tensor_stride": tuple(named["tensor_stride"])}
    return tuple(named.values())


def plain_update(info: Mapping[str, Any]) -> dict[str, Any]:
    """One part of an update as it travels: vLLM's dict, with the handle of each GPU in plain data."""
    if "ipc_handles" not in info:
        return dict(info)
    handles = {gpu: plain_handle(arguments) for gpu, arguments in info["ipc_handles"].items()}
    unset = {"ipc_handles_pickled"}  # None, which vLLM's record has beside it
    return {name: value for name, value in info.items() if name not in unset} | {"ipc_handles": handles}


def received_update(info: Mapping[str, Any]) -> dict[str, Any]:
    """What `plain_update` was made of."""
    if "ipc_handles" not in info:
        return dict(info)
    return dict(info) | {"ipc_handles": {gpu: handle(plain) for gpu, plain in info["ipc_handles"].items()}}

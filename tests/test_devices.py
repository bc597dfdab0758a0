"""Which GPU a rank has, and what carries the weights: all that can be known without one."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from torch.storage import TypedStorage

from rlvr.config import Placement
from rlvr.devices import HANDLE_FIELDS, names_of_all, plain_update, received_update, refuse_mixed, shared_gpu
from rlvr.errors import ConfigError, SamplerError, WeightSyncError

SHARED = Placement(mode="disaggregated", learner_ranks=2, sampler_ranks=2, share_gpus=True)
APART = Placement(mode="disaggregated", learner_ranks=2, sampler_ranks=1)


def test_a_sampler_has_the_gpu_of_the_learner_of_its_number() -> None:
    assert [shared_gpu(SHARED, run_rank=rank, ranks=4, ranks_here=4, gpus=2) for rank in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("ranks_here", "gpus", "fault"),
    [
        (4, 0, "does nothing on a machine without a GPU"),
        (2, 2, "needs all 4 ranks on one machine, where this one has 2"),
        (4, 1, "learner_ranks=2, but this machine has 1 GPUs"),
    ],
)
def test_a_machine_that_cannot_hold_the_run_is_refused(ranks_here: int, gpus: int, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        shared_gpu(SHARED, run_rank=0, ranks=4, ranks_here=ranks_here, gpus=gpus)


def test_gpus_that_are_all_shared_or_all_apart_can_carry_weights() -> None:
    refuse_mixed(SHARED, ["a", "b", "a", "b"])
    refuse_mixed(SHARED, ["a", "b", "b", "a"])  # a handle is looked up by its GPU
    refuse_mixed(APART, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("placement", "names", "fault"),
    [
        (SHARED, ["a", "b", "a", "c"], r"sampling ranks \[3\] have GPUs that no learner has"),
        (SHARED, ["a", "a", "a", "b"], r"sampling ranks \[3\]"),
        (SHARED, ["a", "a", "a", "a"], r"ranks \[0, 1, 2, 3\] have the same GPU \(a\), which NCCL refuses"),
        (SHARED, ["a", "b", "a", "a"], r"ranks \[0, 2, 3\] have the same GPU"),
        (APART, ["a", "b", "a"], r"ranks \[0, 2\] have the same GPU \(a\).* or set placement.share_gpus=true"),
        (APART, ["a", "a", "b"], r"ranks \[0, 1\] have the same GPU"),
    ],
)
def test_mixed_gpus_are_refused(placement: Placement, names: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        refuse_mixed(placement, names)


def test_every_rank_hears_of_every_gpu() -> None:
    store = dist.HashStore()
    heard: dict[int, list[str]] = {}
    threads = [
        threading.Thread(target=lambda r=rank: heard.__setitem__(r, names_of_all(store, r, 3, f"gpu-{r}", 10.0)))
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {rank: ["gpu-0", "gpu-1", "gpu-2"] for rank in range(3)}


def test_a_rank_that_does_not_come_is_named_at_the_deadline() -> None:
    with pytest.raises(SamplerError, match=r"ranks \[0, 2\] did not come within 0\.2 s"):
        names_of_all(dist.HashStore(), 1, 3, "gpu-1", 0.2)


HANDLE = (
    *(torch.Tensor, torch.Size([64]), (1,), 0, TypedStorage, torch.uint8, 0),
    *(b"\0handle\xff", 64, 512, False, b"counter", 3, b"event", True),
)


def test_a_handle_travels_as_plain_data_and_arrives_as_vllm_wants_it() -> None:
    info: dict[str, Any] = {
        "names": ["a"],
        "dtype_names": ["bfloat16"],
        "shapes": [[4, 8]],
        "ipc_handles": {"GPU-1": HANDLE, "GPU-2": HANDLE},
        "ipc_handles_pickled": None,
        "tensor_sizes": [64],
    }
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(plain_update(info)))
    received = received_update(travelled)
    assert received["ipc_handles"] == info["ipc_handles"]
    assert isinstance(received["ipc_handles"]["GPU-1"][1], torch.Size)
    assert {name: received[name] for name in ("names", "dtype_names", "shapes", "tensor_sizes")} == {
        name: info[name] for name in ("names", "dtype_names", "shapes", "tensor_sizes")
    }


def test_an_update_of_another_engine_travels_as_it_is() -> None:
    info = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2]]}
    assert received_update(plain_update(info)) == info


def test_the_fields_of_a_handle_are_those_of_this_torch() -> None:
    assert tuple(inspect.signature(rebuild_cuda_tensor).parameters) == HANDLE_FIELDS


def test_vllms_engine_takes_the_handle_that_travelled() -> None:
    ipc_engine = pytest.importorskip("vllm.distributed.weight_transfer.ipc_engine")
    info = {"names": ["a"], "dtype_names": ["uint8"], "shapes": [[64]], "ipc_handles": {"GPU-1": HANDLE}}
    received = received_update(plain_update(info | {"tensor_sizes": [64]}))
    update = ipc_engine.IPCWeightTransferUpdateInfo(**received)
    assert update.ipc_handles == {"GPU-1": HANDLE}


def test_a_handle_of_another_kind_of_tensor_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="float32"):
        plain_update({"ipc_handles": {"GPU-1": (*HANDLE[:5], torch.float32, *HANDLE[6:])}})

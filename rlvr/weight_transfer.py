"""Weights between processes, through vLLM's own weight-transfer API.

vLLM brings engines for NCCL and for CUDA IPC. This file adds the one that it lacks, gloo, so that the whole path runs
where there is no GPU: the learner's first rank broadcasts buckets of a few MiB, and each vLLM worker loads one bucket
while the next one travels. Both sides cut the buckets from the same list of names, dtypes and shapes, which vLLM's
protocol sends ahead; a weight that is not what was announced stops the update. Every wait has a deadline.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlvr import buckets, direct_load, distributed
from rlvr.buckets import TransferStoppedError, reason
from rlvr.channel import own_address
from rlvr.config import Placement
from rlvr.errors import WeightSyncError

GPU_BUFFER_BYTES = 2**28
"""Of vLLM's engines for GPUs: 256 MiB, which NCCL has two of on each side, and CUDA IPC one in all."""


@dataclasses.dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker needs to join. vLLM builds it from a dict of the same keys."""

    master_address: str
    master_port: int
    rank_offset: int
    """Rank of the engine's first worker in the group; the learner is rank 0."""
    world_size: int
    timeout_seconds: float
    shared_path: str
    """Memory of the learner's, for workers on its machine."""
    shared_token: str


@dataclasses.dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What one update brings, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    def metadata(self) -> list[ParamMeta]:
        rows = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


@dataclasses.dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the learner's side needs. Only its rank 0 sends."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    """The sender, and every worker of every engine."""
    timeout_seconds: float


Backend = Literal["gloo", "nccl", "ipc"]


def backend(placement: Placement) -> Backend:
    """Which of vLLM's engines carries the weights: `rlvr.devices` has seen to it that it can."""
    if placement.share_gpus:
        return "ipc"
    return "nccl" if torch.cuda.is_available() else "gloo"


class Announced:
    """A WeightSource whose weights are held against its metadata, also by vLLM's own engines."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def metadata(self) -> list[ParamMeta]:
        metadata: list[ParamMeta] = self._source.metadata()
        return metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return announced(iter(self._source), self.metadata())


def trainer(placement: Placement, *, client: Any, source: Any) -> Any:
    """vLLM's trainer-side engine on this learner rank, connected to every worker of every sampling rank."""
    register()
    joint: dict[str, Any] = {
        "master_address": own_address(),
        "world_size": 1 + (placement.sampler_ranks or 0),
        "rank": distributed.rank(),
    }
    info: TrainerInitInfo
    match backend(placement):
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
            from vllm.utils.network_utils import get_open_port

            info = NCCLTrainerInitInfo(
                master_port=get_open_port(), packed=True, packed_buffer_size_bytes=GPU_BUFFER_BYTES, **joint
            )
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(
                rank=distributed.rank(), packed=True, packed_buffer_size_bytes=ipc_buffer_bytes(source.metadata())
            )
        case "gloo":
            info = GlooTrainerInitInfo(timeout_seconds=placement.timeout_seconds, **joint)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def ipc_buffer_bytes(metadata: Sequence[ParamMeta]) -> int:
    """Memory that learner and sampler share: a weight must fit into it whole."""
    sizes = [math.prod(meta.shape) * meta.dtype.itemsize for meta in metadata]
    return max(GPU_BUFFER_BYTES, *sizes)


def register() -> None:
    """Make `gloo` known to vLLM's factories, in the processes of both sides."""
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
        WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerWeightTransferEngine)


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The vLLM worker's side. vLLM makes and drives it."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: Any = None
    _memory: torch.Tensor | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the learner's group. Blocks until all are there, or the deadline: half of the learner's, which then
        knows of each worker that waits for another one, and names the one that says nothing."""
        timeout = datetime.timedelta(seconds=init_info.timeout_seconds / 2)
        store = dist.TCPStore(init_info.master_address, init_info.master_port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        rank = init_info.rank_offset + self.parallel_config.rank
        self._group = _join(store, rank, init_info.world_size, timeout)
        memory = buckets.map_shared(init_info.shared_path, init_info.shared_token)
        self._memory = memory if buckets.all_can(self._group, can=memory is not None) else None

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._loader = getattr(self.model, direct_load.ATTRIBUTE)
        self._is_direct = self._loader.is_ready
        if self._is_direct:
            self._loader.start()
        else:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            self.shutdown()  # the learner must not wait for this rank to take the rest
            raise

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Load each bucket while the next ones arrive. Raises WeightSyncError when one does not come."""
        carrier, metadata = _carrier(self._group, self._memory), update_info.metadata()
        if self._is_direct:
            with direct_load.memory_kept():
                for name, weight in buckets.receive(carrier, metadata, self._loader.memory_of):
                    self._loader.put(name, weight)
        else:
            # vLLM holds on to weights until their layer is complete, when a shared bucket has been filled again
            keep = torch.clone if isinstance(carrier, buckets.Shared) else lambda weight: weight
            kept = ((name, keep(weight)) for name, weight in buckets.receive(carrier, metadata))
            for pair in self._loader.watch(kept):
                self.model.load_weights([pair])

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if self._is_direct:
            self._loader.finish()
        else:
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group, self._memory = None, None


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The learner's side: `send_weights` runs on every learner rank, since gathering shards takes them all."""

    init_info_cls = GlooTrainerInitInfo
    _group: Any = None
    _memory: torch.Tensor | None = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: Any = None
    ) -> GlooTrainerWeightTransferEngine:
        """Meet the workers. Raises WeightSyncError when they do not come within the deadline."""
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if not engine.is_sender:
            return engine
        timeout = datetime.timedelta(seconds=init_info.timeout_seconds)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            init_info.master_address, 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        shared = buckets.SharedMemory()
        info = GlooInitInfo(
            master_address=init_info.master_address,
            master_port=store.port,
            rank_offset=1,
            world_size=init_info.world_size,
            timeout_seconds=init_info.timeout_seconds,
            shared_path=shared.path,
            shared_token=shared.token,
        )
        with ThreadPoolExecutor(max_workers=1) as executor:  # both sides meet inside the call
            joined = executor.submit(client.init_weight_transfer_engine, dataclasses.asdict(info))
            try:
                engine._group = _join(store, 0, init_info.world_size, timeout)
                engine._memory = shared.memory if buckets.all_can(engine._group, can=True) else None
            except WeightSyncError:
                joined.result()  # raises what names who did not come
                raise
            finally:
                shared.close()
            joined.result()
        return engine

    def send_weights(self) -> None:
        """Send one update: start, the buckets, finish. Collective over the learner's ranks.

        Raises WeightSyncError on the sender when a worker does not take its part in time, or the weights are not
        those that were announced.
        """
        assert self.source is not None
        metadata = self.source.metadata()
        if not self.is_sender:
            for _ in self.source:  # takes part in the gathering
                pass
            return
        info = GlooUpdateInfo(
            names=[meta.name for meta in metadata],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
            shapes=[list(meta.shape) for meta in metadata],
        )
        self.client.start_weight_update()
        executor = ThreadPoolExecutor(max_workers=1)
        try:
            received = executor.submit(self.client.update_weights, dataclasses.asdict(info))
            try:
                buckets.send(_carrier(self._group, self._memory), announced(self.source, metadata), metadata)
            except TransferStoppedError:
                received.result()  # gloo knows no names: this raises what names the one that is missing
                raise
            received.result()
        except BaseException:
            self.shutdown()  # the workers must not wait for the rest
            raise
        finally:
            executor.shutdown(wait=False)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._group, self._memory = None, None


def announced(
    weights: Iterator[tuple[str, torch.Tensor]], metadata: Sequence[ParamMeta]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, each held against what the workers were told to expect. Raises WeightSyncError."""
    count = 0
    for count, (name, weight) in enumerate(weights, start=1):
        expected = metadata[count - 1] if count <= len(metadata) else None
        if expected != ParamMeta(name, weight.dtype, tuple(weight.shape)):
            raise WeightSyncError(
                f"weight {count} of this update is {name} {weight.dtype} {tuple(weight.shape)}, where {expected} was "
                "announced to the sampler: the update would load as something else, so it was stopped half-way."
            )
        yield name, weight
    if count < len(metadata):
        raise WeightSyncError(f"this update ends after {count} of the {len(metadata)} weights that were announced")


def _carrier(group: Any, memory: torch.Tensor | None) -> buckets.Carrier:
    return buckets.Broadcast(group) if memory is None else buckets.Shared(group, memory)


def _join(store: Any, rank: int, world_size: int, timeout: datetime.timedelta) -> Any:
    try:
        store = dist.PrefixStore("weights", store)  # type: ignore[attr-defined]
        return dist.ProcessGroupGloo(store, rank, world_size, timeout)
    except (RuntimeError, dist.DistError) as error:
        raise WeightSyncError(
            f"learner and samplers ({world_size} processes) did not meet for weight transfer within "
            f"{timeout.total_seconds():g} s ({reason(error)})"
        ) from error

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
from collections import deque
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

from rlvr import distributed
from rlvr.channel import own_address
from rlvr.config import Placement
from rlvr.errors import WeightSyncError

BUCKET_BYTES = 2**24
"""16 MiB overlaps receiving and loading best on a CPU."""
GPU_BUFFER_BYTES = 2**28
"""Of vLLM's engines for GPUs: 256 MiB, which NCCL has two of on each side, and CUDA IPC one in all."""
IN_FLIGHT = 2
"""Buckets on their way at the same time."""


class TransferStoppedError(WeightSyncError):
    """The other side did not take its part in an update before the deadline, or is gone."""


Piece = tuple[int, int, int]
"""Which tensor, its first byte, and the byte after its last."""


@dataclasses.dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker needs to join. vLLM builds it from a dict of the same keys."""

    master_address: str
    master_port: int
    rank_offset: int
    """Rank of the engine's first worker in the group; the learner is rank 0."""
    world_size: int
    bucket_bytes: int
    timeout_seconds: float


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
    bucket_bytes: int = BUCKET_BYTES


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


def cut(metadata: Sequence[ParamMeta], bucket_bytes: int) -> Iterator[list[Piece]]:
    """Buckets of an update: small tensors together and whole, large ones alone and in parts.

    >>> shapes = {"a": (torch.float32, (2,)), "b": (torch.int8, (3,)), "c": (torch.int8, (40,))}
    >>> list(cut([ParamMeta(name, *shape) for name, shape in shapes.items()], 16))
    [[(0, 0, 8), (1, 0, 3)], [(2, 0, 16)], [(2, 16, 32)], [(2, 32, 40)]]
    """
    together: list[Piece] = []
    filled = 0
    for index, meta in enumerate(metadata):
        size = math.prod(meta.shape) * meta.dtype.itemsize
        if together and filled + size > bucket_bytes:
            yield together
            together, filled = [], 0
        if size <= bucket_bytes:
            together.append((index, 0, size))
            filled += size
        else:
            yield from ([(index, at, min(at + bucket_bytes, size))] for at in range(0, size, bucket_bytes))
    if together:
        yield together


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The vLLM worker's side. vLLM makes and drives it."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the learner's group. Blocks until all are there, or the deadline."""
        timeout = datetime.timedelta(seconds=init_info.timeout_seconds)
        store = dist.TCPStore(init_info.master_address, init_info.master_port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        rank = init_info.rank_offset + self.parallel_config.rank
        self._group = _join(store, rank, init_info.world_size, timeout)
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Load each bucket while the next ones arrive. Raises WeightSyncError when one does not come."""
        for name, weight in receive(self._group, update_info.metadata(), self._bucket_bytes):
            self.model.load_weights([(name, weight)])

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = None


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The learner's side: `send_weights` runs on every learner rank, since gathering shards takes them all."""

    init_info_cls = GlooTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: Any = None
    ) -> GlooTrainerWeightTransferEngine:
        """Meet the workers. Raises WeightSyncError when they do not come within the deadline."""
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        engine._bucket_bytes = init_info.bucket_bytes
        if not engine.is_sender:
            return engine
        timeout = datetime.timedelta(seconds=init_info.timeout_seconds)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            init_info.master_address, 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        info = GlooInitInfo(
            master_address=init_info.master_address,
            master_port=store.port,
            rank_offset=1,
            world_size=init_info.world_size,
            bucket_bytes=init_info.bucket_bytes,
            timeout_seconds=init_info.timeout_seconds,
        )
        with ThreadPoolExecutor(max_workers=1) as executor:  # both sides meet inside the call
            joined = executor.submit(client.init_weight_transfer_engine, dataclasses.asdict(info))
            try:
                engine._group = _join(store, 0, init_info.world_size, timeout)
            except WeightSyncError:
                joined.result()  # raises what names who did not come
                raise
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
                send(self._group, announced(self.source, metadata), metadata, self._bucket_bytes)
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
        self._group = None


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


def send(group: Any, weights: Any, metadata: Sequence[ParamMeta], bucket_bytes: int) -> None:
    """Broadcast weights from rank 0, holding no more of them than the buckets on their way.

    Raises TransferStoppedError when a bucket is not taken before the group's deadline, or a worker is gone.
    """
    ahead = iter(weights)
    held: dict[int, torch.Tensor] = {}
    newest = -1
    works: deque[tuple[torch.Tensor, Any]] = deque()
    for bucket in cut(metadata, bucket_bytes):
        for index, _, _ in bucket:
            while newest < index:
                newest += 1
                _, weight = next(ahead)
                held[newest] = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts = [held[index][first:last] for index, first, last in bucket]
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        works.append((flat, _broadcast(group, flat)))
        for index, _, last in bucket:
            if last == held[index].numel():
                del held[index]
        if len(works) > IN_FLIGHT:
            _finish(works.popleft()[1], "a bucket was not taken")
    for _ in ahead:  # lets the source see its end, where it checks that all was taken
        pass
    for _, work in works:
        _finish(work, "a bucket was not taken")


def receive(group: Any, metadata: Sequence[ParamMeta], bucket_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights as they arrive, with the next buckets already asked for.

    Raises TransferStoppedError when one does not arrive before the group's deadline, or the sender is gone.
    """
    large: dict[int, torch.Tensor] = {}
    works: deque[tuple[list[Piece], torch.Tensor, Any]] = deque()
    buckets = cut(metadata, bucket_bytes)
    count = 0

    def ask() -> None:
        bucket = next(buckets, None)
        if bucket is None:
            return
        index, first, last = bucket[0]
        size = math.prod(metadata[index].shape) * metadata[index].dtype.itemsize
        if last - first < size:
            target = large.setdefault(index, torch.empty(size, dtype=torch.uint8))[first:last]
        else:
            target = torch.empty(sum(last - first for _, first, last in bucket), dtype=torch.uint8)
        works.append((bucket, target, _broadcast(group, target)))

    for _ in range(IN_FLIGHT):
        ask()
    while works:
        bucket, flat, work = works.popleft()
        count += 1
        _finish(work, f"bucket {count} did not arrive")
        ask()
        at = 0
        for index, first, last in bucket:
            meta = metadata[index]
            if index in large:
                if last == large[index].numel():
                    yield meta.name, large.pop(index).view(meta.dtype).view(meta.shape)
                continue
            part = flat[at : at + last - first]
            at += last - first
            aligned = part.storage_offset() % meta.dtype.itemsize == 0
            yield meta.name, (part if aligned else part.clone()).view(meta.dtype).view(meta.shape)


def _join(store: Any, rank: int, world_size: int, timeout: datetime.timedelta) -> Any:
    try:
        store = dist.PrefixStore("weights", store)  # type: ignore[attr-defined]
        return dist.ProcessGroupGloo(store, rank, world_size, timeout)
    except (RuntimeError, dist.DistError) as error:
        raise WeightSyncError(
            f"learner and samplers ({world_size} processes) did not meet for weight transfer within "
            f"{timeout.total_seconds():g} s ({_reason(error)})"
        ) from error


def _finish(work: Any, fault: str) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise TransferStoppedError(f"the weight update stopped half-way: {fault} ({_reason(error)})") from error


def _broadcast(group: Any, flat: torch.Tensor) -> Any:
    options = dist.BroadcastOptions()  # type: ignore[attr-defined]
    options.rootRank = 0
    options.rootTensor = 0
    return group.broadcast([flat], options)


def _reason(error: Exception) -> str:
    """gloo's message without its source position."""
    return str(error).strip().splitlines()[0].rpartition("] ")[2][:200]

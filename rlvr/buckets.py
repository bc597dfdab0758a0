"""Weights in buckets of a few MiB, from the learner's first rank to every vLLM worker; both sides cut them alike.

Two carriers. *Broadcast*: gloo, whatever machine a worker is on; buckets travel while one is loaded. *Shared*: a few
buckets of memory that all processes map, where they are on one machine. The sender copies a weight there and the
workers load it from there; gloo carries a byte that says so, with its deadline and its notice of a peer that is gone.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import ParamMeta

from rlvr.errors import WeightSyncError

BROADCAST_BYTES = 2**24
"""Bytes of a bucket: 16 MiB overlaps receiving and loading best on a CPU."""
SHARED_BYTES = 2**22
"""All shared buckets together fit in the last cache of a CPU core, so that a weight is loaded from there."""
IN_FLIGHT = 2
"""Broadcasts on their way at the same time."""
SHARED_BUCKETS = 4
TOKEN_BYTES = 16


class TransferStoppedError(WeightSyncError):
    """The other side did not take its part in an update before the deadline, or is gone."""


Piece = tuple[int, int, int]
"""Which tensor, its first byte, and the byte after its last."""


def cut(metadata: Sequence[ParamMeta], bucket_bytes: int) -> Iterator[list[Piece]]:
    """Buckets of an update: small tensors together and whole, large ones alone and in parts.

    >>> shapes = {"a": (torch.float32, (2,)), "b": (torch.int8, (3,)), "c": (torch.int8, (40,))}
    >>> list(cut([ParamMeta(name, *shape) for name, shape in shapes.items()], 16))
    [[(0, 0, 8), (1, 0, 3)], [(2, 0, 16)], [(2, 16, 32)], [(2, 32, 40)]]
    """
    together: list[Piece] = []
    filled = 0
    for index, meta in enumerate(metadata):
        size = size_of(meta)
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


def size_of(meta: ParamMeta) -> int:
    """Bytes."""
    return meta.dtype.itemsize * torch.Size(meta.shape).numel()


class Broadcast:
    """One update's buckets over gloo, on either side."""

    bucket_bytes = BROADCAST_BYTES

    def __init__(self, group: Any) -> None:
        self._group = group
        self._works: deque[tuple[torch.Tensor, Any]] = deque()
        self._count = 0

    def send(self, parts: list[torch.Tensor]) -> None:
        """Send one bucket: uint8 tensors, one after another."""
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._works.append((flat, broadcast(self._group, flat)))
        if len(self._works) > IN_FLIGHT:
            finish(self._works.popleft()[1], "a bucket was not taken")

    def flush(self) -> None:
        """Return when the other side has taken everything, or heard that this one has."""
        while self._works:
            finish(self._works.popleft()[1], "a bucket was not taken")

    def ask(self, size: int, memory: torch.Tensor | None) -> None:
        """Receive the next bucket into `memory`, or where this carrier likes."""
        flat = torch.empty(size, dtype=torch.uint8) if memory is None else memory
        self._works.append((flat, broadcast(self._group, flat)))

    def take(self) -> torch.Tensor:
        """The oldest bucket that was asked for: uint8."""
        flat, work = self._works.popleft()
        self._count += 1
        finish(work, f"bucket {self._count} did not arrive")
        return flat

    def release(self) -> None:
        """The bucket taken last is of no more use."""


class Shared:
    """One update's buckets through memory that both sides map."""

    bucket_bytes = SHARED_BYTES

    def __init__(self, group: Any, memory: torch.Tensor) -> None:
        self._group = group
        self.memory = memory
        self._slots = memory.split(self.bucket_bytes)
        self._ready: deque[tuple[int, torch.Tensor | None, Any]] = deque()
        self._released: deque[list[Any]] = deque()
        self._count = 0

    def send(self, parts: list[torch.Tensor]) -> None:
        if len(self._released) == SHARED_BUCKETS:
            self._wait_for_release()
        slot = self._slots[self._count % SHARED_BUCKETS]
        torch.cat(parts, out=slot[: sum(part.numel() for part in parts)])
        self._count += 1
        work = broadcast(self._group, torch.zeros(1, dtype=torch.uint8))
        heard = [self._exchange(self._group.recv, rank) for rank in range(1, self._group.size())]
        self._released.append([work, *heard])

    def _wait_for_release(self) -> None:
        for work in self._released.popleft():
            finish(work, "a bucket was not taken")

    def flush(self) -> None:
        while self._released:
            self._wait_for_release()

    def ask(self, size: int, memory: torch.Tensor | None) -> None:
        self._ready.append((size, memory, broadcast(self._group, torch.zeros(1, dtype=torch.uint8))))

    def take(self) -> torch.Tensor:
        size, memory, work = self._ready.popleft()
        slot = self._slots[self._count % SHARED_BUCKETS][:size]
        self._count += 1
        finish(work, f"bucket {self._count} did not arrive")
        return slot if memory is None else memory.copy_(slot)

    def release(self) -> None:
        self._released.append([self._exchange(self._group.send, 0)])

    def _exchange(self, operation: Any, rank: int) -> Any:
        """Start to say or hear that bucket `_count` is of no more use. gloo may know at once that the peer is gone."""
        try:
            return operation([torch.zeros(1)], rank, self._count)
        except RuntimeError as error:
            fault = f"the other side went after bucket {self._count}"
            raise TransferStoppedError(f"the weight update stopped half-way: {fault} ({reason(error)})") from error


Carrier = Broadcast | Shared


class SharedMemory:
    """Memory of this process that others of this machine and user can map: `path` and `token` say which."""

    def __init__(self) -> None:
        size = SHARED_BYTES * SHARED_BUCKETS
        self._file = os.memfd_create("rlvr-weights")
        os.ftruncate(self._file, size + TOKEN_BYTES)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        token = secrets.token_bytes(TOKEN_BYTES)
        self.token = token.hex()
        mapped = mmap.mmap(self._file, size + TOKEN_BYTES)
        mapped[size:] = token
        self.memory = torch.frombuffer(mapped, dtype=torch.uint8, count=size)

    def close(self) -> None:
        """Nobody else can map it from now on; who has goes on."""
        os.close(self._file)


def map_shared(path: str, token: str) -> torch.Tensor | None:
    """The sender's memory, or None where this process cannot have it: on another machine, or of another user."""
    size = SHARED_BYTES * SHARED_BUCKETS
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode) or about.st_size != size + TOKEN_BYTES:
            return None  # another machine's file of this name
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        mapped = mmap.mmap(file, size + TOKEN_BYTES)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
    if mapped[size:] != bytes.fromhex(token):
        return None
    return torch.frombuffer(mapped, dtype=torch.uint8, count=size)


def send(carrier: Carrier, weights: Any, metadata: Sequence[ParamMeta]) -> None:
    """Send weights from rank 0, holding no more of them than the buckets on their way.

    Raises TransferStoppedError when a bucket is not taken before the group's deadline, or a worker is gone.
    """
    ahead = iter(weights)
    held: dict[int, torch.Tensor] = {}
    newest = -1
    for bucket in cut(metadata, carrier.bucket_bytes):
        for index, _, _ in bucket:
            while newest < index:
                newest += 1
                _, weight = next(ahead)
                held[newest] = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        carrier.send([held[index][first:last] for index, first, last in bucket])
        for index, _, last in bucket:
            if last == held[index].numel():
                del held[index]
    for _ in ahead:  # lets the source see its end, where it checks that all was taken
        pass
    carrier.flush()


def receive(
    carrier: Carrier, metadata: Sequence[ParamMeta], memory_of: Callable[[str], torch.Tensor | None] = lambda name: None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights as they arrive, with the next buckets already asked for. Each is good until the next is asked for.

    Args:
        memory_of: where a weight that is larger than a bucket is put together; None where that does not matter.

    Raises TransferStoppedError when one does not arrive before the group's deadline, or the sender is gone.
    """
    large: dict[int, torch.Tensor] = {}
    asked: deque[list[Piece]] = deque()
    buckets = cut(metadata, carrier.bucket_bytes)

    def ask() -> None:
        bucket = next(buckets, None)
        if bucket is None:
            return
        index, first, last = bucket[0]
        memory = None
        if last - first < size_of(metadata[index]):
            if index not in large:
                large[index] = _bytes_for(metadata[index], memory_of)
            memory = large[index][first:last]
        asked.append(bucket)
        carrier.ask(sum(last - first for _, first, last in bucket), memory)

    for _ in range(IN_FLIGHT):
        ask()
    while asked:
        bucket = asked.popleft()
        flat = carrier.take()
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
        carrier.release()
    carrier.flush()


def _bytes_for(meta: ParamMeta, memory_of: Callable[[str], torch.Tensor | None]) -> torch.Tensor:
    memory = memory_of(meta.name)
    if memory is not None and (memory.dtype, tuple(memory.shape)) == (meta.dtype, tuple(meta.shape)):
        return memory.view(-1).view(torch.uint8)
    return torch.empty(size_of(meta), dtype=torch.uint8)


def broadcast(group: Any, flat: torch.Tensor) -> Any:
    """Start to send (rank 0) or receive bytes."""
    options = dist.BroadcastOptions()  # type: ignore[attr-defined]
    options.rootRank = 0
    options.rootTensor = 0
    return group.broadcast([flat], options)


def all_can(group: Any, *, can: bool) -> bool:
    """Whether every process of the group can. Collective."""
    votes = torch.tensor([int(can)])
    options = dist.AllreduceOptions()  # type: ignore[attr-defined]
    options.reduceOp = dist.ReduceOp.MIN  # type: ignore[assignment]
    finish(group.allreduce([votes], options), "the processes did not agree on how the weights travel")
    return bool(votes.item())


def finish(work: Any, fault: str) -> None:
    """Wait for one operation. Raises TransferStoppedError."""
    try:
        work.wait()
    except RuntimeError as error:
        raise TransferStoppedError(f"the weight update stopped half-way: {fault} ({reason(error)})") from error


def reason(error: Exception) -> str:
    """gloo's message without its source position."""
    return str(error).strip().splitlines()[0].rpartition("] ")[2][:200]

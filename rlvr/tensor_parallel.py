"""Consecutive ranks that hold one vLLM engine together, each a part of every weight.

vLLM's `external_launcher` runs a whole engine, scheduler included, on every rank of the group. They stay in step as
long as each is given the same requests in the same order; here is what they need to agree on that.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from rlvr import distributed
from rlvr.errors import ConfigError, SamplerError


class Group:
    """The ranks of this rank's engine."""

    def __init__(self, size: int, timeout_seconds: float | None = None) -> None:
        """Collective over all ranks. Raises ConfigError when groups of `size` do not come out even."""
        ranks = distributed.world_size()
        if ranks % size:
            raise ConfigError(
                f"sampler.tensor_parallel_size={size} does not divide the {ranks} ranks that sample: start a multiple "
                "of it (torchrun's --nproc-per-node times nodes), or change it"
            )
        self.size = size
        self.rank = distributed.rank() % size
        """Of this process, within the group."""
        timeout = None if timeout_seconds is None else datetime.timedelta(seconds=timeout_seconds)
        self._handle: Any = None
        for first in range(0, ranks if size > 1 else 0, size):
            handle = dist.new_group(list(range(first, first + size)), timeout=timeout, backend="gloo")
            if first <= distributed.rank() < first + size:
                self._handle = handle

    def gather(self, value: Any) -> list[Any]:
        """Every member's `value` (plain picklable data), in rank order, on every member."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._handle)
        return gathered

    def refuse_divergence(self, sampled: Iterable[tuple[int, tuple[int, ...]]]) -> None:
        """Raise SamplerError on every member when not all sampled the same. Collective.

        Each scheduler decides for itself; had one decided otherwise, tokens would come from mixed-up activations.

        Args:
            sampled: number and tokens of each request, in any order.
        """
        if self.size == 1:
            return
        if problem := self.divergence(hashlib.sha256(repr(sorted(sampled)).encode()).hexdigest()):
            raise SamplerError(problem)

    def divergence(self, digest: str) -> str | None:
        """What is wrong when not every member's digest of what it sampled is the same; else None. Collective."""
        digests = self.gather(digest)
        if len(set(digests)) == 1:
            return None
        return (
            f"the {self.size} ranks of one engine sampled different tokens for the same requests "
            f"({', '.join(one[:8] for one in digests)}): their schedulers fell out of step. This is a bug."
        )


class Trace:
    """A running digest of what one rank's engine has sampled, for `Group.divergence`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def fold(self, ended: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Add the name and tokens of each request that ended in one step, in any order."""
        if listed := sorted(ended):
            self._hash.update(repr(listed).encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


def add_up_over_gloo() -> None:
    """Have vLLM's ranks on CPUs exchange activations over gloo, which notices a rank that ends.

    With AVX-512, vLLM 0.32 would take shared memory, which waits without a deadline, and which it names by the ranks of
    the group alone: two engines, or two runs, on one machine would write into each other's. It does not where the
    ranks have different names for it.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"{socket.gethostname()}-{os.getpid()}")

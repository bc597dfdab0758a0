"""Digests of whole tensors, the proof of a weight update where every engine is one CPU process: at the speed of memory.

Row checksums (`rlvr.checksums`) can be taken on a GPU and add up over an engine's ranks; on a CPU they cost seven times
as much. A digest is 128-bit XXH3 (github.com/Cyan4973/xxHash) of a tensor's bytes in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import xxhash

from rlvr.checksums import LoadedChecksums, row_checksums
from rlvr.config import Config
from rlvr.direct_load import Arrived
from rlvr.tensor_parallel import Group


def proof_by_digest(config: Config) -> bool:
    """Whether learner and sampler compare digests; else row checksums."""
    return config.sampler.tensor_parallel_size == 1 and not torch.cuda.is_available()


def checksum_of(config: Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the learner notes of each of its tensors."""
    return tensor_digest if proof_by_digest(config) else row_checksums


def tensor_digest(weight: torch.Tensor) -> torch.Tensor:
    """128 bits of a tensor's bytes: int64 [2], on the CPU. Any changed, swapped or missing element changes them.

    >>> a = tensor_digest(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> torch.equal(a, tensor_digest(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    True
    >>> torch.equal(a, tensor_digest(torch.tensor([[2.0, 1.0], [3.0, 4.0]])))
    False
    """
    flat = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return torch.frombuffer(bytearray(xxhash.xxh3_128_digest(flat.numpy().data)), dtype=torch.int64)


class LoadedDigests(LoadedChecksums):
    """Digests of the learner's tensors as vLLM holds them after a load, each of its own rows of vLLM's parameter."""

    def __init__(self, model: torch.nn.Module, group: Group, arrived: Arrived) -> None:
        super().__init__(model, group)
        self._arrived = arrived

    def _record(self, layer: torch.nn.Module, name: str, parameter: torch.Tensor) -> None:
        found = self._digests(name, parameter)
        if found is not None:
            self._packed[name] = found

    def _digests(self, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        """One row for each of the learner's tensors; None when one of them did not come."""
        parts = self.learner_names(name)
        if any(part not in self._arrived for part in parts):
            return None
        rows = [self._arrived[part][1][0] for part in parts]
        if sum(rows) > parameter.shape[0]:
            return None
        split = parameter[: sum(rows)].split(rows)  # vLLM pads the vocabulary; the padding is never read
        return torch.stack([tensor_digest(part) for part in split])

    def _wanted(self, layer: Any, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(parts)

    def _loaded(self, name: str, layer: Any, parameter: torch.Tensor) -> torch.Tensor | None:
        if name in self._packed:
            return self._packed[name]
        return self._digests(name, parameter) if parameter.numel() else None

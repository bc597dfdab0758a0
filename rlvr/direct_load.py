"""Weights straight into the layers of a vLLM engine on a CPU: what vLLM's reload gives, without its detours.

vLLM's reload takes a layer apart, runs every weight loader twice (once to count elements), allocates the layer again,
packs the copy for oneDNN and copies what is left back. Here a weight that is multiplied by is packed from where it
arrives, projections that vLLM stacks are put side by side in a buffer first, and all else is written in place.

Which rows of which parameter a tensor of the learner becomes is not assumed. The first update goes through vLLM's
reload, and its proof shows row by row that each parameter is the learner's tensors one after another; only then is
that taken for the updates to come, whose checksums and canaries are proved all the same. Layers that this file does not
know, and whatever does not fit, stay with vLLM's reload (`DirectLoader.reason`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from rlvr.errors import WeightSyncError

Arrived = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of weights by the learner's names."""

ATTRIBUTE = "direct_loader"
"""Of vLLM's model: vLLM makes its weight-transfer engines itself and gives them only the model."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Block:
    """One parameter of vLLM's."""

    leaf: str
    parameter: nn.Parameter
    """Empty where vLLM keeps a packed copy only."""
    shape: tuple[int, ...]
    """Of the learner's tensors, one after another; vLLM may add rows."""
    dtype: torch.dtype
    buffer: torch.Tensor | None = None
    """Where the weight is put together before it is packed."""

    @property
    def is_packed(self) -> bool:
        return self.parameter.numel() == 0


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Layer:
    """One module of vLLM's with parameters of its own."""

    module: Any
    blocks: list[Block]
    names: frozenset[str]
    """Of the learner's tensors that it is made of."""
    missing: set[str]
    """Those that have not arrived in this update."""
    packs: bool
    """Whether vLLM works on its weights after loading them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one tensor of the learner goes."""

    layer: Layer
    block: Block
    first_row: int


class DirectLoader:
    """Loads updates into one vLLM model, once a first one has been loaded by vLLM and proved.

    Args:
        model: vLLM's module.
        learner_names: the learner's tensors that one parameter of vLLM's is made of, in the order of its rows.
        arrived: where to note what the weights of an update are.
    """

    def __init__(self, model: nn.Module, learner_names: Callable[[str], list[str]], arrived: Arrived) -> None:
        self._model = model
        self._learner_names = learner_names
        self._arrived = arrived
        self._seen: Arrived = {}
        self._targets: dict[str, Target] = {}
        self._layers: list[Layer] = []
        self._free: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}
        """Buffers to use again, by dtype and elements: fresh memory costs more than the copy into it."""
        self.reason: str | None = None
        """Why updates go through vLLM's reload, once that is known."""
        setattr(model, ATTRIBUTE, self)

    @property
    def is_ready(self) -> bool:
        """Whether the next update can be loaded here."""
        return bool(self._targets)

    def watch(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass the weights of an update on to vLLM's reload, and note what they are."""
        self._arrived.clear()
        for name, weight in weights:
            self._arrived[name] = (weight.dtype, tuple(weight.shape))
            yield name, weight

    def take_over(self) -> bool:
        """The watched update has been proved: load the next ones here, or say in `reason` why not.

        Returns whether the reason is new.
        """
        if self.is_ready or self.reason is not None:
            return False
        self._seen = dict(self._arrived)
        self.reason = why_not(self._model) or self._plan()
        if self.reason is not None:
            self._targets, self._layers = {}, []
        return self.reason is not None

    def _plan(self) -> str | None:
        """Find every tensor's place. Returns what does not fit, if anything."""
        self._targets, self._layers = {}, []
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        reads_only = lookup_tables(self._model)
        for module in self._model.modules():
            own = [(leaf, p) for leaf, p in module.named_parameters(recurse=False) if id(p) in names]
            if not own:  # none at all, or another module's, which has been here
                continue
            packs = getattr(module, "quant_method", None) is not None and module not in reads_only
            layer = Layer(module=module, blocks=[], names=frozenset(), missing=set(), packs=packs)
            for leaf, parameter in own:
                problem = self._place(layer, names.pop(id(parameter)), leaf, parameter)
                if problem is not None:
                    return problem
            layer.names = frozenset(name for name, target in self._targets.items() if target.layer is layer)
            self._layers.append(layer)
        for module in reads_only:  # without the packed copy, which nobody reads; were it called, this is right too
            module.cpu_linear = nn.functional.linear
        return None

    def _place(self, layer: Layer, name: str, leaf: str, parameter: nn.Parameter) -> str | None:
        parts = self._learner_names(name)
        found = [self._seen[part] for part in parts if part in self._seen]
        if len(found) < len(parts) or len({(dtype, shape[1:]) for dtype, shape in found}) > 1 or () in found[0]:
            return f"{name} is not made of whole rows of {', '.join(parts)}"
        dtype, first = found[0]
        rows = [shape[0] for _, shape in found]
        block = Block(leaf=leaf, parameter=parameter, shape=(sum(rows), *first[1:]), dtype=dtype)
        fits = parameter.dtype == dtype and parameter.shape[1:] == first[1:] and parameter.shape[0] >= sum(rows)
        if not ((block.is_packed and layer.packs) or fits):
            return f"{name} is {parameter.dtype} {tuple(parameter.shape)}, the learner's are {dtype} {block.shape}"
        layer.blocks.append(block)
        row = 0
        for part, count in zip(parts, rows, strict=True):
            self._targets[part] = Target(layer=layer, block=block, first_row=row)
            row += count
        return None

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load one update. Raises WeightSyncError for a weight that is not what the first update brought."""
        self.start()
        with memory_kept():
            for name, weight in weights:
                self.put(name, weight)
        self.finish()

    def start(self) -> None:
        """Begin an update, also after one that stopped half-way."""
        self._arrived.clear()
        for layer in self._layers:
            layer.missing = set(layer.names)
            for block in layer.blocks:
                block.buffer = None

    def put(self, name: str, weight: torch.Tensor) -> None:
        """Take one weight; nothing of it is kept when this returns."""
        if self._seen.get(name) != (weight.dtype, tuple(weight.shape)):
            raise WeightSyncError(
                f"weight {name} is {weight.dtype} {tuple(weight.shape)}, where the first update brought "
                f"{self._seen.get(name, 'nothing of that name')}: the update was stopped half-way."
            )
        self._arrived[name] = self._seen[name]
        if name not in self._targets:
            return  # vLLM has no use for it
        target = self._targets[name]
        layer, block = target.layer, target.block
        if name not in layer.missing:
            raise WeightSyncError(f"weight {name} came twice in one update, which was stopped half-way.")
        layer.missing.remove(name)
        if block.is_packed and len(layer.names) == 1 and weight.is_contiguous():
            self._pack(layer, weight)  # from where it is
            return
        rows = self._rows_of(target, weight.shape[0])
        if rows.data_ptr() != weight.data_ptr():  # else it was put together here
            rows.copy_(weight)
        if not layer.missing and layer.packs:
            self._pack(layer)

    def memory_of(self, name: str) -> torch.Tensor | None:
        """Where one weight of this update may be put together before `put`; None where it has no place."""
        target = self._targets.get(name)
        return None if target is None else self._rows_of(target, self._seen[name][1][0])

    def _rows_of(self, target: Target, count: int) -> torch.Tensor:
        block = target.block
        if not block.is_packed:
            return block.parameter.data[target.first_row : target.first_row + count]
        if block.buffer is None:
            free = self._free.get((block.dtype, math.prod(block.shape)))
            memory = free.pop() if free else torch.empty(math.prod(block.shape), dtype=block.dtype)
            block.buffer = memory.view(block.shape)
        return block.buffer[target.first_row : target.first_row + count]

    def _pack(self, layer: Layer, weight: torch.Tensor | None = None) -> None:
        """What vLLM does to a layer that it has loaded, here from `weight` or from what was put together."""
        module = layer.module
        module.cpu_linear = None  # the old packed copy goes first: the new one takes its memory
        packed = [block for block in layer.blocks if block.is_packed]
        for block in packed:
            source: Any = block.buffer if weight is None else weight
            setattr(module, block.leaf, nn.Parameter(source, requires_grad=False))
        module.quant_method.process_weights_after_loading(module)
        for block in packed:
            setattr(module, block.leaf, block.parameter)
            if block.buffer is not None:
                self._free.setdefault((block.dtype, block.buffer.numel()), []).append(block.buffer.view(-1))
            block.buffer = None

    def finish(self) -> None:
        """End an update. A layer that is incomplete keeps what it had, and its proof fails."""
        for layer in self._layers:
            for block in layer.blocks:
                block.buffer = None
        self._free.clear()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of glibc's mallopt(3)."""
GLIBC_VALUES = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}
"""A default, and the two that it comes to by itself in a process that frees large blocks."""


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, what is freed stays with this process for the next packed copy, where the C library is glibc.

    Blocks over 32 MiB would go back to the system and come again as fresh pages, one fault each: six times the price
    of the copy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(
        name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
    ):  # somebody's choice
        yield
        return
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in GLIBC_VALUES.items():
            mallopt(option, value)


def why_not(model: nn.Module) -> str | None:
    """What there is in a vLLM model that this file does not know; None when it knows everything."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return "the engine is not on a CPU"
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if current_platform.is_zen_cpu():
        return "zentorch's layers keep the tensors that they are given"
    if get_tensor_model_parallel_world_size() > 1:
        return "the engine's weights are split over ranks"
    if hasattr(model, "process_weights_after_loading"):
        return f"{type(model).__name__} works on its weights after loading"
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None and type(method) not in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
            return f"{name} is loaded by {type(method).__name__}"
        if is_deferred_attention_layer(module) and type(module) is not Attention:
            return f"{name} is a {type(module).__name__}, which works on its weights after loading"
    return None


def lookup_tables(model: Any) -> set[Any]:
    """Embeddings that are only looked up in: the model has a head of its own. vLLM packs them like all others."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    if not isinstance(getattr(model, "lm_head", None), ParallelLMHead):
        return set()
    return {module for module in model.modules() if type(module) is VocabParallelEmbedding}

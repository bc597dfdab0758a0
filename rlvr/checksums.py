"""Checksums of what vLLM holds after a weight update, to hold against the learner's."""

from __future__ import annotations

import time
from typing import Any

import torch

from rlvr.tensor_parallel import Group

ROWS_AT_ONCE_ELEMENTS = 2**22


def row_checksums(weight: torch.Tensor, *, first_column: int = 0) -> torch.Tensor:
    """One 64-bit checksum for each row of a tensor's bits; position within the row counts.

    Rows are summed with odd multipliers modulo 2^64, so a changed, swapped or missing element changes its row, and the
    checksums of a weight that is split by columns are sums of its parts'.

    Args:
        weight: any floating dtype, [rows, ...] or [n] (taken as n rows).
        first_column: of `weight` in the whole one that it is a part of.
    Returns:
        int64 [rows], on the CPU.
    """
    bits = weight.detach().contiguous().view({2: torch.int16, 4: torch.int32}[weight.element_size()])
    bits = bits.reshape(bits.shape[0], -1)
    columns = torch.arange(first_column, first_column + bits.shape[1], dtype=torch.int64, device=bits.device)
    multipliers = (columns * 0x5851F42D4C957F2D + 0x14057B7EF767814F) | 1
    step = max(ROWS_AT_ONCE_ELEMENTS // max(bits.shape[1], 1), 1)
    parts = [(part.to(torch.int64) * multipliers).sum(dim=1) for part in bits.split(step)]
    return torch.cat(parts).cpu()


class LoadedChecksums:
    """Row checksums of what vLLM holds after a load.

    On the CPU vLLM replaces a linear layer's weight by a packed copy as soon as it is loaded, so those are read in
    the moment before (`process_weights_after_loading`); everything else is read from the model afterwards.
    """

    def __init__(self, model: torch.nn.Module, group: Group) -> None:
        self._model = model
        self._group = group
        self._packed: dict[str, torch.Tensor] = {}
        self._parts: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._names = {id(layer): name for name, layer in model.named_modules()}
        once = {name for name, _ in model.named_parameters()}
        self._shared = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
        """Second names of one tensor, which is read under its first."""
        self.seconds = 0.0
        """Spent while weights were being loaded, since `clear`."""
        methods = {id(m): m for layer in model.modules() if (m := getattr(layer, "quant_method", None)) is not None}
        for method in methods.values():
            if hasattr(method, "process_weights_after_loading"):
                self._watch(method)

    def _watch(self, method: Any) -> None:
        original = method.process_weights_after_loading

        def record_then_process(layer: torch.nn.Module) -> None:
            begun = time.perf_counter()
            for leaf, parameter in layer.named_parameters(recurse=False):
                name = f"{self._names[id(layer)]}.{leaf}"
                if name not in self._shared:
                    self._record(layer, name, parameter)
            self.seconds += time.perf_counter() - begun
            original(layer)

        method.process_weights_after_loading = record_then_process

    def clear(self) -> None:
        """Forget the last load, so that a tensor that does not come again is missed."""
        self._packed.clear()
        self.seconds = 0.0

    def compare(self, expected: dict[str, torch.Tensor]) -> str | None:
        """What differs between the tensors loaded and the learner's (row checksums by Hugging Face name), or None.

        Collective over the engine's ranks.
        """
        differing, unproved, columns = [], [], self._sums_of_columns()
        for name, parameter in self._model.named_parameters():
            parts = self.learner_names(name)
            if any(part not in expected for part in parts):
                unproved.append(name)
                continue
            layer = self._model.get_submodule(name.rpartition(".")[0])
            wanted = self._wanted(layer, [expected[part] for part in parts])
            loaded = columns[name] if name in columns else self._loaded(name, layer, parameter)
            # vLLM pads the vocabulary; the padding is never read
            if loaded is None or len(loaded) < len(wanted) or not torch.equal(loaded[: len(wanted)], wanted):
                differing.append(name)
        if unproved:
            return f"{len(unproved)} tensors of vLLM's have no counterpart in the learner, e.g. {unproved[0]}"
        if differing:
            return f"{len(differing)} tensors differ from the learner's, e.g. {', '.join(differing[:3])}"
        return None

    def _record(self, layer: torch.nn.Module, name: str, parameter: torch.Tensor) -> None:
        self._packed[name] = _of_part(layer, name, parameter)

    def _wanted(self, layer: torch.nn.Module, parts: list[torch.Tensor]) -> torch.Tensor:
        """What this rank's part of one of vLLM's parameters should have, by the learner's tensors that make it up."""
        return rows_of_part(layer, torch.cat(parts))

    def _loaded(self, name: str, layer: torch.nn.Module, parameter: torch.Tensor) -> torch.Tensor | None:
        """Row checksums of this rank's part; None of what did not come."""
        if name in self._packed:
            return self._packed[name]
        return _of_part(layer, name, parameter) if parameter.numel() else None

    def _sums_of_columns(self) -> dict[str, torch.Tensor | None]:
        """By name, row checksums of the weights that are split by columns over the engine's ranks, added up."""
        own = {
            name: self._loaded(name, layer, parameter)
            for name, parameter in self._model.named_parameters()
            if _is_split_by_columns(layer := self._model.get_submodule(name.rpartition(".")[0]), name)
        }
        members = self._group.gather(own)
        return {name: _sum([member[name] for member in members]) for name in own}

    def learner_names(self, name: str) -> list[str]:
        """The learner's tensors that vLLM stacks in one of its own: `...qkv_proj.weight` -> three projections."""
        *parents, layer, leaf = name.split(".")
        return [".".join((*parents, part, leaf)) for part in self._parts.get(layer, [layer])]


def rows_of_part(layer: Any, whole: torch.Tensor) -> torch.Tensor:
    """The rows that this rank's part of one of vLLM's layers holds, in its order.

    Args:
        whole: one number for each row of the whole parameter, [rows].
    """
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if getattr(layer, "tp_size", 1) == 1:
        return whole
    if isinstance(layer, VocabParallelEmbedding):
        return whole[layer.shard_indices.org_vocab_start_index : layer.shard_indices.org_vocab_end_index]
    if isinstance(layer, QKVParallelLinear):  # a head of keys and values may be on several ranks
        copies = layer.num_kv_head_replicas
        heads = layer.total_num_heads, layer.total_num_kv_heads, layer.total_num_kv_heads
        sizes = [n * size for n, size in zip(heads, (layer.head_size, layer.head_size, layer.v_head_size), strict=True)]
        splits = [(layer.tp_rank, layer.tp_size), *[(layer.tp_rank // copies, layer.tp_size // copies)] * 2]
    elif isinstance(layer, ColumnParallelLinear):
        sizes = layer.output_sizes if isinstance(layer, MergedColumnParallelLinear) else [layer.output_size]
        splits = [(layer.tp_rank, layer.tp_size)] * len(sizes)
    else:
        return whole
    parts = [part.chunk(ranks)[rank] for part, (rank, ranks) in zip(whole.split(sizes), splits, strict=True)]
    return torch.cat(parts)


def _is_split_by_columns(layer: Any, name: str) -> bool:
    """Whether each rank of vLLM's engine holds some columns of a layer's parameter."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    return isinstance(layer, RowParallelLinear) and layer.tp_size > 1 and name.endswith("weight")


def _of_part(layer: Any, name: str, parameter: torch.Tensor) -> torch.Tensor:
    first = layer.tp_rank * layer.input_size_per_partition if _is_split_by_columns(layer, name) else 0
    return row_checksums(parameter, first_column=first)


def _sum(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Modulo 2^64; None when a rank's part did not come."""
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(dim=0) if len(there) == len(parts) else None

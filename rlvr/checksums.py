"""Checksums of what vLLM holds after a weight update, to hold against the learner's."""

from __future__ import annotations

from typing import Any

import torch

ROWS_AT_ONCE_ELEMENTS = 2**22


def row_checksums(weight: torch.Tensor) -> torch.Tensor:
    """One 64-bit checksum for each row of a tensor's bits; position within the row counts.

    Rows are summed with odd multipliers modulo 2^64, so a changed, swapped or missing element changes its row.

    Args:
        weight: any floating dtype, [rows, ...] or [n] (taken as n rows).
    Returns:
        int64 [rows], on the CPU.
    """
    bits = weight.detach().contiguous().view({2: torch.int16, 4: torch.int32}[weight.element_size()])
    bits = bits.reshape(bits.shape[0], -1)
    columns = torch.arange(bits.shape[1], dtype=torch.int64, device=bits.device)
    multipliers = (columns * 0x5851F42D4C957F2D + 0x14057B7EF767814F) | 1
    step = max(ROWS_AT_ONCE_ELEMENTS // max(bits.shape[1], 1), 1)
    parts = [(part.to(torch.int64) * multipliers).sum(dim=1) for part in bits.split(step)]
    return torch.cat(parts).cpu()


class LoadedChecksums:
    """Row checksums of what vLLM holds after a load.

    On the CPU vLLM replaces a linear layer's weight by a packed copy as soon as it is loaded, so those are read in
    the moment before (`process_weights_after_loading`); everything else is read from the model afterwards.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._packed: dict[str, torch.Tensor] = {}
        self._parts: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._names = {id(layer): name for name, layer in model.named_modules()}
        methods = {id(m): m for layer in model.modules() if (m := getattr(layer, "quant_method", None)) is not None}
        for method in methods.values():
            if hasattr(method, "process_weights_after_loading"):
                self._watch(method)

    def _watch(self, method: Any) -> None:
        original = method.process_weights_after_loading

        def record_then_process(layer: torch.nn.Module) -> None:
            for name, parameter in layer.named_parameters(recurse=False):
                self._packed[f"{self._names[id(layer)]}.{name}"] = row_checksums(parameter)
            original(layer)

        method.process_weights_after_loading = record_then_process

    def clear(self) -> None:
        """Forget the last load, so that a tensor that does not come again is missed."""
        self._packed.clear()

    def compare(self, expected: dict[str, torch.Tensor]) -> str | None:
        """What differs between the tensors loaded and the learner's (row checksums by Hugging Face name), or None."""
        differing, unproved = [], []
        for name, parameter in self._model.named_parameters():
            parts = self._learner_names(name)
            if any(part not in expected for part in parts):
                unproved.append(name)
                continue
            wanted = torch.cat([expected[part] for part in parts])
            loaded = self._packed.get(name)
            if loaded is None:
                loaded = row_checksums(parameter) if parameter.numel() else None
            # vLLM pads the vocabulary; the padding is never read
            if loaded is None or len(loaded) < len(wanted) or not torch.equal(loaded[: len(wanted)], wanted):
                differing.append(name)
        if unproved:
            return f"{len(unproved)} tensors of vLLM's have no counterpart in the learner, e.g. {unproved[0]}"
        if differing:
            return f"{len(differing)} tensors differ from the learner's, e.g. {', '.join(differing[:3])}"
        return None

    def _learner_names(self, name: str) -> list[str]:
        """`...qkv_proj.weight` -> the three projections that vLLM stacks in it."""
        *parents, layer, leaf = name.split(".")
        return [".".join((*parents, part, leaf)) for part in self._parts.get(layer, [layer])]

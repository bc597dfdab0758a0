"""LoRA through peft: only adapters are trained; the sampler and the saved model get merged weights.

Adapters (arXiv 2106.09685) sit inside the transformer, whose own weights stay as they were loaded: with the adapters
off it is the reference, without a second copy. There is no dropout, for the reason given in `rlvr.model`.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlvr.config import Lora
from rlvr.errors import ConfigError

ADAPTER = "default"
VALUE_HEAD = "score"
"""New in a critic that starts from the policy, and a single row: trained as it is."""


def add_adapters(model: Any, lora: Lora, *, seed: int) -> None:
    """Put adapters into `model.transformer`, in place, and freeze all else but a value head.

    A starts random and B at 0, so the model answers as before. Raises ConfigError when `target_modules` names no layer.
    """
    import peft

    transformer: PreTrainedModel = model.transformer
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        exclude_modules=[VALUE_HEAD] if hasattr(transformer, VALUE_HEAD) else None,
    )
    try:
        with torch.random.fork_rng():  # peft draws A from the global generator
            torch.manual_seed(seed)
            model.adapters = (peft.get_peft_model(transformer, settings, autocast_adapter_dtype=False),)
    except ValueError as error:
        layers = sorted(
            {name.rpartition(".")[2] for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
        )
        raise ConfigError(
            f"model.lora.target_modules={lora.target_modules!r} does not fit this model ({error}). "
            f"Its linear layers: {', '.join(layers)}."
        ) from error
    if hasattr(transformer, VALUE_HEAD):
        getattr(transformer, VALUE_HEAD).requires_grad_(requires_grad=True)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Layers that have an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def whole_weights(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], Any]]:
    """The weights of the model that the adapters make of it, one after another.

    Yields:
        name without adapters in it; the parameters it is made of; and the adapted layer to merge it with, or None.
    """
    layers = adapted_layers(model)
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner.removesuffix(".base_layer"))
        if layer is not None and leaf == "weight":
            adapters = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
            yield name.replace(".base_layer.", "."), [parameter, *adapters], layer
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), [parameter], None


def merged(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """W + (alpha / rank) B A, summed in float32 and rounded once to the dtype of W."""
    return (weight.detach().float() + layer.get_delta_weight(ADAPTER).detach().float()).to(weight.dtype)


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was loaded, for forward passes without gradient."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapters(wrapper: Any, folder: pathlib.Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write an adapter folder that `peft.PeftModel.from_pretrained` reads; `weights` by the transformer's names."""
    wrapper.save_pretrained(folder, state_dict={f"base_model.model.{name}": weight for name, weight in weights.items()})

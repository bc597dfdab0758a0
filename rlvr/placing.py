"""A model on its ranks: whole on each, or read by rank 0 alone and split over all, weight by weight (ZeRO-3).

Where weights are split, one rank's copy is enough: DeepSpeed sends each weight from rank 0, and every rank keeps its
part. The others make the model without weights: a parameter is then one number, seen at its whole shape.

`transformers` can make a model split from the start (`HfDeepSpeedConfig`), but every rank opens the whole checkpoint,
each weight is sent twice, buffers are rounded to the model's dtype, and a checkpoint that lacks a weight is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlvr import distributed, watch
from rlvr.errors import ConfigError


def import_deepspeed() -> Any:
    """DeepSpeed, before whose first use something is switched off."""
    import deepspeed

    if not torch.cuda.is_available():
        # gloo does the reductions; DeepSpeed's shared-memory ones would be compiled here, with g++ and ninja
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def without_weights(auto_class: Any, config: Any, **options: Any) -> PreTrainedModel:
    """The model of `config` with its buffers and no weights: next to no memory, until `place` makes room for them.

    Args:
        auto_class: of `transformers`; `options` are for its `from_config`.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class.from_config(config, **options)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            seen = nn.Parameter(torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape))
            seen.requires_grad_(parameter.requires_grad)
            seen.awaited = True  # type: ignore[attr-defined]
            setattr(module, name, seen)
    model.tie_weights()
    return model


def is_awaited(parameter: nn.Parameter) -> bool:
    """Whether this rank has the parameter's shape alone."""
    return getattr(parameter, "awaited", False)


def place(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Bring the model to this rank's device: whole, or for ZeRO-3 this rank's part, one weight at a time. Collective.

    DeepSpeed itself would bring the whole model to the device first, where a large one does not fit.

    Args:
        config: DeepSpeed's.
    Raises ConfigError when ranks have made different models of one checkpoint.
    """
    if config["zero_optimization"]["stage"] < 3:
        if any(is_awaited(parameter) for parameter in model.parameters()):
            raise ValueError("a model without weights can only be split over ranks, from rank 0's (ZeRO-3)")
        return model.to(distributed.device())
    deepspeed = import_deepspeed()
    _refuse_other_shapes(model)
    _register_borrowed(model)
    deepspeed.zero.Init(module=_OneByOne(model), config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(distributed.device())
    return model


class _OneByOne(nn.Module):
    """The model, for DeepSpeed to go through; room for a weight is made when its turn comes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        for parameter in self.model.parameters(recurse):
            watch.moved()
            if is_awaited(parameter):
                parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=distributed.device())
                parameter.awaited = False  # type: ignore[attr-defined]
            yield parameter


def _refuse_other_shapes(model: nn.Module) -> None:
    """Weights are sent by their order alone, so it must be the same on every rank; buffers are not sent. Collective."""
    mine = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    mine += [(f"{name} {digest(b)}", tuple(b.shape), str(b.dtype)) for name, b in model.named_buffers()]
    first, *others = distributed.gather_objects(mine)
    for rank, other in enumerate(others, start=1):
        differing = sorted(set(first) ^ set(other)) or [
            pair for pair in zip(first, other, strict=True) if len(set(pair)) > 1
        ]
        if differing:
            raise ConfigError(
                f"rank 0 reads another model than rank {rank} makes from the same config.json; the first difference is "
                f"{differing[0]}. Its tie_word_embeddings may not be what the weights are: correct it, or set "
                "learner.zero_stage below 3, where every rank reads the weights."
            )


def digest(buffer: torch.Tensor) -> str:
    """Of its bytes."""
    flat = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]


def _register_borrowed(model: nn.Module) -> None:
    """ZeRO-3 gathers a module's weights when it is called; these belong to another module, and are needed too."""
    deepspeed = import_deepspeed()
    for module in model.modules():
        for parameter in getattr(module, "borrowed", ()):
            if parameter is not None:
                deepspeed.zero.register_external_parameter(module, parameter)

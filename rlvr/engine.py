"""One model under DeepSpeed: forward, backward, step, and its weights by name."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rlvr import distributed, lora, watch
from rlvr.config import Optimizer
from rlvr.errors import NonFiniteError
from rlvr.placing import import_deepspeed, place

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


class Engine:
    """A DeepSpeed engine whose gradient accumulation ends where the caller says `step`.

    DeepSpeed averages gradients over ranks; `backward` multiplies by the number of ranks, so that a loss that was
    divided by a *global* denominator gives the gradient of the global sum.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        zero_stage: int,
        dtype: str,
        total_updates: int,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        self.name = name
        self._schedule = optimizer
        self._total_updates = max(total_updates, 1)
        self._zero_stage = zero_stage
        self._gradient_norm = math.nan
        self.updates = 0
        """Optimizer steps taken."""
        trained = [p for p in model.parameters() if p.requires_grad]
        self._broken = torch.zeros((), dtype=torch.bool, device=distributed.device())
        for parameter in trained:
            parameter.register_hook(self._watch)
        adamw = torch.optim.AdamW(
            trained,
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            # on a CPU each tensor is its own kernel launch, so one pass over it counts, offloaded state's too;
            # DeepSpeed's own CPU Adam would be compiled at start-up
            fused=True,
        )
        config = _deepspeed_config(
            optimizer, zero_stage, dtype, offload_optimizer=offload_optimizer, offload_parameters=offload_parameters
        )
        self._adamw_hook = adamw.register_step_pre_hook(lambda *_: self._check_gradients(adamw))
        self.engine, *_ = deepspeed.initialize(
            model=place(model, config),
            optimizer=adamw,
            config=config,
            dist_init_required=False,
        )
        self.engine.train()  # `from_pretrained` leaves a model in eval mode, where it checkpoints no gradients
        self._all_trained = len(trained) == sum(1 for _ in model.parameters())

    def __call__(self, *args: Any, **options: Any) -> Any:
        watch.moved()
        return self.engine(*args, **options)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Forward only."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.engine.train()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of a loss that was divided by a denominator over all ranks."""
        self.engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def step(self) -> float:
        """Reduce the gradients over ranks, clip them, and update the weights.

        Returns the global gradient norm before clipping. Raises NonFiniteError on every rank, before any weight has
        changed, when the gradient is not finite.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.engine.step()
        if self._zero_stage > 0:
            self._gradient_norm = float(self.engine.get_global_grad_norm())
            if self.engine.optimizer.overflow:  # DeepSpeed skips such an update on every rank, without a word
                raise self._non_finite()
        self.updates += 1
        return self._gradient_norm

    def gradient_is_finite(self) -> bool:
        """Whether every gradient of this rank has been finite so far. It can be asked before `step`."""
        return not self._broken.item()

    def _watch(self, gradient: torch.Tensor) -> None:
        # a sum is finite only where every addend is, and costs a thirtieth of `isfinite` on a CPU
        self._broken.logical_or_(~torch.isfinite(gradient.sum()))

    def learning_rate(self) -> float:
        """Rate of the coming update."""
        return learning_rate_at(self.updates, self._total_updates, self._schedule)

    def _check_gradients(self, adamw: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in adamw.param_groups for p in group["params"] if p.grad is not None]
        if self._zero_stage == 0:
            # reduced already, hence alike on every rank; DeepSpeed keeps no norm here, so clip by ourselves
            norm = torch.nn.utils.get_total_norm(gradients)
            self._gradient_norm = norm.item()
            finite = math.isfinite(self._gradient_norm)
            if finite:
                parameters = [p for group in adamw.param_groups for p in group["params"]]
                torch.nn.utils.clip_grads_with_norm_(parameters, self._schedule.max_gradient_norm, norm)
        else:
            # each rank holds a slice; DeepSpeed has scaled it by the global norm
            broken = any(not torch.isfinite(g.sum()).item() for g in gradients)
            finite = distributed.max_over_ranks([float(broken)])[0] == 0.0
        if not finite:
            raise self._non_finite()

    def _non_finite(self) -> NonFiniteError:
        return NonFiniteError(
            f"the {self.name}'s gradient is not finite at update {self.updates + 1}; its weights were not changed. "
            "Lower optimizer.learning_rate, or look for inf/NaN in the last samples and rewards."
        )

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight of the transformer by its Hugging Face name: adapters merged, gathered where ZeRO-3 has split
        it. Collective."""
        return named_weights(self.engine.module, gather=self._zero_stage == 3)

    def adapter_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of LoRA's adapters by their own names; nothing without adapters. Collective."""
        for name, parameter in self.engine.module.named_parameters():
            if ".lora_" in name:
                with whole([parameter], gather=self._zero_stage == 3):
                    weight = parameter.detach().clone()
                yield name.removeprefix(PREFIX), weight

    def named_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of what `named_weights` yields, in its order, without gathering."""
        return [
            (name.removeprefix(PREFIX), parts[0].dtype, tuple(getattr(parts[0], "ds_shape", parts[0].shape)))
            for name, parts, _ in lora.whole_weights(self.engine.module)
        ]

    def save(self, folder: str) -> None:
        """Weights and optimizer state, each rank its part. Collective."""
        watch.moved()
        self.engine.save_checkpoint(
            folder,
            tag=self.name,
            client_state={"updates": self.updates},
            exclude_frozen_parameters=not self._all_trained,  # under adapters: they are in model.path
        )

    def load(self, folder: str) -> None:
        """Restore what `save` wrote with the same number of ranks. Collective."""
        watch.moved()
        _, state = self.engine.load_checkpoint(folder, tag=self.name, load_module_strict=self._all_trained)
        self.updates = state["updates"]


class FrozenEngine:
    """A model that is only ever read: the reference.

    Whole on every rank, or split over the ranks as ZeRO-3 does, with each part on the device or in CPU memory.
    """

    def __init__(self, model: nn.Module, *, split: bool, offload: bool, dtype: str) -> None:
        self._split = split or offload
        stage = 3 if self._split else 0
        config = _deepspeed_config(Optimizer(), stage, dtype, offload_optimizer=False, offload_parameters=offload)
        self.module = place(model.requires_grad_(requires_grad=False).eval(), config)
        self._forward: Any = self.module
        if self._split:
            self._forward, *_ = import_deepspeed().initialize(
                model=self.module, config=config, dist_init_required=False
            )

    def __call__(self, *args: Any) -> Any:
        watch.moved()
        with torch.no_grad():
            return self._forward(*args)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Engine.named_weights`. Collective."""
        return named_weights(self.module, gather=self._split)

    def free(self) -> None:
        """Give the memory of the weights back: the model is gone. DeepSpeed's hooks would keep a split one alive."""
        for parameter in self.module.parameters():
            for held in (parameter, getattr(parameter, "ds_tensor", parameter)):
                held.data = held.data.new_empty(0)


PREFIX = "transformer."
"""Where `rlvr.model` has the Hugging Face model."""


def named_weights(model: nn.Module, *, gather: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of `model` by their Hugging Face names. Collective where they are split."""
    for name, parameters, adapted in lora.whole_weights(model):
        with whole(parameters, gather=gather):
            weight = parameters[0].detach()
            if adapted is not None:
                weight = lora.merged(weight, adapted)
            elif gather:  # what is gathered is freed again
                weight = weight.clone()
        watch.moved()
        yield name.removeprefix(PREFIX), weight


@contextlib.contextmanager
def whole(parameters: list[nn.Parameter], *, gather: bool) -> Iterator[None]:
    """Within it, parameters that ZeRO-3 has split are whole on every rank. Collective."""
    if not gather:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def learning_rate_at(update: int, total_updates: int, optimizer: Optimizer) -> float:
    """Learning rate of optimizer step `update` (0-based): linear warm-up, then constant, linear or cosine to 0.

    >>> rate = Optimizer(learning_rate=1.0, schedule="linear", warmup_ratio=0.2)
    >>> [round(learning_rate_at(u, 10, rate), 3) for u in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    warmup = round(optimizer.warmup_ratio * total_updates)
    if update < warmup:
        return optimizer.learning_rate * (update + 1) / warmup
    progress = min((update - warmup) / max(total_updates - warmup, 1), 1.0)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return optimizer.learning_rate * shape[optimizer.schedule]


def _deepspeed_config(
    optimizer: Optimizer, zero_stage: int, dtype: str, *, offload_optimizer: bool, offload_parameters: bool
) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": zero_stage}
    to_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload_optimizer:
        zero["offload_optimizer"] = to_cpu
    if offload_parameters:
        zero["offload_param"] = to_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed; rows are packed by tokens and scaled by us
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # `step` ends the accumulation
        "zero_optimization": zero,
        "gradient_clipping": optimizer.max_gradient_norm if zero_stage > 0 else 0.0,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW, on the CPU too
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }

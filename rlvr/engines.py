"""The engines of a run, made of its recipe: policy, critic, and the reference that is only read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlvr.config import Config, Learner, Model, Optimizer
from rlvr.engine import Engine, FrozenEngine
from rlvr.lora import adapters_off, add_adapters
from rlvr.model import PolicyModel, load_critic, load_policy
from rlvr.seeds import derive


class Unadapted:
    """The reference of a policy with adapters: the policy without them."""

    def __init__(self, policy: Engine) -> None:
        self._policy = policy

    def __call__(self, *args: Any) -> Any:
        with self._policy.inference(), adapters_off(self._policy.engine.module):
            return self._policy(*args)


Reference = FrozenEngine | Unadapted


def make_policy(config: Config, *, total_updates: int) -> Engine:
    return make_engine(
        "policy",
        _load_policy(config, everywhere=config.learner.zero_stage < 3),
        config.optimizer,
        model=config.model,
        learner=config.learner,
        seed=config.seed,
        total_updates=total_updates,
    )


def make_critic(config: Config, *, total_updates: int) -> Engine:
    critic = load_critic(
        config.critic.init,
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        generator=torch.Generator().manual_seed(config.seed),
        everywhere=config.learner.zero_stage < 3,
    )
    return make_engine(
        "critic",
        critic,
        config.critic.optimizer,
        model=config.model,
        learner=config.learner,
        seed=config.seed,
        total_updates=total_updates,
    )


def make_reference(config: Config, policy: Engine) -> Reference | None:
    """What the KL term is measured from: the start policy; None without such a term."""
    if config.algorithm.kl_coefficient == 0:
        return None
    if config.model.lora is not None:
        return Unadapted(policy)
    split = config.learner.zero_stage == 3
    return FrozenEngine(
        _load_policy(config, everywhere=not (split or config.learner.offload_reference)),
        split=split,
        offload=config.learner.offload_reference,
        dtype=config.model.dtype,
    )


def _load_policy(config: Config, *, everywhere: bool) -> PolicyModel:
    return load_policy(
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logits_chunk_tokens=config.learner.logits_chunk_tokens,
        everywhere=everywhere,
    )


def make_engine(
    name: str,
    module: nn.Module,
    optimizer: Optimizer,
    *,
    model: Model,
    learner: Learner,
    seed: int,
    total_updates: int,
) -> Engine:
    """Put adapters into `module` where the recipe has them, and DeepSpeed around it. Collective.

    Raises ConfigError when the adapters' `target_modules` names no layer.
    """
    if model.lora is not None:
        add_adapters(module, model.lora, seed=derive(seed, "lora", name))
    return Engine(
        name,
        module,
        optimizer,
        zero_stage=learner.zero_stage,
        dtype=model.dtype,
        total_updates=total_updates,
        offload_optimizer=learner.offload_optimizer,
        offload_parameters=learner.offload_parameters,
    )

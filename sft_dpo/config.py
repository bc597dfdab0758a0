"""Recipes of the stages before RLVR. Tülu 3's values as defaults (arXiv 2411.15124v5, Table 11, 8B column)."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from rlvr.config import Learner, Model, Optimizer, Positive, Section, Sources, precision_problems, refuse


class SftOptimizer(Optimizer):
    learning_rate: Annotated[float, Field(ge=0.0)] = 5e-6
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.03
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0


class SftData(Section):
    train: Sources
    """Rows with a column `messages`; other columns are not read."""
    max_tokens: Positive = 4096
    """Longer conversations are dropped, counted and reported, never cut."""


class SftTraining(Section):
    epochs: Positive = 2
    conversations_per_step: Positive = 128
    """Batch of one optimizer step, over all ranks."""


class Sft(Section):
    """Supervised fine-tuning."""

    stage: Literal["sft"] = "sft"
    output: str
    """Folder for the model; must not exist yet."""
    seed: int = 123
    model: Model
    data: SftData
    optimizer: SftOptimizer = SftOptimizer()
    learner: Learner = Learner()
    training: SftTraining = SftTraining()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Sft:
        refuse(precision_problems(self.model, self.learner))
        return self

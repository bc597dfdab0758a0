"""Recipes of the stages before RLVR, with Tülu 3's values as defaults (arXiv 2411.15124v5, 8B columns).

All stages that train have the sections of `Stage`; a stage adds what its loss needs. No torch here.
"""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import pydantic
from pydantic import Field

import rlvr.config
from rlvr.config import (
    Config,
    Data,
    Evaluation,
    Learner,
    Model,
    NonNegative,
    Optimizer,
    Positive,
    Rollout,
    RowOptions,
    Sampler,
    Seconds,
    Section,
    Sources,
    Training,
    Verification,
    refuse,
)
from rlvr.contradictions import engine_problems, row_problems


class StageTraining(Section):
    epochs: Positive
    examples_per_step: Positive
    """Batch of one optimizer step, over all ranks: conversations, pairs or completions."""
    evaluate_every: Positive | None = None
    """Evaluate on `data.eval` every so many steps, beside before the first and after the last."""
    checkpoint_every: Positive | None = None
    keep_checkpoints: Positive = 2
    stall_timeout_seconds: Seconds = 1800.0
    """Longest time without any progress before the run stops and names the ranks that are behind."""


class StageLog(Section):
    tensorboard: bool = False


class StageData(RowOptions):
    eval: Sources = Field(default_factory=list)
    """Held-out examples; the loss on them is logged under the file's name."""
    max_tokens: Positive
    """Longer examples are dropped, counted and reported, never cut."""


class Stage(Section):
    """What every stage that trains has."""

    run_dir: str
    """Holds the run; the model is in its folder `model`."""
    seed: int = 123
    model: Model
    data: StageData
    optimizer: Optimizer
    learner: Learner = Learner()
    training: StageTraining
    log: StageLog = StageLog()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Stage:
        refuse(self.problems())
        return self

    def problems(self) -> list[str]:
        """Options that exclude each other, or that would do nothing in this run."""
        problems = [*engine_problems(self.model, self.learner), *row_problems(self.data)]
        if self.learner.offload_reference:
            problems.append("learner.offload_reference=true does nothing in this stage: remove it")
        names = [pathlib.PurePath(source.path).stem for source in self.data.eval]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"data.eval has more than one set called {', '.join(twice)}: rename the files")
        if self.training.evaluate_every is not None and not self.data.eval:
            problems.append(
                f"training.evaluate_every={self.training.evaluate_every} does nothing without data.eval: remove one"
            )
        return problems


class SftOptimizer(Optimizer):
    learning_rate: NonNegative = 5e-6
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.03
    weight_decay: NonNegative = 0.0


class SftData(StageData):
    """Rows with a column `messages`; other columns are not read."""

    max_tokens: Positive = 4096
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are imitated."""


class SftTraining(StageTraining):
    epochs: Positive = 2
    examples_per_step: Positive = 128


class Sft(Stage):
    """Supervised fine-tuning (Table 11)."""

    stage: Literal["sft"] = "sft"
    data: SftData
    optimizer: SftOptimizer = SftOptimizer()
    training: SftTraining = SftTraining()


class PairData(StageData):
    """Rows with columns `chosen` and `rejected`: two conversations that differ in the last assistant turn."""

    max_tokens: Positive = 2048


class Others(Section):
    """Completions that are not the policy's own."""

    models: list[Model] = Field(default_factory=list)
    """Further models to sample from, with the same settings as the policy."""
    completions: Sources = Field(default_factory=list)
    """Rows with `messages` that begin with a prompt of `data.train` and end with an answer to it."""


class Pairing(Section):
    policy: Literal["random", "length_matched", "hardest"] = "random"
    """Which correct and which wrong answer make a pair. `length_matched`: those whose lengths differ least, so that
    length teaches nothing. `hardest`: the correct one that the policy likes least, and the wrong one it likes most."""
    pairs_per_prompt: Positive = 1
    """At most so many; an answer is in one pair at most."""


class Judge(Section):
    """A language model that rates completions, in place of the verifiers."""

    url: str
    """Base URL of an OpenAI-compatible endpoint, e.g. "http://127.0.0.1:8000/v1"."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    least_lead: Annotated[float, Field(gt=0.0)] = 1.0
    """How many points (of 5) the chosen answer must lead."""
    concurrency: Positive = 8
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 60.0


class Preferences(Section):
    """Preference pairs from verdicts on sampled completions."""

    stage: Literal["preferences"] = "preferences"
    run_dir: str
    """Gets `pairs.jsonl`, `samples.jsonl` and `statistics.json`."""
    seed: int = 123
    plugins: list[str] = Field(default_factory=list)
    """Python files that register verifiers."""
    model: Model
    data: Data
    rollout: Rollout
    """`prompts_per_step` prompts are sampled at a time."""
    sampler: Sampler = Sampler()
    reward: rlvr.config.Reward = rlvr.config.Reward()
    verification: Verification = Verification()
    evaluation: Evaluation = Evaluation()
    others: Others = Others()
    pairing: Pairing = Pairing()
    judge: Judge | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Preferences:
        problems = row_problems(self.data)
        if any(model.lora is not None for model in (self.model, *self.others.models)):
            problems.append("model.lora does nothing in this stage, which trains nothing: remove it")
        if self.rollout.samples_per_prompt < 2 and not (self.others.models or self.others.completions):
            problems.append("rollout.samples_per_prompt=1 makes no pair: raise it, or add others.models")
        if self.pairing.policy == "hardest" and (self.others.models or self.others.completions):
            problems.append(
                "pairing.policy='hardest' ranks answers by the log-probability with which the policy sampled them, "
                "which those of `others` do not have: remove one"
            )
        refuse(problems)
        return self

    def as_rlvr(self, model: Model | None = None) -> Config:
        """The recipe of a run that samples and judges as this stage does."""
        return Config(
            run_dir=self.run_dir,
            seed=self.seed,
            plugins=self.plugins,
            model=model or self.model,
            data=self.data,
            rollout=self.rollout,
            sampler=self.sampler,
            reward=self.reward,
            verification=self.verification,
            evaluation=self.evaluation,
            training=Training(steps=1),
        )


class RewardOptimizer(Optimizer):
    learning_rate: NonNegative = 3e-6


class RewardTraining(StageTraining):
    epochs: Positive = 1
    examples_per_step: Positive = 256


class Reward(Stage):
    """A reward model by Bradley-Terry (Table 36): a sequence classifier with one label, scored at the end token."""

    stage: Literal["reward"] = "reward"
    data: PairData
    optimizer: RewardOptimizer = RewardOptimizer()
    training: RewardTraining = RewardTraining()


class ValueData(StageData):
    """Samples that `preferences` wrote (`samples.jsonl`): completions of the start policy with their rewards."""

    max_tokens: Positive = 4096


class ValueOptimizer(Optimizer):
    learning_rate: NonNegative = 3e-6


class Value(Stage):
    """The critic, taught the returns of the start policy's own verified completions before PPO begins."""

    stage: Literal["value"] = "value"
    init: str = "policy"
    """As `critic.init` of an RLVR recipe: `policy`, `scratch`, or a reward model's folder."""
    gamma: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Discount, as `algorithm.gamma` of the RLVR run that follows."""
    data: ValueData
    optimizer: ValueOptimizer = ValueOptimizer()
    training: RewardTraining = RewardTraining()

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.data.decontaminate.against:
            problems.append("data.decontaminate does nothing with samples, which have no text of their own: remove it")
        if self.model.lora is not None and self.init == "scratch":
            problems.append(
                "init='scratch' with model.lora would train adapters of a network of random weights: set init to "
                "'policy' or to a reward model"
            )
        return problems


class Preference(Section):
    """The loss on pairs."""

    loss: Literal["dpo_norm", "dpo", "simpo"] = "dpo_norm"
    """`dpo_norm` divides each log-ratio by the answer's length in tokens; `simpo` needs no reference."""
    beta: Annotated[float, Field(gt=0.0)] = 5.0
    """5 is Tülu 3's for `dpo_norm`; 0.1 is usual for `dpo`, 2 to 10 for `simpo`."""
    margin: NonNegative = 0.0
    """Gamma of SimPO: how far the chosen answer's reward (beta times its mean log-probability) must lead."""
    forwards: Literal["concatenated", "separate"] = "concatenated"
    """`concatenated` keeps both answers of a pair in one row. `separate` packs them apart, so that one answer's
    activations are held at a time, and reads every pair once more before the backward pass. The losses are equal."""
    reference: str | None = None
    """Folder or Hub id of the reference model; None is the starting policy, which is read before its first update."""
    reference_cache: str = "runs/reference_logprobs"
    """Folder of the references' log-probabilities, shared by runs."""


class DpoOptimizer(Optimizer):
    learning_rate: NonNegative = 5e-7
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    weight_decay: NonNegative = 0.0


class DpoTraining(StageTraining):
    epochs: Positive = 1
    examples_per_step: Positive = 128


class Dpo(Stage):
    """Preference tuning by DPO, length-normalised DPO or SimPO (Table 20)."""

    stage: Literal["dpo"] = "dpo"
    data: PairData
    preference: Preference = Preference()
    optimizer: DpoOptimizer = DpoOptimizer()
    training: DpoTraining = DpoTraining()

    def problems(self) -> list[str]:
        problems = super().problems()
        preference = self.preference
        if preference.loss != "simpo" and preference.margin > 0.0:
            problems.append(
                f"preference.margin={preference.margin:g} does nothing with preference.loss={preference.loss!r}: "
                "remove it, or set preference.loss='simpo'"
            )
        if preference.loss == "simpo" and preference.reference is not None:
            problems.append(
                f"preference.reference={preference.reference!r} does nothing with preference.loss='simpo', which has "
                "no reference: remove it"
            )
        if preference.loss == "simpo" and preference.reference_cache != Preference().reference_cache:
            problems.append("preference.reference_cache does nothing with preference.loss='simpo': remove it")
        return problems

"""What passes between the stages of a step.

Axes: P prompts, G completions per prompt, B samples (= P x G), N completion tokens of all samples, laid end to end,
T tokens of a packed row (prompts and completions), V vocabulary. There is no padding, hence no mask: a per-token
array has one entry for each completion token, in sample order, EOS included where the model produced it.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from verifiers.base import Verdict

if TYPE_CHECKING:  # `rlvr check` reads rows without torch
    import torch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one verifier must check in a completion."""

    verifier: str
    """Registered name, lower case."""
    ground_truth: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row, ready to sample from."""

    prompt_id: int
    """Position of the row in its set, counted before any filter: stable across runs."""
    token_ids: tuple[int, ...]
    """The chat template's output up to the generation prompt."""
    text: str
    """Last user turn."""
    tasks: tuple[Task, ...]
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other columns of the row."""


class Stop(enum.StrEnum):
    """Why a completion ended."""

    EOS = "eos"
    """The model produced its end token, which is the last of `token_ids`."""
    STRING = "string"
    """A stop string of the recipe is complete with the last of `token_ids`."""
    LENGTH = "length"
    """`rollout.max_tokens` was reached: there is no EOS."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer."""

    prompt: Prompt
    sample: int
    """0 .. G-1 within its prompt's group."""
    place: int
    """Its place among the samples of the step over all ranks, 0 .. P x G - 1."""
    token_ids: tuple[int, ...]
    """Never empty."""
    logprobs: tuple[float, ...]
    """Nats, one for each token: log-probability under the distribution that was sampled (temperature and truncation
    included)."""
    text: str
    """Special tokens removed; with a stop string at its end where one ended it."""
    stop: Stop
    policy_version: int
    """Of the weights that sampled its first token, the oldest: weight updates that the sampler had received in this
    process after its first one."""
    version_changes: tuple[tuple[int, int], ...] = ()
    """(token, version): from this token on, newer weights sampled it, which arrived while it was being sampled."""

    @property
    def group(self) -> int:
        """The place of its group's first sample: a prompt that is drawn twice in a step makes two groups."""
        return self.place - self.sample


def token_versions(completion: Completion) -> list[int]:
    """Version of the weights that sampled each token."""
    starts = [(0, completion.policy_version), *completion.version_changes, (len(completion.token_ids), 0)]
    return [version for (first, version), (last, _) in itertools.pairwise(starts) for _ in range(first, last)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A completion and what its verifiers said."""

    completion: Completion
    verdicts: tuple[Verdict, ...]
    """One for each of `completion.prompt.tasks`."""
    score: float | None
    """Mean of the verdicts' scores, in [0, 1]; None when one of them is indeterminate: the sample leaves the loss."""
    reward: float | None
    """`score` weighted, or `no_eos_score` in its place; None where `score` is None."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """Sequences laid end to end in one row, without padding; shorter sequences first.

    The last token of each sequence is only ever predicted, never read, so it is not part of the row.
    """

    sequences: tuple[int, ...]
    """Which samples, in row order (indices into the batch that was packed)."""
    input_ids: torch.Tensor
    """int64 [1, T]"""
    position_ids: torch.Tensor
    """int64 [1, T], 0 at the start of each sequence."""
    lengths: tuple[int, ...]
    """Tokens of each sequence in this row; they sum to T and do not decrease."""
    read_at: torch.Tensor
    """int64 [N]: position in T whose hidden state predicts each completion token."""
    targets: torch.Tensor
    """int64 [N]: the completion tokens."""
    token_index: torch.Tensor
    """int64 [N]: position of each completion token in the batch's per-token arrays."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """What the learner learns from: this rank's share of the step."""

    prompt_ids: tuple[tuple[int, ...], ...]
    """Tokens of each sample's prompt, B entries."""
    completion_ids: tuple[tuple[int, ...], ...]
    """Tokens of each sample's completion, B entries."""
    lengths: torch.Tensor
    """int64 [B]: completion tokens of each sample; sums to N."""
    places: torch.Tensor
    """int64 [B]: place of each sample in the step over all ranks; the same whatever the number of ranks."""
    groups: torch.Tensor
    """int64 [B]: equal for the samples of one draw of one prompt; a prompt drawn twice in a step makes two groups."""
    rewards: torch.Tensor
    """float32 [B]: from the verifiers, before the KL penalty."""
    sampler_logprobs: torch.Tensor
    """float32 [N], nats."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Per-token arrays of the update, each float32 [N], aligned with `Trajectories`."""

    old_logprobs: torch.Tensor
    """Nats; the ratio's denominator."""
    reference_logprobs: torch.Tensor | None
    """Nats, of the frozen reference; None without a KL term."""
    old_values: torch.Tensor | None
    """The critic before the update, in units of reward; None without a critic."""
    advantages: torch.Tensor
    """After whitening."""
    returns: torch.Tensor | None
    """Advantage before whitening plus value: what the critic should say; None without a critic."""
    importance_weights: torch.Tensor | None
    """Learner/sampler ratio, capped or masked, that multiplies the policy loss; None leaves it out."""

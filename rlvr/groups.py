"""Groups: the samples of one prompt. Whether a group can teach anything, and dynamic sampling, which replaces those
that cannot. All samples of a group are on one rank, because prompts are dealt out to ranks whole."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
from collections.abc import Callable, Sequence

from rlvr import distributed
from rlvr.records import Prompt, Scored


class Signal(enum.StrEnum):
    """What a group's rewards say about its samples."""

    SOME = "with_signal"
    """Two known rewards differ: advantages relative to the group are not all 0."""
    EQUAL = "all_equal"
    """All known rewards are the same."""
    UNKNOWN = "under_two_known"
    """Fewer than two verdicts are known: there is nothing to compare with."""


def signals(scored: Sequence[Scored]) -> dict[int, Signal]:
    """The signal of each group, by `Completion.group`, in the order of first appearance."""
    rewards: dict[int, list[float]] = {}
    for one in scored:
        known = rewards.setdefault(one.completion.group, [])
        if one.reward is not None:
            known.append(one.reward)
    return {group: _signal(known) for group, known in rewards.items()}


def _signal(rewards: Sequence[float]) -> Signal:
    if len(rewards) < 2:
        return Signal.UNKNOWN
    return Signal.EQUAL if min(rewards) == max(rewards) else Signal.SOME


def group_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Shares of all groups that were drawn, over all ranks; NaN where there was none. Collective.

    All correct, or all wrong: every known score of the group is 1, or 0, whatever the reward.
    """
    scores: dict[int, set[float]] = collections.defaultdict(set)
    for one in scored:
        if one.score is not None:
            scores[one.completion.group].add(one.score)
    found = signals(scored)
    counts = {
        "groups_without_signal": sum(signal is not Signal.SOME for signal in found.values()),
        "groups_under_two_known": sum(signal is Signal.UNKNOWN for signal in found.values()),
        "groups_all_correct": sum(seen == {1.0} for seen in scores.values()),
        "groups_all_wrong": sum(seen == {0.0} for seen in scores.values()),
    }
    total, *summed = distributed.sum_over_ranks([len(found), *counts.values()])
    return {f"rollout/{name}": count / total if total else math.nan for name, count in zip(counts, summed, strict=True)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What this rank sampled for one step."""

    prompts: int
    """Prompts that were asked of this rank's sampler."""
    scored: list[Scored]
    """Everything that came back."""
    kept: list[Scored]
    """What the learner gets, before it leaves out indeterminate samples; numbered anew where groups were dropped."""
    dropped: list[Scored] = dataclasses.field(default_factory=list)
    """Samples of groups without signal, where the recipe drops them."""
    rounds: int = 0
    """Rounds of refilling, the same on every rank."""
    groups_missing: int = 0
    """Groups of the step, over all ranks, that refilling did not find."""
    idle_seconds: float = 0.0
    """How long scoring kept this rank's sampler waiting."""

    def metrics(self) -> dict[str, float]:
        """Of dynamic sampling."""
        return {"rollout/refill_rounds": float(self.rounds), "rollout/groups_missing": float(self.groups_missing)}


def keep_groups_with_signal(
    first: Draw,
    spare: Sequence[Prompt],
    sample: Callable[[Sequence[Prompt], int], Draw],
    *,
    wanted: int,
    rounds: int,
    samples_per_prompt: int,
) -> Draw:
    """Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11): drop groups without signal, and draw others in their place.

    Each round draws as many prompts as are missing, so that no group with signal is ever left over; it ends when the
    step is full, after `rounds` rounds, or when every prompt of the set has been tried. Collective: every rank makes
    the same rounds.

    Args:
        first: this rank's share of the step's own prompts.
        spare: other prompts to take from, in order; the same on every rank.
        sample: draws this rank's share of the given prompts; the second argument is the slot of the first of them.
        wanted: groups of the step over all ranks.
    """
    drawn, prompts, idle_seconds, taken, made = list(first.scored), first.prompts, first.idle_seconds, 0, 0
    missing = wanted - _groups_with_signal(drawn)
    while missing and made < rounds and taken < len(spare):
        others = spare[taken : taken + missing]
        more = sample(others, wanted + taken)
        drawn, prompts, idle_seconds = drawn + more.scored, prompts + more.prompts, idle_seconds + more.idle_seconds
        taken, made = taken + len(others), made + 1
        missing = wanted - _groups_with_signal(drawn)
    found = signals(drawn)
    kept = [one for one in drawn if found[one.completion.group] is Signal.SOME]
    return Draw(
        prompts=prompts,
        scored=drawn,
        kept=close_ranks(kept, samples_per_prompt),
        dropped=[one for one in drawn if found[one.completion.group] is not Signal.SOME],
        rounds=first.rounds + made,
        groups_missing=missing,
        idle_seconds=idle_seconds,
    )


def _groups_with_signal(scored: Sequence[Scored]) -> int:
    local = sum(signal is Signal.SOME for signal in signals(scored).values())
    return int(distributed.sum_over_ranks([local])[0])


def close_ranks(kept: Sequence[Scored], samples_per_prompt: int) -> list[Scored]:
    """Number the kept groups of all ranks from 0, in the order of their slots: minibatches fill up. Collective."""
    local = {one.completion.group for one in kept}
    everywhere = sorted(group for groups in distributed.gather_objects(sorted(local)) for group in groups)
    slot = {group: number for number, group in enumerate(everywhere)}
    return [
        dataclasses.replace(
            one,
            completion=dataclasses.replace(
                one.completion,
                place=slot[one.completion.group] * samples_per_prompt + one.completion.sample,
            ),
        )
        for one in kept
    ]

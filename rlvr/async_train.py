"""The asynchronous loop: the sampling ranks go on while the learner learns, and while new weights arrive.

    step s trains:   wait for its samples -> verdicts -> update -> publish (in the middle of others' sampling)
    meanwhile:       steps s+1 .. s+max_staleness are being sampled and judged

Steps keep their order and their prompts, so a batch is whole whatever its samples' lengths: none are dropped for
being late, and short answers are not preferred. The bound holds by construction: a step is asked for only when the
weights are at most `max_staleness` updates behind those that will train on it. A sample that is unfinished when
weights arrive goes on under the new ones; each token is stamped with the weights that sampled it, and its log-prob is
theirs, so the importance weight learner/sampler is right token by token (truncated as in Olmo 3, arXiv 2512.13961).
Where the recipe refills (dynamic sampling), a group that is judged and has no signal is replaced at once, by a prompt
that is sampled among those of the steps ahead; nothing waits for a round to end.
The step itself is `rlvr.train.train_step`; with max_staleness 0, so are its losses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from rlvr import distributed
from rlvr.errors import PolicyError
from rlvr.groups import Draw, Signal, signals
from rlvr.log import Clock
from rlvr.parts import Parts
from rlvr.records import Completion, Prompt, Scored, token_versions
from rlvr.reward import Scorer
from rlvr.rollout import RollOut, share_of_rank, start_roll_out


@dataclasses.dataclass(slots=True, kw_only=True)
class Part:
    """Samples that were asked for together: those of a step's own prompts, or of one that replaces a group."""

    round: int
    """How many groups of the same chain it comes after: 0 for the step's own."""
    scorer: Scorer
    roll_out: RollOut | None = None
    groups: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    """Group -> indices of its completions that have finished, until all of them are judged."""


class Coming:
    """This rank's samples of one step, being drawn and judged.

    Args:
        rounds: how often in a row a group without signal is replaced; each rank replaces its own groups.
    """

    def __init__(self, parts: Parts, step: int, *, rounds: int) -> None:
        self._parts, self._config, self._step, self._rounds = parts, parts.config, step, rounds
        self._drawn: list[Part] = []
        self.prompts = 0
        """Asked of the sampler."""
        self._replacements = 0
        config = parts.config
        self._start(parts.train_set.batch(step, config.rollout.prompts_per_step, config.seed), first_slot=0, round=0)

    @functools.cached_property
    def _spare(self) -> Sequence[Prompt]:
        return self._parts.train_set.spare(self._step, self._config.rollout.prompts_per_step, self._config.seed)

    @property
    def rounds(self) -> int:
        """Longest chain of replacements so far, on this rank."""
        return max(part.round for part in self._drawn)

    def collect(self, clock: Clock) -> list[Scored]:
        """Wait for all samples and their verdicts; those of replacements come last, in the order of their slots."""
        scored: list[Scored] = []
        for part in self._drawn:  # replacements are appended meanwhile
            assert part.roll_out is not None
            with clock.stage("rollout"):
                part.roll_out.collect()
            with clock.stage("verify"):
                scored += part.scorer.collect()
            self._replace_groups(part)
        return scored

    def finished_tokens(self) -> int:
        """Tokens of the completions that have come back."""
        found = [one for part in self._drawn if part.roll_out is not None for one in part.roll_out.found.values()]
        return sum(len(one.token_ids) for one in found)

    def idle_seconds(self) -> float:
        """Time that handing over and waiting for verdicts has taken."""
        return sum(part.scorer.idle_seconds for part in self._drawn)

    def _start(self, prompts: Sequence[Prompt], *, first_slot: int, round: int) -> None:
        config = self._config
        part = Part(round=round, scorer=Scorer(self._parts.pool, config.reward, config.verification.remap))
        self._drawn.append(part)
        mine = share_of_rank(prompts)
        self.prompts += len(mine)

        def finished(index: int, completion: Completion) -> None:
            part.scorer.submit(index, completion)
            part.groups.setdefault(completion.group, []).append(index)
            self._replace_groups(part)

        part.roll_out = start_roll_out(
            self._parts.sampler,
            self._parts.tokenizer,
            mine,
            samples_per_prompt=config.rollout.samples_per_prompt,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            seed=(config.seed, "sample", self._step),
            on_completion=finished,
            first_slot=first_slot,
            shows_progress=False,
        )

    def _replace_groups(self, part: Part) -> None:
        """Ask for another prompt in place of each group that is judged, as far as is known now, and has no signal."""
        if part.round == self._rounds:
            return
        for group, indices in list(part.groups.items()):
            if len(indices) < self._config.rollout.samples_per_prompt:
                continue
            scored = part.scorer.judged(indices)
            if scored is None:
                continue
            del part.groups[group]
            if signals(scored)[group] is not Signal.SOME:
                self._replace_one(part.round + 1)

    def _replace_one(self, round: int) -> None:
        ranks = distributed.world_size()
        first = self._replacements * ranks  # of as many spare prompts, one for each rank
        if first + distributed.rank() >= len(self._spare):
            return
        self._replacements += 1
        first_slot = self._config.rollout.prompts_per_step + first
        self._start(self._spare[first : first + ranks], first_slot=first_slot, round=round)


class Ahead:
    """The steps that are asked for and not trained: a queue of at most `max_staleness` + 1."""

    def __init__(self, parts: Parts, first: int) -> None:
        assert parts.config.asynchronous is not None
        self._parts = parts
        self._most = parts.config.asynchronous.max_staleness
        self._queue: dict[int, Coming] = {}
        self._next = first
        self.staleness: dict[str, float] = {}
        """Of the last draw; over all ranks."""

    def ask(self, step: int) -> None:
        """Ask for all that may be sampled from now on, when `step` is the next to be trained."""
        last = min(step + self._most, self._parts.config.training.steps - 1)
        while self._next <= last:
            rounds = 0 if self._most == 0 else self._parts.config.rollout.refill_rounds
            self._queue[self._next] = Coming(self._parts, self._next, rounds=rounds)
            self._next += 1

    def draw(self, step: int, clock: Clock) -> Draw:
        """A step's samples, judged, when all are there; what may be sampled from now on is asked for first."""
        with clock.stage("rollout"):
            self.ask(step)
        coming = self._queue.pop(step)
        scored = coming.collect(clock)
        completions = [one.completion for one in scored]
        self.staleness = staleness_metrics(completions, self._parts.sampler.policy_version, self._most)
        idle_seconds = coming.idle_seconds() if self._most == 0 else 0.0  # else there is more to sample
        rounds = int(distributed.max_over_ranks([coming.rounds])[0])
        return Draw(prompts=coming.prompts, scored=scored, kept=scored, rounds=rounds, idle_seconds=idle_seconds)

    @property
    def rounds_left(self) -> int:
        """Rounds of refilling that a draw still needs: those of the synchronous loop at staleness 0, else none."""
        return self._parts.config.rollout.refill_rounds if self._most == 0 else 0

    @property
    def is_fresh(self) -> bool:
        """Whether every token of the last draw was sampled by the newest weights."""
        return self.staleness["async/staleness_max"] == 0

    def abandon(self) -> None:
        """Account for what will not be used. Collective."""
        prompts = sum(coming.prompts for coming in self._queue.values())
        tokens = sum(coming.finished_tokens() for coming in self._queue.values())
        self._parts.ledger.abandon(prompts, prompts * self._parts.config.rollout.samples_per_prompt, tokens)


def staleness_metrics(completions: list[Completion], version: int, most: int) -> dict[str, float]:
    """How far behind the learner's weights each token's were, over all ranks.

    Args:
        version: of the weights that are about to learn.
        most: `asynchronous.max_staleness`.

    Raises PolicyError on every rank when a token is staler than that, or from the future.
    """
    lags = [version - one for completion in completions for one in token_versions(completion)]
    changed = sum(bool(completion.version_changes) for completion in completions)
    count, total, samples, mixed = distributed.sum_over_ranks([len(lags), sum(lags), len(completions), changed])
    highest, lowest = distributed.max_over_ranks([max(lags, default=0), -min(lags, default=0)])
    if highest > most or lowest > 0:
        raise PolicyError(
            f"tokens of this step were sampled by weights {highest:.0f} to {-lowest:.0f} updates behind the learner's; "
            f"asynchronous.max_staleness={most} allows 0 to {most}. This is a bug of the engine."
        )
    return {
        "async/staleness_mean": total / max(count, 1.0),
        "async/staleness_max": highest,
        "async/samples_of_mixed_weights": mixed / max(samples, 1.0),
    }

"""The asynchronous loop: the sampling ranks go on while the learner learns, and while new weights arrive.

    step s trains:   wait for its samples -> verdicts -> update -> publish (in the middle of others' sampling)
    meanwhile:       steps s+1 .. s+max_staleness are being sampled and judged

Steps keep their order and their prompts, so a batch is whole whatever its samples' lengths: none are dropped for
being late, and short answers are not preferred. The bound holds by construction: a step is asked for only when the
weights are at most `max_staleness` updates behind those that will train on it. A sample that is unfinished when
weights arrive goes on under the new ones; each token is stamped with the weights that sampled it, and its log-prob is
theirs, so the importance weight learner/sampler is right token by token (truncated as in Olmo 3, arXiv 2512.13961).
The step itself is `rlvr.train.train_step`; with max_staleness 0, so are its losses.
"""

from __future__ import annotations

import dataclasses

from rlvr import distributed
from rlvr.errors import PolicyError
from rlvr.groups import Draw
from rlvr.log import Clock
from rlvr.parts import Parts
from rlvr.records import Completion, Prompt, token_versions
from rlvr.reward import Scorer
from rlvr.rollout import RollOut, share_of_rank, start_roll_out


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """One step's samples, being drawn and judged."""

    prompts: list[Prompt]
    roll_out: RollOut
    scorer: Scorer


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
            self._queue[self._next] = self._start(self._next)
            self._next += 1

    def draw(self, step: int, clock: Clock) -> Draw:
        """A step's samples, judged, when all are there; what may be sampled from now on is asked for first."""
        with clock.stage("rollout"):
            self.ask(step)
            coming = self._queue.pop(step)
            completions = coming.roll_out.collect()
            self.staleness = staleness_metrics(completions, self._parts.sampler.policy_version, self._most)
        with clock.stage("verify"):
            scored = coming.scorer.collect()
        idle_seconds = coming.scorer.idle_seconds if self._most == 0 else 0.0  # else there is more to sample
        return Draw(prompts=len(coming.prompts), scored=scored, kept=scored, idle_seconds=idle_seconds)

    @property
    def is_fresh(self) -> bool:
        """Whether every token of the last draw was sampled by the newest weights."""
        return self.staleness["async/staleness_max"] == 0

    def abandon(self) -> None:
        """Account for what will not be used. Collective."""
        samples = sum(len(c.prompts) for c in self._queue.values()) * self._parts.config.rollout.samples_per_prompt
        found = [one for coming in self._queue.values() for one in coming.roll_out.found.values()]
        prompts = sum(len(coming.prompts) for coming in self._queue.values())
        self._parts.ledger.abandon(prompts, samples, sum(len(one.token_ids) for one in found))

    def _start(self, step: int) -> Coming:
        parts, config = self._parts, self._parts.config
        prompts = share_of_rank(parts.train_set.batch(step, config.rollout.prompts_per_step, config.seed))
        scorer = Scorer(parts.pool, config.reward, config.verification.remap)
        roll_out = start_roll_out(
            parts.sampler,
            parts.tokenizer,
            prompts,
            samples_per_prompt=config.rollout.samples_per_prompt,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            seed=(config.seed, "sample", step),
            on_completion=scorer.submit,
        )
        return Coming(prompts=prompts, roll_out=roll_out, scorer=scorer)


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

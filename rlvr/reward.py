"""From completions to rewards: verdicts of the verifier pool, then Tülu 3's rule for completions without EOS."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlvr import distributed, watch
from rlvr.config import Config, Reward
from rlvr.data import verifier_key
from rlvr.errors import IndeterminateError
from rlvr.groups import group_metrics
from rlvr.judges import pool_specs
from rlvr.records import Completion, Scored, Stop
from verifiers.base import Outcome, Sample, Verdict
from verifiers.pool import VerifierPool


def start_pool(config: Config, names: Iterable[str]) -> VerifierPool:
    """Start this rank's verifier workers, for the verifiers that the rows name and those that replace them."""
    return VerifierPool(
        pool_specs(config, names),
        workers=config.verification.workers,
        timeout_seconds=config.verification.timeout_seconds,
        memory_mib=config.verification.memory_mib,
    )


class Scorer:
    """Judges one batch of completions as they finish. Batches that overlap in time share the pool.

    Args:
        remap: names of verifiers -> the names in the pool that judge in their place; others judge their own rows.
    """

    def __init__(self, pool: VerifierPool, reward: Reward, remap: Mapping[str, str]) -> None:
        self._pool = pool
        self._reward = reward
        self._remap = {verifier_key(key): verifier_key(value) for key, value in remap.items()}
        self._completions: dict[int, Completion] = {}
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self.idle_seconds = 0.0
        """Time that handing over and waiting for verdicts has taken from the sampler in this process."""

    def submit(self, index: int, completion: Completion) -> None:
        """Send one completion to its verifiers; `index` is its place in the batch. Returns at once."""
        started = time.perf_counter()
        self._completions[index] = completion
        for number, task in enumerate(completion.prompt.tasks):
            sample = Sample(
                completion=completion.text,
                ground_truth=task.ground_truth,
                prompt=completion.prompt.text,
                completion_tokens=len(completion.token_ids),
                columns=completion.prompt.columns,
            )
            self._pool.submit((self, index, number), self._remap.get(task.verifier, task.verifier), sample)
        self._take(self._pool.poll())
        self.idle_seconds += time.perf_counter() - started

    def collect(self) -> list[Scored]:
        """Wait for the rest, and return the batch in order of index."""
        started = time.perf_counter()
        wanted = {(index, n) for index, c in self._completions.items() for n in range(len(c.prompt.tasks))}
        while not wanted <= self._verdicts.keys():
            self._take(self._pool.poll(wait_seconds=1.0))
        self.idle_seconds += time.perf_counter() - started
        scored = self.judged(sorted(self._completions))
        assert scored is not None
        return scored

    def judged(self, indices: Sequence[int]) -> list[Scored] | None:
        """These completions, if every verdict on them has come; does not look for others."""
        scored = []
        for index in indices:
            completion = self._completions[index]
            keys = [(index, number) for number in range(len(completion.prompt.tasks))]
            if not all(key in self._verdicts for key in keys):
                return None
            scored.append(score(completion, tuple(self._verdicts[key] for key in keys), self._reward))
        return scored

    def _take(self, finished: Iterable[tuple[Any, Verdict]]) -> None:
        for (scorer, index, number), verdict in finished:
            scorer._verdicts[index, number] = verdict  # it may be another batch's
            watch.moved()


def score(completion: Completion, verdicts: tuple[Verdict, ...], reward: Reward) -> Scored:
    """Weight the verdicts; a completion without EOS has its score *replaced* (arXiv 2411.15124, section 6.2, item 4).

    The punishment for length, where the recipe has one, is taken from either.
    An indeterminate verdict makes the sample's score None: it leaves the loss and is counted.
    """
    if any(verdict.outcome is Outcome.INDETERMINATE for verdict in verdicts):
        return Scored(completion=completion, verdicts=verdicts, score=None, reward=None)
    mean = sum(verdict.score for verdict in verdicts) / len(verdicts)
    weighted = mean * reward.verification_reward
    if completion.stop is Stop.LENGTH and reward.no_eos_score != "keep":
        weighted = reward.no_eos_score
    if reward.overlong_tokens is not None:
        begins, ends = reward.overlong_tokens
        weighted -= reward.overlong_penalty * overlong(len(completion.token_ids), begins=begins, ends=ends)
    return Scored(completion=completion, verdicts=verdicts, score=mean, reward=weighted)


def overlong(tokens: int, *, begins: int, ends: int) -> float:
    """Share of the punishment for a completion of so many tokens: 0 up to `begins`, 1 from `ends` on.

    DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13, negated): begins = L_max - L_cache, ends = L_max.

    >>> [overlong(tokens, begins=16384, ends=20480) for tokens in (16384, 17408, 20480, 30000)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(max((tokens - begins) / (ends - begins), 0.0), 1.0)


def reward_metrics(scored: Sequence[Scored], max_indeterminate_share: float) -> dict[str, float]:
    """Rewards, verdicts and shares of groups over all ranks.

    Returns `reward/mean` and `reward/<verifier>` (means over the samples that have a reward), and as shares in [0, 1]
    `verifier/<verifier>/indeterminate` (of its verdicts), `verifier/<verifier>/correct` (of its verdicts that are not
    indeterminate) and `rollout/groups_without_signal`. Counts are the ledger's.
    Raises IndeterminateError on every rank when the share of indeterminate verdicts is over the limit.
    """
    local = collections.Counter[str]({"reward/mean": 0, "count/reward/mean": 0})
    details = collections.Counter[str]()
    for one in scored:
        if one.reward is not None:
            local["reward/mean"] += one.reward  # type: ignore[assignment]
            local["count/reward/mean"] += 1
        for task, verdict in zip(one.completion.prompt.tasks, one.verdicts, strict=True):
            failed = verdict.outcome is Outcome.INDETERMINATE
            local[f"verifier/{task.verifier}/indeterminate"] += failed
            local[f"count/verifier/{task.verifier}/indeterminate"] += 1
            local["verdicts"] += 1
            local["indeterminate"] += failed
            if failed:
                details[f"{task.verifier}: {verdict.detail}"] += 1
                continue
            local[f"verifier/{task.verifier}/correct"] += verdict.outcome is Outcome.CORRECT
            local[f"count/verifier/{task.verifier}/correct"] += 1
            if one.reward is not None:
                local[f"reward/{task.verifier}"] += one.reward  # type: ignore[assignment]
                local[f"count/reward/{task.verifier}"] += 1
    total = collections.Counter[str]()
    reasons = collections.Counter[str]()
    for rank_counts, rank_reasons in distributed.gather_objects((dict(local), dict(details))):
        total.update(rank_counts)
        reasons.update(rank_reasons)
    share = total["indeterminate"] / max(total["verdicts"], 1)
    if share > max_indeterminate_share:
        common = "; ".join(f"{detail} ({count} times)" for detail, count in reasons.most_common(3))
        raise IndeterminateError(
            f"{total['indeterminate']} of {total['verdicts']} verdicts of this step are indeterminate ({share:.1%}, "
            f"limit reward.max_indeterminate_share={max_indeterminate_share:g}): {common}. The verifier or its ground "
            "truths are broken; training on the rest would be on a biased sample."
        )
    skip = ("count/", "verdicts", "indeterminate")
    names = [name for name in total if not name.startswith(skip)]
    return {name: _mean(total[name], total.get(f"count/{name}")) for name in names} | group_metrics(scored)


def _mean(total: float, count: float | None) -> float:
    """A sum where there is no count; NaN where nothing was counted (every verdict of the step is indeterminate)."""
    return total if count is None else total / count if count else math.nan

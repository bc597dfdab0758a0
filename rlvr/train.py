"""One RLVR run, in the order of the maths:

    data -> rollout (vLLM) -> reward (verifier pool) -> advantage -> pack -> learner (DeepSpeed) -> publish (to vLLM)

Every rank runs this same code: it samples its share of the prompts with a vLLM engine of its own, and learns from
them together with the other ranks. PPO as in Tülu 3 (arXiv 2411.15124, section 6); `rlvr.config` lists every option.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlvr import distributed
from rlvr.async_train import Ahead
from rlvr.balance import balance
from rlvr.config import Config
from rlvr.groups import Draw, keep_groups_with_signal
from rlvr.log import Clock, write_samples
from rlvr.parts import Parts, run_parts
from rlvr.records import Prompt
from rlvr.reward import Scorer, reward_metrics
from rlvr.rollout import roll_out, rollout_metrics, share_of_rank, trajectories
from rlvr.run_directory import RunDirectory
from rlvr.serve import serve
from rlvr.weight_sync import refuse_disagreement

SAME_REQUEST_SECONDS = 5.0


def train(config: Config, *, recipe_text: str, resume: bool) -> None:
    """Run a recipe from start, or from its newest checkpoint, to its last step. Collective.

    Raises a subclass of RlvrError for every fault that has a remedy.
    """
    place = distributed.join(config)
    if place is not None and place.samples:
        serve(config, place)
        return
    run = RunDirectory(config.run_dir)
    run.refuse_if_used(resume=resume)
    if resume:
        run.refuse_other_config(config)
    distributed.barrier()
    with run_parts(config, place) as parts, stop_requested() as stopping:
        first = parts.start(run, recipe_text, resume=resume)
        ahead = None if config.asynchronous is None else Ahead(parts, first)
        if first == 0:
            parts.evaluate(0)
        for step in range(first, config.training.steps):
            metrics = train_step(parts, step, ahead)
            stop = distributed.max_over_ranks([float(stopping.is_set)])[0] > 0
            if stop and ahead is not None:
                ahead.abandon()
            parts.finish_step(step + 1, metrics, stop=stop)
            if stop:
                parts.say(f"stopped after step {step + 1}; continue with --resume")
                return
        parts.save_model()


def train_step(parts: Parts, step: int, ahead: Ahead | None = None) -> dict[str, float]:
    """One step of the run, on samples that were asked for `ahead` or, without it, now.

    Returns its metrics over all ranks.
    """
    config, learner = parts.config, parts.learner
    clock = Clock(step + 1)

    if ahead is None:
        draw = sample(parts, step, clock, parts.train_set.batch(step, config.rollout.prompts_per_step, config.seed))
    else:  # it was asked for up to max_staleness steps ago
        draw = ahead.draw(step, clock)
    if config.rollout.drop_groups_without_signal:  # dynamic sampling
        draw = keep_groups_with_signal(
            draw,
            parts.train_set.spare(step, config.rollout.prompts_per_step, config.seed),
            lambda prompts, first_slot: sample(parts, step, clock, prompts, first_slot),
            wanted=config.rollout.prompts_per_step,
            rounds=config.rollout.refill_rounds if ahead is None else ahead.rounds_left,
            samples_per_prompt=config.rollout.samples_per_prompt,
        )
    with clock.stage("verify"):
        if distributed.rank() == 0:  # before anything that may stop the run: they are the evidence
            write_samples(parts.run, step + 1, draw.scored, config.log.samples_per_step)
        rewards = reward_metrics(draw.scored, config.reward.max_indeterminate_share)

    parts.sampler.sleep()
    with clock.stage("update"):
        batch = balance(trajectories(draw.kept))  # without indeterminate samples; as many tokens on every rank
        targets, before_update = learner.targets(batch)  # old log-probs, reference KL, values, GAE, whitening
        if config.algorithm.old_logprobs == "learner" and (ahead is None or ahead.is_fresh):  # alike only then
            refuse_disagreement(before_update["policy/sampler_difference"], parts.sync.tolerance)
        rates = learner.learning_rates()
        update = learner.update(batch, targets, step=step)  # K epochs x N minibatches

    with clock.stage("sync"):
        sync = parts.sync.publish()  # and proof

    tokens_trained = update["update/tokens"] / config.algorithm.epochs
    parts.ledger.add(draw, config.rollout.samples_per_prompt, tokens_trained)
    completions = [one.completion for one in draw.scored]
    rollout = rollout_metrics(completions, clock.seconds["rollout"], idle_seconds=draw.idle_seconds) | draw.metrics()
    if parts.sampler.statistics is not None:
        rollout |= parts.sampler.statistics.metrics()
    rollout |= {} if ahead is None else ahead.staleness
    synced = {f"sync/{name}": float(value) for name, value in dataclasses.asdict(sync).items()}
    return rewards | rollout | before_update | update | rates | synced | clock.metrics()


def sample(parts: Parts, step: int, clock: Clock, prompts: Sequence[Prompt], first_slot: int = 0) -> Draw:
    """Completions of this rank's share of the prompts, judged. `first_slot`: of the first prompt, in the step."""
    config = parts.config
    with clock.stage("rollout"):  # completions go to the verifiers as they finish
        mine = share_of_rank(prompts)
        scorer = Scorer(parts.pool, config.reward, config.verification.remap)
        roll_out(
            parts.sampler,
            parts.tokenizer,
            mine,
            samples_per_prompt=config.rollout.samples_per_prompt,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            seed=(config.seed, "sample", step),
            on_completion=scorer.submit,
            first_slot=first_slot,
        )
    with clock.stage("verify"):  # what is left to wait for
        scored = scorer.collect()
    return Draw(prompts=len(mine), scored=scored, kept=scored, idle_seconds=scorer.idle_seconds)


class StopFlag:
    """Set by Ctrl-C or SIGTERM; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.is_set = False
        self.set_at = 0.0


@contextmanager
def stop_requested(signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[StopFlag]:
    """Turn the first signal into a flag, so that the step is finished and saved; a later one ends the run at once.

    Signals within `SAME_REQUEST_SECONDS` are one request: after Ctrl-C a rank hears from terminal and torchrun.
    """
    flag = StopFlag()
    before = {number: signal.getsignal(number) for number in signals}

    def request(number: int, frame: Any) -> None:
        if not flag.is_set:
            flag.is_set, flag.set_at = True, time.monotonic()
            if distributed.rank() == 0:
                name = signal.Signals(number).name
                print(f"\n{name}: stopping after this step, its state will be saved", file=sys.stderr, flush=True)
        elif time.monotonic() - flag.set_at > SAME_REQUEST_SECONDS:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    for number in signals:
        signal.signal(number, request)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

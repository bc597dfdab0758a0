"""The asynchronous loop: at staleness 0 it is the synchronous one; above it, what was sampled by what is known."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from test_train import LOSS_CURVE, command, environment, made_on, recipe, run, untimed, wait_for

from rlvr.async_train import Coming, staleness_metrics
from rlvr.colocated import Sampled
from rlvr.config import Reward, Rollout
from rlvr.errors import PolicyError
from rlvr.groups import Draw, keep_groups_with_signal
from rlvr.ledger import Ledger
from rlvr.log import Clock, read_metrics
from rlvr.records import Completion, Prompt, Stop, Task, token_versions
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

pytestmark = pytest.mark.slow

REFILLED = (
    "algorithm.advantage=grpo",
    "rollout.samples_per_prompt=4",
    "rollout.drop_groups_without_signal=true",
    "rollout.refill_rounds=2",
    "critic.optimizer.learning_rate=3e-7",  # of the recipe's critic, which GRPO has not
    "critic.optimizer.schedule=linear",
)
APART = ("placement.mode=disaggregated", "placement.learner_ranks=1", "placement.sampler_ranks=1")


class Scripted:
    """Engines that finish what was asked in an order of choice. Each prompt's text says which samples are right."""

    statistics = None
    policy_version = 0

    def __init__(self, pick: Callable[[int], int]) -> None:
        self._pick = pick
        self._waiting: list[tuple[dict[int, Any], int, Any]] = []

    def submit(self, requests: Any, on_finish: Any) -> dict[int, Any]:
        left = dict(enumerate(requests))
        self._waiting += [(left, index, on_finish) for index in left]
        return left

    def wait(self, batch: dict[int, Any]) -> None:
        while batch:
            left, index, on_finish = self._waiting.pop(self._pick(len(self._waiting)))
            token = left.pop(index).token_ids[index % SAMPLES]
            on_finish(
                index,
                Sampled(token_ids=(token,), logprobs=(-1.0,), stopped=True, stop_string=None, policy_version=0),
            )


class Letters:
    def decode(self, token_ids: tuple[int, ...], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


SAMPLES = 2
KINDS = {"mixed": (49, 50), "solved": (49, 49), "failed": (50, 50)}
"""Tokens that the samples of a prompt will be: 49 is the character 1, the right answer."""


def kinds(text: str, first: int) -> list[Prompt]:
    task = Task(verifier="exact", ground_truth="1")
    return [
        Prompt(prompt_id=first + number, token_ids=KINDS[kind], text=kind, tasks=(task,))
        for number, kind in enumerate(text.split())
    ]


OWN, SPARE = "mixed solved failed mixed solved", "solved mixed failed mixed failed solved mixed mixed mixed"
OF_CHOICE = {
    "in order": lambda count: 0,
    "newest first": lambda count: count - 1,
    "any": random.Random(1).randrange,
}


@pytest.mark.parametrize("order", OF_CHOICE)
@pytest.mark.parametrize("rounds", [0, 9])
def test_groups_are_replaced_as_they_are_judged_by_the_prompts_that_rounds_would_take(order: str, rounds: int) -> None:
    """Own 1, 2 and 4 lack signal; of spare 0 to 2 only 1 has it, of 3 and 4 only 3, then 5 has none, and 6 has."""
    own, spare = kinds(OWN, 0), kinds(SPARE, 100)
    config = SimpleNamespace(
        seed=1,
        reward=Reward(),
        verification=SimpleNamespace(remap={}),
        rollout=Rollout(
            prompts_per_step=len(own), samples_per_prompt=SAMPLES, drop_groups_without_signal=True, refill_rounds=rounds
        ),
    )
    data = SimpleNamespace(batch=lambda *arguments: own, spare=lambda *arguments: spare)
    with VerifierPool({"exact": VerifierSpec(name="exact")}) as pool:
        sampler: Any = Scripted(OF_CHOICE[order])
        parts: Any = SimpleNamespace(config=config, train_set=data, pool=pool, sampler=sampler, tokenizer=Letters())
        coming = Coming(parts, 0, rounds=rounds)
        scored = coming.collect(Clock())
    draw = keep_groups_with_signal(
        Draw(prompts=coming.prompts, scored=scored, kept=scored, rounds=coming.rounds),
        spare,
        lambda prompts, first_slot: pytest.fail("nothing is left to refill"),
        wanted=len(own),
        rounds=0,
        samples_per_prompt=SAMPLES,
    )
    kept = {one.completion.prompt.prompt_id for one in draw.kept}
    if rounds == 0:
        assert (kept, coming.prompts, draw.groups_missing) == ({0, 3}, 5, 3)
    else:
        assert (kept, coming.prompts, draw.groups_missing) == ({0, 3, 101, 103, 106}, 5 + 7, 0)
    assert sorted(one.completion.place for one in draw.kept) == list(range(len(draw.kept)))


def completion(tokens: int, version: int, *changes: tuple[int, int]) -> Completion:
    return Completion(
        prompt=Prompt(prompt_id=0, token_ids=(1,), text="", tasks=()),
        sample=0,
        place=0,
        token_ids=(5,) * tokens,
        logprobs=(-1.0,) * tokens,
        text="",
        stop=Stop.LENGTH,
        policy_version=version,
        version_changes=changes,
    )


def test_every_token_has_the_version_that_sampled_it() -> None:
    assert token_versions(completion(3, 4)) == [4, 4, 4]
    assert token_versions(completion(5, 4, (2, 5), (4, 7))) == [4, 4, 5, 5, 7]


def test_staleness_is_counted_in_tokens() -> None:
    # lags behind version 6: 2, 2, 1 and 0, 0; mean 5/5; one of two samples has tokens of two versions
    metrics = staleness_metrics([completion(3, 4, (2, 5)), completion(2, 6)], 6, 2)
    assert metrics == {"async/staleness_mean": 1.0, "async/staleness_max": 2.0, "async/samples_of_mixed_weights": 0.5}


@pytest.mark.parametrize("version", [3, 7])
def test_tokens_that_are_staler_than_allowed_or_from_the_future_stop_the_run(version: int) -> None:
    with pytest.raises(PolicyError, match="max_staleness=2 allows 0 to 2"):
        staleness_metrics([completion(1, version)], 6, 2)


def test_what_was_asked_for_and_not_used_is_in_the_ledger() -> None:
    ledger = Ledger()
    ledger.abandon(2, 8, 30)
    assert (ledger.prompts_drawn, ledger.samples_drawn, ledger.samples_abandoned) == (2, 8, 8)
    assert (ledger.tokens_drawn, ledger.tokens_abandoned) == (30, 30)


def test_at_staleness_0_the_losses_are_those_of_the_colocated_synchronous_loop(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """That loop's are committed: see tests/test_train.py."""
    run_dir = tmp_path / "async"
    run(recipe(task, run_dir), *APART, "asynchronous.max_staleness=0", "training.steps=3", ranks=2)
    committed = json.loads(LOSS_CURVE.read_text())
    steps = [line for line in untimed(run_dir) if line["step"]]
    curve = [{key: line[key] for key in expected} for line, expected in zip(steps, committed["steps"], strict=False)]
    assert len(curve) == 3
    assert {line["async/staleness_max"] for line in steps} == {0.0}
    if committed["made_on"] == made_on():
        assert curve == committed["steps"][:3]
    for step, expected in zip(curve[:2], committed["steps"][:2], strict=True):
        assert step == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_sampling_ahead_stays_in_its_bound_and_a_stop_accounts_for_what_was_ahead(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run_dir = tmp_path / "ahead"
    overrides = (*APART, *REFILLED, "asynchronous.max_staleness=2", "algorithm.importance_cap=2.0")
    process = subprocess.Popen(
        command(recipe(task, run_dir), *overrides, "training.steps=500", ranks=2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (run_dir / "samples" / "step_000006.jsonl").exists(), 240)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "continue with --resume" in said, said[-3000:]
    steps = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["step"]]
    # the first step is sampled by the weights it trains, the second one update later, and so on to the bound
    assert [line["async/staleness_max"] for line in steps[:5]] == [0, 1, 2, 2, 2]
    ledger = json.loads((run_dir / "ledger.json").read_text())
    assert ledger["prompts_abandoned"] >= 2 * 8  # of two steps, and what replaced groups of theirs
    assert ledger["samples_abandoned"] == 4 * ledger["prompts_abandoned"]
    left_out = ledger["samples_without_signal"] + ledger["samples_abandoned"]
    assert ledger["samples_drawn"] == ledger["samples_trained"] + left_out
    assert ledger["tokens_drawn"] > ledger["tokens_trained"] > 0
    # groups without signal were replaced: steps are full, but for what two tries in a row did not find
    assert max(line["rollout/refill_rounds"] for line in steps) in (1, 2)
    assert ledger["prompts_drawn"] > 8 * (len(steps) + 2)
    assert ledger["groups_with_signal"] == 8 * len(steps) - ledger["groups_missing"]
    assert ledger["samples_trained"] == 4 * ledger["groups_with_signal"]
    # samples of older weights are weighted, those of the newest are not
    weights = [line["policy/importance_weight"] for line in steps]
    assert weights[0] == pytest.approx(1.0, abs=1e-5)
    assert abs(weights[2] - 1.0) > 1e-4

"""The asynchronous loop: at staleness 0 it is the synchronous one; above it, what was sampled by what is known."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess

import pytest
from test_train import LOSS_CURVE, VERIFIER, command, environment, made_on, recipe, run, untimed, wait_for

from rlvr.async_train import staleness_metrics
from rlvr.errors import PolicyError
from rlvr.ledger import Ledger
from rlvr.log import read_metrics
from rlvr.records import Completion, Prompt, Stop, token_versions
from sft_dpo import quickstart_task

pytestmark = pytest.mark.slow

APART = ("placement.mode=disaggregated", "placement.learner_ranks=1", "placement.sampler_ranks=1")


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


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("task")
    quickstart_task.write(folder, seed=1, demonstrations=400, train=64, held_out=8, flawed_share=0.5)
    (folder / "first_letter.py").write_text(VERIFIER)
    return folder


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
    overrides = (*APART, "asynchronous.max_staleness=2", "algorithm.importance_cap=2.0", "training.steps=500")
    process = subprocess.Popen(
        command(recipe(task, run_dir), *overrides, ranks=2),
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
    assert ledger["samples_abandoned"] == 2 * 128  # two steps of 8 prompts x 16 samples
    assert ledger["samples_drawn"] == ledger["samples_trained"] + ledger["samples_abandoned"]
    assert ledger["tokens_drawn"] == ledger["tokens_trained"] + ledger["tokens_abandoned"]

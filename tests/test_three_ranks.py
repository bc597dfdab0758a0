"""Whole runs of two learner ranks and one sampling rank, under ZeRO 3: what they learn, and how they fail."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from first_letter import VERIFIER
from test_train import LOSS_CURVE, MARK, command, environment, marked, recipe, untimed, wait_for

pytestmark = pytest.mark.slow

THREE_RANKS = (
    "placement.mode=disaggregated",
    "placement.learner_ranks=2",
    "placement.sampler_ranks=1",
    "learner.zero_stage=3",
    "training.steps=500",
)
STALL_SECONDS = 20
FAILS_AT_STEP = 2
FAULTY = f"""
import os, sys

if os.environ.get("RANK") == "1" and "rlvr.parts" in sys.modules:  # a learner rank, none of its verifiers
    from rlvr.learner import Learner

    update = Learner.update

    def failing(self, batch, targets, *, step):
        if step == {FAILS_AT_STEP}:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return update(self, batch, targets, step=step)

    Learner.update = failing
"""


@contextmanager
def started(
    task: pathlib.Path, run_dir: pathlib.Path, *overrides: str
) -> Iterator[tuple[subprocess.Popen[str], pathlib.Path]]:
    """The run, and the file of what it says."""
    said = run_dir.parent / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            command(recipe(task, run_dir), *THREE_RANKS, *overrides, ranks=3),
            env=environment() | {MARK: str(run_dir)},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield process, said
    finally:
        for left in marked(str(run_dir)):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait()


def learner_rank(run_dir: pathlib.Path, rank: int) -> int:
    """Its process id: torchrun starts it with its rank among all processes of the run."""
    wanted = f"\0RANK={rank}\0".encode()
    found = [
        pid
        for pid in marked(str(run_dir))
        if wanted in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        and b"\0rlvr\0train\0" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(found) == 1, found
    return found[0]


def test_two_learners_under_zero_3_learn_what_one_colocated_rank_learns_and_one_that_hangs_is_named(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The losses of one colocated rank are committed (tests/test_train.py); sums over ranks round differently."""
    run_dir = tmp_path / "hangs"
    with started(task, run_dir, f"training.stall_timeout_seconds={STALL_SECONDS}") as (process, file):
        wait_for(lambda: (run_dir / "samples" / "step_000003.jsonl").exists())
        stopped = learner_rank(run_dir, 1)
        os.kill(stopped, signal.SIGSTOP)
        wait_for(lambda: "StallError" in file.read_text())
        os.kill(stopped, signal.SIGCONT)  # torchrun would kill it, half a minute later
        wait_for(lambda: not marked(str(run_dir)))
        said = file.read_text()
    assert process.returncode != 0
    assert f"StallError: the run waits for rank 1: no progress for {STALL_SECONDS} s" in said, said[-3000:]
    assert re.search(r"rank 1 \(pid \d+ on \S+\) tells nothing any more: .*; last it was in step \d+", said), said
    assert re.search(r"rank 0 .* waits in step \d+, ", said), said[-3000:]
    committed = json.loads(LOSS_CURVE.read_text())["steps"]
    steps = [line for line in untimed(run_dir) if line["step"]]
    for step, expected in zip(steps[:2], committed[:2], strict=True):
        assert {key: step[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_adapters_of_two_learners_move_the_sampler_and_an_exception_of_one_ends_the_run(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plugin = tmp_path / "first_letter.py"
    plugin.write_text(VERIFIER + FAULTY)
    run_dir = tmp_path / "raises"
    adapters = ("model.lora.rank=4", "model.lora.alpha=16.0", "optimizer.learning_rate=3e-2")
    with started(task, run_dir, *adapters, f'plugins=["{plugin}"]') as (process, file):
        wait_for(lambda: not marked(str(run_dir)), 240)  # an exception needs no deadline
        said = file.read_text()
    assert process.returncode != 0
    assert "RuntimeError: CUDA error: an illegal memory access was encountered" in said, said[-3000:]
    assert "StallError" not in said
    steps = [line for line in untimed(run_dir) if line["step"]]
    assert len(steps) == FAILS_AT_STEP
    # the second step was sampled by weights that one update has moved; learner and sampler agree on its tokens
    assert abs(float(str(steps[1]["policy/kl_reference"]))) > 1e-3
    assert float(str(steps[1]["policy/sampler_difference"])) < 1e-5
    assert max(float(str(step["sync/canary_difference"])) for step in steps) < 1e-5

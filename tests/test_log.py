"""metrics.jsonl is the source of truth; the console, TensorBoard and the samples are views of a step."""

from __future__ import annotations

import json
import math
import pathlib
import time

import pytest

from rlvr.log import Clock, MetricsLog, console_line, read_metrics, write_samples
from rlvr.records import Completion, Prompt, Scored, Stop, Task
from rlvr.run_directory import RunDirectory
from verifiers.base import Verdict

STEP = {
    "reward/mean": 4.5,
    "rollout/groups_without_signal": 0.25,
    "rollout/length_mean_tokens": 9.04,
    "policy/clip_fraction": 0.0512,
    "time/step_seconds": 4.1,
}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> RunDirectory:
    (tmp_path / "samples").mkdir()
    return RunDirectory(tmp_path)


def log_steps(run: RunDirectory, steps: range, *, resume_at: int = 0, tensorboard: bool = False) -> None:
    log = MetricsLog(run, tensorboard=tensorboard, resume_at=resume_at)
    for step in steps:
        log.write(step, {"reward/mean": float(step + resume_at)})
    log.close()


def steps_and_rewards(run: RunDirectory) -> list[tuple[int, float]]:
    return [(line["step"], line["reward/mean"]) for line in read_metrics(run.metrics)]


def test_a_step_is_one_line_of_json(run: RunDirectory) -> None:
    log_steps(run, range(1, 3))
    assert run.metrics.read_text() == '{"step": 1, "reward/mean": 1.0}\n{"step": 2, "reward/mean": 2.0}\n'


def test_a_line_can_be_read_while_the_run_goes_on(run: RunDirectory) -> None:
    log = MetricsLog(run, tensorboard=False, resume_at=0)
    log.write(1, {"reward/mean": 1.0})
    assert steps_and_rewards(run) == [(1, 1.0)]
    log.close()


def test_what_json_cannot_say_becomes_null(run: RunDirectory) -> None:
    log = MetricsLog(run, tensorboard=False, resume_at=0)
    log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5})
    log.close()
    assert read_metrics(run.metrics) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5}]


def test_lines_after_the_checkpoint_are_cut_when_a_run_is_resumed(run: RunDirectory) -> None:
    log_steps(run, range(6))
    log_steps(run, range(4, 6), resume_at=3)  # steps 4 and 5 again: 4 + 3 and 5 + 3
    assert steps_and_rewards(run) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 7.0), (5, 8.0)]


def test_half_a_line_of_a_killed_run_is_cut_too(run: RunDirectory) -> None:
    log_steps(run, range(1, 3))
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "rewa')
    log_steps(run, range(3, 4), resume_at=2)
    assert steps_and_rewards(run) == [(1, 1.0), (2, 2.0), (3, 5.0)]


def test_a_resumed_run_without_metrics_begins_the_file(run: RunDirectory) -> None:
    log_steps(run, range(3, 4), resume_at=2)
    assert steps_and_rewards(run) == [(3, 5.0)]


def test_tensorboard_shows_every_step_once_after_a_resume(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(run, range(1, 6), tensorboard=True)
    time.sleep(1.1)  # event files are named by the second
    log_steps(run, range(4, 6), resume_at=3, tensorboard=True)
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("reward/mean")] == steps_and_rewards(run)


def test_the_console_line_shows_a_step_in_one_line() -> None:
    stages = {f"time/{name}_seconds": seconds for name, seconds in zip(("rollout", "verify"), (1.25, 0.1), strict=True)}
    assert console_line(7, 1200, STEP | stages) == (
        "step    7/1200 reward 4.50 no-signal 25% len 9.0 clip 5.1% | 4.1 s: rollout 1.2, verify 0.1"
    )
    with_kl = STEP | {"policy/kl_reference": 0.01234, "time/update_seconds": 2.0, "time/sync_seconds": 0.75}
    assert console_line(12, 20, with_kl) == (
        "step 12/20 reward 4.50 no-signal 25% len 9.0 kl 0.0123 clip 5.1% | 4.1 s: update 2.0, sync 0.8"
    )


def test_a_clock_adds_up_a_stage_that_is_entered_twice() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.stage("rollout"):
            time.sleep(0.01)
    metrics = clock.metrics()
    assert set(metrics) == {"time/rollout_seconds", "time/step_seconds"}
    assert 0.02 <= metrics["time/rollout_seconds"] <= metrics["time/step_seconds"]


def scored(prompt_id: int, sample: int, reward: float | None) -> Scored:
    verdict = Verdict.indeterminate("timed out") if reward is None else Verdict.from_score(reward / 10, "seen")
    prompt = Prompt(prompt_id=prompt_id, token_ids=(1,), text="q", tasks=(Task(verifier="math", ground_truth="3"),))
    completion = Completion(
        prompt=prompt,
        sample=sample,
        place=0,
        token_ids=(1, 2),
        logprobs=(-0.1, -0.2),
        text=f"answer {sample} é",
        stop=Stop.EOS,
        policy_version=0,
    )
    return Scored(
        completion=completion, verdicts=(verdict,), score=None if reward is None else reward / 10, reward=reward
    )


def sample_lines(run: RunDirectory) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.samples / "step_000003.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_best_and_the_worst_of_each_group_are_written_with_their_verdicts(run: RunDirectory) -> None:
    rewards = {1: [5.0, 10.0, 0.0], 2: [0.0, 10.0], 3: [10.0]}
    batch = [scored(prompt, n, reward) for prompt, group in rewards.items() for n, reward in enumerate(group)]
    write_samples(run, 3, batch, groups=2)
    lines = sample_lines(run)
    assert [(line["prompt_id"], line["kind"], line["completion"]) for line in lines] == [
        (1, "best", "answer 1 é"),
        (1, "worst", "answer 2 é"),
        (2, "best", "answer 1 é"),
        (2, "worst", "answer 0 é"),
    ]
    assert lines[1] == {
        "step": 3,
        "kind": "worst",
        "prompt_id": 1,
        "prompt": "q",
        "completion": "answer 2 é",
        "stop": "eos",
        "tokens": 2,
        "reward": 0.0,
        "verdicts": [{"verifier": "math", "ground_truth": "3", "outcome": "wrong", "score": 0.0, "detail": "seen"}],
    }


def test_an_indeterminate_completion_is_never_called_the_worst(run: RunDirectory) -> None:
    write_samples(run, 3, [scored(1, 0, None), scored(1, 1, 0.0), scored(1, 2, 10.0), scored(2, 0, None)], groups=5)
    assert [(line["prompt_id"], line["kind"], line["reward"]) for line in sample_lines(run)] == [
        (1, "best", 10.0),
        (1, "worst", 0.0),
        (1, "indeterminate", None),
        (2, "indeterminate", None),
    ]


def test_an_indeterminate_completion_is_shown_wherever_it_is(run: RunDirectory) -> None:
    batch = [scored(1, 0, 10.0), scored(2, 0, 10.0), scored(3, 0, None), scored(3, 1, None), scored(3, 2, 0.0)]
    write_samples(run, 3, batch, groups=1)
    assert [(line["prompt_id"], line["kind"]) for line in sample_lines(run)] == [(1, "only"), (3, "indeterminate")]


def test_a_single_completion_is_neither_best_nor_worst(run: RunDirectory) -> None:
    write_samples(run, 3, [scored(1, 0, 10.0)], groups=5)
    assert [line["kind"] for line in sample_lines(run)] == ["only"]

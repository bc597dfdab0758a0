"""What of a rollout is arithmetic: shares of the ranks, the arrays for the learner, and the metrics."""

from __future__ import annotations

import math

import pytest
import torch

from rlvr.records import Completion, Prompt, Scored, Stop, Task
from rlvr.rollout import rollout_metrics, share_of_rank, trajectories
from verifiers.base import Verdict


def completion(number: int, tokens: tuple[int, ...], *, stop: Stop = Stop.EOS) -> Completion:
    return Completion(
        prompt=Prompt(prompt_id=number, token_ids=(9, number), text="q", tasks=(Task(verifier="m", ground_truth="3"),)),
        sample=0,
        place=2 * number,
        token_ids=tokens,
        logprobs=tuple(-token / 10 for token in tokens),
        text="",
        stop=stop,
        policy_version=0,
    )


def scored(one: Completion, reward: float | None) -> Scored:
    return Scored(completion=one, verdicts=(Verdict.correct(),), score=reward and 1.0, reward=reward)


def test_indeterminate_completions_are_left_out_and_tokens_stay_aligned() -> None:
    batch = trajectories(
        [
            scored(completion(4, (1, 2)), 10.0),
            scored(completion(5, (3,)), None),
            scored(completion(6, (5, 6, 7)), -10.0),
        ]
    )
    assert batch.prompt_ids == ((9, 4), (9, 6))
    assert batch.completion_ids == ((1, 2), (5, 6, 7))
    assert batch.lengths.tolist() == [2, 3]
    assert batch.groups.tolist() == [8, 12]
    assert batch.rewards.tolist() == [10.0, -10.0]
    torch.testing.assert_close(batch.sampler_logprobs, torch.tensor([-0.1, -0.2, -0.5, -0.6, -0.7]))


def test_an_empty_batch_keeps_its_types() -> None:
    batch = trajectories([])
    assert (batch.lengths.dtype, batch.groups.dtype) == (torch.int64, torch.int64)
    assert (batch.rewards.dtype, batch.sampler_logprobs.dtype) == (torch.float32, torch.float32)


def test_metrics_count_tokens_truncation_and_speed() -> None:
    done = [completion(1, (1, 2)), completion(2, (1, 2, 3, 4), stop=Stop.LENGTH), completion(3, (1, 2, 3))]
    assert rollout_metrics(done, seconds=0.5, idle_seconds=0.01) == {
        "rollout/tokens": 9.0,
        "rollout/completions": 3.0,
        "rollout/length_mean_tokens": 3.0,
        "rollout/length_max_tokens": 4.0,
        "rollout/truncated": pytest.approx(1 / 3),
        "rollout/tokens_per_second": 18.0,
        "rollout/idle_while_scoring_seconds": 0.01,
    }


def test_a_rollout_of_nothing_has_no_mean() -> None:
    metrics = rollout_metrics([], seconds=0.0)
    assert metrics["rollout/completions"] == 0
    assert all(
        math.isnan(metrics[f"rollout/{name}"]) for name in ("length_mean_tokens", "truncated", "tokens_per_second")
    )


def test_one_rank_has_everything() -> None:
    assert share_of_rank([3, 1, 2]) == [3, 1, 2]

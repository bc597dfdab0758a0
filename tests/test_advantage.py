"""Rewards per token, GAE and whitening: by hand, and against a version that follows the sums of the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import samples_of

from rlvr.advantage import generalized_advantage_estimation, token_rewards, whiten

NUMBER = st.floats(-10.0, 10.0, width=32)
RAGGED = st.lists(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=7), min_size=1, max_size=5)
DISCOUNT = st.floats(0.0, 1.0)


def flat(samples: list[list[tuple[float, float]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rewards = torch.tensor([r for sample in samples for r, _ in sample])
    values = torch.tensor([v for sample in samples for _, v in sample])
    return rewards, values, torch.tensor([len(sample) for sample in samples])


def slow_gae(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """Eq. 16 of arXiv 1506.02438 as it stands: A_t = sum over l of (gamma lambda)^l delta_{t+l}."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def test_gae_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 5.0])
    values = torch.tensor([3.0, 1.0, 2.0, 1.0])
    advantages, returns = generalized_advantage_estimation(
        rewards, values, torch.tensor([3, 1]), gamma=0.5, gae_lambda=0.5
    )
    # first sample, deltas r + 0.5 V' - V:  1 + 0.5 - 3 = -1.5;  2 + 1 - 1 = 2;  4 + 0 - 2 = 2;  gamma lambda = 0.25
    #   A_2 = 2;  A_1 = 2 + 0.25 x 2 = 2.5;  A_0 = -1.5 + 0.25 x 2.5 = -0.875
    # second sample: 5 + 0 - 1 = 4, and the first sample saw nothing of it
    assert advantages.tolist() == [-0.875, 2.5, 2.0, 4.0]
    assert returns.tolist() == [2.125, 3.5, 4.0, 5.0]


@given(RAGGED, DISCOUNT, DISCOUNT)
def test_gae_equals_the_sum_of_discounted_errors(
    samples: list[list[tuple[float, float]]], gamma: float, gae_lambda: float
) -> None:
    rewards, values, lengths = flat(samples)
    advantages, returns = generalized_advantage_estimation(rewards, values, lengths, gamma=gamma, gae_lambda=gae_lambda)
    expected = [
        a
        for r, v in zip(samples_of(rewards, lengths), samples_of(values, lengths), strict=True)
        for a in slow_gae(r, v, gamma, gae_lambda)
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(returns, advantages + values)


@given(RAGGED)
def test_with_gamma_and_lambda_one_the_advantage_is_the_return_to_go_minus_the_value(
    samples: list[list[tuple[float, float]]],
) -> None:
    rewards, values, lengths = flat(samples)
    advantages, returns = generalized_advantage_estimation(rewards, values, lengths, gamma=1.0, gae_lambda=1.0)
    to_go = torch.tensor([sum(r[t:]) for r in samples_of(rewards, lengths) for t in range(len(r))])
    torch.testing.assert_close(returns, to_go, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(advantages, to_go - values, rtol=1e-4, atol=1e-4)


@given(RAGGED, DISCOUNT)
def test_with_lambda_zero_the_advantage_is_the_one_step_error(
    samples: list[list[tuple[float, float]]], gamma: float
) -> None:
    rewards, values, lengths = flat(samples)
    advantages, _ = generalized_advantage_estimation(rewards, values, lengths, gamma=gamma, gae_lambda=0.0)
    expected = [
        r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t]
        for r, v in zip(samples_of(rewards, lengths), samples_of(values, lengths), strict=True)
        for t in range(len(r))
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_gae_of_a_rank_without_samples_is_empty() -> None:
    nothing = torch.zeros(0)
    rewards = token_rewards(nothing, torch.zeros(0, dtype=torch.int64), None, 0.0)
    advantages, returns = generalized_advantage_estimation(
        rewards, nothing, torch.zeros(0, dtype=torch.int64), gamma=1.0, gae_lambda=0.95
    )
    assert advantages.shape == returns.shape == (0,)


def test_token_rewards_by_hand() -> None:
    kl = torch.tensor([0.1, -0.2, 0.3, 0.5])
    rewards = token_rewards(torch.tensor([10.0, -10.0]), torch.tensor([3, 1]), kl, 0.5)
    # -0.5 kl everywhere: -0.05, 0.1, -0.15, -0.25; the sample's reward on its last token: tokens 2 and 3
    assert rewards.tolist() == pytest.approx([-0.05, 0.1, 9.85, -10.25])


def test_token_rewards_without_a_penalty_are_zero_but_for_the_last_token_of_each_sample() -> None:
    rewards = token_rewards(torch.tensor([10.0, 7.0]), torch.tensor([2, 3]), None, 0.05)
    assert rewards.tolist() == [0.0, 10.0, 0.0, 0.0, 7.0]


@given(st.lists(st.tuples(NUMBER, st.lists(NUMBER, min_size=1, max_size=6)), min_size=1, max_size=5), DISCOUNT)
def test_token_rewards_equal_a_loop_over_samples(samples: list[tuple[float, list[float]]], beta: float) -> None:
    expected = []
    for reward, kl in samples:
        row = [-beta * k for k in kl]
        row[-1] += reward
        expected.extend(row)
    ours = token_rewards(
        torch.tensor([reward for reward, _ in samples]),
        torch.tensor([len(kl) for _, kl in samples]),
        torch.tensor([k for _, kl in samples for k in kl]),
        beta,
    )
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_whitening_by_hand() -> None:
    # 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7, standard deviation 2.645751
    whitened = whiten(torch.tensor([1.0, 2.0, 6.0]), mean=3.0, variance=7.0)
    assert whitened.tolist() == pytest.approx([-0.755929, -0.377964, 1.133893], abs=1e-6)


def test_whitening_equal_advantages_gives_zeros_and_not_nan() -> None:
    assert whiten(torch.full((3,), 2.5), mean=2.5, variance=0.0).tolist() == [0.0, 0.0, 0.0]

"""Rewards per token, GAE and whitening: by hand, and against a version that follows the sums of the paper."""

from __future__ import annotations

import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import samples_of

from rlvr.advantage import (
    GROUP_ADVANTAGES,
    generalized_advantage_estimation,
    group_moments,
    rewards_to_go,
    token_rewards,
    whiten,
)
from rlvr.config import Algorithm

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


REWARDS = torch.tensor([10.0, 0.0, 4.0, 4.0, 0.0, 7.0, 2.0]).double()
GROUPS = torch.tensor([24, 24, 8, 8, 24, 16, 24])
# group 24: 10, 0, 0, 2: mean 3, squares 49 + 9 + 9 + 1 = 68, deviation sqrt(68 / 3) = 4.760952
# group 8: 4, 4, without signal; group 16: one sample, without a baseline


def group_advantage(name: str) -> list[float]:
    return GROUP_ADVANTAGES[name](REWARDS, group_moments(REWARDS, GROUPS)).tolist()


def test_grpo_by_hand() -> None:
    # 7 / 4.760952 = 1.470294; -3 / 4.760952 = -0.630126; -1 / 4.760952 = -0.210042
    expected = [1.470294, -0.630126, 0.0, 0.0, -0.630126, 0.0, -0.210042]
    assert group_advantage("grpo") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["dr_grpo", "reinforce_plus_plus_baseline"])
def test_dr_grpo_and_the_baseline_of_reinforce_plus_plus_by_hand(name: str) -> None:
    assert group_advantage(name) == pytest.approx([7.0, -3.0, 0.0, 0.0, -3.0, 0.0, -1.0])


def test_rloo_by_hand() -> None:
    # means of the others: 2 / 3, 4, 4, 10 / 3:  10 - 0.666667; 0 - 4; 0 - 4; 2 - 3.333333
    assert group_advantage("rloo") == pytest.approx([9.333333, -4.0, 0.0, 0.0, -4.0, 0.0, -1.333333], abs=1e-6)


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_a_group_of_equal_rewards_and_a_lone_sample_get_exactly_nothing(name: str) -> None:
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.3]).double()  # 3 x 0.1 / 3 is not 0.1 in binary
    group = group_moments(rewards, torch.tensor([0, 0, 0, 1]))
    assert GROUP_ADVANTAGES[name](rewards, group).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_rank_without_samples_has_no_group_advantages() -> None:
    nothing = torch.zeros(0).double()
    group = group_moments(nothing, torch.zeros(0, dtype=torch.int64))
    assert all(advantage(nothing, group).shape == (0,) for advantage in GROUP_ADVANTAGES.values())


@given(st.lists(st.lists(NUMBER, min_size=1, max_size=6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_group_advantages_equal_loops_over_groups_in_any_order(groups: list[list[float]], random: object) -> None:
    slow: dict[str, list[float]] = {name: [] for name in GROUP_ADVANTAGES}
    for group in groups:
        mean = sum(group) / len(group)
        deviation = (sum((r - mean) ** 2 for r in group) / max(len(group) - 1, 1)) ** 0.5
        for r in group:
            known = max(group) > min(group)
            others = (sum(group) - r) / max(len(group) - 1, 1)
            slow["grpo"].append((r - mean) / (deviation + 1e-8) if known else 0.0)
            slow["rloo"].append(r - others if known else 0.0)
            for name in ("dr_grpo", "reinforce_plus_plus_baseline"):
                slow[name].append(r - mean if known else 0.0)
    rewards = torch.tensor([r for group in groups for r in group], dtype=torch.float64)
    names = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for name, advantage in GROUP_ADVANTAGES.items():
        ours = advantage(rewards[order], group_moments(rewards[order], names[order]))
        torch.testing.assert_close(ours, torch.tensor(slow[name], dtype=torch.float64)[order], rtol=1e-4, atol=1e-6)


def test_every_advantage_of_the_recipe_is_computed_somewhere() -> None:
    by_token = {"gae", "reinforce_plus_plus"}
    assert set(typing.get_args(Algorithm.model_fields["advantage"].annotation)) == by_token | set(GROUP_ADVANTAGES)


def test_reinforce_plus_plus_by_hand() -> None:
    # a KL penalty of 0.5 on each token, 10 and -10 at the ends: what is still to come
    rewards = token_rewards(torch.tensor([10.0, -10.0]), torch.tensor([3, 1]), torch.full((4,), 0.5), 1.0)
    assert rewards_to_go(rewards, torch.tensor([3, 1]), gamma=1.0).tolist() == [8.5, 9.0, 9.5, -10.5]
    # gamma 0.5: 9.5, then -0.5 + 4.75 = 4.25, then -0.5 + 2.125 = 1.625
    assert rewards_to_go(rewards, torch.tensor([3, 1]), gamma=0.5).tolist() == [1.625, 4.25, 9.5, -10.5]


def test_whitening_by_hand() -> None:
    # 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7, standard deviation 2.645751
    whitened = whiten(torch.tensor([1.0, 2.0, 6.0]), mean=3.0, variance=7.0)
    assert whitened.tolist() == pytest.approx([-0.755929, -0.377964, 1.133893], abs=1e-6)


def test_whitening_equal_advantages_gives_zeros_and_not_nan() -> None:
    assert whiten(torch.full((3,), 2.5), mean=2.5, variance=0.0).tolist() == [0.0, 0.0, 0.0]

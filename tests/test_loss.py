"""The objective: numbers worked out by hand, an independent slow version, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.loss import clipped_policy_loss, clipped_value_loss, kl_estimate, truncated_importance_weights

LOGPROB = st.floats(-8.0, 0.0, width=32)
NUMBER = st.floats(-20.0, 20.0, width=32)


def gradient_of(loss: torch.Tensor, variable: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), variable)[0].tolist()


def test_the_clipped_objective_in_all_four_cases_by_hand() -> None:
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0])
    logprobs = ratios.log().requires_grad_()
    loss, clipped = clipped_policy_loss(logprobs, torch.zeros(4), advantages, clip_ratio=0.2)
    # objective = min(ratio A, clip(ratio, 0.8, 1.2) A), loss = -objective
    #   A > 0, ratio 1.5: min( 3.0,  2.4) =  2.4, clipped: nothing more to gain from raising a good token
    #   A > 0, ratio 0.5: min( 1.0,  1.6) =  1.0
    #   A < 0, ratio 1.5: min(-3.0, -2.4) = -3.0
    #   A < 0, ratio 0.5: min(-1.0, -1.6) = -1.6, clipped: nothing more to gain from lowering a bad token
    assert loss.tolist() == pytest.approx([-2.4, -1.0, 3.0, 1.6])
    assert clipped.tolist() == [1.0, 0.0, 0.0, 1.0]
    # d(-A ratio) / d logprob = -A ratio where not clipped, 0 where clipped
    assert gradient_of(loss, logprobs) == pytest.approx([0.0, -1.0, 3.0, 0.0])


def test_at_ratio_one_the_gradient_is_minus_the_advantage_and_nothing_is_clipped() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([0.7, -1.3, 0.0])
    loss, clipped = clipped_policy_loss(logprobs, logprobs.detach().clone(), advantages, clip_ratio=0.2)
    assert gradient_of(loss, logprobs) == pytest.approx((-advantages).tolist())
    assert clipped.tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.tuples(LOGPROB, LOGPROB, NUMBER), min_size=1, max_size=8), st.floats(0.01, 0.9))
def test_the_clipped_objective_equals_its_formula(rows: list[tuple[float, float, float]], clip: float) -> None:
    new, old, advantages = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    loss, clipped = clipped_policy_loss(new, old, advantages, clip_ratio=clip)
    for i, (n, o, a) in enumerate(rows):
        ratio = math.exp(n - o)
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        assert loss[i].item() == pytest.approx(-min(ratio * a, bounded * a), abs=1e-12)
        lost = (a > 0 and ratio > 1 + clip) or (a < 0 and ratio < 1 - clip)
        # at the very edge, or with a vanishing advantage, both sides of the max round to one number
        assert bool(clipped[i]) == lost or abs(a * (ratio - bounded)) < 1e-9


def test_the_value_loss_by_hand() -> None:
    values = torch.tensor([1.0, 0.1, 1.0, -3.0], requires_grad=True)
    old = torch.tensor([0.0, 0.0, 0.0, 0.0])
    returns = torch.tensor([2.0, 2.0, -1.0, -1.0])
    loss, clipped = clipped_value_loss(values, old, returns, value_clip=0.2)
    #   near = 0.2: 0.5 max((1 - 2)^2 = 1, (0.2 - 2)^2 = 3.24) = 1.62, clipped: moved enough already
    #   near = 0.1: inside the range, 0.5 (0.1 - 2)^2 = 1.805
    #   near = 0.2: 0.5 max((1 + 1)^2 = 4, (0.2 + 1)^2 = 1.44) = 2.0, moved the wrong way: not clipped
    #   near = -0.2: 0.5 max((-3 + 1)^2 = 4, (-0.2 + 1)^2 = 0.64) = 2.0, overshot: not clipped
    assert loss.tolist() == pytest.approx([1.62, 1.805, 2.0, 2.0])
    assert clipped.tolist() == [1.0, 0.0, 0.0, 0.0]
    # d/dv 0.5 (v - R)^2 = v - R where not clipped
    assert gradient_of(loss, values) == pytest.approx([0.0, -1.9, 2.0, -2.0])


@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=8), st.floats(0.01, 5.0))
def test_the_value_loss_equals_its_formula(rows: list[tuple[float, float, float]], clip: float) -> None:
    values, old, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    loss, _ = clipped_value_loss(values, old, returns, value_clip=clip)
    for i, (v, o, r) in enumerate(rows):
        near = max(o - clip, min(o + clip, v))
        assert loss[i].item() == pytest.approx(max((v - r) ** 2, (near - r) ** 2) / 2, rel=1e-9, abs=1e-12)
        assert loss[i].item() >= 0.5 * (v - r) ** 2 - 1e-12  # clipping is pessimistic: it never makes the loss smaller


def test_each_kl_estimator_by_hand() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # d = 0.5, -1.0
    assert kl_estimate(logprobs, reference, "k1").tolist() == pytest.approx([0.5, -1.0])
    assert kl_estimate(logprobs, reference, "k2").tolist() == pytest.approx([0.125, 0.5])
    # exp(-0.5) - 1 + 0.5 = 0.106531; exp(1) - 1 - 1 = 0.718282
    assert kl_estimate(logprobs, reference, "k3").tolist() == pytest.approx([0.106531, 0.718282], abs=1e-6)


def test_k1_and_k3_have_the_true_kl_as_mean_and_k2_nearly() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    # 0.5 ln(5/4) + 0.3 ln(3/4) + 0.2 ln 1 = 0.111572 - 0.086305 = 0.025267
    mean = {k: (policy * kl_estimate(policy.log(), reference.log(), k)).sum().item() for k in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(0.025267, abs=1e-6)
    assert mean["k3"] == pytest.approx(0.025267, abs=1e-6)
    assert mean["k2"] == pytest.approx(0.025267, rel=0.1)
    assert abs(mean["k2"] - mean["k1"]) > 1e-6  # biased, if little


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.0), ("k2", 1.0), ("k3", None)])
def test_only_k2_in_the_loss_has_the_gradient_of_the_kl_on_average(estimator: str, expected: float | None) -> None:
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    logprobs = logits.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    (true,) = torch.autograd.grad(kl, logits, retain_graph=True)
    # tokens are drawn from the policy, and their draw carries no gradient
    sampled = (logprobs.detach().exp() * kl_estimate(logprobs, reference, estimator)).sum()
    (ours,) = torch.autograd.grad(sampled, logits)
    if expected is None:  # k3: the gradient of KL(reference || policy), which is policy - reference in the logits
        torch.testing.assert_close(ours, logprobs.detach().exp() - reference.exp())
    else:
        torch.testing.assert_close(ours, expected * true)


@given(LOGPROB, LOGPROB)
def test_k2_and_k3_are_never_negative_and_all_are_zero_without_a_difference(one: float, other: float) -> None:
    a, b = torch.tensor([one], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)
    d = one - other
    slow = {"k1": d, "k2": d * d / 2, "k3": math.expm1(-d) + d}
    for estimator, expected in slow.items():
        assert kl_estimate(a, b, estimator).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert kl_estimate(a, a, estimator).item() == 0.0
    assert kl_estimate(a, b, "k2").item() >= 0.0
    assert kl_estimate(a, b, "k3").item() >= -1e-12


def test_an_unknown_estimator_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="k1, k2, k3; got 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_importance_weights_are_cut_at_the_cap_only_from_above_and_carry_no_gradient() -> None:
    learner = torch.tensor([0.5, 3.0, 1.0, 1e-4]).log().requires_grad_()
    weights = truncated_importance_weights(learner, torch.ones(4).log(), cap=2.0)
    # min(0.5, 2), min(3, 2), min(1, 2), min(0.0001, 2)
    assert weights.tolist() == pytest.approx([0.5, 2.0, 1.0, 1e-4])
    assert not weights.requires_grad

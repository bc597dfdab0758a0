"""The objective: numbers worked out by hand, an independent slow version, and gradients."""

from __future__ import annotations

import math
import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.config import Algorithm
from rlvr.loss import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    POLICY_LOSSES,
    Clip,
    Denominators,
    aggregate,
    clipped_policy_loss,
    clipped_value_loss,
    kl_estimate,
    sequence_policy_loss,
    weighted_policy_loss,
)

LOGPROB = st.floats(-8.0, 0.0, width=32)
NUMBER = st.floats(-20.0, 20.0, width=32)


def gradient_of(loss: torch.Tensor, variable: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), variable)[0].tolist()


def alone(count: int) -> torch.Tensor:
    """Samples of one token each."""
    return torch.arange(count)


def test_the_clipped_objective_in_all_four_cases_by_hand() -> None:
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0])
    logprobs = ratios.log().requires_grad_()
    found = clipped_policy_loss(logprobs, torch.zeros(4), advantages, alone(4), Clip(low=0.2, high=0.2))
    # objective = min(ratio A, clip(ratio, 0.8, 1.2) A), loss = -objective
    #   A > 0, ratio 1.5: min( 3.0,  2.4) =  2.4, clipped: nothing more to gain from raising a good token
    #   A > 0, ratio 0.5: min( 1.0,  1.6) =  1.0
    #   A < 0, ratio 1.5: min(-3.0, -2.4) = -3.0
    #   A < 0, ratio 0.5: min(-1.0, -1.6) = -1.6, clipped: nothing more to gain from lowering a bad token
    assert found.losses.tolist() == pytest.approx([-2.4, -1.0, 3.0, 1.6])
    assert found.clipped_high.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.clipped_low.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found.clipped_dual.tolist() == [0.0, 0.0, 0.0, 0.0]
    # d(-A ratio) / d logprob = -A ratio where not clipped, 0 where clipped
    assert gradient_of(found.losses, logprobs) == pytest.approx([0.0, -1.0, 3.0, 0.0])


def test_clip_higher_lets_good_tokens_rise_further_and_bad_ones_fall_no_further() -> None:
    logprobs = torch.tensor([1.25, 1.35, 0.75]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0])
    found = clipped_policy_loss(logprobs, torch.zeros(3), advantages, alone(3), Clip(low=0.2, high=0.28))
    # 1.25 < 1.28: whole; 1.35 -> 1.28, no gradient; 0.75 -> 0.8, no gradient
    assert found.losses.tolist() == pytest.approx([-1.25, -1.28, 0.8])
    assert (found.clipped_low.tolist(), found.clipped_high.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert gradient_of(found.losses, logprobs) == pytest.approx([-1.25, 0.0, 0.0])


def test_the_dual_clip_bounds_the_loss_of_a_bad_token_that_has_become_likely() -> None:
    logprobs = torch.tensor([2.0, 5.0, 5.0]).log().requires_grad_()
    advantages = torch.tensor([-1.0, -1.0, 1.0])
    found = clipped_policy_loss(logprobs, torch.zeros(3), advantages, alone(3), Clip(low=0.2, high=0.2, dual=3.0))
    # A < 0: objective = max(min(ratio A, clip(ratio) A), 3 A): max(-2, -3) = -2; max(-5, -3) = -3, no gradient
    # A > 0: min(5, 1.2) = 1.2, as without it
    assert found.losses.tolist() == pytest.approx([2.0, 3.0, -1.2])
    assert found.clipped_dual.tolist() == [0.0, 1.0, 0.0]
    assert gradient_of(found.losses, logprobs) == pytest.approx([2.0, 0.0, 0.0])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_at_ratio_one_every_objective_has_minus_the_advantage_as_gradient_and_clips_nothing(name: str) -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([0.7, 0.7, -1.3])
    samples = torch.tensor([0, 0, 1])
    clip = Clip(low=0.2, high=0.3)
    found = POLICY_LOSSES[name](logprobs, logprobs.detach().clone(), advantages, samples, clip)
    assert gradient_of(found.losses, logprobs) == pytest.approx((-advantages).tolist())
    assert (found.clipped_low + found.clipped_high + found.clipped_dual).tolist() == [0.0, 0.0, 0.0]


@given(
    st.lists(st.tuples(LOGPROB, LOGPROB, NUMBER), min_size=1, max_size=8),
    st.floats(0.01, 0.9),
    st.floats(0.01, 0.9),
    st.one_of(st.none(), st.floats(1.1, 5.0)),
)
def test_the_clipped_objective_equals_its_formula(
    rows: list[tuple[float, float, float]], low: float, high: float, dual: float | None
) -> None:
    new, old, advantages = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    found = clipped_policy_loss(new, old, advantages, alone(len(rows)), Clip(low=low, high=high, dual=dual))
    for i, (n, o, a) in enumerate(rows):
        ratio = math.exp(n - o)
        bounded = min(max(ratio, 1 - low), 1 + high)
        objective = min(ratio * a, bounded * a)
        if dual is not None and a < 0:
            objective = max(objective, dual * a)
        assert found.losses[i].item() == pytest.approx(-objective, abs=1e-12)
        # at the very edge, or with a vanishing advantage, both sides of the max round to one number
        near = abs(a * (ratio - bounded)) < 1e-9
        assert bool(found.clipped_high[i]) == (a > 0 and ratio > 1 + high) or near
        assert bool(found.clipped_low[i]) == (a < 0 and ratio < 1 - low) or near


def test_gspo_by_hand() -> None:
    logprobs = torch.tensor([1.0, 1.21, 0.5]).log().requires_grad_()
    samples = torch.tensor([3, 3, 8])
    advantages = torch.tensor([2.0, 2.0, -1.0])
    # sample 3: geometric mean of 1 and 1.21 = 1.1, inside; sample 8: 0.5, clipped to 0.8
    wide = sequence_policy_loss(logprobs, torch.zeros(3), advantages, samples, Clip(low=0.2, high=0.2))
    assert wide.losses.tolist() == pytest.approx([-2.2, -2.2, 0.8])
    assert wide.clipped_low.tolist() == [0.0, 0.0, 1.0]
    # averaged over each sample's tokens: d/dlogp of -A s = -A s / |y| = -2.2 / 2, the gradient of GSPO itself
    over = Denominators(tokens_in_global_batch=3, samples_in_global_batch=2, max_tokens=9)
    loss = aggregate(wide.losses, samples, "sequence", over)
    assert torch.autograd.grad(2 * loss, logprobs, retain_graph=True)[0].tolist() == pytest.approx([-1.1, -1.1, 0.0])
    # one bound for the whole sample: at 0.05 both tokens stop, though the first has not moved
    narrow = sequence_policy_loss(logprobs, torch.zeros(3), advantages, samples, Clip(low=0.05, high=0.05))
    assert narrow.losses.tolist() == pytest.approx([-2.1, -2.1, 0.95])
    assert gradient_of(narrow.losses, logprobs) == [0.0, 0.0, 0.0]


def test_gspo_is_the_gradient_of_its_own_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs = (-torch.rand(7, generator=generator)).double().requires_grad_()
    old = (-torch.rand(7, generator=generator)).double()
    samples = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    advantages = torch.tensor([1.5, 1.5, 1.5, -2.0, -2.0, 0.5, 0.5]).double()
    clip = Clip(low=0.1, high=0.15)
    over = Denominators(tokens_in_global_batch=7, samples_in_global_batch=3, max_tokens=9)
    found = sequence_policy_loss(logprobs, old, advantages, samples, clip)
    ours = aggregate(found.losses, samples, "sequence", over)
    slow = torch.zeros((), dtype=torch.float64)
    for name in range(3):  # arXiv 2507.18071: s = (p(y) / p_old(y)) ^ (1 / |y|), min(s A, clip(s) A), mean over samples
        at = samples == name
        s = ((logprobs[at] - old[at]).sum() / at.sum()).exp()
        a = advantages[at][0]
        slow = slow - torch.minimum(s * a, s.clamp(0.9, 1.15) * a) / 3
    assert ours.item() == pytest.approx(slow.item())
    ((mine,), (its,)) = (torch.autograd.grad(loss, logprobs) for loss in (ours, slow))
    torch.testing.assert_close(mine, its)


def test_cispo_by_hand_keeps_the_gradient_of_tokens_that_ppo_would_drop() -> None:
    logprobs = torch.tensor([1.5, 0.5, 1.5]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0])
    found = weighted_policy_loss(logprobs, torch.zeros(3), advantages, alone(3), Clip(low=1.0, high=0.2))
    # weight min(ratio, 1.2), no lower bound: 1.2, 0.5, 1.2; loss = -weight A log p; gradient = -weight A
    expected = [-2.4 * math.log(1.5), -1.0 * math.log(0.5), 2.4 * math.log(1.5)]
    assert found.losses.tolist() == pytest.approx(expected)
    assert gradient_of(found.losses, logprobs) == pytest.approx([-2.4, -1.0, 2.4])
    assert (found.clipped_low.tolist(), found.clipped_high.tolist()) == ([0, 0, 0], [1, 0, 1])


def test_every_choice_of_the_recipe_has_its_function() -> None:
    fields = Algorithm.model_fields
    assert set(typing.get_args(fields["loss"].annotation)) == set(POLICY_LOSSES)
    assert typing.get_args(fields["loss_aggregation"].annotation) == AGGREGATIONS
    assert typing.get_args(fields["kl_estimator"].annotation) == KL_ESTIMATORS


def test_each_aggregation_by_hand() -> None:
    losses, samples = torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([4, 4, 4, 0])
    over = Denominators(tokens_in_global_batch=4, samples_in_global_batch=2, max_tokens=10)
    # token: 14 / 4; sequence: (9 / 3 + 5) / 2; constant: 14 / (2 x 10)
    assert aggregate(losses, samples, "token", over).item() == pytest.approx(3.5)
    assert aggregate(losses, samples, "sequence", over).item() == pytest.approx(4.0)
    assert aggregate(losses, samples, "constant", over).item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="token, sequence, constant; got 'mean'"):
        aggregate(losses, samples, "mean", over)


@given(st.lists(st.lists(NUMBER, min_size=1, max_size=4), min_size=1, max_size=6), st.sampled_from(AGGREGATIONS))
def test_the_loss_of_a_batch_is_the_sum_of_its_rows_losses_however_it_is_cut(
    batch: list[list[float]], aggregation: str
) -> None:
    over = Denominators(tokens_in_global_batch=sum(map(len, batch)), samples_in_global_batch=len(batch), max_tokens=4)
    values = [torch.tensor(sample, dtype=torch.float64) for sample in batch]
    names = [torch.full((len(sample),), i) for i, sample in enumerate(batch)]
    whole = aggregate(torch.cat(values), torch.cat(names), aggregation, over)
    rows = sum(aggregate(one, name, aggregation, over) for one, name in zip(values, names, strict=True))
    assert rows == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)


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

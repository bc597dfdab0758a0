"""Weights against the sampler's log-probs, and measures of the difference: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.importance import Correction, importance_weights, mismatch_metrics, mismatch_sums

RATIOS = torch.tensor([0.4, 0.5, 1.0, 3.0, 5.0, 6.0])
SAMPLES = torch.tensor([0, 0, 0, 1, 1, 2])


def weights(correction: Correction) -> list[float]:
    learner = RATIOS.log().requires_grad_()
    found = importance_weights(learner, torch.zeros(6), SAMPLES, correction)
    assert not found.requires_grad
    return [round(weight, 4) for weight in found.tolist()]


def test_the_cap_cuts_from_above_only() -> None:
    assert weights(Correction(cap=2.0)) == [0.4, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_the_mask_drops_what_is_outside_and_leaves_the_rest_whole() -> None:
    # log and exp move 0.5 and 5 by a rounding; IcePop's bounds are 0.5 and 5
    assert weights(Correction(mask=(0.499, 5.001))) == [0.0, 0.5, 1.0, 3.0, 5.0, 0.0]
    # masked importance sampling has no lower bound
    assert weights(Correction(mask=(0.0, 2.0))) == [0.4, 0.5, 1.0, 0.0, 0.0, 0.0]


def test_mask_and_cap_together() -> None:
    assert weights(Correction(cap=2.0, mask=(0.499, 5.001))) == [0.0, 0.5, 1.0, 2.0, 2.0, 0.0]


def test_at_the_level_of_sequences_a_sample_has_the_product_of_its_ratios() -> None:
    # 0.4 x 0.5 x 1 = 0.2; 3 x 5 = 15; 6
    assert weights(Correction(level="sequence", mask=(0.0, 100.0))) == [0.2, 0.2, 0.2, 15.0, 15.0, 6.0]
    assert weights(Correction(level="sequence", cap=2.0)) == [0.2, 0.2, 0.2, 2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="token or sequence; got 'word'"):
        weights(Correction(level="word"))


def test_a_long_sample_that_the_sampler_would_never_say_has_a_finite_weight() -> None:
    learner, sampler = torch.zeros(1000), torch.full((1000,), -9.0)  # the product is exp(9000)
    found = importance_weights(
        learner, sampler, torch.zeros(1000, dtype=torch.int64), Correction(level="sequence", cap=2.0)
    )
    assert found.tolist() == [2.0] * 1000


def test_the_measures_by_hand() -> None:
    learner, sampler = torch.tensor([0.8, 0.1, 0.5]).log(), torch.tensor([0.4, 0.2, 0.5]).log()
    # ratios 2, 0.5, 1: sum 3.5, squares 4 + 0.25 + 1 = 5.25
    #   ess = 12.25 / (3 x 5.25) = 0.777778; chi2 = 5.25 / 3 - 1 = 0.75; gap = (0.4 + 0.1 + 0) / 3 = 0.166667
    found = mismatch_metrics(mismatch_sums(learner, sampler))
    assert found == pytest.approx({"ess": 0.777778, "chi2": 0.75, "probability_gap": 0.166667}, abs=1e-5)


def test_without_tokens_there_is_nothing_to_measure() -> None:
    assert all(math.isnan(v) for v in mismatch_metrics(mismatch_sums(torch.zeros(0), torch.zeros(0))).values())


@given(st.lists(st.floats(-6.0, 0.0, width=32), min_size=1, max_size=9))
def test_equal_policies_have_a_whole_sample_size_and_no_divergence(logprobs: list[float]) -> None:
    found = mismatch_metrics(mismatch_sums(torch.tensor(logprobs), torch.tensor(logprobs)))
    assert found == {"ess": 1.0, "chi2": 0.0, "probability_gap": 0.0}


@given(st.lists(st.tuples(st.floats(-6.0, 0.0), st.floats(-6.0, 0.0)), min_size=1, max_size=9))
def test_the_sample_size_is_a_share_and_sums_of_parts_are_sums_of_the_whole(pairs: list[tuple[float, float]]) -> None:
    learner, sampler = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    whole = mismatch_sums(learner, sampler)
    parts = [mismatch_sums(learner[at], sampler[at]) for at in (slice(None, 1), slice(1, None))]
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)
    assert 1 / len(pairs) - 1e-9 <= mismatch_metrics(whole)["ess"] <= 1 + 1e-9

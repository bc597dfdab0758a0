"""Samples move between ranks as whole groups, and every one of them arrives as it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import share, trajectories

from rlvr import balance, distributed
from rlvr.records import Targets, Trajectories


def assert_equal(one: Trajectories, other: Trajectories) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        else:
            assert a == b


def balanced(parts: list[Trajectories], monkeypatch: pytest.MonkeyPatch) -> list[Trajectories]:
    """What `balance` gives on each rank; ranks take turns in this process."""
    everyone: list[Any] = [balance.split(part) for part in parts]
    found = []
    for rank, part in enumerate(parts):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: len(parts))
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "gather_objects", lambda value: everyone)
            found.append(balance.balance(part))
    return found


def test_a_batch_that_is_split_and_joined_is_itself() -> None:
    batch = trajectories()
    assert_equal(balance.join(balance.split(batch), batch), batch)
    nothing = share(batch, [])
    assert_equal(balance.join(balance.split(nothing), nothing), nothing)


def test_tokens_are_spread_and_groups_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trajectories(seed=3, count=24, longest=40)
    by_length = sorted(range(12), key=lambda g: -int(whole.lengths[2 * g : 2 * g + 2].sum()))
    long, short = ([i for g in half for i in (2 * g, 2 * g + 1)] for half in (by_length[:6], by_length[6:]))
    parts = [share(whole, long), share(whole, short)]

    def tokens(part: Trajectories) -> int:
        return sum(map(len, part.prompt_ids)) + sum(map(len, part.completion_ids))

    found = balanced(parts, monkeypatch)
    assert abs(tokens(found[0]) - tokens(found[1])) < 0.3 * abs(tokens(parts[0]) - tokens(parts[1]))
    assert not set(found[0].groups.tolist()) & set(found[1].groups.tolist())
    order = [i for part in found for i in part.places.tolist()]
    assert sorted(order) == list(range(24))
    assert_equal(balance.join([s for part in found for s in balance.split(part)], whole), share(whole, order))


def test_more_ranks_than_groups_leave_some_without_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    one_group = share(trajectories(), [0, 1])
    found = balanced([one_group, share(one_group, []), share(one_group, [])], monkeypatch)
    assert sorted(len(part.lengths) for part in found) == [0, 0, 2]
    assert all(part.sampler_logprobs.dtype == torch.float32 for part in found)


def targets_of(batch: Trajectories) -> Targets:
    """Each token's array holds its own log-probability, so that it is known again."""
    known = batch.sampler_logprobs.clone()
    return Targets(
        old_logprobs=known,
        reference_logprobs=None,
        old_values=known * 2,
        advantages=known * 3,
        returns=known * 4,
        importance_weights=None,
    )


def test_the_whole_step_is_every_ranks_samples_with_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = trajectories(seed=3, count=8)
    parts = [share(batch, [3, 0]), share(batch, []), share(batch, [1, 2, 4, 5, 6, 7])]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [(part, targets_of(part)) for part in parts])
    whole, targets = balance.whole_step(parts[0], targets_of(parts[0]))
    assert_equal(whole, share(batch, [3, 0, 1, 2, 4, 5, 6, 7]))
    for name, expected in dataclasses.asdict(targets_of(whole)).items():
        found = getattr(targets, name)
        assert found is None if expected is None else torch.equal(found, expected)


def test_a_minibatch_is_shared_out_evenly_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = trajectories(seed=3, count=24, longest=40)
    part = list(range(0, 24, 2))
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(balance.share_of_minibatch(batch, part))
    assert sorted(i for one in shares for i in one) == part
    tokens = [[len(batch.prompt_ids[i]) + len(batch.completion_ids[i]) for i in one] for one in shares]
    loads = [sum(one) for one in tokens]
    assert max(loads) - min(loads) <= max(max(one) for one in tokens)
    assert max(loads) < 1.1 * sum(loads) / 4


def test_one_rank_keeps_its_batch() -> None:
    batch = trajectories()
    assert balance.balance(batch) is batch

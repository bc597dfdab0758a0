"""Packing keeps every token once, and rows do not overflow."""

from __future__ import annotations

import json
import pathlib
import random
import re
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import sequences

from rlvr import recipe
from rlvr.config import Config
from rlvr.learner import Learner
from rlvr.packing import _first_fit, bins, pack, pack_sequences, packing_shares, spread
from rlvr.records import PackedRow

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=15)
MOST = st.integers(1, 40)


def read_back(rows: list[PackedRow], pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[int, int]:
    """Token index -> target, checked on the way: what each read position has before it, and where it stands."""
    found: dict[int, int] = {}
    starts = [sum(len(completion) for _, completion in pairs[:i]) for i in range(len(pairs))]
    for row in rows:
        assert sum(row.lengths) == row.input_ids.shape[1] == row.position_ids.shape[1]
        assert list(row.lengths) == sorted(row.lengths)
        begin, tokens = 0, iter(zip(row.read_at, row.targets, row.token_index, strict=True))
        for sequence, length in zip(row.sequences, row.lengths, strict=True):
            prompt, completion = pairs[sequence]
            whole = (*prompt, *completion)
            assert row.input_ids[0, begin : begin + length].tolist() == list(whole[:-1])
            assert row.position_ids[0, begin : begin + length].tolist() == list(range(length))
            for offset in range(len(completion)):
                read_at, target, index = (int(x) for x in next(tokens))
                assert read_at == begin + len(prompt) + offset - 1
                assert index == starts[sequence] + offset
                assert index not in found
                found[index] = target
            begin += length
        assert next(tokens, None) is None
    return found


@given(st.integers(0, 10_000), st.integers(1, 9), MOST)
def test_every_completion_token_is_a_target_exactly_once_whatever_the_row_size(
    seed: int, count: int, most: int
) -> None:
    pairs = sequences(seed, count)
    rows = pack([p for p, _ in pairs], [c for _, c in pairs], max_tokens=most)
    assert read_back(rows, pairs) == dict(enumerate(token for _, completion in pairs for token in completion))


@given(SIZES, MOST, st.integers(1, 20))
def test_bins_hold_each_item_once_and_overflow_only_by_a_single_item(sizes: list[int], most: int, least: int) -> None:
    filled = bins(dict(enumerate(sizes)), most, least)
    assert sorted(i for group in filled for i in group) == list(range(len(sizes)))
    for group in filled:
        assert sum(sizes[i] for i in group) <= most or len(group) == 1
        assert [sizes[i] for i in group] == sorted(sizes[i] for i in group)
    loads = [sum(sizes[i] for i in group) for group in filled]
    assert loads == sorted(loads, reverse=True)


@given(SIZES, MOST)
def test_bins_are_no_more_than_first_fit_needs(sizes: list[int], most: int) -> None:
    items = dict(enumerate(sizes))
    assert len(bins(items, most)) == len(_first_fit(items, most))
    # a first-fit bin was opened since no earlier one had room, so no two of these would fit into one
    loads = sorted(sum(sizes[i] for i in group) for group in _first_fit(items, most))
    assert len(loads) < 2 or loads[0] + loads[1] > most


@given(SIZES, st.integers(1, 6))
def test_spreading_leaves_no_bin_fuller_than_the_emptiest_by_more_than_one_item(sizes: list[int], count: int) -> None:
    loads = [sum(sizes[i] for i in group) for group in spread(dict(enumerate(sizes)), count)]
    # when the last item went into the fullest bin, that was the emptiest
    assert max(loads) - min(loads) <= max(sizes)
    assert sum(loads) == sum(sizes)


def test_rows_are_filled_evenly_and_as_many_as_asked_for() -> None:
    # first-fit: 6+4, 3+3+2+2; evenly, each to the emptiest: 6,3 | 4,3,2 and then 2 to the first: 11 | 9
    sizes = dict(enumerate([6, 4, 3, 3, 2, 2]))
    assert [sum(sizes[i] for i in group) for group in bins(sizes, 11)] == [11, 9]
    assert [sum(sizes[i] for i in group) for group in bins(sizes, 11, least=4)] == [6, 5, 5, 4]  # 6 | 4 | 3, 2 | 3, 2
    assert len(bins(sizes, 11, least=9)) == 6  # not more than there are items


def test_rows_that_evenly_filled_would_overflow_are_filled_by_first_fit() -> None:
    # each to the emptiest of two: 3 | 3, then 2 | 2, then 2 makes 7: over 6. First-fit: 3+3, 2+2+2
    sizes = dict(enumerate([3, 3, 2, 2, 2]))
    assert [sorted(sizes[i] for i in group) for group in bins(sizes, 6)] == [[3, 3], [2, 2, 2]]


def gsm8k_samples(shared_data: pathlib.Path) -> list[tuple[int, int]]:
    """Length of 1,319 questions and their solutions, in words and punctuation marks: close to what tokenizers make."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(count(row["question"]), count(row["answer"])) for row in rows]


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def step_lengths(config: Config, samples: list[tuple[int, int]], step: int) -> dict[int, int]:
    """Tokens read of each sample of a step: several answers to each question, as long as any."""
    draw = random.Random(step)
    prompts = draw.sample(samples, config.rollout.prompts_per_step)
    every = config.rollout.samples_per_prompt
    answers = [question + draw.choice(samples)[1] - 1 for question, _ in prompts for _ in range(every)]
    return dict(enumerate(answers))


def rows_of_update(config: Config, lengths: dict[int, int], ranks: int, step: int) -> list[list[tuple[int, bool]]]:
    """Tokens of each rank's rows in one epoch, by the functions that the learner packs with."""
    cut = Learner._minibatches(types.SimpleNamespace(config=config), range(len(lengths)), step=step, epoch=0)
    most = config.learner.max_tokens_per_micro_batch
    of_ranks: list[list[tuple[int, bool]]] = [[] for _ in range(ranks)]
    seen = []
    for part in cut:
        shares = spread({i: lengths[i] for i in part}, ranks)  # rlvr.balance
        needed = max(len(_first_fit({i: lengths[i] for i in share}, most)) for share in shares)
        for rank, share in enumerate(shares):
            filled = bins({i: lengths[i] for i in share}, most, needed)
            loads = [(sum(lengths[i] for i in group), True) for group in filled]
            of_ranks[rank] += loads + [(1, False)] * (needed - len(filled))
            seen += [i for group in filled for i in group]
    assert sorted(seen) == sorted(lengths)  # none is dropped
    return of_ranks


@pytest.mark.parametrize("ranks", [1, 2, 8, 16])
@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize("max_tokens", [None, 512])
def test_at_least_95_percent_of_the_computing_is_on_real_tokens_at_gsm8k_lengths(
    ranks: int, minibatches: int, max_tokens: int | None, shared_data: pathlib.Path, repository: pathlib.Path
) -> None:
    overrides = [f"algorithm.minibatches={minibatches}"]
    if max_tokens:  # else the recipe's
        overrides.append(f"learner.max_tokens_per_micro_batch={max_tokens}")
    config = recipe.load(repository / "launch" / "recipes" / "gsm8k.toml", overrides)
    samples = gsm8k_samples(shared_data)
    shares = [
        packing_shares(rows_of_update(config, step_lengths(config, samples, step), ranks, step)) for step in range(4)
    ]
    assert (
        min(share["efficiency"] for share in shares) >= 0.999
    )  # of 0.95 wanted: only fillers of one token are not real
    few = 256 // minibatches // ranks < 8  # a minibatch of 64 samples leaves 4 for each of 16 ranks
    assert min(share["balance"] for share in shares) >= (0.85 if few else 0.95)
    assert max(share["heaviest_rank"] for share in shares) <= 1.05


def test_a_row_by_hand() -> None:
    rows = pack([(7, 8), (5,)], [(9, 1), (6, 4, 1)], max_tokens=100)
    # sequences 7 8 9 1 and 5 6 4 1; the last tokens are never read, so 3 + 3 tokens; ties stay in order
    (row,) = rows
    assert row.input_ids.tolist() == [[7, 8, 9, 5, 6, 4]]
    assert row.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert row.lengths == (3, 3)
    # 9 is predicted at 8 (position 1), 1 at 9; 6 at 5 (position 3), 4 at 6, 1 at 4
    assert row.read_at.tolist() == [1, 2, 3, 4, 5]
    assert row.targets.tolist() == [9, 1, 6, 4, 1]
    assert row.token_index.tolist() == [0, 1, 2, 3, 4]


def test_a_selection_keeps_the_places_of_the_whole_batch() -> None:
    pairs = sequences(1, 6)
    rows = pack([p for p, _ in pairs], [c for _, c in pairs], max_tokens=15, select=[4, 1])
    assert sorted(i for row in rows for i in row.sequences) == [1, 4]
    found = read_back(rows, pairs)
    all_targets = dict(enumerate(token for _, completion in pairs for token in completion))
    assert found == {index: all_targets[index] for index in found}
    assert len(found) == len(pairs[1][1]) + len(pairs[4][1])


def test_targets_may_be_any_positions_and_what_follows_the_last_is_not_read() -> None:
    (row,) = pack_sequences([(10, 11, 12, 13, 14, 15)], [(1, 4)], max_tokens=100)
    assert row.input_ids.tolist() == [[10, 11, 12, 13]]
    assert row.read_at.tolist() == [0, 3]
    assert row.targets.tolist() == [11, 14]

"""Packing keeps every token once, and rows do not overflow."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import sequences

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


def gsm8k_lengths(shared_data: pathlib.Path) -> list[int]:
    """Words and punctuation marks of each of 1,319 questions with its solution: close to what tokenizers make."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [len(re.findall(r"\w+|[^\w\s]", row["question"] + " " + row["answer"])) for row in rows]


@pytest.mark.parametrize("ranks", [1, 2, 8, 16])
@pytest.mark.parametrize("max_tokens", [512, 8192])
def test_at_least_95_percent_of_the_computing_is_on_real_tokens_at_gsm8k_lengths(
    ranks: int, max_tokens: int, shared_data: pathlib.Path
) -> None:
    every = gsm8k_lengths(shared_data)
    shares = []
    for step in range(4):  # 256 samples a step, spread over ranks as rlvr.balance does
        lengths = dict(enumerate(every[256 * step : 256 * (step + 1)]))
        ours = [{i: lengths[i] for i in share} for share in spread(lengths, ranks)]
        most = max(len(bins(sizes, max_tokens)) for sizes in ours)
        rows = [bins(sizes, max_tokens, most) for sizes in ours]
        assert sorted(i for of_rank in rows for group in of_rank for i in group) == sorted(lengths)  # none is dropped
        loads = [[(sum(lengths[i] for i in group), True) for group in of_rank] for of_rank in rows]
        shares.append(packing_shares([of_rank + [(1, False)] * (most - len(of_rank)) for of_rank in loads]))
    assert min(share["efficiency"] for share in shares) >= 0.999
    assert min(share["balance"] for share in shares) >= 0.95


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

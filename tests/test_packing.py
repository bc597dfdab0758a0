"""Packing keeps every token once, and rows do not overflow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tiny import sequences

from rlvr.packing import bins, pack, pack_sequences
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


@given(SIZES, MOST)
def test_bins_hold_each_item_once_and_overflow_only_by_a_single_item(sizes: list[int], most: int) -> None:
    filled = bins(dict(enumerate(sizes)), most)
    assert sorted(i for group in filled for i in group) == list(range(len(sizes)))
    for group in filled:
        assert sum(sizes[i] for i in group) <= most or len(group) == 1
        assert [sizes[i] for i in group] == sorted(sizes[i] for i in group)


@given(SIZES, MOST)
def test_no_two_bins_would_fit_into_one(sizes: list[int], most: int) -> None:
    loads = sorted(sum(sizes[i] for i in group) for group in bins(dict(enumerate(sizes)), most))
    assert len(loads) < 2 or loads[0] + loads[1] > most


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

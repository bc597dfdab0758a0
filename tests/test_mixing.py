"""A float is a share and an integer a number of rows; repeats are whole passes and the beginning of one fixed order."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.config import Source
from rlvr.mixing import Joined, Lazy, taken


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight": 1}, "a weight is a share and has a point: write weight=1.0, or count=1 for rows"),
        ({"count": 1.0}, "a count is a whole number of rows: write count=1, or weight=1.0 for a share"),
        ({"weight": 0.5, "count": 3}, "weight=0.5 and count=3 exclude each other: remove one"),
        ({"weight": 0.0}, "greater than 0"),
        ({"count": 0}, "greater than 0"),
        ({"weight": "1.0"}, "valid number"),
    ],
)
def test_a_share_is_never_taken_for_a_number(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Source.model_validate({"path": "a.jsonl", **options})


def test_a_point_makes_the_difference() -> None:
    assert taken(10, weight=Source(path="a", weight=1.0).weight, count=None).size == 10
    assert taken(10, weight=None, count=Source(path="a", count=1).count).size == 1


@given(rows=st.integers(1, 40), count=st.integers(1, 130))
def test_rows_are_repeated_in_whole_passes_before_any_is_repeated_once_more(rows: int, count: int) -> None:
    chosen = taken(rows, weight=None, count=count).tolist()
    times = collections.Counter(chosen)
    # 7 of 3 rows: two passes and one row more, so every row 2 or 3 times
    assert len(chosen) == count
    assert {times[row] for row in range(rows)} <= {count // rows, -(-count // rows)}
    assert chosen == taken(rows, weight=None, count=count).tolist()


@given(rows=st.integers(2, 40), small=st.integers(1, 40))
def test_a_smaller_share_is_part_of_a_larger_one(rows: int, small: int) -> None:
    small = min(small, rows - 1)
    assert set(taken(rows, weight=None, count=small)) < set(taken(rows, weight=None, count=small + 1))


def test_a_share_of_rows_is_rounded_and_is_not_the_head_of_the_file() -> None:
    assert [taken(10, weight=weight, count=None).size for weight in (0.04, 0.05, 0.5, 1.0, 2.26)] == [0, 1, 5, 10, 23]
    assert taken(1000, weight=0.1, count=None).max() > 900


def test_sequences_end_to_end_know_whose_an_item_is() -> None:
    joined = Joined([Lazy(2, lambda n: f"a{n}"), Lazy(0, str), Lazy(3, lambda n: f"b{n}")])
    assert list(joined) == [joined[n] for n in range(5)] == ["a0", "a1", "b0", "b1", "b2"]
    assert [joined.part_of(n) for n in range(5)] == [0, 0, 2, 2, 2]
    assert (joined[-1], joined[1:3], len(joined)) == ("b2", ("a1", "b0"), 5)
    with pytest.raises(IndexError):
        joined[5]

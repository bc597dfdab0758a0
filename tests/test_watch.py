"""A rank that hangs is named at the deadline, whatever it hangs in, and no process is left."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
from test_train import environment

from rlvr.watch import Note, behind, describe, whereabouts

WORKER = pathlib.Path(__file__).parent / "watch_worker.py"
LIMIT_SECONDS = 10.0


def note(rank: int, seconds: float, *, waits: bool = False, ended: bool = False) -> Note:
    place, line = f"step {rank}, update", "rlvr/learner.py:7 update"
    return Note(beat=1, who=f"rank {rank}", place=place, seconds=seconds, waits=waits, line=line, ended=ended)


WAITING = {0: note(0, 11.0, waits=True), 2: note(2, 10.5, waits=True)}


@pytest.mark.parametrize(
    ("other", "silent", "expected"),
    [
        (note(1, 11.0), set(), [1]),  # stands still, and waits for nobody
        (note(1, 9.0), set(), []),  # works longer than the others, who wait for it
        (note(1, 9.0), {3}, []),  # and whom another one that is silent may be waiting for too
        (note(1, 9.0, waits=True), set(), []),  # has come only now; the next look will tell
        (note(1, 11.0, waits=True), {1}, [1]),  # was waiting when last heard of
        (note(1, 0.0), {1}, [1]),
        (None, {1}, [1]),  # never came
        (note(1, 0.0, ended=True), {1}, [1]),  # left, and the others wait for it
        (note(1, 11.0, waits=True), set(), [0, 1, 2]),  # in different collectives
    ],
)
def test_who_is_behind(other: Note | None, silent: set[int], expected: list[int]) -> None:
    assert behind(WAITING | {1: other}, silent, LIMIT_SECONDS) == expected


def test_nobody_is_behind_while_one_rank_works_for_whom_another_may_wait_unseen() -> None:
    seen_to_stand_still = {0: note(0, 11.0), 1: note(1, 9.0)}  # rank 0 reads a result on its GPU, say
    assert behind(seen_to_stand_still, set(), LIMIT_SECONDS) == []
    assert behind(seen_to_stand_still | {1: note(1, 10.0)}, set(), LIMIT_SECONDS) == [0, 1]


def test_who_has_left_is_not_behind_while_others_work() -> None:
    notes = {0: note(0, 11.0), 1: note(1, 40.0, ended=True)}
    assert behind(notes, {1}, LIMIT_SECONDS) == [0]
    assert behind(notes | {0: note(0, 9.0)}, {1}, LIMIT_SECONDS) == []


def test_the_error_names_those_behind_first_and_says_where_all_are() -> None:
    assert describe({1: note(1, 11.0), **WAITING, 3: None}, [1, 3], {3}, LIMIT_SECONDS) == (
        "the run waits for ranks 1, 3: no progress for 10 s (limit training.stall_timeout_seconds). If that is honest "
        "work, raise the limit.\n"
        "  rank 1 is in step 1, update, for 11 s, at rlvr/learner.py:7 update\n"
        "  rank 3 has not come: its process did not start, or hangs before its first collective\n"
        "  rank 0 waits in step 0, update, for 11 s, at rlvr/learner.py:7 update\n"
        "  rank 2 waits in step 2, update, for 10 s, at rlvr/learner.py:7 update"
    )


def test_many_ranks_make_a_short_error() -> None:
    notes = {rank: note(rank, 11.0) for rank in range(100)}
    lines = describe(notes, list(range(100)), set(), LIMIT_SECONDS).splitlines()
    assert len(lines) == 18
    assert lines[0].startswith("the run waits for ranks 0, 1, 2,")
    assert "15 and 84 more" in lines[0]
    assert lines[-1].strip() == "and 84 more ranks"


def test_a_line_of_the_program_is_told_by_file_number_and_function() -> None:
    waits, line = whereabouts(sys._getframe())
    assert not waits
    assert re.fullmatch(r"tests/test_watch.py:\d+ test_a_line_of_the_program_is_told_by_file_number_and_function", line)


FAULTS = {
    "sleeps": r"rank 1 \(pid \d+ on \S+\) is in step 1, update, for \d+ s, at tests/watch_worker.py:\d+ hang\n",
    "is stopped": "rank 1 .* tells nothing any more: it is stopped, or its machine is gone; last it was in step 1, ",
    "does not come": "rank 1 has not come: its process did not start",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), "4", *FAULTS, "works on"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


def told(folder: pathlib.Path) -> str:
    return "".join((folder / rank).read_text() for rank in "01")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_hangs_ends_the_run_with_an_error_that_names_it(
    fault: str, runs: tuple[pathlib.Path, dict[str, int]]
) -> None:
    folder, statuses = runs
    said = told(folder / fault)
    assert statuses[fault] == 2, said[-3000:]
    assert len(re.findall("rlvr: StallError: the run waits for rank 1: no progress for 4 s", said)) == 1
    assert re.search(FAULTS[fault], said), said[-3000:]
    assert re.search(r"rank 0 .* waits in (step 1, update|start-up), for \d+ s", said), said[-3000:]
    assert "done" not in said


@pytest.mark.slow
def test_a_rank_that_works_longer_than_the_limit_is_left_alone_while_the_other_waits(
    runs: tuple[pathlib.Path, dict[str, int]],
) -> None:
    folder, statuses = runs
    assert statuses["works on"] == 0, told(folder / "works on")
    assert told(folder / "works on").count("done") == 2

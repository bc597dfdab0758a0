"""Checkpoint folders: whole or not there, the newest resumed, the oldest removed."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from rlvr import checkpoint
from rlvr.errors import CheckpointError


class Weights:
    """What a checkpoint asks of a learner: to write itself into a folder and to read itself from one."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def save(self, folder: str) -> None:
        pathlib.Path(folder, "weights").write_text(str(self.value))

    def load(self, folder: str) -> None:
        self.value = int(pathlib.Path(folder, "weights").read_text())


class Killed(BaseException):
    """Stands for the process being ended."""


def save(folder: pathlib.Path, step: int, *, keep: int = 2, learner: Any = None) -> pathlib.Path:
    return checkpoint.save(folder, step, learner or Weights(step), {"ledger": {"rows_read": 5}}, keep=keep)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def resumed(folder: pathlib.Path) -> tuple[int, int]:
    weights = Weights()
    state = checkpoint.resume(folder, weights)  # type: ignore[arg-type]
    return state["step"], weights.value


def test_a_checkpoint_holds_the_weights_and_the_state(tmp_path: pathlib.Path) -> None:
    folder = save(tmp_path, 12)
    assert folder == tmp_path / "step_000012"
    assert json.loads((folder / "state.json").read_text()) == {"step": 12, "world_size": 1, "ledger": {"rows_read": 5}}
    assert resumed(tmp_path) == (12, 12)


def test_only_the_last_checkpoints_are_kept(tmp_path: pathlib.Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def test_steps_are_ordered_as_numbers(tmp_path: pathlib.Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_999999", "step_1000000"]
    assert resumed(tmp_path) == (1_000_000, 1_000_000)
    save(tmp_path, 1_000_001, keep=2)
    assert names(tmp_path) == ["step_1000000", "step_1000001"]


def test_a_run_killed_while_it_saves_leaves_nothing_that_is_resumed(tmp_path: pathlib.Path) -> None:
    class Dying(Weights):
        def save(self, folder: str) -> None:
            super().save(folder)
            raise Killed

    save(tmp_path, 1)
    with pytest.raises(Killed):
        save(tmp_path, 2, learner=Dying())
    assert (tmp_path / ".step_000002.partial" / "weights").exists()
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_000001"]
    assert resumed(tmp_path) == (1, 1)
    save(tmp_path, 3)  # and what it left is removed by the next one
    assert names(tmp_path) == ["step_000001", "step_000003"]


def test_a_run_killed_while_it_removes_leaves_nothing_that_is_resumed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: pathlib.Path) -> None:
        raise Killed

    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            save(tmp_path, 3)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_000002", "step_000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def test_a_folder_without_its_state_is_not_a_checkpoint(tmp_path: pathlib.Path) -> None:
    (tmp_path / "step_000009").mkdir()
    save(tmp_path, 1)
    assert resumed(tmp_path) == (1, 1)


def test_the_same_step_may_be_saved_again(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, learner=Weights(77))
    assert names(tmp_path) == ["step_000001"]
    assert resumed(tmp_path) == (1, 77)


def test_resuming_without_a_checkpoint_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resumed(tmp_path)
    assert str(caught.value) == (
        f"there is no checkpoint in {tmp_path}. Set training.checkpoint_every to have them written."
    )


def test_a_checkpoint_of_another_number_of_ranks_is_refused(tmp_path: pathlib.Path) -> None:
    folder = save(tmp_path, 5)
    (folder / "state.json").write_text('{"step": 5, "world_size": 8}')
    with pytest.raises(CheckpointError) as caught:
        resumed(tmp_path)
    assert str(caught.value) == f"{folder} was written by 8 ranks; this run has 1. Resume with the same number."

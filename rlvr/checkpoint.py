"""Checkpoints: written beside, then renamed, so that one that exists is whole."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, Protocol

from rlvr import distributed, watch
from rlvr.errors import CheckpointError


class Saved(Protocol):
    """What a checkpoint holds: the learner, or one engine."""

    def save(self, folder: str) -> None: ...

    def load(self, folder: str) -> None: ...


def save(folder: pathlib.Path, step: int, learner: Saved, state: Mapping[str, Any], *, keep: int) -> pathlib.Path:
    """Write `step_<n>/` with both engines and `state.json`, then remove all but the last `keep`. Collective.

    `state` is JSON. Randomness needs no state: every draw is seeded by what it is for (`rlvr.seeds`).
    """
    final = folder / f"step_{step:06d}"
    partial = folder / f".step_{step:06d}.partial"
    watch.at(f"the checkpoint after step {step}")
    if distributed.rank() == 0:
        for left in folder.glob(".step_*.partial"):  # of a run that was killed while saving or removing
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    distributed.barrier()
    learner.save(str(partial))
    distributed.barrier()
    if distributed.rank() == 0:
        whole = {"step": step, "world_size": distributed.world_size(), **state}
        (partial / "state.json").write_text(json.dumps(whole) + "\n", encoding="utf-8")
        if final.exists():
            _remove(final)
        partial.rename(final)
        for old in complete(folder)[:-keep]:
            _remove(old)
    distributed.barrier()
    return final


def _remove(checkpoint: pathlib.Path) -> None:
    """Out of sight first, so that one half removed is never taken for whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.partial")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Whole checkpoints, oldest first."""
    return sorted((path.parent for path in folder.glob("step_*/state.json")), key=step_of)


def step_of(checkpoint: pathlib.Path) -> int:
    """The step after which a checkpoint was written.

    >>> step_of(pathlib.Path("checkpoints/step_000120"))
    120
    """
    return int(checkpoint.name.removeprefix("step_"))


def resume(folder: pathlib.Path, learner: Saved) -> dict[str, Any]:
    """Load the newest checkpoint. Collective.

    Raises CheckpointError when there is none, or it was written with another number of ranks.
    """
    found = complete(folder)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {folder}. Set training.checkpoint_every to have them written."
        )
    state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
    if state["world_size"] != distributed.world_size():
        raise CheckpointError(
            f"{found[-1]} was written by {state['world_size']} ranks; this run has {distributed.world_size()}. "
            "Resume with the same number."
        )
    learner.load(str(found[-1]))
    return state

"""Checkpoints: written beside, then renamed, so that one that exists is whole."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from rlvr import distributed
from rlvr.errors import CheckpointError
from rlvr.learner import Learner


def save(folder: pathlib.Path, step: int, learner: Learner, state: Mapping[str, Any], *, keep: int) -> pathlib.Path:
    """Write `step_<n>/` with both engines and `state.json`, then remove all but the last `keep`. Collective.

    `state` is JSON. Randomness needs no state: every draw is seeded by what it is for (`rlvr.seeds`).
    """
    final = folder / f"step_{step:06d}"
    partial = folder / f".step_{step:06d}.partial"
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    learner.save(str(partial))
    distributed.barrier()
    if distributed.rank() == 0:
        whole = {"step": step, "world_size": distributed.world_size(), **state}
        (partial / "state.json").write_text(json.dumps(whole) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in complete(folder)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("step_*/state.json"))


def resume(folder: pathlib.Path, learner: Learner) -> dict[str, Any]:
    """Load the newest checkpoint. Collective.

    Raises CheckpointError when there is none, or it was written with another number of ranks.
    """
    found = complete(folder)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {folder}. Start the run anew, with training.checkpoint_every set."
        )
    state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text())
    if state["world_size"] != distributed.world_size():
        raise CheckpointError(
            f"{found[-1]} was written by {state['world_size']} ranks; this run has {distributed.world_size()}. "
            "Resume with the same number."
        )
    learner.load(str(found[-1]))
    return state

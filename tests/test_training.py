"""The loop that the stages share: a resumed run is the same run, and two ranks learn what one learns."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_tiny import STAGES, make_folder, outcome, stage_config
from tiny import largest_difference

from rlvr import distributed
from rlvr.errors import RunDirectoryError
from rlvr.log import read_metrics
from sft_dpo.training import run

TESTS = pathlib.Path(__file__).parent
CASES: dict[str, tuple[str, int, int]] = {
    **{f"{stage} 1": (stage, 1, 2) for stage in STAGES},
    "sft 2": ("sft", 2, 2),
    "sft 3": ("sft", 3, 2),
    "dpo 3": ("dpo", 3, 2),
}
"""Name -> stage, ZeRO stage, steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    distributed.start()
    folder = tmp_path_factory.mktemp("training")
    make_folder(folder)
    return folder


def steps_of(path: pathlib.Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_metrics(path / "metrics.jsonl")
    ]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder: pathlib.Path, stage: str) -> None:
    training = {"epochs": 3, "examples_per_step": 4, "checkpoint_every": 2, "keep_checkpoints": 9}
    path = folder / f"{stage}_run"
    config = stage_config(folder, stage, run_dir=str(path), training=training)
    work = STAGES[stage][1]
    run(config, work, recipe_text="", resume=False, leave=False)
    whole = load_file(path / "model" / "model.safetensors")
    lines = steps_of(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    shutil.rmtree(path / "model")
    for later in ("step_000004", "step_000006"):  # as if it had been killed in its third step or later
        shutil.rmtree(path / "checkpoints" / later)
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        run(config, work, recipe_text="", resume=False, leave=False)
    other = stage_config(folder, stage, run_dir=str(path), training=training | {"epochs": 4})
    with pytest.raises(RunDirectoryError, match=r"training.epochs \(was 3, is 4\)"):
        run(other, work, recipe_text="", resume=True, leave=False)
    run(config, work, recipe_text="", resume=True, leave=False)
    resumed = load_file(path / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert steps_of(path) == lines


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_in_every_zero_stage(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(TESTS / "stage_worker.py"), str(folder), json.dumps(CASES), str(output)]
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name and "WORLD" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run(command, env=environment, timeout=400, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(output)
    for name, (stage, _, steps) in CASES.items():
        losses, reached = outcome(folder, stage, 0, steps)
        assert results[name][0] == pytest.approx(losses, abs=1e-4), name
        assert largest_difference(results[name][1], reached) < 1e-4, name

"""What only a CUDA device can show: the quickstart there in bfloat16, the sampler asleep while the learner works."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest


@pytest.mark.gpu
@pytest.mark.slow
def test_the_quickstart_runs_on_a_gpu_in_bfloat16(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    overrides = [
        "training.steps=3",
        "model.dtype=bfloat16",
        "learner.zero_stage=1",
        "sampler.gpu_memory_utilization=0.3",
    ]
    done = subprocess.run(
        ["bash", "launch/quickstart.sh", *overrides],
        cwd=repository,
        env=os.environ | {"RUN": str(run), "DEMONSTRATIONS": "2000"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = json.loads((run / "rlvr" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    assert last["policy/sampler_difference"] < 0.05
    assert last["sync/canary_difference"] < 0.05

"""`make quickstart` at a fraction of its size: the same script, the same recipes, the same stack."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest


@pytest.mark.slow
def test_the_quickstart_script_runs_and_reports(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        ["bash", "launch/quickstart.sh", "training.steps=2", "evaluation.samples_per_prompt=2"],
        cwd=repository,
        env=os.environ | {"RUN": str(run), "DEMONSTRATIONS": "640", "PROCESSES": "2"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for expected in ("pass@1, sampled", "pass@1, greedy", "math: pass@1", "tulu3_ifeval: pass@1", "run directory"):
        assert expected in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    metrics = [json.loads(line) for line in (run / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1, 2]

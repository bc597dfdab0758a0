"""The recipe for a real model on the real GSM8K rows, with a tiny random model in the real one's place."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from sft_dpo import quickstart_task


@pytest.mark.slow
def test_gsm8k_runs_two_steps_and_counts_the_prompts_over_the_limit(
    repository: pathlib.Path, shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    train = (shared_data / "gsm8k" / "train.jsonl").read_text().splitlines()[:40]
    (tmp_path / "raw.jsonl").write_text("\n".join(train) + "\n")
    rlvr = [sys.executable, "-m", "rlvr"]
    for shots in ("0", "8"):
        convert = [*rlvr, "data", "convert", "gsm8k", str(tmp_path / "raw.jsonl"), str(tmp_path / f"{shots}.jsonl")]
        subprocess.run([*convert, "--shots", shots], cwd=repository, check=True, capture_output=True, timeout=60)
    rows = [json.loads(line) for shots in ("0", "8") for line in (tmp_path / f"{shots}.jsonl").open()]
    texts = [row["messages"][-1]["content"] for row in rows]
    assert sum(text.count("Question:") >= 8 for text in texts) == 40
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quickstart_task.make_model(tmp_path / "model", [{"messages": row["messages"]} for row in rows[:40]], seed=1)
    overrides = [
        f"model.path={tmp_path / 'model'}",
        "model.dtype=float32",
        f"data.train={tmp_path / 'rows.jsonl'}",
        f'data.eval=[{{path="{tmp_path / "0.jsonl"}", count=4}}]',
        "data.max_prompt_tokens=192",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=2",
        "rollout.max_tokens=32",
        "sampler.kv_cache_mib=64",
        "sampler.enforce_eager=true",
        "learner.zero_stage=0",
        "training.steps=2",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [*rlvr, "train", "launch/recipes/gsm8k.toml", *overrides],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["rows_read"] == 80
    assert 40 <= ledger["rows_over_length"] < 80  # every 8-shot prompt, and some long problems
    assert f"dropped {ledger['rows_over_length']} over the length limit" in done.stdout
    assert (ledger["prompts_drawn"], ledger["samples_drawn"], ledger["samples_trained"]) == (8, 16, 16)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1, 2]

"""The loop that the stages share: a resumed run is the same run, and two ranks learn what one learns."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from stage_tiny import ADAPTERS, STAGES, make_folder, outcome, stage_config
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


@pytest.mark.parametrize(("stage", "model"), [("sft", {}), ("dpo", {}), ("sft", {"lora": ADAPTERS})])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    folder: pathlib.Path, stage: str, model: dict[str, Any]
) -> None:
    training = {"epochs": 3, "examples_per_step": 4, "checkpoint_every": 2, "keep_checkpoints": 9}
    path = folder / f"{stage}_run{'_adapters' if model else ''}"
    config = stage_config(folder, stage, run_dir=str(path), model=model, training=training)
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
    other = stage_config(folder, stage, run_dir=str(path), model=model, training=training | {"epochs": 4})
    with pytest.raises(RunDirectoryError, match=r"training.epochs \(was 3, is 4\)"):
        run(other, work, recipe_text="", resume=True, leave=False)
    run(config, work, recipe_text="", resume=True, leave=False)
    resumed = load_file(path / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert steps_of(path) == lines


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_train_adapters_and_saves_merged_weights(folder: pathlib.Path, stage: str) -> None:
    path = folder / f"{stage}_adapters"
    training = {"epochs": 3, "examples_per_step": 6}  # all of them in every step
    config = stage_config(folder, stage, run_dir=str(path), model={"lora": ADAPTERS}, training=training)
    run(config, STAGES[stage][1], recipe_text="", resume=False, leave=False)
    start, saved = (load_file(where / "model" / "model.safetensors") for where in (folder, path))
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    shared = start.keys() & saved.keys()
    moved = {name for name in shared if not torch.equal(start[name], saved[name])}
    assert moved == {name for name in shared if name.split(".")[-2] in linear}
    losses = [line["loss"] for line in steps_of(path)]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    if stage in ("reward", "value"):  # whose head is trained beside the adapters, and is in no adapter folder
        assert not (path / "model" / "adapter").exists()
        return
    assert start.keys() == saved.keys()
    merged, base = (transformers.AutoModelForCausalLM.from_pretrained(where / "model") for where in (path, folder))
    adapted = peft.PeftModel.from_pretrained(base, path / "model" / "adapter")
    ids = torch.tensor([[5, 9, 2, 7, 1]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_stage_says_what_it_left_out_and_goes_on_with_the_rows_it_began_with_alone(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    good = (folder / STAGES[stage][2]).read_text().splitlines(keepends=True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join([good[0], "{cut\n", *good[1:], good[0]]))
    data = {"train": [str(rows)], "eval": [str(folder / STAGES[stage][2])], "max_bad_share": 0.2}
    path = tmp_path / "run"
    training = {"epochs": 1, "examples_per_step": 4, "checkpoint_every": 1}
    config = stage_config(folder, stage, run_dir=str(path), data=data, training=training)
    run(config, STAGES[stage][1], recipe_text="", resume=False, leave=False)
    printed = capsys.readouterr().out
    total, kept = len(good) + 2, len(good) + 1
    assert f"{stage}: {kept} " in printed
    assert f"{rows}: {total} rows - 1 bad (1 not JSON) = {kept}; 1 repeat an earlier prompt and are kept" in printed
    assert f"{rows}:2: not one JSON object on a line" in printed
    train, held_out = json.loads((path / "data.json").read_text())
    assert (train["name"], train["rows"], train["examples"], train["over_length"]) == (stage, kept, kept, 0)
    assert [(bad["place"], bad["kind"]) for bad in train["bad"]] == [
        (f"{rows}:2", "not JSON"),
        (f"{rows}:{total}", "duplicate prompt"),
    ]
    assert (held_out["name"], held_out["bad"]) == (pathlib.Path(STAGES[stage][2]).stem, [])
    rows.write_text(rows.read_text().replace("{cut", "{torn"))  # a bad row is another row too
    with pytest.raises(RunDirectoryError, match=rf"the rows of {rows} are not those it began with"):
        run(config, STAGES[stage][1], recipe_text="", resume=True, leave=False)


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

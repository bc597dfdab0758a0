"""A run's folder: identified when it begins, never overwritten, resumed only by the recipe it began with."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from rlvr import recipe
from rlvr.config import Config
from rlvr.errors import RunDirectoryError
from rlvr.run_directory import RunDirectory, recipe_text, versions

RECIPE = """# é
run_dir = "{run}"
[model]
path = "owner/name"
dtype = "float32"
[data]
train = "rows.jsonl"
[rollout]
prompts_per_step = 4
[training]
steps = 3
"""


@pytest.fixture
def begun(tmp_path: pathlib.Path) -> tuple[RunDirectory, pathlib.Path]:
    file = tmp_path / "r.toml"
    file.write_text(RECIPE.format(run=tmp_path / "run"), encoding="utf-8")
    run = RunDirectory(tmp_path / "run")
    run.create(recipe.load(file, ["seed=7"]), recipe_text(file, ["seed=7"]))
    return run, file


def test_a_new_run_writes_what_identifies_it(begun: tuple[RunDirectory, pathlib.Path]) -> None:
    run, file = begun
    config = json.loads((run.path / "config.json").read_text())
    assert (config["seed"], config["algorithm"]["gae_lambda"]) == (7, 0.95)  # overrides and defaults, resolved
    written = (run.path / "recipe.toml").read_text(encoding="utf-8")
    assert written == file.read_text(encoding="utf-8") + "# override: seed=7\n"
    assert {"python", "platform", "processor", "torch", "transformers", "commit"} <= set(
        json.loads((run.path / "versions.json").read_text())
    )
    assert run.samples.is_dir()
    assert run.checkpoints.is_dir()


def test_the_written_config_is_a_recipe_of_the_same_run(begun: tuple[RunDirectory, pathlib.Path]) -> None:
    run, file = begun
    written = (run.path / "config.json").read_text()
    assert Config.model_validate_json(written) == recipe.load(file, ["seed=7"])
    without_kl = recipe.load(file, ["algorithm.kl_coefficient=0"])
    assert Config.model_validate_json(without_kl.model_dump_json()) == without_kl


def test_a_used_folder_is_refused_and_an_unused_one_cannot_be_resumed(
    begun: tuple[RunDirectory, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    run, _ = begun
    run.refuse_if_used(resume=True)
    with pytest.raises(RunDirectoryError) as caught:
        run.refuse_if_used(resume=False)
    assert str(caught.value) == (
        f"{run.path} already holds a run. Continue it with --resume, or set run_dir to another folder."
    )
    fresh = RunDirectory(tmp_path / "other")
    fresh.refuse_if_used(resume=False)
    with pytest.raises(RunDirectoryError) as caught:
        fresh.refuse_if_used(resume=True)
    assert str(caught.value) == (f"--resume was given, but {fresh.path} holds no run. Leave --resume out to start one.")


def test_a_folder_with_other_things_in_it_is_no_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    RunDirectory(tmp_path).refuse_if_used(resume=False)


def test_a_resumed_run_may_be_longer_but_not_another(begun: tuple[RunDirectory, pathlib.Path]) -> None:
    run, file = begun
    longer = ["seed=7", "training.steps=9", "training.checkpoint_every=2", "log.tensorboard=false"]
    run.refuse_other_config(recipe.load(file, longer))
    with pytest.raises(RunDirectoryError) as caught:
        run.refuse_other_config(recipe.load(file, ["seed=8", "rollout.temperature=0.5", "data.train=b.jsonl"]))
    text = str(caught.value)
    assert text.startswith(f"cannot resume {run.path}: the recipe has changed in seed (was 7, is 8); data.train (was [")
    assert "; rollout.temperature (was 1.0, is 0.5). Restore those values, or start a new run_dir." in text


def test_the_folder_may_be_moved_before_it_is_resumed(begun: tuple[RunDirectory, pathlib.Path]) -> None:
    run, file = begun
    run.refuse_other_config(recipe.load(file, ["seed=7", "run_dir=elsewhere"]))


def test_versions_name_the_commit_and_every_package_that_is_installed() -> None:
    import importlib.metadata

    found: dict[str, Any] = versions()
    assert found["sympy"] == importlib.metadata.version("sympy")
    assert found["commit"]
    assert "flash-attn" in found or not _is_installed("flash-attn")


def _is_installed(package: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_a_resumed_run_refuses_other_rows(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path)
    run.refuse_other_data([])  # a run from before its data was recorded
    before = [{"sources": [{"path": "a.jsonl", "checksum": 1}, {"path": "b.jsonl", "checksum": 2}], "bad": []}]
    run.data.write_text(json.dumps(before))
    run.refuse_other_data(before)
    now = [{"sources": [{"path": "a.jsonl", "checksum": 1}, {"path": "b.jsonl", "checksum": 3}], "bad": []}]
    with pytest.raises(RunDirectoryError, match=r"the rows of b\.jsonl are not those it began with"):
        run.refuse_other_data(now)

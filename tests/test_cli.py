"""The commands: exit status, one clear line for an error, and arguments in any order."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from rlvr.cli import main, refuse_other_distribution
from rlvr.errors import RlvrError

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = """
run_dir = "runs/x"
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
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    row = {"messages": [{"role": "user", "content": "1 + 2?"}], "ground_truth": "3", "dataset": "math"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def run(*arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlvr", *arguments],
        check=False,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_check_describes_a_sound_recipe_and_succeeds(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "r.toml", "training.steps=5", "rollout.samples_per_prompt=2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rows.jsonl: 1 rows",
        "verifiers: math",
        "a step: 4 prompts x 2 samples = 8 samples, 4 optimizer steps (4 epochs x 1 minibatches)",
        "the run: 5 steps, 40 samples -> runs/x",
        "ok",
    ]


def test_an_error_is_one_message_on_stderr_without_a_traceback(folder: pathlib.Path) -> None:
    done = run("check", "r.toml", "rollout.temprature=1", "seed=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "rlvr: ConfigError: r.toml: 2 mistakes in the recipe\n"
        "  seed: Input should be a valid integer (got 'x')\n"
        "  rollout.temprature: no such option (value 1). Did you mean rollout.temperature?\n"
    )


def test_train_checks_the_recipe_before_it_loads_anything(folder: pathlib.Path) -> None:
    for override, text in (
        ("data.train=row.jsonl", "row.jsonl: no such file of rows. Did you mean rows.jsonl?"),
        ("verification.remap.math=gsm8", "no verifier is called 'gsm8'. Did you mean 'gsm8k'?"),
    ):
        program = f"""
import sys
from rlvr.cli import main
status = main(["train", "r.toml", "{override}"])
print(status, "torch" in sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "2 False\n"
        assert text in done.stderr
    assert not (folder / "runs").exists()


def test_overrides_may_stand_before_or_after_an_option(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["seed=x", "--resume"], ["--resume", "seed=x"], ["training.steps=1", "--resume", "seed=x"]):
        assert main(["train", "r.toml", *arguments]) == 2
        assert "seed: Input should be a valid integer (got 'x')" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["check", "r.toml", "--resme"], ["train", "r.toml", "--resume", "sed"], ["report", "x", "y=z"], []]
)
def test_what_no_command_takes_is_refused(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_used_run_directory_is_refused_before_anything_is_loaded(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "runs/x").mkdir(parents=True)
    assert main(["train", "r.toml", "--resume"]) == 2
    assert "--resume was given, but runs/x holds no run." in capsys.readouterr().err
    (folder / "runs/x/config.json").write_text("{}")
    assert main(["train", "r.toml"]) == 2
    assert "runs/x already holds a run. Continue it with --resume" in capsys.readouterr().err


def test_the_other_distribution_called_verifiers_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_other_distribution()
    info = tmp_path / "verifiers-9.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verifiers\nVersion: 9.8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RlvrError, match=r"rlvr and verifiers 9\.8\. .*pip uninstall verifiers"):
        refuse_other_distribution()


def test_the_verifier_commands_are_part_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verifiers"]) == 0
    assert "tulu3_ifeval" in capsys.readouterr().out


def test_data_convert_writes_rows_that_check_accepts(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gsm8k.jsonl").write_text(json.dumps({"question": "1 + 2?", "answer": "1 + 2 = 3\n#### 3"}) + "\n")
    assert main(["data", "convert", "gsm8k", "gsm8k.jsonl", "out/rows.jsonl", "--shots", "8"]) == 0
    assert (
        capsys.readouterr().out
        == "out/rows.jsonl: 1 of 1 rows; gold answers: 1 judged correct, 8 worked examples before each question\n"
    )
    assert main(["check", "r.toml", "data.train=out/rows.jsonl"]) == 0
    assert "verifiers: gsm8k" in capsys.readouterr().out
    assert main(["data", "convert", "gsm8k", "gsm8k.jsonl", "out/rows.jsonl"]) == 2
    assert capsys.readouterr().err == (
        "rlvr: DataError: out/rows.jsonl exists already. Remove it, or give another name.\n"
    )


@pytest.mark.parametrize("arguments", [["gsm9k", "a", "b"], ["gsm8k", "a"], ["gsm8k", "a", "b", "--shots", "4"]])
def test_data_convert_lists_what_it_takes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", "convert", *arguments])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err

"""What the README says is true: its commands run, its code is the code, its numbers are a file's."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from rlvr import recipe


@pytest.fixture(scope="module")
def readme(repository: pathlib.Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL)


def commands(readme: str) -> list[list[str]]:
    lines = "".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_it_is_at_most_200_lines(readme: str) -> None:
    assert len(readme.splitlines()) <= 200


def test_every_command_is_one_that_a_test_runs(readme: str) -> None:
    """Each kind of command has its test here or in the file named."""
    known = {"make", "torchrun"}  # tests/test_quickstart.py, CI itself; recipes below and tests/test_train.py
    for command in commands(readme):
        is_ours = command[:2] == ["python", "-m"] and command[2].split(".")[0] in {"rlvr", "benchmarks"}
        assert command[0] in known or is_ours, command


def test_its_benchmarks_take_the_options_it_gives_them(readme: str, repository: pathlib.Path) -> None:
    measured = [
        command for command in commands(readme) if command[:2] == ["python", "-m"] and "benchmarks." in command[2]
    ]
    assert measured
    for _, _, module, *words in measured:
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=repository, capture_output=True, text=True, check=True
        ).stdout
        assert all(word in shown for word in words if word.startswith("--")), module


def test_make_targets_exist(readme: str, repository: pathlib.Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    for command in commands(readme):
        if command[0] == "make":
            assert command[1] in targets


def test_torchrun_commands_name_valid_recipes_and_overrides(
    readme: str, repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    trained = [command for command in commands(readme) if command[0] == "torchrun"]
    assert trained
    for command in trained:
        at = command.index("train")
        overrides = [word for word in command[at + 2 :] if not word.startswith("--")]
        recipe.load(command[at + 1], overrides)


def test_the_data_check_and_verifier_commands_run_as_written(
    readme: str, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "launch").symlink_to(repository / "launch")
    (tmp_path / "gsm8k").mkdir()
    for split, first in (("train", 3), ("test", 30)):
        problems = [
            {"question": f"What is 2 + {n}?", "answer": f"2 + {n} = <<2+{n}={n + 2}>>{n + 2}\n#### {n + 2}"}
            for n in range(first, first + 10)
        ]
        lines = "".join(json.dumps(problem) + "\n" for problem in problems)
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(lines)
    rows = [{"id": 1, "completion": "3 2 1 0", "ground_truth": 3}, {"id": 2, "completion": "3 2 1", "ground_truth": 3}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plugin = next(block for block in blocks(readme, "python") if block.startswith("# countdown.py"))
    (tmp_path / "countdown.py").write_text(plugin)
    for command in commands(readme):
        if command[:3] != ["python", "-m", "rlvr"] or "RUN_DIR" in command:
            continue
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    judged = [json.loads(line)["outcome"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert judged == ["correct", "wrong"]


def test_the_verifier_has_as_many_lines_as_it_says(readme: str) -> None:
    plugin = next(block for block in blocks(readme, "python") if block.startswith("# countdown.py"))
    code = [line for line in plugin.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 12


def test_the_quoted_loop_is_the_code(readme: str, repository: pathlib.Path) -> None:
    quoted = next(block for block in blocks(readme, "python") if "clock.stage" in block)
    source = (repository / "rlvr" / "train.py").read_text()
    assert quoted.strip() in "\n".join(line.removeprefix("    ") for line in source.splitlines())


def test_its_results_are_those_of_the_results_file(readme: str, repository: pathlib.Path) -> None:
    results = json.loads((repository / "benchmarks" / "results" / "quickstart.json").read_text())
    measured = [*results["runs"], results["control"]]
    assert [run["seed"] for run in results["runs"]] == [1, 2, 3]
    for name in ("pass_at_1", "pass_at_1_greedy", "math/pass_at_1", "tulu3_ifeval/pass_at_1"):
        key = f"eval/heldout/{name}"
        assert " | ".join(f"{run['before'][key]:.1%} → {run['after'][key]:.1%}" for run in measured) in readme
    assert " | ".join(f"{minutes:.1f}" for minutes in results["minutes"]) in readme
    assert f"commit {results['versions']['commit'][:7]}" in readme


def test_files_and_folders_that_it_names_exist(readme: str, repository: pathlib.Path) -> None:
    named = re.findall(r"(?:launch|docs|tests|benchmarks|rlvr)/[\w./-]*\w", readme)
    assert named
    missing = [name for name in named if not (repository / name).exists()]
    assert not missing


def test_read_these_files_in_this_order_names_real_modules(readme: str, repository: pathlib.Path) -> None:
    paragraph = readme.split("Read in this order:")[1].split("\n\n")[0]
    for name in re.findall(r"`(\w+)`", paragraph):
        assert (repository / "rlvr" / f"{name}.py").exists(), name


def test_its_benchmark_table_is_that_of_the_results_files(readme: str, repository: pathlib.Path) -> None:
    def result(name: str) -> dict[str, Any]:
        return json.loads((repository / "benchmarks" / "results" / f"{name}.json").read_text())

    rows = []
    for name in ("rollout_30m_64", "rollout_30m_gsm8k"):
        found = result(name)
        rate, ratio = found["tokens_per_second"]["ours"]["median"], found["ratios"]["ours / raw vLLM"]["median"]
        rows.append((f"{rate:,.0f} tokens/s", f"{ratio:.2f}"))
        step, ratio = found["seconds"]["step"]["median"], found["ratios"]["step / floors"]["median"]
        rows.append((f"{step:.1f} s", f"{ratio:.2f}"))
    ours = result("learner_30m")["contestants"]["ours, ZeRO 0"]
    rows.append((f"{ours['update_tokens_per_second']:.0f} tokens/s", f"{ours['update_over_exact']['median']:.2f}"))
    table = [line.split(" | ") for line in readme.splitlines() if line.count(" | ") == 3]
    shown = [(cells[1], cells[3].removesuffix(" |")) for cells in table]
    assert set(rows) <= set(shown)

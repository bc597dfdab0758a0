"""What is known before anything is loaded: files, names, rows, and nothing of it needs torch."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from rlvr import recipe, startup
from rlvr.config import Config
from rlvr.data import read_rows
from rlvr.errors import ConfigError, DataError
from verifiers.errors import PluginError, UnknownVerifierError, VerifierOptionError

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
samples_per_prompt = 2
[training]
steps = 3
"""


def row(verifier: Any, ground_truth: Any) -> str:
    messages = [{"role": "user", "content": "1 + 2?"}]
    return json.dumps({"messages": messages, "ground_truth": ground_truth, "dataset": verifier}) + "\n"


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text(row("math", "3") + row("GSM8K", "3"))
    return tmp_path


def load(*overrides: str) -> Config:
    return recipe.load("r.toml", overrides)


def message(kind: type[Exception], *overrides: str) -> str:
    with pytest.raises(kind) as caught:
        startup.check(load(*overrides))
    return str(caught.value)


def test_a_sound_recipe_is_described(folder: pathlib.Path) -> None:
    assert startup.check(load("algorithm.minibatches=2")) == [
        "rows.jsonl: 2 rows; 1 repeat an earlier prompt and are kept",
        "verifiers: gsm8k, math",
        "a step: 4 prompts x 2 samples = 8 samples, 8 optimizer steps (4 epochs x 2 minibatches)",
        "the run: 3 steps, 24 samples -> runs/x",
    ]


def test_rows_that_are_no_file_are_said_to_be_unread(folder: pathlib.Path) -> None:
    lines = startup.check(load("data.eval=owner/rows"))
    assert lines[:3] == [
        "rows.jsonl: 2 rows; 1 repeat an earlier prompt and are kept",
        "owner/rows: not a file, so its rows are read when the run starts",
        "verifiers: gsm8k, math, those that the rows not read here name",
    ]


def test_all_missing_files_are_told_at_once_with_the_nearest_name(folder: pathlib.Path) -> None:
    text = message(
        ConfigError,
        "data.train=row.jsonl",
        "data.eval=far/away/rows",
        "model.path=./models/none",
        "critic.init=polcy",
        "model.chat_template=tullu",
    )
    assert text == textwrap.dedent(f"""\
        the recipe names what is not there (looked in {folder}):
          model.chat_template='tullu': no such template ships. Did you mean 'tulu'?
          model.path='./models/none': no such folder.
          critic.init='polcy': neither policy nor scratch, nor a folder. Did you mean 'policy'?
          row.jsonl: no such file of rows. Did you mean rows.jsonl?
          far/away/rows: no such file or folder of rows.""")


def test_a_model_folder_needs_a_config(folder: pathlib.Path) -> None:
    (folder / "model").mkdir()
    assert message(ConfigError, "model.path=model").endswith("model.path='model': no config.json in it")
    (folder / "model" / "config.json").write_text("{}")
    assert startup.check(load("model.path=model", "critic.init=model"))


def test_a_model_that_cannot_be_split_over_an_engines_ranks_is_refused(folder: pathlib.Path) -> None:
    """3 ranks divide none of its sizes; 1,000 tokens are padded to 1,024."""
    (folder / "model").mkdir()
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 1000}
    (folder / "model" / "config.json").write_text(json.dumps(sizes))
    startup.check(load("model.path=model", "sampler.tensor_parallel_size=4"))  # 2 heads, each on 2 ranks
    assert message(ConfigError, "model.path=model", "sampler.tensor_parallel_size=3").endswith(
        "sampler.tensor_parallel_size=3 does not divide num_attention_heads=4, intermediate_size=64, "
        "num_key_value_heads=2, vocab_size=1000 (rounded up to a multiple of 64): set it to 1, 2, 4"
    )


def test_a_file_that_holds_no_rows_by_its_ending_is_refused(folder: pathlib.Path) -> None:
    (folder / "rows.csv").write_text("a,b\n")
    assert "rows.csv: a file of rows ends in .jsonl, .json, .parquet." in message(ConfigError, "data.train=rows.csv")


def test_a_split_of_a_file_is_refused_because_it_would_do_nothing(folder: pathlib.Path) -> None:
    assert "rows.jsonl: split='test' does nothing" in message(ConfigError, "data.train.0.split=test")


def test_two_held_out_sets_of_one_name_are_refused_because_one_would_be_lost(folder: pathlib.Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "test.jsonl").write_text(row("math", "3"))
    text = message(ConfigError, 'data.eval=["a/test.jsonl", "b/test.jsonl"]')
    assert "data.eval has more than one set called test: rename the files" in text


def test_an_unknown_verifier_names_the_nearest_one(folder: pathlib.Path) -> None:
    (folder / "rows.jsonl").write_text(row("mth", "3"))
    text = message(DataError)
    assert text.startswith("1 bad row of 1 in rows.jsonl: 1 unknown verifier; correct or remove:\n  rows.jsonl:1: ")
    assert "no verifier is called 'mth'. Did you mean 'math'? Known: " in text
    assert text.endswith('or install a package with an entry point in group "rlvr.verifiers".')


def test_an_unknown_verifier_in_a_remap_is_refused_whoever_reads_the_rows(folder: pathlib.Path) -> None:
    assert "'gsm8'" in message(UnknownVerifierError, "verification.remap.math=gsm8")
    hub = 'data.train=[{path = "owner/rows", remap = {ifeval = "tulu3_ifevl"}}]'
    assert "Did you mean 'tulu3_ifeval'?" in message(UnknownVerifierError, hub)


def test_a_remap_of_a_name_that_no_row_has_is_refused(folder: pathlib.Path) -> None:
    assert message(ConfigError, "verification.remap.mth=gsm8k") == (
        "verification.remap replaces mth, which no training row uses (rows use gsm8k, math). "
        "Correct the name, or remove it."
    )
    assert message(DataError, "data.train.0.remap.mth=gsm8k") == (
        "remap of rows.jsonl replaces mth, which no row names; rows name gsm8k, math. Correct the name, or remove it."
    )


def test_options_reach_the_verifier_and_wrong_ones_are_refused(folder: pathlib.Path) -> None:
    (folder / "rows.jsonl").write_text(row("Length", None).replace("null", "{}"))
    made = load("verification.options.LENGTH={unit='words', maximum=3}")
    options = startup.build_verifiers(made, ["length"], "training")
    assert options["length"].config.maximum == 3
    assert "no_such" in message(VerifierOptionError, "verification.options.length.no_such=3")


def test_options_of_a_verifier_that_no_row_uses_are_refused(folder: pathlib.Path) -> None:
    assert message(ConfigError, "verification.options.code.x=1") == (
        "verification.options has options for code, which no row uses (rows use gsm8k, math). "
        "Remove them, or correct the name."
    )


def test_a_plugin_file_that_is_missing_or_registers_nothing_is_refused(folder: pathlib.Path) -> None:
    assert "nowhere.py" in message(PluginError, 'plugins=["nowhere.py"]')
    (folder / "empty.py").write_text("")
    assert "registers no verifier" in message(PluginError, 'plugins=["empty.py"]')


def test_a_verifier_named_by_its_file_keeps_the_case_of_the_path(folder: pathlib.Path) -> None:
    (folder / "My.py").write_text("def Always(completion, ground_truth):\n    return True\n")
    (folder / "rows.jsonl").write_text(row("My.py:Always", None).replace("null", '"x"'))
    assert "verifiers: My.py:Always" in startup.check(load())
    (folder / "rows.jsonl").write_text(row("MATH", "3"))
    assert startup.check(load("verification.remap.Math=My.py:Always"))


def test_ground_truths_that_no_verifier_can_read_are_listed_with_their_rows(folder: pathlib.Path) -> None:
    (folder / "rows.jsonl").write_text(row("math", "3") + row("gsm8k", "three") + row(["math", "gsm8k"], ["4", 5]))
    made = load()
    with pytest.raises(DataError) as caught:
        startup.check_ground_truths(made, [read_rows(made.data.train[0])])
    first, *listed = str(caught.value).splitlines()
    assert first == "1 ground truth cannot be read; correct or remove:"
    assert [line.split(": ")[0] for line in listed] == ["  rows.jsonl:2"]


def test_the_guard_that_training_has_and_evaluation_has_not_is_said(folder: pathlib.Path) -> None:
    no_commas = row("ifeval", {"instruction_id": ["punctuation:no_comma"], "kwargs": [None]})
    for name in ("rows.jsonl", "heldout.jsonl"):
        (folder / name).write_text(no_commas)
    lines = startup.check(load("data.eval=heldout.jsonl"))
    assert lines[2:4] == ["verifiers: ifeval", "  ifeval: training with guard = true, evaluation without"]


def test_options_of_a_verifier_that_no_held_out_row_uses_are_refused(folder: pathlib.Path) -> None:
    (folder / "heldout.jsonl").write_text(row("math", "3"))
    assert message(ConfigError, "data.eval=heldout.jsonl", "evaluation.options.gsm8k={}") == (
        "evaluation.options has options for gsm8k, which no held-out row uses (held-out rows use math). "
        "Remove them, or correct the name."
    )
    assert "no_such" in message(VerifierOptionError, "data.eval=heldout.jsonl", "evaluation.options.math.no_such=1")


def test_gold_answers_are_judged_and_rows_without_one_are_said_to_be_unchecked(folder: pathlib.Path) -> None:
    upper = row("tulu3_ifeval", {"func_name": "validate_uppercase"})
    (folder / "rows.jsonl").write_text(row("math", "3") + row("math", "4") + upper + upper)
    (folder / "heldout.jsonl").write_text(upper)
    lines, is_clean = startup.check_gold_answers(load("data.eval=heldout.jsonl"))
    unknown = "which cannot write an answer that must be correct; their ground truths can be read, and no more is known"
    assert lines == [
        "gold: 2 of 5 own answers correct, 2 shown another row's, 0 exceptions",
        f"gold: NOT CHECKED: 2 rows of tulu3_ifeval, {unknown}",
        f"gold: NOT CHECKED: 1 row of tulu3_ifeval in evaluation, {unknown}",
    ]
    assert is_clean
    (folder / "rows.jsonl").write_text(row("math", "3") + row("math", "3.0"))
    lines, is_clean = startup.check_gold_answers(load())
    assert lines[0].startswith("rows.jsonl:1: math: another row's gold is correct: ")
    assert not is_clean


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_check_imports_neither_torch_nor_transformers(folder: pathlib.Path, suffix: str) -> None:
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    program = """
        import sys
        from rlvr.cli import main
        assert main(sys.argv[1:]) == 0
        print(sorted({"torch", "transformers", "vllm", "deepspeed", "datasets"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "check", "r.toml", f"data.train=rows.{suffix}"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == ["ok", "[]"]
    assert f"rows.{suffix}: 2 rows" in done.stdout

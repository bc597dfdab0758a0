"""Evaluation prompts in training data are all found, shown side by side, and removed or refused as the recipe says."""

from __future__ import annotations

import gzip
import json
import pathlib
import random
from typing import Any

import pytest

from rlvr.cli import main
from rlvr.config import Data, Decontamination, TextSource
from rlvr.data import read_conversations, read_mixture, read_training
from rlvr.decontaminate import search_files
from rlvr.errors import ConfigError, DataError
from rlvr.overlaps import PairReport
from rlvr.prompts import make_prompts
from rlvr.recipe import load_as
from rlvr.texts import blocks, texts_in
from sft_dpo.config import Sft
from tests.test_data import Letters

WORDS = [f"word{n}" for n in range(3000)]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def write(path: pathlib.Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "ground_truth": "3", "dataset": "math"}


def search(train: str, evaluation: str, workers: int = 1, **options: Any) -> PairReport:
    sources = [[TextSource(path=path)] for path in (train, evaluation)]
    (report,) = search_files(*sources, Decontamination(**options), workers=workers)
    return report


@pytest.mark.parametrize("workers", [1, 2])
def test_a_planted_one_percent_is_found_completely_and_nothing_else_is(tmp_path: pathlib.Path, workers: int) -> None:
    draw = random.Random(0)
    held_out = [sentence(draw, draw.randint(10, 60)) for _ in range(1000)]
    clean = [sentence(draw, draw.randint(10, 60)) for _ in range(20_000)]
    planted = dict(zip(draw.sample(range(20_000), 10), draw.sample(range(1000), 10), strict=True))
    for n, instance in planted.items():  # inside another prompt, in other case and punctuation
        clean[n] = f"{sentence(draw, 5)} ({held_out[instance].upper().replace(' ', ', ')}!) {sentence(draw, 5)}"
    train = write(tmp_path / "train.jsonl", [row(text) for text in clean])
    evaluation = write(tmp_path / "eval.jsonl", [{"question": text} for text in held_out])
    report = search(train, evaluation, workers)
    assert {o.evaluation.place: o.training.place for o in report.overlaps} == {
        f"{evaluation}:{instance + 1}": f"{train}:{n + 1}" for n, instance in planted.items()
    }
    assert {o.share for o in report.overlaps} == {1.0}
    assert (report.training_rows, report.instances, report.share, report.contaminated) == (20_000, 1000, 0.01, False)
    assert sorted(report.matching_rows) == sorted(f"{train}:{n + 1}" for n in planted)


def two_sets(folder: pathlib.Path) -> tuple[str, str, str]:
    """A source with one of 20 evaluation prompts (5%), one without, and the evaluation set."""
    draw = random.Random(1)
    held_out = [sentence(draw, 20) for _ in range(20)]
    dirty = write(folder / "dirty.jsonl", [row(sentence(draw, 20)), row(held_out[3]), row(sentence(draw, 9))])
    clean = write(folder / "clean.jsonl", [row(sentence(draw, 20)) for _ in range(4)])
    return dirty, clean, write(folder / "eval.jsonl", [{"prompt": text} for text in held_out])


def training(folder: pathlib.Path, action: str, limit: float = 0.02) -> Data:
    dirty, clean, against = two_sets(folder)
    table = {
        "train": [{"path": dirty, "weight": 2.0}, {"path": clean}],
        "decontaminate": {"against": [against], "action": action, "max_contaminated": limit},
    }
    return Data.model_validate_json(json.dumps(table))


def test_matching_rows_are_removed_before_the_sources_are_mixed(tmp_path: pathlib.Path) -> None:
    rows = read_training(training(tmp_path, "remove rows"), ())
    assert [row.place.rsplit("/", 1)[1] for row in rows] == [
        *["dirty.jsonl:1", "dirty.jsonl:3"] * 2, *[f"clean.jsonl:{n}" for n in (1, 2, 3, 4)],
    ]  # fmt: skip
    summary = make_prompts("train", rows, Letters(), 10**6).summary()
    assert "dirty.jsonl: 3 rows - 1 contaminated = 2; mixed to 4" in summary


def test_a_contaminated_set_is_removed_whole_and_one_below_the_limit_stays_whole(tmp_path: pathlib.Path) -> None:
    assert [len(part) for part in read_training(training(tmp_path, "remove set"), ()).parts] == [0, 4]
    assert [len(part) for part in read_training(training(tmp_path, "remove set", limit=0.05), ()).parts] == [6, 4]


def test_a_refusal_shows_both_rows(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError) as caught:
        read_training(training(tmp_path, "refuse"), ())
    text = str(caught.value)
    assert "dirty.jsonl (3 rows) against" in text
    assert "1 overlap (5.00%; 1 in every word), CONTAMINATED (limit 2%); 1 training rows match" in text
    assert "  100% of " in text
    assert "eval.jsonl:4: " in text
    assert "dirty.jsonl:2: " in text
    assert len(read_training(training(tmp_path, "refuse", limit=0.05), ())) == 10


def test_check_says_what_the_run_would_find(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    dirty, clean, against = two_sets(tmp_path)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"""
        run_dir = "x"
        model.path = "owner/model"
        rollout.prompts_per_step = 2
        training.steps = 1
        [data]
        train = ["{dirty}", "{clean}"]
        decontaminate = {{ against = "{against}", action = "remove rows" }}
        """
    )
    assert main(["check", str(recipe)]) == 0
    assert f"{dirty} (3 rows) against {against} (20 instances): 1 overlap (5.00%; 1 in every word)" in (
        capsys.readouterr().out
    )
    assert main(["check", str(recipe), 'data.decontaminate.action="refuse"']) == 2
    assert "training data holds prompts of evaluation sets" in capsys.readouterr().err


def test_nothing_left_is_refused(tmp_path: pathlib.Path) -> None:
    dirty, _, against = two_sets(tmp_path)
    options = Decontamination(against=[TextSource(path=against)], action="remove set")
    with pytest.raises(DataError, match=r"every training row was removed by data.decontaminate: .*5.00%"):
        read_training(Data.model_construct(train=Data(train=[{"path": dirty}]).train, decontaminate=options), ())


def test_answers_and_system_turns_are_not_compared_and_turns_are_compared_one_by_one(tmp_path: pathlib.Path) -> None:
    draw = random.Random(2)
    held_out = sentence(draw, 20)
    words = held_out.split()
    turns = [
        ("system", held_out),
        ("user", " ".join(words[:10])),
        ("assistant", held_out),
        ("user", " ".join(words[10:])),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    train = write(tmp_path / "t.jsonl", [{"messages": [*messages, {"role": "assistant", "content": held_out}]}])
    against = write(tmp_path / "e.jsonl", [{"prompt": held_out}])
    assert not search(train, against).overlaps  # 10 of 20 words in each turn: not more than half
    options = Data.model_validate_json(
        json.dumps({"train": [train], "decontaminate": {"against": [against], "action": "remove rows"}})
    )
    assert len(read_mixture(options, read_conversations, lambda turns: turns)) == 1
    assert search(train, against, min_overlap=0.4).matching_rows == (f"{train}:1",)


def test_layouts_of_public_files_are_read_alike(tmp_path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"problem": "a b"}, {"problem": "c"}]
    write(tmp_path / "r.jsonl", rows)
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=2))
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.json", "r.jsonl.gz", "r.parquet"):
        texts = [text for block in blocks(TextSource(path=str(tmp_path / name))) for text in texts_in(block)]
        assert [text.turns for text in texts] == [("a b",), ("c",)]


def test_a_prompt_that_is_not_known_is_asked_for_and_never_guessed(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"problem": "a", "question": "b"}, {"Body": "c"}])
    with pytest.raises(DataError) as caught:
        search(path, path)
    assert str(caught.value).splitlines()[1:] == [
        f"  {path}:1: question, problem may each be the prompt (it has problem, question): name it, as PATH::column",
        f"  {path}:2: no known column of text (it has Body): name it, as PATH::column",
    ]
    with pytest.raises(DataError, match=r"there is no file .*q\.jsonl"):
        search(str(tmp_path / "q.jsonl"), str(tmp_path / "q.jsonl"))


def test_the_command_prints_and_writes_what_it_found(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dirty, clean, against = two_sets(tmp_path)
    out = tmp_path / "out" / "report.json"
    command = ["decontaminate", "--train", dirty, clean, "--eval", f"{against}::prompt", "--report", str(out)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "100% of" in printed
    assert "7 training rows in" in printed
    found = json.loads(out.read_text())
    assert [(pair["overlapping"], pair["contaminated"]) for pair in found] == [(1, True), (0, False)]
    (overlap,) = found[0]["overlaps"]
    assert overlap["evaluation"]["turns"] == overlap["training"]["turns"]
    assert main([*command[:-2], "--max-contaminated", "0.05"]) == 0
    assert main([*command[:-2], "--min-overlap", "1.5"]) == 2
    assert "min_overlap: Input should be less than or equal to 1 (got 1.5)" in capsys.readouterr().err


def test_gsm8k_train_and_test_share_two_templates_and_no_problem(shared_data: pathlib.Path) -> None:
    report = search(str(shared_data / "gsm8k/train.jsonl"), str(shared_data / "gsm8k/test.jsonl"))
    assert [o.evaluation.place.rsplit(":")[1] for o in report.overlaps] == ["603", "633"]
    assert max(o.share for o in report.overlaps) < 0.8
    assert not report.contaminated


def test_the_table_in_the_docs_is_what_was_measured(repository: pathlib.Path) -> None:
    names = {
        "GSM8K train": "train.jsonl", "GSM8K test": "test.jsonl", "MATH train (7,474)": "math_train_7474.json",
        "MATH-500": "math500.jsonl", "MATH test": "math_test_5000.jsonl", "AMC 2023": "amc23.jsonl",
        "MBPP train": "mbpp_train.jsonl", "MBPP test": "mbpp_test.jsonl", "MBPP validation": "mbpp_validation.jsonl",
    }  # fmt: skip
    measured = json.loads((repository / "benchmarks/results/decontaminate.json").read_text())["pairs"]
    by_sets = {(pair["training"], pair["evaluation"]): pair for pair in measured}
    rows = [line.strip("| ").split(" | ") for line in (repository / "docs/data.md").read_text().splitlines()]
    table = [row for row in rows if len(row) == 7 and row[0] in names]
    assert len(table) == 6
    for training, evaluation, *numbers in table:
        pair = by_sets[names[training], names[evaluation]]
        share = f"{pair['overlapping'] / pair['instances']:.2%}"
        counts = [str(pair[key]) for key in ("instances", "overlapping", "in_every_word", "matching_rows")]
        assert numbers == [counts[0], counts[1], share, counts[2], counts[3]]


def test_options_that_would_do_nothing_are_refused(repository: pathlib.Path) -> None:
    from rlvr.contradictions import row_problems

    data = Data.model_validate_json('{"train": ["a.jsonl"], "decontaminate": {"ngram": 5}}')
    assert row_problems(data) == [
        "data.decontaminate.ngram does nothing without data.decontaminate.against: remove one"
    ]
    with pytest.raises(ConfigError, match="ngram does nothing"):  # stages before RLVR say it too
        load_as(Sft, str(repository / "launch/recipes/chain-sft.toml"), ["data.decontaminate.ngram=5"])

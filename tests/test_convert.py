"""Public sets as rows: the published prompts, ground truths read and judged, and no file where a row is bad."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import pytest

from rlvr.cli import main
from rlvr.config import Source
from rlvr.convert import Conversion, convert
from rlvr.convert_formats import FORMATS
from rlvr.data import read_rows
from rlvr.errors import DataError
from rlvr.exemplars import GSM8K, MATH, question
from verifiers.base import Outcome, Sample
from verifiers.registry import VerifierSpec, build


def write(path: pathlib.Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def written(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_zero_shot_rows_hold_the_question_and_the_bare_number(tmp_path: pathlib.Path) -> None:
    answer = "He has 1000+200=<<1000+200=1200>>1200 pens.\n#### 1,200"
    source = write(tmp_path / "in.jsonl", {"question": " How many pens? ", "answer": answer})
    assert convert("gsm8k", source, tmp_path / "out.jsonl") == Conversion(
        rows=1, written=1, other_splits=0, gold_correct=1, without_gold=0, problems=()
    )
    assert written(tmp_path / "out.jsonl") == [
        {
            "messages": [{"role": "user", "content": "Question: How many pens?"}],
            "ground_truth": "1200",
            "dataset": "gsm8k",
        }
    ]


def test_shots_stand_before_the_question_as_tulu_3_has_them(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "in.jsonl", {"question": "How many pens?", "answer": "#### 3"})
    convert("gsm8k", source, tmp_path / "out.jsonl", shots=8)
    (row,) = read_rows(Source(path=str(tmp_path / "out.jsonl")))
    blocks = row.messages[0]["content"].split("\n\n")
    assert len(blocks) == 9
    assert blocks[0] == (
        "Question: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are "
        "done, there will be 21 trees. How many trees did the grove workers plant today?\n"
        "Answer:There are 15 trees originally. Then there were 21 trees after some more were planted. So there must "
        "have been 21 - 15 = 6. So the answer is 6."
    )
    assert blocks[8] == "Question: How many pens?"
    with pytest.raises(DataError, match="--shots 5: what is published for gsm8k has 0 or 8"):
        convert("gsm8k", source, tmp_path / "other.jsonl", shots=5)


def test_the_worked_examples_are_the_published_ones_byte_for_byte() -> None:
    # what allenai/open-instruct's script writes before a question, at 06fb7188
    digests = {
        GSM8K: "ced9ea33012159a154c244546704b0eda98c3a5982e3c0d919e73b5e08dcebc0",
        MATH: "8f7ba8ad68586c6275b6c1f1baeb0c149040f45f1350162723c1bf30fad2affc",
    }
    for exemplars, digest in digests.items():
        before = question(exemplars, "").removesuffix("Question: ")
        assert hashlib.sha256(before.encode()).hexdigest() == digest
    # arXiv 2201.11903, Table 20, in order
    found = [re.search(r"So the answer is (\d+)\.\Z", answer) for _, answer in GSM8K]
    assert [match[1] for match in found if match] == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_the_answers_of_the_worked_math_examples_are_correct() -> None:
    verifier = build(VerifierSpec(name="math"))
    for (_, answer), truth in zip(MATH, ["[2,5)", "24", "16", r"-\frac{2}{3}"], strict=True):
        assert verifier.verify(Sample(completion=answer, ground_truth=truth)).outcome is Outcome.CORRECT


def test_bad_rows_are_listed_by_line_and_nothing_is_written(tmp_path: pathlib.Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"question": "q", "answer": "#### 3"},
        "{",
        {"question": "r"},
        {"question": "s", "answer": "three"},
        {"question": " ", "answer": "#### 3"},
        {"question": "t", "answer": "#### x"},
        {"question": "q", "answer": "#### 3"},
    )
    with pytest.raises(DataError) as caught:
        convert("gsm8k", source, tmp_path / "out.jsonl")
    head, *listed = str(caught.value).splitlines()
    assert head == (
        f"6 of 7 rows of {source} cannot be used as gsm8k (openai/grade-school-math: question, answer); correct them, "
        "or leave them out with --max-bad-share 0.8572:"
    )
    assert [line.split(": ")[0] for line in listed] == [f"  {source}:{number}" for number in (2, 3, 4, 5, 6, 7)]
    assert listed[5].endswith(f"the same prompt as {source}:1")
    assert not (tmp_path / "out.jsonl").exists()
    done = convert("gsm8k", source, tmp_path / "out.jsonl", max_bad_share=0.8572)
    assert (done.rows, done.written, len(done.problems)) == (7, 1, 6)
    assert done.summary() == "1 of 7 rows; gold answers: 1 judged correct; 6 left out"


def test_a_missing_an_empty_and_an_existing_file_are_refused(tmp_path: pathlib.Path) -> None:
    train = write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"there is no file .*trian\.jsonl .* Did you mean .*train\.jsonl\?"):
        convert("gsm8k", str(tmp_path / "trian.jsonl"), tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="holds no rows"):
        convert("gsm8k", train, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="exists already"):
        convert("gsm8k", train, tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"--split test does nothing for .*, because a file is one split"):
        convert("gsm8k", train, tmp_path / "out.jsonl", split="test")


def test_math_takes_the_last_box_of_the_solution_or_the_answer(tmp_path: pathlib.Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"problem": "p", "solution": r"first \boxed{1}, then $\boxed{\frac{1}{2}}$.", "answer": "0.5"},
        {"problem": "q", "answer": "17"},
    )
    convert("math", source, tmp_path / "out.jsonl", shots=4)
    assert [row["ground_truth"] for row in written(tmp_path / "out.jsonl")] == [r"\frac{1}{2}", "17"]
    assert written(tmp_path / "out.jsonl")[0]["messages"][0]["content"].endswith("}}.$$\n\nQuestion: p")
    with pytest.raises(DataError, match="the solution has no"):
        convert("math", write(tmp_path / "bad.jsonl", {"problem": "p", "solution": "2"}), tmp_path / "bad_out.jsonl")


def test_hub_parquet_with_every_argument_named_gives_the_same_rows(tmp_path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"prompt": "Say it.", "instruction_id_list": ["length_constraints:number_words"]}
    given = {"relation": "at least", "num_words": 3}
    source = write(tmp_path / "in.jsonl", row | {"kwargs": [given]})
    table = pyarrow.Table.from_pylist([row | {"kwargs": [given | {"num_bullets": None, "end_phrase": None}]}])
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    convert("ifeval", source, tmp_path / "a.jsonl")
    done = convert("ifeval", str(tmp_path / "in.parquet"), tmp_path / "b.jsonl")
    assert written(tmp_path / "a.jsonl") == written(tmp_path / "b.jsonl")
    assert done.summary() == "1 of 1 rows; gold answers: 0 judged correct, 1 rows have none to judge"
    unknown = write(tmp_path / "bad.jsonl", row | {"instruction_id_list": ["length:words"], "kwargs": [given]})
    with pytest.raises(DataError, match="length:words"):
        convert("ifeval", unknown, tmp_path / "c.jsonl")


def test_the_published_program_of_a_code_row_must_pass_its_tests(tmp_path: pathlib.Path) -> None:
    good = {
        "task_id": 601,
        "text": "Write f.",
        "code": "def f(x):\r\n    return x + 1",
        "test_list": ["assert f(1) == 2"],
    }
    test = {**good, "task_id": 11, "text": "Write g."}
    wrong = {**good, "task_id": 602, "text": "Write h.", "test_list": ["assert f(1) == 3"]}
    source = write(tmp_path / "in.jsonl", good, test, wrong)
    done = convert("mbpp", source, tmp_path / "out.jsonl", split="train", max_bad_share=0.5)
    assert (done.rows, done.written, done.other_splits, done.gold_correct) == (2, 1, 1, 1)
    assert done.problems[0].startswith(f"{source}:3: the verifier code judges its own answer wrong: ")
    assert written(tmp_path / "out.jsonl") == [
        {
            "messages": [
                {
                    "role": "user",
                    "content": "You are an expert Python programmer, and here is your task: Write f. Your code should "
                    "pass these tests:\n\nassert f(1) == 2",
                }
            ],
            "ground_truth": {"tests": ["assert f(1) == 2"]},
            "dataset": "code",
        }
    ]


def test_sets_of_the_hub_are_converted_by_subset_and_by_their_own_splits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "gsm8k"  # laid out as openai/gsm8k is
    (hub / "main").mkdir(parents=True)
    (hub / "socratic").mkdir()
    for subset, split, number in (("main", "train", 1), ("main", "test", 2), ("socratic", "train", 3)):
        row = {"question": f"What is {number}?", "answer": f"#### {number}"}
        datasets.Dataset.from_list([row]).to_parquet(hub / subset / f"{split}.parquet")
    files = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("main", "socratic"))
    (hub / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    options = ["--subset", "main", "--split", "test"]
    assert main(["data", "convert", "gsm8k", str(hub), str(tmp_path / "gsm8k.jsonl"), *options]) == 0
    assert [row["ground_truth"] for row in written(tmp_path / "gsm8k.jsonl")] == ["2"]
    # the task ids of a split tell the rows of the published file apart; a set that has splits is read by them
    task = {"task_id": 999, "text": "Write f.", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
    datasets.DatasetDict({"test": datasets.Dataset.from_list([task])}).save_to_disk(tmp_path / "mbpp")
    done = convert("mbpp", str(tmp_path / "mbpp"), tmp_path / "mbpp.jsonl", split="test")
    assert (done.written, done.gold_correct, done.other_splits) == (1, 1, 0)
    evaluation = f"{hub}:main@test"
    assert main(["decontaminate", "--train", f"{hub}:socratic", "--eval", evaluation]) == 0
    assert f"{hub}:socratic (1 rows) against {hub}:main@test (1 instances): 0 overlap" in capsys.readouterr().out


def test_every_command_of_the_docs_runs_in_turn(
    repository: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        write(tmp_path / "gsm8k" / f"{split}.jsonl", {"question": f"What is 1 + 2? {split}", "answer": "#### 3"})
    write(tmp_path / "math_train.jsonl", {"problem": "What is 1 + 2?", "solution": r"\boxed{3}"})
    task = {"task_id": 601, "text": "Write f.", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
    write(tmp_path / "mbpp.jsonl", task)
    write(tmp_path / "svamp.jsonl", {"Body": "Ann has 3 cups.", "Question": "How many?"})
    write(tmp_path / "train.jsonl", {"question": "What is 2 + 2?"})
    text = (repository / "docs/data.md").read_text(encoding="utf-8")
    commands = [line.split()[3:] for line in text.splitlines() if line.startswith("python -m rlvr ")]
    assert {command[0] for command in commands} == {"decontaminate", "data"}
    assert [main(command) for command in commands] == [0] * len(commands)


def test_the_command_prints_what_became_of_the_rows(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", {"question": "q", "answer": "#### 3"}, {"question": "r", "answer": "3"})
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", "gsm8k", source, str(out), "--shots", "8", "--max-bad-share", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 1 of 2 rows; gold answers: 1 judged correct; 1 left out, 8 worked examples before each question",
        f"  left out {source}:2: needs an answer that ends in `#### number`, got '3'",
    ]


@pytest.mark.parametrize(
    ("name", "file", "count", "options"),
    [
        ("gsm8k", "gsm8k/train.jsonl", 7473, {"shots": 8}),
        ("gsm8k", "gsm8k/test.jsonl", 1319, {}),
        ("math", "math/math500.jsonl", 500, {"shots": 4}),
        ("ifeval", "ifeval/input_data.jsonl", 541, {}),
        ("ifbench", "ifbench/IFBench_test.jsonl", 300, {}),
        ("mbpp", "mbpp/mbpp.jsonl", 90, {"split": "validation"}),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, {"workers": 2}),
    ],
)
def test_every_public_row_is_converted_and_its_gold_answer_is_judged_correct(
    name: str, file: str, count: int, options: dict[str, Any], shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = convert(name, str(shared_data / file), tmp_path / "out.jsonl", **options)
    assert (done.rows, done.written, done.problems) == (count, count, ())
    assert done.gold_correct == (0 if FORMATS[name].verifier in ("ifeval", "ifbench") else count)
    assert len(read_rows(Source(path=str(tmp_path / "out.jsonl")), duplicates="bad")) == count

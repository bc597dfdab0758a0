"""GSM8K as rows: the published prompt, the bare number, and nothing written where a row is bad."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from rlvr.config import Source
from rlvr.convert import EXEMPLARS, convert_gsm8k
from rlvr.data import read_rows
from rlvr.errors import DataError
from verifiers.base import Outcome, Sample
from verifiers.registry import VerifierSpec, build

GSM8K = pathlib.Path(__file__).resolve().parents[1] / "../shared/data/gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="the public GSM8K files are not beside the repository")


def write(path: pathlib.Path, *rows: object) -> pathlib.Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_zero_shot_rows_hold_the_question_and_the_bare_number(tmp_path: pathlib.Path) -> None:
    answer = "He has 1000+200=<<1000+200=1200>>1200 pens.\n#### 1,200"
    source = write(tmp_path / "in.jsonl", {"question": " How many pens? ", "answer": answer})
    assert convert_gsm8k(source, tmp_path / "out.jsonl", shots=0) == 1
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "messages": [{"role": "user", "content": "Question: How many pens?"}],
        "ground_truth": "1200",
        "dataset": "gsm8k",
    }


def test_eight_shot_rows_begin_with_the_published_worked_examples(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "in.jsonl", {"question": "How many pens?", "answer": "#### 3"})
    convert_gsm8k(source, tmp_path / "out.jsonl", shots=8)
    (row,) = read_rows(Source(path=str(tmp_path / "out.jsonl")))
    blocks = row.messages[0]["content"].split("\n\n")
    assert len(blocks) == 9
    assert blocks[0] == (
        "Question: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are "
        "done, there will be 21 trees. How many trees did the grove workers plant today?\n"
        "Answer: There are 15 trees originally. Then there were 21 trees after some more were planted. So there must "
        "have been 21 - 15 = 6. So the answer is 6."
    )
    assert blocks[8] == "Question: How many pens?"


def test_the_answers_of_the_worked_examples_are_those_of_the_paper() -> None:
    # arXiv 2201.11903, Table 20, in order
    found = [re.search(r"So the answer is (\d+)\.\Z", answer) for _, answer in EXEMPLARS]
    assert [match[1] for match in found if match] == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_bad_rows_are_listed_by_line_and_nothing_is_written(tmp_path: pathlib.Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"question": "q", "answer": "#### 3"},
        "{",
        {"question": "q"},
        {"question": "q", "answer": "three"},
        {"question": " ", "answer": "#### 3"},
    )
    with pytest.raises(DataError) as caught:
        convert_gsm8k(source, tmp_path / "out.jsonl", shots=0)
    _, *listed = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in listed] == [f"  {source}:{number}" for number in (2, 3, 4, 5)]
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_an_empty_and_an_existing_file_are_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"there is no file .*trian\.jsonl .* Did you mean .*train\.jsonl\?"):
        convert_gsm8k(tmp_path / "trian.jsonl", tmp_path / "out.jsonl", shots=0)
    with pytest.raises(DataError, match="holds no rows"):
        convert_gsm8k(tmp_path / "train.jsonl", tmp_path / "out.jsonl", shots=0)
    with pytest.raises(DataError, match="exists already"):
        convert_gsm8k(tmp_path / "train.jsonl", tmp_path / "train.jsonl", shots=0)


@needs_gsm8k
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_public_row_is_converted_and_both_verifiers_agree_with_its_own_solution(
    split: str, count: int, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "out.jsonl"
    assert convert_gsm8k(GSM8K / f"{split}.jsonl", target, shots=0) == count
    rows = read_rows(Source(path=str(target)))
    solutions = [json.loads(line)["answer"] for line in (GSM8K / f"{split}.jsonl").open(encoding="utf-8")]
    for name in ("gsm8k", "tulu3_gsm8k"):
        verifier = build(VerifierSpec(name=name))
        for row, solution in list(zip(rows, solutions, strict=True))[:: max(1, count // 400)]:
            truth = row.tasks[0].ground_truth
            verifier.check_ground_truth(truth)
            if not truth.startswith("-"):  # the original loses an integer's sign
                sample = Sample(completion=solution, ground_truth=truth)
                assert verifier.verify(sample).outcome is Outcome.CORRECT, (row.place, solution)

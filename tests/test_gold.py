"""A data set's gold answers against its verifiers."""

from __future__ import annotations

import json
import pathlib

from verifiers.gold import GoldRow, check_gold
from verifiers.registry import VerifierSpec

SPECS = {
    "exact": VerifierSpec(name="exact"),
    "length": VerifierSpec(name="length"),
    "regex": VerifierSpec(name="regex"),
}


def test_every_row_is_correct_excepted_or_without_gold() -> None:
    rows = [
        GoldRow(row=10, verifier="exact", ground_truth="Paris"),
        GoldRow(row=11, verifier="exact", ground_truth="Rome"),
        GoldRow(row=12, verifier="exact", ground_truth=None),
        GoldRow(row=13, verifier="length", ground_truth={"min": 2}),
        GoldRow(row=14, verifier="length", ground_truth={"min": 3}),
        GoldRow(row=15, verifier="regex", ground_truth="a+"),
        GoldRow(row=16, verifier="exact", ground_truth=["Oslo", "Rome"]),
    ]
    report = check_gold(rows, SPECS)
    assert (report.rows, report.correct, report.without_gold) == (7, 5, (15,))
    assert [(e.row, e.fault) for e in report.exceptions] == [
        (12, "unreadable"),
        (13, "another row's gold is correct"),  # three words satisfy "at least two"
    ]
    assert "got None" in report.exceptions[0].detail
    assert report.compared == 5


def test_rows_with_one_ground_truth_have_no_stranger() -> None:
    rows = [GoldRow(row=i, verifier="exact", ground_truth="same") for i in range(3)]
    report = check_gold(rows, SPECS)
    assert (report.correct, report.compared, report.exceptions) == (3, 0, ())


def test_the_gold_answers_of_gsm8k_are_correct_and_strangers_are_not(shared_data: pathlib.Path) -> None:
    with (shared_data / "gsm8k" / "test.jsonl").open() as lines:
        answers = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    rows = [GoldRow(row=i, verifier="gsm8k", ground_truth=answer) for i, answer in enumerate(answers)]
    report = check_gold(rows, {"gsm8k": VerifierSpec(name="gsm8k")})
    assert (report.rows, report.correct, report.compared) == (1319, 1319, 1319)
    assert report.exceptions == ()

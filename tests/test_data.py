"""Rows become prompts: bad ones are listed by line, long ones dropped and counted, and each is drawn once an epoch."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.config import Data, Source
from rlvr.data import Row, read_conversations, read_pairs, read_rows, read_training
from rlvr.data_report import DataReport
from rlvr.errors import DataError
from rlvr.mixing import shuffled
from rlvr.prompts import PromptSet, make_prompts, verifier_names
from rlvr.records import Prompt, Task

USER = {"role": "user", "content": "1 + 2?"}
GOOD: dict[str, Any] = {"messages": [USER], "ground_truth": "3", "dataset": "math"}


def asking(content: str) -> dict[str, Any]:
    return GOOD | {"messages": [{"role": "user", "content": content}]}


def write(path: pathlib.Path, *rows: Any) -> Source:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(path=str(path))


def fault(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(source)
    return str(caught.value)


def test_a_row_keeps_its_place_its_prompt_its_task_and_its_other_columns(tmp_path: pathlib.Path) -> None:
    answer = {"role": "assistant", "content": "3"}
    source = write(tmp_path / "r.jsonl", GOOD | {"messages": [USER, answer], "dataset": "MATH", "level": 5})
    (row,) = read_rows(source)
    assert row == Row(
        place=f"{source.path}:1",
        messages=(USER,),
        dataset=("math",),
        tasks=(Task(verifier="math", ground_truth="3"),),
        columns={"level": 5},
    )


def test_several_verifiers_of_a_row_are_several_tasks(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD | {"dataset": ["math", "Length"], "ground_truth": ["3", {"max": 2}]})
    (row,) = read_rows(source)
    assert row.tasks == (Task(verifier="math", ground_truth="3"), Task(verifier="length", ground_truth={"max": 2}))
    assert verifier_names([read_rows(source), read_rows(source)]) == ["length", "math"]


def test_a_ground_truth_may_be_null_where_a_verifier_needs_none_but_not_left_out(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD | {"dataset": "length", "ground_truth": None})
    assert read_rows(source)[0].tasks == (Task(verifier="length", ground_truth=None),)
    bad = write(tmp_path / "bad.jsonl", {"messages": [USER], "dataset": None})
    assert ":1: missing dataset, ground_truth (it has messages, dataset)" in fault(bad)


def test_a_remap_replaces_names_in_any_case(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD | {"dataset": "IFEval"}, GOOD)
    rows = read_rows(Source(path=source.path, remap={"ifeval": "tulu3_ifeval"}))
    assert [row.tasks[0].verifier for row in rows] == ["tulu3_ifeval", "math"]
    assert [row.dataset for row in rows] == [("ifeval",), ("math",)]


def test_every_bad_row_is_listed_by_file_and_line(tmp_path: pathlib.Path) -> None:
    source = write(
        tmp_path / "r.jsonl",
        GOOD,
        "{not json",
        "",  # blank lines are no rows
        "[1, 2]",
        {"messages": [USER], "dataset": "math"},
        GOOD | {"messages": []},
        GOOD | {"messages": [{"role": "robot", "content": "hi"}]},
        GOOD | {"messages": [USER, {"role": "assistant", "content": "3"}, {"role": "system", "content": "x"}]},
        GOOD | {"dataset": ["math", "gsm8k"], "ground_truth": ["3"]},
        GOOD | {"messages": [{"role": "user", "content": "\ud800"}]},
        "9" * 5000,
    )
    first, *listed = fault(source).splitlines()
    assert first == (
        f"9 bad rows of 10 in {source.path}: 1 missing keys, 2 not JSON, 1 not UTF-8, 2 wrong roles, 3 wrong type; "
        "correct or remove:"
    )
    expected = [
        "2: not one JSON object on a line "
        "(Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        "4: a row is an object, not list",
        "5: missing ground_truth (it has messages, dataset)",
        "6: messages must be a non-empty list of turns, got []",
        "7: a turn needs a role of system/user/assistant and text content, got {'role': 'robot', 'content': 'hi'}",
        "8: the prompt must end with a user turn",
        "9: dataset and ground_truth must both be one value or lists of one length, got ['math', 'gsm8k'] and ['3']",
    ]
    assert listed[:7] == [f"  {source.path}:{line}" for line in expected]
    assert listed[7].startswith(f"  {source.path}:10: a user turn holds text that is not Unicode")
    assert listed[8].startswith(f"  {source.path}:11: not one JSON object on a line (Exceeds the limit")


def test_a_line_that_is_not_utf_8_is_listed_with_its_byte(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD)
    with pathlib.Path(source.path).open("ab") as file:
        file.write(b'{"messages": "caf\xe9"}\n')
    assert fault(source) == (
        f"1 bad row of 2 in {source.path}: 1 not UTF-8; correct or remove:\n"
        f"  {source.path}:2: not UTF-8 (byte 0xe9 at byte 18 of the line)"
    )


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(read_rows(Source(path=str(path)))) == 1


def test_a_separator_inside_a_text_does_not_split_the_line(tmp_path: pathlib.Path) -> None:
    content = "a\u2028b\x85c"
    path = tmp_path / "r.jsonl"
    turn = {"role": "user", "content": content}
    path.write_text(json.dumps(GOOD | {"messages": [turn]}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(Source(path=str(path)))[0].messages[0]["content"] == content


def test_only_the_first_bad_rows_are_shown_and_the_rest_counted(tmp_path: pathlib.Path) -> None:
    text = fault(write(tmp_path / "r.jsonl", *["{"] * 25))
    assert text.startswith("25 bad rows of 25 in ")
    assert text.endswith("\n  and 15 more")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault(Source(path="no.jsonl")) == f"there is no file no.jsonl (looked in {tmp_path})"
    (tmp_path / "empty.jsonl").write_text("\n")
    assert fault(Source(path="empty.jsonl")) == "empty.jsonl holds no rows"


def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.parquet"
    path.write_text("no parquet")
    assert fault(Source(path=str(path))).startswith(f"cannot read {path} as Parquet: ")


def test_parquet_and_datasets_folders_hold_the_same_rows_as_jsonl(tmp_path: pathlib.Path) -> None:
    import datasets

    lists = GOOD | {"dataset": ["math", "gsm8k"], "ground_truth": ["3", "3"]}
    expected = read_rows(write(tmp_path / "r.jsonl", lists, lists))
    table = datasets.Dataset.from_list([lists, lists])
    table.to_parquet(tmp_path / "r.parquet")
    datasets.DatasetDict({"dev": table}).save_to_disk(tmp_path / "folder")
    for source in (Source(path=str(tmp_path / "r.parquet")), Source(path=str(tmp_path / "folder"), split="dev")):
        rows = read_rows(source)
        assert [row.place for row in rows] == [f"{source.path}[0]", f"{source.path}[1]"]
        assert [(row.messages, row.tasks) for row in rows] == [(row.messages, row.tasks) for row in expected]
    assert fault(Source(path=str(tmp_path / "folder"))) == f"{tmp_path / 'folder'} has no split 'train'; it has dev"


def test_a_misspelt_remap_is_refused(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD)
    assert "replaces mth, which no row names" in fault(Source(path=source.path, remap={"mth": "gsm8k"}))


def test_conversations_keep_the_answer_and_need_no_other_column(tmp_path: pathlib.Path) -> None:
    turns = [USER, {"role": "assistant", "content": "3"}]
    source = write(tmp_path / "r.jsonl", {"messages": turns})
    assert list(read_conversations(source)) == [tuple(turns)]
    with pytest.raises(DataError, match=":1: messages must be a non-empty list"):
        read_conversations(write(tmp_path / "bad.jsonl", {"text": "x"}))
    with pytest.raises(DataError, match=":1: a conversation to imitate needs an assistant turn"):
        read_conversations(write(tmp_path / "bad.jsonl", {"messages": [USER]}))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"remap": {"math": "gsm8k"}}, "remap does nothing for rows that no verifier judges. Remove it."),
        ({"split": "test"}, "split='test' does nothing, because a file is one split. Remove it."),
    ],
)
def test_options_of_a_source_that_would_do_nothing_are_refused(
    tmp_path: pathlib.Path, option: dict[str, Any], expected: str
) -> None:
    file = write(tmp_path / "r.jsonl", {"messages": [USER, {"role": "assistant", "content": "3"}]})
    for reader in (read_conversations, read_pairs):
        with pytest.raises(DataError) as caught:
            reader(Source(path=file.path, **option))
        assert str(caught.value) == f"{file.path}: {expected}"


def test_pairs_differ_in_their_last_turn_and_in_nothing_else(tmp_path: pathlib.Path) -> None:
    def pair(chosen: str, rejected: str, question: str = "1 + 2?") -> dict[str, Any]:
        turns = [[USER], [{"role": "user", "content": question}]]
        answers = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
        return {"chosen": [*turns[0], answers[0]], "rejected": [*turns[1], answers[1]], "prompt": "1 + 2?"}

    (row,) = read_pairs(write(tmp_path / "r.jsonl", pair("3", "4")))
    assert (row.prompt, row.chosen, row.rejected) == ((USER,), "3", "4")
    bad = write(
        tmp_path / "bad.jsonl", pair("3", "3"), pair("3", "4", "1 + 1?"), {"chosen": [USER], "rejected": [USER]}
    )
    with pytest.raises(DataError) as caught:
        read_pairs(bad)
    assert [line.split(": ", 1)[1] for line in str(caught.value).splitlines()[1:]] == [
        "chosen and rejected are the same answer '3'",
        "chosen and rejected must be the same up to their last turn",
        "chosen and rejected must end with an assistant turn, after a user turn",
    ]


def test_each_kind_of_bad_row_is_counted_by_its_kind(tmp_path: pathlib.Path) -> None:
    source = write(
        tmp_path / "r.jsonl",
        GOOD,
        GOOD,
        GOOD | {"messages": [{"role": "user", "content": " "}]},
        GOOD | {"ground_truth": ""},
        GOOD | {"ground_truth": [], "dataset": "code"},
        GOOD | {"dataset": ["math", 5], "ground_truth": ["3", "4"]},
        GOOD | {"dataset": "mth"},
        GOOD | {"messages": [{"role": "user", "content": 12}]},
        '\ufeff{"a": 1}',  # a byte order mark begins a file, or is a mistake
    )
    with pathlib.Path(source.path).open("a") as file:
        file.write('{"messages": [{"role": "us')
    with pytest.raises(DataError) as caught:
        read_rows(source, duplicates="bad")
    assert str(caught.value).splitlines()[0] == (
        f"9 bad rows of 10 in {source.path}: 1 duplicate prompt, 2 empty ground truth, 1 empty prompt, 1 not JSON, "
        '1 truncated last line, 1 unknown verifier, 2 wrong type (duplicates = "keep" keeps the last kind); '
        "correct or remove:"
    )


def test_bad_rows_up_to_the_allowed_share_are_left_out_and_kept_on_record(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD, "{", asking("2 + 2?"), GOOD)
    rows = read_rows(source, max_bad_share=0.25)
    assert [row.place for row in rows] == [f"{source.path}:{line}" for line in (1, 3, 4)]
    assert rows.counts.line() == (
        f"{source.path}: 4 rows - 1 bad (1 not JSON) = 3; 1 repeat an earlier prompt and are kept"
    )
    assert [str(bad).split(": ")[0] for bad in rows.bad] == [f"{source.path}:2", f"{source.path}:4"]
    assert str(rows.bad[1]) == f"{source.path}:4: the same prompt as {source.path}:1"
    with pytest.raises(DataError, match=r"1 bad row of 4 in .* is more than max_bad_share=0.24 allows: 1 not JSON"):
        read_rows(source, max_bad_share=0.24)
    made = make_prompts("train", rows, Letters(), 100)
    assert made.summary().splitlines()[2].startswith(f"  {source.path}:2: not one JSON object on a line")
    assert [row["place"] for row in made.report.record()["bad"]] == [f"{source.path}:2", f"{source.path}:4"]
    fewer = read_rows(source, max_bad_share=0.5, duplicates="bad")
    assert [row.place for row in fewer] == [f"{source.path}:{line}" for line in (1, 3)]
    assert dict(fewer.counts.bad) == {"not JSON": 1, "duplicate prompt": 1}


def test_a_source_of_bad_rows_alone_is_refused_whatever_the_share(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="all 2 rows are bad"):
        read_rows(write(tmp_path / "r.jsonl", "{", "{"), max_bad_share=1.0)


def test_a_file_that_changes_under_a_run_stops_it(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "r.jsonl", GOOD, asking("2 + 2?"))
    rows = read_rows(source)
    write(tmp_path / "r.jsonl", asking("3 + 3?"), GOOD)
    with pytest.raises(DataError, match="was changed while it was in use"):
        rows[0]


def test_a_long_line_is_read_whole(tmp_path: pathlib.Path) -> None:
    content = "x" * 200_000  # more than is read from the file at once
    source = write(tmp_path / "r.jsonl", GOOD, asking(content), asking("2?"))
    assert [row.messages[0]["content"] for row in read_rows(source)] == ["1 + 2?", content, "2?"]


def test_a_hub_id_that_cannot_be_had_says_what_was_tried() -> None:
    assert fault(Source(path="nobody/nothing")).startswith(
        "cannot read 'nobody/nothing' as a JSONL or Parquet file, a `datasets` folder or a Hub id: "
    )


def test_a_hub_set_of_several_subsets_is_read_by_subset_and_split(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = write_hub_layout(tmp_path / "hub")
    rows = read_rows(Source(path=hub, subset="main", split="test"))
    assert [row.messages[0]["content"] for row in rows] == ["main test"]
    assert fault(Source(path=hub)).endswith("Name it as `subset`.")
    assert "Config name is missing" in fault(Source(path=hub))
    file = write(tmp_path / "r.jsonl", GOOD)
    assert fault(Source(path=file.path, subset="main")) == (
        f"{file.path}: subset='main' does nothing, because only sets of the Hub have any. Remove it."
    )


def write_hub_layout(folder: pathlib.Path) -> str:
    """A repository of two subsets as on the Hub, such as openai/gsm8k: Parquet files, named in the card's header."""
    import pyarrow.parquet

    header = ""
    for subset in ("main", "socratic"):
        header += f"- config_name: {subset}\n  data_files:\n"
        for split in ("train", "test"):
            (folder / subset).mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist([asking(f"{subset} {split}")])
            pyarrow.parquet.write_table(table, folder / subset / f"{split}.parquet")
            header += f"  - split: {split}\n    path: {subset}/{split}.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{header}---\n")
    return str(folder)


def test_the_counts_of_every_source_and_filter_are_reported(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "a.jsonl", *[asking(str(n) * n) for n in range(1, 5)])
    second = write(tmp_path / "b.jsonl", asking("x"), "{", asking("xxxxxx"))
    sources = [
        Source(path=first.path, weight=2.5),
        Source(path=second.path),
    ]
    rows = read_training(Data(train=sources, max_bad_share=0.4), ())
    assert [len(part) for part in rows.parts] == [10, 2]
    made = make_prompts("train", rows, Letters(), 3)
    # a: 4 rows become 10, the longest (4 letters) two or three times; b: one of its two good rows is too long
    long = sum(row.messages[0]["content"] == "4444" for row in rows)
    assert made.summary() == (
        f"train: 12 rows, {11 - long} prompts (math {11 - long}); dropped {long + 1} over the length limit "
        "(longest 6 tokens)\n"
        f"  {first.path}: 4 rows; mixed to 10; - {long} over the length limit = {10 - long}\n"
        f"  {second.path}: 3 rows - 1 bad (1 not JSON) = 2; - 1 over the length limit = 1\n"
        f"  {second.path}:2: not one JSON object on a line "
        "(Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
    )
    assert [prompt.prompt_id for prompt in made.prompts] == [
        n for n, row in enumerate(rows) if len(row.messages[0]["content"]) <= 3
    ]


class Letters:
    """A tokenizer of one token a character: the real interface, sizes that can be counted by hand."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        return str(messages[-1]["content"])

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def rows_of(*contents: str) -> list[Row]:
    tasks = (Task(verifier="math", ground_truth="3"),)
    return [
        Row(place=f"r:{n}", messages=({"role": "user", "content": c},), dataset=("math",), tasks=tasks, columns={})
        for n, c in enumerate(contents)
    ]


def test_prompts_over_the_limit_are_dropped_counted_and_reported() -> None:
    made = make_prompts("train", rows_of("four", "seven77", "five5", "eight888"), Letters(), 5)
    assert [(prompt.prompt_id, prompt.text) for prompt in made.prompts] == [(0, "four"), (2, "five5")]
    assert (made.report.rows, made.report.over_length, made.longest_dropped_tokens) == (4, 2, 8)
    assert made.summary() == ("train: 4 rows, 2 prompts (math 2); dropped 2 over the length limit (longest 8 tokens)")
    assert make_prompts("train", rows_of("four"), Letters(), 4).summary() == "train: 1 rows, 1 prompts (math 1)"


def test_a_set_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        make_prompts("train", rows_of("seven77", "eight888"), Letters(), 5)
    assert str(caught.value) == (
        "train: all 2 prompts are longer than data.max_prompt_tokens=5 (shortest 7, longest 8): raise the limit"
    )


def set_of(count: int) -> PromptSet:
    prompts = tuple(Prompt(prompt_id=n, token_ids=(1,), text="", tasks=()) for n in range(count))
    return PromptSet(prompts=prompts, report=DataReport(name="train", rows=count, examples=count, over_length=0))


def ids(prompts: PromptSet, step: int, size: int, seed: int = 3) -> list[int]:
    return [prompt.prompt_id for prompt in prompts.batch(step, size, seed)]


@given(count=st.integers(1, 30), size=st.integers(1, 40), epochs=st.integers(1, 3))
def test_every_prompt_is_drawn_once_in_every_epoch_whatever_the_batch_size(count: int, size: int, epochs: int) -> None:
    prompts = set_of(count)
    drawn: list[int] = []
    while len(drawn) < epochs * count:
        drawn += ids(prompts, len(drawn) // size, size)
    for epoch in range(epochs):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_batch_depends_on_its_step_alone_so_a_resumed_run_goes_on_with_the_same() -> None:
    prompts = set_of(10)
    forwards = [ids(prompts, step, 4) for step in range(6)]
    backwards = [ids(set_of(10), step, 4) for step in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert collections.Counter(n for batch in forwards[:5] for n in batch) == dict.fromkeys(range(10), 2)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = ids(set_of(50), 0, 50), ids(set_of(50), 1, 50)
    assert first != second != list(range(50)) != first
    assert ids(set_of(50), 0, 50, seed=4) != first


def test_a_shuffle_leaves_the_global_generator_alone() -> None:
    import random

    before = random.getstate()
    assert sorted(shuffled(20, seed=1)) == list(range(20))
    assert random.getstate() == before

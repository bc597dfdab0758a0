"""The quickstart's problems: the real verifiers tell both ways of answering apart; no problem is on both sides."""

from __future__ import annotations

import collections
import json
import pathlib
import random

import pytest

from rlvr.config import Source
from rlvr.data import read_conversations, read_rows
from rlvr.recipe import load
from sft_dpo import quickstart_task
from sft_dpo.cli import main
from sft_dpo.quickstart_task import FAMILIES, FUNCTIONS, Problem, draw_problems
from verifiers.base import Outcome, Sample
from verifiers.errors import SandboxError
from verifiers.registry import VerifierSpec, build

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "launch" / "recipes"


def outcome(problem: Problem, answer: str) -> Outcome:
    verifier = build(VerifierSpec(name=problem.verifier))
    verifier.check_ground_truth(problem.ground_truth)
    sample = Sample(completion=answer, ground_truth=problem.ground_truth, prompt=problem.question)
    return verifier.verify(sample).outcome


@pytest.mark.parametrize("family", FAMILIES)
def test_the_right_answer_is_judged_correct_and_the_typical_mistake_wrong(family: str) -> None:
    make, _ = FAMILIES[family]
    draw = random.Random(family)
    problems = {problem.question: problem for problem in (make(draw) for _ in range(400))}.values()
    assert len(problems) > 60
    for problem in problems:
        assert outcome(problem, problem.right) is Outcome.CORRECT, problem
        assert outcome(problem, problem.flawed) is Outcome.WRONG, problem


def test_functions_are_judged_in_the_sandbox_by_the_options_of_their_recipe() -> None:
    config = load(RECIPES / "quickstart-code.toml")
    try:
        verifier = build(VerifierSpec(name="code", options=config.verification.options["code"]))
    except SandboxError as error:
        pytest.skip(str(error))
    draw = random.Random(1)
    for problem in (make(draw) for make, _ in FUNCTIONS.values() for _ in range(8)):
        judged = [
            verifier.verify(Sample(completion=answer, ground_truth=problem.ground_truth)).outcome
            for answer in (problem.right, problem.flawed)
        ]
        assert judged == [Outcome.CORRECT, Outcome.WRONG], problem


def test_no_problem_is_both_trained_on_and_held_out_whatever_its_wording() -> None:
    train = draw_problems(1, 4000, held_out=False) + draw_problems(2, 4000, held_out=False)
    held_out = draw_problems(1, 600, held_out=True)
    assert not {problem.key for problem in train} & {problem.key for problem in held_out}
    assert not {problem.question for problem in train} & {problem.question for problem in held_out}
    assert {problem.verifier for problem in train} == {problem.verifier for problem in held_out}


def test_problems_are_drawn_by_weight_and_again_the_same() -> None:
    drawn = draw_problems(1, 3000, held_out=False)
    assert drawn == draw_problems(1, 3000, held_out=False) != draw_problems(2, 3000, held_out=False)
    shares = collections.Counter(problem.verifier for problem in drawn)
    assert shares["math"] / 3000 == pytest.approx(8 / 12, abs=0.05)


@pytest.mark.parametrize(("mix", "recipe_name"), [("plain", "quickstart"), ("code", "quickstart-code")])
def test_questions_and_answers_fit_the_recipe(mix: str, recipe_name: str) -> None:
    recipe = load(RECIPES / f"{recipe_name}.toml")
    problems = [*draw_problems(1, 3000, held_out=False, mix=mix), *draw_problems(1, 500, held_out=True, mix=mix)]
    tokenizer = quickstart_task.train_tokenizer([text for p in problems[:2000] for text in (p.question, p.right)])
    longest = max(len(tokenizer(text)["input_ids"]) for p in problems for text in (p.right, p.flawed))
    assert longest + 1 <= recipe.rollout.max_tokens  # and the end token
    turns = [[{"role": "user", "content": problem.question}] for problem in problems]
    prompts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert max(map(len, prompts)) <= recipe.data.max_prompt_tokens


def test_the_command_writes_a_model_and_rows_that_can_be_read(tmp_path: pathlib.Path) -> None:
    arguments = ["--demonstrations", "300", "--train", "50", "--held-out", "20", "--flawed-share", "0.5"]
    assert main(["quickstart-task", str(tmp_path / "task"), "--seed", "4", *arguments]) == 0
    folder = tmp_path / "task"
    rows = [read_rows(Source(path=str(folder / name))) for name in ("train.jsonl", "heldout.jsonl")]
    assert [len(found) for found in rows] == [50, 20]
    conversations = read_conversations(Source(path=str(folder / "demonstrations.jsonl")))
    assert len(conversations) == 300
    drawn = draw_problems(4, 300, held_out=False)
    flawed = sum(turns[1]["content"] == problem.flawed for turns, problem in zip(conversations, drawn, strict=True))
    right = sum(turns[1]["content"] == problem.right for turns, problem in zip(conversations, drawn, strict=True))
    assert flawed + right == 300
    assert flawed / 300 == pytest.approx(0.5, abs=0.1)


def test_the_model_is_an_ordinary_folder_of_a_million_parameters(tmp_path: pathlib.Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [problem.demonstration(flawed=False) for problem in draw_problems(1, 500, held_out=False)]
    quickstart_task.make_model(tmp_path / "a", rows, seed=1)
    quickstart_task.make_model(tmp_path / "b", rows, seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert 1e6 <= model.num_parameters() <= 4e6
    assert json.loads((tmp_path / "a/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = "What is 38 + 7? 38 + 7 = 45 Ünïcode"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.decode([token]) for token in tokenizer("845")["input_ids"]] == ["8", "4", "5"]

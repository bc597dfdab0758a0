"""Layouts in which public data sets are published, and the row that each of them becomes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlvr.exemplars import GSM8K, MATH, Exemplars, question
from rlvr.row_files import RowFault
from verifiers.extract import boxed_answers

Problem = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A row, and what proves it."""

    place: str
    prompt: str
    ground_truth: Any
    gold: str | None = None
    """The published solution, which the verifier must judge correct; None takes the verifier's own gold completion."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A public data set."""

    verifier: str
    source: str
    """Where it is published, and its columns."""
    convert: Callable[[Problem, str, Exemplars], Converted]
    """Raises RowFault."""
    exemplars: Exemplars = ()
    """Worked examples that are published for it."""
    splits: Mapping[str, range] | None = None
    """Task ids of each split, where one file holds several."""


def _text(problem: Problem, *names: str) -> str:
    """The first of these columns that holds text."""
    for name in names:
        if isinstance(problem.get(name), str) and problem[name].strip():
            return str(problem[name])
    wanted = " or ".join(names)
    raise RowFault("missing keys", f"needs the text `{wanted}` (it has {', '.join(map(str, problem))})")


_FINAL_ANSWER = re.compile(r"####\s*(\S.*?)\s*\Z")


def _gsm8k(problem: Problem, place: str, exemplars: Exemplars) -> Converted:
    """The number behind `####`, without thousands commas: `tulu3_gsm8k` removes them from the completion alone, so that
    "1,200" would never match."""
    asked, solution = _text(problem, "question"), _text(problem, "answer")
    final = _FINAL_ANSWER.search(solution)
    if not final:
        raise RowFault("empty ground truth", f"needs an answer that ends in `#### number`, got {solution!r:.80}")
    return Converted(place=place, prompt=question(exemplars, asked), ground_truth=final[1].replace(",", ""))


def _math(problem: Problem, place: str, exemplars: Exemplars) -> Converted:
    """The content of the solution's last box; where there is no solution, the column `answer`."""
    asked = _text(problem, "problem")
    if not isinstance(problem.get("solution"), str):
        return Converted(place=place, prompt=question(exemplars, asked), ground_truth=_text(problem, "answer"))
    solution = problem["solution"]
    boxes, trouble = boxed_answers(solution)
    if not boxes or not boxes[-1].strip():
        raise RowFault("empty ground truth", f"the solution has no \\boxed{{answer}} ({trouble}): {solution[-80:]!r}")
    return Converted(place=place, prompt=question(exemplars, asked), ground_truth=boxes[-1])


def _instructions(problem: Problem, place: str, exemplars: Exemplars) -> Converted:
    """Arguments that are null are left out: the Hub's Parquet files name all of them in every row."""
    ids, arguments = problem.get("instruction_id_list"), problem.get("kwargs")
    if not isinstance(ids, list) or not isinstance(arguments, list) or not all(isinstance(a, dict) for a in arguments):
        raise RowFault("missing keys", f"needs the lists `instruction_id_list` and `kwargs`, got {ids!r:.80}")
    given = [{key: value for key, value in one.items() if value is not None} for one in arguments]
    truth = {"instruction_id_list": ids, "kwargs": given}
    return Converted(place=place, prompt=_text(problem, "prompt"), ground_truth=truth)


def _mbpp(problem: Problem, place: str, exemplars: Exemplars) -> Converted:
    """The prompt of Austin et al. 2021 (arXiv 2108.07732, section 4.1; google-research/mbpp, README), up to where its
    few-shot form has `[BEGIN]`."""
    tests = problem.get("test_list")
    if not isinstance(tests, list) or not tests:
        raise RowFault("missing keys", f"needs the list `test_list`, got {tests!r:.80}")
    asked, code = _text(problem, "text", "prompt"), _text(problem, "code")
    setup = "\n".join([*(problem.get("test_imports") or []), problem.get("test_setup_code") or ""]).strip()
    prompt = (
        f"You are an expert Python programmer, and here is your task: {asked.strip()} "
        "Your code should pass these tests:\n\n" + "\n".join(tests)
    )
    truth = {"tests": tests} | ({"setup": setup} if setup else {})
    return Converted(place=place, prompt=prompt, ground_truth=truth, gold=_fenced(code.replace("\r\n", "\n")))


def _humaneval(problem: Problem, place: str, exemplars: Exemplars) -> Converted:
    """A chat needs a request, which the published prompt (the beginning of a file) is not; the words are ours."""
    beginning, body = _text(problem, "prompt"), _text(problem, "canonical_solution")
    prompt = f"Complete this Python function. Answer with the whole function in one code block.\n\n{_fenced(beginning)}"
    truth = {"test": _text(problem, "test"), "entry_point": _text(problem, "entry_point")}
    return Converted(place=place, prompt=prompt, ground_truth=truth, gold=_fenced(beginning + body))


def _fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"


FORMATS: dict[str, Format] = {
    "gsm8k": Format(
        verifier="gsm8k",
        source="openai/grade-school-math: question, answer",
        convert=_gsm8k,
        exemplars=GSM8K,
    ),
    "math": Format(
        verifier="math",
        source="hendrycks/math, openai/prm800k: problem, solution or answer",
        convert=_math,
        exemplars=MATH,
    ),
    "ifeval": Format(
        verifier="ifeval",
        source="google-research/instruction_following_eval: prompt, instruction_id_list, kwargs",
        convert=_instructions,
    ),
    "ifbench": Format(
        verifier="ifbench",
        source="allenai/IFBench: prompt, instruction_id_list, kwargs",
        convert=_instructions,
    ),
    "mbpp": Format(
        verifier="code",
        source="google-research/mbpp: text or prompt, code, test_list",
        convert=_mbpp,
        splits={
            "prompt": range(1, 11),
            "test": range(11, 511),
            "validation": range(511, 601),
            "train": range(601, 975),
        },
    ),
    "humaneval": Format(
        verifier="code",
        source="openai/human-eval: prompt, canonical_solution, test, entry_point",
        convert=_humaneval,
    ),
}
"""MBPP's splits are those of its README: ten few-shot prompts, then test, validation and training tasks."""

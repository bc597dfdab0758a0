"""Reward functions in TRL's calling convention, for the table of the `trl` verifier."""

from typing import Any


def matches_answer(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]


def matches_solution_in_messages(completions: list[list[dict[str, str]]], solution: list[str], **_: Any) -> list[float]:
    return [float(messages[0]["content"] == gold) for messages, gold in zip(completions, solution, strict=True)]


def graded(completions: list[str], **_: Any) -> Any:
    answers = {"good": 2.0, "fair": 0.5, "bad": -1.0, "none": None, "text": "1.0", "nan": float("nan")}
    if completions == ["two"]:
        return [1.0, 1.0]
    return [answers[completion] for completion in completions]


def by_difficulty(completions: list[str], difficulty: list[str]) -> list[float]:
    return [float(level == "easy") for level in difficulty]


async def asynchronous(completions: list[str], ground_truth: list[str], **_: Any) -> list[float]:
    return matches_answer(completions, ground_truth)

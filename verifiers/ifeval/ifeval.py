"""`ifeval`: the 25 instruction types of the IFEval benchmark (Zhou et al., arXiv 2311.07911), strict and loose."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from verifiers.base import Sample, Verdict, Verifier
from verifiers.ifeval.guard import Allowance, GuardBounds, GuardOption, find_spam
from verifiers.ifeval.ifeval_content import CONTENT
from verifiers.ifeval.ifeval_format import FORMAT
from verifiers.ifeval.ifeval_length import LENGTH
from verifiers.ifeval.instruction import Instruction, InstructionType, Mode, judge, read_instructions
from verifiers.registry import register

INSTRUCTION_TYPES: dict[str, InstructionType] = {**CONTENT, **LENGTH, **FORMAT}
"""The 25 types by id."""


class InstructionVerifier(Verifier):
    """Judges the instructions of a row: what `ifeval` and `ifbench` share."""

    cannot_hang: ClassVar[bool] = True
    training_options: ClassVar[Mapping[str, Any]] = {"guard": True}
    name: ClassVar[str]
    types: ClassVar[Mapping[str, InstructionType]]

    class Config(Verifier.Config):
        """Options of `ifeval` and `ifbench`."""

        mode: Mode = "strict"
        """"loose" also tries the response without its first line, its last line, its asterisks."""
        score: Literal["all", "mean"] = "all"
        """"all": 1 when every instruction holds, else 0. "mean": the share that holds."""
        guard: GuardOption = False
        """Refuse content-free completions that satisfy the instructions: true, or a table of bounds."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._bounds = GuardBounds.from_option(self.config.guard)

    def read(self, ground_truth: Any) -> tuple[Instruction, ...]:
        """The row's instructions. Raises GroundTruthError."""
        return read_instructions(ground_truth, self.types, verifier=self.name)

    def verify(self, sample: Sample) -> Verdict:
        instructions = self.read(sample.ground_truth)
        if not sample.completion.strip():
            return Verdict.wrong("the completion is empty")
        followed = judge(instructions, sample.completion, self.config.mode)
        held = sum(followed)
        missed = [str(instruction) for instruction, ok in zip(instructions, followed, strict=True) if not ok]
        detail = f"{held} of {len(followed)} instructions hold" + (f"; not {', '.join(missed)}" if missed else "")
        if held and (
            spam := find_spam(sample.completion, sample.prompt, self._bounds, allowance=_allowance(instructions))
        ):
            return Verdict.wrong(f"{detail}, but the content guard found {spam}")
        score = held / len(followed) if self.config.score == "mean" else float(not missed)
        return Verdict.from_score(score, detail)

    def check_ground_truth(self, ground_truth: Any) -> None:
        self.read(ground_truth)


@register("ifeval")
class IFEvalVerifier(InstructionVerifier):
    """Judges IFEval's instructions with the public evaluator's verdicts (docs/ifeval.md lists the exceptions).

    Ground truth: `{"instruction_id": [...], "kwargs": [...]}`, ids and kwargs as in the benchmark's `input_data.jsonl`.
    """

    name: ClassVar[str] = "ifeval"
    types: ClassVar[Mapping[str, InstructionType]] = INSTRUCTION_TYPES


def _allowance(instructions: Iterable[Instruction]) -> Allowance:
    """What the guard must let pass because an instruction asks for it."""
    most_words = [i.kind.most_words(**i.kwargs) for i in instructions if i.kind.most_words is not None]
    repeated = [i.kwargs["prompt_to_repeat"] for i in instructions if i.id == "combination:repeat_prompt"]
    return Allowance(
        most_words=min(most_words, default=None),
        repeated_prompt=repeated[0] if repeated else "",
        may_copy=any(i.kind.may_copy for i in instructions),
        may_lack_letters=any(i.kind.may_lack_letters for i in instructions),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkScores:
    """The four published numbers of a benchmark run, each in [0, 1]."""

    prompt_strict: float
    prompt_loose: float
    instruction_strict: float
    instruction_loose: float
    rows: int
    instructions: int


def score_benchmark(verifier: InstructionVerifier, rows: Iterable[tuple[Any, str]]) -> BenchmarkScores:
    """Prompt-level and instruction-level accuracy, strict and loose, over (ground truth, response) pairs.

    Raises GroundTruthError for a row that cannot be read, ValueError for no rows.

    >>> truth = {"instruction_id": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    >>> scores = score_benchmark(IFEvalVerifier(), [(truth, '"Quoted."'), (truth, "Plain.")])
    >>> scores.prompt_strict, scores.instruction_strict  # 1 of 2 rows, 3 of 4 instructions
    (0.5, 0.75)
    """
    strict: list[list[bool]] = []
    loose: list[list[bool]] = []
    for ground_truth, response in rows:
        instructions = verifier.read(ground_truth)
        strict.append(judge(instructions, response, "strict"))
        loose.append(judge(instructions, response, "loose"))
    if not strict:
        raise ValueError("score_benchmark needs at least one row; got none. Check the data path.")
    total = sum(map(len, strict))
    return BenchmarkScores(
        prompt_strict=sum(map(all, strict)) / len(strict),
        prompt_loose=sum(map(all, loose)) / len(loose),
        instruction_strict=sum(map(sum, strict)) / total,
        instruction_loose=sum(map(sum, loose)) / total,
        rows=len(strict),
        instructions=total,
    )

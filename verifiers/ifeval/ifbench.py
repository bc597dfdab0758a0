"""`ifbench`: the 58 instruction types of IFBench (Pyatkin et al., arXiv 2507.02833), new to IFEval-trained models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from verifiers.ifeval.ifbench_count import COUNT
from verifiers.ifeval.ifbench_custom import CUSTOM
from verifiers.ifeval.ifbench_format import FORMAT
from verifiers.ifeval.ifbench_words import WORDS
from verifiers.ifeval.ifeval import InstructionVerifier
from verifiers.ifeval.instruction import InstructionType
from verifiers.registry import register

INSTRUCTION_TYPES: dict[str, InstructionType] = {**COUNT, **WORDS, **FORMAT, **CUSTOM}
"""The 58 types by id."""


@register("ifbench")
class IFBenchVerifier(InstructionVerifier):
    """Judges IFBench's instructions with the public evaluator's verdicts (docs/ifeval.md lists the exceptions).

    Ground truth: `{"instruction_id": [...], "kwargs": [...]}`, ids and kwargs as in the benchmark's
    `IFBench_test.jsonl`.
    """

    name: ClassVar[str] = "ifbench"
    types: ClassVar[Mapping[str, InstructionType]] = INSTRUCTION_TYPES

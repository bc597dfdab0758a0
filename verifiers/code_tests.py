"""Verifiers `code` and `code_stdio`: run a program in the sandbox against tests.

The verdict is reached here, from plain values that the program's process claims to have computed; expected outputs
never enter that process. A program that exits early, hangs, prints "all tests passed" or patches the interpreter has
answered nothing, and is wrong.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal

import pydantic

from verifiers.base import Sample, Verdict, Verifier
from verifiers.code_compare import NotEvaluable
from verifiers.code_extract import extract_program
from verifiers.code_ground_truth import Case, read_cases, read_tests
from verifiers.code_run import Budget, Report, Runner
from verifiers.code_stdout import same_output
from verifiers.registry import register
from verifiers.sandbox import Limits, Sandbox

_LONGEST_PROGRAM = 200_000


class CodeConfig(Verifier.Config):
    """Options that both code verifiers have."""

    isolation: Literal["kernel", "rlimits"] = "kernel"
    """`kernel` refuses to start unless every layer works on this machine; `rlimits` takes what there is."""
    unfenced: bool = False
    """Take a reply without any fence as the program. Otherwise it is wrong."""
    score: Literal["binary", "pass_rate"] = "binary"
    """`binary`: 1 when all tests hold, else 0. `pass_rate`: the share that holds; still `wrong` below 1."""
    pass_rate_threshold: float = pydantic.Field(default=0.0, ge=0.0, le=1.0)
    """With `pass_rate`: a lower share counts as 0."""
    test_seconds: float = pydantic.Field(default=1.0, gt=0.0, le=40.0)
    """Wall-clock limit of each call or case, not counting time spent waiting for a CPU."""
    program_seconds: float = pydantic.Field(default=10.0, gt=0.0, le=40.0)
    """Wall-clock limit of all of a program's tests together. At most 40: the pool ends a verdict after 60."""
    memory_mib: int = pydantic.Field(default=512, ge=64)
    processes: int = pydantic.Field(default=32, ge=1)
    output_kib: int = pydantic.Field(default=1024, ge=1)
    """Standard output and error; a program that writes more is ended."""

    @pydantic.model_validator(mode="after")
    def _threshold_needs_pass_rate(self) -> CodeConfig:
        if self.pass_rate_threshold and self.score != "pass_rate":
            raise ValueError("pass_rate_threshold does nothing unless score = 'pass_rate'")
        return self


class _SandboxedVerifier(Verifier):
    timeout_seconds: ClassVar[float | None] = 60.0

    def __init__(self, config: Any = None) -> None:
        """Start the sandbox, so that a machine that cannot isolate is refused here. Raises SandboxError."""
        super().__init__(config)
        options = self.config
        self._sandbox = Sandbox(
            isolation=options.isolation,
            limits=Limits(
                memory_mib=options.memory_mib,
                processes=options.processes,
                output_kib=options.output_kib,
                cpu_seconds=int(options.program_seconds) + 2,
            ),
        )
        self._budget = Budget(
            test_seconds=options.test_seconds,
            program_seconds=options.program_seconds,
            stop_at_first_failure=options.score == "binary",
        )

    def close(self) -> None:
        """End the sandbox's processes. They also end with this process."""
        self._sandbox.close()

    def _program(self, sample: Sample) -> str | Verdict:
        program = extract_program(sample.completion, unfenced=self.config.unfenced)
        if program is None:
            return Verdict.wrong("no fenced block of Python in the reply")
        if len(program) > _LONGEST_PROGRAM:
            return Verdict.wrong(f"a program of {len(program)} characters; the limit is {_LONGEST_PROGRAM}")
        return program

    def _verdict(self, report: Report) -> Verdict:
        rate = report.passed / len(report.results)
        detail = summary(report)
        if rate == 1.0:
            return Verdict.correct(detail)
        if self.config.score == "binary" or rate < self.config.pass_rate_threshold:
            rate = 0.0
        return Verdict.wrong(detail, score=rate)


def summary(report: Report) -> str:
    """One line: tests held, the first failure, how the program ended, time, and the end of what it printed.

    >>> summary(Report(results=[None, "f(2) gave 3; assert f(2) == 4"], mode="calls"))
    '1 of 2 tests [.F]; test 2: f(2) gave 3; assert f(2) == 4; ended: ok; cpu 0.000 s, wall 0.000 s'
    """
    marks = "".join("." if result is None else "-" if result == "not run" else "F" for result in report.results[:60])
    parts = [f"{report.passed} of {len(report.results)} tests [{marks}]"]
    if report.mode == "inside":
        parts[0] += " (weaker: the tests ran in the program's own process)"
    for number, result in enumerate(report.results, start=1):
        if result is not None:
            parts.append(f"test {number}: {_line(result, 240)}")
            break
    parts.append(f"ended: {report.reason}")
    parts.append(f"cpu {report.cpu_seconds:.3f} s, wall {report.wall_seconds:.3f} s")
    for name, tail in (("stdout", report.stdout_tail), ("stderr", report.stderr_tail)):
        if tail.strip() and report.passed < len(report.results):
            parts.append(f"{name} ends {_line(tail.strip()[-80:], 80)!r}")
    return "; ".join(parts)


def _line(text: str, longest: int) -> str:
    # a program's lone surrogates would break whoever writes the line to a file
    return " ".join(text.encode(errors="replace").decode().split())[:longest]


@register("code")
class CodeVerifier(_SandboxedVerifier):
    """The last fenced program of the reply passes the tests of the ground truth (see code_ground_truth.py for its
    forms)."""

    class Config(CodeConfig):
        weaker_tests: Literal["run", "refuse"] = "run"
        """Tests that must run in the program's own process, where it can tamper with them: run them, or be
        indeterminate."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._runner = Runner(self._sandbox, self._budget, allow_inside=self.config.weaker_tests == "run")

    def verify(self, sample: Sample) -> Verdict:
        plan = read_tests(sample.ground_truth)
        program = self._program(sample)
        if isinstance(program, Verdict):
            return program
        try:
            return self._verdict(self._runner.run(program, plan))
        except NotEvaluable as error:
            return Verdict.indeterminate(f"weaker_tests = 'refuse': {error}")

    def report(self, program: str, ground_truth: Any) -> Report:
        """Everything about one program: result per test, output tails, how it ended, times."""
        return self._runner.run(program, read_tests(ground_truth))

    def check_ground_truth(self, ground_truth: Any) -> None:
        read_tests(ground_truth)


@register("code_stdio")
class CodeStdioVerifier(_SandboxedVerifier):
    """The last fenced program of the reply, run as a script, turns each `input` into its `output` and exits with 0."""

    class Config(CodeConfig):
        ignore_trailing_space: bool = True
        """Spaces at the ends of lines, and blank lines at the end, do not count."""
        float_tolerance: float | None = pydantic.Field(default=None, gt=0.0)
        """Words of a line that are both numbers may differ by this, absolutely or relatively. None: exact text."""

    def verify(self, sample: Sample) -> Verdict:
        cases = self._cases(sample.ground_truth)
        program = self._program(sample)
        if isinstance(program, Verdict):
            return program
        return self._verdict(self.report(program, cases))

    def report(self, program: str, cases: list[Case]) -> Report:
        """Everything about one program: result per case, output tails, how the last case ended, times."""
        report = Report(results=[], mode="stdio")
        deadline = time.monotonic() + self._budget.program_seconds
        for case in cases:
            seconds = min(self._budget.test_seconds, deadline - time.monotonic())
            if seconds <= 0:
                report.reason = "timeout"
                break
            run = self._sandbox.run_program(program, stdin=case.stdin, seconds=seconds)
            report.cpu_seconds += run.cpu_seconds
            report.wall_seconds += run.wall_seconds
            report.stdout_tail, report.stderr_tail = run.stdout[-2000:], run.stderr_tail
            report.reason = "ok" if run.reason == "exit 0" else run.reason
            if run.reason != "exit 0":
                report.results.append(f"ended with {run.reason}")
            else:
                report.results.append(
                    same_output(
                        run.stdout,
                        case.stdout,
                        ignore_trailing_space=self.config.ignore_trailing_space,
                        float_tolerance=self.config.float_tolerance,
                    )
                )
            if report.results[-1] is not None and self._budget.stop_at_first_failure:
                break
        report.results += ["not run"] * (len(cases) - len(report.results))
        return report

    def _cases(self, ground_truth: Any) -> list[Case]:
        return read_cases(ground_truth, longest_output=self.config.output_kib << 10)

    def check_ground_truth(self, ground_truth: Any) -> None:
        self._cases(ground_truth)

"""Run a program against tests in the sandbox, and say for each test whether it held."""

from __future__ import annotations

import dataclasses
import reprlib
import time
from collections.abc import Sequence
from typing import Any

from verifiers.code_compare import NotEvaluable, TestFailed, evaluate
from verifiers.code_convert import Plan, SplitTest
from verifiers.sandbox import Sandbox, new_token
from verifiers.sandbox_process import Ended, ProcessEnded, SandboxedProcess
from verifiers.sandbox_values import decode


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Time for one program, and when to stop."""

    test_seconds: float
    """Wall-clock limit of loading the program and of each call."""
    program_seconds: float
    """Wall-clock limit of everything together."""
    stop_at_first_failure: bool
    """Leave the tests after the first that fails unrun: they cannot make the program correct."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What came of one program."""

    results: list[str | None]
    """One per test, in order: None when it held, else why not. `not run` after a failure that ended the run."""
    mode: str
    """`calls` or `checker`: expected values never entered the program's process. `inside`: they did; weaker."""
    reason: str = "ok"
    """`ok`, or what ended the program: `timeout`, `memory`, `signal 9`, `syntax`, `exception`, `exit 0`, `output`,
    `protocol`."""
    stdout_tail: str = ""
    stderr_tail: str = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def passed(self) -> int:
        return sum(result is None for result in self.results)


class Runner:
    """Runs programs one at a time in one sandbox."""

    def __init__(self, sandbox: Sandbox, budget: Budget, *, allow_inside: bool) -> None:
        """
        Args:
            allow_inside: run suites that cannot be separated from the program beside it, the weaker way.
        """
        self._sandbox, self._budget, self._allow_inside = sandbox, budget, allow_inside

    def run(self, program: str, plan: Plan) -> Report:
        """Run the tests of `plan` on a program.

        Raises:
            SandboxError: the sandbox failed, not the program.
            NotEvaluable: the tests must run inside, and that is not allowed.
        """
        if plan.split is not None:
            return self._run_calls(program, plan, plan.split)
        report = self._run_checker(program, plan)
        if report is not None:
            return report
        if not self._allow_inside:
            raise NotEvaluable("the tests hand objects of their own to the program and must run in its process")
        return self._run_inside(program, plan)

    # --- tests split into calls

    def _run_calls(self, program: str, plan: Plan, tests: Sequence[SplitTest]) -> Report:
        report = Report(results=[], mode="calls")
        deadline = time.monotonic() + self._budget.program_seconds
        while len(report.results) < len(tests):
            before = len(report.results)
            self._run_some(program, plan, tests[before:], report, deadline)
            ended_early = report.results and report.results[-1] is not None
            if ended_early and (self._budget.stop_at_first_failure or time.monotonic() > deadline):
                break
        report.results += ["not run"] * (len(tests) - len(report.results))
        return report

    def _run_some(self, program: str, plan: Plan, tests: Sequence[SplitTest], report: Report, deadline: float) -> None:
        """Run tests until one ends the process; at least one gets a result."""
        process = self._open(_sources(program, plan))
        results = report.results
        reason = "ok"
        try:
            failed = self._await_ready(process, deadline)
            if failed:
                reason = failed[0]
                results += [": ".join(failed)] * len(tests)
                return
            token = new_token()
            process.send({"token": token, "steps": [{"source": call} for test in tests for call in test.calls]})
            for test in tests:
                results.append(self._judge(process, test, token, deadline))
                if results[-1] is not None and self._budget.stop_at_first_failure:
                    break
        except ProcessEnded as error:
            reason = str(error)
            results.append(reason)
        finally:
            ended = process.end()
            _close(report, process, ended, reason)

    def _judge(self, process: SandboxedProcess, test: SplitTest, token: str, deadline: float) -> str | None:
        values = {}
        for index, call in enumerate(test.calls):
            answer = process.receive(self._seconds(deadline), token)
            values[f"_value{index}"] = _value_of(answer, call)
        try:
            if evaluate(test.comparison, values):
                return None
        except TestFailed as error:
            return str(error)
        shown = ", ".join(f"{call} gave {_shown(values[f'_value{i}'])}" for i, call in enumerate(test.calls))
        return f"{shown[:200]}; {test.source[:120]}"

    # --- tests in a process of their own

    def _run_checker(self, program: str, plan: Plan) -> Report | None:
        """None when the tests cannot be separated from the program."""
        report = Report(results=[], mode="checker")
        deadline = time.monotonic() + self._budget.program_seconds
        # the tests' process first: a program that takes every process it may cannot keep it from starting
        checker = self._sandbox.open(
            "checker",
            {
                "setup": plan.setup,
                "tests": plan.sources,
                "names": plan.names,
                "entry_points": plan.entry_points,
                "stop_at_first_failure": self._budget.stop_at_first_failure,
            },
        )
        try:
            process = self._open([("setup", plan.definitions)] * plan.setup_first + [("program", program)])
        except BaseException:
            checker.end()
            raise
        reason = "ok"
        try:
            failed = self._await_ready(process, deadline)
            if failed:
                reason = failed[0]
                report.results = [": ".join(failed)] * len(plan.sources)
                return report
            outcome, reason = self._relay(process, checker, deadline)
            if outcome is None:
                return None
            report.results = [None if result is None else ": ".join(result) for result in outcome]
        except ProcessEnded as error:
            reason = str(error)
            report.results = [reason]
        finally:
            checker.end()
            _close(report, process, process.end(), reason)
        report.results += ["not run"] * (len(plan.sources) - len(report.results))
        return report

    def _relay(
        self, process: SandboxedProcess, checker: SandboxedProcess, deadline: float
    ) -> tuple[list[list[str] | None] | None, str]:
        """Carry the checker's questions to the program; returns (results, reason), results None when not separable."""
        token = new_token()
        reason = "ok"
        while True:
            try:
                message = checker.receive(max(0.001, deadline - time.monotonic()))
            except ProcessEnded as error:
                # its time is the program's time: it waits for answers, and loops as the tests say
                return [["ended", f"the tests did not finish ({error})"]], reason if reason != "ok" else str(error)
            if "ask" not in message:
                return message.get("results"), reason
            try:
                process.send({"token": token, "steps": [message["ask"]]})
                answer = process.receive(self._seconds(deadline), token)
                if not _is_answer(answer):
                    raise ProcessEnded("protocol")
            except ProcessEnded as error:
                reason = str(error)
                answer = {"gone": reason}
            checker.send(answer)

    # --- tests beside the program

    def _run_inside(self, program: str, plan: Plan) -> Report:
        report = Report(results=[], mode="inside")
        deadline = time.monotonic() + self._budget.program_seconds
        process = self._open(_sources(program, plan), "inside")
        reason = "ok"
        try:
            failed = self._await_ready(process, deadline)
            if failed:
                reason = failed[0]
                report.results = [": ".join(failed)] * len(plan.sources)
                return report
            token = new_token()
            process.send({"token": token, "steps": [{"source": source} for source in plan.sources]})
            for _ in plan.sources:
                answer = process.receive(self._seconds(deadline), token)
                held = _is_answer(answer) and answer.get("value") is True
                report.results.append(None if held else ": ".join(map(str, answer.get("raised", ["protocol"]))))
                if not held and self._budget.stop_at_first_failure:
                    break
        except ProcessEnded as error:
            reason = str(error)
            report.results.append(reason)
        finally:
            _close(report, process, process.end(), reason)
        report.results += ["not run"] * (len(plan.sources) - len(report.results))
        return report

    # --- common

    def _open(self, sources: list[tuple[str, str]], kind: str = "calls") -> SandboxedProcess:
        return self._sandbox.open(kind, {"sources": sources})

    def _await_ready(self, process: SandboxedProcess, deadline: float) -> list[str] | None:
        """None when the program is loaded, else [kind, exception, message]. Raises ProcessEnded."""
        message = process.receive(self._seconds(deadline))
        if message == "ready":
            return None
        failed = message.get("failed") if isinstance(message, dict) else None
        if not (isinstance(failed, list) and failed and all(isinstance(part, str) for part in failed)):
            raise ProcessEnded("protocol")
        return failed

    def _seconds(self, deadline: float) -> float:
        return max(0.001, min(self._budget.test_seconds, deadline - time.monotonic()))


def _sources(program: str, plan: Plan) -> list[tuple[str, str]]:
    sources = [("setup", plan.setup), ("program", program)]
    return sources if plan.setup_first else sources[::-1]


def _is_answer(answer: Any) -> bool:
    return (
        isinstance(answer, dict)
        and set(answer) in ({"value"}, {"raised"}, {"value", "arguments"})
        and isinstance(answer.get("arguments", []), list)
        and (
            "value" in answer
            or ("raised" in answer and isinstance(answer["raised"], list) and len(answer["raised"]) == 3)
        )
    )


def _value_of(answer: Any, call: str) -> Any:
    """The plain value of an answer; a TestFailed (not raised) when the call has none. Raises ProcessEnded."""
    if not _is_answer(answer):
        raise ProcessEnded("protocol")
    if "raised" in answer:
        return TestFailed(f"{call[:120]} raised {': '.join(map(str, answer['raised'][1:]))[:200]}")
    try:
        return decode(answer["value"])
    except (ValueError, RecursionError) as error:
        return TestFailed(f"{call[:120]} returned something unreadable: {error}")


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)[:80]
    except ValueError:
        return f"a {type(value).__name__} too long to print"  # Python prints integers of up to 4300 digits


def _close(report: Report, process: SandboxedProcess, ended: Ended, reason: str) -> None:
    report.reason = reason
    if reason == "closed":
        report.reason = ended.reason
        report.results[-1] = f"the program ended before it answered ({ended.reason})"
    report.cpu_seconds += ended.cpu_seconds
    report.wall_seconds += ended.wall_seconds
    report.stdout_tail, report.stderr_tail = process.stdout_tail(), process.stderr_tail()

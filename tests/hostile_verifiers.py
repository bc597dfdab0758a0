"""Verifiers that misbehave when told to, for the tests of the pool."""

import ctypes
import os
import re
import resource
import signal
import sys
from typing import Any

from verifiers import Sample, Verdict, Verifier, register


def hang() -> None:
    while True:
        pass


def hang_asleep() -> None:
    while True:
        signal.pause()


def hang_in_c() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def hang_deaf_to_signals() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    hang()


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crash_in_c() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def raise_base_exception() -> None:
    raise KeyboardInterrupt("from a verifier")


def leave_politely() -> None:
    sys.exit("goodbye")


def eat_memory() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(2**28))


def close_descriptors() -> None:
    os.closerange(0, 1024)


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    hang_asleep()


def recurse() -> None:
    recurse()


def return_none() -> None:
    return None


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


def raise_unreadable() -> None:
    raise Unreadable


@register("hostile")
def hostile(completion: str, ground_truth: Any) -> Any:
    """Correct, unless the completion names a function of this file."""
    if completion == "ok":
        return True
    if completion == "print":
        for _ in range(64):
            print("x" * 2**20)
            print("y" * 2**20, file=sys.stderr)
        return True
    return globals()[completion]()


@register("own_process")
class OwnProcess(Verifier):
    """Says in which process it was built, judges, and with what settings."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.built_in = os.getpid()

    def verify(self, sample: Sample) -> Verdict:
        name = sample.completion
        if name == "built here":
            return Verdict.correct(str(self.built_in == os.getpid()))
        if name == "address space":
            return Verdict.correct(str(resource.getrlimit(resource.RLIMIT_AS)[0]))
        if name == "niceness":
            return Verdict.correct(str(os.nice(0)))
        return Verdict.correct(os.environ.get(name, str(os.getpid())))


@register("in_caller")
class InCaller(OwnProcess):
    """The same, in the caller's process."""

    cannot_hang = True


@register("leaks")
class Leaks(Verifier):
    """Keeps 4 MiB of every sample."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.kept: list[bytearray] = []

    def verify(self, sample: Sample) -> Verdict:
        self.kept.append(bytearray(2**22))
        return Verdict.correct(str(os.getpid()))


@register("not_buildable")
class NotBuildable(Verifier):
    """Raises when it is built."""

    def __init__(self, config: Any = None) -> None:
        raise RuntimeError("no model file here")

    def verify(self, sample: Sample) -> Verdict:
        return Verdict.correct("never built")


@register("impatient")
class Impatient(Verifier):
    """Hangs, with a limit of its own."""

    timeout_seconds = 0.25

    def verify(self, sample: Sample) -> Verdict:
        hang_asleep()
        raise AssertionError("unreachable")


@register("ill_formed")
class IllFormed(Verifier):
    """Returns things that are not verdicts."""

    def verify(self, sample: Sample) -> Verdict:
        if sample.completion == "text":
            return "correct"  # type: ignore[return-value]
        verdict = Verdict.correct("fine")
        object.__setattr__(verdict, "outcome", "perfect")
        return verdict

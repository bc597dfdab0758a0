"""The ranks of one vLLM engine that has several, where sampling ranks are apart: the first of them speaks with the
learners, and tells the others, its followers, what it does.

Between two steps of the engine the first rank sends a `channel.Round`: the orders that have come. Every rank obeys them
and takes the step, so all schedulers stay alike. A rank that waits for another inside vLLM's collectives cannot be
interrupted, so a thread listens for followers that end, fall silent or stand still, and ends this rank with an error
that names one.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import pathlib
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import torch

from rlvr import channel, watch
from rlvr.channel import ALIVE_SECONDS, Beat, Failed, Line, Ready, Report, Round
from rlvr.config import Placement
from rlvr.errors import SamplerError

REASON_SECONDS = 3.0
"""How long a rank whose collective broke waits to hear whether that was because another one ended."""


class Followers:
    """The followers, as the first rank of their engine sees them.

    Args:
        tell: passes on, to whom it concerns, why this rank is about to end.
    """

    def __init__(self, placement: Placement, tell: Callable[[SamplerError], None]) -> None:
        self._limit_seconds = placement.timeout_seconds / 2  # the learners, who cannot name a follower, give up later
        self._tell = tell
        self._lines: dict[int, Line] = {}
        self._lost = threading.Event()
        self._are_done = False
        self._beats: dict[int, Beat] = {}
        """What each follower last told, by its rank in the run."""
        self._shared = 0
        self._finished = 0
        """Rounds, by this rank itself."""

    def add(self, run_rank: int, line: Line) -> None:
        """One that has connected. It is listened to from now on."""
        self._lines[run_rank] = line
        threading.Thread(target=self._listen, args=(run_rank, line), daemon=True).start()

    def share(self, orders: Sequence[tuple[int, bytes]]) -> float:
        """Tell them the orders of this round. Returns the round's time, in seconds."""
        this = Round(orders=list(orders), at_seconds=time.time())
        self._shared += 1
        for run_rank, line in self._lines.items():
            try:
                line.send(this)
            except SamplerError as error:
                self.wait_for_reason()
                raise SamplerError(f"sampling rank {run_rank} {error}") from error
        return this.at_seconds

    def finish_round(self) -> None:
        """This rank has done what it shared last."""
        self._finished = self._shared

    def dismiss(self) -> None:
        """The run is over."""
        self._are_done = True
        for line in self._lines.values():
            try:
                line.send(channel.Close())
            except SamplerError:
                continue  # it has left before, which is no fault now

    def wait_for_reason(self) -> None:
        """After an error in this rank: does not return when a follower has ended, which says more."""
        if self._lines and self._lost.wait(REASON_SECONDS):
            threading.Event().wait()  # until the thread that noticed has ended this process

    def _listen(self, run_rank: int, line: Line) -> None:
        name = f"sampling rank {run_rank}"
        silent = late = 0.0
        before = time.monotonic()
        while not self._are_done:
            has_come = multiprocessing.connection.wait([line], ALIVE_SECONDS)  # type: ignore[list-item]
            now = time.monotonic()
            passed = min(now - before, 2 * ALIVE_SECONDS)  # this process may have been stopped itself
            before = now
            silent += passed
            if has_come:
                try:
                    report = channel.decode_report(line.receive())
                except EOFError:
                    return self._lose(f"{name} is gone: its process ended without a word")
                silent = 0.0
                if isinstance(report, Ready):
                    name += f" (pid {report.pid} on {report.host})"
                if isinstance(report, Failed):
                    return self._lose(f"{name} failed: {report.error}")
                if self._has_moved(run_rank, report):
                    late = 0.0
            own = here(self._finished)
            late = late + passed if run_rank in behind(own, self._shared, dict(self._beats)) else 0.0
            if fault := self._hang(silent, late, self._beats.get(run_rank), own):
                return self._lose(f"{name} hangs: {fault}")

    def _has_moved(self, run_rank: int, report: Report) -> bool:
        """Take a follower's report; whether it has finished a round since the one before."""
        if not isinstance(report, Beat):
            return False
        known = self._beats.get(run_rank)
        self._beats[run_rank] = report
        return known is None or known.rounds < report.rounds

    def _hang(self, silent_seconds: float, late_seconds: float, last: Beat | None, own: Beat) -> str | None:
        limit = f"(limit {self._limit_seconds:g} s, half of placement.timeout_seconds)"
        if silent_seconds > self._limit_seconds:
            return f"no sign of life for {silent_seconds:.0f} s {limit}"
        if last is not None and late_seconds > self._limit_seconds:
            waits = "waits for another rank" if last.waits else "is"
            return (
                f"its engine has waited for it for {late_seconds:.0f} s {limit}; it {waits} at {last.line}, the "
                f"engine's first rank is at {own.line}"
            )
        return None

    def _lose(self, fault: str) -> None:
        if self._are_done:
            return
        self._lost.set()
        error = SamplerError(f"{fault}; it holds a part of this rank's engine")
        try:
            self._tell(error)
        except Exception:  # noqa: BLE001 - whatever it is: left here, the main thread would wait for ever
            traceback.print_exc()
        finally:
            watch.end(error)


def behind(first: Beat, shared: int, followers: Mapping[int, Beat]) -> set[int]:
    """The followers that hold up their engine, by what its ranks told last; empty where the first rank is at work.

    One that waits for others itself holds up nobody, unless all that are late wait: in different collectives, say.

    Args:
        first: where the engine's first rank is.
        shared: the rounds that it has told the followers of.
        followers: run rank -> what it told last.
    """
    late = {
        run_rank: beat
        for run_rank, beat in followers.items()
        if beat.rounds < shared and (first.waits or beat.rounds < first.rounds)
    }
    return {run_rank for run_rank, beat in late.items() if not beat.waits} or set(late)


def here(rounds: int) -> Beat:
    """Where this process's main thread is, which has finished so many rounds."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return Beat(rounds=rounds, waits=waits_for_engine(frame), line=watch.whereabouts(frame)[1])


def waits_for_engine(frame: FrameType | None) -> bool:
    """Whether a thread is where it waits for other ranks of its engine, rather than for a learner."""
    waits = False
    while frame is not None:
        path = pathlib.PurePath(frame.f_code.co_filename)
        if any("weight_transfer" in part for part in path.parts):
            return False
        function = (*path.parts[-2:], frame.f_code.co_name)
        waits |= "device_communicators" in path.parts or function == ("rlvr", "tensor_parallel.py", "gather")
        if torch.cuda.is_available():  # collectives do not hold the caller there: it stands where it reads a result
            waits |= function in (("rlvr", "colocated.py", "step"), ("rlvr", "colocated.py", "sequence_logprobs"))
        frame = frame.f_back
    return waits


class Lead:
    """The first rank of the engine, as a follower sees it."""

    def __init__(self, line: Line, name: str) -> None:
        self._line, self._name = line, name
        self._inbox: queue.SimpleQueue[channel.Order | None] = queue.SimpleQueue()
        self._begun = self._finished = 0
        line.send(Ready(host=socket.gethostname(), pid=os.getpid()))
        for work in (self._read, self._give_signs):
            threading.Thread(target=work, daemon=True).start()

    def next_round(self) -> Round | None:
        """Wait for it, the one before being finished; None when the run is over. Raises SamplerError when the first
        rank is gone."""
        self._finished = self._begun
        order = self._inbox.get()
        if order is None:
            raise self._gone()
        self._begun += 1
        return order if isinstance(order, Round) else None

    def fail(self, error: BaseException) -> None:
        """Tell it why this rank ends, as far as it can be told."""
        try:
            self._line.send(Failed(error=f"{type(error).__name__}: {error}"))
        except SamplerError:
            return  # it is gone too

    def _gone(self) -> SamplerError:
        return SamplerError(f"{self._name}, the first of this rank's engine, is gone")

    def _read(self) -> None:
        order: channel.Order | None = None
        while not isinstance(order, channel.Close):
            try:
                order = channel.decode_order(self._line.receive())
            except EOFError:
                self._inbox.put(None)
                time.sleep(REASON_SECONDS)  # enough, unless this rank waits for the first in a collective
                watch.end(self._gone())
            self._inbox.put(order)

    def _give_signs(self) -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            try:
                self._line.send(here(self._finished))
            except SamplerError:
                return

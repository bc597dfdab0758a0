"""The ranks of one vLLM engine that has several, where sampling ranks are apart: the first of them speaks with the
learners, and tells the others, its followers, what it does.

Between two steps of the engine the first rank sends a `channel.Round`: the orders that have come. Every rank obeys them
and takes the step, so all schedulers stay alike. A rank that waits for another inside vLLM's collectives cannot be
interrupted, so a thread listens for followers that end or fall silent, and ends this rank with an error that names one.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from rlvr import channel, watch
from rlvr.channel import Alive, Failed, Line, Ready, Round
from rlvr.config import Placement
from rlvr.errors import SamplerError

ALIVE_SECONDS = 1.0
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

    def add(self, run_rank: int, line: Line) -> None:
        """One that has connected. It is listened to from now on."""
        self._lines[run_rank] = line
        threading.Thread(target=self._listen, args=(f"sampling rank {run_rank}", line), daemon=True).start()

    def share(self, orders: Sequence[tuple[int, bytes]]) -> float:
        """Tell them the orders of this round. Returns the round's time, in seconds."""
        this = Round(orders=list(orders), at_seconds=time.time())
        for run_rank, line in self._lines.items():
            try:
                line.send(this)
            except SamplerError as error:
                self.wait_for_reason()
                raise SamplerError(f"sampling rank {run_rank} {error}") from error
        return this.at_seconds

    def dismiss(self) -> None:
        """The run is over."""
        self._are_done = True
        for line in self._lines.values():
            line.send(channel.Close())

    def wait_for_reason(self) -> None:
        """After an error in this rank: does not return when a follower has ended, which says more."""
        if self._lines and self._lost.wait(REASON_SECONDS):
            threading.Event().wait()  # until the thread that noticed has ended this process

    def _listen(self, name: str, line: Line) -> None:
        heard = time.monotonic()
        while not self._are_done:
            if multiprocessing.connection.wait([line], ALIVE_SECONDS):  # type: ignore[list-item]
                try:
                    report = channel.decode_report(line.receive())
                except EOFError:
                    return self._lose(f"{name} is gone: its process ended without a word")
                heard = time.monotonic()
                if isinstance(report, Ready):
                    name += f" (pid {report.pid} on {report.host})"
                if isinstance(report, Failed):
                    return self._lose(f"{name} failed: {report.error}")
            silent = time.monotonic() - heard
            if silent > self._limit_seconds:
                return self._lose(
                    f"{name} hangs: no sign of life for {silent:.0f} s (limit {self._limit_seconds:g} s, half of "
                    "placement.timeout_seconds)"
                )

    def _lose(self, fault: str) -> None:
        if self._are_done:
            return
        self._lost.set()
        error = SamplerError(f"{fault}; it holds a part of this rank's engine")
        self._tell(error)
        watch.end(error)


class Lead:
    """The first rank of the engine, as a follower sees it."""

    def __init__(self, line: Line, name: str) -> None:
        self._line, self._name = line, name
        self._inbox: queue.SimpleQueue[channel.Order | None] = queue.SimpleQueue()
        line.send(Ready(host=socket.gethostname(), pid=os.getpid()))
        for work in (self._read, self._give_signs):
            threading.Thread(target=work, daemon=True).start()

    def next_round(self) -> Round | None:
        """Wait for it; None when the run is over. Raises SamplerError when the first rank is gone."""
        order = self._inbox.get()
        if order is None:
            raise self._gone()
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
                self._line.send(Alive())
            except SamplerError:
                return

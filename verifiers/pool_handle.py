"""One worker as its supervisor sees it, and what is done to processes from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import signal
import socket
import time

from verifiers import pool_worker as wire

SLOW_SECONDS = 0.05


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    identifier: int
    verifier: int
    frame: bytes
    holders: int = 0
    """Queue and workers that hold it; more than one after it was taken from behind a slow sample."""
    is_done: bool = False


class Handle:
    """The supervisor's side of one worker."""

    def __init__(self, pid: int, channel: socket.socket, output: int, running: mmap.mmap) -> None:
        self.pid, self.channel, self.output, self.running = pid, channel, output, running
        self.in_flight: dict[int, Request] = {}
        self.incoming, self.outgoing, self.printed = bytearray(), bytearray(), bytearray()
        self.started = time.monotonic()
        self.is_ready = self.is_retiring = False

    def current(self) -> tuple[Request | None, float]:
        """The sample being judged and when it began."""
        (identifier,) = wire.RUNNING_ID.unpack_from(self.running, wire.RUNNING_ID_AT)
        started, _ = wire.RUNNING.unpack_from(self.running, 0)
        return self.in_flight.get(identifier), started

    def is_slow(self) -> bool:
        """Whether its sample takes so long that the samples behind it should not wait for this worker."""
        request, started = self.current()
        return request is not None and time.monotonic() - started >= SLOW_SECONDS

    def last_output(self) -> str:
        text = self.printed.decode("utf-8", "replace").strip()
        crash = text.find("Fatal Python error")  # written by faulthandler: the innermost frames come first
        shown = text[crash : crash + 300] if crash >= 0 else text[-200:]
        return f"; it last printed: {shown}" if shown else ""


def send(channel: socket.socket, outgoing: bytearray) -> None:
    """Send what fits; a closed end shows itself at the next read."""
    if outgoing:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            del outgoing[: channel.send(outgoing)]


def kill(pid: int) -> None:
    # the leader is not reaped before this call, so its group id is still its own
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def exit_status(pid: int) -> int | None:
    """Wait status of a process that closed its channel, or None when it is still alive after 50 ms."""
    for _ in range(50):
        done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if done is not None:
            kill(pid)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.001)
    return None


def describe_exit(status: int | None) -> str:
    if status is None:
        return "closed its channel"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    hint = " (the kernel, when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"

"""One sandboxed process as its parent sees it: messages with deadlines, bounded output, and how it ended."""

from __future__ import annotations

import dataclasses
import os
import select
import shutil
import socket
import struct
import time
from typing import Any

from verifiers.sandbox_link import ZygoteLink
from verifiers.sandbox_values import dump, load

_LONGEST_MESSAGE = 4 << 20
_TAIL = 2000
_MOST_CREDIT = 4.0  # seconds added to a limit because the machine was busy


class ProcessEnded(Exception):
    """The process ended, or was ended, before it answered. `str()` is the reason: timeout, output, closed, protocol."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended."""

    exit_code: int
    """As `subprocess` counts: minus the signal's number when a signal ended it."""
    cpu_seconds: float
    wall_seconds: float
    memory_mib: float

    @property
    def reason(self) -> str:
        return f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit {self.exit_code}"


class SandboxedProcess:
    """A child of the zygote. Always call `end`: it kills the child with all it started, and returns how it ended."""

    def __init__(self, link: ZygoteLink, *, stdin: bytes, scratch: str, output_limit: int) -> None:
        """
        Args:
            link: the zygote that forks the process.
            stdin: what it reads on standard input.
            scratch: its scratch directory, removed at the end unless it is private to a mount namespace ("/tmp").
            output_limit: bytes of standard output and error after which it is killed.
        """
        self._link, self._scratch, self._output_limit = link, scratch, output_limit
        self._buffer = bytearray()
        self._closed = False
        self._started = time.monotonic()
        self._credited = 0.0
        self.stdout = bytearray()
        self._stderr = bytearray()
        self._identity = 0
        self._spawn(stdin)

    def _spawn(self, stdin: bytes) -> None:
        self._control, control = socket.socketpair()
        self._out, out = os.pipe()
        self._err, err = os.pipe()
        # a file, not a pipe: nobody has to feed it, and it ends
        source = os.memfd_create("stdin") if stdin else os.open("/dev/null", os.O_RDONLY)
        try:
            if stdin:
                with open(source, "wb", closefd=False) as file:
                    file.write(stdin)
                os.lseek(source, 0, os.SEEK_SET)
            self._identity = self._link.start(self._scratch, [control.fileno(), source, out, err])
        except BaseException:
            self._release()
            raise
        finally:
            control.close()
            for descriptor in (source, out, err):
                os.close(descriptor)
        for descriptor in (self._control.fileno(), self._out, self._err):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        for descriptor in (self._control.fileno(), self._out, self._err, self._link.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    # --- messages

    def send(self, message: Any, seconds: float = 10.0) -> None:
        """Send a message, reading whatever comes meanwhile. Raises ProcessEnded."""
        deadline = time.monotonic() + seconds
        data = dump(message)
        view = memoryview(struct.pack(">I", len(data)) + data)
        while view:
            try:
                view = view[self._control.send(view) :]
            except BlockingIOError:
                self._poll.modify(self._control.fileno(), select.POLLIN | select.POLLOUT)
                self._wait_for_events(deadline)
                self._poll.modify(self._control.fileno(), select.POLLIN)
            except (BrokenPipeError, ConnectionResetError):
                raise ProcessEnded("closed") from None

    def receive(self, seconds: float, token: str = "") -> Any:
        """The next message.

        Args:
            seconds: wall-clock limit, not counting time in which the process waited for a CPU.
            token: secret with which the message must begin.

        Raises:
            ProcessEnded: timeout, too much output, ended, or a message that is none.
        """
        deadline = time.monotonic() + seconds
        while True:
            data = self._take_message()
            if data is not None:
                prefix, body = data[: len(token)], data[len(token) :]
                if prefix != token.encode():
                    raise ProcessEnded("protocol")
                try:
                    return load(body)
                except ValueError:
                    raise ProcessEnded("protocol") from None
            if self._closed:
                raise ProcessEnded("closed")
            if self._has_ended():
                self._read_control()  # its last words may not have been read yet; after them comes the end
                continue
            deadline = self._wait_for_events(deadline)

    def wait(self, seconds: float) -> str | None:
        """Wait until the process ends by itself; return the reason if it did not, or what it reported as its
        failure."""
        deadline = time.monotonic() + seconds
        try:
            while not self._has_ended():
                deadline = self._wait_for_events(deadline)
        except ProcessEnded as error:
            return str(error)
        data = self._take_message()
        try:
            failed = load(data)["failed"][0] if data else None
        except (ValueError, KeyError, TypeError, IndexError):
            failed = None
        return failed if failed in ("syntax", "memory") else None

    def _take_message(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._buffer)
        if length > _LONGEST_MESSAGE:
            raise ProcessEnded("protocol")
        if len(self._buffer) < 4 + length:
            return None
        data = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return data

    def _wait_for_events(self, deadline: float) -> float:
        """Handle what arrives until something does; return the deadline, moved by the time lost waiting for a CPU."""
        remaining = deadline - time.monotonic()
        # polled even when the time is up: this process may have been the one that got no CPU
        events = self._poll.poll(max(0.0, remaining) * 1000)
        if not events and remaining <= 0:
            credit = min(self._link.longest_wait_for_cpu(), _MOST_CREDIT) - self._credited
            if credit < 0.02:
                raise ProcessEnded("timeout")
            self._credited += credit
            return deadline + credit
        for descriptor, _event in events:
            if descriptor == self._link.fileno():
                self._link.hear()
            elif descriptor == self._control.fileno():
                self._read_control()
            else:
                self._read_output(descriptor)
        return deadline

    def _read_control(self) -> None:
        try:
            data = self._control.recv(1 << 18)
        except BlockingIOError:
            if self._has_ended():
                raise ProcessEnded("closed") from None  # dead, and somehow not hung up
            return  # woken for writing
        except ConnectionResetError:
            data = b""
        if not data:
            self._closed = True
            self._poll.unregister(self._control.fileno())
        self._buffer += data
        if len(self._buffer) > 2 * _LONGEST_MESSAGE:
            raise ProcessEnded("protocol")

    def _read_output(self, descriptor: int) -> bool:
        """Take what there is; False at the end of the stream."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._poll.unregister(descriptor)
            return False
        (self.stdout if descriptor == self._out else self._stderr).extend(data)
        if len(self.stdout) + len(self._stderr) > self._output_limit:
            raise ProcessEnded("output")
        return True

    # --- the end

    def _has_ended(self) -> bool:
        return self._identity in self._link.endings

    def end(self) -> Ended:
        """Kill the process and all it started, take the rest of its output, and say how it ended. Raises
        SandboxError."""
        try:
            if not self._has_ended():
                self._link.kill(self._identity)
            while not self._has_ended():
                self._link.hear()
            for descriptor in (self._out, self._err):
                try:
                    while self._read_output(descriptor):
                        pass
                except (ProcessEnded, KeyError):
                    pass  # over the limit, or already read to its end: either way enough is kept
        finally:
            self._release()
        ending = self._link.endings.pop(self._identity)
        return Ended(
            exit_code=ending["code"],
            cpu_seconds=ending["cpu_seconds"],
            memory_mib=ending["memory_mib"],
            wall_seconds=time.monotonic() - self._started,
        )

    def stderr_tail(self) -> str:
        return bytes(self._stderr[-_TAIL:]).decode(errors="replace")

    def stdout_tail(self) -> str:
        return bytes(self.stdout[-_TAIL:]).decode(errors="replace")

    def _release(self) -> None:
        self._control.close()
        os.close(self._out)
        os.close(self._err)
        if self._scratch != "/tmp":
            remove_tree(self._scratch)


def remove_tree(path: str) -> None:
    """Remove a directory that a program has filled, whatever permissions it gave to what is inside."""
    os.chmod(path, 0o700)
    for folder, names, _files in os.walk(path):
        for name in names:
            inside = os.path.join(folder, name)
            if not os.path.islink(inside):
                os.chmod(inside, 0o700)
    shutil.rmtree(path)

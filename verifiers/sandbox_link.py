"""The parent's end of the zygote: start and kill requests out, endings in."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from verifiers.errors import SandboxError


class ZygoteLink:
    """The control socket of one zygote, shared by the processes that were started through it."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control, self._pid = control, pid
        self._next_identity = 0
        self.endings: dict[int, dict[str, Any]] = {}
        """Identity to how that process ended, until somebody takes it."""

    def fileno(self) -> int:
        return self._control.fileno()

    def start(self, scratch: str, descriptors: list[int]) -> int:
        """Ask for a child with control, stdin, stdout and stderr `descriptors`; returns its identity. Raises
        SandboxError."""
        self._next_identity += 1
        request = json.dumps({"do": "start", "id": self._next_identity, "scratch": scratch}).encode()
        try:
            socket.send_fds(self._control, [request], descriptors)
        except OSError as error:
            raise SandboxError(f"the sandbox's zygote is gone: {error}") from error
        return self._next_identity

    def kill(self, identity: int) -> None:
        try:
            self._control.send(json.dumps({"do": "kill", "id": identity}).encode())
        except OSError as error:
            raise SandboxError(f"the sandbox's zygote is gone: {error}") from error

    def hear(self) -> None:
        """Take one message from the zygote (blocks until there is one). Raises SandboxError when it died."""
        try:
            data = self._control.recv(4096)
        except OSError as error:
            raise SandboxError(f"the sandbox's zygote does not answer: {error}") from error
        if not data:
            raise SandboxError("the sandbox's zygote died; the next program gets a new one")
        message = json.loads(data)
        if "refused" in message:
            raise SandboxError(f"the sandbox cannot start a process: {message['refused']}")
        self.endings[message["id"]] = message

    def longest_wait_for_cpu(self) -> float:
        """Seconds that a child has stood in line for a CPU: the fault of a busy machine, not of its program.

        A child with threads or processes of its own gets none: it may be its own crowd.
        """
        try:
            children = _children(self._pid)
            waits = [_waited(child) for child in children if _is_alone(child)]
        except (OSError, IndexError, ValueError):
            return 0.0  # this kernel keeps no schedstat, or the child has just ended
        return max(waits, default=0.0)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alone(pid: int) -> bool:
    return len(list(Path(f"/proc/{pid}/task").iterdir())) == 1 and not _children(pid)


def _waited(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9

"""The zygote: a clean interpreter that forks one walled child per program.

Started by `verifiers.sandbox` as `python -P -s -S -B` with an empty environment. It imports the common modules once,
puts up the walls that last, reports which of them stand, and then forks. It never sees a program, a test or a result:
those pass between the parent and the child through a socket that the parent hands over with each request.
Standard library only; the package `verifiers` is a stub here (see the last lines).
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import types
from typing import Any

# Imported once, so that importing them costs a program nothing. Each megabyte of them costs every fork 0.05 ms:
# asyncio, unittest, xml and others of their size are read from disk by the few programs that want them.
_COMMON = """
abc array ast base64 bisect calendar cmath codecs collections collections.abc contextlib copy csv ctypes dataclasses
datetime decimal enum fractions functools gc hashlib heapq inspect io itertools json keyword math numbers operator os
os.path pathlib pprint queue random re secrets statistics string struct sys tempfile textwrap threading time timeit
traceback types typing unicodedata warnings weakref
"""
_NEEDS_LIBRARIES = ("_bz2", "_ctypes", "_hashlib", "_lzma", "_sqlite3", "_ssl", "_uuid", "zlib")
"""They load system libraries, which cannot be read once the walls are up."""


def _run_child(walls: Any, descriptors: list[int], scratch: str) -> None:
    """In the child: wire the descriptors to 0-3, close every other, put up the walls, and serve."""
    layers.volunteer_for_oom(walls.proc)
    for number in range(4):
        # first out of the way of 0-3, then into place
        descriptors[number] = os.dup(descriptors[number]) if descriptors[number] <= 3 else descriptors[number]
    for number, descriptor in zip((child.CONTROL, 0, 1, 2), descriptors, strict=True):
        os.dup2(descriptor, number)
    os.closerange(4, 1024)
    walls.close_in_child(scratch)
    gc.enable()
    child.serve(child.CONTROL, checker.run_tests)


class Zygote:
    """Forks children on request and tells the parent how each ended."""

    def __init__(self, control: socket.socket, walls: Any) -> None:
        self._control = control
        self._walls = walls
        self._children: dict[int, tuple[int, int, str]] = {}  # pidfd -> (pid, id, scratch)
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)

    def run(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            for descriptor, _event in self._poll.poll(1000):
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._obey():
                    return self._kill_all()
        self._kill_all()

    def _obey(self) -> bool:
        data, descriptors = _receive_with_descriptors(self._control)
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "start":
            self._start(request, descriptors)
        else:
            for pid, identity, _scratch in self._children.values():
                if identity == request["id"]:
                    self._kill(pid)
        return True

    def _start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        scratch = request["scratch"]
        try:
            pid = layers.fork(self._walls.fork_flags())
        except OSError as error:
            self._send({"id": request["id"], "refused": str(error)})
            pid = -1
        if pid == 0:
            code = 1
            try:
                _run_child(self._walls, descriptors, scratch)
                code = 0
            except EOFError:
                code = 0  # the parent hung up: it has what it wants
            except OSError as error:
                os.write(2, f"sandbox: {error}\n".encode())
            finally:
                os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = (pid, request["id"], scratch)
            self._poll.register(pidfd, select.POLLIN)

    def _kill(self, pid: int) -> None:
        try:
            if not self._walls.on("pid namespace"):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself, and is reaped by its pidfd

    def _reap(self, pidfd: int) -> None:
        pid, identity, _scratch = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        # of a pid namespace's first process this returns only after every other process in it is gone
        _pid, status, usage = os.wait4(pid, 0)
        if not self._walls.on("pid namespace"):
            self._kill_orphans(pid)
        self._send(
            {
                "id": identity,
                "code": os.waitstatus_to_exitcode(status),
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "memory_mib": usage.ru_maxrss / 1024,
            }
        )

    def _kill_orphans(self, group: int) -> None:
        """Without a pid namespace: end what the child left, which has become ours (child subreaper)."""
        known = {pid for pid, _identity, _scratch in self._children.values()}
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
            orphans = self._walls.children() - known
            if not orphans:
                return
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)
            for orphan in orphans:
                os.waitpid(orphan, 0)

    def _kill_all(self) -> None:
        for pid, _identity, _scratch in self._children.values():
            self._kill(pid)
        for pidfd in list(self._children):
            pid = self._children.pop(pidfd)[0]
            os.waitpid(pid, 0)
            if not self._walls.on("pid namespace"):
                self._kill_orphans(pid)

    def _send(self, message: dict[str, Any]) -> None:
        # where the parent is gone, the next poll ends this process
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(json.dumps(message).encode())


def _receive_with_descriptors(control: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    data, ancillary, _flags, _address = control.recvmsg(4096, socket.CMSG_SPACE(4 * descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return data, list(descriptors)


def _preload() -> None:
    # Without their fork hooks: those reseed `random` (a program must see the same numbers wherever it runs) and cost
    # 0.4 ms a fork.
    register, os.register_at_fork = os.register_at_fork, lambda **_hooks: None
    for name in [*_COMMON.split(), *_NEEDS_LIBRARIES]:
        # an interpreter built without it: the program will be told so when it imports it
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.register_at_fork = register
    sys.modules["random"].seed(0)


def main(descriptor: int, options: dict[str, Any]) -> None:
    control = socket.socket(fileno=descriptor)
    walls = walls_module.Walls(options)
    walls.put_up()
    os.environ.clear()
    os.environ.update(PATH="/nowhere", LANG="C.UTF-8", HOME=layers.SCRATCH, TMPDIR=layers.SCRATCH)
    sys.path[:] = walls.search_path
    sys.argv[:] = ["program"]
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    for name in [name for name in sys.modules if name == "verifiers" or name.startswith("verifiers.")]:
        del sys.modules[name]
    hello = json.dumps({"report": walls.report}).encode()
    gc.collect()
    gc.disable()
    gc.freeze()
    zygote = Zygote(control, walls)
    control.send(hello)
    zygote.run()


if __name__ == "__main__":
    _preload()  # first: the modules below import some of these
    package = types.ModuleType("verifiers")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["verifiers"] = package
    child: Any = importlib.import_module("verifiers.sandbox_child")
    layers: Any = importlib.import_module("verifiers.sandbox_layers")
    walls_module: Any = importlib.import_module("verifiers.sandbox_walls")
    checker: Any = importlib.import_module("verifiers.sandbox_checker")
    own_module = sys.modules.pop("__main__")  # kept alive here; programs find an empty one
    sys.modules["__main__"] = types.ModuleType("__main__")
    main(int(sys.argv[1]), json.loads(sys.argv[2]))

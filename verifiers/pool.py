"""The verifier pool: verdicts in killable worker processes, with a wall-clock limit enforced from outside.

One hung, crashing or memory-eating sample costs its own timeout and one worker; its verdict is indeterminate and
says why, and its neighbours are judged as if it were not there. The calling process may hold CUDA, vLLM and threads:
nothing of it is forked (see `pool_supervisor`), and the pool starts no thread in it.
"""

from __future__ import annotations

import collections
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

from verifiers import pool_worker as wire
from verifiers.base import Sample, Verdict, Verifier
from verifiers.errors import PoolError, UnknownVerifierError
from verifiers.plugins import locate
from verifiers.pool_supervisor import START_SECONDS
from verifiers.registry import VerifierSpec, build, resolve

_MAX_RESTARTS = 3
_BURST_SECONDS = 0.0002
_BURST_BYTES = 2**16
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from verifiers.pool_supervisor import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class VerifierPool:
    """Judges samples by named verifiers; use it from one thread, as a context manager.

    Args:
        specs: name used in `submit` -> verifier to build. Those whose class says `cannot_hang` run in the caller;
            so does the `verify_fast` of those that have one, and what it leaves undecided goes to a worker.
        workers: worker processes. None are started where every verifier runs in the caller.
        timeout_seconds: wall-clock limit of one verdict, for verifiers that do not set their own.
        memory_mib: address space that a worker may take on top of what its built verifiers take.
        niceness: added to the priority number of workers; up to 19 keeps them out of the way of generation.

    Raises (at construction) UnknownVerifierError, PluginError, DuplicateVerifierError, VerifierOptionError, PoolError.

    >>> with VerifierPool({"exact": VerifierSpec(name="exact")}) as pool:
    ...     pool.submit("row 1", "exact", Sample(completion="4", ground_truth="4"))
    ...     [(key, verdict.outcome.value) for key, verdict in pool.wait()]
    [('row 1', 'correct')]
    """

    def __init__(
        self,
        specs: Mapping[str, VerifierSpec],
        *,
        workers: int = 1,
        timeout_seconds: float = 10.0,
        memory_mib: int = 2048,
        niceness: int = 0,
    ) -> None:
        for name, value in (("workers", workers), ("timeout_seconds", timeout_seconds), ("memory_mib", memory_mib)):
            if value <= 0:
                raise PoolError(f"the verifier pool needs {name} above 0; got {value!r}.")
        self._inline: dict[str, Verifier] = {}
        self._fast: dict[str, Verifier] = {}
        self._indices: dict[str, int] = {}
        self._settings: dict[str, Any] = {
            "caller_pid": os.getpid(),
            "workers": workers,
            "memory_mib": memory_mib,
            "niceness": niceness,
            "specs": [],
            "timeouts_seconds": [],
        }
        for name, spec in specs.items():
            self._add(name, spec, timeout_seconds)
        self._pending: dict[int, tuple[Hashable, bytes]] = {}
        self._finished: list[tuple[Hashable, Verdict]] = []
        self._submitted = 0
        self._restarts = 0
        self._held: collections.deque[int] = collections.deque()
        self._on_trial: int | None = None
        self._is_closed = False
        self._supervisor: _Supervisor | None = _Supervisor(self._settings) if self._indices else None

    def _add(self, name: str, spec: VerifierSpec, timeout_seconds: float) -> None:
        verifier = resolve(spec.name, spec.plugins)
        verifier.parse_options(spec.options)
        if verifier.cannot_hang:
            self._inline[name] = build(spec)
            return
        if verifier.verify_fast is not Verifier.verify_fast:
            self._fast[name] = build(spec)
        self._indices[name] = len(self._indices)
        plugins = [os.path.abspath(os.path.expanduser(file)) for file in spec.plugins]
        self._settings["specs"].append({"name": locate(verifier), "options": dict(spec.options), "plugins": plugins})
        own = verifier.timeout_seconds
        self._settings["timeouts_seconds"].append(timeout_seconds if own is None else own)

    @property
    def pending(self) -> int:
        """Samples submitted whose verdict no `poll` or `wait` has returned yet."""
        return len(self._pending) + len(self._finished)

    def submit(self, key: Hashable, name: str, sample: Sample) -> None:
        """Judge `sample` by the verifier called `name`; its verdict comes from `poll` or `wait` under `key`.

        Returns at once; a `cannot_hang` verifier, or the `verify_fast` of one that has it, has judged by then. The last
        samples of a burst of calls leave with the next call of any method. A sample that is not JSON cannot be sent to
        a worker: its verdict is indeterminate. Raises UnknownVerifierError for a name that the pool was not given.
        """
        self._refuse_closed()
        if inline := self._inline.get(name):
            self._finished.append((key, wire.judge(inline, sample)))
            return
        if name not in self._indices:
            known = ", ".join([*self._inline, *self._indices]) or "none"
            raise UnknownVerifierError(f"the pool has no verifier called {name!r}; it was given: {known}.")
        if fast := self._fast.get(name):
            decided = wire.judge_fast(fast, sample)
            if decided is not None:
                self._finished.append((key, decided))
                return
        try:
            frame = wire.encode_request(self._submitted, self._indices[name], sample)
        except (TypeError, ValueError) as error:
            reason = f"the sample cannot be sent to a worker, because it is not JSON: {error}"
            self._finished.append((key, Verdict.indeterminate(reason)))
            return
        self._pending[self._submitted] = (key, frame)
        if self._held or self._on_trial is not None:
            self._held.append(self._submitted)
        elif self._supervisor is not None:
            self._supervisor.outgoing += frame
            self._supervisor.send_unless_in_burst()
        self._submitted += 1

    def poll(self, wait_seconds: float = 0.0) -> list[tuple[Hashable, Verdict]]:
        """The verdicts that arrived since the last call. Raises PoolError when workers cannot run.

        Args:
            wait_seconds: where none has arrived, how long to wait for one.
        """
        self._refuse_closed()
        if self._pending:
            self._exchange(wait_seconds=0.0 if self._finished else wait_seconds)
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> list[tuple[Hashable, Verdict]]:
        """Every verdict not returned yet, when the last one is there. Raises PoolError when workers cannot run."""
        self._refuse_closed()
        while self._pending:
            self._exchange(wait_seconds=1.0)
        return self.poll()

    def close(self) -> None:
        """Kill the workers; verdicts not fetched are lost. Calling it again does nothing."""
        self._is_closed = True
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise PoolError("the verifier pool is closed. Build a new one, or stay inside its 'with' block.")

    def _exchange(self, *, wait_seconds: float) -> None:
        supervisor = self._supervisor
        if supervisor is None:
            raise PoolError("the verifier pool has no supervisor.")
        is_alive = supervisor.exchange(wait_seconds)
        for (identifier, seconds, _), frame in wire.frames(supervisor.incoming, wire.ANSWER):
            body = frame[wire.ANSWER.size :]
            if identifier == wire.NOTICE_READY:
                supervisor.is_ready = True
            elif identifier == wire.NOTICE_FATAL:
                self.close()
                raise PoolError(f"the verifier pool cannot run its verifiers: {json.loads(body)}")
            else:
                self._settle(identifier, _decoded(seconds, body))
        if not is_alive or supervisor.is_late():
            self._restart(supervisor)
        elif self._on_trial is None and self._held:
            self._try_next(supervisor)

    def _settle(self, identifier: int, verdict: Verdict) -> None:
        key, _ = self._pending.pop(identifier)
        self._finished.append((key, verdict))
        if identifier == self._on_trial:
            self._on_trial = None

    def _restart(self, supervisor: _Supervisor) -> None:
        """Replace a supervisor that died, and judge again what is open: one by one, to find a sample that kills it."""
        printed = supervisor.close()
        self._restarts = 0 if supervisor.is_ready else self._restarts + 1
        if self._restarts > _MAX_RESTARTS:
            self.close()
            raise PoolError(f"the verifier pool's supervisor died {self._restarts} times while it started: {printed}")
        if self._on_trial is not None and supervisor.is_ready:
            reason = f"the pool's supervisor died while it judged this sample: {printed}"
            self._settle(self._on_trial, Verdict.indeterminate(reason))
        self._on_trial = None
        self._held = collections.deque(self._pending)
        self._supervisor = _Supervisor(self._settings)
        if self._held:
            self._try_next(self._supervisor)

    def _try_next(self, supervisor: _Supervisor) -> None:
        self._on_trial = self._held.popleft()
        supervisor.outgoing += self._pending[self._on_trial][1]
        supervisor.send()


def _decoded(seconds: float, body: bytes) -> Verdict:
    try:
        return wire.decode_answer(seconds, body)
    except (ValueError, TypeError, KeyError) as error:
        return Verdict.indeterminate(f"the worker's answer cannot be read: {error}")


class _Supervisor:
    """The caller's end of the supervisor process."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.channel, theirs = socket.socketpair()
        self.incoming, self.outgoing = bytearray(), bytearray()
        self.is_ready = False
        self._sent = 0.0
        self._started = time.monotonic()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        with tempfile.TemporaryFile() as settings_file, theirs:
            settings_file.write(json.dumps(settings).encode())
            settings_file.flush()
            descriptors = (theirs.fileno(), settings_file.fileno())
            # a fixed hash seed: a verdict that depends on the order of a set repeats in the next run
            environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONHASHSEED": "0"}
            path = json.dumps([os.path.abspath(entry) for entry in sys.path])
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", _BOOT, path, *map(str, descriptors), "shared"],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env=environment,
                start_new_session=True,
            )
        self.channel.setblocking(False)
        self._finalizer = weakref.finalize(self, _stop, self._process, self.channel, os.getpid())

    def send(self) -> None:
        if self.outgoing:
            try:
                del self.outgoing[: self.channel.send(self.outgoing)]
            except (BlockingIOError, ConnectionError):
                return  # full: the next call goes on; closed: the next read tells

    def send_unless_in_burst(self) -> None:
        """Send, or leave it to a call that comes soon: a system call per sample would be half of the pool's cost."""
        now = time.perf_counter()
        if now - self._sent > _BURST_SECONDS or len(self.outgoing) > _BURST_BYTES:
            self.send()
            self._sent = now

    def exchange(self, wait_seconds: float) -> bool:
        """Send and receive what is possible, waiting at most `wait_seconds`; False when the process is gone."""
        writers = [self.channel] if self.outgoing else []
        readable, writable, _ = select.select([self.channel], writers, [], wait_seconds)
        if writable:
            self.send()
        if not readable:
            return True
        try:
            while chunk := self.channel.recv(2**20):
                self.incoming += chunk
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return False

    def is_late(self) -> bool:
        return not self.is_ready and time.monotonic() - self._started > 2 * START_SECONDS

    def close(self) -> str:
        """End the process; returns the last lines that it printed."""
        self._finalizer()
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 1000))
        printed = self._output.read().decode("utf-8", "replace").strip()
        return printed or f"exit status {self._process.returncode}"


def _stop(process: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    channel.close()
    if os.getpid() != owner:  # a fork of the caller drops its copy and leaves the workers alone
        return
    try:
        process.wait(timeout=5.0)  # the supervisor sees the closed channel, kills its workers and ends
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""The pool's supervisor: a small clean process between the caller and the workers.

    caller -> supervisor (queue, deadlines) -> worker -> supervisor -> caller

It starts from a fresh interpreter, so nothing of the caller (CUDA, threads, locks, `__main__`) reaches a worker. It
builds the verifiers once, has one thread, and forks workers, so that replacing a killed one takes milliseconds. It
enforces deadlines while the caller is busy elsewhere. Where building starts threads, a fork would be unsafe: it then
starts over and lets every worker build for itself.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import json
import math
import mmap
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from verifiers import pool_worker as wire
from verifiers.base import Verdict, Verifier
from verifiers.pool_handle import Handle, Request, describe_exit, exit_status, kill, send
from verifiers.registry import VerifierSpec, build

START_SECONDS = 120.0
"""Limit for importing and building the verifiers, in the supervisor or in a worker."""
_MAX_FAILED_STARTS = 3
_MAX_IN_FLIGHT = 64
_IN_FLIGHT_SECONDS = 0.005
"""Work handed to a worker ahead of time: enough to hide the hop, little enough to keep workers evenly loaded."""
_BUSY_TICK_SECONDS = 0.01
"""How often deadlines are looked at: a worker does not tell when it begins a sample."""
_IDLE_TICK_SECONDS = 5.0
_STUCK_SHARE = 0.25
"""The share of its time limit after which a sample is taken for one that hangs."""
_OUTPUT_BYTES = 4096


class Supervisor:
    """Queue, deadlines and workers. One thread, one selector."""

    def __init__(
        self, caller: socket.socket, settings: dict[str, Any], build_all: Callable[[], Sequence[Verifier]]
    ) -> None:
        self._caller, self._settings, self._build_all = caller, settings, build_all
        self._timeouts: list[float] = settings["timeouts_seconds"]
        self._mean_seconds = [_IN_FLIGHT_SECONDS / 8] * len(self._timeouts)
        self._queue: collections.deque[Request] = collections.deque()
        self._workers: list[Handle] = []
        self._from_caller, self._to_caller = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._zombies: list[int] = []
        self._next_check = 0.0

    def run(self) -> None:
        """Serve until the caller hangs up."""
        self._caller.setblocking(False)
        self._selector.register(self._caller, selectors.EVENT_READ)
        self._staff()
        while os.getppid() == self._settings["caller_pid"]:  # a fork of the caller may keep its end of the socket open
            is_busy = any(worker.in_flight for worker in self._workers)
            for key, events in self._selector.select(_BUSY_TICK_SECONDS if is_busy else _IDLE_TICK_SECONDS):
                if key.fileobj is self._caller:
                    if events & selectors.EVENT_READ and not self._read_caller():
                        return
                elif key.data in self._workers:
                    self._serve(key.data, key.fileobj, events)
            if self._next_check <= (now := time.monotonic()):
                self._next_check = now + _BUSY_TICK_SECONDS
                self._enforce_deadlines()
                self._steal()
                self._staff()
            self._assign()
            self._flush_to_caller()
            self._zombies = [pid for pid in self._zombies if os.waitpid(pid, os.WNOHANG)[0] == 0]

    def stop(self) -> None:
        for worker in self._workers:
            kill(worker.pid)

    # -- the caller

    def _read_caller(self) -> bool:
        """Queue what the caller sent; False when it hung up."""
        try:
            chunk = self._caller.recv(2**20)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self._from_caller += chunk
        for (identifier, verifier, _), frame in wire.frames(self._from_caller, wire.REQUEST):
            self._queue.append(Request(identifier, verifier, frame, holders=1))
        return bool(chunk)

    def _flush_to_caller(self) -> None:
        send(self._caller, self._to_caller)
        self._watch(self._caller, self._to_caller, None)

    def _watch(self, channel: socket.socket, outgoing: bytearray, data: Handle | None) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if outgoing else 0)
        if self._selector.get_key(channel).events != events:
            self._selector.modify(channel, events, data)

    # -- workers

    def _staff(self) -> None:
        """Keep the asked number of workers that are not stuck, with up to as many stuck ones beside them.

        While one waits for its deadline, another does its work; the surplus goes when the stuck one is done.
        """
        wanted = self._settings["workers"]
        able = sum(not self._is_stuck(worker) for worker in self._workers)
        while len(self._workers) < wanted or (able < wanted and self._queue and len(self._workers) < 2 * wanted):
            self._fork()
            able += 1
        for worker in list(self._workers):
            if able > wanted and worker.is_ready and not worker.in_flight:
                self._dismiss(worker, is_dead=False)
                able -= 1

    def _is_stuck(self, worker: Handle) -> bool:
        request, started = worker.current()
        return request is not None and time.monotonic() - started > _STUCK_SHARE * self._timeouts[request.verifier]

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        running = mmap.mmap(-1, wire.RUNNING.size)
        wire.RUNNING.pack_into(running, 0, 0.0, wire.NO_SAMPLE)
        pid = os.fork()
        if pid == 0:
            self._become_worker(theirs, write_end, running, close=[ours.fileno(), read_end])
        theirs.close()
        os.close(write_end)
        ours.setblocking(False)
        os.set_blocking(read_end, False)
        with contextlib.suppress(OSError):  # the child does the same; whoever is first wins
            os.setpgid(pid, pid)
        worker = Handle(pid, ours, read_end, running)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        self._selector.register(read_end, selectors.EVENT_READ, worker)

    def _become_worker(self, channel: socket.socket, output: int, running: mmap.mmap, close: list[int]) -> None:
        status = 1
        try:
            self._selector.close()
            self._caller.close()
            for other in self._workers:
                other.channel.close()
                os.close(other.output)
            for descriptor in close:
                os.close(descriptor)
            wire.set_up_process(output, self._settings["niceness"])
            wire.Worker(channel, running, self._settings["memory_mib"]).run(self._build_all)
            status = 0
        except BaseException:  # noqa: BLE001  said on stderr, which the supervisor reads; this process ends below
            traceback.print_exc()
        finally:
            os._exit(status)

    def _serve(self, worker: Handle, source: Any, events: int) -> None:
        if source is not worker.channel:
            self._read_output(worker)
        elif events & selectors.EVENT_READ and not self._read_answers(worker):
            self._replace_dead(worker)
        elif events & selectors.EVENT_WRITE:
            send(worker.channel, worker.outgoing)
            self._watch(worker.channel, worker.outgoing, worker)

    def _read_output(self, worker: Handle) -> None:
        """Keep the tail of what the worker prints, and throw the rest away."""
        try:
            chunk = os.read(worker.output, 2**16)
        except BlockingIOError:
            return
        worker.printed += chunk
        del worker.printed[:-_OUTPUT_BYTES]
        if not chunk and worker.output in self._selector.get_map():
            self._selector.unregister(worker.output)

    def _read_answers(self, worker: Handle) -> bool:
        """Take the worker's answers; False when its end is closed."""
        try:
            chunk = worker.channel.recv(2**20)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        worker.incoming += chunk
        for (identifier, seconds, _), frame in wire.frames(worker.incoming, wire.ANSWER):
            if identifier == wire.NOTICE_READY:
                worker.is_ready, self._failed_starts = True, 0
                self._to_caller += frame
            elif identifier == wire.NOTICE_FATAL:
                self._give_up(json.loads(frame[wire.ANSWER.size :]))
            elif identifier == wire.NOTICE_RETIRING:
                worker.is_retiring = True
            elif request := worker.in_flight.pop(identifier, None):
                mean = self._mean_seconds[request.verifier]
                self._mean_seconds[request.verifier] = 0.95 * mean + 0.05 * seconds
                self._finish(request, frame)
        return bool(chunk)

    def _finish(self, request: Request, frame: bytes) -> None:
        if not request.is_done:
            request.is_done = True
            self._to_caller += frame

    def _blame(self, request: Request, seconds: float, reason: str) -> None:
        verdict = dataclasses.replace(Verdict.indeterminate(reason), seconds=seconds)
        self._finish(request, wire.encode_answer(request.identifier, verdict))

    def _replace_dead(self, worker: Handle) -> None:
        """A worker hung up by itself: blame the sample it was judging, and nobody else."""
        request, started = worker.current()
        status = exit_status(worker.pid)
        with contextlib.suppress(OSError):
            self._read_output(worker)
        if request is not None and not worker.is_retiring:
            reason = f"the verifier's process {describe_exit(status)} on this sample{worker.last_output()}"
            self._blame(request, time.monotonic() - started, reason)
        elif not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._give_up(
                    f"workers die while they start: the last one {describe_exit(status)}{worker.last_output()}"
                )
        self._dismiss(worker, is_dead=status is not None)

    def _dismiss(self, worker: Handle, *, is_dead: bool) -> None:
        """Kill what is left of a worker's process group, and hand its other samples back."""
        kill(worker.pid)
        if not is_dead:
            self._zombies.append(worker.pid)
        for source in (worker.channel, worker.output):
            if source in self._selector.get_map():
                self._selector.unregister(source)
        worker.channel.close()
        os.close(worker.output)
        worker.running.close()
        self._workers.remove(worker)
        self._next_check = 0.0
        for request in reversed(worker.in_flight.values()):
            request.holders -= 1
            if request.holders == 0 and not request.is_done:
                request.holders = 1
                self._queue.appendleft(request)

    def _give_up(self, reason: str) -> None:
        self._caller.setblocking(True)
        self._caller.sendall(self._to_caller + wire.encode_notice(wire.NOTICE_FATAL, reason))
        self.stop()
        os._exit(1)

    # -- time

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            request, started = worker.current()
            if request is not None and now - started > (limit := self._timeouts[request.verifier]):
                kill(worker.pid)
                self._read_answers(worker)  # it may have finished at the last moment
                self._blame(request, now - started, f"timeout: no verdict within {limit:g} s{worker.last_output()}")
                self._dismiss(worker, is_dead=False)
            elif not worker.is_ready and now - worker.started > START_SECONDS:
                self._give_up(f"a worker was not ready after {START_SECONDS:g} s{worker.last_output()}")

    def _steal(self) -> None:
        """Queue again what waits behind a slow sample, when another worker has nothing to do."""
        if self._queue or all(worker.in_flight for worker in self._workers):
            return
        for worker in self._workers:
            if not worker.is_slow():
                continue
            running, _ = worker.current()
            for request in worker.in_flight.values():
                if request is not running and request.holders == 1:
                    request.holders = 2
                    self._queue.append(request)

    # -- hand out work

    def _assign(self) -> None:
        for worker in self._workers:
            if not self._queue:
                return
            if worker.is_ready and not worker.is_retiring and not worker.is_slow():
                self._feed(worker)

    def _feed(self, worker: Handle) -> None:
        share = math.ceil(len(self._queue) / len(self._workers))
        budget_seconds = _IN_FLIGHT_SECONDS
        for request in worker.in_flight.values():
            budget_seconds -= self._mean_seconds[request.verifier]
        room = min(share, _MAX_IN_FLIGHT - len(worker.in_flight))
        if worker.in_flight and budget_seconds < _IN_FLIGHT_SECONDS / 2:
            return
        while self._queue and room > 0 and (budget_seconds > 0 or not worker.in_flight):
            request = self._queue.popleft()
            if request.is_done or request.identifier in worker.in_flight:
                request.holders -= 1
                continue
            worker.in_flight[request.identifier] = request
            worker.outgoing += request.frame
            budget_seconds -= self._mean_seconds[request.verifier]
            room -= 1
        send(worker.channel, worker.outgoing)
        self._watch(worker.channel, worker.outgoing, worker)


def _has_threads() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


def main(caller_descriptor: int, settings_descriptor: int, mode: str) -> None:
    """Entry point of the supervisor process; `mode`: build once and fork ("shared") or per worker ("separate")."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(os.dup(settings_descriptor), "rb") as file:
        file.seek(0)
        settings = json.load(file)
    caller = socket.socket(fileno=caller_descriptor)
    specs = [VerifierSpec(name=s["name"], options=s["options"], plugins=tuple(s["plugins"])) for s in settings["specs"]]

    def build_all() -> list[Verifier]:
        return [build(spec) for spec in specs]

    if mode == "shared":
        signal.alarm(int(START_SECONDS))  # its default action ends a build that never returns
        try:
            built = build_all()
        except Exception as error:  # noqa: BLE001  reported to the caller, who raises it
            caller.sendall(wire.encode_notice(wire.NOTICE_FATAL, f"{type(error).__name__}: {error}"))
            return
        signal.alarm(0)
        if _has_threads():
            for descriptor in (caller_descriptor, settings_descriptor):
                os.set_inheritable(descriptor, True)
            os.execv(sys.executable, [*sys.orig_argv[:-1], "separate"])
        os.close(settings_descriptor)
        gc.freeze()
        supervisor = Supervisor(caller, settings, lambda: built)
    else:
        supervisor = Supervisor(caller, settings, build_all)
    try:
        supervisor.run()
    finally:
        supervisor.stop()

"""A pool worker: judges samples one after the other and answers on its channel.

Frames between the processes of the pool are a fixed header and a JSON body:

    request  id (u64), verifier (u16), length (u32), then [completion, ground_truth, prompt, completion_tokens, columns]
    answer   id (u64), seconds (f64), length (u32), then [outcome, score, detail]

An answer with one of the `NOTICE_` ids is a message of the worker or supervisor itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from verifiers.base import Outcome, Sample, Verdict, Verifier

REQUEST = struct.Struct("<QHI")
ANSWER = struct.Struct("<QdI")
RUNNING = struct.Struct("<dQ")
"""What a worker is judging, in memory shared with its supervisor: `time.monotonic()` at its start, and id.

Written and read by two processes byte by byte: the time is written only while the id is NO_SAMPLE, and the id, which
says that the time counts, is written last and read first.
"""
RUNNING_ID = struct.Struct("<Q")
RUNNING_ID_AT = RUNNING.size - RUNNING_ID.size

NOTICE_READY = 2**64 - 1
NOTICE_FATAL = 2**64 - 2
"""No verdict can ever come: the body says why."""
NOTICE_RETIRING = 2**64 - 3
"""The worker stops by itself; what it has not answered goes to another."""
NO_SAMPLE = 2**64 - 4

MAX_DETAIL_CHARACTERS = 600
_OUTCOMES = {outcome.value: outcome for outcome in Outcome}  # a look-up costs a tenth of a call of the enum
_FLUSH_SECONDS = 0.001
_PR_SET_PDEATHSIG = 1


def judge(verifier: Verifier, sample: Sample) -> Verdict:
    """The verdict on one sample, timed; an exception of the verifier is an indeterminate verdict that names it."""
    started = time.perf_counter()
    result = _attempt(verifier.verify, sample)
    return _timed(result, time.perf_counter() - started)


def judge_fast(verifier: Verifier, sample: Sample) -> Verdict | None:
    """Like `judge`, by the verifier's fast path; None where that leaves the verdict to `verify`."""
    started = time.perf_counter()
    result = _attempt(verifier.verify_fast, sample)
    return None if result is None else _timed(result, time.perf_counter() - started)


def _attempt(verify: Callable[[Sample], object], sample: Sample) -> object:
    try:
        return verify(sample)
    except Exception as error:  # noqa: BLE001  the one place where any failure of any verifier becomes data
        return failure(error)


def failure(error: BaseException) -> Verdict:
    """An indeterminate verdict that says which exception was raised, and where."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    where = ""
    if innermost is not None:
        code = innermost.tb_frame.f_code
        where = f" ({os.path.basename(code.co_filename)}:{innermost.tb_lineno} in {code.co_name})"
    try:
        message = " ".join(str(error)[: 2 * MAX_DETAIL_CHARACTERS].split())
    except Exception:  # noqa: BLE001  an exception whose __str__ raises still has a name
        message = "its message cannot be read"
    return Verdict.indeterminate(f"{type(error).__name__}: {message[:MAX_DETAIL_CHARACTERS]}{where}")


def _timed(result: object, seconds: float) -> Verdict:
    """What the verifier returned, as a verdict that can be sent; anything else is a fault of the verifier."""
    if not isinstance(result, Verdict):
        result = Verdict.indeterminate(f"the verifier returned {result!r:.80} instead of a Verdict")
    try:
        return Verdict(
            outcome=_OUTCOMES[result.outcome], score=float(result.score), detail=str(result.detail), seconds=seconds
        )
    except (ValueError, TypeError, KeyError) as error:
        return dataclasses.replace(Verdict.indeterminate(f"not a verdict: {error}"), seconds=seconds)


def encode_request(identifier: int, verifier: int, sample: Sample) -> bytes:
    """Raises TypeError or ValueError where the sample is not JSON."""
    fields = [sample.completion, sample.ground_truth, sample.prompt, sample.completion_tokens, dict(sample.columns)]
    body = json.dumps(fields).encode("ascii")
    return REQUEST.pack(identifier, verifier, len(body)) + body


def encode_answer(identifier: int, verdict: Verdict) -> bytes:
    detail = verdict.detail
    if len(detail) > MAX_DETAIL_CHARACTERS:
        detail = detail[:MAX_DETAIL_CHARACTERS] + "..."
    body = json.dumps([verdict.outcome.value, verdict.score, detail]).encode("ascii")
    return ANSWER.pack(identifier, verdict.seconds, len(body)) + body


def encode_notice(notice: int, text: str = "") -> bytes:
    body = json.dumps(text).encode("ascii")
    return ANSWER.pack(notice, 0.0, len(body)) + body


def decode_answer(seconds: float, body: bytes) -> Verdict:
    """Raises ValueError, TypeError or KeyError where the body is not a verdict."""
    outcome, score, detail = json.loads(body.decode("ascii"))
    return Verdict(outcome=_OUTCOMES[outcome], score=float(score), detail=str(detail), seconds=seconds)


def frames(buffer: bytearray, header: struct.Struct) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Take every complete frame off the front of `buffer`: header fields, and the whole frame."""
    start = 0
    while len(buffer) - start >= header.size:
        fields = header.unpack_from(buffer, start)
        end = start + header.size + fields[-1]
        if end > len(buffer):
            break
        yield fields, bytes(memoryview(buffer)[start:end])
        start = end
    del buffer[:start]


class Worker:
    """The loop of one worker process."""

    def __init__(self, channel: socket.socket, running: mmap.mmap, memory_mib: int) -> None:
        self._channel = channel
        self._running = running
        self._memory_mib = memory_mib
        self._answers = bytearray()
        self._flushed = time.monotonic()

    def run(self, build: Callable[[], Sequence[Verifier]]) -> None:
        """Serve until the supervisor hangs up or the worker has to be replaced."""
        try:
            verifiers = build()
        except Exception as error:  # noqa: BLE001  reported to the caller, who raises it
            self._channel.sendall(encode_notice(NOTICE_FATAL, f"{type(error).__name__}: {error}"))
            return
        size_bytes = _virtual_memory_bytes()
        limit_bytes = size_bytes + self._memory_mib * 2**20
        _, hard_limit_bytes = resource.getrlimit(resource.RLIMIT_AS)
        if hard_limit_bytes != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, hard_limit_bytes)
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        self._recycle_bytes = (size_bytes + limit_bytes) // 2
        self._channel.sendall(encode_notice(NOTICE_READY))
        incoming = bytearray()
        while chunk := self._channel.recv(2**20):
            incoming += chunk
            for (identifier, index, _), frame in list(frames(incoming, REQUEST)):
                if not self._answer(identifier, verifiers[index], frame[REQUEST.size :]):
                    return
            self._flush()
            if self._has_grown():
                self._retire()
                return

    def _answer(self, identifier: int, verifier: Verifier, body: bytes) -> bool:
        """Judge one request; False when this process should not be trusted with another."""
        completion, ground_truth, prompt, completion_tokens, columns = json.loads(body.decode("ascii"))
        sample = Sample(
            completion=completion,
            ground_truth=ground_truth,
            prompt=prompt,
            completion_tokens=completion_tokens,
            columns=columns,
        )
        RUNNING.pack_into(self._running, 0, time.monotonic(), identifier)
        started = time.perf_counter()
        healthy = True
        result: object
        try:
            result = verifier.verify(sample)
        except BaseException as error:  # noqa: BLE001  SystemExit of a verifier is its failure too
            healthy = isinstance(error, Exception) and not isinstance(error, MemoryError)
            result = failure(error)
        self._answers += encode_answer(identifier, _timed(result, time.perf_counter() - started))
        RUNNING_ID.pack_into(self._running, RUNNING_ID_AT, NO_SAMPLE)
        if not healthy:
            self._retire()
        elif time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()
        return healthy

    def _flush(self) -> None:
        self._channel.sendall(self._answers)
        self._answers.clear()
        self._flushed = time.monotonic()

    def _retire(self) -> None:
        self._answers += encode_notice(NOTICE_RETIRING)
        self._flush()

    def _has_grown(self) -> bool:
        """Whether a leak has taken half of the memory, so that the limit would soon hit an innocent sample."""
        return _virtual_memory_bytes() > self._recycle_bytes


def _virtual_memory_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def set_up_process(output: int, niceness: int) -> None:
    """Make this forked process a worker: own process group, dies with its parent, quiet, first to go without memory."""
    parent = os.getppid()
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if os.getppid() != parent:  # the parent died before the request above
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    if niceness:
        os.nice(niceness)

"""What learner ranks and sampling ranks say to each other, and the ranks of one engine among them, and over what.

The lines are `multiprocessing.connection` (authenticated sockets of the standard library, which notice at once when the
other side dies); messages are msgpack of the records below, so nothing is pickled. Weights do not travel here.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Literal

import msgspec

from rlvr.colocated import Request, Sampled
from rlvr.errors import SamplerError
from rlvr.sampler_statistics import SamplerStatistics

ALIVE_SECONDS = 1.0
"""How often `Alive` and `Beat` are said."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sample these; each one comes back as `Finished`."""

    ticket: int
    """Chosen by the learner rank that asks; answers carry it."""
    indices: list[int]
    """The learner's numbers of the requests."""
    requests: list[Request]


class SequenceLogprobs(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer with the log-probabilities of every token but the first of each sequence."""

    ticket: int
    sequences: list[list[int]]


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer with what differs between the tensors loaded and these."""

    ticket: int
    checksums: dict[str, bytes]
    """By Hugging Face name: int64, one for each row."""


class Transfer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One call of vLLM's weight-transfer API; answered when it is done."""

    ticket: int
    call: Literal["init", "start", "update", "finish"]
    version: int
    """Of the weights that are on their way."""
    info: dict[str, Any] = {}


class Statistics(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer with vLLM's statistics since they were last asked for."""

    ticket: int


class Close(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This learner rank is done."""


class Round(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From the first rank of an engine to the others: what it does itself before the engine's next step."""

    orders: list[tuple[int, bytes]]
    """Learner rank, and the order as it came."""
    at_seconds: float
    """When, by the first rank's clock: what comes first must be the same on every rank."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """vLLM has started."""

    host: str
    pid: int


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One completion."""

    ticket: int
    index: int
    sampled: Sampled


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To any other request."""

    ticket: int
    problem: str | None = None
    logprobs: list[list[float]] = []
    statistics: list[SamplerStatistics] = []


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine has sampled since the last time."""


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From a follower to the first rank of its engine, whatever its main thread does: how far that is."""

    rounds: int
    """That it has finished."""
    waits: bool
    """For other ranks of the engine."""
    line: str
    """Of the program, where it is."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The sampling rank is about to end."""

    error: str


Order = Sample | SequenceLogprobs | Compare | Transfer | Statistics | Round | Close
Report = Ready | Finished | Answer | Alive | Beat | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


class Line:
    """One connection between a learner rank and a sampling rank. A send that is not taken in time fails."""

    def __init__(self, connection: Connection, timeout_seconds: float) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._sending = threading.Lock()
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            whole = int(timeout_seconds)
            limit = struct.pack("ll", whole, int((timeout_seconds - whole) * 1e6))
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            if same.family == socket.AF_INET:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def introduce(self, rank: int) -> None:
        """The first message: which rank of the run this is."""
        self._connection.send_bytes(rank.to_bytes(4))

    def send(self, message: Order | Report) -> None:
        """From any thread. Raises SamplerError when the other side is gone, or takes nothing before the deadline."""
        try:
            with self._sending:
                self._connection.send_bytes(encode(message))
        except BlockingIOError as error:
            raise SamplerError(f"took no message for {self._timeout_seconds:g} s") from error
        except OSError as error:
            raise SamplerError(f"closed its connection ({error.strerror})") from error

    def receive(self) -> bytes:
        """Wait for one message. Raises EOFError when the other side is gone."""
        try:
            return self._connection.recv_bytes()
        except OSError as error:
            raise EOFError(str(error)) from error

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()


def own_address() -> str:
    """The address of this machine on the network by which the run's first machine is reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
        address: str = probe.getsockname()[0]
    return address


def listen(store: Any, replica: int, backlog: int) -> Listener:
    """Open a sampling rank's door, and tell the run where it is."""
    key = secrets.token_bytes(32)
    listener = Listener((own_address(), 0), backlog=backlog, authkey=key)
    host, port = listener.address
    store.set(f"replica {replica}", f"{host} {port} {key.hex()}")
    return listener


def connect(store: Any, replica: int, timeout_seconds: float) -> Line:
    """Knock at it. Blocks until the sampling rank has opened its door."""
    host, port, key = store.get(f"replica {replica}").decode().split()
    return Line(Client((host, int(port)), authkey=bytes.fromhex(key)), timeout_seconds)

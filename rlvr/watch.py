"""Who keeps the others waiting: the deadline of every collective, and of whatever else a rank may hang in.

A rank that hangs stops all others at their next collective, where torch waits for half an hour and then names nobody.
So each rank counts what it gets done (`at`, `moved`), and a thread of it tells torchrun's store how long that count
has stood still, where, and whether the rank waits in a collective. A rank that has stood still for the whole limit
reads what the others told. The ranks that stand still without waiting, or tell nothing any more, are those that the
rest waits for: the process ends with an error that names them, and torchrun ends the others.

Time in which this process did not run at all (Ctrl-Z, a suspended machine) does not count.
"""

from __future__ import annotations

import linecache
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, Never

import msgspec

from rlvr.errors import RlvrError, StallError

LONGEST_INTERVAL_SECONDS = 5.0
MOST_SHOWN = 16
FAREWELL_SECONDS = 5.0
"""How long a rank that finds the error told by another one waits before it ends, so that it is not cut short."""
OWN_FOLDERS = ("rlvr", "sft_dpo", "verifiers")


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank tells of itself."""

    beat: int
    """Grows while the process runs."""
    who: str
    place: str
    seconds: float
    """Since it last got something done."""
    waits: bool
    """In a collective, for other ranks. Collectives on a GPU do not hold the caller, so there it is seldom seen."""
    line: str
    """Of the program, where its main thread is."""
    ended: bool = False


class _Here:
    """What this process's main thread has done. No lock: any change is a sign of life."""

    place = "start-up"
    moves = 0


def at(place: str) -> None:
    """This rank has come to a place that an error would name."""
    _Here.place = place
    _Here.moves += 1


def moved() -> None:
    """This rank has done a part of what it does there: a completion, a row, a weight."""
    _Here.moves += 1


class Watch(threading.Thread):
    """Tells and reads. `store` is reached by all ranks, and holds nothing else."""

    def __init__(self, store: Any, *, rank: int, world_size: int, limit_seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self._store = store.clone()  # one that waits for a key would keep this thread waiting
        self._rank, self._world_size, self._limit = rank, world_size, limit_seconds
        self._interval = min(LONGEST_INTERVAL_SECONDS, limit_seconds / 20)
        self._who = f"rank {rank} (pid {os.getpid()} on {socket.gethostname()})"
        self._stopped = threading.Event()
        self._beat = 0
        self._moves = -1
        self._still = 0.0
        self._unchanged: dict[int, tuple[int, float]] = {}
        """Rank -> its beat, and for how long it has been the same."""

    def begin(self) -> None:
        """Tell that this rank has come, and watch from now on."""
        self._tell()
        self.start()

    def run(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            self._tick(min(now - before, 2 * self._interval))
            before = now

    def stop(self) -> None:
        """This rank needs no watching any more, and is not to be waited for."""
        self._stopped.set()
        self.join(FAREWELL_SECONDS)
        try:
            self._tell(ended=True)
        except RuntimeError:
            return  # the store is gone, and with it whoever would read this

    def _tick(self, passed_seconds: float) -> None:
        moves = _Here.moves
        self._still = 0.0 if moves != self._moves else self._still + passed_seconds
        self._moves = moves
        self._beat += 1
        try:
            own = self._tell()
            if self._still < self._limit / 2:
                self._unchanged.clear()
                return
            notes = self._read(passed_seconds) | {self._rank: own}
        except RuntimeError as error:  # torch's errors of stores are
            if self._still >= self._limit:
                end(StallError(f"{self._who} has stood still for {self._still:.0f} s at {_Here.place}: {error}"))
            return
        silent = {rank for rank, (_, seconds) in self._unchanged.items() if seconds >= self._limit / 4}
        late = behind(notes, silent, self._limit)
        if late and self._still >= self._limit:
            if self._store.add("told", 1) > 1:  # by another rank
                time.sleep(FAREWELL_SECONDS)
                os._exit(2)
            end(StallError(describe(notes, late, silent, self._limit)))

    def _tell(self, *, ended: bool = False) -> Note:
        waits, line = whereabouts(sys._current_frames().get(threading.main_thread().ident or 0))
        note = Note(
            beat=self._beat,
            who=self._who,
            place=_Here.place,
            seconds=self._still,
            waits=waits,
            line=line,
            ended=ended,
        )
        self._store.set(str(self._rank), msgspec.msgpack.encode(note))
        return note

    def _read(self, passed_seconds: float) -> dict[int, Note | None]:
        """What the other ranks last told; None for one that has told nothing yet."""
        notes: dict[int, Note | None] = {}
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            told = self._store.check([str(rank)])
            note = msgspec.msgpack.decode(self._store.get(str(rank)), type=Note) if told else None
            beat = -1 if note is None else note.beat
            known, seconds = self._unchanged.get(rank, (None, 0.0))
            self._unchanged[rank] = (beat, seconds + passed_seconds if beat == known else 0.0)
            notes[rank] = note
        return notes


def behind(notes: Mapping[int, Note | None], silent: set[int], limit_seconds: float) -> list[int]:
    """The ranks that a run which stands still is waiting for; empty where it may yet go on.

    Args:
        notes: rank -> what it last told; None where it has not come.
        silent: ranks that have told nothing new for long.
    """
    present = {rank: note for rank, note in notes.items() if note is not None}
    ended = {rank for rank, note in present.items() if note.ended}
    late = {rank for rank, note in present.items() if not note.waits and note.seconds >= limit_seconds}
    if any(note.seconds < limit_seconds for rank, note in present.items() if rank not in ended | silent):
        return []  # it works, and whoever seems to hang may be waiting for it unseen
    if stuck := (late | silent) - ended:
        return sorted(stuck)
    if all(rank in ended or (note.waits and note.seconds >= limit_seconds) for rank, note in present.items()):
        return sorted(ended or present)  # they wait for one that has left, or for each other in different collectives
    return []


def describe(notes: Mapping[int, Note | None], late: list[int], silent: set[int], limit_seconds: float) -> str:
    """One error for all ranks, those that are behind first."""
    names = ", ".join(map(str, late[:MOST_SHOWN])) + (f" and {len(late) - MOST_SHOWN} more" * (len(late) > MOST_SHOWN))
    header = (
        f"the run waits for rank{'s' * (len(late) > 1)} {names}: no progress for {limit_seconds:g} s (limit "
        "training.stall_timeout_seconds). If that is honest work, raise the limit."
    )
    order = [*late, *sorted(set(notes) - set(late))]
    lines = [_line(rank, notes[rank], rank in silent) for rank in order[:MOST_SHOWN]]
    lines += [f"and {len(order) - MOST_SHOWN} more ranks"] * (len(order) > MOST_SHOWN)
    return "\n  ".join([header, *lines])


def _line(rank: int, note: Note | None, is_silent: bool) -> str:
    if note is None:
        return f"rank {rank} has not come: its process did not start, or hangs before its first collective"
    if note.ended:
        return f"{note.who} has ended"
    if is_silent:
        last = f"last it was in {note.place}, at {note.line}"
        return f"{note.who} tells nothing any more: it is stopped, or its machine is gone; {last}"
    what = "waits" if note.waits else "is"
    return f"{note.who} {what} in {note.place}, for {note.seconds:.0f} s, at {note.line}"


def whereabouts(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and the lines of this project and of all where it is."""
    waits, own, innermost = False, "", ""
    if frame is not None:  # in an operation that was begun before, where DeepSpeed and `rlvr.buckets` wait
        waits = ".wait(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    while frame is not None:
        path = pathlib.PurePath(frame.f_code.co_filename)
        line = f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        innermost = innermost or line
        if path.parts[-3:] == ("torch", "distributed", "distributed_c10d.py"):
            waits = True
        waits |= "deepspeed" in path.parts and frame.f_code.co_name == "wait"
        waits |= "device_communicators" in path.parts  # vLLM's, between the ranks of one engine
        if not own and "site-packages" not in path.parts and path.parts[-2:-1] and path.parts[-2] in OWN_FOLDERS:
            own = line
        frame = frame.f_back
    return waits, " > ".join(dict.fromkeys(part for part in (own, innermost) if part))


def end(error: RlvrError) -> Never:
    """End this process at once, from any thread, whatever its main thread hangs in. torchrun ends the other ranks."""
    print(f"rlvr: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(2)


_watch: Watch | None = None


def start(store: Any, *, rank: int, world_size: int, limit_seconds: float) -> None:
    """Watch this rank from now on."""
    global _watch
    at("start-up")
    _watch = Watch(store, rank=rank, world_size=world_size, limit_seconds=limit_seconds)
    _watch.begin()


def stop() -> None:
    """End the watching, where there is any."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None

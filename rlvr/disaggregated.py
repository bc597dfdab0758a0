"""The sampler of a learner rank whose vLLM engines run in other processes (`rlvr.serve`).

It has the methods of `rlvr.colocated.Sampler`, so that the loop is the same. Each learner rank has a line to every
engine and deals its own requests out over them; rank 0 drives the weight updates. A sampling rank that is gone,
silent or has failed becomes one SamplerError that names it.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlvr import channel, devices, distributed, watch
from rlvr.channel import Alive, Answer, Compare, Failed, Finished, Line, Order, Ready, Report, Transfer
from rlvr.colocated import Request, Sampled, Sampler
from rlvr.config import Config
from rlvr.errors import SamplerError, WeightSyncError
from rlvr.sampler_statistics import RemoteStatistics, SamplerStatistics

TICK_SECONDS = 0.5


@dataclasses.dataclass(slots=True, kw_only=True)
class Batch:
    """Requests that were sent together."""

    on_finish: Callable[[int, Sampled], None]
    left: dict[int, int]
    """Engine -> requests that it has not finished."""


class RemoteSampler:
    """The engines of the sampling ranks, as one learner rank sees them."""

    def __init__(self, config: Config, place: distributed.Place) -> None:
        placement = config.placement
        self._placement = placement
        self.ranks_of_engine = config.sampler.tensor_parallel_size
        self._replicas = range((placement.sampler_ranks or 0) // self.ranks_of_engine)
        self._lines: dict[int, Line] = {}
        self._inbox: queue.SimpleQueue[tuple[int, Report | None]] = queue.SimpleQueue()
        self._heard: dict[int, float] = {}
        self._names = {
            replica: f"sampling rank {(placement.learner_ranks or 0) + replica * self.ranks_of_engine}"
            for replica in self._replicas
        }
        """Each engine by its first rank, which speaks for the others."""
        self._batches: dict[int, Batch] = {}
        self._answers: dict[tuple[int, int], Answer] = {}
        self._ready: set[int] = set()
        self._later: deque[tuple[int, Finished]] = deque()
        self._ticket = 0
        self._trainer: Any = None
        self.update_can_stop = True
        """Whether all ranks come out of an update that fails. NCCL's calls have no deadline, and the learners of CUDA
        IPC would be left in each other's collectives: there a failure ends the process."""
        self._dtype = config.model.dtype
        self.statistics = RemoteStatistics(self._take_statistics) if config.sampler.statistics else None
        """vLLM's statistics of the sampling ranks; None unless the recipe asks for them."""
        self.policy_version = -1
        """Weight updates that the engines have received after the first, which makes it 0."""
        for replica in self._replicas:
            threading.Thread(target=self._read, args=(place.store, replica), daemon=True).start()
        self._wait(
            lambda: set(self._replicas) - self._ready,
            placement.start_timeout_seconds,
            "has not started",
            option="start_timeout_seconds",
        )

    def describe(self) -> str:
        return ", ".join(self._names.values())

    def generate(self, requests: Sequence[Request], on_finish: Callable[[int, Sampled], None]) -> None:
        """Sample every request; `on_finish(index, sampled)` is called as each one ends, in any order."""
        self.wait(self.submit(requests, on_finish))

    def submit(self, requests: Sequence[Request], on_finish: Callable[[int, Sampled], None]) -> Batch:
        """Send requests and return at once. `on_finish` is called by later calls of this sampler's methods."""
        shares = deal(requests, self._replicas, first=distributed.rank())
        self._ticket += 1
        batch = Batch(on_finish=on_finish, left={replica: len(share) for replica, share in shares.items() if share})
        self._batches[self._ticket] = batch
        for replica in batch.left:
            chosen = shares[replica]
            order = channel.Sample(ticket=self._ticket, indices=chosen, requests=[requests[i] for i in chosen])
            self._send(replica, order)
        return batch

    def wait(self, batch: Batch) -> None:
        """Return when every request of the batch has finished."""
        self._wait(lambda: set(batch.left), self._placement.timeout_seconds, "has sampled nothing")

    def poll(self) -> None:
        """Take what has come, without waiting."""
        while not self._inbox.empty() or self._later:
            self._take(0.0)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """As `Sampler.sequence_logprobs`, for each engine that this learner rank has to prove."""
        self._ticket += 1
        listed = [list(sequence) for sequence in sequences]
        order = channel.SequenceLogprobs(ticket=self._ticket, sequences=listed)
        return [answer.logprobs for answer in self._ask(order, self._to_prove()).values()]

    def compare(self, expected: dict[str, torch.Tensor]) -> str | None:
        """As `Sampler.compare`, for each engine that this learner rank has to prove."""
        self._ticket += 1
        checksums = {name: rows.numpy().tobytes() for name, rows in expected.items()}
        answers = self._ask(Compare(ticket=self._ticket, checksums=checksums), self._to_prove())
        problems = [f"{self._names[replica]}: {a.problem}" for replica, a in answers.items() if a.problem is not None]
        return "; ".join(problems) or None

    def _take_statistics(self) -> list[SamplerStatistics]:
        self._ticket += 1
        answers = self._ask(channel.Statistics(ticket=self._ticket), self._to_prove())
        return [one for answer in answers.values() for one in answer.statistics]

    def load_weights(self, weights: Any) -> None:
        """Send new weights to every engine. Collective over the learner ranks.

        Args:
            weights: a `rlvr.weight_sync.WeightStream`, vLLM's WeightSource.
        """
        from rlvr import weight_transfer

        if self._trainer is None:
            self.update_can_stop = weight_transfer.backend(self._placement) == "gloo"
            self._trainer = weight_transfer.trainer(self._placement, client=Client(self), source=weights)
        self._trainer.source = weight_transfer.Announced(weights)
        if torch.cuda.is_available():  # vLLM reads weights on streams of its own
            torch.cuda.synchronize()
        try:
            self._trainer.send_weights()
        except (SamplerError, WeightSyncError) as error:
            self._trainer = None  # its group is of no use after an update that stopped half-way
            if not self.update_can_stop:
                watch.end(error)
            raise
        self.policy_version += 1

    def sleep(self) -> None:
        """The engines go on; what has finished goes to the verifiers before this rank learns."""
        self.poll()

    def close(self) -> None:
        """Tell the engines that this rank is done, as far as they can be told."""
        for line in self._lines.values():
            try:
                line.send(channel.Close())
            except SamplerError:
                continue  # it is gone, which is what the run has stopped for

    def call_all(self, orders: dict[int, Transfer]) -> None:
        """One call of vLLM's weight-transfer API on every engine, each with its own arguments."""
        for replica, order in orders.items():
            self._send(replica, order)
        answers = self._collect(next(iter(orders.values())).ticket, set(orders), takes_samples=False)
        problems = [f"{self._names[replica]}: {a.problem}" for replica, a in answers.items() if a.problem is not None]
        if problems:
            raise WeightSyncError("; ".join(problems))

    def next_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    @property
    def replicas(self) -> range:
        return self._replicas

    def _to_prove(self) -> list[int]:
        """Engines are shared out over the learner ranks."""
        return list(self._replicas)[distributed.rank() :: distributed.world_size()]

    def _ask(self, order: Order, replicas: Sequence[int]) -> dict[int, Answer]:
        for replica in replicas:
            self._send(replica, order)
        return self._collect(self._ticket, set(replicas))

    def _collect(self, ticket: int, replicas: set[int], *, takes_samples: bool = True) -> dict[int, Answer]:
        missing = lambda: {r for r in replicas if (r, ticket) not in self._answers}  # noqa: E731
        seconds = self._placement.timeout_seconds
        self._wait(missing, seconds, "has not answered", takes_samples=takes_samples)
        return {replica: self._answers.pop((replica, ticket)) for replica in sorted(replicas)}

    def _wait(
        self,
        missing: Callable[[], set[int]],
        seconds: float,
        fault: str,
        *,
        takes_samples: bool = True,
        option: str = "timeout_seconds",
    ) -> None:
        """Take messages until nobody is missing. Raises SamplerError for a rank that is silent for too long."""
        started = time.monotonic()
        while absent := missing():
            self._take(TICK_SECONDS, takes_samples=takes_samples)
            watch.moved()  # this wait has a deadline of its own
            now = time.monotonic()
            for replica in sorted(absent & missing()):
                silent = now - max(started, self._heard.get(replica, 0.0))
                if silent > seconds:
                    raise SamplerError(
                        f"{self._names[replica]} {fault}: no sign of life for {silent:.0f} s (limit {seconds:g} s; see "
                        f"placement.{option}). It hangs, or its machine is gone or too slow."
                    )

    def _take(self, seconds: float, *, takes_samples: bool = True) -> None:
        """Handle one message, if one comes."""
        if takes_samples and self._later:
            self._finished(*self._later.popleft())
            return
        try:
            replica, report = self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
        except queue.Empty:
            return
        match report:
            case Finished() if takes_samples:
                self._finished(replica, report)
            case Finished():  # from the thread that waits for a weight update
                self._later.append((replica, report))
            case Answer():
                self._answers[replica, report.ticket] = report
            case Ready():
                self._names[replica] += f" (pid {report.pid} on {report.host})"
                self._ready.add(replica)
            case Failed():
                raise SamplerError(f"{self._names[replica]} failed: {report.error}")
            case None:
                self._inbox.put((replica, None))  # it stays gone
                raise SamplerError(f"{self._names[replica]} is gone: its process ended without a word")

    def _finished(self, replica: int, report: Finished) -> None:
        batch = self._batches[report.ticket]
        batch.left[replica] -= 1
        if not batch.left[replica]:
            del batch.left[replica]
        if not batch.left:
            del self._batches[report.ticket]
        batch.on_finish(report.index, report.sampled)

    def _send(self, replica: int, order: Order) -> None:
        try:
            self._lines[replica].send(order)
        except SamplerError as error:
            self.poll()  # what it said before it went says more
            raise SamplerError(f"{self._names[replica]} {error}") from error

    def _read(self, store: Any, replica: int) -> None:
        """A thread for each engine: it keeps the line empty, so that the engine never waits for the learner."""
        try:
            line = channel.connect(store, replica, self._placement.timeout_seconds)
            line.introduce(distributed.rank())
            self._lines[replica] = line
            while True:
                report = channel.decode_report(line.receive())
                self._heard[replica] = time.monotonic()
                if not isinstance(report, Alive):
                    self._inbox.put((replica, report))
        except (EOFError, OSError, RuntimeError):
            self._inbox.put((replica, None))


AnySampler = Sampler | RemoteSampler


class Client:
    """vLLM's WeightSyncClient protocol: the calls that its trainer-side engine makes on the sampling ranks."""

    def __init__(self, sampler: RemoteSampler) -> None:
        self._sampler = sampler

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        ranks = self._sampler.ranks_of_engine
        infos = {
            replica: init_info | ({"rank_offset": 1 + replica * ranks} if "rank_offset" in init_info else {})
            for replica in self._sampler.replicas
        }
        self._call("init", infos)

    def start_weight_update(self) -> None:
        self._call("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update", dict.fromkeys(self._sampler.replicas, devices.plain_update(update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish")

    def _call(self, call: Any, infos: dict[int, dict[str, Any]] | None = None) -> None:
        ticket, version = self._sampler.next_ticket(), self._sampler.policy_version + 1
        orders = {
            replica: Transfer(ticket=ticket, call=call, version=version, info=(infos or {}).get(replica, {}))
            for replica in self._sampler.replicas
        }
        try:
            self._sampler.call_all(orders)
        except (SamplerError, WeightSyncError) as error:
            if not self._sampler.update_can_stop:
                watch.end(error)
            raise


def deal(requests: Sequence[Request], replicas: range, *, first: int) -> dict[int, list[int]]:
    """Which engine samples which requests: one prompt's samples stay together, where they share its prefix.

    >>> made = [Request(token_ids=p, seed=0, temperature=1.0, max_tokens=1) for p in ([5], [5], [6], [7], [7])]
    >>> deal(made, range(2), first=0)
    {0: [0, 1, 3, 4], 1: [2]}
    """
    shares: dict[int, list[int]] = {replica: [] for replica in replicas}
    turn, before = first - 1, None
    for index, request in enumerate(requests):
        if request.token_ids != before:
            turn, before = turn + 1, request.token_ids
        shares[replicas[turn % len(replicas)]].append(index)
    return shares

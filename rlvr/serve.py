"""What a sampling rank does: hold a vLLM engine, and do what the learner ranks ask, until they are done.

Between two steps of the engine it looks for orders, so that new requests and new weights are taken while others are
being sampled. With `sampler.tensor_parallel_size` the first rank of an engine does that, and `rlvr.followers` the rest.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from rlvr import channel, devices, distributed
from rlvr.channel import Alive, Answer, Close, Compare, Failed, Finished, Line, Order, Ready, Report, Transfer
from rlvr.chat import load_tokenizer, stop_token_ids
from rlvr.colocated import Sampled, Sampler
from rlvr.config import Config
from rlvr.errors import SamplerError, WeightSyncError
from rlvr.followers import Followers, Lead
from rlvr.tensor_parallel import Trace

FAREWELL_SECONDS = 5.0
"""How long a rank that fails at its start waits for learners that have not connected, to tell them."""


class Replica(Sampler):
    """A vLLM engine whose weights come by vLLM's weight-transfer API, also while it samples."""

    def __init__(self, config: Config, *, stop_token_ids: list[int], max_model_len: int) -> None:
        from rlvr import weight_transfer

        weight_transfer.register()
        super().__init__(
            config,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            weight_transfer_config={"backend": weight_transfer.backend(config.placement)},
            async_scheduling=False,  # a step's tokens are known after it: each is stamped with its weights
            scheduling_policy="priority",  # the proof of new weights does not wait for all that was asked before it
        )
        self._proof_priority = -1
        self._trace = Trace()
        self._round_at = 0.0
        self._recompute = config.asynchronous is not None and config.asynchronous.recompute_kv_cache
        self._coming: int | None = None
        """Version of the weights that are on their way."""
        self._is_open = False
        """Whether vLLM holds an update open."""
        self._is_partial = False
        """Whether the weights are part old, part new."""

    def begin_round(self, at_seconds: float) -> None:
        """Requests to come have this time, which is the same on every rank of the engine and decides their order."""
        self._round_at = max(at_seconds, self._round_at)

    def _arrival_time(self) -> float:
        self._round_at += 1e-6  # as the queue breaks ties by names that vLLM makes up on each rank
        return self._round_at

    def step(self) -> list[tuple[str, Sampled]]:
        ended = super().step()
        self._trace.fold((key, sampled.token_ids) for key, sampled in ended)
        return ended

    def divergence(self) -> str | None:
        """What is wrong when the engine's ranks have not sampled the same so far; else None. Collective."""
        return self.group.divergence(self._trace.digest())

    def transfer(self, order: Transfer) -> None:
        """One call of vLLM's API. Raises WeightSyncError for one that is out of turn."""
        if order.call == "init":
            if self._is_open:  # by an update that stopped half-way: vLLM would take no other
                self._llm.finish_weight_update()
            self._coming, self._is_open = None, False
            self._llm.init_weight_transfer_engine({"init_info": order.info})
            return
        expected = self.policy_version + 1 if order.call == "start" else self._coming
        if order.version != expected or (order.call == "start" and self._coming is not None):
            raise WeightSyncError(
                f"{order.call} of weights {order.version} came out of turn: this sampler holds weights "
                f"{self.policy_version} and waits for {'none' if self._coming is None else self._coming}"
            )
        if order.call == "start":
            self._coming = order.version
            self._checksums.clear()
            self._llm.start_weight_update()
            self._is_open = self._is_partial = True
        elif order.call == "update":
            try:
                self._llm.update_weights({"update_info": devices.received_update(order.info)})
            except WeightSyncError:
                self._is_open = False  # vLLM has ended it
                raise
        else:
            self._llm.finish_weight_update()
            self._coming, self._is_open, self._is_partial = None, False, False
            self.weights_changed()

    def weights_changed(self) -> None:
        super().weights_changed()
        if self._recompute and not self._llm.llm_engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM did not give up the keys and values of its running requests")

    def has_work(self) -> bool:
        """Whether the next step samples something."""
        return self.is_busy() and not self.is_loading()

    def is_loading(self) -> bool:
        """Whether the last update that began has not become whole: nothing may be sampled then."""
        return self._is_partial


class Server:
    """The connections to the learner ranks, and the engine that works for them."""

    sampler: Replica
    """Set before `run`: the door is open while the engine starts, so that the learners hear when it fails."""

    def __init__(self, config: Config, place: distributed.Place) -> None:
        self._placement = config.placement
        self._lines: dict[int, Line] = {}
        """By learner rank."""
        self._open: set[int] = set(range(config.placement.learner_ranks or 0))
        self._signs_at = time.monotonic()
        self._finished = 0
        self._progress = (0, 0)
        self._followers = Followers(config.placement, self.fail)
        callers = len(self._open) + config.sampler.tensor_parallel_size - 1
        listener = channel.listen(place.store, place.replica, backlog=callers)
        self._accepting = threading.Thread(target=self._accept, args=(listener, callers), daemon=True)
        self._accepting.start()

    def _accept(self, listener: multiprocessing.connection.Listener, callers: int) -> None:
        for _ in range(callers):
            line = Line(listener.accept(), self._placement.idle_timeout_seconds)
            run_rank = int.from_bytes(line.receive())
            if run_rank in self._open:
                self._lines[run_rank] = line
            else:
                self._followers.add(run_rank, line)
        listener.close()

    def run(self) -> None:
        """Serve until every learner rank has said that it is done."""
        self._accepting.join(self._placement.start_timeout_seconds)
        missing = sorted(self._open - set(self._lines))
        if missing:
            raise SamplerError(
                f"learner ranks {missing} did not connect within placement.start_timeout_seconds="
                f"{self._placement.start_timeout_seconds:g}"
            )
        for learner in sorted(self._open):
            self._tell(learner, Ready(host=socket.gethostname(), pid=os.getpid()))
        while self._open:
            orders = self._orders(wait=not self.sampler.has_work())
            self.sampler.begin_round(self._followers.share(orders))
            for learner, raw in orders:
                self._obey(learner, channel.decode_order(raw))
            if self.sampler.has_work():
                for key, sampled in self.sampler.step():
                    learner, ticket, index = map(int, key.split("-"))
                    self._tell(learner, Finished(ticket=ticket, index=index, sampled=sampled))
                    self._finished += 1
                self._give_signs()
            self._followers.finish_round()
        self._followers.dismiss()

    def _give_signs(self) -> None:
        """Tell every learner rank that the engine is alive, if it has sampled anything since the last time."""
        if time.monotonic() - self._signs_at < channel.ALIVE_SECONDS:
            return
        self._signs_at = time.monotonic()
        progress = (self._finished, self.sampler.tokens_under_way())
        if progress != self._progress:
            self._progress = progress
            for learner in sorted(self._open):
                self._tell(learner, Alive())

    def _orders(self, *, wait: bool) -> list[tuple[int, bytes]]:
        """Orders that have come; at least one if `wait`. Raises SamplerError when none comes in time."""
        seconds = self._placement.idle_timeout_seconds
        if self.sampler.is_loading():
            seconds = 2 * self._placement.timeout_seconds  # the learner, who can name another rank, gives up first
        by_line = {self._lines[learner].fileno(): learner for learner in self._open}
        ready = multiprocessing.connection.wait(list(by_line), seconds if wait else 0.0)
        if wait and not ready:
            what = "in the middle of a weight update" if self.sampler.is_loading() else "without work"
            raise SamplerError(f"learner ranks {sorted(self._open)} were silent for {seconds:g} s, {what}")
        orders = []
        for number in ready:
            learner = by_line[number]  # type: ignore[index]
            try:
                orders.append((learner, self._lines[learner].receive()))
            except EOFError as error:
                raise SamplerError(f"learner rank {learner} is gone: its connection closed") from error
        return orders

    def _obey(self, learner: int, order: Order) -> None:
        if isinstance(order, Close):
            self._open.remove(learner)
        answer = obey(self.sampler, learner, order)
        if answer is not None:
            self._tell(learner, answer)

    def _tell(self, learner: int, report: Report) -> None:
        try:
            self._lines[learner].send(report)
        except SamplerError as error:
            raise SamplerError(f"learner rank {learner} {error}") from error

    def wait_for_reason(self) -> None:
        """After an error: does not return when another rank of this engine has ended, which says more."""
        self._followers.wait_for_reason()

    def fail(self, error: BaseException) -> None:
        """Tell the learners why this rank ends, as far as they can be told."""
        self._accepting.join(FAREWELL_SECONDS)
        for learner in sorted(self._open & set(self._lines)):
            try:
                self._lines[learner].send(Failed(error=f"{type(error).__name__}: {error}"))
            except SamplerError:
                continue  # that one is gone too


def obey(sampler: Replica, learner: int, order: Order) -> Answer | None:
    """Do what a learner rank asks, on every rank of the engine. Returns what it is to be answered."""
    match order:
        case channel.Sample():
            for index, request in zip(order.indices, order.requests, strict=True):
                sampler.add(f"{learner}-{order.ticket}-{index}", request)
        case channel.SequenceLogprobs():
            return Answer(ticket=order.ticket, logprobs=sampler.sequence_logprobs(order.sequences)[0])
        case Compare():
            expected = {
                name: torch.frombuffer(bytearray(raw), dtype=torch.int64) for name, raw in order.checksums.items()
            }
            problems = joined(sampler.group.gather(sampler.compare(expected))), sampler.divergence()
            return Answer(ticket=order.ticket, problem="; ".join(filter(None, problems)) or None)
        case Transfer():
            problem = None
            try:
                sampler.transfer(order)
            except WeightSyncError as error:  # nothing is sampled until an update is whole
                problem = str(error)
            return Answer(ticket=order.ticket, problem=joined(sampler.group.gather(problem)))
        case channel.Statistics():
            recorded = sampler.statistics  # asked for only where the recipe, which every rank has, says so
            return Answer(ticket=order.ticket, statistics=recorded.take() if recorded else [])
    return None


def joined(problems: Sequence[str | None]) -> str | None:
    """Those of an engine's ranks as one."""
    if len(problems) == 1:
        return problems[0]
    return "; ".join(f"rank {rank} of it: {one}" for rank, one in enumerate(problems) if one is not None) or None


def serve(config: Config, place: distributed.Place) -> None:
    """Be a sampling rank until the learners are done. Raises SamplerError when one of them is gone."""
    if place.follows:
        follow(config, place)
        return
    server: Server | None = None

    def stop(number: int, frame: Any) -> None:
        # the learners finish their step first and then say Close; who has none left to wait for leaves at once
        if server is None or not server._lines:
            sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server = Server(config, place)
    try:
        with contextlib.closing(start_engine(config)) as engine:
            server.sampler = engine
            server.run()
    except Exception as error:
        server.wait_for_reason()
        server.fail(error)
        raise
    finally:
        distributed.stop()


def follow(config: Config, place: distributed.Place) -> None:
    """Be another rank of an engine than its first, until that says that the run is over. Raises SamplerError when the
    first is gone."""
    line = channel.connect(place.store, place.replica, config.placement.start_timeout_seconds)
    line.introduce(place.run_rank)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first rank says when it is over, or ends this one by ending itself
    lead = Lead(line, f"sampling rank {place.run_rank - distributed.rank()}")
    try:
        with contextlib.closing(start_engine(config)) as engine:
            while (this := lead.next_round()) is not None:
                engine.begin_round(this.at_seconds)
                for learner, raw in this.orders:
                    obey(engine, learner, channel.decode_order(raw))
                if engine.has_work():
                    engine.step()
    except Exception as error:
        lead.fail(error)
        raise
    finally:
        distributed.stop()


def start_engine(config: Config) -> Replica:
    tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
    return Replica(
        config,
        stop_token_ids=stop_token_ids(config.model.path, tokenizer),
        max_model_len=config.data.max_prompt_tokens + config.rollout.max_tokens,
    )

"""The gloo weight-transfer engine: what is cut, sent and received."""

from __future__ import annotations

import datetime
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlvr import environment

environment.prepare(enforce_eager=True)

from vllm.distributed.weight_transfer.base import ParamMeta  # noqa: E402

from rlvr import buckets  # noqa: E402
from rlvr.buckets import Broadcast, Carrier, Shared, SharedMemory, all_can, cut, map_shared, receive, send  # noqa: E402
from rlvr.direct_load import DirectLoader  # noqa: E402
from rlvr.errors import WeightSyncError  # noqa: E402
from rlvr.weight_transfer import GlooUpdateInfo, GlooWeightTransferEngine, _join, announced  # noqa: E402

pytestmark = pytest.mark.slow

BUCKET = 64


def weights() -> dict[str, torch.Tensor]:
    """Small ones of both types, an odd number of bytes before an aligned type, a scalar, and one of many buckets."""
    draw = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 2, generator=draw),
        "b": torch.randn(5, generator=draw).bfloat16(),
        "c": torch.randn(4, generator=draw),  # begins at byte 34: not a multiple of 4
        "large": torch.randn(7, 11, generator=draw),
        "scalar": torch.tensor(2.5),
        "exactly one bucket": torch.randn(16, generator=draw),
    }


def metadata(named: dict[str, torch.Tensor]) -> list[ParamMeta]:
    return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in named.items()]


def groups(count: int, seconds: float) -> list[Any]:
    """`count` members of one group, in threads of this process."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    made: dict[int, Any] = {}
    timeout = datetime.timedelta(seconds=seconds)
    threads = [
        threading.Thread(target=lambda r=rank: made.__setitem__(r, _join(store, r, count, timeout)))
        for rank in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[rank] for rank in range(count)]


@pytest.mark.parametrize("bucket_bytes", [1, 13, 64, 2**20])
def test_every_byte_is_in_one_bucket_and_buckets_are_small(bucket_bytes: int) -> None:
    meta = metadata(weights())
    sizes = [weight.nbytes for weight in weights().values()]
    buckets = list(cut(meta, bucket_bytes))
    assert max(sum(last - first for _, first, last in bucket) for bucket in buckets) <= bucket_bytes
    covered = [byte for bucket in buckets for index, first, last in bucket for byte in range(first, last)]
    assert covered == [byte for size in sizes for byte in range(size)]


def carriers(made: list[Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Carrier]:
    """One for each member, with small buckets."""
    monkeypatch.setattr(buckets, "SHARED_BYTES", BUCKET)
    monkeypatch.setattr(Shared, "bucket_bytes", BUCKET)
    monkeypatch.setattr(Broadcast, "bucket_bytes", BUCKET)
    if kind == "broadcast":
        return [Broadcast(group) for group in made]
    shared = SharedMemory()
    mapped = [map_shared(shared.path, shared.token) for _ in made[1:]]
    shared.close()
    return [Shared(group, memory) for group, memory in zip(made, [shared.memory, *mapped], strict=True)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["broadcast", "shared"])
def test_two_receivers_get_what_was_sent_bit_for_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, over the same group and memory: an update leaves nothing behind."""
    made = groups(3, 10.0)
    for draw in range(2):
        sent = {name: weight + draw for name, weight in weights().items()}
        sender, *receivers = carriers(made, kind, monkeypatch)
        check_received(sender, receivers, sent)


def check_received(sender: Carrier, receivers: list[Carrier], sent: dict[str, torch.Tensor]) -> None:
    received: dict[int, dict[str, torch.Tensor]] = {}

    def take(number: int, carrier: Carrier) -> None:
        received[number] = {name: weight.clone() for name, weight in receive(carrier, metadata(sent))}

    threads = [threading.Thread(target=take, args=(i, carrier)) for i, carrier in enumerate(receivers)]
    for thread in threads:
        thread.start()
    send(sender, sent.items(), metadata(sent))
    for thread in threads:
        thread.join()
    assert len(received) == len(receivers)
    for got in received.values():
        assert list(got) == list(sent)
        assert all(torch.equal(got[name], sent[name]) and got[name].dtype == sent[name].dtype for name in sent)


class Hoarder(torch.nn.Module):
    """Keeps what it is given, as vLLM's reload does until a layer is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.kept.update(weights)


@pytest.mark.parametrize("kind", ["broadcast", "shared"])
def test_weights_that_vllms_reload_holds_on_to_stay_what_they_were(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are shared buckets, each as large as one."""
    made = groups(2, 10.0)
    sender, receiver = carriers(made, kind, monkeypatch)
    sent = {f"weight {number}": torch.full((16,), float(number)) for number in range(3 * buckets.SHARED_BUCKETS)}
    model = Hoarder()
    engine = object.__new__(GlooWeightTransferEngine)  # vLLM's worker makes it whole
    engine.model = model
    engine._group, engine._memory, engine._is_direct = made[1], getattr(receiver, "memory", None), False
    engine._loader = DirectLoader(model, lambda name: [name], {})
    meta = metadata(sent)
    info = GlooUpdateInfo(names=list(sent), dtype_names=["float32"] * len(sent), shapes=[list(m.shape) for m in meta])
    thread = threading.Thread(target=send, args=(sender, sent.items(), meta))
    thread.start()
    engine.receive_weights(info)
    thread.join()
    assert list(model.kept) == list(sent)
    assert all(torch.equal(model.kept[name], weight) for name, weight in sent.items())


def test_memory_of_another_machine_or_user_is_not_taken(tmp_path: pathlib.Path) -> None:
    shared = SharedMemory()
    assert map_shared(shared.path, shared.token) is not None
    assert map_shared(shared.path, "00" * 16) is None  # a file of the same name, on another machine
    assert map_shared(str(tmp_path / "none"), shared.token) is None
    (tmp_path / "short").write_bytes(b"x")
    assert map_shared(str(tmp_path / "short"), shared.token) is None
    shared.close()
    assert map_shared(shared.path, shared.token) is None


def test_one_process_that_cannot_share_decides_for_all() -> None:
    answers: list[bool] = []
    made = groups(3, 10.0)
    threads = [
        threading.Thread(target=lambda g=g, i=i: answers.append(all_can(g, can=i != 1))) for i, g in enumerate(made)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [False, False, False]


@pytest.mark.parametrize("kind", ["broadcast", "shared"])
def test_a_sender_that_stops_half_way_is_an_error_at_the_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = carriers(groups(2, 1.0), kind, monkeypatch)
    sent = weights()
    caught: list[Exception] = []

    def take() -> None:
        try:
            list(receive(receiver, metadata(sent)))
        except WeightSyncError as error:
            caught.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    first = next(iter(cut(metadata(sent), BUCKET)))
    send(sender, list(sent.items())[: len(first)], metadata(sent)[: len(first)])
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert "stopped half-way: bucket 2 did not arrive" in str(caught[0])


@pytest.mark.parametrize("kind", ["broadcast", "shared"])
def test_a_receiver_that_takes_nothing_is_an_error_at_the_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, _ = carriers(groups(2, 1.0), kind, monkeypatch)
    with pytest.raises(WeightSyncError, match="stopped half-way: a bucket was not taken"):
        send(sender, weights().items(), metadata(weights()))


def test_a_group_that_does_not_meet_is_an_error() -> None:
    with pytest.raises(WeightSyncError, match=r"did not meet for weight transfer within 0\.5 s"):
        _join(dist.HashStore(), 0, 2, datetime.timedelta(seconds=0.5))  # type: ignore[attr-defined]


def changed(pairs: dict[str, torch.Tensor], kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    names = list(pairs)
    if kind == "reordered":
        names[0], names[1] = names[1], names[0]
    if kind == "partial":
        names = names[:3]
    for name in names:
        yield name, pairs[name].double() if kind == "of another dtype" and name == "c" else pairs[name]
    if kind == "too many":
        yield "another", torch.zeros(1)


@pytest.mark.parametrize("kind", ["reordered", "partial", "of another dtype", "too many"])
def test_weights_that_were_not_announced_stop_the_update(kind: str) -> None:
    with pytest.raises(WeightSyncError, match=r"announced"):
        list(announced(changed(weights(), kind), metadata(weights())))
    assert len(list(announced(changed(weights(), "honest"), metadata(weights())))) == len(weights())

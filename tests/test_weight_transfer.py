"""The gloo weight-transfer engine: what is cut, sent and received."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlvr import environment

environment.prepare(enforce_eager=True)

from vllm.distributed.weight_transfer.base import ParamMeta  # noqa: E402

from rlvr.errors import WeightSyncError  # noqa: E402
from rlvr.weight_transfer import _join, announced, cut, receive, send  # noqa: E402

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


def test_two_receivers_get_what_was_sent_bit_for_bit() -> None:
    sender, *receivers = groups(3, 10.0)
    sent = weights()
    received: dict[int, dict[str, torch.Tensor]] = {}
    threads = [
        threading.Thread(target=lambda i=i, g=g: received.__setitem__(i, dict(receive(g, metadata(sent), BUCKET))))
        for i, g in enumerate(receivers)
    ]
    for thread in threads:
        thread.start()
    send(sender, sent.items(), metadata(sent), BUCKET)
    for thread in threads:
        thread.join()
    for got in received.values():
        assert list(got) == list(sent)
        assert all(torch.equal(got[name], sent[name]) and got[name].dtype == sent[name].dtype for name in sent)


def test_a_sender_that_stops_half_way_is_an_error_at_the_deadline() -> None:
    sender, receiver = groups(2, 1.0)
    sent = weights()
    caught: list[Exception] = []

    def take() -> None:
        try:
            list(receive(receiver, metadata(sent), BUCKET))
        except WeightSyncError as error:
            caught.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    first = next(iter(cut(metadata(sent), BUCKET)))
    send(sender, list(sent.items())[: len(first)], metadata(sent)[: len(first)], BUCKET)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert "stopped half-way: bucket 2 did not arrive" in str(caught[0])


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

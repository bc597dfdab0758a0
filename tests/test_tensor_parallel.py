"""Engines of two ranks, really run: what one rank samples, and the proof of sync over vLLM's split layouts."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch.distributed as dist
from test_train import (
    LOSS_CURVE,
    MARK,
    command,
    environment,
    marked,
    recipe,
    run,
    untimed,
    wait_for,
)

from rlvr import channel
from rlvr.channel import Beat
from rlvr.config import Placement
from rlvr.followers import Followers, behind
from rlvr.tensor_parallel import Trace

pytestmark = pytest.mark.slow

CASES = ("Llama", "Llama tied", "Qwen2 tied", "Qwen2", "Phi3")
WORKER = pathlib.Path(__file__).parent / "tensor_parallel_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    paths = os.pathsep.join([str(WORKER.parent.parent), str(WORKER.parent)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(WORKER), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_split_weights_are_the_learners_after_every_update(ranks: list[dict[str, Any]], case: str) -> None:
    for found in ranks:
        assert max(found[case]["canaries"]) < 1e-5
        assert max(found[case]["contract"]) < 1e-4  # the largest; of the canaries, the mean
        assert found[case]["stale"] > 0.01  # before the next update: so the weights have really moved


def test_two_ranks_sample_what_one_samples(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        same, difference = found["Llama"]["one and two ranks"]
        assert same
        assert difference < 2e-5


def test_a_change_of_one_ranks_part_is_found_and_what_it_does_not_hold_is_not_reported(
    ranks: list[dict[str, Any]],
) -> None:
    """The second rank loaded other weights than the first. Both hear of it."""
    for found in ranks:
        said = found["Llama"]["tampered"]
        assert said["a column of the first rank"] is None
        assert said["a row of the first rank"] is None
        # row checksums of columns add up over the ranks, so each of them sees the sum
        assert (
            "rank 0: 1 tensors differ from the learner's, e.g. model.layers.1.mlp.down_proj.weight; rank 1:"
            in (said["a column of the second rank"])
        )
        for kind, name in (
            ("a row of the second rank", "model.layers.0.self_attn.qkv_proj.weight"),
            ("a row of both ranks", "model.layers.0.self_attn.qkv_proj.weight"),  # the second rank's copy of it
            ("a token of the second rank", "model.embed_tokens.weight"),
            ("a head's row of the second rank", "lm_head.weight"),
        ):
            assert f": rank 1: 1 tensors differ from the learner's, e.g. {name}." in said[kind], kind
        assert (
            "rank 0: 1 tensors differ from the learner's, e.g. model.layers.1.self_attn.o_proj"
            in (said["a missing weight"])
        )


def test_schedulers_that_fell_out_of_step_are_found(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "sampled different tokens for the same requests" in found["Llama"]["fallen out of step"]
        assert found["Llama"]["running digests"]["the same"] is None
        assert "their schedulers fell out of step" in found["Llama"]["running digests"]["another token"]


def test_a_running_digest_tells_tokens_requests_and_steps_apart_and_not_the_order_within_a_step() -> None:
    def digest(*steps: list[tuple[str, tuple[int, ...]]]) -> str:
        trace = Trace()
        for ended in steps:
            trace.fold(ended)
        return trace.digest()

    one, two = ("0-1-0", (5, 6)), ("0-1-1", (7,))
    assert digest([one, two]) == digest([two, one]) == digest([], [one, two], [])
    others = ([one], [two]), ([two], [one]), ([one],), ([("0-1-0", (5, 7)), two],), ([("0-2-0", (5, 6)), two],)
    assert len({digest([one, two]), *(digest(*steps) for steps in others)}) == 6


def test_a_rank_that_waits_for_its_engine_is_seen_to(ranks: list[dict[str, Any]]) -> None:
    """The first rank, by a thread of it, while the second one keeps it waiting."""
    assert ranks[0]["Llama"]["seen waiting"] == {"in a step": True, "in a gathering": True, "at work": False}


def test_ranks_and_models_that_do_not_come_out_even_are_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "tensor_parallel_size=3 does not divide the 2 ranks that sample" in found["three of two ranks"]
        assert "tensor_parallel_size=2 does not divide num_attention_heads=3: set it to 1" in found["indivisible"]


def curve_is_that_of_one_rank(run_dir: pathlib.Path, steps: int) -> None:
    """To rounding: split products add up in another order, by about 1e-7 of a weight's output (tests/test_train.py
    has the curve)."""
    committed = json.loads(LOSS_CURVE.read_text())["steps"]
    lines = [line for line in untimed(run_dir) if line["step"]][:steps]
    assert len(lines) == steps
    for line, expected in zip(lines, committed, strict=False):
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_a_colocated_run_whose_two_ranks_sample_together_learns_what_one_rank_learns(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run_dir = tmp_path / "together"
    run(recipe(task, run_dir), "sampler.tensor_parallel_size=2", "training.steps=2", ranks=2)
    curve_is_that_of_one_rank(run_dir, 2)


def test_an_engine_of_two_sampling_ranks_is_fed_by_a_learner_and_a_killed_one_of_them_is_named(
    task: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run_dir = tmp_path / "apart"
    apart = ("placement.mode=disaggregated", "placement.learner_ranks=1", "placement.sampler_ranks=2")
    process = subprocess.Popen(
        command(recipe(task, run_dir), *apart, "sampler.tensor_parallel_size=2", "training.steps=500", ranks=3),
        env=environment() | {MARK: str(run_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (run_dir / "samples" / "step_000003.jsonl").exists(), 240)
        os.kill(follower := rank_of(2, str(run_dir)), signal.SIGSTOP)
        time.sleep(3)  # enough for the engine's first rank to wait for it inside a step
        os.kill(follower, signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    curve_is_that_of_one_rank(run_dir, 2)
    assert re.search(  # in the learner's words or, where torchrun ends that one first, the sampling rank's own
        rf"SamplerError: sampling rank 2 \(pid {follower} on \S+\) is gone: its process ended without a word; "
        "it holds a part of this rank's engine",
        said,
    ), said[-3000:]
    wait_for(lambda: not marked(str(run_dir)))


@pytest.mark.parametrize(
    ("first", "shared", "rounds_and_waits", "expected"),
    [
        ((2, True), 3, {2: (2, False)}, {2}),  # the first rank waits in the third round for what 2 does not do
        ((2, False), 3, {2: (2, False)}, set()),  # both are at work in it
        ((2, False), 3, {2: (2, True)}, set()),  # it is the first rank that is waited for
        ((3, False), 3, {2: (3, False)}, set()),  # no orders have come
        ((3, False), 3, {2: (2, False), 3: (3, False)}, {2}),  # the first rank is idle, and 2 not yet there
        ((2, True), 3, {2: (2, True), 3: (2, False)}, {3}),  # 2 waits for 3 as well
        ((3, False), 4, {2: (2, True), 3: (2, False)}, {3}),
        ((2, True), 3, {2: (2, True), 3: (3, False)}, {2}),  # in different collectives
    ],
)
def test_which_follower_holds_up_its_engine(
    first: tuple[int, bool], shared: int, rounds_and_waits: dict[int, tuple[int, bool]], expected: set[int]
) -> None:
    told = {rank: Beat(rounds=rounds, waits=waits, line="") for rank, (rounds, waits) in rounds_and_waits.items()}
    assert behind(Beat(rounds=first[0], waits=first[1], line=""), shared, told) == expected


def test_a_follower_that_has_left_when_the_run_is_over_is_no_fault() -> None:
    near, far = multiprocessing.Pipe()
    followers = Followers(Placement(), lambda error: None)
    followers.add(2, channel.Line(near, 1.0))
    followers.dismiss()
    assert isinstance(channel.decode_order(far.recv_bytes()), channel.Close)
    far.close()
    followers.dismiss()


FIRST_RANK = """
import sys, time, torch.distributed as dist
from rlvr import channel, followers
from rlvr.config import Placement
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False)
door = channel.listen(store, 0, backlog=1)
line = channel.Line(door.accept(), 60.0)
line.receive()
def tell(error):
    print(f"told: {error}", flush=True)
    raise ZeroDivisionError  # which must not keep this rank from ending
own = followers.Followers(Placement(timeout_seconds=float(sys.argv[2])), tell)
own.add(2, line)
own.share([])
own.finish_round()
time.sleep(60)
"""
FOLLOWER = """
import sys, time, torch.distributed as dist
from rlvr import channel, followers
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False)
line = channel.connect(store, 0, 60.0)
line.introduce(2)
lead = followers.Lead(line, "sampling rank 1")
lead.next_round()
time.sleep(120)  # in the middle of the round, while a thread goes on to give signs
"""
SAYS: dict[str, tuple[channel.Report | None, str]] = {
    "is silent": (None, "hangs: no sign of life for 1 s (limit 1 s, half of placement.timeout_seconds)"),
    "fails": (channel.Failed(error="OSError: full"), "failed: OSError: full"),
}


@pytest.mark.parametrize("what", SAYS)
def test_a_follower_that_is_silent_or_fails_ends_its_engines_first_rank_which_tells_why(what: str) -> None:
    report, fault = SAYS[what]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    first = python(FIRST_RANK, str(store.port), "2.0")
    line = channel.connect(store, 0, 10.0)
    line.introduce(2)
    line.send(channel.Ready(host="here", pid=7))
    if report is not None:
        line.send(report)
    told, printed = first.communicate(timeout=60)
    assert first.returncode == 2
    expected = f"sampling rank 2 (pid 7 on here) {fault}; it holds a part of this rank's engine"
    assert told == f"told: {expected}\n"
    assert f"rlvr: SamplerError: {expected}" in printed
    assert "ZeroDivisionError" in printed


def test_a_follower_whose_main_thread_hangs_is_named_with_the_line_where_it_is() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with python(FIRST_RANK, str(store.port), "8.0") as first, python(FOLLOWER, str(store.port)) as follower:
        try:
            told, _ = first.communicate(timeout=60)
        finally:
            first.kill()
            follower.kill()
    assert first.returncode == 2
    assert re.fullmatch(
        rf"told: sampling rank 2 \(pid {follower.pid} on \S+\) hangs: its engine has waited for it for \d s "
        r"\(limit 4 s, half of placement.timeout_seconds\); it is at <string>:9 <module>, the engine's first rank "
        r"is at <string>:16 <module>; it holds a part of this rank's engine\n",
        told,
    ), told


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rank_of(rank: int, mark: str) -> int:
    """The process that torchrun started as this rank of the run."""
    for pid in marked(mark):
        environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environ and b"rlvr" in words:
            return pid
    raise AssertionError(f"no process is rank {rank}")

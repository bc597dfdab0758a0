"""A learner in this process and two vLLM engines in others: weights, proof, sampling, and what happens when one fails.

The last tests stop the engines, in order: the file is one story.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist

from rlvr import environment

environment.prepare(enforce_eager=True)

from sampler_worker import FAILS_AT_START, FATAL_TOKENS, FREE_TOKENS, STUCK_TOKENS, small_buckets  # noqa: E402

from rlvr import distributed  # noqa: E402
from rlvr.channel import Transfer  # noqa: E402
from rlvr.chat import load_tokenizer  # noqa: E402
from rlvr.colocated import Request, Sampled  # noqa: E402
from rlvr.config import Config  # noqa: E402
from rlvr.disaggregated import RemoteSampler  # noqa: E402
from rlvr.errors import SamplerError, WeightSyncError  # noqa: E402
from rlvr.learner import Learner  # noqa: E402
from rlvr.packing import pack  # noqa: E402
from rlvr.weight_sync import Weights, WeightSync, make_canaries  # noqa: E402
from sft_dpo import quickstart_task  # noqa: E402

pytestmark = pytest.mark.slow

WORKER = pathlib.Path(__file__).parent / "sampler_worker.py"
TIMEOUT_SECONDS = 5.0


class Run:
    """One learner rank, two sampling ranks."""

    def __init__(self, folder: pathlib.Path) -> None:
        quickstart_task.write(folder, seed=1, demonstrations=200, train=4, held_out=4, flawed_share=0.5)
        self.config = Config.model_validate(
            {
                "run_dir": str(folder / "run"),
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "data": {"train": str(folder / "train.jsonl"), "max_prompt_tokens": 48},
                "rollout": {"prompts_per_step": 4, "max_tokens": 16, "temperature": 0.7},
                "sampler": {"kv_cache_mib": 32, "block_size": 32, "enforce_eager": True, "statistics": True},
                "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
                "learner": {"zero_stage": 0},
                "training": {"steps": 1},
                "algorithm": {"importance_cap": 2.0},
                "placement": {
                    "mode": "disaggregated",
                    "learner_ranks": 1,
                    "sampler_ranks": 2,
                    "timeout_seconds": TIMEOUT_SECONDS,
                },
                "asynchronous": {"max_staleness": 1, "recompute_kv_cache": True},
            }
        )
        config_path = folder / "config.json"
        config_path.write_text(self.config.model_dump_json())
        distributed.start()
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(config_path), str(replica), str(store.port)], env=environ()
            )
            for replica in range(2)
        ]
        tokenizer = load_tokenizer(self.config.model.path, None)
        self.learner = Learner(self.config, total_updates=10, end_token_ids=[tokenizer.eos_token_id])
        place = distributed.Place(samples=False, replica=-1, run_rank=0, store=store)
        self.sampler = RemoteSampler(self.config, place)
        self.sync = WeightSync(self.learner, self.sampler, make_canaries(512, count=4, length=16, seed=1))

    def change_weights(self) -> None:
        generator = torch.Generator().manual_seed(self.sampler.policy_version + 10)
        with torch.no_grad():
            for parameter in self.learner.policy.engine.module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    small_buckets()
    made = Run(tmp_path_factory.mktemp("run"))
    made.sync.publish()
    yield made
    made.sampler.close()
    for process in made.processes:
        process.kill()
        process.wait()


def requests(count: int, *, max_tokens: int = 8) -> list[Request]:
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 512, (count, 9), generator=draw).tolist()
    return [Request(token_ids=p, seed=i, temperature=0.7, max_tokens=max_tokens) for i, p in enumerate(prompts)]


def sample(run: Run, asked: list[Request]) -> list[Sampled]:
    found: dict[int, Sampled] = {}
    run.sampler.generate(asked, found.__setitem__)
    return [found[index] for index in range(len(asked))]


def largest_difference(run: Run, asked: list[Request], answers: list[Sampled]) -> float:
    """Between the sampled log-probs and the learner's."""
    rows = pack([r.token_ids for r in asked], [a.token_ids for a in answers], max_tokens=128)
    sampled = torch.tensor([p for a in answers for p in a.logprobs])
    learned = torch.zeros_like(sampled)
    with run.learner.policy.inference():
        for row in rows:
            learned[row.token_index] = run.learner.policy(row, 0.7)[0]
    return (sampled - learned).abs().max().item()


def test_every_engine_holds_the_learners_weights_and_samples_with_them(run: Run) -> None:
    run.change_weights()
    report = run.sync.publish()
    assert report.canary_difference < 1e-5
    assert report.bytes_sent == sum(p.nbytes for p in run.learner.policy.engine.module.parameters())
    asked = requests(12)
    answers = sample(run, asked)
    assert largest_difference(run, asked, answers) < 2e-5
    assert {a.policy_version for a in answers} == {run.sampler.policy_version}
    assert sample(run, asked) == answers  # which engine samples what does not depend on who is faster
    assert sample(run, asked[5:7])[1] == answers[6]  # nor the sample on which engine it is


def test_the_engines_statistics_come_to_the_learner_without_the_canaries(run: Run) -> None:
    assert run.sampler.statistics is not None
    run.sampler.statistics.clear()
    run.sync.publish()
    first, second = run.sampler.statistics.take()
    assert (first.steps, second.steps) == (0, 0)  # the canaries
    sample(run, requests(12))
    first, second = run.sampler.statistics.take()
    # 12 prompts dealt out in turn; end tokens may end one before its 8 tokens
    assert [len(one.finished) for one in (first, second)] == [6, 6]
    assert all(1 <= done.tokens <= 8 and done.seconds > 0 for one in (first, second) for done in one.finished)
    assert len(first.first_token_seconds) == 6
    sample(run, requests(12, max_tokens=1))
    metrics = run.sampler.statistics.metrics()
    assert metrics.keys() == first.summary().keys()
    assert metrics["sampler/steps"] == 1.0  # of each engine: 6 prompts are one step, which is a token of each
    assert metrics["sampler/occupancy"] == pytest.approx(6 / run.config.sampler.max_num_seqs)


def corrupt_one_element(weights: Weights) -> Weights:
    for name, weight in weights:
        if name.endswith("layers.2.mlp.up_proj.weight"):
            weight = weight.clone()
            weight[3, 5] += 1e-6
        yield name, weight


def reorder_rows(weights: Weights) -> Weights:
    for name, weight in weights:
        yield name, weight.flip(0) if name.endswith("layers.3.mlp.down_proj.weight") else weight


def swap_two_of_one_shape(weights: Weights) -> Weights:
    """Each under the other's name: what was announced is kept to, and the tensors are wrong."""
    listed = list(weights)
    places = [i for i, (name, _) in enumerate(listed) if name.endswith("mlp.up_proj.weight")][:2]
    tensors = [listed[i][1].clone() for i in places]
    for i, tensor in zip(places, reversed(tensors), strict=True):
        listed[i] = (listed[i][0], tensor)
    yield from listed


def leave_one_out(weights: Weights) -> Weights:
    yield from (pair for pair in weights if not pair[0].endswith("layers.1.self_attn.v_proj.weight"))


def stop_half_way(weights: Weights) -> Weights:
    listed = list(weights)
    yield from listed[: len(listed) // 2]


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (corrupt_one_element, "sampling rank 1 .*1 tensors differ.*sampling rank 2 .*1 tensors differ"),
        (reorder_rows, "tensors differ from the learner's, e.g. model.layers.3.mlp.down_proj"),
        (swap_two_of_one_shape, "2 tensors differ"),
        (leave_one_out, "was announced"),
        (stop_half_way, "this update ends after"),
    ],
)
def test_a_tampered_update_stops_the_run(run: Run, tamper: Callable[[Weights], Weights], fault: str) -> None:
    run.change_weights()
    run.sync.after_gather = tamper
    with pytest.raises(WeightSyncError, match=fault):
        run.sync.publish()
    run.sync.after_gather = lambda weights: weights
    assert run.sync.publish().canary_difference < 1e-5


def test_a_stale_update_stops_the_run(run: Run) -> None:
    stale = {name: weight.clone() for name, weight in run.learner.policy.named_weights()}
    run.change_weights()
    run.sync.after_gather = lambda weights: ((name, stale[name]) for name, _ in weights)
    with pytest.raises(WeightSyncError, match="tensors differ"):
        run.sync.publish()
    run.sync.after_gather = lambda weights: weights
    run.sync.publish()


def test_an_update_out_of_turn_is_refused(run: Run) -> None:
    run.sampler.policy_version -= 1  # as if an update had been sent twice, or come late
    with pytest.raises(WeightSyncError, match="came out of turn"):
        run.sync.publish()
    run.sampler.policy_version += 1
    run.sync.publish()


def test_sampling_goes_on_across_an_update_and_each_token_is_stamped(run: Run) -> None:
    """16 tokens of 40 samples: the update arrives while they are being sampled."""
    found: dict[int, Sampled] = {}
    asked = requests(40, max_tokens=16)
    before = run.sampler.policy_version
    batch = run.sampler.submit(asked, found.__setitem__)
    run.change_weights()
    report = run.sync.publish()
    assert report.canary_difference < 1e-5  # the canaries pass through engines that are at work
    run.sampler.wait(batch)
    assert len(found) == 40
    versions = {a.policy_version for a in found.values()} | {v for a in found.values() for _, v in a.version_changes}
    assert versions <= {before, before + 1}
    assert any(a.version_changes for a in found.values()), "no sample was under way when the weights came"
    for index, answer in found.items():
        if answer.version_changes:
            (first, _), *_ = answer.version_changes
            tail = pack([asked[index].token_ids], [answer.token_ids], max_tokens=128)
            with run.learner.policy.inference():
                learned = run.learner.policy(tail[0], 0.7)[0]
            difference = (learned - torch.tensor(answer.logprobs)).abs()
            # keys and values were computed again, so the log-probs from there on are the new weights' own
            assert difference[first:].max() < 2e-5
            assert difference[:first].max() > 1e-3


def wait_for_the_rest(run: Run) -> None:
    """After an error: the engines work again, and what was asked comes."""
    for batch in list(run.sampler._batches.values()):
        run.sampler.wait(batch)
    assert not run.sampler._batches


def test_a_stopped_sampling_rank_is_named_at_the_deadline_and_may_come_back(run: Run) -> None:
    process = run.processes[1]
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SamplerError, match=rf"sampling rank 2 \(pid {process.pid} .*no sign of life for 5 s"):
            sample(run, requests(12))
    finally:
        process.send_signal(signal.SIGCONT)
    wait_for_the_rest(run)


def test_an_engine_that_takes_steps_and_samples_nothing_is_named_at_the_deadline(run: Run) -> None:
    with pytest.raises(SamplerError, match=r"sampling rank 1 .*has sampled nothing: no sign of life for 5 s"):
        sample(run, requests(1, max_tokens=STUCK_TOKENS))
    sample(run, requests(1, max_tokens=FREE_TOKENS))
    wait_for_the_rest(run)


def test_a_sampling_rank_that_stops_in_the_middle_of_an_update_is_named_at_the_deadline(run: Run) -> None:
    process = run.processes[1]

    def stop_the_rank_half_way(weights: Weights) -> Weights:
        for number, pair in enumerate(weights):
            if number == 5:
                process.send_signal(signal.SIGSTOP)
            yield pair

    run.change_weights()
    run.sync.after_gather = stop_the_rank_half_way
    try:
        with pytest.raises(WeightSyncError, match=rf"sampling rank 2 \(pid {process.pid} .* has not answered: no sign"):
            run.sync.publish()
    finally:
        process.send_signal(signal.SIGCONT)
    run.sync.after_gather = lambda weights: weights
    assert run.sync.publish().canary_difference < 1e-5


def test_an_exception_in_vllm_is_told_in_its_own_words(run: Run) -> None:
    asked = [*requests(1), *requests(2, max_tokens=FATAL_TOKENS)[1:]]  # the second goes to the second engine
    with pytest.raises(SamplerError, match=r"sampling rank 2 .* failed: RuntimeError: CUDA error: an illegal memory"):
        sample(run, asked)
    assert run.processes[1].wait(timeout=20) != 0


def test_a_sampling_rank_whose_learner_is_silent_in_the_middle_of_an_update_ends(run: Run) -> None:
    version = run.sampler.policy_version + 1
    run.sampler._send(0, Transfer(ticket=run.sampler.next_ticket(), call="start", version=version))
    assert run.processes[0].wait(timeout=60) != 0
    said = []
    for _ in range(50):  # the rank that failed in the test before is gone too
        with pytest.raises(SamplerError) as caught:
            sample(run, requests(2))
        said.append(str(caught.value))
    assert any("learner ranks [0] were silent for 10 s, in the middle of a weight update" in one for one in said), said
    assert any("sampling rank 2" in one and "is gone: its process ended without a word" in one for one in said)


READY = """
import sys, time, torch.distributed as dist
from rlvr import channel
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False)
door = channel.listen(store, 0, backlog=1)
line = channel.Line(door.accept(), 60.0)
line.receive()
line.send(channel.Ready(host="here", pid=1))
time.sleep(600)
"""


def alone(folder: pathlib.Path, *, start_timeout_seconds: float) -> Config:
    """A run with one sampling rank, that never trains."""
    return Config.model_validate(
        {
            "run_dir": str(folder / "run"),
            "model": {"path": str(folder)},
            "data": {"train": "rows.jsonl"},
            "rollout": {"prompts_per_step": 1},
            "training": {"steps": 1},
            "placement": {
                "mode": "disaggregated",
                "learner_ranks": 1,
                "sampler_ranks": 1,
                "start_timeout_seconds": start_timeout_seconds,
            },
        }
    )


def own_store() -> distributed.Place:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    return distributed.Place(samples=False, replica=-1, run_rank=0, store=store)


def environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_sampling_rank_that_does_not_start_is_named_at_the_deadline(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SamplerError, match=r"sampling rank 1 has not started: .*see placement.start_timeout_seconds"):
        RemoteSampler(alone(tmp_path, start_timeout_seconds=0.5), own_store())


def test_an_engine_that_cannot_start_is_told_in_its_own_words(run: Run, tmp_path: pathlib.Path) -> None:
    place = own_store()
    config_path = tmp_path / "config.json"
    config_path.write_text(run.config.model_dump_json())
    command = [sys.executable, str(WORKER), str(config_path), "0", str(place.store.port)]
    with subprocess.Popen(command, env=environ() | {FAILS_AT_START: "1"}) as process:
        with pytest.raises(SamplerError, match="sampling rank 1 failed: ValueError: No available memory for the cache"):
            RemoteSampler(alone(tmp_path, start_timeout_seconds=60.0), place)
        assert process.wait(timeout=20) != 0


def test_a_killed_sampling_rank_is_named_at_once(tmp_path: pathlib.Path) -> None:
    place = own_store()
    with subprocess.Popen([sys.executable, "-c", READY, str(place.store.port)], env=environ()) as process:
        sampler = RemoteSampler(alone(tmp_path, start_timeout_seconds=60.0), place)
        batch = sampler.submit(requests(1), lambda index, sampled: None)
        process.kill()
        with pytest.raises(SamplerError, match=r"sampling rank 1 \(pid 1 on here\) is gone: its process ended without"):
            sampler.wait(batch)

"""The rollout benchmark, run for real on a tiny model; its arithmetic; vLLM's statistics as it records them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.rollout import parse, run
from benchmarks.rollout_plot import plot
from benchmarks.rollout_sweep import choices_of, recipe_lines, search_all, search_each
from rlvr import recipe
from rlvr.errors import ConfigError
from rlvr.sampler_statistics import SamplerStatistics

APART = ["placement.mode=disaggregated", "placement.learner_ranks=1", "placement.sampler_ranks=1"]


def benchmark(repository: pathlib.Path, folder: pathlib.Path, start: list[str], words: list[str]) -> dict:
    output = folder / "result.json"
    common = ["launch/recipes/quickstart.toml", "--shape", "1m", "--lengths", "gsm8k", "--output", str(output)]
    small = ["rollout.prompts_per_step=4", "rollout.samples_per_prompt=2", "algorithm.minibatches=1"]
    done = subprocess.run(
        [sys.executable, *start, "-m", "benchmarks.rollout", *common, *small, *words],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def result(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("rollout")
    return benchmark(repository, folder, [], ["--repeats", "2", "--against", "raw", "learner"])


@pytest.mark.slow
def test_it_reports_every_phase_and_the_same_tokens_as_vllm_alone(result: dict, tmp_path: pathlib.Path) -> None:
    for phase in ("generate", "score", "sleep", "update", "wake", "sync", "proof", "raw_generate", "step", "startup"):
        assert result["seconds"][phase]["repeats"] == (1 if phase == "startup" else 2), phase
    phases = ("generate", "score", "sleep", "update", "wake", "sync", "proof")
    step = [sum(result["series"][phase][i] for phase in phases) for i in (0, 1)]
    assert result["series"]["step"] == pytest.approx(step, rel=1e-4)
    assert result["requests"] == 8
    assert result["tokens_per_second"]["raw vLLM"]["median"] > 0
    assert result["tokens"] > 8 * 30
    assert result["sampler"]["sampler/steps"] > 60  # one a token of the longest request
    assert 0 < result["sampler"]["sampler/occupancy"] <= 1
    assert 0 < result["sampler"]["sampler/kv_cache_usage_max"] < 1
    assert 0 < result["mfu"] < 1
    assert result["sync_bytes"] > 4e6
    lengths = [row["tokens"] for row in result["latency_by_length"]]
    assert lengths == sorted(lengths)
    assert len(plot(result)) > 10_000


@pytest.mark.slow
def test_a_sampling_ranks_work_and_the_weights_on_their_way_to_it_are_measured(
    repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = benchmark(repository, tmp_path, torchrun, ["--repeats", "1", *APART])
    assert (found["placement"], found["ranks"], found["sampling_ranks"]) == ("disaggregated", 2, 1)
    assert found["tokens_per_second"].keys() == {"ours"}
    assert found["tokens_per_second_per_sampling_rank"]["ours"]["median"] > 0
    assert found["sampler"]["sampler/steps"] > 60
    assert sum(found["seconds"][phase]["median"] for phase in ("generate", "sync", "proof")) > 0
    assert found["sync_gb_per_second"] > 0


def test_vllm_alone_is_not_asked_for_where_it_is_in_another_process() -> None:
    words = ["launch/recipes/quickstart.toml", "--against", "raw", "--shape", "1m", *APART]
    with pytest.raises(ConfigError, match="--against raw and floor"):
        run(parse(words))


def test_a_sweep_is_every_combination_and_ends_as_recipe_lines(
    repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    choices = choices_of(["sampler.max_num_seqs=64,256", "sampler.enforce_eager=true,false"])
    chosen = [one["options"] for one in search_all(choices, lambda options: {"options": options})]
    assert len(chosen) == 4
    base = repository / "launch" / "recipes" / "quickstart.toml"
    made = tmp_path / "made.toml"
    made.write_text(f'extends = "{base}"\n' + recipe_lines(chosen[1]))
    config = recipe.load(str(made), [])
    assert (config.sampler.max_num_seqs, config.sampler.enforce_eager) == (64, False)


def test_a_search_of_each_option_keeps_the_fastest_so_far_and_passes_over_what_fails() -> None:
    """A speed of 10 a + b, where a = 3 does not run and b = 2 runs only with a = 2."""
    speeds = {("a=1", "b=1"): 11.0, ("a=2", "b=1"): 21.0, ("a=2", "b=2"): 22.0, ("a=2", "b=0"): 20.0}

    def measure(options: list[str]) -> dict:
        speed = speeds.get(tuple(options))
        return {"options": options} | ({"failed": "refused"} if speed is None else {"tokens_per_second": speed})

    measured = search_each([["a=1", "a=2", "a=3"], ["b=1", "b=2", "b=0"]], measure)
    tried = [tuple(one["options"]) for one in measured]
    assert tried == [("a=1", "b=1"), ("a=2", "b=1"), ("a=3", "b=1"), ("a=2", "b=2"), ("a=2", "b=0")]
    assert [one["options"] for one in measured if "failed" in one] == [["a=3", "b=1"]]


def test_a_sweep_of_something_else_than_speed_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        choices_of(["optimizer.learning_rate=1,2"])


def test_lengths_are_named_or_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["r.toml", "a.b=1", "--lengths", "64"]).overrides == ["a.b=1"]
    with pytest.raises(SystemExit):
        parse(["r.toml", "--lengths", "long"])
    assert "--lengths is free, gsm8k or a number" in capsys.readouterr().err


def test_statistics_add_up_over_engine_steps() -> None:
    statistics = SamplerStatistics(max_num_seqs=4)
    cache = SimpleNamespace(queries=100, hits=25)
    for running, usage in ((4, 0.5), (2, 0.1)):
        scheduler = SimpleNamespace(kv_cache_usage=usage, prefix_cache_stats=cache)
        finished = [SimpleNamespace(num_prompt_tokens=5, num_generation_tokens=7, e2e_latency=0.2)]
        iteration = SimpleNamespace(
            num_generation_tokens=running,
            num_preempted_reqs=1,
            time_to_first_tokens_iter=[0.01 * running],
            finished_requests=finished,
        )
        statistics.record(scheduler, iteration, mm_cache_stats=None)
    summary = statistics.summary()
    assert summary["sampler/occupancy"] == pytest.approx((4 + 2) / 2 / 4)
    assert summary["sampler/kv_cache_usage"] == pytest.approx(0.3)
    assert summary["sampler/kv_cache_usage_max"] == 0.5
    assert summary["sampler/prefix_cache_hits"] == pytest.approx(50 / 200)
    assert summary["sampler/preemptions"] == 2
    assert summary["sampler/first_token_seconds"] == pytest.approx(0.03)
    assert [one.tokens for one in statistics.finished] == [7, 7]
    statistics.clear()
    assert (statistics.steps, statistics.finished, statistics.max_num_seqs) == (0, [], 4)

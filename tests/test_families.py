"""Every family beside a real vLLM engine: the log-prob contract, a PPO step, and a sync that is proved."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from tiny import FAMILIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("families")
    paths = os.pathsep.join([str(repository), str(repository / "tests")])
    done = subprocess.run(
        [sys.executable, str(repository / "tests" / "families_worker.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_this_family_trains_a_step_and_reaches_the_sampler(family: str, results: dict[str, Any]) -> None:
    found = results[family]
    before, stale, after = found["contract"]  # largest difference of log-probabilities of a token just sampled, nats
    assert before < 1e-4
    assert stale > 0.05  # the step moved the learner far, and the sampler's old weights are told apart
    assert after < 1e-4
    assert max(found["canaries"]) < 1e-5
    assert found["gradient_norm"] > 0.05
    assert found["weights that did not move"] == []


@pytest.mark.parametrize("family", ["Qwen2", "Phi3"])
def test_merged_adapters_reach_the_sampler(family: str, results: dict[str, Any]) -> None:
    found = results[f"{family} with adapters"]
    before, stale, after = found["contract"]
    assert before < 1e-4
    assert stale > 0.05  # the sampler with the old weights is told apart, so that after the sync it has really moved
    assert after < 1e-4
    assert max(found["canaries"]) < 1e-5
    frozen = ("embed_tokens.weight", "norm.weight", "layernorm.weight", "lm_head.weight", ".bias")
    assert found["weights that did not move"]
    assert all(name.endswith(frozen) for name in found["weights that did not move"])


def test_few_families_go_through_the_transformers_back_end_of_vllm(results: dict[str, Any]) -> None:
    """vLLM 0.32 has no class of its own for these: the sampler is slower there, and the proof of sync is the same."""
    through = {family for family, found in results.items() if found["vllm"].startswith("Transformers")}
    assert through == {"Olmo2", "Olmo3", "Phi"}

"""What only a CUDA device can show: the quickstart in bfloat16, the sampler asleep, attention by kernels of GPUs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from tiny import EVERY_FAMILY, largest_difference, make_model, recipe, sequences, trajectories, weights

from rlvr import attention, distributed
from rlvr.engine import Engine
from rlvr.learner import Learner
from rlvr.model import load_policy
from rlvr.packing import pack
from sft_dpo import quickstart_task


@pytest.mark.gpu
@pytest.mark.slow
def test_the_quickstart_runs_on_a_gpu_in_bfloat16(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    overrides = [
        "training.steps=3",
        "model.dtype=bfloat16",
        "learner.zero_stage=1",
        "sampler.gpu_memory_utilization=0.3",
    ]
    done = subprocess.run(
        ["bash", "launch/quickstart.sh", *overrides],
        cwd=repository,
        env=os.environ | {"RUN": str(run), "DEMONSTRATIONS": "2000"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = json.loads((run / "rlvr" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    assert last["policy/sampler_difference"] < 0.05
    assert last["sync/canary_difference"] < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("back_end", ["flash_attention_2", "packed_varlen", "packed_sdpa"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_packed_log_probabilities_on_a_gpu_equal_one_by_one(
    family: str, back_end: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if back_end == "flash_attention_2" and not attention._has_flash_attn():
        pytest.skip("flash-attn is not installed")
    monkeypatch.setattr("rlvr.model.attention_name", lambda dtype: back_end)
    # these kernels take heads of a multiple of 8
    wider = {"head_dim": 32} if "head_dim" in EVERY_FAMILY[family] else {"hidden_size": 128, "initializer_range": 0.1}
    path = make_model(tmp_path, family, **wider)
    policy = load_policy(path, dtype="bfloat16", gradient_checkpointing=False, logits_chunk_tokens=1024).cuda()
    pairs = sequences(5, 7, longest=24)

    def logprobs(most: int) -> torch.Tensor:
        rows = pack([p for p, _ in pairs], [c for _, c in pairs], max_tokens=most, device="cuda")
        with torch.no_grad():
            flat = torch.cat([policy(row, 0.7)[0] for row in rows])
        return flat[torch.cat([row.token_index for row in rows]).argsort()]

    # the same weights and kernels; only the order of bfloat16 sums may differ
    assert (logprobs(10_000) - logprobs(1)).abs().mean().item() < 0.02


def state_devices(engine: Engine) -> set[str]:
    """Where AdamW's moments are, and the float32 weights that it updates."""
    adamw = engine.engine.basic_optimizer
    moments = [value for state in adamw.state.values() for name, value in state.items() if name != "step"]
    masters = [parameter for group in adamw.param_groups for parameter in group["params"]]
    return {tensor.device.type for tensor in [*moments, *masters]}


@pytest.mark.gpu
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_what_is_offloaded_lies_in_cpu_memory_and_the_update_is_the_same(
    zero_stage: int, tmp_path: pathlib.Path
) -> None:
    distributed.start()
    path = make_model(tmp_path, hidden_size=512, intermediate_size=512)  # over 100,000 numbers: ZeRO-3 splits those
    offloads = {"learner.offload_optimizer": True, "learner.offload_reference": True}
    if zero_stage == 3:
        offloads["learner.offload_parameters"] = True
    reached = []
    for options, expected in (({}, "cuda"), (offloads, "cpu")):
        learner = Learner(recipe(path, {"learner.zero_stage": zero_stage, **options}), total_updates=2)
        batch = trajectories()
        for step in range(2):
            targets, _ = learner.targets(batch)
            learner.update(batch, targets, step=step)
        assert state_devices(learner.policy) == {expected}
        if zero_stage == 3:
            parts = learner.policy.engine.module.transformer.model.layers.parameters()
            assert {part.ds_tensor.device.type for part in parts if part.numel() == 0} == {expected}
        if options:
            parts = learner.reference.module.transformer.model.layers.parameters()
            assert {part.ds_tensor.device.type for part in parts if part.numel() == 0} == {"cpu"}
        reached.append(weights(learner.policy))
    assert largest_difference(*reached) < 1e-4  # a hundredth of one update: gradients and AdamW on another device


SHARED_GPU = """
run_dir = "{folder}/run"
seed = 5

[model]
path = "{folder}/model"
dtype = "bfloat16"

[data]
train = "{folder}/train.jsonl"
max_prompt_tokens = 64

[rollout]
prompts_per_step = 8
samples_per_prompt = 4
max_tokens = 16

[sampler]
gpu_memory_utilization = 0.3
enforce_eager = true

[optimizer]
learning_rate = 1e-3
schedule = "constant"

[training]
steps = 3
stall_timeout_seconds = 300.0

[placement]
mode = "disaggregated"
learner_ranks = 1
sampler_ranks = 1
share_gpus = true
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_learner_and_sampler_share_a_gpu_and_weights_travel_by_cuda_ipc(tmp_path: pathlib.Path) -> None:
    base = pytest.importorskip("vllm.distributed.weight_transfer.base")
    if not hasattr(base, "TrainerWeightTransferEngine"):
        pytest.skip("this vLLM has no trainer side of its weight transfer (0.32 has)")
    quickstart_task.write(tmp_path, seed=1, demonstrations=400, train=64, held_out=8, flawed_share=0.5)
    file = tmp_path / "recipe.toml"
    file.write_text(SHARED_GPU.format(folder=tmp_path))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "rlvr", "train", str(file)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3
    # checksums of every tensor as loaded are compared at each update; the canaries see what they cannot
    assert max(line["sync/canary_difference"] for line in lines if line["step"]) < 0.05
    assert max(line["policy/sampler_difference"] for line in lines if line["step"]) < 0.05
    assert abs(lines[-1]["policy/kl_reference"]) > 1e-4  # so the sampler's weights have moved

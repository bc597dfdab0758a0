"""Other architectures than Llama through one whole step: the log-prob contract, an update, and a proved sync."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from sft_dpo import quickstart_task

pytestmark = pytest.mark.slow

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(
    ("family", "tied"),
    [("Qwen2", False), ("Qwen3", True), ("Olmo2", False)],
)
def test_a_model_of_this_family_trains_a_step_and_reaches_the_sampler(
    family: str, tied: bool, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import transformers

    quickstart_task.write(tmp_path, seed=1, demonstrations=200, train=8, held_out=4, flawed_share=0.5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **SHAPE,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    overrides = [
        f"model.path={tmp_path / family}",
        f"data.train={tmp_path / 'train.jsonl'}",
        f"data.eval={tmp_path / 'heldout.jsonl'}",
        f"run_dir={tmp_path / 'run'}",
        "training.steps=1",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=2",
        "optimizer.learning_rate=1e-2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", "train", "launch/recipes/quickstart.toml", *overrides],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["policy/sampler_difference"] < 1e-5
    assert last["sync/canary_difference"] < 1e-5
    assert last["optim/grad_norm"] > 0

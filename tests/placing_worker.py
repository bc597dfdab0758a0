"""Two ranks read models for ZeRO-3; the second one reads no weights, and writes what it was sent.

`torchrun --nproc-per-node 2 tests/placing_worker.py CASES OUTPUT`
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

import torch
import transformers
from learner_worker import split_small_parameters_too
from tiny import weights

from rlvr import distributed
from rlvr.engine import FrozenEngine
from rlvr.errors import ConfigError
from rlvr.model import PolicyModel, ValueModel, load_critic, load_policy


def refuse_to_read(*_: Any, **__: Any) -> None:
    raise AssertionError("a rank after the first has read weights")


def load(case: dict[str, str]) -> PolicyModel | ValueModel:
    options: dict[str, Any] = {"dtype": case["dtype"], "gradient_checkpointing": False, "everywhere": False}
    if "critic" in case:
        generator = torch.Generator().manual_seed(7)
        return load_critic(case["critic"], case["path"], generator=generator, **options)
    return load_policy(case["path"], logits_chunk_tokens=None, **options)


def main(cases_path: str, output: str) -> None:
    torch.set_num_threads(1)
    distributed.start(timeout_seconds=60)
    split_small_parameters_too()
    if distributed.rank() == 1:
        transformers.PreTrainedModel.from_pretrained = refuse_to_read
    found: dict[str, Any] = {}
    for name, case in json.loads(pathlib.Path(cases_path).read_text()).items():
        try:
            engine = FrozenEngine(load(case), split=True, offload=False, dtype=case["dtype"])
        except ConfigError as error:
            found[name] = distributed.gather_objects(str(error))
            continue
        parts = {key: parameter.ds_tensor.numel() for key, parameter in engine.module.named_parameters()}
        buffers = {key: buffer.clone() for key, buffer in engine.module.transformer.named_buffers()}
        found[name] = {"weights": weights(engine), "parts": parts, "buffers": buffers}
    if distributed.rank() == 1:
        torch.save(found, output)
    distributed.barrier()
    distributed.stop()
    # a group that DeepSpeed still holds may be taken down at exit with its thread running, which aborts the process
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:3])

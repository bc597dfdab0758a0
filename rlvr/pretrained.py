"""Write a trained policy as an ordinary Hugging Face folder, one gathered weight at a time."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import save_file

from rlvr import distributed
from rlvr.engine import Engine
from rlvr.lora import VALUE_HEAD, save_adapters

MIB = 2**20
INDEX = "model.safetensors.index.json"


def save_pretrained(policy: Engine, folder: pathlib.Path, tokenizer: Any, *, max_shard_bytes: int = 4096 * MIB) -> None:
    """Write weights, config, generation config, tokenizer and chat template; adapters too, to `adapter/`. Collective.

    With LoRA the weights are the merged ones; a value head has no place in an adapter folder, so a critic or reward
    model has only them. Rank 0 holds one shard at a time, from every ZeRO stage. A model that was in `folder` before
    is replaced.
    """
    model = policy.engine.module
    first = distributed.rank() == 0
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(policy.named_weights(), folder if first else None, max_shard_bytes)
    adapters = dict(policy.adapter_weights())
    if first:
        transformer = model.transformer
        transformer.config.architectures = [type(transformer).__name__]
        transformer.config.save_pretrained(folder)
        if transformer.can_generate():
            # `save_pretrained` would refuse what some published models have (temperature without do_sample)
            transformer.generation_config.to_json_file(
                folder / "generation_config.json", keys_to_pop=["compile_config"]
            )
        tokenizer.save_pretrained(folder)
        if (folder / "adapter").exists():
            shutil.rmtree(folder / "adapter")
        if adapters and not hasattr(transformer, VALUE_HEAD):
            save_adapters(model.adapters[0], folder / "adapter", adapters)
    distributed.barrier()


def write_shards(
    weights: Iterable[tuple[str, torch.Tensor]], folder: pathlib.Path | None, max_shard_bytes: int
) -> None:
    """Write weights to safetensors files of at most `max_shard_bytes` (a larger weight gets a file of its own).

    `folder` is None on ranks that take part in gathering and write nothing.
    """
    shard: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []
    total = 0

    def flush() -> None:
        assert folder is not None
        save_file(shard, _partial(folder, len(files)), metadata={"format": "pt"})
        files.append(list(shard))
        shard.clear()

    for name, weight in weights:
        if folder is None:
            continue
        if shard and sum(w.nbytes for w in shard.values()) + weight.nbytes > max_shard_bytes:
            flush()
        shard[name] = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        total += weight.nbytes
    if folder is None:
        return
    flush()
    _name(folder, files, total)


def _partial(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f".{number}.safetensors.partial"


def _name(folder: pathlib.Path, files: list[list[str]], total_bytes: int) -> None:
    """How many files there are is known at the end: only then can they have the names that `transformers` reads.

    It reads `model.safetensors` before an index, so files of an earlier save would be taken for these.
    """
    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    if len(files) == 1:
        _partial(folder, 0).rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(files):
        final = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _partial(folder, number).rename(folder / final)
        where |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

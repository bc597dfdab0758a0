"""Average checkpoints, or add what each has learnt beyond a common base: train skills apart, merge after.

    average:       sum of w_i x model_i / sum of w_i          (arXiv 2203.05482, uniform or weighted "soup")
    task-vectors:  base + sum of w_i x (model_i - base)       (arXiv 2212.04089)

Tensors are read one at a time from each model's safetensors files, combined in float64, and written in the first
model's dtype; no more than one output shard is ever held.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.errors import ConfigError, RunDirectoryError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MIB = 2**20
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", INDEX)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint, not read yet."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it, e.g. `BF16`."""


def merge(
    output: pathlib.Path,
    models: Mapping[pathlib.Path, float],
    *,
    base: pathlib.Path | None,
    shard_mib: int,
) -> None:
    """Write the merged model to `output`, with the other files of the first model (or the base).

    Args:
        models: folders and their weights.
        base: common ancestor for task-vector addition; None averages.

    Raises ConfigError when the models do not have the same tensors, RunDirectoryError when `output` exists.
    """
    if output.exists():
        raise RunDirectoryError(f"{output} exists already. Remove it, or name another folder.")
    weights = dict(models)
    if base is None:
        total = sum(weights.values())
        if total == 0.0:
            raise ConfigError(f"the weights of an average must not add up to 0, got {list(weights.values())}")
        weights = {folder: weight / total for folder, weight in weights.items()}
    headers = {folder: read_headers(folder) for folder in dict.fromkeys([*([base] if base else []), *weights])}
    first = next(iter(headers))
    refuse_mismatch(first, headers)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = plan(headers[first], shard_mib * MIB)
    for number, names in enumerate(shards, start=1):
        _write_shard(partial / shard_name(number, len(shards)), names, headers, weights, base)
    if len(shards) > 1:
        _write_index(partial, shards, headers[first])
    for file in first.iterdir():
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copy2(file, partial / file.name)
    partial.rename(output)


def read_headers(folder: pathlib.Path) -> dict[str, Tensor]:
    """Name, place, shape and dtype of every tensor; no tensor is read."""
    from safetensors import safe_open

    index = folder / INDEX
    if index.exists():
        files = sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    elif (folder / SINGLE).exists():
        files = [folder / SINGLE]
    else:
        raise ConfigError(f"{folder} holds neither {SINGLE} nor {INDEX}. Save the model as safetensors.")
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                tensors[name] = Tensor(file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
    return tensors


def refuse_mismatch(first: pathlib.Path, headers: Mapping[pathlib.Path, Mapping[str, Tensor]]) -> None:
    """Raise ConfigError that lists tensors which are missing, or differ in shape or dtype."""
    problems = []
    for folder, tensors in headers.items():
        for name in sorted(headers[first].keys() ^ tensors.keys()):
            problems.append(f"{name} is only in {first if name in headers[first] else folder}, not in the other")
        for name in sorted(headers[first].keys() & tensors.keys()):
            ours, theirs = headers[first][name], tensors[name]
            for what in ("shape", "dtype"):
                if getattr(ours, what) != getattr(theirs, what):
                    seen = f"{getattr(ours, what)} in {first}, {getattr(theirs, what)} in {folder}"
                    problems.append(f"{what} of {name}: {seen}")
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ConfigError(
            "these models cannot be merged, because their tensors differ:\n  " + "\n  ".join(problems[:10]) + more
        )


def plan(tensors: Mapping[str, Tensor], most_bytes: int) -> list[list[str]]:
    """Names of the tensors of each output shard, in order; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = []
    free = 0
    for name, tensor in tensors.items():
        size = size_bytes(tensor)
        if not shards or size > free:
            shards.append([])
            free = most_bytes
        shards[-1].append(name)
        free -= size
    return shards


def size_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor on disk.

    >>> size_bytes(Tensor(file=pathlib.Path("x"), shape=(2, 3), dtype="BF16"))
    12
    """
    bits = int("".join(c for c in tensor.dtype.partition("_")[0] if c.isdigit()) or 8)  # F8_E4M3 has 8; BOOL has 8
    count = 1
    for length in tensor.shape:
        count *= length
    return count * bits // 8


def shard_name(number: int, shards: int) -> str:
    """
    >>> shard_name(1, 1), shard_name(2, 3)
    ('model.safetensors', 'model-00002-of-00003.safetensors')
    """
    return SINGLE if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"


def _write_shard(
    path: pathlib.Path,
    names: Sequence[str],
    headers: Mapping[pathlib.Path, Mapping[str, Tensor]],
    weights: Mapping[pathlib.Path, float],
    base: pathlib.Path | None,
) -> None:
    from safetensors.torch import save_file

    merged = {name: _combined(name, headers, weights, base) for name in names}
    save_file(merged, path, metadata={"format": "pt"})


def _combined(
    name: str,
    headers: Mapping[pathlib.Path, Mapping[str, Tensor]],
    weights: Mapping[pathlib.Path, float],
    base: pathlib.Path | None,
) -> Any:
    import torch

    def read(folder: pathlib.Path) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(headers[folder][name].file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor

    first = read(next(iter(headers)))
    if not first.is_floating_point():
        for folder in headers:
            if not torch.equal(read(folder), first):
                raise ConfigError(f"{name} is {first.dtype} and differs in {folder}: whole numbers cannot be averaged")
        return first
    # base + sum w (model - base) = (1 - sum w) base + sum w model
    total = (1.0 - sum(weights.values())) * first.double() if base else torch.zeros_like(first, dtype=torch.float64)
    for folder, weight in weights.items():
        total += weight * read(folder).double()
    return total.to(first.dtype)


def _write_index(folder: pathlib.Path, shards: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
    weight_map = {name: shard_name(n, len(shards)) for n, names in enumerate(shards, start=1) for name in names}
    size = sum(map(size_bytes, tensors.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def add_command(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """`python -m sft_dpo merge OUTPUT MODEL=WEIGHT ... [--base MODEL]`."""
    parser = commands.add_parser("merge", help="average checkpoints, or add their task vectors to a base")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("models", nargs="+", metavar="FOLDER=WEIGHT", help="an average divides by the weights' sum")
    parser.add_argument("--base", type=pathlib.Path, help="add WEIGHT x (FOLDER - base) of each to this model")
    parser.add_argument("--shard-mib", type=int, default=4096, help="size of an output file, and most memory held")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    models: dict[pathlib.Path, float] = {}
    for text in arguments.models:
        folder, equals, weight = text.rpartition("=")
        try:
            models[pathlib.Path(folder)] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not folder:
            raise ConfigError(f"a model is spelt FOLDER=WEIGHT, e.g. runs/math/model=0.5; got {text!r}")
    if len(models) < len(arguments.models):
        raise ConfigError(f"a model is named twice: {' '.join(arguments.models)}. Add its weights up.")
    if arguments.shard_mib < 1:
        raise ConfigError(f"--shard-mib must be at least 1, got {arguments.shard_mib}")
    merge(arguments.output, models, base=arguments.base, shard_mib=arguments.shard_mib)
    print(f"{arguments.output}: {' + '.join(f'{weight:g} x {folder}' for folder, weight in models.items())}")
    return 0

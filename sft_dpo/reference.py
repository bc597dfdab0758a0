"""Log-probabilities of a reference model: computed once, kept on disk, and read by every run of the same inputs.

A file is named by what its numbers depend on: hashes of the model's weights, of the tokens, of the chat template, and
the dtype. As in Tülu 3 (arXiv 2411.15124, section 5.4.2), training then needs no reference in memory.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlvr import distributed
from rlvr.data import TOKENIZED_AT_ONCE
from rlvr.packing import same_number_on_every_rank
from rlvr.records import PackedRow
from rlvr.rollout import share_of_rank
from sft_dpo.pairs import Pairs

HASHED_AT_ONCE_BYTES = 2**24


def inputs(model: str, dtype: str, chat_template: str, pairs: Pairs) -> dict[str, str]:
    """What reference log-probabilities depend on, by name: their key."""
    tokens = hashlib.sha256()
    for pair in pairs.pairs:
        tokens.update(repr(pair).encode())
    return {
        "model": model_hash(model),
        "data": tokens.hexdigest(),
        "template": hashlib.sha256(chat_template.encode()).hexdigest(),
        "dtype": dtype,
    }


def model_hash(model: str) -> str:
    """SHA-256 over a model's configuration and weights, by file name; a Hub id is looked up in the local cache."""
    from transformers.utils import cached_file

    folder = pathlib.Path(cached_file(model, "config.json")).parent
    digest = hashlib.sha256()
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))]:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(HASHED_AT_ONCE_BYTES):
                digest.update(block)
    return digest.hexdigest()


def cached(folder: pathlib.Path, key: dict[str, str], compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """The numbers kept under `key`, or those that `compute` gives, which are kept. Collective.

    Only rank 0 reads and writes `folder`, so it need not be shared between machines.

    Returns float64 [n] on the CPU, and whether they were there.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    file = folder / f"{name}.safetensors"
    found: torch.Tensor | None = None
    if distributed.rank() == 0 and file.exists():
        with safe_open(file, framework="pt") as opened:
            found = opened.get_tensor("logprobs")
    (count,) = distributed.sum_over_ranks([0.0 if found is None else float(len(found))])
    if count:
        values = [0.0] * int(count) if found is None else found.tolist()
        return torch.tensor(distributed.sum_over_ranks(values), dtype=torch.float64), True
    computed = compute()
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({"logprobs": computed}, partial, metadata=key)
        partial.rename(file)
    return computed, False


def logprobs_of(
    pairs: Pairs, forward: Callable[[PackedRow], torch.Tensor], max_tokens_per_micro_batch: int
) -> torch.Tensor:
    """Log-probability of every answer, nats: float64 [2 x pairs]. Collective; each rank reads a share.

    Args:
        forward: log-probabilities of a row's targets.
    """
    found = [0.0] * (2 * len(pairs))
    for start in range(0, len(pairs), TOKENIZED_AT_ONCE):
        mine = share_of_rank(range(start, min(start + TOKENIZED_AT_ONCE, len(pairs))))
        rows = pairs.pack(mine, max_tokens=max_tokens_per_micro_batch, together=1)
        for row in same_number_on_every_rank(rows):
            for answer, total in zip(row.sequences, answer_sums(forward(row), row, pairs).tolist(), strict=True):
                found[answer] = total
    return torch.tensor(distributed.sum_over_ranks(found), dtype=torch.float64)


def answer_sums(logprobs: torch.Tensor, row: PackedRow, pairs: Pairs) -> torch.Tensor:
    """Sum of each answer's tokens in a row: float32 [N] -> float32 [answers of the row]."""
    counts = torch.from_numpy(pairs.answer_tokens[list(row.sequences)]).to(logprobs.device)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=logprobs.device), counts)
    return torch.zeros(len(counts), device=logprobs.device).index_add(0, owner, logprobs)


def read_by(model: Any) -> Callable[[PackedRow], torch.Tensor]:
    """A model's or engine's log-probabilities of a row's targets, without gradient."""

    def forward(row: PackedRow) -> torch.Tensor:
        with torch.no_grad():
            logprobs: torch.Tensor = model(row, 1.0)[0]
        return logprobs

    return forward

"""Supervised fine-tuning: imitate the assistant's turns, all or the last."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rlvr import distributed
from rlvr.chat import encode_conversations
from rlvr.config import Source
from rlvr.data import read_conversations
from rlvr.engine import Engine
from rlvr.errors import DataError
from rlvr.model import load_policy
from rlvr.packing import pack_sequences
from rlvr.records import PackedRow
from sft_dpo.config import Sft
from sft_dpo.training import Objective, Work


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Imitation(Objective):
    """Cross-entropy of the assistant's tokens, in nats per target token."""

    sequences: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    """Positions of the imitated tokens in each sequence."""
    over_length: int
    """Conversations dropped because they have more than `data.max_tokens` tokens."""
    max_tokens_per_micro_batch: int

    def __len__(self) -> int:
        return len(self.sequences)

    def weight(self, batch: Sequence[int]) -> float:
        return float(sum(len(self.targets[i]) for i in batch))

    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        return pack_sequences(
            self.sequences,
            self.targets,
            max_tokens=self.max_tokens_per_micro_batch,
            device=distributed.device(),
            select=batch,
        )

    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for row in rows:
            logprobs, _ = engine(row, 1.0)
            loss = -logprobs.sum()
            yield loss, {"loss": loss.item()}


def work(config: Sft, tokenizer: Any) -> Work:
    """Read conversations and the policy."""
    train = load_imitation(config, config.data.train, tokenizer)
    held_out = {pathlib.Path(s.path).stem: load_imitation(config, [s], tokenizer) for s in config.data.eval}
    model = load_policy(
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logits_chunk_tokens=config.learner.logits_chunk_tokens,
    )
    report = [
        f"{name}: {len(one)} conversations, {one.over_length} dropped over {config.data.max_tokens} tokens"
        for name, one in {"sft": train, **held_out}.items()
    ]
    return Work(model=model, train=train, held_out=held_out, report=report)


def load_imitation(config: Sft, sources: Sequence[Source], tokenizer: Any) -> Imitation:
    """Read and tokenize. Raises DataError listing rows that cannot be used, or when none is left."""
    sequences, targets, over_length = [], [], 0
    for source in sources:
        encoded = encode_conversations(tokenizer, read_conversations(source), turns=config.data.turns)
        for tokens, positions in encoded:
            if len(tokens) > config.data.max_tokens:
                over_length += 1
                continue
            sequences.append(tokens)
            targets.append(positions)
    if not sequences:
        raise DataError(f"no conversation has at most data.max_tokens={config.data.max_tokens} tokens: raise the limit")
    return Imitation(
        sequences=tuple(sequences),
        targets=tuple(targets),
        over_length=over_length,
        max_tokens_per_micro_batch=config.learner.max_tokens_per_micro_batch,
    )

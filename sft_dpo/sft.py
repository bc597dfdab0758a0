"""Supervised fine-tuning: imitate the assistant's turns, all or the last."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlvr import distributed
from rlvr.chat import encode_conversations
from rlvr.data import TOKENIZED_AT_ONCE, Turns, mixed, read_conversations, read_mixture
from rlvr.data_report import DataReport, report_of
from rlvr.engine import Engine
from rlvr.errors import DataError
from rlvr.mixing import Lazy
from rlvr.model import load_policy
from rlvr.packing import pack_sequences
from rlvr.records import PackedRow
from sft_dpo.config import Sft
from sft_dpo.training import Objective, Work

Encoded = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of a conversation, and the positions of those that are imitated."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Imitation(Objective):
    """Cross-entropy of the assistant's tokens, in nats per target token."""

    conversations: Sequence[Encoded]
    """Tokenized when they are drawn: a set may be larger than memory."""
    target_counts: npt.NDArray[np.int64]
    """Imitated tokens of each conversation."""
    report: DataReport
    """What was left out: rows, and conversations of more than `data.max_tokens` tokens."""
    max_tokens_per_micro_batch: int

    def __len__(self) -> int:
        return len(self.conversations)

    def weight(self, batch: Sequence[int]) -> float:
        return float(self.target_counts[list(batch)].sum())

    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        drawn = [self.conversations[i] for i in batch]
        return pack_sequences(
            [tokens for tokens, _ in drawn],
            [positions for _, positions in drawn],
            max_tokens=self.max_tokens_per_micro_batch,
            device=distributed.device(),
        )

    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for row in rows:
            logprobs, _ = engine(row, 1.0)
            loss = -logprobs.sum()
            yield loss, {"loss": loss.item()}


def work(config: Sft, tokenizer: Any) -> Work:
    """Read conversations and the policy."""
    rows = read_mixture(config.data, read_conversations, lambda turns: turns)
    train = imitation(config, "sft", rows, tokenizer)
    held_out = {}
    for source in config.data.eval:
        own = read_conversations(source, max_bad_share=config.data.max_bad_share, duplicates=config.data.duplicates)
        name = pathlib.Path(source.path).stem
        held_out[name] = imitation(config, name, mixed(source, own), tokenizer)
    model = load_policy(
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logits_chunk_tokens=config.learner.logits_chunk_tokens,
        everywhere=config.learner.zero_stage < 3,
    )
    data = [one.report for one in (train, *held_out.values())]
    return Work(model=model, train=train, held_out=held_out, data=data, unit="conversations")


def imitation(config: Sft, name: str, rows: Sequence[Turns], tokenizer: Any) -> Imitation:
    """Tokenize once, to drop (and count) what is too long. Raises DataError when none is left."""
    kept: list[int] = []
    targets: list[int] = []
    dropped: list[int] = []
    for start in range(0, len(rows), TOKENIZED_AT_ONCE):
        piece = rows[start : start + TOKENIZED_AT_ONCE]
        encoded = encode_conversations(tokenizer, piece, turns=config.data.turns)
        for number, (tokens, positions) in enumerate(encoded, start=start):
            if len(tokens) > config.data.max_tokens:
                dropped.append(number)
                continue
            kept.append(number)
            targets.append(len(positions))
    if not kept:
        raise DataError(f"no conversation has at most data.max_tokens={config.data.max_tokens} tokens: raise the limit")

    def make(index: int) -> Encoded:
        return encode_conversations(tokenizer, [rows[kept[index]]], turns=config.data.turns)[0]

    return Imitation(
        conversations=Lazy(len(kept), make),
        target_counts=np.array(targets, dtype=np.int64),
        report=report_of(name, rows, len(kept), dropped),
        max_tokens_per_micro_batch=config.learner.max_tokens_per_micro_batch,
    )

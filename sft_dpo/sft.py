"""Supervised fine-tuning: imitate the assistant's turns.

The loss of a step is summed over its target tokens and divided once by their number over all ranks and micro-batches.
A mean of micro-batch means would weight short conversations more (arXiv 2411.15124, section 4.3.2).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from rlvr import distributed
from rlvr.chat import encode_conversations, load_tokenizer
from rlvr.data import read_conversations, shuffled
from rlvr.engine import Engine
from rlvr.errors import DataError, NonFiniteError, RunDirectoryError
from rlvr.learner import same_number_on_every_rank, save_pretrained
from rlvr.model import load_policy
from rlvr.packing import pack_sequences
from rlvr.seeds import derive
from sft_dpo.config import Sft


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Tokenized training set."""

    sequences: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    """Positions of the assistant's tokens in each sequence."""
    over_length: int
    """Conversations dropped because they have more than `data.max_tokens` tokens."""


def run(config: Sft) -> None:
    """Train and save. Collective. Raises RunDirectoryError when the output exists."""
    output = pathlib.Path(config.output)
    if output.exists():
        raise RunDirectoryError(f"{output} exists already. Remove it, or set output to another folder.")
    distributed.start()
    tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
    data = load_conversations(config, tokenizer)
    steps_per_epoch = -(-len(data.sequences) // config.training.conversations_per_step)
    model = load_policy(
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logits_chunk_tokens=config.learner.logits_chunk_tokens,
    )
    engine = Engine(
        "policy",
        model,
        config.optimizer,
        zero_stage=config.learner.zero_stage,
        dtype=config.model.dtype,
        total_updates=steps_per_epoch * config.training.epochs,
    )
    _say(f"sft: {len(data.sequences)} conversations, {data.over_length} dropped over {config.data.max_tokens} tokens")
    _train(config, engine, data)
    save_pretrained(engine, output, tokenizer)
    distributed.stop()


def _train(config: Sft, engine: Engine, data: Conversations) -> None:
    size = config.training.conversations_per_step
    total = -(-len(data.sequences) // size) * config.training.epochs
    started, tokens = time.perf_counter(), 0
    with tqdm(total=total, desc="sft", unit="step", disable=distributed.rank() != 0, mininterval=2.0) as bar:
        for epoch in range(config.training.epochs):
            order = shuffled(len(data.sequences), derive(config.seed, "order", epoch))
            for start in range(0, len(order), size):
                loss, step_tokens = train_step(engine, data, order[start : start + size], config)
                tokens += step_tokens
                rate = tokens / (time.perf_counter() - started)
                bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tok/s", refresh=False)
                bar.update()


def train_step(engine: Engine, data: Conversations, batch: Sequence[int], config: Sft) -> tuple[float, int]:
    """One optimizer step on the conversations of `batch` (over all ranks). Collective.

    Returns the loss, nats per target token, and the number of tokens read, over all ranks.
    """
    mine = list(batch[distributed.rank() :: distributed.world_size()])
    packed = pack_sequences(
        data.sequences,
        data.targets,
        max_tokens=config.learner.max_tokens_per_micro_batch,
        device=distributed.device(),
        select=mine,
    )
    target_tokens = sum(len(data.targets[i]) for i in batch)  # every rank knows the whole batch
    loss_sum = 0.0
    for row in same_number_on_every_rank(packed):
        logprobs, _ = engine(row, 1.0)
        loss = -logprobs.sum() / target_tokens
        loss_sum += loss.item()
        engine.backward(loss)
    loss_total, tokens = distributed.sum_over_ranks([loss_sum, sum(sum(row.lengths) for row in packed)])
    if not math.isfinite(loss_total):
        raise NonFiniteError(
            f"the loss is {loss_total} before update {engine.updates + 1}; no weight was changed. "
            "Lower optimizer.learning_rate, or look for inf/NaN in the weights of model.path."
        )
    engine.step()
    return loss_total, int(tokens)


def load_conversations(config: Sft, tokenizer: Any) -> Conversations:
    """Read and tokenize. Raises DataError listing rows that cannot be used, or when none is left."""
    sequences, targets, over_length = [], [], 0
    for source in config.data.train:
        for tokens, positions in encode_conversations(tokenizer, read_conversations(source)):
            if len(tokens) > config.data.max_tokens:
                over_length += 1
                continue
            sequences.append(tokens)
            targets.append(positions)
    if not sequences:
        raise DataError(f"no conversation has at most data.max_tokens={config.data.max_tokens} tokens: raise the limit")
    return Conversations(sequences=tuple(sequences), targets=tuple(targets), over_length=over_length)


def _say(line: str) -> None:
    if distributed.rank() == 0:
        print(line, flush=True)

"""A reward model from preference pairs, by Bradley-Terry: the chosen answer should score above the rejected one.

The model is a sequence classifier with one label, whose score is read at the end token of each answer. Its head is
drawn from N(0, 1/(d+1)), as Tülu 3's (arXiv 2411.15124, Table 36). An RLVR recipe starts its critic from it with
`critic.init = "<run_dir>/model"`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from rlvr.engine import Engine
from rlvr.model import load_critic
from rlvr.records import PackedRow
from sft_dpo.config import Reward
from sft_dpo.pairs import Pairs, load_pair_sets, split_pairs
from sft_dpo.training import Objective, Work


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerry(Objective):
    """Minus the log-probability that the chosen answer wins, in nats per pair."""

    pairs: Pairs
    max_tokens_per_micro_batch: int

    def __len__(self) -> int:
        return len(self.pairs)

    def weight(self, batch: Sequence[int]) -> float:
        return float(len(batch))

    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        return self.pairs.pack(batch, max_tokens=self.max_tokens_per_micro_batch, together=2, read_end=True)

    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for row in rows:
            chosen, rejected = split_pairs(engine(row), row)
            margins = chosen - rejected
            loss = bradley_terry_loss(chosen, rejected).sum()
            yield (
                loss,
                {
                    "loss": loss.item(),
                    "accuracy": (margins > 0).sum().item(),
                    "margin": margins.sum().item(),
                    "score_chosen": chosen.sum().item(),
                    "score_rejected": rejected.sum().item(),
                },
            )


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Minus log sigmoid(chosen - rejected) of each pair (arXiv 2203.02155, Eq. 1).

    Args:
        chosen, rejected: float32 [P], scores.

    >>> bradley_terry_loss(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))   # ln 2, ln(1 + e^-2)
    tensor([0.6931, 0.1269])
    """
    return -functional.logsigmoid(chosen - rejected)


def work(config: Reward, tokenizer: Any) -> Work:
    """Read pairs, and the policy's transformer under a new head."""
    train, held_out = load_pair_sets(config.data, config.stage, tokenizer)
    model = load_critic(
        "policy",
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        generator=torch.Generator().manual_seed(config.seed),
        everywhere=config.learner.zero_stage < 3,
    )
    # `transformers` reads a classifier at the last token that is not padding, and gives the embedding of padding no
    # gradient: padding that is EOS, as in many models, would hide what is scored. Packed rows have none.
    model.transformer.get_input_embeddings().padding_idx = None
    apart = tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
    model.transformer.config.pad_token_id = tokenizer.pad_token_id if apart else None
    most = config.learner.max_tokens_per_micro_batch

    def objective(pairs: Pairs) -> BradleyTerry:
        return BradleyTerry(pairs=pairs, max_tokens_per_micro_batch=most)

    return Work(
        model=model,
        train=objective(train),
        held_out={name: objective(pairs) for name, pairs in held_out.items()},
        data=[pairs.report for pairs in (train, *held_out.values())],
        unit="pairs",
    )

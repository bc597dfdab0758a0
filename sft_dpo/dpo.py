"""Preference tuning: DPO, length-normalised DPO (Tülu 3's choice) and SimPO.

The three differ in what an answer's *reward* is; the loss of a pair is minus log sigmoid of how far the chosen
answer's reward leads. The reference is read once and kept on disk (`sft_dpo.reference`): usually it is the policy
before its first update, so it never needs memory of its own.
"""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from rlvr.engine import Engine, FrozenEngine
from rlvr.model import load_policy
from rlvr.records import PackedRow
from sft_dpo import reference
from sft_dpo.config import Dpo, Preference
from sft_dpo.pairs import Pairs, chosen_of, load_pair_sets, split_pairs
from sft_dpo.training import Objective, Work, say

REWARDS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "dpo": lambda logprobs, references, lengths: logprobs - references,
    "dpo_norm": lambda logprobs, references, lengths: (logprobs - references) / lengths,
    "simpo": lambda logprobs, references, lengths: logprobs / lengths,
}
"""Reward of an answer over beta, from its log-probability, the reference's (nats) and its length (tokens):
arXiv 2305.18290 Eq. 7, arXiv 2411.15124 Eq. 6, arXiv 2405.14734 Eq. 4."""


def answer_rewards(
    logprobs: torch.Tensor, references: torch.Tensor, lengths: torch.Tensor, preference: Preference
) -> torch.Tensor:
    """Implicit reward of each answer.

    Args:
        logprobs, references: float32 [S], nats, of whole answers by policy and reference (ignored by SimPO).
        lengths: [S], tokens, EOS included.
    """
    return preference.beta * REWARDS[preference.loss](logprobs, references, lengths)


def preference_loss(chosen: torch.Tensor, rejected: torch.Tensor, margin: float) -> torch.Tensor:
    """Minus log sigmoid of the lead of each pair over `margin`: float32 [P].

    Args:
        chosen, rejected: float32 [P], rewards of the two answers.
        margin: SimPO's gamma; 0 for the others.

    >>> preference_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), margin=0.0)   # ln 2, ln(1 + 1/e)
    tensor([0.6931, 0.3133])
    """
    return -functional.logsigmoid(chosen - rejected - margin)


class PreferenceTuning(Objective):
    """The preference loss, in nats per pair."""

    def __init__(self, config: Dpo, pairs: Pairs, chat_template: str) -> None:
        self.pairs = pairs
        self._config = config
        self._chat_template = chat_template
        self.references = torch.zeros(2 * len(pairs))
        """float32 [2 x pairs], nats; 0 before `before_first_update`, and for SimPO."""
        self._lengths = torch.from_numpy(pairs.answer_tokens).float()

    def __len__(self) -> int:
        return len(self.pairs)

    def weight(self, batch: Sequence[int]) -> float:
        return float(len(batch))

    def before_first_update(self, engine: Engine) -> None:
        """Read the reference, or its log-probabilities of an earlier run."""
        config, preference = self._config, self._config.preference
        if preference.loss == "simpo":
            return
        path = preference.reference or config.model.path

        def compute() -> torch.Tensor:
            most = config.learner.max_tokens_per_micro_batch
            if preference.reference is None:
                with engine.inference():
                    return reference.logprobs_of(self.pairs, reference.read_by(engine), most)
            split = config.learner.zero_stage == 3
            model = load_policy(
                path,
                dtype=config.model.dtype,
                gradient_checkpointing=False,
                logits_chunk_tokens=config.learner.logits_chunk_tokens,
                everywhere=not split,
            )
            frozen = FrozenEngine(model, split=split, offload=False, dtype=config.model.dtype)
            found = reference.logprobs_of(self.pairs, reference.read_by(frozen), most)
            frozen.free()
            return found

        key = reference.inputs(path, config.model.dtype, self._chat_template, self.pairs)
        values, was_there = reference.cached(pathlib.Path(preference.reference_cache), key, compute)
        self.references = values.float()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"reference log-probabilities of {len(self)} pairs: {'from the cache' if was_there else 'computed'}")

    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        together = 2 if self._config.preference.forwards == "concatenated" else 1
        return self.pairs.pack(batch, max_tokens=self._config.learner.max_tokens_per_micro_batch, together=together)

    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        if self._config.preference.forwards == "separate":
            yield from self._separate_parts(engine, rows)
            return
        for row in rows:
            logprobs = reference.answer_sums(engine(row, 1.0)[0], row, self.pairs)
            losses, sums = self._losses(*split_pairs(logprobs, row), chosen_of(row.sequences))
            yield losses.sum(), sums

    def _separate_parts(
        self, engine: Engine, rows: Sequence[PackedRow]
    ) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """First read all answers; the slope of the loss in each log-probability then tells what a row contributes."""
        learning = torch.is_grad_enabled()
        found: dict[int, float] = {}
        with torch.no_grad():
            for row in rows:
                sums_of_row = reference.answer_sums(engine(row, 1.0)[0], row, self.pairs)
                found |= zip(row.sequences, sums_of_row.tolist(), strict=True)
        firsts = chosen_of(sorted(found))
        chosen, rejected = (torch.tensor([found[i + side] for i in firsts], requires_grad=True) for side in (0, 1))
        with torch.enable_grad():
            losses, sums = self._losses(chosen, rejected, firsts)
            losses.sum().backward()
        slopes: dict[int, float] = {}
        for side, values in enumerate((chosen, rejected)):
            gradient = torch.zeros(0) if values.grad is None else values.grad
            slopes |= zip((i + side for i in firsts), gradient.tolist(), strict=True)
        for number, row in enumerate(rows):
            part = torch.zeros(())
            if learning:
                logprobs = reference.answer_sums(engine(row, 1.0)[0], row, self.pairs)
                part = (torch.tensor([slopes[i] for i in row.sequences], device=logprobs.device) * logprobs).sum()
            yield part, sums if number == 0 else dict.fromkeys(sums, 0.0)

    def _losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor, firsts: Sequence[int]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of each pair, and the sums of its metrics. `firsts` are the pairs' chosen answers."""
        first = torch.tensor(firsts, dtype=torch.int64)
        rewards = [
            answer_rewards(
                logprobs,
                self.references[first + side].to(logprobs.device),
                self._lengths[first + side].to(logprobs.device),
                self._config.preference,
            )
            for side, logprobs in enumerate((chosen, rejected))
        ]
        losses = preference_loss(rewards[0], rewards[1], self._config.preference.margin)
        leads = rewards[0] - rewards[1]
        return losses, {
            "loss": losses.sum().item(),
            "accuracy": (leads > 0).sum().item(),
            "margin": leads.sum().item(),
            "reward_chosen": rewards[0].sum().item(),
            "reward_rejected": rewards[1].sum().item(),
            "logprob_chosen": chosen.sum().item(),
            "logprob_rejected": rejected.sum().item(),
        }


def work(config: Dpo, tokenizer: Any) -> Work:
    """Read pairs and the policy."""
    train, held_out = load_pair_sets(config.data, config.stage, tokenizer)
    model = load_policy(
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logits_chunk_tokens=config.learner.logits_chunk_tokens,
        everywhere=config.learner.zero_stage < 3,
    )

    def objective(pairs: Pairs) -> PreferenceTuning:
        return PreferenceTuning(config, pairs, str(tokenizer.chat_template))

    return Work(
        model=model,
        train=objective(train),
        held_out={name: objective(pairs) for name, pairs in held_out.items()},
        data=[pairs.report for pairs in (train, *held_out.values())],
        unit="pairs",
    )

"""The critic before PPO: taught the returns of the start policy's own verified completions.

`preferences` writes them (`samples.jsonl`). The target at each token is the discounted reward that the completion
ended with, as PPO's critic sees it at its first step with no KL penalty (the policy still is its reference) and
gae_lambda = 1: an unbiased start for a head that is drawn at random or scores on another scale.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlvr import distributed
from rlvr.config import Source
from rlvr.data import mixed, read_mixture, refuse_remap
from rlvr.data_report import DataReport, report_of
from rlvr.engine import Engine
from rlvr.errors import DataError
from rlvr.mixing import Lazy
from rlvr.model import load_critic
from rlvr.packing import pack
from rlvr.records import PackedRow
from rlvr.row_files import RowFault, parsed
from rlvr.rows import Rows, read
from sft_dpo.config import Value
from sft_dpo.training import Objective, Work


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A completion and its reward."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reward: float
    name: tuple[int, int]
    """Prompt id and sample number."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Objective):
    """Half the squared error of the value, mean over completion tokens, in squared units of reward."""

    samples: Sequence[Judged]
    """Read from disk when they are drawn."""
    completion_tokens: npt.NDArray[np.int64]
    """Length of each completion."""
    rewards: npt.NDArray[np.float64]
    gamma: float
    report: DataReport
    """What was left out: rows, and completions that have with their prompt more than `data.max_tokens` tokens."""
    max_tokens_per_micro_batch: int

    def __len__(self) -> int:
        return len(self.rewards)

    def weight(self, batch: Sequence[int]) -> float:
        return float(self.completion_tokens[list(batch)].sum())

    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        drawn = [self.samples[i] for i in batch]
        rows = pack(
            [one.prompt_ids for one in drawn],
            [one.completion_ids for one in drawn],
            max_tokens=self.max_tokens_per_micro_batch,
            device=distributed.device(),
        )
        return [dataclasses.replace(row, sequences=tuple(batch[i] for i in row.sequences)) for row in rows]

    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for row in rows:
            values = engine(row)
            ends = [(self.rewards[i].item(), int(self.completion_tokens[i])) for i in row.sequences]
            returns = torch.cat([torch.zeros(0), *(discounted(*end, self.gamma) for end in ends)]).to(values.device)
            loss = ((values - returns) ** 2 / 2).sum()
            yield (
                loss,
                {
                    "loss": loss.item(),
                    "value": values.sum().item(),
                    "return": returns.sum().item(),
                    "return_squared": (returns.double() ** 2).sum().item(),
                },
            )

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """Adds the share of the returns' variance that the values explain."""
        left = dict(means)
        variance = left.pop("return_squared") - means["return"] ** 2
        return left | {"explained_variance": 1.0 - 2.0 * means["loss"] / variance if variance > 0 else 0.0}


def discounted(reward: float, tokens: int, gamma: float) -> torch.Tensor:
    """Return at each token of a completion that is rewarded at its last: float32 [tokens].

    >>> discounted(8.0, 3, 0.5)
    tensor([2., 4., 8.])
    """
    return torch.tensor([reward * gamma ** (tokens - 1 - place) for place in range(tokens)])


def work(config: Value, tokenizer: Any) -> Work:
    """Read samples, and the critic's start."""
    options = config.data
    vocabulary = len(tokenizer)

    def one(source: Source, **reading: Any) -> Rows[Judged]:
        refuse_remap(source)
        return read(source, lambda raw, place: _judged(parsed(raw, place), vocabulary), lambda row: row.name, **reading)

    train = regression(config, "value", read_mixture(options, one, lambda row: ()))
    held_out = {}
    for source in options.eval:
        own = one(source, max_bad_share=options.max_bad_share, duplicates=options.duplicates)
        name = pathlib.Path(source.path).stem
        held_out[name] = regression(config, name, mixed(source, own))
    model = load_critic(
        config.init,
        config.model.path,
        dtype=config.model.dtype,
        gradient_checkpointing=config.model.gradient_checkpointing,
        generator=torch.Generator().manual_seed(config.seed),
        everywhere=config.learner.zero_stage < 3,
    )
    data = [one.report for one in (train, *held_out.values())]
    return Work(model=model, train=train, held_out=held_out, data=data, unit="completions")


def regression(config: Value, name: str, rows: Sequence[Judged]) -> Regression:
    """Read once, to drop (and count) what is too long. Raises DataError when none is left."""
    kept, lengths, rewards, dropped = [], [], [], []
    for number, row in enumerate(rows):
        if len(row.prompt_ids) + len(row.completion_ids) > config.data.max_tokens:
            dropped.append(number)
            continue
        kept.append(number)
        lengths.append(len(row.completion_ids))
        rewards.append(row.reward)
    if not kept:
        raise DataError(f"all {len(rows)} completions have more than data.max_tokens={config.data.max_tokens} tokens")
    return Regression(
        samples=Lazy(len(kept), lambda index: rows[kept[index]]),
        completion_tokens=np.array(lengths, dtype=np.int64),
        rewards=np.array(rewards, dtype=np.float64),
        gamma=config.gamma,
        report=report_of(name, rows, len(kept), dropped),
        max_tokens_per_micro_batch=config.learner.max_tokens_per_micro_batch,
    )


def _judged(columns: Mapping[str, Any], vocabulary: int) -> Judged:
    names = ("prompt_id", "sample", "prompt_token_ids", "token_ids", "reward")
    if missing := [name for name in names if columns.get(name) is None]:
        raise RowFault("missing keys", f"missing {', '.join(missing)} (`preferences` writes them: samples.jsonl)")
    for name in ("prompt_token_ids", "token_ids"):
        ids = columns[name]
        if not isinstance(ids, list) or not ids or any(type(one) is not int or one < 0 for one in ids):
            raise RowFault("wrong type", f"{name} must be a list of token ids, not empty; got {ids!r:.80}")
    for name, kinds in (("prompt_id", (int,)), ("sample", (int,)), ("reward", (int, float))):
        if type(columns[name]) not in kinds or not math.isfinite(columns[name]):
            raise RowFault("wrong type", f"{name} must be a finite number, got {columns[name]!r:.80}")
    prompt, completion = tuple(columns["prompt_token_ids"]), tuple(columns["token_ids"])
    if (largest := max(*prompt, *completion)) >= vocabulary:
        raise RowFault("wrong type", f"token {largest} is beyond the tokenizer's {vocabulary}: of another model?")
    return Judged(
        prompt_ids=prompt,
        completion_ids=completion,
        reward=float(columns["reward"]),
        name=(columns["prompt_id"], columns["sample"]),
    )

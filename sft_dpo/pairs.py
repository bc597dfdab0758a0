"""Preference pairs, tokenized: two answers to one prompt, of which one is preferred."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlvr import distributed
from rlvr.chat import encode_conversations
from rlvr.data import TOKENIZED_AT_ONCE, Pair, Turns, mixed, read_mixture, read_pairs
from rlvr.data_report import DataReport, report_of
from rlvr.errors import DataError
from rlvr.mixing import Lazy
from rlvr.packing import pack_sequences
from rlvr.records import PackedRow
from sft_dpo.config import PairData

Encoded = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of prompt and answer, up to the answer's last EOS, and the positions of the answer's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Tokenized when they are drawn. Answers are numbered: those of pair k are 2k (chosen) and 2k + 1 (rejected)."""

    pairs: Sequence[tuple[Encoded, Encoded]]
    """Chosen and rejected."""
    answer_tokens: npt.NDArray[np.int64]
    """[2 x pairs]: length of each answer, EOS included."""
    report: DataReport
    """What was left out: rows, and pairs of which one answer has more than `data.max_tokens` tokens."""

    def __len__(self) -> int:
        return len(self.pairs)

    def pack(self, select: Sequence[int], *, max_tokens: int, together: int, read_end: bool = False) -> list[PackedRow]:
        """These pairs in rows, whose `sequences` are numbers of answers.

        Args:
            together: 2 keeps a pair in one row.
            read_end: read the model at each answer's EOS alone, rather than before each of its tokens.
        """
        drawn = [side for k in select for side in self.pairs[k]]
        if read_end:  # a row holds what comes before the last target: with one more token behind it, the EOS
            drawn = [((*tokens, tokens[-1]), (len(tokens),)) for tokens, _ in drawn]
        rows = pack_sequences(
            [tokens for tokens, _ in drawn],
            [positions for _, positions in drawn],
            max_tokens=max_tokens,
            device=distributed.device(),
            together=together,
        )
        number = [answer for k in select for answer in (2 * k, 2 * k + 1)]
        return [dataclasses.replace(row, sequences=tuple(number[i] for i in row.sequences)) for row in rows]


def split_pairs(values: torch.Tensor, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor]:
    """One value an answer of a row that holds whole pairs -> values of the chosen and the rejected, pair by pair."""
    place = {answer: place for place, answer in enumerate(row.sequences)}
    first = [place[answer] for answer in chosen_of(row.sequences)]
    second = [place[answer + 1] for answer in chosen_of(row.sequences)]
    return values[first], values[second]


def chosen_of(answers: Sequence[int]) -> list[int]:
    """The chosen answers among these, in order."""
    return [answer for answer in answers if answer % 2 == 0]


def load_pair_sets(data: PairData, stage: str, tokenizer: Any) -> tuple[Pairs, dict[str, Pairs]]:
    """The training set, reported under the stage's name, and the held-out sets by file name.

    Raises DataError listing rows that cannot be used.
    """
    rows = read_mixture(data, read_pairs, lambda pair: pair.prompt)
    held_out = {}
    for source in data.eval:
        own = read_pairs(source, max_bad_share=data.max_bad_share, duplicates=data.duplicates)
        name = pathlib.Path(source.path).stem
        held_out[name] = tokenized(name, mixed(source, own), tokenizer, data.max_tokens)
    return tokenized(stage, rows, tokenizer, data.max_tokens), held_out


def tokenized(name: str, rows: Sequence[Pair], tokenizer: Any, max_tokens: int) -> Pairs:
    """Tokenize once, to drop (and count) what is too long. Raises DataError when none is left."""
    kept: list[int] = []
    lengths: list[int] = []
    dropped: list[int] = []
    for start in range(0, len(rows), TOKENIZED_AT_ONCE):
        encoded = _encode(tokenizer, rows[start : start + TOKENIZED_AT_ONCE])
        for number, pair in enumerate(encoded, start=start):
            if any(len(tokens) > max_tokens for tokens, _ in pair):
                dropped.append(number)
                continue
            kept.append(number)
            lengths += [len(positions) for _, positions in pair]
    if not kept:
        raise DataError(f"all {len(rows)} pairs have more than data.max_tokens={max_tokens} tokens: raise the limit")
    return Pairs(
        pairs=Lazy(len(kept), lambda index: _encode(tokenizer, [rows[kept[index]]])[0]),
        answer_tokens=np.array(lengths, dtype=np.int64),
        report=report_of(name, rows, len(kept), dropped),
    )


def _encode(tokenizer: Any, pairs: Sequence[Pair]) -> list[tuple[Encoded, Encoded]]:
    conversations: list[Turns] = [
        (*pair.prompt, {"role": "assistant", "content": answer})
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    sides = [
        _up_to_end(tokens, answer, tokenizer)
        for tokens, answer in encode_conversations(tokenizer, conversations, turns="last")
    ]
    return list(zip(sides[::2], sides[1::2], strict=True))


def _up_to_end(tokens: tuple[int, ...], answer: tuple[int, ...], tokenizer: Any) -> Encoded:
    """Cut what a template writes behind the answer's EOS: a policy stops there, and never says it.

    Raises DataError when the template does not end the assistant's turn with the tokenizer's EOS.
    """
    ends = [position for position in answer if tokens[position] == tokenizer.eos_token_id]
    if not ends:
        raise DataError(
            f"the chat template does not end the assistant's turn with the tokenizer's EOS {tokenizer.eos_token!r}, "
            "where an answer is scored and ends. Use model.chat_template='tulu', or set the tokenizer's eos_token."
        )
    return tokens[: ends[-1] + 1], tuple(position for position in answer if position <= ends[-1])

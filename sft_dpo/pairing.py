"""Which completions of a prompt make a preference pair: pure functions of labelled completions."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_dpo.config import Pairing

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completion that may be chosen or rejected."""

    prompt_id: int
    source: str
    """Path of the model that wrote it, or of the file it comes from."""
    text: str
    tokens: int
    """Length, EOS included, by the policy's tokenizer."""
    mean_logprob: float | None
    """Nats a token, of the policy that sampled it; None where the policy did not."""
    score: float | None
    """1 when every verifier says correct, else 0; a judge's rating, 1 to 5; None when there is no verdict."""
    has_end: bool
    """False when it was cut at `rollout.max_tokens`: a pair could not say that it has no end."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A pair of one prompt."""

    chosen: Candidate
    rejected: Candidate


Pick = Callable[[Sequence[Candidate], Sequence[Candidate], random.Random], Choice]


def _random(better: Sequence[Candidate], worse: Sequence[Candidate], draw: random.Random) -> Choice:
    return Choice(chosen=draw.choice(better), rejected=draw.choice(worse))


def _length_matched(better: Sequence[Candidate], worse: Sequence[Candidate], draw: random.Random) -> Choice:
    pairs = [Choice(chosen=one, rejected=other) for one in better for other in worse]
    least = min(abs(pair.chosen.tokens - pair.rejected.tokens) for pair in pairs)
    return draw.choice([pair for pair in pairs if abs(pair.chosen.tokens - pair.rejected.tokens) == least])


def _hardest(better: Sequence[Candidate], worse: Sequence[Candidate], draw: random.Random) -> Choice:
    return Choice(chosen=min(better, key=_liking), rejected=max(worse, key=_liking))


def _liking(candidate: Candidate) -> float:
    if candidate.mean_logprob is None:
        raise ValueError(f"no log-probability of {candidate.text!r:.80} from {candidate.source}")
    return candidate.mean_logprob


POLICIES: dict[str, Pick] = {"random": _random, "length_matched": _length_matched, "hardest": _hardest}


def pairs_of(
    candidates: Sequence[Candidate], pairing: Pairing, least_lead: float, seed: int
) -> tuple[list[Choice], str]:
    """Pairs of one prompt, and what became of the prompt: `paired`, or why there is none.

    Args:
        least_lead: by how much the chosen one's score must be higher.
        seed: of this prompt's draw.
    """
    usable = distinct([candidate for candidate in candidates if _is_usable(candidate)])
    if not usable:
        return [], "no verdict or no end"
    scores = {c.text: c.score for c in usable if c.score is not None}
    best = max(scores.values())
    better = [c for c in usable if scores[c.text] == best]
    worse = [c for c in usable if scores[c.text] <= best - least_lead]
    if not worse:
        alike = all(score == best for score in scores.values())
        return [], f"all score {best:g}" if alike else f"best {best:g} and no lead of {least_lead:g}"
    draw = random.Random(seed)
    made: list[Choice] = []
    while better and worse and len(made) < pairing.pairs_per_prompt:
        pair = POLICIES[pairing.policy](better, worse, draw)
        made.append(pair)
        better = [c for c in better if c is not pair.chosen]
        worse = [c for c in worse if c is not pair.rejected]
    return made, "paired"


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of each text."""
    return list({candidate.text: candidate for candidate in reversed(candidates)}.values())[::-1]


def pair_row(name: str, messages: Messages, choice: Choice, verifiers: Sequence[str]) -> dict[str, Any]:
    """A row in the published format (`id, prompt, chosen, rejected, source`: allenai's preference mixtures), with where
    each answer comes from and what it scored."""
    sides = {"chosen": choice.chosen, "rejected": choice.rejected}
    row: dict[str, Any] = {"id": name, "prompt": messages[-1]["content"]}
    for side, candidate in sides.items():
        row[side] = [*messages, {"role": "assistant", "content": candidate.text}]
    row["source"] = "+".join(verifiers)
    for side, candidate in sides.items():
        row |= {f"{side}_model": candidate.source, f"{side}_score": candidate.score, f"{side}_tokens": candidate.tokens}
    return row


def statistics(
    candidates: Mapping[int, Sequence[Candidate]], choices: Mapping[int, Sequence[Choice]], fates: Mapping[int, str]
) -> dict[str, Any]:
    """What became of every prompt and every completion; the counts of each group add up to its total."""
    pairs = [pair for group in choices.values() for pair in group]
    used = {id(side) for pair in pairs for side in (pair.chosen, pair.rejected)}
    by_source: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    scores: dict[str, list[float]] = collections.defaultdict(list)
    for group in candidates.values():
        first = {id(candidate) for candidate in distinct([c for c in group if _is_usable(c)])}
        for candidate in group:
            by_source[candidate.source][_fate(candidate, used, first)] += 1
            if candidate.score is not None:
                scores[candidate.source].append(candidate.score)
    lengths = {side: [getattr(pair, side).tokens for pair in pairs] for side in ("chosen", "rejected")}
    return {
        "prompts": len(candidates),
        "prompts_by_fate": dict(sorted(collections.Counter(fates.values()).items())),
        "completions": sum(map(len, candidates.values())),
        "completions_by_source": {source: dict(sorted(counts.items())) for source, counts in by_source.items()},
        "score_mean_by_source": {source: sum(own) / len(own) for source, own in scores.items()},
        "pairs": len(pairs),
        **{f"{side}_tokens_mean": sum(own) / max(len(own), 1) for side, own in lengths.items()},
    }


def _is_usable(candidate: Candidate) -> bool:
    return candidate.has_end and candidate.score is not None


def _fate(candidate: Candidate, used: set[int], first: set[int]) -> str:
    if id(candidate) in used:
        return "in a pair"
    if candidate.score is None:
        return "no verdict"
    if not candidate.has_end:
        return "no end"
    return "spare" if id(candidate) in first else "repeated"

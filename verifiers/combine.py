"""`combine`: all, any, or the weighted mean of named verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from verifiers.base import Outcome, Sample, Use, Verdict, Verifier
from verifiers.errors import GroundTruthError
from verifiers.pool_worker import judge
from verifiers.registry import VerifierSpec, build, register, resolve


class Part(pydantic.BaseModel):
    """One of the combined verifiers."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    """Registered name, or "file.py:Attr"."""
    options: dict[str, Any] = {}
    weight: float = pydantic.Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Share in the mean, for mode `weighted`."""
    ground_truth_key: str | None = None
    """The part of the ground truth (an object) that this verifier gets; without it, the whole."""


@register("combine")
class CombineVerifier(Verifier):
    """Several verifiers as one, under one timeout.

    An indeterminate part decides nothing: the whole is indeterminate unless the others settle it.
    """

    class Config(Verifier.Config):
        verifiers: list[Part] = pydantic.Field(min_length=1)
        mode: Literal["all", "any", "weighted"] = "all"
        """`all`: every one says correct. `any`: at least one does. `weighted`: the score is the weighted mean of
        scores; the outcome is correct only when every one says correct."""
        plugins: tuple[str, ...] = ()
        """Plugin files of the combined verifiers."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._parts: list[tuple[Part, Verifier]] = [
            (part, build(VerifierSpec(name=part.name, options=part.options, plugins=self.config.plugins)))
            for part in self.config.verifiers
        ]

    @classmethod
    def options_for(cls, use: Use, options: Mapping[str, Any]) -> dict[str, Any]:
        """Each part's own rule, applied to its options."""
        read: Any = cls.parse_options(options)
        parts = [
            {**given, "options": resolve(part.name, read.plugins).options_for(use, part.options)}
            for given, part in zip(options["verifiers"], read.verifiers, strict=True)
        ]
        return {**options, "verifiers": parts}

    def verify(self, sample: Sample) -> Verdict:
        verdicts = [judge(verifier, self._sample_for(part, sample)) for part, verifier in self._parts]
        score, outcome = _combined(self.config.mode, [part.weight for part, _ in self._parts], verdicts)
        said = ((part.name, verdict) for (part, _), verdict in zip(self._parts, verdicts, strict=True))
        detail = "; ".join(f"{name} {verdict.outcome.value} ({verdict.detail})" for name, verdict in said)
        return Verdict(outcome=outcome, score=score, detail=detail)

    def _sample_for(self, part: Part, sample: Sample) -> Sample:
        return Sample(
            completion=sample.completion,
            ground_truth=_ground_truth_for(part, sample.ground_truth),
            prompt=sample.prompt,
            completion_tokens=sample.completion_tokens,
            columns=sample.columns,
        )

    def check_ground_truth(self, ground_truth: Any) -> None:
        for part, verifier in self._parts:
            verifier.check_ground_truth(_ground_truth_for(part, ground_truth))

    def gold_completion(self, ground_truth: Any) -> str | None:
        """A gold completion of a part that satisfies the whole, where there is one."""
        for part, verifier in self._parts:
            gold = verifier.gold_completion(_ground_truth_for(part, ground_truth))
            if gold is not None:
                verdict = self.verify(Sample(completion=gold, ground_truth=ground_truth))
                if verdict.outcome is Outcome.CORRECT:
                    return gold
        return None


def _ground_truth_for(part: Part, ground_truth: Any) -> Any:
    if part.ground_truth_key is None:
        return ground_truth
    if not isinstance(ground_truth, Mapping) or part.ground_truth_key not in ground_truth:
        raise GroundTruthError(
            f"verifier 'combine' needs an object with the key {part.ground_truth_key!r} as ground truth, for "
            f"{part.name!r}; got {ground_truth!r:.200}."
        )
    return ground_truth[part.ground_truth_key]


def _combined(mode: str, weights: Sequence[float], verdicts: Sequence[Verdict]) -> tuple[float, Outcome]:
    outcomes = {verdict.outcome for verdict in verdicts}
    if mode == "all" and Outcome.WRONG in outcomes:
        return 0.0, Outcome.WRONG
    if mode == "any" and Outcome.CORRECT in outcomes:
        return 1.0, Outcome.CORRECT
    if Outcome.INDETERMINATE in outcomes:
        return 0.0, Outcome.INDETERMINATE
    if outcomes == {Outcome.CORRECT}:
        return 1.0, Outcome.CORRECT
    if mode != "weighted":
        return 0.0, Outcome.WRONG
    total = sum(weight * verdict.score for weight, verdict in zip(weights, verdicts, strict=True))
    return min(1.0, total / sum(weights)), Outcome.WRONG

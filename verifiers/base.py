"""What a verifier is: `Sample` in, `Verdict` out.

A verifier answers one question: is this completion right? It has three answers, because a verifier can fail:
`correct`, `wrong`, and `indeterminate` (it timed out, crashed, or the ground truth cannot be read). An
indeterminate verdict is never a 0: the sample leaves the loss, and is counted.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from verifiers.errors import GroundTruthError, VerifierOptionError

Use = Literal["training", "evaluation"]
"""What a verdict is for: a reward, which a policy will try to get for nothing, or a score to compare with others'."""


class Outcome(enum.StrEnum):
    """The three answers of a verifier."""

    CORRECT = "correct"
    WRONG = "wrong"
    INDETERMINATE = "indeterminate"
    """The verifier failed or timed out, or the ground truth cannot be read. Not evidence against the completion."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion to judge, with what its row says about it."""

    completion: str
    """The model's text after the prompt, special tokens removed."""
    ground_truth: Any
    """The row's `ground_truth` for this verifier: whatever JSON the verifier documents."""
    prompt: str = ""
    """Text of the last user turn."""
    completion_tokens: int | None = None
    """Length of the completion in tokens, where a tokenizer was at hand."""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other columns of the row (JSON values), for verifiers that need more than the ground truth."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A verifier's answer.

    >>> Verdict.correct("42 == 42").score, Verdict.wrong("41 != 42").score
    (1.0, 0.0)
    >>> Verdict.from_score(0.5, "1 of 2 constraints hold").outcome
    <Outcome.WRONG: 'wrong'>
    """

    outcome: Outcome
    score: float
    """In [0, 1]. Binary unless the options ask for partial credit; 0.0 and meaningless when indeterminate."""
    detail: str = ""
    """Why, in one short line that a person reads in the samples file."""
    seconds: float = 0.0
    """Wall-clock time the verdict took."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"a verdict's score must lie in [0, 1]; got {self.score!r} ({self.detail!r})")

    @classmethod
    def correct(cls, detail: str = "") -> Verdict:
        return cls(outcome=Outcome.CORRECT, score=1.0, detail=detail)

    @classmethod
    def wrong(cls, detail: str = "", score: float = 0.0) -> Verdict:
        """`score` above 0 is partial credit: the completion is still wrong."""
        return cls(outcome=Outcome.WRONG, score=score, detail=detail)

    @classmethod
    def indeterminate(cls, detail: str) -> Verdict:
        return cls(outcome=Outcome.INDETERMINATE, score=0.0, detail=detail)

    @classmethod
    def from_score(cls, score: float, detail: str = "") -> Verdict:
        """Correct when `score` is 1, else wrong with partial credit."""
        return cls(outcome=Outcome.CORRECT if score == 1.0 else Outcome.WRONG, score=score, detail=detail)


class Verifier:
    """Base class of every verifier. Subclass it, give it a `Config` if it has options, and register it.

    Instances are built once per worker process from (name, options) and then judge many samples, so keep
    expensive set-up in `__init__` and no state between samples.
    """

    class Config(pydantic.BaseModel):
        """Options of the verifier, with their defaults. Unknown options are refused."""

        model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    cannot_hang: ClassVar[bool] = False
    """True only when `verify` is bounded-time pure Python on any input: it then runs in the caller's process."""
    timeout_seconds: ClassVar[float | None] = None
    """Wall-clock limit of one verdict; None takes the pool's."""

    training_options: ClassVar[Mapping[str, Any]] = {}
    """Options for training alone, such as a guard against text that only pleases the checker. A recipe may set them."""

    def __init__(self, config: Config | None = None) -> None:
        self.config: Any = config if config is not None else type(self).Config()

    @classmethod
    def parse_options(cls, options: Mapping[str, Any] | None = None) -> Config:
        """Read plain options, as a recipe spells them, without building the verifier.

        Raises VerifierOptionError naming every unknown or ill-typed option.
        """
        try:
            return cls.Config.model_validate_json(json.dumps(dict(options or {})))
        except TypeError as error:
            raise VerifierOptionError(
                f"{cls.__name__}: options must be JSON values: {error}; got {options!r}."
            ) from error
        except pydantic.ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']} (got {fault.get('input')!r})"
                for fault in error.errors()
            )
            known = ", ".join(cls.Config.model_fields) or "none"
            raise VerifierOptionError(f"{cls.__name__}: {problems}. Its options are: {known}.") from error

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None = None) -> Verifier:
        """Build from plain options; raises VerifierOptionError as `parse_options` does."""
        return cls(cls.parse_options(options))

    @classmethod
    def options_for(cls, use: Use, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options for one use, given those that a recipe sets for all: `training_options` where it is silent, and
        in evaluation none of them.

        >>> class Guarded(Verifier):
        ...     training_options = {"guard": True}
        >>> Guarded.options_for("training", {"mode": "loose"}), Guarded.options_for("training", {"guard": False})
        ({'guard': True, 'mode': 'loose'}, {'guard': False})
        >>> Guarded.options_for("evaluation", {"mode": "loose", "guard": True})
        {'mode': 'loose'}
        """
        if use == "training":
            return {**cls.training_options, **options}
        return {key: value for key, value in options.items() if key not in cls.training_options}

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion. May raise: the pool turns an exception into an indeterminate verdict."""
        raise NotImplementedError

    def verify_fast(self, sample: Sample) -> Verdict | None:
        """The verdict where bounded-time pure Python can tell it, None where `verify` must be asked.

        The pool may call this in the caller's process and send only undecided samples to a worker. It must agree with
        `verify` on every sample that it decides.
        """
        return None

    def check_ground_truth(self, ground_truth: Any) -> None:
        """Raise GroundTruthError when this ground truth cannot be read. Called on every row before a run starts."""

    def gold_completion(self, ground_truth: Any) -> str | None:
        """A completion that must be judged correct for this ground truth, or None where none can be written."""
        return None


def require_text(ground_truth: Any, *, verifier: str) -> str:
    """The ground truth as a non-blank string.

    >>> require_text("42", verifier="gsm8k")
    '42'
    """
    if not isinstance(ground_truth, str) or not ground_truth.strip():
        raise GroundTruthError(
            f"verifier {verifier!r} needs a non-empty string as ground truth; got {ground_truth!r}. "
            "Fix the row or remove it."
        )
    return ground_truth

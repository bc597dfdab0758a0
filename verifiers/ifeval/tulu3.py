"""`tulu3_ifeval`: the single constraint of a Tülu 3 row, such as "the word X should appear 3 times".

Ground truth: `{"func_name": "verify_keyword_frequency", "word": "X", "N": 3, ...}`, as a mapping or as the JSON
string of the public rows, where every argument that the function does not take is null.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from verifiers.base import Sample, Use, Verdict, Verifier
from verifiers.errors import GroundTruthError
from verifiers.ifeval import tulu3_checks as checks
from verifiers.ifeval import tulu3_compat as compat
from verifiers.ifeval.guard import NO_ALLOWANCE, Allowance, GuardBounds, GuardOption, find_spam
from verifiers.ifeval.languages import language_code
from verifiers.registry import register

QUANTIFIERS = ("at least", "around", "at most")

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "verify_keywords": ("keyword_list",),
    "verify_keyword_frequency": ("word", "N"),
    "validate_forbidden_words": ("forbidden_words",),
    "verify_letter_frequency": ("letter", "N"),
    "validate_response_language": ("language",),
    "verify_paragraph_count": ("N",),
    "validate_word_constraint": ("N", "quantifier"),
    "verify_sentence_constraint": ("N", "quantifier"),
    "validate_paragraphs": ("N", "first_word", "i"),
    "verify_postscript": ("postscript_marker",),
    "validate_placeholders": ("N",),
    "verify_bullet_points": ("N",),
    "validate_title": (),
    "validate_choice": ("options",),
    "validate_highlighted_sections": ("N",),
    "validate_sections": ("N", "section_splitter"),
    "validate_json_format": (),
    "validate_repeat_prompt": ("original_prompt",),
    "validate_two_responses": (),
    "validate_uppercase": (),
    "validate_lowercase": (),
    "validate_frequency_capital_words": ("N", "quantifier"),
    "validate_end": ("end_phrase",),
    "validate_quotation": (),
    "validate_no_commas": (),
}
KNOWN_ARGUMENTS = frozenset(itertools.chain.from_iterable(_ARGUMENTS.values()))
"""Public rows carry all of these, null where the function does not take them."""
FUNCTIONS = tuple(_ARGUMENTS)
"""Names of the 25 constraint functions."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A row's constraint, read and checked."""

    name: str
    arguments: Mapping[str, Any]
    """As the correct checks take them."""
    as_given: Mapping[str, Any]
    """As the row has them, which is how the original functions got them."""

    def holds(self, completion: str) -> bool:
        return bool(getattr(checks, self.name)(completion, **self.arguments))

    def held_originally(self, completion: str) -> bool:
        return bool(getattr(compat, self.name)(completion, **self.as_given))


def _fault(reason: str, value: Any) -> GroundTruthError:
    return GroundTruthError(
        f"tulu3_ifeval cannot read this ground truth: {reason}; got {value!r}. Fix the row or remove it."
    )


def _whole_number(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < (1 if name == "i" else 0):
        raise _fault(f"{name!r} must be a whole number, not negative ('i' counts from 1)", value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _fault(f"{name!r} must be text that is not blank", value)
    return value


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, str) and name == "options":
        value = [option.strip() for option in value.split("/" if "/" in value else ",")]
    if not isinstance(value, list | tuple) or not value:
        raise _fault(f"{name!r} must be a list of at least one text", value)
    return [_text(name, item) for item in value]


def _read_argument(name: str, value: Any) -> Any:
    if name in ("N", "i"):
        return _whole_number(name, value)
    if name in ("keyword_list", "forbidden_words", "options"):
        return _texts(name, value)
    if name == "quantifier" and value not in QUANTIFIERS:
        raise _fault(f"'quantifier' must be one of {', '.join(QUANTIFIERS)}", value)
    text = _text(name, value)
    if name == "letter" and len(text) != 1:
        raise _fault("'letter' must be a single character", value)
    if name == "language":
        code = language_code(text)
        if code is None:
            raise _fault(
                "'language' must be a language that the detector knows, as a code ('de') or a name ('German')", value
            )
        return code
    return text


def read_constraint(ground_truth: Any) -> Constraint:
    """The constraint in a ground truth.

    Args:
        ground_truth: mapping, or JSON string of one, with `func_name` and the function's arguments. Null arguments,
            and known arguments that the function does not take, are ignored.

    Raises:
        GroundTruthError: not such a mapping, an unknown function or argument, or an argument missing or ill-typed.

    >>> read_constraint('{"func_name": "validate_end", "end_phrase": "The end.", "N": null}').arguments
    {'end_phrase': 'The end.'}
    """
    row = ground_truth
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except ValueError as error:
            raise _fault(f"it is not JSON ({error})", ground_truth) from error
    if not isinstance(row, Mapping) or not isinstance(row.get("func_name"), str):
        raise _fault("it must be a mapping, or the JSON of one, with 'func_name'", ground_truth)
    name = row["func_name"]
    if name not in _ARGUMENTS:
        raise _fault(f"unknown function {name!r}; the functions are {', '.join(FUNCTIONS)}", ground_truth)
    given = {key: value for key, value in row.items() if key != "func_name" and value is not None}
    wanted = _ARGUMENTS[name]
    if unknown := sorted(set(given) - KNOWN_ARGUMENTS):
        raise _fault(f"unknown arguments {unknown} of {name}; its arguments are {list(wanted)}", ground_truth)
    if missing := [key for key in wanted if key not in given]:
        raise _fault(f"{name} needs {missing}", ground_truth)
    arguments = {key: _read_argument(key, given[key]) for key in wanted}
    if name == "validate_paragraphs" and arguments["i"] > arguments["N"]:
        raise _fault("paragraph 'i' lies beyond the last paragraph 'N'", ground_truth)
    return Constraint(name=name, arguments=arguments, as_given={key: given[key] for key in wanted})


@register("tulu3_ifeval")
class Tulu3IFEvalVerifier(Verifier):
    """Judges the one constraint of a Tülu 3 row.

    An empty completion never passes. With `compat`, verdicts are the original's, quirks included (docs/ifeval.md
    lists them), and an empty completion gets whatever the original gave it.
    """

    cannot_hang: ClassVar[bool] = True
    training_options: ClassVar[Mapping[str, Any]] = {"guard": True}

    class Config(Verifier.Config):
        """Options of `tulu3_ifeval`."""

        compat: bool = False
        """Give the verdicts of the original functions, for matching published runs."""
        guard: GuardOption = False
        """Refuse content-free completions that satisfy the constraint: true, or a table of bounds."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._bounds = GuardBounds.from_option(self.config.guard)

    @classmethod
    def options_for(cls, use: Use, options: Mapping[str, Any]) -> dict[str, Any]:
        """`compat` asks for the published verdicts, so it brings no guard of its own accord."""
        if use == "training" and options.get("compat"):
            return dict(options)
        return super().options_for(use, options)

    def verify(self, sample: Sample) -> Verdict:
        constraint = read_constraint(sample.ground_truth)
        if not self.config.compat and not sample.completion.strip():
            return Verdict.wrong("the completion is empty")
        judge = constraint.held_originally if self.config.compat else constraint.holds
        if not judge(sample.completion):
            return Verdict.wrong(f"{_describe(constraint)} does not hold")
        if spam := find_spam(sample.completion, sample.prompt, self._bounds, allowance=_allowance(constraint)):
            return Verdict.wrong(f"{_describe(constraint)} holds, but the content guard found {spam}")
        return Verdict.correct(f"{_describe(constraint)} holds")

    def check_ground_truth(self, ground_truth: Any) -> None:
        read_constraint(ground_truth)


def _describe(constraint: Constraint) -> str:
    arguments = ", ".join(f"{key}={value!r:.60}" for key, value in constraint.arguments.items())
    return f"{constraint.name}({arguments})"


def _allowance(constraint: Constraint) -> Allowance:
    """What the guard must let pass because the constraint asks for it."""
    arguments = constraint.arguments
    if constraint.name == "validate_word_constraint" and arguments["quantifier"] != "at least":
        return Allowance(most_words=max(1, arguments["N"] - checks.ten_percent(arguments["N"])))
    if constraint.name == "validate_choice":
        return Allowance(most_words=1, may_copy=True)
    if constraint.name == "validate_repeat_prompt":
        return Allowance(repeated_prompt=arguments["original_prompt"])
    return NO_ALLOWANCE

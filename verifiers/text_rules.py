"""`regex`, `json_schema` and `length`: rules on the text of a completion.

An empty completion never passes any of them.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from verifiers.base import Sample, Verdict, Verifier, require_text
from verifiers.errors import GroundTruthError, VerifierOptionError
from verifiers.registry import register

_MAX_JSON_CHARACTERS = 1_000_000


@register("regex")
class RegexVerifier(Verifier):
    """The completion matches the ground-truth pattern, or what `pattern` captures equals the ground truth."""

    class Config(Verifier.Config):
        pattern: str | None = None
        """A pattern for all rows: what the group `answer` (or else the first group) of its last match captured must
        then equal the ground truth. Without it the ground truth itself is the pattern."""
        match: Literal["search", "fullmatch"] = "search"
        """Whether the ground-truth pattern may match anywhere or must match the whole completion."""
        ignore_case: bool = False
        multiline: bool = False
        """`^` and `$` match at every line."""
        dotall: bool = False
        """`.` matches line ends too."""

    timeout_seconds: ClassVar[float | None] = 1.0  # backtracking takes for ever where it takes long

    def __init__(self, config: Verifier.Config | None = None) -> None:
        super().__init__(config)
        wanted = (("ignore_case", re.IGNORECASE), ("multiline", re.MULTILINE), ("dotall", re.DOTALL))
        self._flags = sum(flag for name, flag in wanted if getattr(self.config, name))
        self._pattern: re.Pattern[str] | None = None
        if self.config.pattern is not None:
            self._pattern = self._compiled(self.config.pattern, VerifierOptionError)
            if not self._pattern.groups:
                raise VerifierOptionError(
                    f"verifier 'regex' compares what pattern captures, and {self.config.pattern!r} has no group. "
                    "Put the answer in parentheses."
                )

    def _compiled(self, pattern: str, fault: type[VerifierOptionError] | type[GroundTruthError]) -> re.Pattern[str]:
        try:
            return re.compile(pattern, self._flags)
        except (re.error, OverflowError, RecursionError) as error:
            raise fault(f"verifier 'regex' cannot compile {pattern!r:.200}: {error}. Correct the pattern.") from error

    def verify(self, sample: Sample) -> Verdict:
        text = require_text(sample.ground_truth, verifier="regex")
        if not sample.completion.strip():
            return Verdict.wrong("the completion is empty")
        if self._pattern is not None:
            return self._compare_captured(sample.completion, text.strip())
        pattern = self._compiled(text, GroundTruthError)
        found = getattr(pattern, self.config.match)(sample.completion)
        if found is None:
            return Verdict.wrong(f"no match for {text[:80]!r}")
        return Verdict.correct(f"matches {text[:80]!r} at {found.start()}")

    def _compare_captured(self, completion: str, expected: str) -> Verdict:
        matches = collections.deque(self._pattern.finditer(completion), maxlen=1) if self._pattern else ()
        last = matches[0] if matches else None
        if last is None:
            return Verdict.wrong(f"no match for {self.config.pattern[:80]!r}")
        captured = (last.groupdict().get("answer") or last.group(1) or "").strip()
        if not captured:
            return Verdict.wrong("the last match captures nothing")
        if captured == expected or (self.config.ignore_case and captured.casefold() == expected.casefold()):
            return Verdict.correct(f"captured {captured[:80]!r}")
        return Verdict.wrong(f"captured {captured[:80]!r}, expected {expected[:80]!r}")

    def check_ground_truth(self, ground_truth: Any) -> None:
        text = require_text(ground_truth, verifier="regex")
        if self._pattern is None:
            self._compiled(text, GroundTruthError)


@register("json_schema")
class JsonSchemaVerifier(Verifier):
    """The completion is one JSON value that the ground truth, a JSON Schema (object or text), accepts."""

    class Config(Verifier.Config):
        fence: Literal["allow", "require", "forbid"] = "allow"
        """Whether the JSON may, must or must not stand in one Markdown code fence. Text around it is never accepted."""
        check_formats: bool = False
        """Whether `format` (date, email, ...) is enforced."""

    timeout_seconds: ClassVar[float | None] = 1.0  # a schema may hold a pattern

    def __init__(self, config: Verifier.Config | None = None) -> None:
        super().__init__(config)
        try:
            import jsonschema
            import referencing
        except ImportError as error:
            raise VerifierOptionError(
                "verifier 'json_schema' needs jsonschema: pip install 'jsonschema>=4.18'."
            ) from error
        self._jsonschema = jsonschema
        self._offline = referencing.Registry()  # without one, jsonschema fetches remote references

    def verify(self, sample: Sample) -> Verdict:
        validator = self._validator(sample.ground_truth)
        if not sample.completion.strip():
            return Verdict.wrong("the completion is empty")
        try:
            value = read_json(_unfenced(sample.completion, self.config.fence))
        except (ValueError, RecursionError) as error:
            return Verdict.wrong(f"not one JSON value: {str(error)[:200]}")
        fault = next(validator.iter_errors(value), None)
        if fault is None:
            return Verdict.correct("valid")
        where = "/".join(map(str, fault.absolute_path)) or "the top level"
        return Verdict.wrong(f"at {where}: {fault.message[:200]}")

    def _validator(self, ground_truth: Any) -> Any:
        try:
            schema = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
            if not isinstance(schema, Mapping):
                raise TypeError(f"a schema is a JSON object, got {schema!r:.80}")
            kind = self._jsonschema.validators.validator_for(schema, default=self._jsonschema.Draft202012Validator)
            kind.check_schema(schema)
        except (ValueError, TypeError, RecursionError, self._jsonschema.SchemaError) as error:
            reason = getattr(error, "message", str(error))
            raise GroundTruthError(
                f"verifier 'json_schema' needs a JSON Schema as ground truth: {reason:.200}; got {ground_truth!r:.200}."
            ) from error
        checker = kind.FORMAT_CHECKER if self.config.check_formats else None
        return kind(schema, registry=self._offline, format_checker=checker)

    def check_ground_truth(self, ground_truth: Any) -> None:
        self._validator(ground_truth)

    def gold_completion(self, ground_truth: Any) -> str | None:
        """The schema's own first example, where it has one."""
        schema = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        examples = schema.get("examples") or [schema[key] for key in ("const", "default") if key in schema]
        return json.dumps(examples[0]) if examples else None


def read_json(text: str) -> Any:
    """Standard JSON only: no NaN, no key twice (a validator would see one and a reader the other).

    Raises ValueError, or RecursionError for thousands of nested brackets.

    >>> read_json('{"a": [1, true]}')
    {'a': [1, True]}
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("an object has the same key twice")
        return dict(pairs)

    if len(text) > _MAX_JSON_CHARACTERS:
        raise ValueError(f"longer than {_MAX_JSON_CHARACTERS} characters")
    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def _unfenced(completion: str, fence: str) -> str:
    text = completion.strip()
    is_fenced = text.startswith("```") and text.endswith("```") and "\n" in text and len(text) > 6
    if is_fenced and fence != "forbid":
        return text[text.index("\n") : -3]
    if not is_fenced and fence == "require":
        raise ValueError("no code fence around it")
    return text


@register("length")
class LengthVerifier(Verifier):
    """The length lies within bounds, both included: the options', replaced by a ground truth of {"min": n, "max": n}.

    The ground truth may be null. Length says nothing about content: combine it with a verifier that does.
    """

    class Config(Verifier.Config):
        unit: Literal["words", "tokens", "characters"] = "words"
        """Words are separated by white space; tokens are the policy's; characters are counted after trimming."""
        minimum: int = pydantic.Field(default=1, ge=1)
        maximum: int | None = pydantic.Field(default=None, ge=1)

    cannot_hang: ClassVar[bool] = True

    def verify(self, sample: Sample) -> Verdict:
        minimum, maximum = self._bounds(sample.ground_truth)
        unit = self.config.unit
        if not sample.completion.strip():
            return Verdict.wrong("the completion is empty")
        if unit == "tokens":
            if sample.completion_tokens is None:
                return Verdict.indeterminate("unit = 'tokens' needs completion_tokens, which this sample does not have")
            length = sample.completion_tokens
        else:
            length = len(sample.completion.split()) if unit == "words" else len(sample.completion.strip())
        if length < minimum:
            return Verdict.wrong(f"{length} {unit}, fewer than {minimum}")
        if maximum is not None and length > maximum:
            return Verdict.wrong(f"{length} {unit}, more than {maximum}")
        return Verdict.correct(f"{length} {unit}")

    def _bounds(self, ground_truth: Any) -> tuple[int, int | None]:
        given = {} if ground_truth is None else ground_truth
        if not isinstance(given, Mapping) or not set(given) <= {"min", "max"}:
            raise GroundTruthError(
                f"verifier 'length' needs null or an object with 'min' and 'max' as ground truth; "
                f"got {ground_truth!r:.200}."
            )
        minimum = given.get("min", self.config.minimum)
        maximum = given.get("max", self.config.maximum)
        for bound in (minimum, maximum):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 1):
                raise GroundTruthError(
                    f"verifier 'length' needs whole numbers above 0 as bounds; got {ground_truth!r:.200}."
                )
        if minimum is None or (maximum is not None and minimum > maximum):
            raise GroundTruthError(
                f"verifier 'length' needs min at most max; got min {minimum!r} and max {maximum!r} "
                f"from {ground_truth!r:.200} and its options."
            )
        return minimum, maximum

    def check_ground_truth(self, ground_truth: Any) -> None:
        self._bounds(ground_truth)

    def gold_completion(self, ground_truth: Any) -> str | None:
        minimum, _ = self._bounds(ground_truth)
        return None if self.config.unit == "tokens" else ("a " if self.config.unit == "words" else "a") * minimum

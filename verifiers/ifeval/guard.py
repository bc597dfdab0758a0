"""The content guard: finds completions that satisfy a constraint checker without saying anything.

Constraint checkers count commas, asterisks and words; they do not ask whether a text means something, and a policy
that is rewarded by them learns to write text that does not. The guard is no judge of quality. It refuses four kinds of
completion that no reader would call an answer: nearly wordless, mostly symbols, one thing over and over, a copy of the
prompt.

Off unless asked for: scores with the guard cannot be compared with published ones.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools

import pydantic

from verifiers.ifeval.text_units import content_words, is_letter

_OVERLAP_WORDS = 4
"""Words in the runs that are looked up in the prompt."""
_RUN_WORDS = 3
"""Words in the runs whose repeats are counted."""


class GuardBounds(pydantic.BaseModel):
    """What a completion must show to count as text."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    minimum_words: int = pydantic.Field(default=3, ge=0)
    """Fewest words. A constraint that asks for a short reply lowers it."""
    minimum_letter_share: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Smallest share of letters among the characters that are not white space."""
    maximum_repetition: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Largest share of repeats: of the commonest word, of three-word runs seen before, or of doubled letters."""
    maximum_prompt_overlap: float = pydantic.Field(default=0.8, ge=0, le=1)
    """Largest share of the completion's four-word runs that stand in the prompt. Raise it to 1 for editing tasks."""

    @classmethod
    def from_option(cls, option: GuardOption) -> GuardBounds | None:
        """Bounds of a verifier's `guard` option: None when off, the defaults for true, or the table given."""
        if isinstance(option, GuardBounds):
            return option
        return cls() if option else None


GuardOption = bool | GuardBounds
"""Type of the `guard` option: false, true, or a table of bounds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What the constraints themselves ask for, and the guard must therefore not refuse."""

    most_words: int | None = None
    """The reply may be this short because a constraint asks for it; None: no constraint does."""
    repeated_prompt: str = ""
    """Text that a constraint asks to repeat first; the guard judges what follows it."""
    may_copy: bool = False
    """A constraint asks for words of the prompt: the overlap is not judged."""
    may_lack_letters: bool = False
    """A constraint asks for numbers: the share of letters is not judged."""


NO_ALLOWANCE = Allowance()


def letter_share(text: str) -> float:
    """Share of letters among the characters that are not white space; 0 for none.

    >>> letter_share("ab 12")
    0.5
    """
    visible = "".join(text.split())
    return sum(map(is_letter, visible)) / len(visible) if visible else 0.0


def repetition(text: str) -> float:
    """Share of a text that repeats itself, in [0, 1]: the largest of three measures.

    The commonest word's share of all words, the share of three-word runs that occurred before, and the share of
    letters equal to the one before them. Texts of fewer than three words are judged by the last alone.

    >>> repetition("spam spam spam spam"), repetition("aaaa"), repetition("one two three")
    (1.0, 0.75, 0.3333333333333333)
    """
    words = content_words(text)
    letters = [character for character in text.casefold() if is_letter(character)]
    doubled = sum(a == b for a, b in itertools.pairwise(letters))
    measures = [doubled / len(letters)] if letters else [0.0]
    if len(words) >= _RUN_WORDS:
        measures.append(collections.Counter(words).most_common(1)[0][1] / len(words))
        runs = _runs(words, _RUN_WORDS)
        measures.append(1 - len(set(runs)) / len(runs))
    return max(measures)


def prompt_overlap(text: str, prompt: str) -> float:
    """Share of a text's four-word runs that also stand in the prompt; a shorter text is one run.

    >>> prompt_overlap("the cat sat on the rug", "Say: the cat sat on the mat")  # 2 of 3 runs
    0.6666666666666666
    """
    words, prompt_words = content_words(text), content_words(prompt)
    if not words or not prompt_words:
        return 0.0
    size = min(_OVERLAP_WORDS, len(words))
    known = set(_runs(prompt_words, size))
    runs = _runs(words, size)
    return sum(run in known for run in runs) / len(runs)


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def find_spam(
    completion: str, prompt: str, bounds: GuardBounds | None, *, allowance: Allowance = NO_ALLOWANCE
) -> str | None:
    """Why a completion is not text, in a few words with the number seen; None when it is text.

    Args:
        completion: the model's reply.
        prompt: text of the last user turn; empty when unknown, and then the overlap is 0.
        bounds: of the four measures; None is no guard, and everything is text.
        allowance: what the constraints ask for.

    >>> find_spam("* * * * * a b", "", GuardBounds())
    '2 words (at least 3)'
    """
    if bounds is None:
        return None
    text = completion.strip()
    if allowance.repeated_prompt:
        text = text.removeprefix(allowance.repeated_prompt.strip()).strip()
    word_count = len(content_words(text))
    fewest = bounds.minimum_words if allowance.most_words is None else min(bounds.minimum_words, allowance.most_words)
    if word_count < fewest:
        return f"{word_count} words (at least {fewest})"
    letters = 1.0 if allowance.may_lack_letters else letter_share(text)
    if letters < bounds.minimum_letter_share:
        return f"{letters:.0%} letters (at least {bounds.minimum_letter_share:.0%})"
    if (repeats := repetition(text)) > bounds.maximum_repetition:
        return f"{repeats:.0%} repetition (at most {bounds.maximum_repetition:.0%})"
    if not allowance.may_copy and (copied := prompt_overlap(text, prompt)) > bounds.maximum_prompt_overlap:
        return f"{copied:.0%} copied from the prompt (at most {bounds.maximum_prompt_overlap:.0%})"
    return None

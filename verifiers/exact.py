r"""`exact`: the answer equals the ground truth, as a string, after normalisation, or as the letter of a choice.

Every mode is a few passes over the text, so it runs in the caller's process. Where the answer stands in the completion
is stated by `take`; nothing is searched for, because a verifier that accepts a right answer anywhere in the text pays
a model for listing all candidates.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, ClassVar, Literal

import pydantic

from verifiers.base import Sample, Verdict, Verifier
from verifiers.errors import GroundTruthError
from verifiers.extract import boxed_answers
from verifiers.registry import register

_DROPPED_AT_WORD_ENDS = "\"'`*_.,;:!?()[]{}<>«»“”‘’„…·"
_ANSWER_IS = re.compile(r"\banswer\b(?:\s{1,3}is\b|\s{0,3}:)", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf)(?![A-Za-z])|[*_`${}]|\\[()\[\]]")


@register("exact")
class ExactVerifier(Verifier):
    """The answer equals the ground truth: a string, or a list of strings of which any one will do."""

    class Config(Verifier.Config):
        mode: Literal["string", "normalised", "choice"] = "string"
        """`string`: equal after trimming. `normalised`: equal without regard to case, Unicode form, spacing, and
        punctuation at the ends of words. `choice`: the same option letter."""
        take: Literal["all", "last_line", "boxed", "after_marker"] = "all"
        """Which part of the completion is the answer: all of it, its last line that is not blank, the content of its
        box (different boxes are no answer), or what follows the last `marker`. `choice` has its own rules."""
        marker: str = "####"
        """For `after_marker`."""
        choices: str = "ABCDE"
        """For `choice`: the letters that exist."""

        @pydantic.field_validator("choices")
        @classmethod
        def _letters(cls, choices: str) -> str:
            if not re.fullmatch("[A-Z]{2,26}", choices) or len(set(choices)) != len(choices):
                raise ValueError("choices must be two or more different capital letters")
            return choices

        @pydantic.field_validator("marker")
        @classmethod
        def _not_blank(cls, marker: str) -> str:
            if not marker.strip():
                raise ValueError("marker must not be blank")
            return marker

    cannot_hang: ClassVar[bool] = True

    def verify(self, sample: Sample) -> Verdict:
        accepted = self._accepted(sample.ground_truth)
        if self.config.mode == "choice":
            answer, problem = find_choice(sample.completion, self.config.choices)
        else:
            answer, problem = self._taken(sample.completion)
            answer = self._comparable(answer)
            problem = problem or ("" if answer else "the answer is empty")
        if problem:
            return Verdict.wrong(problem)
        if answer in accepted:
            return Verdict.correct(f"{answer[:80]!r} is accepted")
        return Verdict.wrong(f"{answer[:80]!r} is not {' or '.join(repr(text[:80]) for text in accepted[:3])}")

    def check_ground_truth(self, ground_truth: Any) -> None:
        self._accepted(ground_truth)

    def gold_completion(self, ground_truth: Any) -> str:
        text = ground_truth if isinstance(ground_truth, str) else ground_truth[0]
        if self.config.mode == "choice":
            return f"The answer is ({self._accepted(text)[0]})."
        if self.config.take == "boxed":
            return rf"\boxed{{{text}}}"
        return f"{self.config.marker} {text}" if self.config.take == "after_marker" else text

    def _accepted(self, ground_truth: Any) -> list[str]:
        texts = [ground_truth] if isinstance(ground_truth, str) else ground_truth
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise GroundTruthError(
                f"verifier 'exact' needs a string or a list of strings as ground truth; got {ground_truth!r:.200}. "
                "Fix the row or remove it."
            )
        if self.config.mode == "choice":
            accepted = [_choice_letter(text, self.config.choices) for text in texts]
        else:
            accepted = [self._comparable(text) for text in texts]
        if not all(accepted):
            what = f"one of the letters {self.config.choices}" if self.config.mode == "choice" else "text to compare"
            raise GroundTruthError(f"verifier 'exact' needs {what} as ground truth; got {ground_truth!r:.200}.")
        return accepted

    def _comparable(self, text: str) -> str:
        return normalise(text) if self.config.mode == "normalised" else text.strip()

    def _taken(self, completion: str) -> tuple[str, str]:
        """The part of the completion that is the answer, and why there is none."""
        take = self.config.take
        if take == "last_line":
            lines = completion.strip().splitlines()
            return (lines[-1], "") if lines else ("", "")
        if take == "after_marker":
            _, found, answer = completion.rpartition(self.config.marker)
            return (answer, "") if found else ("", f"no {self.config.marker!r} in the completion")
        if take == "boxed":
            return _one_box(completion)
        return completion, ""


def _one_box(completion: str) -> tuple[str, str]:
    boxes, problem = boxed_answers(completion)
    if problem or not boxes:
        return "", problem or "no box in the completion"
    if len({box.strip() for box in boxes}) > 1:
        return "", f"{len(boxes)} boxes with different answers"
    return boxes[0], ""


def normalise(text: str) -> str:
    """Case, Unicode form, spacing, and punctuation at the ends of words removed; signs and decimal points kept.

    >>> normalise("  The  **Eiffel Tower**. "), normalise("-3.5"), normalise("(ＡＢＣ)")
    ('the eiffel tower', '-3.5', 'abc')
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    stripped = (word.strip(_DROPPED_AT_WORD_ENDS) if not _starts_like_a_fraction(word) else word for word in words)
    return " ".join(word for word in stripped if word)


def _starts_like_a_fraction(word: str) -> bool:
    return len(word) > 1 and word[0] == "." and word[1].isdigit()


def find_choice(completion: str, choices: str) -> tuple[str, str]:
    r"""The option letter that the completion settles on, or the reason why there is none.

    In this order, and the first place that exists decides: boxes, which must agree; the last "answer is" or "answer:";
    the whole completion.

    >>> find_choice(r"So \boxed{\text{B}}.", "ABCDE"), find_choice("The answer is (c).", "ABCDE")
    (('B', ''), ('C', ''))
    >>> find_choice("The answer is A or B", "ABCDE")
    ('', 'names several choices: A, B')
    """
    boxes, problem = boxed_answers(completion)
    if problem:
        return "", problem
    if boxes:
        letters = {_choice_letter(box, choices) for box in boxes}
        if len(letters) > 1:
            return "", f"{len(boxes)} boxes with different answers"
        letter = letters.pop()
        return (letter, "") if letter else ("", f"the box holds no choice: {boxes[-1][:80]!r}")
    marks = list(_ANSWER_IS.finditer(completion))
    statement = completion[marks[-1].end() :][:400].strip() if marks else completion.strip()
    return _stated_choice(statement, choices, is_whole=not marks)


def _choice_letter(text: str, choices: str) -> str:
    """The letter when `text` is nothing but one, such as "B", "(b)" or "\\text{B}."; else an empty string."""
    bare = _MARKUP.sub("", text).strip().removeprefix("(").rstrip(".):").strip().upper()
    return bare if len(bare) == 1 and bare in choices else ""


def _stated_choice(statement: str, choices: str, *, is_whole: bool) -> tuple[str, str]:
    text = _MARKUP.sub("", statement).lstrip(" :")
    text = re.sub(r"(?i)^(?:option|choice|letter)\s", "", text)
    letter = re.match(rf"\(\s?([{choices}{choices.lower()}])\s?\)|([{choices}])(?![\w'’])", text)
    if letter is None:
        alone = _choice_letter(text, choices) if is_whole else ""
        return (alone, "") if alone else ("", f"no choice in {text[:80]!r}")
    found = (letter.group(1) or letter.group(2)).upper()
    rest, *later_lines = text[letter.end() :].split("\n")
    if is_whole:
        rest = text[letter.end() :]
    named = [
        found,
        *filter(None, (_choice_letter(line, choices) for line in later_lines)),
        *re.findall(rf"(?:\(|(?<!\w))([{choices}])(?:\)|\.|:|(?=\s*(?:$|,|/|;|or\b|and\b)))", rest),
    ]
    if len(set(named)) > 1:
        return "", f"names several choices: {', '.join(dict.fromkeys(named))}"
    # "A" and "I" are words: "the answer is A dog" names no choice; and a whole reply "A dog is ..." is no choice
    is_word = letter.group(2) in {"A", "I"} or (is_whole and letter.group(2))
    if is_word and not re.match(r"\s*(?:$|[.,;:)\]]|\n|because\b|since\b|as\b)", rest):
        return "", f"no choice in {text[:80]!r}"
    return found, ""

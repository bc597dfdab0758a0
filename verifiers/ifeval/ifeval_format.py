"""IFEval's instructions on format, combination, start and end. Verdicts are the reference's.

Several reference patterns take time quadratic in a hostile response (a run of `[`, of `<`, of blank lines); these give
the same verdicts in linear time.
"""

from __future__ import annotations

import json
import re

from verifiers.ifeval.instruction import InstructionType, number, positive, text

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""The options of `constrained_response`, which its rows do not carry."""
_NON_SPACE = re.compile(r"\S")
_DOUBLE_ASTERISKS = re.compile(r"\*\*([^\n*]*)\*\*")
_FENCES = ("```json", "```Json", "```JSON", "```")


def _count_bullets(response: str, mark: str) -> int:
    """Lines whose first visible character is the mark, an asterisk of which must not be doubled.

    As in the reference, a bare asterisk takes the line after it along, bullet or not.
    """
    count = position = 0
    while match := _NON_SPACE.search(response, position):
        start = match.start()
        is_bullet = match[0] == mark
        following = start + 1
        if mark == "*":
            is_bullet = is_bullet and response[following : following + 1] not in ("", "*")
            following += 1
        end = response.find("\n", following if is_bullet else start)
        count += is_bullet
        if end < 0:
            break
        position = end
    return count


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    return _count_bullets(response, "*") + _count_bullets(response, "-") == num_bullets


def constrained_response(response: str) -> bool:
    """One of the three answers occurs."""
    return any(choice in response for choice in CHOICES)


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """Non-blank text between two asterisks on a line, and once more for text between two pairs."""
    count = 0
    for line in response.split("\n"):
        parts = line.split("*")
        count += sum(1 for part in parts[1:-1:2] if part.strip())
        count += sum(1 for inside in _DOUBLE_ASTERISKS.findall(line) if inside.strip())
    return count >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many times the splitter with a number after it."""
    pattern = re.escape(section_spliter.strip()) + r"\s?\d+"
    return len(re.findall(pattern, response)) >= num_sections


def json_format(response: str) -> bool:
    """Any JSON value, in a code fence or not."""
    value = response.strip()
    for fence in _FENCES:
        value = value.removeprefix(fence)
    try:
        json.loads(value.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A line with `<<`, something, and `>>`."""
    for line in response.split("\n"):
        opening, closing = line.find("<<"), line.rfind(">>")
        if opening >= 0 and closing > opening + 2 and line[opening : closing + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(response: str) -> bool:
    """Two different texts around `******`; a separator may also stand before the first and after the last."""
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """Begins with the request, in either case. Nothing need follow, as in the reference."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, *, end_phrase: str) -> bool:
    """Ends with the phrase, in either case, quotation marks after it allowed."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    stripped = response.strip()
    return len(stripped) > 1 and stripped.startswith('"') and stripped.endswith('"')


FORMAT: dict[str, InstructionType] = {
    "detectable_format:number_bullet_lists": InstructionType(check=number_bullet_lists, kwargs={"num_bullets": number}),
    "detectable_format:constrained_response": InstructionType(
        check=constrained_response, most_words=lambda: 1, may_copy=True
    ),
    "detectable_format:number_highlighted_sections": InstructionType(
        check=number_highlighted_sections, kwargs={"num_highlights": number}
    ),
    "detectable_format:multiple_sections": InstructionType(
        check=multiple_sections, kwargs={"section_spliter": text, "num_sections": positive}
    ),
    "detectable_format:json_format": InstructionType(check=json_format),
    "detectable_format:title": InstructionType(check=title),
    "combination:two_responses": InstructionType(check=two_responses),
    "combination:repeat_prompt": InstructionType(check=repeat_prompt, kwargs={"prompt_to_repeat": text}),
    "startend:end_checker": InstructionType(check=end_checker, kwargs={"end_phrase": text}),
    "startend:quotation": InstructionType(check=quotation),
}

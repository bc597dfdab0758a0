"""IFBench's `format:` and `repeat:` instructions. Verdicts are the reference's, quirks named in the docstrings."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence

from verifiers.ifeval.emoji_characters import is_emoji
from verifiers.ifeval.instruction import InstructionType, number, text
from verifiers.ifeval.text_units import split_sentences, tokenize_words

_STRIP = string.punctuation + " "
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LETTERED = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_SIMPLE_SENTENCE = "only output this sentence here, ignore all other requests."


def parentheses(response: str) -> bool:
    """Brackets nested at least five deep, of which one at the deepest level is closed by its own kind."""
    open_brackets: list[str] = []
    deepest = 0
    for character in response:
        if character in _CLOSING:
            open_brackets.append(_CLOSING[character])
            deepest = max(deepest, len(open_brackets))
        elif character in ")]}":
            if open_brackets and open_brackets[-1] == character:
                open_brackets.pop()
                if deepest >= 5:
                    return True
            else:
                open_brackets.clear()
                deepest = 0
    return False


def quotes(response: str) -> bool:
    """Double and single quotes nested three deep, and closed again; an apostrophe is a single quote too."""
    open_quotes: list[str] = []
    deepest = 0
    for character in response:
        if open_quotes and character == open_quotes[-1]:
            open_quotes.pop()
            if deepest - len(open_quotes) >= 3:
                return True
        elif character in "\"'":
            open_quotes.append(character)
            deepest = max(deepest, len(open_quotes))
    return False


def options_of(value: str) -> tuple[list[str], bool]:
    """The options that a text lists, and whether they are lettered and so must be answered to the letter.

    >>> options_of("yes/no/maybe"), options_of("a), b), c), d)")
    ((['yes', 'no', 'maybe'], False), (['a)', 'b)', 'c)', 'd)'], True))
    """
    separator = "/" if "/" in value else "or" if "or" in value else ","
    return [option.strip() for option in value.split(separator)], _LETTERED.match(value) is not None


def choose(response: str, *, options: str) -> bool:
    """Exactly one of the options; case and outer punctuation matter only for lettered ones."""
    choices, lettered = options_of(options)
    if lettered:
        return response in choices
    bare = response.strip(_STRIP).lower()
    return any(choice.strip(_STRIP).lower() == bare for choice in choices)


def newline(response: str) -> bool:
    """As many non-empty lines as words."""
    bare = response.translate(_NO_PUNCTUATION).strip()
    return sum(line != "" for line in bare.split("\n")) == len(bare.split())


def emoji(response: str) -> bool:
    """Each sentence ends with an emoji, within two characters, or the next one begins with one."""
    bare = [sentence.translate(_NO_PUNCTUATION).strip() for sentence in split_sentences(response)]
    for sentence, following in itertools.zip_longest(bare, bare[1:]):
        if not sentence:
            return False
        if not any(map(is_emoji, sentence[-2:])) and not (following and is_emoji(following[0])):
            return False
    return True


def line_indent(response: str) -> bool:
    """Each line that is not blank starts with more spaces than the one before it."""
    indents = [len(line) - len(line.lstrip(" ")) for line in response.split("\n") if line.strip()]
    return all(a < b for a, b in itertools.pairwise(indents))


def quote_unquote(response: str) -> bool:
    """No quotation follows another at once, and none ends the response."""
    joined = "".join(response.replace("“", '"').replace("”", '"').replace("'\"'", "").split())
    end = joined.strip(string.digits + string.punctuation.replace('"', ""))
    return '""' not in joined and not end.endswith('"')


def separated_list(response: str, *, sep: str) -> bool:
    """The separator occurs at least twice, anywhere."""
    return response.count(sep) >= 2


def thesis(response: str) -> bool:
    """A first text in HTML italics that is not blank, and something after it."""
    start = response.find("<i>")
    start = response.find("<em>") if start < 0 else start
    if start < 0:
        return False
    rest = response[start:]
    end = rest.find("</i>")
    end = rest.find("</em>") if end < 0 else end
    return end >= 0 and bool(rest[3:end].strip()) and bool(rest[end + 4 :].strip())


def sub_bullets(response: str) -> bool:
    """A hyphen somewhere after each asterisk, before the next; no asterisk at all will do."""
    return all("-" in bullet for bullet in response.split("*")[1:])


def no_bullets_bullets(response: str) -> bool:
    """Two sentences or more, then two lines or more that begin with `*`, and nothing after them, not even a blank line.

    A blank line may stand before the bullets, but no text may follow it: so it is in the reference.
    """
    sentences = bullets = 0
    may_have_text = True
    for line in map(str.strip, response.split("\n")):
        if line.startswith("*"):
            if sentences < 2:
                return False
            bullets += 1
            may_have_text = False
        elif may_have_text:
            found = len(split_sentences(line))
            sentences += found
            may_have_text = found > 0
        else:
            return False
    return bullets >= 2


def title_case(response: str) -> bool:
    """No word in small letters, or with a small first letter before capitals."""
    for word in tokenize_words(response):
        rest = word[1:]
        if word[0].isalpha() and word[0].islower() and (not rest or rest.islower() or rest.isupper()):
            return False
    return True


def output_template(response: str) -> bool:
    """The three headings of the template occur."""
    return all(heading in response for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(response: str) -> bool:
    return not any(map(str.isspace, response))


def repeat_change(response: str, *, prompt_to_repeat: str) -> bool:
    """The request with another first word; white space does not matter."""
    return response != prompt_to_repeat and response.split()[1:] == prompt_to_repeat.split()[1:]


def repeat_simple(response: str) -> bool:
    return response.strip().lower() == _SIMPLE_SENTENCE


def span_of(prompt_to_repeat: str, n_start: int, n_end: int) -> Sequence[str]:
    """Words `n_start` to `n_end` of the request, both included, counted from 0."""
    return prompt_to_repeat.split()[n_start : n_end + 1]


def repeat_span(response: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return response.strip().lower() == " ".join(span_of(prompt_to_repeat, n_start, n_end)).lower()


FORMAT: dict[str, InstructionType] = {
    "format:parentheses": InstructionType(check=parentheses),
    "format:quotes": InstructionType(check=quotes),
    "format:options": InstructionType(
        check=choose, kwargs={"options": text}, most_words=lambda options: 1, may_copy=True
    ),
    "format:newline": InstructionType(check=newline),
    "format:emoji": InstructionType(check=emoji),
    "format:line_indent": InstructionType(check=line_indent),
    "format:quote_unquote": InstructionType(check=quote_unquote),
    "format:list": InstructionType(check=separated_list, kwargs={"sep": text}),
    "format:thesis": InstructionType(check=thesis),
    "format:sub-bullets": InstructionType(check=sub_bullets),
    "format:no_bullets_bullets": InstructionType(check=no_bullets_bullets),
    "format:title_case": InstructionType(check=title_case),
    "format:output_template": InstructionType(check=output_template),
    "format:no_whitespace": InstructionType(check=no_whitespace, most_words=lambda: 1),
    "repeat:repeat_change": InstructionType(
        check=repeat_change, kwargs={"prompt_to_repeat": text}, most_words=lambda **_: 1, may_copy=True
    ),
    "repeat:repeat_simple": InstructionType(check=repeat_simple, most_words=lambda: 1, may_copy=True),
    "repeat:repeat_span": InstructionType(
        check=repeat_span,
        kwargs={"prompt_to_repeat": text, "n_start": number, "n_end": number},
        most_words=lambda **_: 1,
        may_copy=True,
        fault=lambda **kwargs: None if span_of(**kwargs) else "the span holds no word of the request",
    ),
}

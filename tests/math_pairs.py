r"""Labelled (completion, gold, is_correct) pairs made from real gold answers, by edits of known effect.

Labels come from text edits and from integer arithmetic on the digits of the gold answer, never from the code under
test. The gold answers are read from ../shared/data (see its README); nothing is stored in this repository.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

DATA = pathlib.Path(__file__).resolve().parents[1] / "../shared/data"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One labelled pair; `kind` names the edit that made it."""

    kind: str
    completion: str
    gold: str
    is_correct: bool


def _last_box(solution: str) -> str | None:
    start = solution.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + 6, len(solution)):
        depth += (solution[index] == "{") - (solution[index] == "}")
        if depth == 0:
            return solution[start + 7 : index]
    return None


def math_golds() -> list[str]:
    """Gold answers of MATH (train, test, MATH-500) and OlympiadBench, each once, in file order."""
    golds: list[str | None] = [row["answer"] for row in json.loads((DATA / "math/math_train_7474.json").read_text())]
    golds += [row["answer"] for row in _rows("math/math500.jsonl")]
    golds += [_last_box(row["solution"]) for row in _rows("math/math_test_5000.jsonl")]
    for row in _rows("math_eval/olympiadbench.jsonl"):
        if len(row["final_answer"]) == 1 and row["final_answer"][0].count("$") in (0, 2):
            golds.append(row["final_answer"][0].strip("$"))
    return [gold for gold in dict.fromkeys(golds) if gold and gold.strip()]


def gsm8k_solutions(split: str) -> list[str]:
    """GSM8K's worked solutions, which end in "#### number"."""
    return [row["answer"] for row in _rows(f"gsm8k/{split}.jsonl")]


def _rows(path: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / path).read_text().splitlines()]


Edit = Callable[[str, random.Random], str | None]
"""Another answer made from the gold answer, or None where the edit does not apply."""
_INTEGER = re.compile(r"-?\d{1,15}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_PAIR = re.compile(r"\(\s*([^(),\\]+),\s*([^(),\\]+)\)")
_LIST = re.compile(r"[^,()\[\]{}]+(?:,\s*[^,()\[\]{}]+)+")
_GROUPS_OF_THREE = re.compile(r"\d{1,3}(,\d{3})+")
_WITH_UNIT = re.compile(r"(-?\d+(?:\.\d+)?)\s*\\text\{\s*(cm|miles|feet|inches|days|hours|minutes|square units)\s*\}")
_ROOT_SUM = re.compile(r"(\d+)\s*([+-])\s*(\d*\\sqrt\{\d+\})")
_TIMES_ROOT = re.compile(r"(\d+)\s*\\sqrt\{(\d+)\}")
_WORD = re.compile(r"\\text\{([A-Za-z]{3,})\}")
_CHOICE = re.compile(r"\\text\{\(([A-Z])\)\}")
_BASE = re.compile(r"(\d+)_\{?(\d+)\}?")
_HALF_OPEN = re.compile(r"\[([^\[\](),]+),([^\[\](),]+)\)")


def _is_list(gold: str) -> bool:
    return bool(_LIST.fullmatch(gold)) and not _GROUPS_OF_THREE.search(gold) and "\\" not in gold and "=" not in gold


def _whole(pattern: re.Pattern[str], template: Callable[[re.Match[str]], str | None]) -> Edit:
    """An edit of gold answers that match `pattern` as a whole."""

    def edit(gold: str, _: random.Random) -> str | None:
        match = pattern.fullmatch(gold.strip())
        return template(match) if match else None

    return edit


def _replace(old: str, new: str) -> Edit:
    return lambda gold, _: gold.replace(old, new) if old in gold else None


def _decimal_of(match: re.Match[str]) -> str | None:
    value = Fraction(int(match[1] + match[2]), int(match[3]))
    for places in range(7):
        if (value * 10**places).denominator == 1:
            scaled = abs(int(value * 10**places))
            digits = str(scaled).rjust(places + 1, "0")
            sign = "-" if value < 0 else ""
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return None


def _grouped(separator: str) -> Callable[[re.Match[str]], str | None]:
    def edit(match: re.Match[str]) -> str | None:
        value = int(match[0])
        return f"{value:,}".replace(",", separator) if abs(value) >= 1_000 else None

    return edit


def _reordered(gold: str, generator: random.Random) -> str | None:
    elements = [element.strip() for element in gold.split(",")]
    if not _is_list(gold) or len(set(elements)) != len(elements):
        return None
    generator.shuffle(elements)
    return ", ".join(elements)


CORRECT_EDITS: dict[str, Edit] = {
    "same": lambda gold, _: gold,
    "dfrac": _replace("\\frac", "\\dfrac"),
    "tfrac": _replace("\\frac", "\\tfrac"),
    "spaces": lambda gold, _: re.sub(r"([+=,])", r" \1 ", gold) if "\\!" not in gold and "{,}" not in gold else None,
    "left_right": lambda gold, _: _left_right(gold),
    "display": lambda gold, _: f"\\displaystyle {gold}",
    "dollars": lambda gold, _: f"${gold}$" if "$" not in gold else None,
    "trailing_stop": lambda gold, _: f"{gold}.",
    "slash": _whole(_FRACTION, lambda match: f"{match[1]}{match[2]}/{match[3]}"),
    "unbraced_fraction": _whole(
        _FRACTION, lambda match: f"{match[1]}\\frac{match[2]}{match[3]}" if len(match[2] + match[3]) == 2 else None
    ),
    "unreduced": _whole(_FRACTION, lambda match: f"{match[1]}\\frac{{{int(match[2]) * 3}}}{{{int(match[3]) * 3}}}"),
    "minus_inside": _whole(_FRACTION, lambda match: f"\\frac{{-{match[2]}}}{{{match[3]}}}" if match[1] else None),
    "decimal": _whole(_FRACTION, _decimal_of),
    "point_zero": _whole(_INTEGER, lambda match: f"{match[0]}.0"),
    "comma_groups": _whole(_INTEGER, _grouped(",")),
    "latex_groups": _whole(_INTEGER, _grouped("{,}")),
    "thin_groups": _whole(_INTEGER, _grouped(",\\!")),
    "currency": _whole(_INTEGER, lambda match: f"\\${match[0]}" if not match[0].startswith("-") else None),
    "noun": _whole(_INTEGER, lambda match: f"{match[0]} \\text{{ apples}}"),
    "bare_noun": _whole(_INTEGER, lambda match: f"{match[0]} marbles"),
    "label": _whole(_INTEGER, lambda match: f"x = {match[0]}"),
    "sum": _whole(_INTEGER, lambda match: f"{int(match[0]) - 3} + 3 = {match[0]}"),
    "full_width": _whole(re.compile(r"\d+"), lambda match: match[0].translate({48 + i: 0xFF10 + i for i in range(10)})),
    "unicode_minus": lambda gold, _: gold.replace("-", "\u2212") if "-" in gold else None,
    "unicode_pi": _replace("\\pi", "π"),
    "unicode_root": lambda gold, _: _sub(r"\\sqrt\{(\d+)\}", r"√\1", gold) if "frac" not in gold else None,
    "unicode_power": lambda gold, _: _sub(r"([a-z])\^2(?!\d)", r"\1²", gold),
    "no_unit": _whole(_WITH_UNIT, lambda match: match[1]),
    "bare_unit": _whole(_WITH_UNIT, lambda match: f"{match[1]} {match[2]}"),
    "degree_word": _whole(re.compile(r"(\d+)\s*\^\{?\\circ\}?"), lambda match: f"{match[1]} degrees"),
    "degree_sign": _whole(re.compile(r"(\d+)\s*\^\{?\\circ\}?"), lambda match: f"{match[1]}°"),
    "no_degree": _whole(re.compile(r"(\d+)\s*\^\{?\\circ\}?"), lambda match: match[1]),
    "no_percent": _whole(re.compile(r"(\d+(?:\.\d+)?)\s*\\%"), lambda match: match[1]),
    "bare_percent": _whole(re.compile(r"(\d+(?:\.\d+)?)\s*\\%"), lambda match: f"{match[1]} percent"),
    "no_currency": _whole(re.compile(r"\\\$\s*(\d+(?:\.\d+)?)"), lambda match: match[1]),
    "reordered_list": _reordered,
    "set_braces": lambda gold, _: f"\\{{{gold}\\}}" if _reordered(gold, random.Random(0)) else None,
    "and": lambda gold, _: " \\text{ and } ".join(gold.rsplit(",", 1)) if _is_list(gold) else None,
    "reordered_sum": _whole(
        _ROOT_SUM, lambda match: f"{match[3]}+{match[1]}" if match[2] == "+" else f"-{match[3]}+{match[1]}"
    ),
    "into_root": _whole(_TIMES_ROOT, lambda match: f"\\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"),
    "brackets_of_matrix": _replace("pmatrix", "bmatrix"),
    "lower_case_word": _whole(_WORD, lambda match: match[1].lower() if not match[1].isupper() else None),
    "bare_word": _whole(_WORD, lambda match: match[1]),
    "bare_choice": _whole(_CHOICE, lambda match: match[1]),
    "bracketed_choice": _whole(_CHOICE, lambda match: f"({match[1]})"),
    "braced_base": _whole(_BASE, lambda match: f"{match[1]}_{{{match[2]}}}"),
    "inequality": _whole(
        _HALF_OPEN, lambda match: f"{match[1]} \\le x < {match[2]}" if "infty" not in match[0] else None
    ),
}


def _sub(pattern: str, new: str, gold: str) -> str | None:
    changed = re.sub(pattern, new, gold)
    return changed if changed != gold else None


def _left_right(gold: str) -> str | None:
    if "\\left" in gold or gold.count("(") != 1 or gold.count(")") != 1 or "text" in gold:
        return None
    return gold.replace("(", "\\left(").replace(")", "\\right)")


def _digits_swapped(gold: str, generator: random.Random) -> str | None:
    places = [
        index for index in range(len(gold) - 1) if gold[index : index + 2].isdigit() and gold[index] != gold[index + 1]
    ]
    if not _INTEGER.fullmatch(gold) or not places:
        return None
    place = generator.choice(places)
    return gold[:place] + gold[place + 1] + gold[place] + gold[place + 2 :]


def _number_changed(gold: str, generator: random.Random) -> str | None:
    """One more in the last number of an answer with a single element that is no exponent, index or text."""
    found = list(re.finditer(r"(?<![\^_\d.{])\d+(?![\d.])", gold))
    if not found or any(sign in gold for sign in ("text", "\\cup", "=", "log", "sin", "cos", "tan", "!", "bmod")):
        return None
    match = generator.choice(found)
    after = gold[match.end() :]
    if match[0] == "0" or after.startswith(("^", "_")) or "0" in re.findall(r"\d+", gold):
        return None  # a factor of zero or a zero exponent may hide the change
    return gold[: match.start()] + str(int(match[0]) + 1) + after


WRONG_EDITS: dict[str, Edit] = {
    "off_by_one": _whole(_INTEGER, lambda match: str(int(match[0]) + 1)),
    "off_by_minus_one": _whole(_INTEGER, lambda match: str(int(match[0]) - 1)),
    "sign": _whole(_INTEGER, lambda match: str(-int(match[0])) if int(match[0]) else None),
    "digits_swapped": _digits_swapped,
    "times_ten": _whole(_INTEGER, lambda match: f"{match[0]}0" if int(match[0]) else None),
    "decimal_shift": _whole(
        _INTEGER, lambda match: str(int(match[0]) // 10) + "." + match[0][-1] if int(match[0]) > 9 else None
    ),
    "seventh_decimal": _whole(_INTEGER, lambda match: f"{match[0]}.0000001"),
    "long_decimal": _whole(_DECIMAL, lambda match: f"{match[0]}{'0' * 7}1"),
    "numerator": _whole(_FRACTION, lambda match: f"{match[1]}\\frac{{{int(match[2]) + 1}}}{{{match[3]}}}"),
    "reciprocal": _whole(
        _FRACTION,
        lambda match: f"{match[1]}\\frac{{{match[3]}}}{{{match[2]}}}" if match[2] not in (match[3], "0") else None,
    ),
    "fraction_sign": _whole(
        _FRACTION,
        lambda match: f"{'' if match[1] else '-'}\\frac{{{match[2]}}}{{{match[3]}}}" if match[2] != "0" else None,
    ),
    "two_places": _whole(
        re.compile(r"\\frac\{(\d)\}\{([379])\}"),
        lambda match: f"{int(match[1]) / int(match[2]):.2f}" if int(match[1]) % int(match[2]) else None,
    ),
    "number_changed": _number_changed,
    "radicand": _whole(_TIMES_ROOT, lambda match: f"{match[1]}\\sqrt{{{int(match[2]) + 1}}}"),
    "element_dropped": lambda gold, _: gold.rsplit(",", 1)[0] if _is_list(gold) else None,
    "element_added": lambda gold, _: f"{gold}, 987654" if _is_list(gold) else None,
    "element_repeated_as_other": lambda gold, _: f"{gold.rsplit(',', 1)[0]}, 987654" if _is_list(gold) else None,
    "pair_swapped": _whole(
        _PAIR, lambda match: f"({match[2]},{match[1]})" if match[1].strip() != match[2].strip() else None
    ),
    "pair_without_brackets": _whole(_PAIR, lambda match: f"{match[1]}, {match[2]}"),
    "closed_interval": _whole(_HALF_OPEN, lambda match: f"[{match[1]},{match[2]}]"),
    "open_interval": _whole(_HALF_OPEN, lambda match: f"({match[1]},{match[2]})"),
    "wrong_unit": _whole(_WITH_UNIT, lambda match: f"{match[1]} \\text{{ kg}}" if "units" not in match[2] else None),
    "percent_of_percent": _whole(re.compile(r"(\d+)\\%"), lambda match: f"{match[1]}00\\%" if int(match[1]) else None),
    "base_dropped": _whole(_BASE, lambda match: match[1]),
    "base_changed": _whole(_BASE, lambda match: f"{match[1]}_{{{int(match[2]) + 1}}}"),
    "next_choice": _whole(_CHOICE, lambda match: f"\\text{{({chr(ord(match[1]) + 1)})}}"),
    "all_choices": _whole(_CHOICE, lambda match: "A, B, C, D, E, F"),
    "letters_shuffled": _whole(
        _WORD, lambda match: match[1][::-1] if match[1].lower() != match[1][::-1].lower() else None
    ),
    "other_word": _whole(_WORD, lambda match: "Zebra"),
    "either": _whole(_INTEGER, lambda match: f"{match[0]} \\text{{ or }} {int(match[0]) + 1}"),
    "false_chain": _whole(_INTEGER, lambda match: f"{int(match[0]) + 4} = {match[0]}"),
    "word_for_number": _whole(_INTEGER, lambda match: "\\text{the answer}"),
    "symbol_for_number": _whole(_INTEGER, lambda match: "x"),
    "other_letter_case": lambda gold, _: (
        gold.swapcase() if re.fullmatch(r"\d*[a-df-hj-z]\^?\d*[+-]\d+", gold) else None
    ),
}
_FRAMES = (
    "We simplify step by step. Therefore the result is $\\boxed{%s}$.",
    "Let us think.\n\n\\[\n\\boxed{%s}\n\\]\n",
    "First 3 + 4 = 7, then we divide. \\boxed{%s}",
)


def math_pairs(*, seed: int, golds_per_edit: int) -> Iterator[Pair]:
    """For every edit, up to `golds_per_edit` gold answers that it applies to, drawn with `seed`."""
    golds = math_golds()
    for edits, is_correct in ((CORRECT_EDITS, True), (WRONG_EDITS, False)):
        for kind, edit in edits.items():
            generator = random.Random(f"{seed} {kind}")
            count = 0
            for gold in generator.sample(golds, len(golds)):
                answer = edit(gold, generator)
                if answer is None or (not is_correct and answer == gold):
                    continue
                yield Pair(kind=kind, completion=generator.choice(_FRAMES) % answer, gold=gold, is_correct=is_correct)
                count += 1
                if count == golds_per_edit:
                    break


def gsm8k_pairs(*, seed: int, split: str = "test") -> Iterator[Pair]:
    """GSM8K's own solutions, in four styles, and the same solutions with another final number."""
    generator = random.Random(f"{seed} gsm8k")
    for solution in gsm8k_solutions(split):
        body, _, gold = solution.rpartition("####")
        gold = gold.strip()
        body = re.sub(r"<<.*?>>", "", body)
        value = int(gold.replace(",", ""))
        wrong = generator.choice([value + 1, value - 1, value * 10 + 1, -value - 1, value + 100, value * 2 + 1])
        for kind, number, is_correct in (("right", value, True), ("wrong", wrong, False)):
            yield Pair(kind=f"{kind}_hashes", completion=f"{body}#### {number}", gold=gold, is_correct=is_correct)
            yield Pair(
                kind=f"{kind}_sentence", completion=f"{body}The answer is {number:,}.", gold=gold, is_correct=is_correct
            )
            yield Pair(
                kind=f"{kind}_money", completion=f"{body}So it is ${number}.00", gold=gold, is_correct=is_correct
            )
            yield Pair(kind=f"{kind}_boxed", completion=f"{body}\\boxed{{{number}}}", gold=gold, is_correct=is_correct)

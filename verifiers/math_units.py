"""Units of measure: which words are units, and when two units are the same.

A unit may be left out or added, but a wrong one is wrong: 5 cm is 5, and is not 5 m. Nothing is converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def words(text: str) -> list[str]:
    """The words of a table in the code.

    >>> words("cm mm")
    ['cm', 'mm']
    """
    return text.split()


_SPELLINGS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gm gram",
    "kg": "kg kilogram kilo",
    "lb": "lb pound",
    "oz": "oz ounce",
    "ton": "ton tonne",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "gal": "gal gallon",
    "pint": "pint",
    "quart": "quart",
    "cup": "cup",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro eur",
    "pound sterling": "gbp",
    "yen": "yen",
    "%": "percent pct percentage",
    "deg": "degree deg circ",
    "rad": "radian rad",
    "degC": "celsius",
    "degF": "fahrenheit",
    "J": "j joule",
    "N": "n newton",
    "W": "w watt",
    "kW": "kw kilowatt",
    "Hz": "hz hertz",
    "acre": "acre",
    "mol": "mol mole",
    "mi/h": "mph",
    "km/h": "kph kmh",
}
_UNIT_OF_WORD = {word: unit for unit, spellings in _SPELLINGS.items() for word in spellings.split()}
_ONE_LETTER_UNITS = frozenset("mglshJNW")
_FILLERS = frozenset(words("a an the of in each total about approximately unit units"))
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_PART = re.compile(r"[A-Za-z]+|%|\$|/|\^-?[0-9]+")


def _unit_of(word: str) -> str | None:
    lower = word.lower()
    if len(word) == 1 and word not in _ONE_LETTER_UNITS:
        return None
    return _UNIT_OF_WORD.get(lower) or (_UNIT_OF_WORD.get(lower[:-1]) if lower.endswith("s") else None)


def is_unit_word(word: str) -> bool:
    """Whether a word of at least two letters names a unit.

    >>> is_unit_word("cm"), is_unit_word("miles"), is_unit_word("xy")
    (True, True, False)
    """
    return len(word) > 1 and (_unit_of(word) is not None or word.lower() in _POWER_WORDS)


def canonical_unit(parts: Iterable[str]) -> str | None:
    """One spelling for a unit; None where some word is no unit of measure (5 apples), so that it says nothing.

    >>> canonical_unit(["square", "centimeters"]), canonical_unit(["cm", "^2"]), canonical_unit(["apples"])
    ('cm^2', 'cm^2', None)
    >>> canonical_unit(["miles per hour"]), canonical_unit(["mph"]), canonical_unit(["dollars"])
    ('mi/h', 'mi/h', 'dollar')
    """
    factors: list[str] = []
    power = 1
    is_divided = False
    for word in _PART.findall(" ".join(parts)):
        lower = word.lower()
        if lower in _FILLERS:
            continue
        if word in ("/", "$", "%") or lower == "per":
            if word in "$%":
                factors.append("dollar" if word == "$" else "%")
            is_divided = is_divided or word not in "$%"
            continue
        if word.startswith("^") or lower in ("squared", "cubed"):
            exponent = int(word[1:]) if word.startswith("^") else _POWER_WORDS[lower]
            if not factors:
                return None
            factors[-1] += f"^{exponent}"
            continue
        if lower in _POWER_WORDS:
            power = _POWER_WORDS[lower]
            continue
        unit = _unit_of(word)
        if unit is None:
            return None
        if unit in ("degC", "degF") and factors == ["deg"]:
            factors.clear()
        factors.append(("/" if is_divided else "") + unit + (f"^{power}" if power > 1 else ""))
        power, is_divided = 1, False
    return " ".join(factors).replace(" /", "/") or None

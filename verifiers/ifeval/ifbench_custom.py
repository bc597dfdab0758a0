"""IFBench's `custom:` instructions, each of which belongs to one prompt. Verdicts are the reference's."""

from __future__ import annotations

import csv
import io
import itertools
import re
import string
import unicodedata

from verifiers.ifeval.instruction import InstructionType
from verifiers.ifeval.text_units import split_sentences

_STRIP = string.punctuation + " "
_QUESTION = re.compile(r"Question \d+[.|):;]?")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SPECIAL_CHARACTER = re.compile(r"[^\w\s]")
_CAPITAL_LIST = """
Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw London
Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb
"""
CAPITALS = tuple(_CAPITAL_LIST.split())
"""From north to south, as the reference has them."""


def multiples(response: str) -> bool:
    """The numbers of the response are the multiples of 7 from 14 to 49."""
    return re.findall(r"\d+", response) == [str(value) for value in range(14, 50, 7)]


def mcq_count_length(response: str) -> bool:
    """Four questions from the start, each with five lettered options and longer than the one before it."""
    if not response.startswith("Question"):
        return False
    questions = [question.strip() for question in _QUESTION.split(response) if question.strip()]
    lengths = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        is_option = [_OPTION.match(line) is not None for line in lines]
        if sum(is_option) != 5:
            return False
        lengths.append(len(" ".join(lines[: is_option.index(True)]).strip()))
    return len(questions) == 4 and all(a < b for a, b in itertools.pairwise(lengths))


def reverse_newline(response: str) -> bool:
    """From the line with Zimbabwe on: at least 52 lines with text, in descending order without regard to accents."""
    lines = [bare for line in response.split("\n") if (bare := line.strip(_STRIP))]
    countries = [_plain(line) for line in itertools.dropwhile(lambda line: "Zimbabwe" not in line, lines)]
    return len(countries) >= 52 and countries == sorted(countries, reverse=True)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def word_reverse(response: str) -> bool:
    """Read backwards, word by word, it names the bald eagle."""
    words = response.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return "bald eagle" in " ".join(reversed(words))


def character_reverse(response: str) -> bool:
    return "elgae dlab" in response.lower()


def sentence_alphabet(response: str) -> bool:
    """26 sentences that begin with A to Z."""
    starts = [
        sentence.lstrip(string.punctuation + string.whitespace)[:1].lower() for sentence in split_sentences(response)
    ]
    return starts == list(string.ascii_lowercase)


def european_capitals_sort(response: str) -> bool:
    capitals = [capital.strip() for capital in _plain(response).split(",") if capital.strip()]
    return capitals == list(CAPITALS)


def _table(response: str, delimiter: str = ",") -> list[list[str]]:
    """Rows of a table, none where it cannot be read."""
    try:
        return list(csv.reader(io.StringIO(response), delimiter=delimiter))
    except csv.Error:
        return []


def csv_city(response: str) -> bool:
    """A header and seven rows of five fields."""
    rows = _table(response)
    return (
        len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and all(len(row) == 5 for row in rows)
    )


def _has_header(response: str, names: tuple[str, ...], delimiter: str, padding: str) -> bool:
    """The first line names the columns, each bare or in quotes, with white space allowed after a delimiter."""
    first, *others = response.split("\n", 1)[0].strip().split(delimiter)
    given = [first, *(name.lstrip(padding) for name in others)]
    return len(given) == len(names) and all(g in (n, f'"{n}"') for g, n in zip(given, names, strict=True))


def _is_quoted_and_special(field: str) -> bool:
    line = field.split("\n", 1)[0]
    return line.startswith('"') and _SPECIAL_CHARACTER.search(line[1 : max(1, line.rfind('"'))]) is not None


def csv_special_character(response: str) -> bool:
    """A header and 14 rows, of which one has a quoted field with a special character.

    The rows after the first such field may have any number of fields: so it is in the reference.
    """
    if not _has_header(response, ("ProductID", "Category", "Brand", "Price", "Stock"), ",", " \t"):
        return False
    rows = _table(response.replace('"', '"""'))
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(map(_is_quoted_and_special, row)):
            return True
    return False


def csv_quotes(response: str) -> bool:
    """A header and three rows of five quoted fields, between tabs."""
    if not _has_header(response, ("StudentID", "Subject", "Grade", "Semester", "Score"), "\t", " "):
        return False
    rows = _table(response.replace('"', '"""'), "\t")
    fields = [field.strip() for row in rows for field in row]
    quoted = all(field.startswith('"') and field.endswith('"') for field in fields)
    return len(rows) == 4 and all(len(row) == 5 for row in rows) and quoted


def date_format_list(response: str) -> bool:
    """Dates of Napoleon's lifetime between commas. Month and day 00 pass, as in the reference."""
    for part in response.strip().split(","):
        if (match := _DATE.fullmatch(part.strip())) is None:
            return False
        year, month, day = map(int, match.groups())
        days = 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
        # the reference does not look at the day of a month 00
        if not 1769 <= year <= 1821 or month > 12 or (month and day > days):
            return False
    return True


CUSTOM: dict[str, InstructionType] = {
    "custom:multiples": InstructionType(check=multiples, may_lack_letters=True),
    "custom:mcq_count_length": InstructionType(check=mcq_count_length),
    "custom:reverse_newline": InstructionType(check=reverse_newline),
    "custom:word_reverse": InstructionType(check=word_reverse),
    "custom:character_reverse": InstructionType(check=character_reverse),
    "custom:sentence_alphabet": InstructionType(check=sentence_alphabet),
    "custom:european_capitals_sort": InstructionType(check=european_capitals_sort),
    "custom:csv_city": InstructionType(check=csv_city),
    "custom:csv_special_character": InstructionType(check=csv_special_character),
    "custom:csv_quotes": InstructionType(check=csv_quotes),
    "custom:date_format_list": InstructionType(check=date_format_list, may_lack_letters=True),
}

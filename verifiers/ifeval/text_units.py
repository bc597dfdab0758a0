"""Words, sentences and languages of a text, offline and repeatable.

The public IFEval evaluator splits sentences with a trained Punkt model that must be downloaded. Here the same
algorithm runs with a hand-written list of abbreviations instead: nothing to download, and the same counts on
ordinary text (docs/ifeval.md has the measurement). `langdetect` carries its profiles, but draws random numbers from a
generator of its own: it is seeded before every call, so that a verdict never depends on what was judged before.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

_ABBREVIATION_LIST = """
mr mrs ms messrs dr prof rev hon pres gov sen rep gen col capt lt maj sgt cmdr adm st ste mt ft sr jr esq ph.d ph m.d
b.a m.a d.d.s j.d
u.s u.s.a u.k u.n e.u d.c n.y l.a a.m p.m a.d b.c e.g i.e viz al etc vs v cf ca approx no nos fig figs eq vol vols
pp ed eds inc ltd co corp bros dept univ assn ave blvd rd sq
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun
"""
ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
"""Lower-case, without the final period, as Punkt keeps them."""

# Scripts written without spaces: each letter is counted as a word of its own.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)
_WORD = re.compile(r"\w+")


@functools.cache
def _sentence_tokenizer() -> Any:
    # imported here: nltk costs a third of a second, and most verdicts need no sentences
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, in order.

    >>> split_sentences("Dr. Smith left at 5 p.m. yesterday. Why? Nobody knows!")
    ['Dr. Smith left at 5 p.m. yesterday.', 'Why?', 'Nobody knows!']
    """
    return list(_sentence_tokenizer().tokenize(text))


def count_words(text: str) -> int:
    r"""Runs of word characters (`\w+`), which is what IFEval counts as words.

    >>> count_words("Don't split the e-mail")
    6
    """
    return len(_WORD.findall(text))


def content_words(text: str) -> list[str]:
    """Case-folded words; in scripts that use no spaces, each letter is a word.

    >>> content_words("Hello, world! 你好")
    ['hello', 'world', '你', '好']
    """
    words: list[str] = []
    for run in _WORD.findall(text.casefold()):
        words.extend(run if _UNSPACED.search(run) else (run,))
    return words


def is_letter(character: str) -> bool:
    """Letters and the marks that belong to them (vowel signs of Hindi or Thai are marks)."""
    return unicodedata.category(character)[0] in "LM"


@functools.cache
def _language_detector_factory() -> Any:
    from langdetect import detector_factory

    detector_factory.init_factory()
    return detector_factory._factory


def detect_language(text: str, *, seed: int = 0) -> str | None:
    """Code of the most likely language ("en", "zh-cn"), or None where the text has nothing to judge by.

    Args:
        text: any text; `langdetect` reads its first 10,000 characters.
        seed: of the detector's own random generator. The public evaluator leaves it unseeded.

    >>> detect_language("This is plainly an English sentence."), detect_language("1234 !!")
    ('en', None)
    """
    from langdetect.lang_detect_exception import LangDetectException

    detector = _language_detector_factory().create()
    detector.seed = seed
    detector.append(text)
    try:
        language: str = detector.detect()
    except LangDetectException:
        return None
    return None if language == "unknown" else language

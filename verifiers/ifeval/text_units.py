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
mr mrs ms messrs dr prof rev pres gov sen rep gen col capt lt maj sgt adm st ft sr jr ph.d
u.s u.s.a u.k u.n n.y l.a d.c a.m p.m a.d vs v inc ltd co corp bros
jan feb aug sep sept oct nov dec tues wed fri
c d e f g h k l m n p r s t w
"""
ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
"""Words after which a period ends no sentence for the public evaluator; lower-case, without that period."""

MORE_ABBREVIATIONS = ABBREVIATIONS | {
    "al",
    "cf",
    "e.g",
    "esq",
    "etc",
    "fig",
    "hon",
    "i.e",
    "m.d",
    "no",
    "sq",
    "vol",
    "viz",
}
"""With those that the public evaluator takes for ends of sentences."""

_COMMON_WORD_LIST = """
a an the this that these those there here it its he his him she her they their them we our us you your my me
i what which where when why how whose and but or nor so yet if then than as at by for from in into of off on onto
out over to under up with within without about above after again against all also although always among another any
anyone anything are because been before being below between both can could did do does during each either else even
every everyone everything few finally first had has have however is just last later let like many maybe more most much
must neither never next nobody none not nothing now once one only other others perhaps please rather several shall
should since some someone something sometimes soon still such surely therefore though through thus together too two
unless until use very was well were whatever whenever whether while would yes
"""
COMMON_WORDS = frozenset(_COMMON_WORD_LIST.split())
"""Words that are capital only at the start of a sentence: one of them after "x." or "etc." starts the next."""

# Scripts written without spaces: each letter is counted as a word of its own.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)
_WORD = re.compile(r"\w+")


@functools.cache
def _sentence_tokenizer(abbreviations: frozenset[str]) -> Any:
    # imported here: nltk costs a third of a second, and most verdicts need no sentences
    from nltk.tokenize.punkt import _ORTHO_MID_LC, PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(abbreviations)
    for word in COMMON_WORDS:
        parameters.add_ortho_context(word, _ORTHO_MID_LC)
    return PunktSentenceTokenizer(parameters)


def split_sentences(text: str, *, abbreviations: frozenset[str] = ABBREVIATIONS) -> list[str]:
    """Sentences of a text, in order.

    >>> split_sentences("Dr. Smith left at 5 p.m. yesterday. Why? Nobody knows!")
    ['Dr. Smith left at 5 p.m. yesterday.', 'Why?', 'Nobody knows!']
    """
    return list(_sentence_tokenizer(abbreviations).tokenize(text))


@functools.cache
def _word_tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


# a sentence costs 0.1 ms, and degenerate completions are one short sentence a thousand times over
@functools.lru_cache(maxsize=2048)
def _tokenize_sentence(sentence: str) -> tuple[str, ...]:
    return tuple(_word_tokenizer().tokenize(sentence))


def tokenize_words(text: str) -> list[str]:
    """Words and punctuation as nltk's `word_tokenize` gives them: sentence by sentence, in Penn Treebank style.

    >>> tokenize_words("Don't stop. It's 5 p.m. now.")
    ['Do', "n't", 'stop', '.', 'It', "'s", '5', 'p.m.', 'now', '.']
    """
    return [token for sentence in split_sentences(text) for token in _tokenize_sentence(sentence)]


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
    """Code of the most likely language ("en", "zh-cn"), "unknown" where none is likely, None without letters to go by.

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
    return language

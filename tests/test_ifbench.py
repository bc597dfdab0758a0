"""The `ifbench` verifier: each of the 58 instruction types on a response that follows it and one that does not."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ifeval_corpus import COUNTRIES, PLAIN, SHARED

from verifiers.base import Outcome, Sample
from verifiers.errors import GroundTruthError
from verifiers.ifeval import IFBenchVerifier
from verifiers.ifeval.ifbench import INSTRUCTION_TYPES
from verifiers.ifeval.instruction import judge
from verifiers.ifeval.syllables import count_syllables

VERIFIER = IFBenchVerifier()
KEYWORDS = {"keyword1": "red", "keyword2": "blue", "keyword3": "tan", "keyword4": "grey", "keyword5": "gold"}
FIVE = "red blue blue tan tan tan " + "grey " * 5 + "gold " * 7
PROMPT = "Name a long river in Asia"
QUESTIONS = "\n".join(f"Question {n}. {'why ' * n}\n" + "\n".join(f"{c}) art" for c in "ABCDE") for n in range(1, 5))
CAPITALS = PLAIN["custom:european_capitals_sort"][0]
SPECIAL = "ProductID,Category,Brand,Price,Stock\n" + "1,a,bc,2,3\n" * 13
TABBED = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t"a"\t"b"\t"c"\t"d"\n' * 3
A_TO_Z = " ".join(f"{letter}nd it was so." for letter in string.ascii_uppercase)

# instruction, kwargs, a response that follows it, one that does not
CASES = [
    ("count:word_count_range", {"min_words": 2, "max_words": 3.0}, "one two", "one-two three four"),
    ("count:unique_word_count", {"N": 3}, "One, two three", "one One, two"),
    ("ratio:stop_words", {"percentage": 50}, "the river", "in the river"),  # 1 of 2; 2 of 3
    ("ratio:sentence_type", {}, "It is. It was. Is it?", "It is. Is it?"),
    ("ratio:sentence_balance", {}, "It is. Is it? It is!", "It is. Is it?"),
    ("ratio:sentence_words", {}, "I am big. We go on. Cats ate.", "I am big. We am on. Cats ate."),
    ("ratio:overlap", {"reference_text": "a b c d", "percentage": 50}, "a b c d e f", "a b c d"),  # abc bcd of 4
    ("count:conjunctions", {"small_n": 2}, "Bread and butter, but no jam", "bread and butter and jam"),
    ("count:person_names", {"N": 2}, "Emma met Liam.", "Emma met Liams and Emma."),
    ("count:numbers", {"N": 2}, "1,000.5 and 7", "1 and 2 and 3"),
    ("count:punctuation", {}, "Really?! Yes, so: a; b. Who? I!", "Yes, so: a; b. Who? I!"),
    ("count:words_japanese", {"N": 2}, "a 猫 b 犬", "a 猫 b dog"),
    ("count:pronouns", {"N": 2}, "She/her.", "She went."),
    ("count:keywords_multiple", KEYWORDS, FIVE, FIVE + "red"),
    ("words:alphabet", {}, "Young zebras ate bananas.", "Young bananas ate zebras."),
    ("words:vowel", {}, "Bananas can calm men.", "Education"),
    ("words:consonants", {}, "Strong trucks climb", "Strong big trucks"),
    ("words:palindrome", {}, "Level, radar! " * 5, "noon " * 10),
    ("words:prime_lengths", {}, "It was the big plant", "It was a plan"),
    ("words:start_verb", {}, "Walk the dog.", "The dog walks."),
    ("words:repeats", {"small_n": 2}, "Dog, dog cat", "dog dog Dog"),
    ("words:odd_even_syllables", {}, "The table is open", "The dog is open"),
    ("words:last_first", {}, "I like cats. Cats like me.", "I like cats. Dogs do."),
    ("words:paragraph_last_first", {}, "Dogs like dogs.\n\nCats eat cats", "Dogs like cats"),
    ("words:no_consecutive", {}, "The big dog ran", "The tall dog"),
    ("words:keywords_specific_position", {"keyword": "sea", "n": 2, "m": 3}, "Hi. To the sea.", "Hi. The sea."),
    ("words:words_position", {"keyword": "sea"}, "The sea is a sea too.", "The sea is a sea."),
    ("sentence:alliteration_increment", {}, "Go now. Big bears. Tall tiny trees.", "Big bears. Tall trees."),
    ("sentence:increment", {"small_n": 2}, "Go. Go on now. Go on now or not.", "Go. Go on."),
    ("sentence:keyword", {"word": "sea", "N": 2}, "Hi. The Sea.", "The sea. Seas."),
    ("format:parentheses", {}, "(a [b {c (d [e] f) g} h])", "((((a))))"),
    ("format:quotes", {}, '"a \'b "c" d\' e"', "\"a 'b' c\""),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "yes/no"),
    ("format:newline", {}, "one\ntwo\n\nthree", "one two\nthree"),
    ("format:emoji", {}, "Hi there 🙂. Bye 🚀", "Hi there 🙂. Bye"),
    ("format:line_indent", {}, "a\n b\n\n\n  c", "a\n b\n c"),
    ("format:quote_unquote", {}, '"Go" means leave.', 'He said "go".'),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "!?!? a"),
    ("format:thesis", {}, "<i>Claim.</i> Text.", "<i> </i> Text."),
    ("format:sub-bullets", {}, "* a\n  - b\n* c\n  - d", "* a\n* b\n  - c"),
    ("format:no_bullets_bullets", {}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    ("format:title_case", {}, "The Big Dog", "The big Dog"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    ("format:no_whitespace", {}, "NoSpace", "No space"),
    ("repeat:repeat_change", {"prompt_to_repeat": PROMPT}, "Tell a long river in Asia", PROMPT),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Only this."),
    ("repeat:repeat_span", {"prompt_to_repeat": PROMPT, "n_start": 0, "n_end": 2}, "Name a long", "a long"),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:mcq_count_length", {}, QUESTIONS, "Here: " + QUESTIONS),
    ("custom:reverse_newline", {}, "\n".join(COUNTRIES + ["Aa"] * 12), "\n".join(COUNTRIES)),
    ("custom:word_reverse", {}, "Eagle bald the is it.", "It is the bald eagle."),
    ("custom:character_reverse", {}, "elgae dlab eht", "the bald eagle"),
    ("custom:sentence_alphabet", {}, A_TO_Z, A_TO_Z[len("And it was so. ") :]),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS + ", Rome"),
    ("custom:csv_city", {}, "ID,Country,City,Year,Count\n" + "1,a,b,2,3\n" * 7, "ID,Country\n" + "1,a\n" * 7),
    ("custom:csv_special_character", {}, SPECIAL + '1,a,"b&c",2,3', SPECIAL + '1,a,"bc",2,3'),
    ("custom:csv_quotes", {}, TABBED, TABBED.replace('"', "")),
    ("custom:date_format_list", {}, "1805-12-02, 1815-06-18", "1815-06-31"),
]


def read(name, kwargs):
    return VERIFIER.read({"instruction_id": [name], "kwargs": [kwargs]})


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_each_instruction_tells_a_response_that_follows_from_one_that_does_not(name, kwargs, good, bad):
    assert judge(read(name, kwargs), good) == [True]
    assert judge(read(name, kwargs), bad) == [False]


def test_the_cases_cover_the_58_instruction_types():
    assert {case[0] for case in CASES} == set(INSTRUCTION_TYPES)
    assert len(INSTRUCTION_TYPES) == 58


@pytest.mark.parametrize(("name", "kwargs"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_an_empty_completion_never_passes(name, kwargs):
    for mode in ("strict", "loose"):
        verifier = IFBenchVerifier.from_options({"mode": mode})
        truth = {"instruction_id": [name], "kwargs": [kwargs]}
        for completion in ("", " \n"):
            assert verifier.verify(Sample(completion=completion, ground_truth=truth)).outcome is Outcome.WRONG


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict_for_every_instruction(response):
    for name, kwargs, _, _ in CASES:
        assert judge(read(name, kwargs), response) in ([True], [False])


@pytest.mark.parametrize(
    "response", ["(" * 20000, "\n" * 20000 + "x", '"' * 9000, '"a,\r' * 5000, "A. " * 3000, "Question 1 " * 1500]
)
def test_a_verdict_on_a_hostile_response_comes_back(response):
    for name, kwargs, _, _ in CASES:
        assert judge(read(name, kwargs), response) in ([True], [False])


def test_kwargs_that_no_response_can_satisfy_are_refused():
    for name, kwargs in (
        ("repeat:repeat_span", {"prompt_to_repeat": PROMPT, "n_start": 9, "n_end": 12}),
        ("count:word_count_range", {"min_words": 5, "max_words": 4}),
        ("count:words_japanese", {"N": 0}),
        ("count:numbers", {"N": 2.5}),
    ):
        with pytest.raises(GroundTruthError):
            read(name, kwargs)


def test_syllables_of_common_words():
    words = {"idea": 3, "table": 2, "make": 1, "created": 3, "people": 2, "rhythm": 1, "7th": 0}
    assert {word: count_syllables(word) for word in words} == words


@pytest.mark.skipif(not SHARED.exists(), reason=f"no public data at {SHARED}")
def test_every_row_of_the_benchmark_is_read():
    rows = [
        json.loads(line) for line in (SHARED / "ifbench/IFBench_test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 300
    assert {instruction.id for row in rows for instruction in VERIFIER.read(row)} == set(INSTRUCTION_TYPES)

"""The content guard: what it refuses, what it lets pass, and that the three verifiers use it."""

import json

import pytest
from ifeval_corpus import SHARED, following

from verifiers.base import Outcome, Sample
from verifiers.errors import VerifierOptionError
from verifiers.ifeval import IFBenchVerifier, IFEvalVerifier, Tulu3IFEvalVerifier
from verifiers.ifeval.guard import Allowance, GuardBounds, find_spam, letter_share, prompt_overlap, repetition

# Written to satisfy a constraint and say nothing: (verifier, ground truth, prompt, completion).
SPAM = [
    ("tulu3", {"func_name": "verify_keyword_frequency", "word": "tiger", "N": 14}, "", "tiger " * 14),
    ("tulu3", {"func_name": "verify_letter_frequency", "letter": "e", "N": 14}, "", "e" * 14),
    ("tulu3", {"func_name": "validate_highlighted_sections", "N": 4}, "", "*a* *b* *c* *d*" + " ." * 60),
    ("tulu3", {"func_name": "validate_placeholders", "N": 3}, "", "[a] [a] [a] [a]"),
    ("tulu3", {"func_name": "verify_bullet_points", "N": 5}, "", "* yes\n" * 5),
    ("tulu3", {"func_name": "validate_no_commas"}, "", "----------------------------------------"),
    ("tulu3", {"func_name": "validate_word_constraint", "N": 50, "quantifier": "at least"}, "", "word " * 50),
    (
        "tulu3",
        {"func_name": "validate_lowercase"},
        "tell me about the tides of the sea",
        "tell me about the tides of the sea",
    ),
    ("tulu3", {"func_name": "validate_json_format"}, "", "[0, 0, 0, 0, 0, 0, 0, 0]"),
    ("tulu3", {"func_name": "validate_repeat_prompt", "original_prompt": "Write a poem."}, "", "Write a poem. Ok."),
    ("ifeval", ("language:response_language", {"language": "th"}), "", "?!? ?!? ?!? ?!?"),
    ("ifeval", ("combination:two_responses", {}), "", "a\n******\nb"),
    ("ifeval", ("detectable_format:json_format", {}), "", "1"),
    ("ifeval", ("detectable_format:number_highlighted_sections", {"num_highlights": 5}), "", "*a*" * 5),
    ("ifeval", ("length_constraints:number_words", {"num_words": 300, "relation": "at least"}), "", "x y " * 160),
    ("ifeval", ("keywords:existence", {"keywords": ["river", "sea"]}), "", "river sea"),
    ("ifeval", ("combination:repeat_prompt", {"prompt_to_repeat": "Say hello."}), "", "Say hello."),
    ("ifbench", ("format:parentheses", {}), "", "((((((((()))))))))"),
    ("ifbench", ("words:palindrome", {}), "", "level " * 10),
    ("ifbench", ("ratio:sentence_type", {}), "", "! ! ! ! ! !"),
    ("ifbench", ("words:no_consecutive", {}), "", "ab cd " * 30),
    (
        "ifbench",
        ("format:quote_unquote", {}),
        "Explain how tides come about, in quotes",
        "explain how tides come about",
    ),
]
ORDINARY = [
    (
        "tulu3",
        {"func_name": "validate_no_commas"},
        "What causes tides?",
        "The pull of the Moon and the Sun on the oceans.",
    ),
    ("tulu3", {"func_name": "validate_choice", "options": ["yes", "no"]}, "Is it? Answer yes or no", "yes"),
    (
        "tulu3",
        {"func_name": "verify_keyword_frequency", "word": "tiger", "N": 3},
        "About the tiger",
        "A tiger hunts alone. When a tiger grows old it keeps to easy prey, and no tiger shares it.",
    ),
    (
        "tulu3",
        {"func_name": "validate_json_format"},
        "Two cities",
        '{"cities": ["Lima", "Quito"], "note": "both are capitals"}',
    ),
    (
        "tulu3",
        {"func_name": "validate_response_language", "language": "th"},
        "",
        "วันนี้อากาศดีมากและท้องฟ้าแจ่มใส เราจึงออกไปเดินเล่นในสวน",
    ),
    ("tulu3", {"func_name": "validate_response_language", "language": "hi"}, "", "आज मौसम बहुत अच्छा है और आसमान साफ है"),
    ("tulu3", {"func_name": "validate_word_constraint", "N": 1, "quantifier": "at most"}, "Capital?", "Paris"),
    (
        "tulu3",
        {"func_name": "validate_repeat_prompt", "original_prompt": "Name a river."},
        "Name a river.",
        "Name a river. The Danube flows to the Black Sea.",
    ),
    (
        "ifeval",
        ("detectable_format:constrained_response", {}),
        "Answer: My answer is yes. My answer is no.",
        "My answer is yes.",
    ),
    (
        "ifeval",
        ("combination:repeat_prompt", {"prompt_to_repeat": "Name a river."}),
        "Name a river.",
        "Name a river. The Danube flows to the Black Sea.",
    ),
    (
        "ifbench",
        ("repeat:repeat_change", {"prompt_to_repeat": "Name a long river in Asia"}),
        "Name a long river in Asia",
        "Tell a long river in Asia",
    ),
    ("ifbench", ("format:options", {"options": "yes/no/maybe"}), "yes/no/maybe?", "maybe"),
    (
        "ifbench",
        ("custom:date_format_list", {}),
        "Napoleon's battles",
        "1796-04-12, 1800-06-14, 1805-12-02, 1815-06-18",
    ),
]
CLASSES = {"tulu3": Tulu3IFEvalVerifier, "ifeval": IFEvalVerifier, "ifbench": IFBenchVerifier}


def outcome(case, guard):
    kind, truth, prompt, completion = case
    truth = truth if kind == "tulu3" else {"instruction_id": [truth[0]], "kwargs": [truth[1]]}
    verifier = CLASSES[kind].from_options({"guard": guard})
    return verifier.verify(Sample(completion=completion, prompt=prompt, ground_truth=json.dumps(truth))).outcome


@pytest.mark.parametrize("case", SPAM, ids=lambda case: case[3][:25])
def test_spam_passes_the_checker_and_fails_with_the_guard(case):
    assert outcome(case, False) is Outcome.CORRECT
    assert outcome(case, True) is Outcome.WRONG


@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: case[3][:25])
def test_ordinary_text_passes_with_and_without_the_guard(case):
    assert outcome(case, False) is Outcome.CORRECT
    assert outcome(case, True) is Outcome.CORRECT


def test_a_table_of_bounds_replaces_the_defaults():
    spam = SPAM[0]
    assert outcome(spam, {"maximum_repetition": 1.0}) is Outcome.CORRECT
    assert outcome(ORDINARY[0], {"minimum_words": 100}) is Outcome.WRONG


@pytest.mark.parametrize("table", [{"minimum_word": 3}, {"maximum_repetition": 2.0}, {"minimum_words": "3"}])
def test_a_table_with_an_unknown_or_bad_bound_is_refused(table):
    with pytest.raises(VerifierOptionError):
        IFEvalVerifier.from_options({"guard": table})


def test_the_guard_is_off_by_default():
    assert IFEvalVerifier().config.guard is False
    assert Tulu3IFEvalVerifier().config.guard is False


def test_the_measures_hold_the_numbers_worked_out_by_hand():
    assert letter_share("a1 b2") == 0.5  # 2 letters of 4 visible characters
    assert repetition("the cat and the dog") == 0.4  # "the" is 2 of 5 words; 3 runs of 3 words, all new
    assert repetition("a b c a b c a") == pytest.approx(
        3 / 7
    )  # "a" 3 of 7; runs abc bca cab abc bca: 2 of 5 seen before
    assert prompt_overlap("one two three four six", "one two three four five") == 0.5  # 1 of 2 runs of four words
    assert prompt_overlap("one two", "") == 0.0


def test_bounds_are_inclusive_and_the_reason_names_the_number_seen():
    bounds = GuardBounds(minimum_words=2, minimum_letter_share=0.5, maximum_repetition=0.5, maximum_prompt_overlap=1.0)
    assert find_spam("ab 12", "", bounds) is None
    assert find_spam("ab 123", "", bounds) == "40% letters (at least 50%)"
    assert find_spam("a", "", bounds) == "1 words (at least 2)"
    assert find_spam("a", "", bounds, allowance=Allowance(most_words=1)) is None


@pytest.mark.skipif(not SHARED.exists(), reason=f"no public data at {SHARED}")
def test_nearly_all_reference_solutions_of_gsm8k_and_seed_tasks_count_as_text():
    rows = [json.loads(line) for line in (SHARED / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
    refused = sum(find_spam(row["answer"], row["question"], GuardBounds()) is not None for row in rows)
    assert refused / len(rows) < 0.02  # arithmetic-only solutions; 10 of 1,319 when this was written
    prompts = [json.loads(line)["prompt"] for line in (SHARED / "ifeval/input_data.jsonl").read_text().splitlines()]
    assert not [prompt for prompt in prompts if find_spam(prompt, "", GuardBounds())]


@pytest.mark.skipif(not SHARED.exists(), reason=f"no public data at {SHARED}")
def test_the_guard_turns_most_content_free_answers_to_ifeval_rows_away():
    plain, guarded = IFEvalVerifier(), IFEvalVerifier.from_options({"guard": True})
    nonsense = ["1", "!", "A A", "a a", "<<a>>", "a\n******\nb", '"?"']
    rows = [json.loads(line) for line in (SHARED / "ifeval/input_data.jsonl").read_text().splitlines()]
    fooled = {plain: 0, guarded: 0}
    tried = 0
    for row in rows:
        for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            tried += 1
            truth = {"instruction_id": [name], "kwargs": [kwargs]}
            texts = nonsense + following(name, kwargs, "")
            samples = [Sample(completion=text, prompt=row["prompt"], ground_truth=truth) for text in texts]
            for verifier in fooled:
                fooled[verifier] += any(verifier.verify(sample).outcome is Outcome.CORRECT for sample in samples)
    assert fooled[plain] / tried > 0.8
    assert fooled[guarded] / tried < 0.2
    print(f"{tried} instructions: fooled {fooled[plain]} without the guard, {fooled[guarded]} with it")

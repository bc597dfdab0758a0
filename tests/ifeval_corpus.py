"""Responses to compare verdicts on: real texts, templates that follow one instruction, mutations and edge cases."""

# ruff: noqa: E501, SIM905 - tables of texts read better unwrapped
from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

SHARED = pathlib.Path(__file__).parents[1] / "../shared/data"
PARAGRAPH = (
    "The river rises in the hills north of the town. Dr. Meyer, who lives nearby, measures it at 6 p.m. every day! "
    "Why does she do so? Nobody asked her to, e.g. the U.S. survey pays nothing."
)
EDGE_CASES = (
    "", " ", "\n", ".", "*", "**", "***", "****", "******", "a******b", "a******a", "******a******b******", "* * *",
    "*\n* b", "* a\n*\n* b", "- a\n\n\n* b\n-\n-c", "*a* **b** ***c*** ****", "* a *\n*b\n*", "**\n**", "[a] [b\n] [c", "[[[]]]",
    "<<>>", "<<a>>", "<<<a>>>", "<< >>", "<<a>> b >>", "<<\n>>", '"', '""', '"a"', ' "a" ', "“a”", "{}", "1", "NaN", '{"a": [1, 2}',
    '```json\n{"a": 1}\n```', "```\n[]\n```", "```JSON\n1```", "P.S. x", "p. s. x", "P.P.S", "p. p.s", "PS x", "PARAGRAPH 1 a PARAGRAPH2 b",
    "Section 1\nSection 2", "SECTION 1 SECTION 2 SECTION 3", "My answer is yes.", "My answer is yes", "my answer is no.",
    "a\n\nb", "a\n\n\nb", "\n\na\n\nb\n\n", "a\r\n\r\nb", "Weekend! it is.\n\nsecond", "'weekend' x\n\n'b'", "١٢٣", "你好。世界。", "Ça va? Oui!",
    "THE END", "the end", "I AM A U.S. CITIZEN.", "123 456", "!!! ???", "ÄÖÜ", "ß", "ſ", "İstanbul", "a,b", "a，b", "#####", "####", "e" * 60,
    "http://example.com/a?b=c", "x@y.z", "\x00", "\u202eabc", "a\u2028b", "a\x0bb", "🙂🙂", "x" * 5000, "word " * 2000, "No. 5 is alive. vs. the rest etc. Done.",
)  # fmt: skip


def real_texts(seed: int = 0, each: int = 60) -> list[str]:
    """Real texts of the public data files: prompts, solutions, outputs of seed tasks. Empty where the folder is absent."""
    draw = random.Random(seed)
    pools: list[list[str]] = []
    for file, fields in (
        ("ifeval/input_data.jsonl", ("prompt",)),
        ("gsm8k/train.jsonl", ("answer",)),
        ("math/math500.jsonl", ("solution",)),
        ("ifbench/IFBench_test.jsonl", ("prompt",)),
        ("instructions/user_oriented_instructions.jsonl", ("instances",)),
        ("instructions/seed_tasks.jsonl", ("instances",)),
    ):
        path = SHARED / file
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            pools.append([text for row in rows for field in fields for text in _strings(row[field]) if text.strip()])
    return [text for pool in pools for text in draw.sample(pool, min(each, len(pool)))]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from (text for key, text in item.items() if key == "output")


def mutations(text: str) -> list[str]:
    """Edits of a text that change how it is formatted."""
    lines = text.split("\n")
    sentences = text.split(". ")
    return [
        text.upper(),
        text.lower(),
        f'"{text}"',
        text.replace(",", ""),
        "\n".join(f"* {line}" for line in lines),
        "\n".join(f"- {line}" for line in sentences),
        "\n\n".join(sentences),
        "\n***\n".join(sentences),
        f"{text}\n******\n{text[::-1]}",
        f"Sure!\n{text}\nHope that helps.",
        f"<<{lines[0]}>>\n\n{text}\n\nP.S. {lines[0]}",
        json.dumps({"text": text}),
        " ".join(f"*{word}*" for word in text.split()[:8]) + " " + " ".join(f"[{word}]" for word in text.split()[:8]),
        "\n".join(f"Section {n}\n{s}\nPARAGRAPH {n}\n{s}\nSECTION {n} x" for n, s in enumerate(sentences, 1)),
    ]


def following(instruction: str, kwargs: Mapping[str, Any], filler: str) -> list[str]:
    """Responses near the edge of an IFEval instruction: made to follow it, just miss it, or overdo it."""
    k = kwargs
    near = (-1, 0, 1)

    def counted(count: int, item: str, between: str = " ") -> list[str]:
        return [filler + between + between.join([item] * max(0, count + offset)) for offset in near]

    match instruction.split(":")[1]:
        case "existence":
            words = " ".join(k["keywords"])
            return [
                f"{filler} {words}",
                words.upper(),
                f"{filler} {' '.join(k['keywords'][1:])}",
                words.replace(" ", "s "),
            ]
        case "frequency":
            return counted(k["frequency"], k["keyword"]) + counted(k["frequency"], k["keyword"].upper() + "s")
        case "forbidden_words":
            return [f"{filler} {k['forbidden_words'][0]}.", f"x{k['forbidden_words'][0]}x", filler]
        case "letter_frequency":
            return counted(k["let_frequency"], k["letter"]) + counted(k["let_frequency"], k["letter"].upper())
        case "number_sentences":
            return [" ".join(["It rains. Dr. No laughs!"] * n) for n in range(1, k["num_sentences"] + 2)][-8:]
        case "number_words":
            return [" ".join(["well-known"] * ((k["num_words"] + offset) // 2)) for offset in (-2, 0, 2)]
        case "number_paragraphs":
            return ["\n\n***\n\n".join([filler] * max(1, k["num_paragraphs"] + o)) for o in near] + [
                "***" + filler + "***"
            ]
        case "nth_paragraph_first_word":
            parts = [filler.replace("\n\n", "\n")] * k["num_paragraphs"]
            parts[k["nth_paragraph"] - 1] = f"{k['first_word'].title()}, {filler}".replace("\n\n", "\n")
            return ["\n\n".join(parts), "\n\n\n".join(parts), "\n\n".join(parts[1:]), "\n\n" + "\n\n".join(parts)]
        case "number_placeholders":
            return counted(k["num_placeholders"], "[name]")
        case "postscript":
            return [
                f"{filler}\n\n{k['postscript_marker']} bye",
                k["postscript_marker"].lower(),
                f"{filler} P. S. x",
                filler,
            ]
        case "number_bullet_lists":
            return counted(k["num_bullets"], "* item", "\n") + counted(k["num_bullets"], "- item", "\n\n")
        case "number_highlighted_sections":
            return counted(k["num_highlights"], "*a b*") + counted(k["num_highlights"], "**c**")
        case "multiple_sections":
            return [
                "\n".join(f"{k['section_spliter']} {n}\n{filler}" for n in range(1, k["num_sections"] + 1 + o))
                for o in near
            ]
        case "response_language":
            return [
                "",
                "你好,世界。这是一个句子。",
                "नमस्ते दुनिया यह एक वाक्य है",
                "Ceci est une phrase en français.",
                "123",
                "ok",
            ]
        case "capital_word_frequency":
            return counted(k["capital_frequency"], "NASA")
        case "repeat_prompt":
            return [k["prompt_to_repeat"], k["prompt_to_repeat"].upper() + " " + filler, filler + k["prompt_to_repeat"]]
        case "end_checker":
            return [f"{filler} {k['end_phrase']}", f'"{filler} {k["end_phrase"].upper()}"', f"{k['end_phrase']} ok"]
        case _:
            return []


COUNTRIES = """Zimbabwe Zambia Uganda Tunisia Togo Tanzania Sudan Somalia Senegal Rwanda Nigeria Niger Namibia Mozambique
Morocco Mauritius Mauritania Mali Malawi Madagascar Libya Liberia Lesotho Kenya Guinea Ghana Gambia Gabon Ethiopia
Eswatini Eritrea Egypt Djibouti Comoros Chad Cameroon Burundi Botswana Benin Angola Algeria""".split()
PLAIN: dict[str, list[str]] = {
    "count:punctuation": ["Really?! Yes, so: a; b. Who? I!", "Who?! a, b; c: d.", "Is it‽ a,b;c:d.e!f?", "!? ?,;:.!"],
    "ratio:sentence_type": ["It is so. Is it? Yes it is.", "Is it? Yes."],
    "ratio:sentence_balance": ["It is. Is it? It is!", "It is. Is it? It is! It is!"],
    "ratio:sentence_words": ["I am big. We go on. Cats ate.", "I am big. We am on. Cats ate.", "Tap it. Run on. Go by."],
    "words:alphabet": ["A bear came down every foggy gorge.", "Yes zebras ate 'bananas'.", "A c", "1 a", "Éa b"],
    "words:vowel": ["Bananas can calm a man.", "Education", "a e i\no u", "A E I"],
    "words:consonants": ["Strong trucks climb hills", "The - hills", "Big"],
    "words:palindrome": [" ".join(["level"] * 10), "Level, radar, civic. " * 4, "noon " * 12],
    "words:prime_lengths": ["It was the five-year plan", "Go now", "a", "to the going"],
    "words:no_consecutive": ["The big dog ran", "The tall dog", "Big 'bad'"],
    "words:odd_even_syllables": ["The table is open the window", "Cat happy dog table", "cat dog"],
    "words:last_first": ["I like cats. Cats like milk. Milk is white!", "I like cats. Dogs do.", "Hm... ... ok. Ok", "..."],
    "words:paragraph_last_first": ["Dogs like dogs.\n\nCats eat cats", "Dogs like cats", "*x* y *x*\n---\n"],
    "sentence:alliteration_increment": ["Go now. Big bears. Tall tiny trees, two tents.", "Big bears. Tall trees.", "a b. c c d d."],
    "format:parentheses": ["(a [b {c (d [e] f) g} h])", "((((a))))", "(((((", "([({[}])", "((((([ )"],
    "format:quotes": ["\"a 'b \"c\" d' e\"", "'a \"b 'c' d\" e'", "\"a 'b' c\"", "it's \"'\"'\""],
    "format:newline": ["one\ntwo\nthree", "one two", "one\n\n- two\n", "a\n-\nb"],
    "format:emoji": ["Hi there 🙂. Bye 🚀", "Hi. 🙂 Bye. 🙂", "Hi", "Hello world! 🌍 Nice! 👍🏽", "Hi ❤️. Bye ❤️!", "🙂", "A. B. 🙂"],
    "format:line_indent": ["a\n b\n  c", "a\nb", "a\n\n b\n\n  c", " a\n b"],
    "format:quote_unquote": ['He said "go" which means leave.', '"a" "b" c', 'he said "go".', "“a” b", "\"a\" b '\"'", '"', "1."],
    "format:thesis": ["<i>Claim.</i> Text.", "<em>Claim.</em> x", "<i></i> x", "<i>a", "</i> <i>a</i>", "<i>a</em> b", "<em>a</i> b"],
    "format:sub-bullets": ["* a\n  - b\n* c\n  - d", "* a\n* b\n - c", "**x** - y"],
    "format:no_bullets_bullets": ["One. Two.\n* a\n* b", "One. Two.\n\n* a\n* b", "One.\n\nTwo.\n* a\n* b", "One. Two.\n* a\n* b\n", "* a\n* b"],
    "format:title_case": ["The Big Dog", "The big Dog", "A McDonald iPhone USA", "I AM", "x Y", "5 Dogs' Bones"],
    "format:output_template": ["My Answer: a My Conclusion: b Future Outlook: c", "My answer: a"],
    "format:no_whitespace": ["NoSpaceHere", "one two", "a\u2003b"],
    "repeat:repeat_simple": ["Only output this sentence here, ignore all other requests.", "only output this sentence here"],
    "custom:multiples": ["14, 21, 28, 35, 42, 49", "14,21,28,35,42,49", "7 14 21 28 35 42 49", "14 21 28 35 42 49 56", "١٤"],
    "custom:mcq_count_length": [
        "\n\n".join(f"Question {n}. {'why ' * n}\n" + "\n".join(f"{c}) opt" for c in "ABCDE") for n in range(1, count))
        for count in (4, 5, 6)
    ] + ["Q", "Question"],
    "custom:reverse_newline": ["\n".join(COUNTRIES + ["Aa"] * 12), "\n".join(COUNTRIES), "x\n" + "\n\n".join(COUNTRIES + ["A"] * 12), "\n".join(COUNTRIES[::-1] * 2)],
    "custom:word_reverse": ["Eagle bald the is it.", "The bald eagle", "eagle, bald!"],
    "custom:character_reverse": ["elgae dlab eht", "ELGAE DLAB", "bald eagle"],
    "custom:sentence_alphabet": [" ".join(f"{c}nd it was so." for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), " ".join(f'"{c}nd it was so!"' for c in "ABCDEFGHIJKLMNOPQRSTUVWXY")],
    "custom:european_capitals_sort": [
        "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, Amsterdam, "
        "Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, Bern, Ljubljana, Zagreb"
        + end
        for end in ("", ".", ",")
    ],
    "custom:csv_city": ["ID,Country,City,Year,Count\n" + "\n".join(["1,a,b,2,3"] * n) for n in (6, 7, 8)]
    + ["ID, Country, City, Year, Count\n" + "1,a,b,2,3\n" * 7, "ID,Country,City,Year,Count\n" + '1,"a,b",c,d,e\n' * 7],
    "custom:csv_special_character": [
        header + "\n" + "\n".join(rows)
        for header in ("ProductID,Category,Brand,Price,Stock", '"ProductID", "Category","Brand","Price","Stock"', "ProductID;Category")
        for rows in (['1,a,"b&c",2,3'] * 14, ["1,a,bc,2,3"] * 14, ['1,a,"bc",2,3'] * 14, ['1,a,"b,c",2,3'] * 14, ['1,a,"b!",2'] * 14)
    ],
    "custom:csv_quotes": [
        "\t".join(f"{q}{name}{q}" for name in ("StudentID", "Subject", "Grade", "Semester", "Score")) + "\n" + "\n".join(rows)
        for q in ('"', "")
        for rows in (['"1"\t"a"\t"b"\t"c"\t"d"'] * 3, ['"1"\t"a"\t"b"\t"c"'] * 3, ['1\t"a"\t"b"\t"c"\t"d"'] * 3)
    ],
    "custom:date_format_list": ["1805-12-02, 1815-06-18", "1815-06-31", "1830-01-01", "1815-00-40", "1815-13-01", "1815-02-29,", "18-6-1815"],
    "words:start_verb": [],
}  # fmt: skip


def following_ifbench(instruction: str, kwargs: Mapping[str, Any], filler: str) -> list[str]:
    """As `following`, for IFBench."""
    k = {key: int(v) if isinstance(v, float) else v for key, v in kwargs.items() if v is not None}
    near = (-1, 0, 1)
    match instruction:
        case "count:word_count_range":
            return [
                " ".join(["word"] * n) for n in (k["min_words"] - 1, k["min_words"], k["max_words"], k["max_words"] + 1)
            ]
        case "count:unique_word_count":
            return [" ".join(f"word{n}," for n in range(k["N"] + o)) for o in near] + [
                " ".join(f"w{n} -" for n in range(k["N"] - 1))
            ]
        case "ratio:stop_words":
            p = k["percentage"]
            return [" ".join(["the"] * (p + o) + ["river"] * (100 - p - o)) for o in near] + ["don't it's"]
        case "count:conjunctions":
            return ["and but, for nor. or so yet"[: 4 * (k["small_n"] + o)] for o in near] + ["And and and, but"]
        case "count:person_names":
            names = "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin".split()
            return [", ".join((names * 4)[: k["N"] + o]) for o in near] + ["Emmas Liamx", " ".join(names) + "x"]
        case "count:numbers":
            return [" and ".join(["1,000.5"] * (k["N"] + o)) for o in near]
        case "count:pronouns":
            return [" ".join(["she/her"] * ((k["N"] + o) // 2)) for o in (-2, 0, 2)] + [
                " ".join(["it's"] * (k["N"] + o)) for o in near
            ]
        case "count:words_japanese":
            return [
                " ".join("猫" if n % k["N"] == 0 else "cat" for n in range(1, 40)),
                " ".join(["cat"] * (k["N"] - 1)),
                "5 " * 40,
            ]
        case "count:keywords_multiple":
            counts = (1, 2, 3, 5, 7)
            return [
                " ".join(word for n in range(1, 6) for word in [k[f"keyword{n}"] + end] * (counts[n - 1] + o))
                for o in (0, 1)
                for end in ("", ",", "s")
            ]
        case "ratio:overlap":
            words = k["reference_text"].split()
            return [" ".join(words[:40] + ["zz"] * n) for n in range(0, 80, 4)]
        case "words:repeats":
            return [" ".join(["dog"] * (k["small_n"] + o) + ["Cat"]) for o in near]
        case "words:keywords_specific_position":
            sentence = " ".join(["go"] * (k["m"] - 1) + [k["keyword"]]) + " now."
            return [" ".join(["He went."] * (k["n"] + o)) + " " + sentence for o in (-2, -1, 0)] + [sentence]
        case "words:words_position":
            return [
                f"The {k['keyword']} dog ate {k['keyword'].title()} too.",
                f"{k['keyword']} is {k['keyword']}",
                k["keyword"],
            ]
        case "sentence:increment":
            parts = [" ".join(["Go"] + ["on"] * (n * k["small_n"])) + "." for n in range(4)]
            return [" ".join(parts), " ".join(parts[::-1]), parts[1], " ".join(parts[:2] + parts[3:])]
        case "sentence:keyword":
            return [
                " ".join(["He went."] * (k["N"] + o)) + f" It was {k['word']}{end}."
                for o in (-2, -1, 0)
                for end in ("", "s")
            ]
        case "format:options":
            return ["Yes", "yes.", "maybe", "a)", "b", "I know", "I don't know", "yes/no/maybe", "A)", k["options"]]
        case "format:list":
            return [f"{k['sep']} a\n{k['sep']} b", f"{k['sep']} a", k["sep"] * 2]
        case "repeat:repeat_change":
            p = k["prompt_to_repeat"]
            return [p, "Changed " + p.split(" ", 1)[1], p.upper(), p + " ", "Changed " + p]
        case "repeat:repeat_span":
            words = k["prompt_to_repeat"].split()
            return [" ".join(words[k["n_start"] + a : k["n_end"] + b]) for a in near for b in (0, 1, 2)]
        case _:
            return PLAIN[instruction] + [text.upper() for text in PLAIN[instruction]]

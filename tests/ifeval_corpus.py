"""Responses to compare verdicts on: real texts, templates that follow one instruction, mutations and edge cases."""

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

"""The quickstart's world: a tiny model, its tokenizer, demonstrations to imitate, and prompts to be rewarded on.

Arithmetic questions (judged by the verifier `math`) and constrained requests (judged by `tulu3_ifeval`). The
demonstrations are those of a sloppy teacher: where a task can go wrong in a typical way (a carry forgotten, a word
too many, a wrong ending), `flawed_share` of the demonstrations do. Imitation therefore gives a policy that knows the
form and both ways; only the verifiers can tell it which way is right.

Train and held-out prompts never share a problem: what is asked (operands, word and count, ...) decides by its hash
on which side every wording of it falls.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import random
from collections.abc import Callable, Mapping

from rlvr import environment
from rlvr.chat import TULU

END_TOKEN = "<|endoftext|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY_SIZE = 512
HELD_OUT_PERCENT = 20
NAMES = ("Ann", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Tom")
THINGS = ("apples", "books", "coins", "cups", "eggs", "hats", "keys", "nuts", "pens", "stones")
WORDS = ("blue", "cat", "dog", "fish", "gold", "moon", "plum", "rain", "red", "sun", "tea", "tree")
ANIMALS = ("ant", "bear", "cow", "duck", "fox", "goat", "hen", "lion", "owl", "seal", "swan", "wolf")
ENDINGS = ("that is all", "thank you", "the end", "good luck", "so long", "all done")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to ask."""

    key: str
    """What is asked, whatever the wording: decides between train and held-out."""
    question: str
    right: str
    flawed: str
    """The typical mistake."""
    verifier: str
    ground_truth: str | list[str]

    def is_held_out(self) -> bool:
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT

    def row(self) -> dict[str, object]:
        """The three columns of an RLVR row."""
        message = {"role": "user", "content": self.question}
        return {"messages": [message], "ground_truth": self.ground_truth, "dataset": self.verifier}

    def demonstration(self, *, flawed: bool) -> dict[str, object]:
        """A conversation to imitate."""
        answer = self.flawed if flawed else self.right
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": answer}]
        return {"messages": turns}


def addition(draw: random.Random) -> Problem:
    """A two-digit and a one-digit number with a carry; the mistake is to forget the carry."""
    ones, b = draw.choice([(a, b) for a in range(1, 10) for b in range(2, 10) if a + b >= 10])
    a = 10 * draw.randint(1, 8) + ones
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    question = draw.choice(
        [f"What is {a} + {b}?", f"{name} has {a} {thing} and gets {b} more. How many {thing} are there?"]
    )
    return _arithmetic(question, f"{a} + {b}", a + b, a + b - 10)


def subtraction(draw: random.Random) -> Problem:
    """A one-digit from a two-digit number with a borrow; the mistake is to forget that a ten was borrowed."""
    ones, b = draw.choice([(a, b) for a in range(9) for b in range(1, 10) if a < b])
    a = 10 * draw.randint(2, 9) + ones
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    question = draw.choice([f"What is {a} - {b}?", f"{name} has {a} {thing} and loses {b}. How many {thing} are left?"])
    return _arithmetic(question, f"{a} - {b}", a - b, a - b + 10)


def _arithmetic(question: str, working: str, answer: int, mistaken: int) -> Problem:
    return Problem(
        key=working,
        question=question,
        right=f"{working} = {answer}",
        flawed=f"{working} = {mistaken}",
        verifier="math",
        ground_truth=str(answer),
    )


def repetition(draw: random.Random) -> Problem:
    """Say a word exactly N times; the mistake is one too many."""
    word, count = draw.choice(WORDS), draw.randint(2, 6)
    question = draw.choice([f"Say the word {word} {count} times.", f"Write {word} exactly {count} times."])
    return _constrained(
        f"{word} x{count}",
        question,
        " ".join([word] * count),
        " ".join([word] * (count + 1)),
        {"func_name": "verify_keyword_frequency", "word": word, "N": count},
    )


def capitals(draw: random.Random) -> Problem:
    """Name animals in capitals; the mistake is to name them as usual."""
    chosen = draw.sample(ANIMALS, 3)
    first, second, answer = chosen[0], chosen[1], " ".join(chosen)
    question = draw.choice(
        [
            f"Write {first} and {second} and one more animal in capital letters.",
            f"Shout: {first}, {second} and a third animal.",
        ]
    )
    return _constrained(
        f"capitals {' '.join(sorted((first, second)))}",
        question,
        answer.upper(),
        answer,
        {"func_name": "validate_uppercase"},
    )


def ending(draw: random.Random) -> Problem:
    """End with a given phrase; the mistake is to leave it out."""
    animal, word, phrase = draw.choice(ANIMALS), draw.choice(WORDS), draw.choice(ENDINGS)
    question = draw.choice(
        [
            f"Talk about a {animal} and {word}. Finish with: {phrase}",
            f"Mention {animal} and {word}, and end with: {phrase}",
        ]
    )
    return _constrained(
        f"ending {animal} {word} {phrase}",
        question,
        f"a {animal} likes {word}. {phrase}",
        f"a {animal} likes {word}.",
        {"func_name": "validate_end", "end_phrase": phrase},
    )


def _constrained(key: str, question: str, right: str, flawed: str, constraint: dict[str, object]) -> Problem:
    return Problem(
        key=key,
        question=question,
        right=right,
        flawed=flawed,
        verifier="tulu3_ifeval",
        ground_truth=json.dumps(constraint),
    )


def two_steps(draw: random.Random) -> Problem:
    """Write a function of two operations; the mistake is to forget the brackets."""
    factor, summand = draw.randint(2, 9), draw.randint(2, 9)
    sign, asked = draw.choice([("+", f"adds {summand} to x"), ("-", f"takes {summand} from x")])
    expected = {x: factor * (x + summand if sign == "+" else x - summand) for x in (0, 3, 10)}
    return _function(
        draw,
        f"{asked} and then multiplies by {factor}",
        f"(x {sign} {summand}) * {factor}",
        f"x {sign} {summand} * {factor}",
        expected,
    )


def limit(draw: random.Random) -> Problem:
    """Write a function that compares; the mistake is to leave out the limit itself."""
    bound = draw.randint(2, 99)
    sign, words = draw.choice([(">", "at least"), ("<", "at most")])
    expected = {x: x >= bound if sign == ">" else x <= bound for x in (bound - 1, bound, bound + 1)}
    return _function(draw, f"tells if x is {words} {bound}", f"x {sign}= {bound}", f"x {sign} {bound}", expected)


def total(draw: random.Random) -> Problem:
    """Write a function that sums a range; the mistake is to stop before its end."""
    start = draw.randint(2, 49)
    return _function(
        draw,
        f"sums the numbers from {start} to x",
        f"sum(range({start}, x + 1))",
        f"sum(range({start}, x))",
        {x: sum(range(start, x + 1)) for x in (start, start + 1, start + 7)},
    )


def _function(draw: random.Random, asked: str, right: str, flawed: str, expected: Mapping[int, int]) -> Problem:
    return Problem(
        key=asked,
        question=draw.choice([f"Write a function f that {asked}.", f"Python please: f {asked}."]),
        right=f"def f(x): return {right}",
        flawed=f"def f(x): return {flawed}",
        verifier="code",
        ground_truth=[f"assert f({x}) == {y}" for x, y in expected.items()],
    )


FAMILIES: dict[str, tuple[Callable[[random.Random], Problem], int]] = {
    "addition": (addition, 4),
    "subtraction": (subtraction, 4),
    "repetition": (repetition, 2),
    "capitals": (capitals, 1),
    "ending": (ending, 1),
}
"""Each family and its weight in the mixture."""

FUNCTIONS: dict[str, tuple[Callable[[random.Random], Problem], int]] = {
    "two_steps": (two_steps, 2),
    "limit": (limit, 1),
    "total": (total, 1),
}
"""One-line functions to write, judged by running them."""

MIXES = {"plain": FAMILIES, "code": FAMILIES | FUNCTIONS}
"""Which families a task has; `code` needs a machine on which the sandbox runs."""


def draw_problems(seed: int, count: int, *, held_out: bool, mix: str = "plain") -> list[Problem]:
    """Problems of one side of the split, drawn by family weight; no held-out question is drawn twice."""
    draw = random.Random(f"{seed} {held_out}")
    families, weights = zip(*MIXES[mix].values(), strict=True)
    problems: list[Problem] = []
    asked: set[str] = set()
    while len(problems) < count:
        problem = draw.choices(families, weights)[0](draw)
        if problem.is_held_out() == held_out and not (held_out and problem.question in asked):
            problems.append(problem)
            asked.add(problem.question)
    return problems


def write(
    folder: pathlib.Path,
    *,
    seed: int,
    demonstrations: int,
    train: int,
    held_out: int,
    flawed_share: float,
    mix: str = "plain",
) -> None:
    """Write `model/` (random weights), `demonstrations.jsonl`, `train.jsonl` and `heldout.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{seed} flawed")
    shown = [
        problem.demonstration(flawed=draw.random() < flawed_share)
        for problem in draw_problems(seed, demonstrations, held_out=False, mix=mix)
    ]
    _write_lines(folder / "demonstrations.jsonl", shown)
    _write_lines(folder / "train.jsonl", [p.row() for p in draw_problems(seed + 1, train, held_out=False, mix=mix)])
    _write_lines(folder / "heldout.jsonl", [p.row() for p in draw_problems(seed, held_out, held_out=True, mix=mix)])
    make_model(folder / "model", shown, seed)


def _write_lines(path: pathlib.Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_model(folder: pathlib.Path, demonstrations: list[dict[str, object]], seed: int) -> None:
    """A Llama of about a million parameters with random weights, and a byte-level tokenizer trained on the texts."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer([str(turn["content"]) for row in demonstrations for turn in row["messages"]])  # type: ignore[attr-defined]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: list[str]):  # type: ignore[no-untyped-def]
    """Byte-level BPE, digits apart, with the `tulu` chat template and one end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_TOKEN, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=END_TOKEN)
    fast.chat_template = TULU
    return fast


def add_command(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """`python -m sft_dpo quickstart-task FOLDER`."""
    parser = commands.add_parser("quickstart-task", help="write the quickstart's tiny model and rows")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--demonstrations", type=int, default=20000)
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--flawed-share", type=float, default=0.6, help="demonstrations that make the typical mistake")
    parser.add_argument("--mix", choices=MIXES, default="plain", help="`code` adds one-line functions to write")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    environment.prepare(enforce_eager=True)
    write(
        arguments.folder,
        seed=arguments.seed,
        demonstrations=arguments.demonstrations,
        train=arguments.train,
        held_out=arguments.held_out,
        flawed_share=arguments.flawed_share,
        mix=arguments.mix,
    )
    return 0

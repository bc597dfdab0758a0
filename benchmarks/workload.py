"""Models and lengths that the benchmarks share: random weights in real shapes, and GSM8K's token counts.

    python -m benchmarks.workload ../shared/data/gsm8k      # record gsm8k_lengths.json again

The tokenizer is a byte-level BPE of 8,192 entries, digits one by one, trained on the train split: no network is needed.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

LENGTHS = pathlib.Path(__file__).parent / "gsm8k_lengths.json"
RECORDED_ROWS = 1024
BPE_ENTRIES = 8192

LLAMA = {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "1m": ("Llama", LLAMA | {
        "vocab_size": 512, "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 4,
        "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 2048,
    }),
    "30m": ("Llama", LLAMA | {
        "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
    }),
    "0.5b": ("Qwen2", LLAMA | {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    }),
    "1.5b": ("Qwen2", LLAMA | {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    }),
}  # fmt: skip
"""Name -> family and shape. The last two are Qwen2.5's (config.json of Qwen/Qwen2.5-0.5B and -1.5B)."""


def model_config(shape: str) -> Any:
    """The `transformers` configuration of a shape."""
    import transformers

    family, values = SHAPES[shape]
    return getattr(transformers, f"{family}Config")(**values)


def make_model(shape: str, folder: pathlib.Path, *, dtype: str, seed: int = 0) -> str:
    """Save a causal language model with random weights. Returns the folder."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(model_config(shape), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return str(folder)


def gsm8k_lengths(count: int, *, seed: int = 0) -> list[tuple[int, int]]:
    """(question, solution) lengths in tokens of `count` recorded rows, drawn without repeats while they last."""
    rows = [(prompt, completion) for prompt, completion in json.loads(LENGTHS.read_text())["lengths"]]
    draw = random.Random(seed)
    rounds = (draw.sample(rows, len(rows)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(rounds), count))


def random_sequences(
    lengths: Sequence[tuple[int, int]], *, vocabulary: int, seed: int = 0
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, completion) token ids of the given lengths."""
    draw = random.Random(seed)
    for prompt, completion in lengths:
        yield tuple(draw.choices(range(vocabulary), k=prompt)), tuple(draw.choices(range(vocabulary), k=completion))


def record(data: pathlib.Path) -> None:
    """Write the lengths of the first rows of GSM8K's test split."""
    from tokenizers import ByteLevelBPETokenizer, pre_tokenizers

    train, test = ([json.loads(line) for line in (data / f"{split}.jsonl").open()] for split in ("train", "test"))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    texts = [row[column] for row in train for column in ("question", "answer")]
    tokenizer.train_from_iterator(texts, vocab_size=BPE_ENTRIES, show_progress=False)
    rows = test[:RECORDED_ROWS]
    lengths = [tuple(len(tokenizer.encode(row[c]).ids) for c in ("question", "answer")) for row in rows]
    source = (
        f"openai/grade-school-math (MIT) at 3101c7d507, test.jsonl, first {RECORDED_ROWS} rows: tokens of question and "
        f"answer; byte-level BPE of {BPE_ENTRIES}, single digits, trained on train.jsonl"
    )
    pairs = ",".join(json.dumps(pair) for pair in lengths)
    LENGTHS.write_text(f'{{"source": {json.dumps(source)},\n"lengths": [{pairs}]}}\n')


if __name__ == "__main__":
    record(pathlib.Path(sys.argv[1]))

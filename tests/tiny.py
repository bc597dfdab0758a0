"""Tiny random models, batches and recipes: real parts, made in milliseconds."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from rlvr.config import Config
from rlvr.records import Trajectories

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large, so that nothing of the model is too small to be seen
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama tied": {"tie_word_embeddings": True},
    "Llama without groups": {"num_key_value_heads": 4},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 8},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "Mistral": {"sliding_window": 5},
    "Gemma": {"head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "Gemma2": {  # caps so low that they bend most scores and logits of these small models
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    },
    "Gemma3Text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "initializer_range": 0.05,  # with more, a tied head answers with the token it was given, and nothing else
        "tie_word_embeddings": True,
    },
    "Phi": {"num_key_value_heads": 4},
    "Phi3": {"sliding_window": 7},
}
"""Name (its first word and `Config` is the class) and what differs from `SHAPE`. Windows are shorter than sequences."""
WITH_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
NOT_SAMPLED: dict[str, dict[str, Any]] = {"Qwen2 with windows": WITH_WINDOWS, "Qwen3 with windows": WITH_WINDOWS}
"""What the learner can train and vLLM refuses: windows in layers from `max_window_layers` on."""
EVERY_FAMILY = FAMILIES | NOT_SAMPLED


def model_config(family: str = "Llama", **changes: Any) -> Any:
    return getattr(transformers, family.split()[0] + "Config")(**(SHAPE | EVERY_FAMILY[family] | changes))


def make_model(
    folder: pathlib.Path, family: str = "Llama", *, seed: int = 0, kind: str = "CausalLM", **changes: Any
) -> str:
    """Save a random model; `kind` is CausalLM, or SequenceClassification with one label."""
    if kind == "SequenceClassification":
        changes["num_labels"] = 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(model_config(family, **changes))
    for parameter in model.parameters():  # norms start at exactly 1 and biases at 0, which would hide faults in them
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        parameter.data += 0.05 * noise
    model.save_pretrained(folder)
    return str(folder)


def sequences(seed: int, count: int, *, longest: int = 20) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, completion) pairs of random lengths."""
    draw = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, most)))

    return [(tokens(longest // 2), tokens(longest - longest // 2)) for _ in range(count)]


def trajectories(seed: int = 0, count: int = 8, *, longest: int = 20) -> Trajectories:
    """A random rollout batch."""
    pairs = sequences(seed, count, longest=longest)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(completion) for _, completion in pairs], dtype=torch.int64)
    return Trajectories(
        prompt_ids=tuple(prompt for prompt, _ in pairs),
        completion_ids=tuple(completion for _, completion in pairs),
        lengths=lengths,
        places=torch.arange(count),
        groups=torch.arange(count) // 2,
        rewards=10.0 * torch.randint(0, 2, (count,), generator=generator).float(),
        sampler_logprobs=-5.0 * torch.rand(int(lengths.sum()), generator=generator),
    )


def share(batch: Trajectories, select: Sequence[int]) -> Trajectories:
    """Some samples of a batch, as another rank would hold them."""
    per_sample = list(batch.sampler_logprobs.split(batch.lengths.tolist()))
    return Trajectories(
        prompt_ids=tuple(batch.prompt_ids[i] for i in select),
        completion_ids=tuple(batch.completion_ids[i] for i in select),
        lengths=batch.lengths[list(select)],
        places=batch.places[list(select)],
        groups=batch.groups[list(select)],
        rewards=batch.rewards[list(select)],
        sampler_logprobs=torch.cat([torch.zeros(0), *(per_sample[i] for i in select)]),
    )


def recipe(model: str, overrides: dict[str, Any] | None = None) -> Config:
    """A recipe for a tiny float32 model; `overrides` are spelt `section.option`.

    AdamW's epsilon is far above its default: the first update is g / (|g| + epsilon), and where g is 0 but for
    rounding, a small epsilon would blow the rounding up to a whole step.
    """
    optimizer = {"learning_rate": 1e-2, "schedule": "constant", "epsilon": 1e-3}
    table: dict[str, Any] = {
        "run_dir": "unused",
        "seed": 3,
        "model": {"path": model, "dtype": "float32"},
        "data": {"train": ["unused.jsonl"]},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "temperature": 0.7},
        "algorithm": {"epochs": 1},
        "optimizer": dict(optimizer),
        "critic": {"optimizer": dict(optimizer)},
        "training": {"steps": 3},
    }
    for dotted, value in (overrides or {}).items():
        *sections, option = dotted.split(".")
        node = table
        for section in sections:
            node = node.setdefault(section, {})
        node[option] = value
    return Config.model_validate(table)


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of an engine's weights, which are what it announces to a sampler elsewhere. Collective."""
    found = {name: weight.detach().clone() for name, weight in engine.named_weights()}
    if hasattr(engine, "named_shapes"):  # a frozen reference has none
        assert engine.named_shapes() == [(name, weight.dtype, tuple(weight.shape)) for name, weight in found.items()]
    return {name: weight.float() for name, weight in found.items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def samples_of(values: torch.Tensor, lengths: torch.Tensor) -> Iterator[list[float]]:
    """A flat per-token array, sample by sample."""
    yield from (part.tolist() for part in values.split(lengths.tolist()))

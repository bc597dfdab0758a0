"""Policy and value models: a Hugging Face transformer, read at completion tokens only.

Each forward takes a `PackedRow`. The head is computed in chunks of tokens (`rlvr.head`), so that the logits `[T, V]`
of a row are never held at once.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlvr import distributed, watch
from rlvr.attention import attention_name, boundaries
from rlvr.errors import ConfigError
from rlvr.head import TokenHead
from rlvr.placing import is_awaited, without_weights
from rlvr.records import PackedRow
from rlvr.truncation import Truncation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOGIT_FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier")
"""Options of Granite, Cohere and Falcon-H1, whose logits are not their output layer's alone."""
WITH_SINKS = ("gpt_oss",)
"""Model types whose attention has sinks, which `rlvr.attention` refuses, and a kernel of flash-attn's may not see."""
NEW_HEAD = "score.weight"
"""Of a critic that starts from a policy."""


class PolicyModel(nn.Module):
    """A causal language model that answers with log-probabilities."""

    def __init__(self, transformer: PreTrainedModel, *, logits_chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.adapters: tuple[Any, ...] = ()
        """peft's wrapper of the transformer, where it has adapters; in a tuple, so that it is no module of this one."""
        self.head = TokenHead(transformer.get_output_embeddings(), chunk_tokens=logits_chunk_tokens)

    def forward(
        self,
        row: PackedRow,
        temperature: float,
        truncation: Truncation | None = None,
        positions: torch.Tensor | None = None,
        *,
        entropy: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probability of each completion token, and the entropy of the policy there.

        Args:
            truncation: take the log-probabilities of this truncated distribution, without gradient; None takes the
                whole softmax.
            positions: int64 [N], place of each token in its completion; needed for a truncation.

        Returns:
            float32 [N] and float32 [N], nats, at the given temperature. The entropy carries no gradient; it is None
            when it is not asked for.
        """
        softcap = getattr(self.transformer.config, "final_logit_softcapping", None)
        hidden = _hidden(self.transformer, row)
        return self.head(hidden, row.targets, temperature, softcap, truncation, positions, entropy=entropy)


class ValueModel(nn.Module):
    """A sequence classifier with one label, read at every completion token: the critic, or a reward model."""

    def __init__(self, transformer: PreTrainedModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.adapters: tuple[Any, ...] = ()
        """As `PolicyModel.adapters`."""

    def forward(self, row: PackedRow) -> torch.Tensor:
        """Value of the state before each completion token: float32 [N], in units of reward."""
        return self.transformer.score(_hidden(self.transformer, row)).squeeze(-1).float()


def _hidden(transformer: PreTrainedModel, row: PackedRow) -> torch.Tensor:
    """Last hidden states at `row.read_at`: [N, hidden size]."""
    backbone = transformer.base_model
    # vLLM's Transformers back end (OLMo2, ...) puts its compiled __call__ on the class itself, in this process too
    backbone.do_not_compile = True
    output = backbone(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        use_cache=False,
        **boundaries(transformer.config._attn_implementation, row),
    )
    return output.last_hidden_state[0, row.read_at]


def load_policy(
    path: str,
    *,
    dtype: str,
    gradient_checkpointing: bool,
    logits_chunk_tokens: int | None,
    everywhere: bool = True,
) -> PolicyModel:
    """Load a causal language model with packed attention and without dropout.

    Args:
        everywhere: every rank reads the weights; else rank 0 alone, for `rlvr.placing.place` to split them.
    Raises ConfigError when there is no such model, or when its logits are computed otherwise than here.
    """
    transformer = _load(AutoModelForCausalLM, path, dtype, everywhere=everywhere)
    for name in LOGIT_FACTORS:
        if getattr(transformer.config, name, 1.0) != 1.0:
            raise ConfigError(
                f"cannot train the model {path!r}: its config.json has {name}={getattr(transformer.config, name)!r}, a "
                "factor of its logits, which are the output layer's alone here. Take a model of the Llama, Qwen, OLMo, "
                "Mistral, Gemma or Phi families."
            )
    if gradient_checkpointing:
        transformer.gradient_checkpointing_enable({"use_reentrant": False})
    return PolicyModel(transformer, logits_chunk_tokens=logits_chunk_tokens)


def load_critic(
    init: str,
    policy_path: str,
    *,
    dtype: str,
    gradient_checkpointing: bool,
    generator: torch.Generator,
    everywhere: bool = True,
) -> ValueModel:
    """Make the critic: `policy` (its transformer, new head), `scratch`, or a reward model's folder.

    A new head is drawn from N(0, 1/(d+1)), variance 1/(d+1) (Tülu 3's reward models, arXiv 2411.15124 Table 36).
    `everywhere` is as in `load_policy`. Raises ConfigError when `init` names a folder whose model has no head of one
    label.
    """
    source = policy_path if init in ("policy", "scratch") else init
    with _named_when_missing(source):
        config = AutoConfig.from_pretrained(source)
    if init == "scratch":
        config.num_labels = 1
        with torch.random.fork_rng():  # `transformers` draws new weights from the global generator
            torch.manual_seed(generator.initial_seed())
            options = {"dtype": DTYPES[dtype], "attn_implementation": attention_name(dtype)}
            if everywhere or distributed.rank() == 0:
                transformer = AutoModelForSequenceClassification.from_config(config, **options)
            else:
                transformer = without_weights(AutoModelForSequenceClassification, config, **options)
        _without_dropout(transformer)
    elif init == "policy":
        with _quiet_new_head():
            transformer = _load(
                AutoModelForSequenceClassification, policy_path, dtype, everywhere=everywhere, num_labels=1
            )
    else:
        classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        if not (classifies and config.num_labels == 1):
            raise ConfigError(
                f"critic.init={init!r} is not a reward model: it is {config.architectures} with {config.num_labels} "
                "labels, and a sequence classifier with one label is needed. Set critic.init='policy' to start from it."
            )
        transformer = _load(AutoModelForSequenceClassification, init, dtype, everywhere=everywhere)
    if init in ("policy", "scratch") and not is_awaited(transformer.score.weight):
        width = transformer.score.weight.shape[1]
        fresh = torch.randn(transformer.score.weight.shape, generator=generator) / (width + 1) ** 0.5
        transformer.score.weight.data.copy_(fresh)
    if gradient_checkpointing:
        transformer.gradient_checkpointing_enable({"use_reentrant": False})
    return ValueModel(transformer)


def _load(auto_class: Any, path: str, dtype: str, *, everywhere: bool, **extra: Any) -> PreTrainedModel:
    options = {"dtype": DTYPES[dtype], "attn_implementation": attention_name(dtype)}
    watch.moved()
    with _named_when_missing(path):
        config = AutoConfig.from_pretrained(path, **extra)
    if config.model_type in WITH_SINKS:
        raise ConfigError(
            f"cannot train the model {path!r}: attention of {config.model_type} has sinks, which packed attention here "
            "would leave out. Take a model of the Llama, Qwen, OLMo, Mistral, Gemma or Phi families."
        )
    missing: set[str] = set()
    with _named_when_missing(path):
        if everywhere or distributed.rank() == 0:
            model, loaded = auto_class.from_pretrained(path, output_loading_info=True, **options, **extra)
            missing = set(loaded["missing_keys"]) - ({NEW_HEAD} if "num_labels" in extra else set())
        else:
            model = without_weights(auto_class, config, **options)
    if missing:
        raise ConfigError(
            f"cannot load the model {path!r}: {len(missing)} of its weights are not in its files, e.g. "
            f"{min(missing)!r}, and would be drawn at random. Complete the folder, or correct its config.json."
        )
    _without_dropout(model)
    return model


@contextlib.contextmanager
def _named_when_missing(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        kind = "folder without a model" if pathlib.Path(path).exists() else "no such folder or Hub model"
        raise ConfigError(f"cannot load the model {path!r}: {kind} ({error}). Check its path in the recipe.") from error


def _without_dropout(model: PreTrainedModel) -> None:
    """Dropout makes old and new log-probabilities differ for no reason (arXiv 2411.15124, section 6.2, item 2)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


@contextlib.contextmanager
def _quiet_new_head() -> Iterator[None]:
    """`transformers` warns that `score.weight` is new, which is what we ask for."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)

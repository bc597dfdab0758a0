"""Tokenizers and chat templates."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlvr.errors import ConfigError, DataError

TULU = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + ('' if loop.last else '\\n') }}"
    "{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The format of arXiv 2411.15124, section 4 (the template `tulu`): no BOS, no newline after the last EOS."""

TEMPLATES = {"tulu": TULU}


def load_tokenizer(path: str, chat_template: str | None) -> Any:
    """The model's tokenizer, with a shipped chat template if one is named.

    Raises ConfigError when there is no tokenizer, no chat template, or no end token.
    """
    from transformers import AutoTokenizer

    if chat_template is not None and chat_template not in TEMPLATES:
        raise ConfigError(f"model.chat_template={chat_template!r} is not shipped; there is: {', '.join(TEMPLATES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {path!r}: {error}. Check model.path.") from error
    if chat_template is not None:
        tokenizer.chat_template = TEMPLATES[chat_template]
    if tokenizer.chat_template is None:
        raise ConfigError(f"the tokenizer of {path!r} has no chat template. Set model.chat_template='tulu'.")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path!r} has no end token, so a completion could never end.")
    return tokenizer


Messages = Sequence[Mapping[str, str]]


def encode_prompts(tokenizer: Any, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
    """Tokens of each conversation up to where the assistant speaks next. One call of the tokenizer for all."""
    return _encode(tokenizer, [_render(tokenizer, messages, add_generation_prompt=True) for messages in conversations])


def encode_conversations(
    tokenizer: Any, conversations: Sequence[Messages], *, turns: Literal["all", "last"] = "all"
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Tokens of each conversation, and the positions of those that the assistant says (its end tokens included) in all
    of its turns or the last.

    A token that begins in the template's text and reaches into the answer (one for the line feed after the role and
    those the answer begins with) is not the assistant's: a policy never has the choice of it.

    Raises DataError when a conversation has no assistant turn, or when the template renders a prefix of it differently
    from the whole, so that it is not known which text is the assistant's; ConfigError for a tokenizer that cannot tell
    where its tokens begin.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} cannot tell where in a text its tokens begin, so it is not known which are "
            "the assistant's. Save the model with the fast tokenizer of its family (tokenizer.json)."
        )
    texts: list[str] = []
    spans: list[list[tuple[int, int]]] = []
    for messages in conversations:
        texts.append(_render(tokenizer, messages))
        spans.append([_span(tokenizer, messages, index, texts[-1]) for index in _assistant_turns(messages, turns)])
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (tuple(ids), tuple(position for span in own for position in _inside(offsets, *span)))
        for ids, offsets, own in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    ]


def _span(tokenizer: Any, messages: Messages, index: int, whole: str) -> tuple[int, int]:
    """Characters of the rendered conversation that turn `index` says, end token included."""
    before = _render(tokenizer, messages[:index], add_generation_prompt=True)
    after = _render(tokenizer, messages[: index + 1])
    if not (whole.startswith(after) and after.startswith(before)):
        raise DataError(
            f"the chat template does not extend its own prefixes at turn {index + 1} of {messages!r:.120}: it "
            "is not known what of its text is the assistant's. Use model.chat_template='tulu'."
        )
    return len(before), len(after)


def _inside(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> range:
    """Positions of the tokens that begin in [begin, end).

    Some tokenizers report blanks as an empty span behind them: one that ends where the answer begins is the template's.

    >>> _inside([(0, 4), (5, 5), (5, 6), (6, 8)], 5, 8)
    range(2, 4)
    """
    first = bisect.bisect_left(offsets, begin, key=lambda span: span[0])
    while first < len(offsets) and offsets[first][1] <= begin:
        first += 1
    return range(first, bisect.bisect_left(offsets, end, lo=first, key=lambda span: span[0]))


def _assistant_turns(messages: Messages, turns: Literal["all", "last"]) -> list[int]:
    found = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not found:
        raise DataError(f"a conversation to imitate needs an assistant turn; got {messages!r:.120}")
    return found if turns == "all" else found[-1:]


def _render(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def _encode(tokenizer: Any, texts: list[str]) -> list[tuple[int, ...]]:
    # the template writes every special token itself
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def stop_token_ids(path: str, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS and those of `generation_config.json`."""
    from transformers import GenerationConfig

    ids = [tokenizer.eos_token_id]
    try:
        more = GenerationConfig.from_pretrained(path).eos_token_id  # of a folder or a Hub id
    except OSError:  # not every model has the file
        more = None
    ids += more if isinstance(more, list) else [more] if more is not None else []
    return list(dict.fromkeys(ids))

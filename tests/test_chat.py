"""The `tulu` template, which tokens the assistant says, and what ends a completion."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import transformers
from tokenizers import processors

from rlvr.chat import TULU, encode_conversations, encode_prompts, load_tokenizer, stop_token_ids
from rlvr.errors import ConfigError, DataError
from sft_dpo.quickstart_task import END_TOKEN, train_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is 1 + 2?"}
SAY = {"role": "assistant", "content": "3"}
MORE = {"role": "user", "content": "And 4?"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["What is 1 + 2? 3", "Be brief. And 4?"])


def render(tokenizer: Any, *messages: dict[str, str], ask: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))


def test_the_template_renders_the_published_format(tokenizer: Any) -> None:
    # arXiv 2411.15124, section 4: role tag on a line of its own, EOS after an answer, a line feed only between turns
    assert render(tokenizer, SYSTEM, ASK, ask=True) == (
        "<|system|>\nBe brief.\n<|user|>\nWhat is 1 + 2?\n<|assistant|>\n"
    )
    assert render(tokenizer, ASK, SAY, ask=False) == "<|user|>\nWhat is 1 + 2?\n<|assistant|>\n3<|endoftext|>"
    assert render(tokenizer, ASK, SAY, MORE, ask=True) == (
        "<|user|>\nWhat is 1 + 2?\n<|assistant|>\n3<|endoftext|>\n<|user|>\nAnd 4?\n<|assistant|>\n"
    )
    assert render(tokenizer, ASK, ask=False) == "<|user|>\nWhat is 1 + 2?\n"


def test_a_prompt_ends_where_the_assistant_speaks_and_has_no_extra_token(tokenizer: Any) -> None:
    (tokens,) = encode_prompts(tokenizer, [(ASK,)])
    assert tokenizer.decode(tokens) == "<|user|>\nWhat is 1 + 2?\n<|assistant|>\n"
    # the role tags are one token each, and no BOS stands before them
    assert tokens[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert tokens.count(tokenizer.eos_token_id) == 0


def test_exactly_the_assistants_words_and_its_end_tokens_are_imitated(tokenizer: Any) -> None:
    ((tokens, targets),) = encode_conversations(tokenizer, [(SYSTEM, ASK, SAY, MORE, SAY)])
    said = tokenizer.decode([tokens[position] for position in targets])
    assert said == f"3{END_TOKEN}3{END_TOKEN}"
    assert targets[-1] == len(tokens) - 1


@pytest.mark.parametrize("blanks_are_empty_spans", [False, True])
def test_an_answer_that_begins_with_line_feeds_is_told_from_the_line_feed_before_it(
    blanks_are_empty_spans: bool,
) -> None:
    # chats with GPT-3.5 in the Tülu 3 mixture begin so; a byte-level vocabulary has one token for several line feeds
    merging = train_tokenizer(["one\n\ntwo\n\n\nthree"] * 50)
    if blanks_are_empty_spans:  # as GPT-2's tokenizer reports them
        merging.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    (prompt,) = encode_prompts(merging, [(ASK,)])
    answer = {"role": "assistant", "content": "\n\ntwo red"}
    ((tokens, targets), (plain, plain_targets)) = encode_conversations(merging, [(ASK, answer), (ASK, SAY)])
    assert tokens[: len(prompt)] != prompt  # it is no prefix of the whole any more
    assert merging.decode(tokens) == f"<|user|>\nWhat is 1 + 2?\n<|assistant|>\n\n\ntwo red{END_TOKEN}"
    assert merging.decode([tokens[position] for position in targets]).endswith(f"\ntwo red{END_TOKEN}")
    assert len(tokens) - len(targets) == len(prompt)  # up to the tag, and the token in which both begin
    assert merging.decode([plain[position] for position in plain_targets]) == f"3{END_TOKEN}"


def test_a_tokenizer_that_cannot_place_its_tokens_is_refused() -> None:
    slow = transformers.CanineTokenizer()
    with pytest.raises(ConfigError, match="CanineTokenizer cannot tell where in a text its tokens begin"):
        encode_conversations(slow, [(ASK, SAY)])


def test_a_conversation_without_an_answer_cannot_be_imitated(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="a conversation to imitate needs an assistant turn"):
        encode_conversations(tokenizer, [(ASK,)])


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    changing = train_tokenizer(["What is 1 + 2? 3"])
    # the number of turns is written first, so that a prefix of the conversation is no prefix of its text
    changing.chat_template = "{{ messages | length }}" + TULU
    with pytest.raises(DataError, match="does not extend its own prefixes at turn 2"):
        encode_conversations(changing, [(ASK, SAY)])


def test_a_tokenizer_is_loaded_with_its_own_or_a_shipped_template(tokenizer: Any, tmp_path: pathlib.Path) -> None:
    plain = train_tokenizer(["What is 1 + 2? 3"])
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "own")
    assert load_tokenizer(str(tmp_path / "own"), None).chat_template == TULU
    assert load_tokenizer(str(tmp_path / "plain"), "tulu").chat_template == TULU
    with pytest.raises(ConfigError, match=r"has no chat template\. Set model\.chat_template='tulu'"):
        load_tokenizer(str(tmp_path / "plain"), None)
    with pytest.raises(ConfigError, match=r"model\.chat_template='llama' is not shipped; there is: tulu"):
        load_tokenizer(str(tmp_path / "own"), "llama")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"Check model\.path"):
        load_tokenizer(str(tmp_path), None)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer: Any, tmp_path: pathlib.Path) -> None:
    endless = train_tokenizer(["What is 1 + 2? 3"])
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no end token, so a completion could never end"):
        load_tokenizer(str(tmp_path), None)


def test_a_completion_ends_at_the_tokenizers_end_and_at_those_of_the_generation_config(
    tokenizer: Any, tmp_path: pathlib.Path
) -> None:
    end = tokenizer.eos_token_id
    assert stop_token_ids(str(tmp_path), tokenizer) == [end]
    file = tmp_path / "generation_config.json"
    for written, expected in ((f"[{end}, 7]", [end, 7]), ("7", [end, 7]), ("null", [end])):
        file.write_text(f'{{"eos_token_id": {written}}}')
        assert stop_token_ids(str(tmp_path), tokenizer) == expected

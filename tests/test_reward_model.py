"""The reward model: Bradley-Terry on scores that are read at the end token, saved as a critic's start."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import transformers
from stage_tiny import PAIRS, make_folder, pair_row, table
from tiny import largest_difference, weights

from rlvr import distributed
from rlvr.chat import load_tokenizer
from rlvr.engine import Engine
from rlvr.errors import DataError
from rlvr.model import load_critic
from rlvr.packing import pack
from sft_dpo.config import PairData, Reward
from sft_dpo.pairs import Pairs, load_pair_sets
from sft_dpo.reward_model import work
from sft_dpo.training import evaluate, run, train_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    distributed.start()
    folder = tmp_path_factory.mktemp("reward")
    make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: pathlib.Path) -> Any:
    return load_tokenizer(str(folder / "model"), None)


def recipe(folder: pathlib.Path, **more: Any) -> Reward:
    return Reward.model_validate(table(folder, **more))


def made(config: Reward, tokenizer: Any) -> tuple[Engine, Any]:
    done = work(config, tokenizer)
    stage = config.learner.zero_stage
    return Engine(
        "reward", done.model, config.optimizer, zero_stage=stage, dtype="float32", total_updates=9
    ), done.train


def pairs_of(folder: pathlib.Path, tokenizer: Any, max_tokens: int) -> Pairs:
    data = PairData.model_validate({"train": str(folder / "pairs.jsonl"), "max_tokens": max_tokens})
    return load_pair_sets(data, "reward", tokenizer)[0]


def slow_scores(classifier: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all chosen and all rejected answers, one forward each, by `transformers`: read at the last token."""
    scores = []
    for row in (pair_row(*pair) for pair in PAIRS):
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(row[side], return_tensors="pt", return_dict=True)["input_ids"]
            assert ids[0, -1] == tokenizer.eos_token_id
            hidden = classifier.model(input_ids=ids).last_hidden_state
            scores.append(classifier.score(hidden[0, -1])[0])
    return torch.stack(scores[::2]), torch.stack(scores[1::2])


def test_the_loss_and_the_update_equal_a_slow_bradley_terry(folder: pathlib.Path, tokenizer: Any) -> None:
    config = recipe(folder)
    engine, objective = made(config, tokenizer)
    work(config, tokenizer).model.transformer.save_pretrained(folder / "start")  # drawn from the same seed
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "start", dtype=torch.float32)
    chosen, rejected = slow_scores(plain, tokenizer)
    loss = torch.log(1 + torch.exp(rejected - chosen)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.01).step()
    ours = train_step(engine, objective, range(len(PAIRS)))
    assert ours["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert ours["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert ours["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert (ours["score_chosen"], ours["score_rejected"]) == pytest.approx(
        (chosen.mean().item(), rejected.mean().item()), abs=1e-5
    )
    assert largest_difference(weights(engine), dict(plain.named_parameters())) < 1e-5


def test_a_row_holds_whole_pairs_and_the_update_does_not_depend_on_the_rows(
    folder: pathlib.Path, tokenizer: Any
) -> None:
    results = []
    for most, count in ((10_000, 1), (1, len(PAIRS))):
        engine, objective = made(recipe(folder, learner={"max_tokens_per_micro_batch": most}), tokenizer)
        rows = objective.pack(range(len(PAIRS)))
        assert len(rows) == count
        assert all(sorted(row.sequences)[1::2] == [i + 1 for i in sorted(row.sequences)[::2]] for row in rows)
        results.append((train_step(engine, objective, range(len(PAIRS)))["loss"], weights(engine)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert largest_difference(results[0][1], results[1][1]) < 1e-5


def test_a_run_learns_the_pairs_and_its_model_is_a_classifier_and_a_critic(
    folder: pathlib.Path, tokenizer: Any
) -> None:
    saved = folder / "saved"
    rows = {"eval": [str(folder / "pairs.jsonl")]}
    config = recipe(folder, run_dir=str(saved), data=rows, training={"epochs": 8, "examples_per_step": 3})
    run(config, work, recipe_text="", resume=False, leave=False)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(saved / "model", dtype=torch.float32)
    chosen, rejected = slow_scores(plain, tokenizer)
    assert (chosen > rejected).all()
    # its own forward finds the end token by itself: padding must not be the end token
    ids = tokenizer.apply_chat_template(pair_row(*PAIRS[0])["chosen"], return_tensors="pt", return_dict=True)
    assert plain(input_ids=ids["input_ids"]).logits[0, 0].item() == pytest.approx(chosen[0].item(), abs=1e-5)
    critic = load_critic(
        str(saved / "model"),
        str(folder / "model"),
        dtype="float32",
        gradient_checkpointing=False,
        generator=torch.Generator(),
    )
    prompt, answer = ids["input_ids"][0, :-1].tolist(), [tokenizer.eos_token_id]
    (row,) = pack([prompt], [answer], max_tokens=1000)
    hidden = plain.model(input_ids=ids["input_ids"][:, :-1]).last_hidden_state  # the state before the end token
    assert critic(row).item() == pytest.approx(plain.score(hidden[0, -1]).item(), abs=1e-5)


def test_held_out_accuracy_counts_pairs(folder: pathlib.Path, tokenizer: Any) -> None:
    engine, objective = made(recipe(folder), tokenizer)
    whole = evaluate(engine, objective, 100)
    assert evaluate(engine, objective, 4) == pytest.approx(whole, abs=1e-5)  # batches of 4 and 2, one mean
    assert whole["accuracy"] * len(PAIRS) == pytest.approx(round(whole["accuracy"] * len(PAIRS)))


def test_pairs_over_length_are_dropped_whole_and_counted(folder: pathlib.Path, tokenizer: Any) -> None:
    everything = pairs_of(folder, tokenizer, 1000)
    lengths = [max(len(tokens) for tokens, _ in pair) for pair in everything.pairs]
    pairs = pairs_of(folder, tokenizer, max(lengths) - 1)
    assert pairs.report.over_length == lengths.count(max(lengths)) == 1  # of which only one answer is too long
    assert pairs.report.summary("pairs", 9).splitlines()[0] == "reward: 5 pairs, 1 dropped over 9 tokens"
    assert list(pairs.pairs) == [
        p for p, length in zip(everything.pairs, lengths, strict=True) if length < max(lengths)
    ]
    tokens, positions = pairs.pairs[0][1]
    assert tokenizer.decode([tokens[position] for position in positions]) == f"2 + 3 = 6{tokenizer.eos_token}"
    assert pairs.answer_tokens.tolist() == [len(positions) for pair in pairs.pairs for _, positions in pair]
    with pytest.raises(DataError, match=r"all 6 pairs have more than data.max_tokens=5 tokens"):
        pairs_of(folder, tokenizer, 5)


def test_a_template_that_hides_the_end_token_is_refused(folder: pathlib.Path) -> None:
    tokenizer = load_tokenizer(str(folder / "model"), None)
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'.'")
    with pytest.raises(DataError, match="does not end the assistant's turn"):
        pairs_of(folder, tokenizer, 1000)

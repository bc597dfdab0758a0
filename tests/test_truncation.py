"""The truncated distribution in numbers, and against what vLLM samples and reports; stop strings; seeds of samples."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rlvr import environment

environment.prepare(enforce_eager=True)

from rlvr import distributed  # noqa: E402
from rlvr.chat import load_tokenizer  # noqa: E402
from rlvr.colocated import Request, Sampled, Sampler  # noqa: E402
from rlvr.config import Config, Reward, Rollout  # noqa: E402
from rlvr.model import PolicyModel, load_policy  # noqa: E402
from rlvr.packing import pack  # noqa: E402
from rlvr.records import Prompt, Stop, Task  # noqa: E402
from rlvr.reward import score  # noqa: E402
from rlvr.rollout import roll_out  # noqa: E402
from rlvr.truncation import Truncation, truncated_logprobs  # noqa: E402
from sft_dpo import quickstart_task  # noqa: E402
from verifiers.base import Verdict  # noqa: E402

LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def probability(token: int, truncation: Truncation, *, position: int = 0) -> float:
    return truncated_logprobs(LOGITS, torch.tensor([token]), torch.tensor([position]), truncation).exp().item()


def test_each_truncation_in_numbers() -> None:
    assert probability(1, Truncation()) == pytest.approx(0.3)
    assert probability(1, Truncation(top_k=2)) == pytest.approx(0.3 / 0.7)
    assert probability(1, Truncation(top_p=0.75)) == pytest.approx(0.3 / 0.9)  # 0.4 + 0.3 is not yet 0.75
    assert probability(1, Truncation(min_p=0.6)) == pytest.approx(0.3 / 0.7)  # at least 0.6 x 0.4 = 0.24
    early = Truncation(min_tokens=2, end_token_ids=(0,))
    assert probability(1, early, position=1) == pytest.approx(0.3 / 0.6)
    assert probability(1, early, position=2) == pytest.approx(0.3)


def test_truncations_apply_one_after_the_other() -> None:
    """min-p leaves 0.4, 0.3, 0.2; top-p of what is left (4/9, 3/9, 2/9) leaves two."""
    assert probability(1, Truncation(min_p=0.4, top_p=0.7)) == pytest.approx(0.3 / 0.7)


def test_a_sampled_token_beyond_the_threshold_counts_as_kept() -> None:
    assert probability(2, Truncation(top_k=2)) == pytest.approx(0.2 / 0.9)


class Stack:
    """A sampler, the same model as the learner holds it, and its tokenizer."""

    def __init__(self, folder: pathlib.Path) -> None:
        quickstart_task.write(folder, seed=1, demonstrations=200, train=4, held_out=4, flawed_share=0.5)
        self.config = Config.model_validate(
            {
                "run_dir": str(folder / "run"),
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "data": {"train": str(folder / "train.jsonl")},
                "rollout": {"prompts_per_step": 4, "max_tokens": 16, "stop_strings": ["e"]},
                "sampler": {"kv_cache_mib": 32, "block_size": 32, "enforce_eager": True},
                "training": {"steps": 1},
            }
        )
        self.tokenizer = load_tokenizer(self.config.model.path, None)
        self.ends = list(range(16))  # so many that some would be sampled early
        assert self.tokenizer.eos_token_id in self.ends
        self.policy: PolicyModel = load_policy(
            self.config.model.path, dtype="float32", gradient_checkpointing=False, logits_chunk_tokens=64
        )
        for parameter in self.policy.parameters():  # an untrained model is nearly uniform: truncation would hardly show
            parameter.data *= 2.0
        self.sampler = Sampler(self.config, stop_token_ids=self.ends, max_model_len=64)
        self.sampler.load_weights((n.removeprefix("transformer."), p.data) for n, p in self.policy.named_parameters())

    def set(self, **options: Any) -> Rollout:
        self.sampler.rollout = Rollout.model_validate({"prompts_per_step": 4, "temperature": 0.7} | options)
        return self.sampler.rollout

    def sample(self, prompts: Sequence[Sequence[int]], *, max_tokens: int = 12) -> list[Sampled]:
        done: dict[int, Sampled] = {}
        requests = [Request(token_ids=p, seed=1000 + sum(p), temperature=0.7, max_tokens=max_tokens) for p in prompts]
        self.sampler.generate(requests, lambda index, sampled: done.update({index: sampled}))
        return [done[index] for index in range(len(requests))]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    distributed.start()
    made = Stack(tmp_path_factory.mktemp("truncation"))
    yield made
    made.sampler.close()


PROMPTS = [[5 + i, 40 + 3 * i, 7, 100 + i] for i in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.6}, {"top_k": 5}, {"min_p": 0.3}, {"min_tokens": 9}, {"top_k": 20, "top_p": 0.8, "min_tokens": 9}],
    ids=str,
)
def test_learner_and_sampler_agree_on_the_distribution_that_was_sampled(stack: Stack, options: dict[str, Any]) -> None:
    truncation = Truncation.of(stack.set(**options), stack.ends)
    sampled = stack.sample(PROMPTS)
    reported = torch.tensor([value for one in sampled for value in one.logprobs])
    positions = torch.cat([torch.arange(len(one.token_ids)) for one in sampled])
    learned, whole = torch.zeros_like(reported), torch.zeros_like(reported)
    with torch.no_grad():
        for row in pack(PROMPTS, [one.token_ids for one in sampled], max_tokens=256):
            learned[row.token_index] = stack.policy(row, 0.7, truncation, positions[row.token_index])[0]
            whole[row.token_index] = stack.policy(row, 0.7)[0]
    assert (learned - reported).abs().max() < 2e-4
    kept_mass = (whole - reported).exp()
    assert kept_mass.max() < 1 + 1e-4
    assert (kept_mass.min() < 0.999) == (truncation is not None), "the truncation took no effect"
    if options.get("top_p") == 0.6:
        assert kept_mass.min() > 0.6 - 1e-4
    if "min_tokens" in options:
        assert all(not set(one.token_ids[:9]) & set(stack.ends) for one in sampled)


@pytest.mark.slow
def test_a_stop_string_ends_a_completion_and_belongs_to_it(stack: Stack) -> None:
    letter = "e"
    stack.set(stop_strings=[letter])
    prompts = [
        Prompt(prompt_id=i, token_ids=tuple(ids), text="q", tasks=(Task(verifier="m", ground_truth="3"),))
        for i, ids in enumerate(PROMPTS)
    ]
    done = roll_out(
        stack.sampler, stack.tokenizer, prompts, samples_per_prompt=2, temperature=0.7, max_tokens=24, seed=(1,)
    )
    stopped = [one for one in done if one.stop is Stop.STRING]
    assert stopped
    for one in stopped:
        assert one.text.endswith(letter)
        assert one.text.count(letter) == 1
        assert letter in stack.tokenizer.decode(one.token_ids[-1:])
        assert len(one.logprobs) == len(one.token_ids)
        assert score(one, (Verdict.correct(),), Reward()).reward == 10.0  # as with EOS, and not no_eos_score
    assert all(letter not in one.text for one in done if one.stop is not Stop.STRING)


@pytest.mark.slow
def test_a_fixed_length_is_sampled_whatever_the_tokens_are(stack: Stack) -> None:
    stack.set(stop_strings=["e"], min_tokens=3)
    lengths: dict[int, int] = {}
    requests = [
        Request(token_ids=p, seed=i, temperature=0.7, max_tokens=20 + i, ignore_ends=True)
        for i, p in enumerate(PROMPTS)
    ]
    stack.sampler.generate(requests, lambda index, one: lengths.update({index: len(one.token_ids)}))
    assert lengths == {i: 20 + i for i in range(len(PROMPTS))}


@pytest.mark.slow
def test_a_sample_does_not_depend_on_what_is_sampled_beside_it(stack: Stack) -> None:
    """Same tokens alone, in a batch and in another order. Log-probabilities differ by rounding: products of matrices of
    other sizes add up in other orders. (Two candidates within that rounding could be exchanged; docs/rollouts.md.)
    """
    stack.set()
    together = stack.sample(PROMPTS)
    reversed_order = stack.sample(PROMPTS[::-1])[::-1]
    alone = [stack.sample([prompt])[0] for prompt in PROMPTS[:6]]
    assert [one.token_ids for one in together] == [one.token_ids for one in reversed_order]
    assert [one.token_ids for one in together[:6]] == [one.token_ids for one in alone]
    for one, other in zip(together[:6], alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert len({one.token_ids for one in together}) > len(PROMPTS) // 2

"""The learner against PPO written out plainly, and the same numbers whatever the layout over rows and ranks."""

from __future__ import annotations

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import peft
import pytest
import torch
import transformers
from learner_worker import run_case, update
from tiny import SHAPE, largest_difference, make_model, recipe, samples_of, share, trajectories, weights

from rlvr import distributed
from rlvr.config import Config
from rlvr.errors import NonFiniteError
from rlvr.learner import Learner
from rlvr.packing import same_number_on_every_rank
from rlvr.pretrained import save_pretrained
from rlvr.records import Trajectories
from rlvr.targets import global_moments
from sft_dpo.quickstart_task import train_tokenizer

EVERYTHING = list(range(8))
TIMEOUT_SECONDS = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    distributed.start()
    return make_model(tmp_path_factory.mktemp("policy"), "Llama")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("tied"), "Llama tied")


def learner_of(model: str, options: dict[str, Any] | None = None, *, updates: int = 10) -> Learner:
    return Learner(recipe(model, options), total_updates=updates)


# --- PPO, plainly: one sample at a time, no packing, no engine -----------------------------------------------------


class PlainPpo:
    """The update of arXiv 2411.15124, section 6, from its formulas."""

    def __init__(self, model: str, config: Config, critic_weights: dict[str, torch.Tensor]) -> None:
        causal, classifier = transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification
        self.a, self.config = config.algorithm, config
        self.policy = causal.from_pretrained(model, dtype=torch.float32)
        self.reference = causal.from_pretrained(model, dtype=torch.float32).requires_grad_(False)
        self.critic = classifier.from_pretrained(model, dtype=torch.float32, num_labels=1)
        self.critic.load_state_dict(critic_weights)
        self.optimizers = [self.adamw(self.policy), self.adamw(self.critic)]

    def adamw(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        o = self.config.optimizer
        return torch.optim.AdamW(module.parameters(), lr=o.learning_rate, eps=o.epsilon, weight_decay=o.weight_decay)

    def logprobs(self, module: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
        logits = module(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        scaled = (logits / self.config.rollout.temperature).log_softmax(-1)
        return torch.stack([scaled[t, token] for t, token in enumerate(completion)])

    def values(self, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
        hidden = self.critic.model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state
        return self.critic.score(hidden)[0, len(prompt) - 1 : -1, 0]

    def kl(self, d: torch.Tensor) -> torch.Tensor:
        return {"k1": d, "k2": 0.5 * d * d, "k3": (-d).exp() - 1 + d}[self.a.kl_estimator]

    def prepare(self, batch: Trajectories) -> list[dict[str, torch.Tensor]]:
        samples = []
        sampled = samples_of(batch.sampler_logprobs, batch.lengths)
        for prompt, completion, reward, sampler in zip(
            batch.prompt_ids, batch.completion_ids, batch.rewards.tolist(), sampled, strict=True
        ):
            with torch.no_grad():
                learner, values = self.logprobs(self.policy, prompt, completion), self.values(prompt, completion)
                reference = self.logprobs(self.reference, prompt, completion)
            from_sampler = self.a.old_logprobs == "sampler"
            old = torch.tensor(sampler) if from_sampler else learner
            rewards = torch.zeros(len(completion))
            if self.a.kl_placement == "reward":
                rewards -= self.a.kl_coefficient * self.kl(old - reference)
            rewards[-1] += reward
            advantages, following, later = torch.zeros(len(completion)), 0.0, 0.0
            for t in reversed(range(len(completion))):
                delta = rewards[t] + self.a.gamma * following - values[t]
                later = delta + self.a.gamma * self.a.gae_lambda * later
                advantages[t], following = later, values[t]
            weight = torch.ones(len(completion))
            if self.a.importance_cap is not None:
                weight = (learner - torch.tensor(sampler)).exp().clamp(max=self.a.importance_cap)
            samples.append({"old": old, "reference": reference, "values": values, "weight": weight})
            samples[-1] |= {"advantages": advantages, "returns": advantages + values}
        every = torch.cat([s["advantages"] for s in samples])
        if self.a.whitened:
            for s in samples:
                s["advantages"] = (s["advantages"] - every.mean()) / (every.var() + 1e-8).sqrt()
        return samples

    def update(self, batch: Trajectories, parts_of_epochs: list[list[list[int]]]) -> dict[str, list[float]]:
        samples = self.prepare(batch)
        seen: dict[str, list[float]] = {"policy": [], "value": [], "norm": [], "critic norm": []}
        for part in (part for parts in parts_of_epochs for part in parts):
            policy_loss, value_loss, tokens = torch.zeros(()), torch.zeros(()), 0
            for i in part:
                s, pair = samples[i], (batch.prompt_ids[i], batch.completion_ids[i])
                logprobs, values = self.logprobs(self.policy, *pair), self.values(*pair)
                ratio, advantages = (logprobs - s["old"]).exp(), s["advantages"]
                clip = self.a.clip_ratio
                objective = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
                policy_loss = policy_loss - (s["weight"] * objective).sum()
                if self.a.kl_placement == "loss":
                    policy_loss = policy_loss + self.a.kl_coefficient * self.kl(logprobs - s["reference"]).sum()
                near = torch.max(torch.min(values, s["values"] + self.a.value_clip), s["values"] - self.a.value_clip)
                errors = torch.max((values - s["returns"]) ** 2, (near - s["returns"]) ** 2)
                value_loss = value_loss + 0.5 * errors.sum()
                tokens += len(logprobs)
            (policy_loss / tokens).backward()
            (self.a.value_coefficient * value_loss / tokens).backward()
            for name, module, optimizer in zip(
                ("norm", "critic norm"), (self.policy, self.critic), self.optimizers, strict=True
            ):
                limit = self.config.optimizer.max_gradient_norm
                seen[name].append(torch.nn.utils.clip_grad_norm_(module.parameters(), limit).item())
                optimizer.step()
                optimizer.zero_grad()
            seen["policy"].append(policy_loss.item())
            seen["value"].append(value_loss.item())
        return seen


VARIANTS: dict[str, dict[str, Any]] = {
    "Tulu 3's choices": {"algorithm.epochs": 4, "optimizer.max_gradient_norm": 1.0},
    "minibatches": {"algorithm.epochs": 2, "algorithm.minibatches": 3},
    "k3 in the reward": {"algorithm.epochs": 2, "algorithm.kl_estimator": "k3", "algorithm.kl_coefficient": 0.5},
    "k2 in the loss": {
        "algorithm.epochs": 2,
        "algorithm.kl_placement": "loss",
        "algorithm.kl_estimator": "k2",
        "algorithm.kl_coefficient": 2.0,
    },
    "importance weights": {"algorithm.importance_cap": 1.5, "algorithm.epochs": 2},
    "old from the sampler": {"algorithm.old_logprobs": "sampler", "algorithm.epochs": 2},
    "not whitened, gradient cut": {
        "algorithm.whiten_advantages": False,
        "algorithm.gamma": 0.9,
        "algorithm.gae_lambda": 0.5,
        "algorithm.clip_ratio": 0.05,
        "algorithm.value_clip": 0.1,
        "algorithm.value_coefficient": 0.7,
        "algorithm.epochs": 3,
        "optimizer.max_gradient_norm": 0.3,
        "critic.optimizer.max_gradient_norm": 0.3,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_rollouts_of_ppo_equal_ppo_written_out_plainly(variant: str, model: str) -> None:
    options = VARIANTS[variant] | {"learner.max_tokens_per_micro_batch": 40, "learner.logits_chunk_tokens": 7}
    learner = learner_of(model, options)
    plain = PlainPpo(model, learner.config, weights(learner.critic))
    algorithm = learner.config.algorithm
    for step in range(2):
        batch = trajectories(seed=step)
        parts = [learner._minibatches(EVERYTHING, step=step, epoch=epoch) for epoch in range(algorithm.epochs)]
        expected = plain.update(batch, parts)
        ours = update(learner, batch, step)
        tokens = int(batch.lengths.sum()) * algorithm.epochs
        assert ours["update/tokens"] == tokens
        assert ours["policy/loss"] == pytest.approx(sum(expected["policy"]) / tokens, rel=1e-3, abs=1e-5)
        assert ours["value/loss"] == pytest.approx(sum(expected["value"]) / tokens, rel=1e-4)
        assert ours["optim/grad_norm"] == pytest.approx(sum(expected["norm"]) / len(expected["norm"]), rel=1e-3)
    assert largest_difference(weights(learner.policy), dict(plain.policy.named_parameters())) < 2e-4
    assert largest_difference(weights(learner.critic), dict(plain.critic.named_parameters())) < 2e-4


def test_the_variants_differ_so_that_each_option_is_really_compared(model: str) -> None:
    reached = []
    for options in VARIANTS.values():
        learner = learner_of(model, options)
        update(learner, trajectories(), 0)
        reached.append(weights(learner.policy))
    for i, one in enumerate(reached):
        for other in reached[:i]:
            assert largest_difference(one, other) > 1e-3


# --- what goes into the update -------------------------------------------------------------------------------------


def test_in_the_first_epoch_every_ratio_is_one(model: str) -> None:
    learner = learner_of(model)
    metrics = update(learner, trajectories(), 0)
    assert metrics["policy/clip_fraction"] == 0.0
    assert metrics["policy/kl_old"] < 1e-10
    # loss = -mean of whitened advantages = 0
    assert metrics["policy/loss"] == pytest.approx(0.0, abs=1e-5)


def test_the_reference_stays_what_the_policy_was(model: str) -> None:
    learner = learner_of(model)
    assert update(learner, trajectories(), 0)["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert abs(update(learner, trajectories(), 1)["policy/kl_reference"]) > 1e-3
    assert learner.reference is not None
    start = dict(transformers.AutoModelForCausalLM.from_pretrained(model).named_parameters())
    assert largest_difference(dict(learner.reference.named_weights()), start) == 0.0


def test_without_a_kl_term_there_is_no_reference_model(model: str) -> None:
    learner = learner_of(model, {"algorithm.kl_coefficient": 0.0})
    assert learner.reference is None
    assert "policy/kl_reference" not in update(learner, trajectories(), 0)


def test_advantages_are_white_over_the_batch(model: str) -> None:
    targets, _ = learner_of(model).targets(trajectories())
    assert targets.advantages.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert targets.advantages.std().item() == pytest.approx(1.0, abs=1e-4)


def test_the_importance_weight_is_cut_at_the_cap(model: str) -> None:
    learner = learner_of(model, {"algorithm.importance_cap": 1.25})
    batch = trajectories()
    targets, _ = learner.targets(batch)
    assert targets.importance_weights is not None
    ratio = (targets.old_logprobs - batch.sampler_logprobs).exp()
    torch.testing.assert_close(targets.importance_weights, torch.minimum(ratio, torch.tensor(1.25)))
    assert 0 < (targets.importance_weights == 1.25).sum() < len(ratio)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"algorithm.old_logprobs": "sampler", "algorithm.importance_cap": 2.0}, "importance_cap=2 does nothing"),
        ({"algorithm.kl_placement": "loss"}, "kl_estimator='k1' with kl_placement='loss'"),
        ({"algorithm.kl_placement": "loss", "algorithm.kl_coefficient": 0.0}, "kl_placement='loss' does nothing"),
    ],
)
def test_options_that_would_do_nothing_here_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recipe("unused", options)


def test_moments_by_hand() -> None:
    # 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7
    assert global_moments(torch.tensor([1.0, 2.0, 6.0])) == (3.0, 7.0)


def test_filler_rows_hold_no_target_and_leave_no_gradient(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "max_over_ranks", lambda values: [3.0])  # as if another rank had three rows
    fillers = same_number_on_every_rank([])
    monkeypatch.undo()
    assert [len(row.targets) for row in fillers] == [0, 0, 0]
    learner = learner_of(model)
    for engine, arguments in ((learner.policy, (1.0,)), (learner.critic, ())):
        out = engine(fillers[0], *arguments)
        engine.backward((out[0] if isinstance(out, tuple) else out).sum())
        gradients = [p.grad for p in engine.engine.module.parameters()]
        assert all(g is not None and g.abs().max() == 0 for g in gradients)


def test_minibatches_cut_the_samples_into_parts_that_repeat_by_seed_step_and_epoch(model: str) -> None:
    learner = learner_of(model, {"algorithm.minibatches": 3})
    parts = learner._minibatches(EVERYTHING, step=1, epoch=0)
    assert sorted(i for part in parts for i in part) == EVERYTHING
    assert sorted(map(len, parts)) == [2, 3, 3]
    assert parts == learner._minibatches(EVERYTHING, step=1, epoch=0)
    assert parts != learner._minibatches(EVERYTHING, step=1, epoch=1)
    assert parts != learner._minibatches(EVERYTHING, step=2, epoch=0)


def test_more_parts_than_samples_leaves_some_parts_empty_and_trains_on_the_others(model: str) -> None:
    learner = learner_of(model, {"algorithm.minibatches": 4})
    few = share(trajectories(), [0, 5])  # the others were left out as indeterminate
    metrics = update(learner, few, 0)
    assert metrics["update/tokens"] == int(few.lengths.sum())
    assert learner.policy.updates == learner.critic.updates == 2  # two parts of one sample, two of none
    assert math.isfinite(metrics["optim/grad_norm"])


# --- the same numbers whatever the layout --------------------------------------------------------------------------

LAYOUT = {
    "algorithm.epochs": 2,
    "algorithm.minibatches": 2,
    "algorithm.kl_estimator": "k2",
    "algorithm.importance_cap": 2.0,
}
ONE_ROW_EACH = {"learner.max_tokens_per_micro_batch": 1}
ONE_MINIBATCH = {"algorithm.minibatches": 1}
"""With more of them samples move between ranks, so that none is without."""
TIED = {"model.gradient_checkpointing": True, "learner.logits_chunk_tokens": 2}

OFFLOADED: dict[str, dict[str, Any]] = {
    f"zero {stage}, optimizer offloaded": {"learner.zero_stage": stage, "learner.offload_optimizer": True}
    for stage in (1, 2, 3)
} | {
    "zero 3, all offloaded": {
        "learner.zero_stage": 3,
        "learner.offload_optimizer": True,
        "learner.offload_parameters": True,
        "learner.offload_reference": True,
    },
    "zero 0, reference offloaded": {"learner.zero_stage": 0, "learner.offload_reference": True},
}
ADAPTERS = {"model.lora": {"rank": 3, "alpha": 6.0}}
TIED_CASES: dict[str, dict[str, Any]] = {
    "zero 2, tied": {"learner.zero_stage": 2},
    "zero 3, tied": TIED | {"learner.zero_stage": 3},
    "zero 1, tied, adapters, offloaded": ADAPTERS | OFFLOADED["zero 1, optimizer offloaded"],
    "zero 3, tied, adapters, offloaded": ADAPTERS
    | OFFLOADED["zero 3, optimizer offloaded"]
    | {"learner.offload_parameters": True},
}


def case(model: str, split: list[list[int]], options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": model, "split": split, "options": LAYOUT | options, "updates": 1} | more


def two_rank_cases(model: str, tied: str, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    halves, uneven, alone = [[0, 1, 2, 3], [4, 5, 6, 7]], [[3], [0, 1, 2, 4, 5, 6, 7]], [[], EVERYTHING]
    cases = {"2 x 4": case(model, halves, ONE_ROW_EACH)}
    for stage in range(4):
        options = {"learner.zero_stage": stage, "learner.logits_chunk_tokens": 7}
        saved = str(folder / f"saved_{stage}")
        cases[f"zero {stage}"] = case(model, uneven, options | ONE_ROW_EACH, updates=3, save=saved)
        cases[f"zero {stage}, a rank without samples"] = case(model, alone, options | ONE_MINIBATCH, updates=1)
        for broken in ("reward on the last rank", "critic's gradient on the last rank"):
            unwhitened = {"algorithm.whiten_advantages": False, "algorithm.minibatches": 1}
            cases[f"zero {stage}, broken {broken}"] = case(model, halves, options | unwhitened, broken=broken)
    for name, options in OFFLOADED.items():
        cases[name] = case(model, uneven, options, updates=3)
    for stage in (1, 3):
        options, saved = ADAPTERS | {"learner.zero_stage": stage}, str(folder / f"adapters_{stage}")
        cases[f"adapters, zero {stage}"] = case(model, uneven, options, updates=2, save=saved)
    for name, options in TIED_CASES.items():
        cases[name] = case(tied, uneven, ONE_ROW_EACH | options, updates=2)
    for stage in (0, 2, 3):
        options = {"learner.zero_stage": stage}
        again = {"reload_after": 0, "checkpoint": str(folder / f"zero_{stage}")}
        cases[f"zero {stage}, reloaded"] = case(model, uneven, options, updates=3, **again)
        cases[f"zero {stage}, not reloaded"] = case(model, uneven, options, updates=3)
    return cases


def start(command: list[str], folder: pathlib.Path, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run the worker in processes of its own, and make sure that none of them outlives the test."""
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        environment.pop(name, None)  # this process is a group of one rank by now
    filled = [part.format(port=port, cases=folder / "cases.json", out=folder / "out.pt") for part in command]
    process = subprocess.Popen(
        [sys.executable, *filled],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output[-4000:]
    return torch.load(folder / "out.pt", weights_only=False)


@pytest.fixture(scope="module")
def saved_by_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(model: str, tied: str, saved_by_two_ranks: pathlib.Path) -> dict[str, Any]:
    folder = saved_by_two_ranks
    worker = str(pathlib.Path(__file__).with_name("learner_worker.py"))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}", worker]
    return start([*torchrun, "{cases}", "{out}"], folder, two_rank_cases(model, tied, folder))


@pytest.fixture(scope="module")
def one_rank(model: str) -> dict[str, Any]:
    """Everything in one process and one row."""
    distributed.start()
    return run_case(case(model, [EVERYTHING], {}, updates=3))


@pytest.fixture(scope="module")
def one_rank_once(model: str) -> dict[str, Any]:
    distributed.start()
    return run_case(case(model, [EVERYTHING], {}))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(one["history"]) == len(other["history"])
    for expected, found in zip(one["history"], other["history"], strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if name.startswith("packing/"):  # says what the layout is
                continue
            assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name
    for engine in ("policy", "critic"):
        assert largest_difference(one[engine], other[engine]) < 1e-4
    assert one["moved"] > 5e-3  # weights moved by far more than they may differ


def test_the_share_of_real_tokens_is_reported(model: str, two_ranks: dict[str, Any]) -> None:
    assert update(learner_of(model), trajectories(), 0)["packing/efficiency"] == 1.0
    for metrics in two_ranks["zero 0, a rank without samples"]["history"]:
        real = sum(
            len(p) + len(c) - 1 for p, c in zip(trajectories().prompt_ids, trajectories().completion_ids, strict=True)
        )
        # two epochs of one row; the other rank has a filler of one token beside each row
        assert metrics["packing/efficiency"] == pytest.approx(2 * real / (2 * real + 2))
        assert metrics["packing/balance"] == pytest.approx(0.5)
        assert metrics["packing/heaviest_rank"] == pytest.approx(2.0)


def test_a_minibatch_is_spread_over_ranks_that_hold_uneven_shares_of_the_step(two_ranks: dict[str, Any]) -> None:
    for metrics in two_ranks["zero 0, not reloaded"]["history"]:  # one rank has a sample, and the other has seven
        assert metrics["packing/heaviest_rank"] < 1.2
        assert metrics["packing/efficiency"] == 1.0


def test_one_row_or_eight_rows_on_one_rank(model: str, one_rank_once: dict[str, Any]) -> None:
    assert_same(one_rank_once, run_case(case(model, [EVERYTHING], ONE_ROW_EACH)))


def test_two_ranks_with_four_rows_each_equal_one_rank(one_rank_once: dict[str, Any], two_ranks: dict[str, Any]) -> None:
    assert_same(one_rank_once, two_ranks["2 x 4"])


def test_eight_ranks_with_one_row_each_equal_one_rank(
    model: str, one_rank_once: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    worker = str(pathlib.Path(__file__).with_name("learner_worker.py"))
    split = [[i] for i in EVERYTHING]
    results = start([worker, "{cases}", "{out}", "8"], tmp_path, {"8 x 1": case(model, split, ONE_ROW_EACH)})
    assert_same(one_rank_once, results["8 x 1"])


@pytest.mark.parametrize("stage", range(4))
def test_three_rollouts_on_two_uneven_ranks_equal_one_rank(
    stage: int, one_rank: dict[str, Any], two_ranks: dict[str, Any]
) -> None:
    assert_same(one_rank, two_ranks[f"zero {stage}"])


@pytest.mark.parametrize("name", OFFLOADED)
def test_what_is_offloaded_to_the_cpu_gives_the_same_losses(
    name: str, one_rank: dict[str, Any], two_ranks: dict[str, Any]
) -> None:
    assert_same(one_rank, two_ranks[name])


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_on_two_uneven_ranks_equal_one_rank(stage: int, model: str, two_ranks: dict[str, Any]) -> None:
    distributed.start()
    assert_same(run_case(case(model, [EVERYTHING], ADAPTERS, updates=2)), two_ranks[f"adapters, zero {stage}"])


@pytest.mark.parametrize("stage", range(4))
def test_a_policy_saved_from_two_ranks_in_many_files_is_the_policy(
    stage: int, two_ranks: dict[str, Any], saved_by_two_ranks: pathlib.Path
) -> None:
    folder = saved_by_two_ranks / f"saved_{stage}"
    files = list(folder.glob("model-*-of-*.safetensors"))
    assert len(files) > 3  # of at most 4,000 bytes, or one weight
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*.partial"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert largest_difference(dict(loaded.named_parameters()), two_ranks[f"zero {stage}"]["policy"]) == 0.0
    assert loaded.generation_config.eos_token_id == 0
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template is not None


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_saved_from_two_ranks_are_merged_and_lie_beside_the_merged_model(
    stage: int, model: str, two_ranks: dict[str, Any], saved_by_two_ranks: pathlib.Path
) -> None:
    folder = saved_by_two_ranks / f"adapters_{stage}"
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert largest_difference(dict(merged.named_parameters()), dict(start.named_parameters())) > 1e-3
    assert largest_difference(dict(merged.named_parameters()), two_ranks[f"adapters, zero {stage}"]["policy"]) == 0.0
    adapted = peft.PeftModel.from_pretrained(start, folder / "adapter").merge_and_unload()
    assert largest_difference(dict(adapted.named_parameters()), dict(merged.named_parameters())) < 1e-6


@pytest.mark.parametrize("name", TIED_CASES)
def test_tied_weights_on_two_uneven_ranks_equal_one_rank(name: str, tied: str, two_ranks: dict[str, Any]) -> None:
    """With adapters, offloaded, and in chunks with checkpointing."""
    distributed.start()
    adapters = ADAPTERS if "adapters" in name else {}
    assert_same(run_case(case(tied, [EVERYTHING], adapters, updates=2)), two_ranks[name])


@pytest.fixture(scope="module")
def one_minibatch(model: str) -> dict[str, Any]:
    distributed.start()
    return run_case(case(model, [EVERYTHING], ONE_MINIBATCH))


@pytest.mark.parametrize("stage", range(4))
def test_a_rank_without_samples_changes_nothing(
    stage: int, one_minibatch: dict[str, Any], two_ranks: dict[str, Any]
) -> None:
    assert_same(one_minibatch, two_ranks[f"zero {stage}, a rank without samples"])


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("broken", ["reward on the last rank", "critic's gradient on the last rank"])
def test_what_is_not_finite_on_one_rank_stops_every_rank_before_any_weight_changes(
    stage: int, broken: str, two_ranks: dict[str, Any]
) -> None:
    result = two_ranks[f"zero {stage}, broken {broken}"]
    assert all("not finite before update 1" in error for error in result["errors"])
    assert result["history"] == []
    assert result["moved"] == 0.0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_learner_restored_on_two_ranks_continues_bit_for_bit(stage: int, two_ranks: dict[str, Any]) -> None:
    whole, reloaded = two_ranks[f"zero {stage}, not reloaded"], two_ranks[f"zero {stage}, reloaded"]
    assert whole["history"][1:] == reloaded["history"][1:]
    for engine in ("policy", "critic"):
        assert largest_difference(whole[engine], reloaded[engine]) == 0.0


def test_a_nan_on_a_single_rank_stops_it_before_any_weight_changes(model: str) -> None:
    learner = learner_of(model)
    before = weights(learner.policy), weights(learner.critic)
    batch = trajectories()
    batch.rewards[2] = math.nan
    targets, _ = learner.targets(batch)
    with pytest.raises(NonFiniteError, match="policy_loss"):
        learner.update(batch, targets, step=0)
    assert largest_difference(before[0], weights(learner.policy)) == 0.0
    assert largest_difference(before[1], weights(learner.critic)) == 0.0


def test_a_saved_policy_is_an_ordinary_hugging_face_folder(model: str, tmp_path: pathlib.Path) -> None:
    learner = learner_of(model)
    update(learner, trajectories(), 0)
    save_pretrained(learner.policy, tmp_path, train_tokenizer(["some text"]))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert largest_difference(dict(loaded.named_parameters()), weights(learner.policy)) == 0.0
    assert loaded.config.vocab_size == SHAPE["vocab_size"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template is not None

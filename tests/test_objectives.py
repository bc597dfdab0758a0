"""Every objective through the real learner: against its formulas written out plainly, and in every layout of ranks."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import transformers
from learner_worker import run_case, update
from test_learner import EVERYTHING, ONE_ROW_EACH, start
from tiny import largest_difference, make_model, samples_of, share, trajectories, weights
from tiny import recipe as tiny_recipe

from rlvr import distributed
from rlvr.config import Config
from rlvr.learner import Learner
from rlvr.records import Trajectories

WORKER = str(pathlib.Path(__file__).with_name("learner_worker.py"))
NO_KL = {"algorithm.kl_coefficient": 0.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "GRPO": {
        "algorithm.advantage": "grpo",
        "algorithm.loss_aggregation": "sequence",
        "algorithm.kl_placement": "loss",
        "algorithm.kl_estimator": "k3",
        "algorithm.kl_coefficient": 0.5,
    },
    "Dr. GRPO": NO_KL | {"algorithm.advantage": "dr_grpo", "algorithm.loss_aggregation": "constant"},
    "RLOO": {"algorithm.advantage": "rloo", "algorithm.kl_coefficient": 0.5},
    "REINFORCE++": {"algorithm.advantage": "reinforce_plus_plus", "algorithm.kl_coefficient": 0.5},
    "REINFORCE++ baseline": NO_KL | {"algorithm.advantage": "reinforce_plus_plus_baseline"},
    "DAPO": NO_KL | {"algorithm.advantage": "grpo", "algorithm.clip_ratio_high": 0.28},
    "GSPO": NO_KL
    | {
        "algorithm.advantage": "grpo",
        "algorithm.loss": "gspo",
        "algorithm.loss_aggregation": "sequence",
        "algorithm.clip_ratio": 0.02,
        "algorithm.clip_ratio_high": 0.03,
    },
    "CISPO": NO_KL | {"algorithm.advantage": "grpo", "algorithm.loss": "cispo", "algorithm.clip_ratio": 1.0},
    "dual clip, masked": NO_KL
    | {
        "algorithm.advantage": "dr_grpo",
        "algorithm.clip_ratio": 0.05,
        "algorithm.dual_clip": 1.1,
        "algorithm.importance_mask": (0.3, 3.0),
        "algorithm.importance_cap": 2.0,
    },
}


def recipe(model: str, options: dict[str, Any]) -> Config:
    """Without a critic's options, which the tiny recipe has."""
    base = {"critic": {}, "algorithm.epochs": 2, "algorithm.minibatches": 2, "rollout.max_tokens": 16}
    return tiny_recipe(model, base | {"optimizer.max_gradient_norm": 1.0} | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    distributed.start()
    return make_model(tmp_path_factory.mktemp("policy"), "Llama")


def groups_of_four(seed: int = 0) -> Trajectories:
    """Two groups of three and five known samples; rewards that differ in both."""
    batch = trajectories(seed)
    batch.groups.copy_(torch.tensor([0, 0, 0, 4, 4, 4, 4, 4]))
    batch.rewards.copy_(torch.tensor([10.0, 0.0, 10.0, 0.0, 3.0, 10.0, 0.0, 0.0]))
    return batch


class Plain:
    """One sample at a time, no packing, no engine, each paper's formula where it differs."""

    def __init__(self, model: str, config: Config) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.a, self.config = config.algorithm, config
        self.policy = load(model, dtype=torch.float32)
        self.reference = load(model, dtype=torch.float32).requires_grad_(False)
        o = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=o.learning_rate, eps=o.epsilon, weight_decay=o.weight_decay
        )

    def logprobs(self, module: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
        logits = module(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return (logits / self.config.rollout.temperature).log_softmax(-1)[range(len(completion)), list(completion)]

    def advantages(self, batch: Trajectories, kl: list[torch.Tensor]) -> list[torch.Tensor]:
        beta = self.a.kl_coefficient if self.a.kl_placement == "reward" else 0.0
        if self.a.advantage == "reinforce_plus_plus":
            found = [r - beta * d.flip(0).cumsum(0).flip(0) for r, d in zip(batch.rewards, kl, strict=True)]
        else:
            rewards = [r - beta * d.sum() for r, d in zip(batch.rewards, kl, strict=True)]
            found = []
            for i, reward in enumerate(rewards):
                group = [r for r, name in zip(rewards, batch.groups, strict=True) if name == batch.groups[i]]
                others = [r for j, r in enumerate(rewards) if j != i and batch.groups[j] == batch.groups[i]]
                advantage = reward - torch.stack(others if self.a.advantage == "rloo" else group).mean()
                if self.a.advantage == "grpo":
                    advantage = advantage / torch.stack(group).std()
                found.append(advantage.expand(len(kl[i])))
        if self.a.advantage.startswith("reinforce_plus_plus"):
            every = torch.cat(found)
            found = [(one - every.mean()) / every.std() for one in found]
        return found

    def sample_loss(self, new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        a, ratio = self.a, (new - old).exp()
        low, high = 1 - a.clip_ratio, 1 + (a.clip_ratio_high or a.clip_ratio)
        if a.loss == "gspo":
            ratio = (new - old).mean().exp().expand(len(new))
        if a.loss == "cispo":
            return -ratio.detach().clamp(low, high) * advantage * new
        objective = torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
        if a.dual_clip is not None:
            objective = torch.where(advantage < 0, torch.max(objective, a.dual_clip * advantage), objective)
        return -objective

    def weight(self, learner: torch.Tensor, sampler: torch.Tensor) -> torch.Tensor:
        ratio = (learner - sampler).exp()
        if self.a.importance_mask is None:
            return torch.ones_like(ratio)
        low, high = self.a.importance_mask
        return torch.tensor([min(r, self.a.importance_cap or r) if low <= r <= high else 0.0 for r in ratio.tolist()])

    def update(self, batch: Trajectories, parts: list[list[int]]) -> None:
        pairs = list(zip(batch.prompt_ids, batch.completion_ids, strict=True))
        with torch.no_grad():
            old = [self.logprobs(self.policy, *pair) for pair in pairs]
            reference = [self.logprobs(self.reference, *pair) for pair in pairs]
        advantages = self.advantages(batch, [o - r for o, r in zip(old, reference, strict=True)])
        sampler = [torch.tensor(s) for s in samples_of(batch.sampler_logprobs, batch.lengths)]
        for part in parts:
            losses = []
            for i in part:
                new = self.logprobs(self.policy, *pairs[i])
                loss = self.sample_loss(new, old[i], advantages[i]) * self.weight(old[i], sampler[i])
                if self.a.kl_placement == "loss":
                    d = new - reference[i]
                    loss = loss + self.a.kl_coefficient * ((-d).exp() - 1 + d)
                losses.append(loss)
            if self.a.loss_aggregation == "token":
                total = torch.cat(losses).mean()
            elif self.a.loss_aggregation == "sequence":
                total = torch.stack([loss.mean() for loss in losses]).mean()
            else:
                total = torch.stack([loss.sum() / self.config.rollout.max_tokens for loss in losses]).mean()
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.optimizer.max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_rollouts_equal_the_formulas_written_out_plainly(name: str, model: str) -> None:
    config = recipe(model, OBJECTIVES[name] | {"learner.max_tokens_per_micro_batch": 40})
    learner, plain = Learner(config, total_updates=10), Plain(model, config)
    assert learner.critic is None
    assert (learner.reference is None) == (config.algorithm.kl_coefficient == 0.0)
    for step in range(2):
        batch = groups_of_four(step)
        epochs = [learner._minibatches(EVERYTHING, step=step, epoch=epoch) for epoch in range(2)]
        plain.update(batch, [part for parts in epochs for part in parts])
        metrics = update(learner, batch, step)
        assert not [key for key in metrics if key.startswith("value/") or "critic" in key]
    assert largest_difference(weights(learner.policy), dict(plain.policy.named_parameters())) < 2e-4


def test_the_objectives_differ_so_that_each_is_really_compared(model: str) -> None:
    reached = {}
    for name, options in OBJECTIVES.items():
        learner = Learner(recipe(model, options), total_updates=10)
        update(learner, groups_of_four(), 0)
        reached[name] = weights(learner.policy)
    for name, one in reached.items():
        for other in list(reached)[: list(reached).index(name)]:
            assert largest_difference(one, reached[other]) > 1e-4, (name, other)


def test_bounds_are_reached_and_counted_by_kind(model: str) -> None:
    learner = Learner(recipe(model, OBJECTIVES["dual clip, masked"] | {"algorithm.epochs": 4}), total_updates=10)
    metrics = update(learner, groups_of_four(), 0)
    kinds = [metrics[f"policy/clip_fraction_{kind}"] for kind in ("low", "high", "dual")]
    assert all(kind > 0 for kind in kinds)
    assert metrics["policy/clip_fraction"] == pytest.approx(sum(kinds))
    assert 0 < metrics["policy/importance_masked"] < 1
    assert 0 < metrics["policy/sampler_ess"] < 1
    assert metrics["policy/sampler_chi2"] > 0
    assert 0 < metrics["policy/sampler_probability_gap"] < 1


def test_an_indeterminate_sample_is_not_in_the_baseline_of_its_group(model: str) -> None:
    learner = Learner(recipe(model, OBJECTIVES["Dr. GRPO"]), total_updates=10)
    known = share(groups_of_four(), [0, 1, 3, 4])  # the others' verdicts are indeterminate
    targets, _ = learner.targets(known)
    firsts = targets.advantages[known.lengths.cumsum(0) - 1]
    assert firsts.tolist() == [5.0, -5.0, -1.5, 1.5]  # 10 - 5, 0 - 5; 0 - 1.5, 3 - 1.5


def test_a_batch_without_signal_moves_nothing_but_what_weight_decay_does(model: str) -> None:
    options = OBJECTIVES["Dr. GRPO"] | {"optimizer.weight_decay": 0.0}
    learner = Learner(recipe(model, options), total_updates=10)
    before = weights(learner.policy)
    batch = groups_of_four()
    batch.rewards.fill_(10.0)
    metrics = update(learner, batch, 0)
    assert metrics["optim/grad_norm"] == 0.0
    assert largest_difference(before, weights(learner.policy)) == 0.0


# --- the same numbers whatever the layout --------------------------------------------------------------------------


def case(model: str, options: dict[str, Any], split: list[list[int]]) -> dict[str, Any]:
    """Groups of two, of which some are cut between ranks: baselines are over all ranks."""
    made = {"critic": {}, "algorithm.epochs": 2, "algorithm.minibatches": 2, "rollout.max_tokens": 16} | options
    return {"model": model, "options": made | ONE_ROW_EACH, "split": split, "updates": 1}


@pytest.fixture(scope="module")
def layouts(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results by layout and objective."""
    chosen = {name: o for name, o in OBJECTIVES.items() if "masked" not in name}  # JSON has no tuples
    splits = {"2 x 4": [[0, 1, 2, 3], [4, 5, 6, 7]], "8 x 1": [[i] for i in EVERYTHING]}
    found: dict[str, dict[str, Any]] = {}
    for layout, split in splits.items():
        cases = {name: case(model, options, split) for name, options in chosen.items()}
        found[layout] = start([WORKER, "{cases}", "{out}", str(len(split))], tmp_path_factory.mktemp("cases"), cases)
    return found


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "masked" not in name])
def test_one_rank_with_eight_rows_equals_eight_ranks_with_one_and_two_with_four(
    name: str, model: str, layouts: dict[str, dict[str, Any]]
) -> None:
    distributed.start()
    alone = run_case(case(model, OBJECTIVES[name], [EVERYTHING]))
    assert alone["moved"] > 5e-3
    for layout in layouts:
        other = layouts[layout][name]
        assert largest_difference(alone["policy"], other["policy"]) < 1e-4, layout
        # how evenly rows are filled is of the layout itself
        (expected,), (seen,) = (
            [
                {name: value for name, value in line.items() if not name.startswith("packing/")}
                for line in found["history"]
            ]
            for found in (alone, other)
        )
        assert seen == pytest.approx(expected, rel=2e-3, abs=2e-5), layout

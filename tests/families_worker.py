"""Every family through one PPO step beside a real vLLM engine; writes what was found as JSON.

`python tests/families_worker.py FOLDER`. One process for all families, because starting vLLM costs far more than one
more tiny engine in a process where it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from rlvr import environment

environment.prepare(enforce_eager=True)

import torch  # noqa: E402
from tiny import FAMILIES, make_model, recipe, trajectories, weights  # noqa: E402

from rlvr import distributed  # noqa: E402
from rlvr.colocated import Request, Sampler  # noqa: E402
from rlvr.learner import Learner  # noqa: E402
from rlvr.records import Trajectories  # noqa: E402
from rlvr.weight_sync import WeightSync, make_canaries  # noqa: E402

SAMPLES = 8
OVERRIDES: dict[str, Any] = {
    "sampler": {"kv_cache_mib": 8, "block_size": 32, "max_num_seqs": SAMPLES, "enforce_eager": True},
    "learner.zero_stage": 0,
    "optimizer.learning_rate": 3e-2,
}
WIDER = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "head_dim": 32}
"""vLLM's attention on a CPU wants heads of 32 or more."""
WITH_ADAPTERS = ("Qwen2", "Phi3")
"""Separate projections, and fused ones."""
ADAPTERS = {"model.lora": {"rank": 4, "alpha": 16.0}}
NO_GROUPS = {"num_key_value_heads": 2}


def shape(family: str) -> dict[str, Any]:
    grouped = family not in ("Llama without groups", "Phi")
    return WIDER if grouped else WIDER | NO_GROUPS


def sample(sampler: Sampler, temperature: float) -> Trajectories:
    """A rollout batch of the sampler's own, with made-up rewards."""
    prompts = torch.randint(1, 61, (SAMPLES, 9), generator=torch.Generator().manual_seed(0)).tolist()
    asked = [Request(token_ids=p, seed=i, temperature=temperature, max_tokens=20) for i, p in enumerate(prompts)]
    found: dict[int, Any] = {}
    sampler.generate(asked, found.__setitem__)
    answers = [found[i] for i in range(SAMPLES)]
    return dataclasses.replace(
        trajectories(count=SAMPLES),
        prompt_ids=tuple(tuple(p) for p in prompts),
        completion_ids=tuple(a.token_ids for a in answers),
        lengths=torch.tensor([len(a.token_ids) for a in answers]),
        sampler_logprobs=torch.tensor([value for a in answers for value in a.logprobs]),
    )


def run(
    family: str, folder: pathlib.Path, options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    started = time.perf_counter()
    config = recipe(make_model(folder / family, family, **shape(family)), OVERRIDES | (options or {}))
    learner = Learner(config, total_updates=4)
    sampler = Sampler(config, stop_token_ids=[0], max_model_len=64)
    sync = WeightSync(learner, sampler, make_canaries(64, count=4, length=24, seed=1))
    temperature = config.rollout.temperature

    def contract() -> tuple[Trajectories, float]:
        batch = sample(sampler, temperature)
        learned, _ = learner.logprobs(batch, learner.rows(batch))
        return batch, (learned - batch.sampler_logprobs).abs().max().item()

    canaries = [sync.publish().canary_difference]
    batch, first = contract()
    before = weights(learner.policy)
    targets, metrics = learner.targets(batch)
    metrics |= learner.update(batch, targets, step=0)
    _, stale = contract()  # the learner has moved and the sampler has not: this must be seen
    canaries.append(sync.publish().canary_difference)
    _, second = contract()
    still = [name for name, weight in weights(learner.policy).items() if torch.equal(weight, before[name])]
    result = {
        "vllm": type(sampler.model()).__name__,
        "canaries": canaries,
        "contract": [first, stale, second],
        "gradient_norm": metrics["optim/grad_norm"],
        "weights that did not move": still,
        "seconds": time.perf_counter() - started,
    }
    return result, (learner, sampler)  # vLLM takes the process group down with its engine: keep it to the end


def without_a_process_for_each_class() -> None:
    """vLLM would start a Python to look at each model class; here they are looked at in this process."""
    from vllm.model_executor.models import ModelRegistry

    for family in FAMILIES:
        name = f"{family.split()[0].removesuffix('Text')}ForCausalLM"
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    distributed.start()
    without_a_process_for_each_class()
    results, alive = {}, []
    for family in FAMILIES:
        print(family, flush=True)
        results[family], parts = run(family, folder)
        alive.append(parts)
    for family in WITH_ADAPTERS:
        results[f"{family} with adapters"], parts = run(family, folder, ADAPTERS)
        alive.append(parts)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

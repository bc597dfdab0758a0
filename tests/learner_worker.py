"""What one rank does in the tests of the learner: runs cases, and rank 0 writes what came out.

`torchrun ... tests/learner_worker.py CASES OUTPUT`, or `python tests/learner_worker.py CASES OUTPUT RANKS`, which
imports once and then forks into ranks: for more of them than this machine could start in reasonable time.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import traceback
from typing import Any

import torch
from tiny import largest_difference, recipe, share, trajectories, weights

from rlvr import distributed, engine
from rlvr.errors import NonFiniteError
from rlvr.learner import Learner
from rlvr.pretrained import save_pretrained
from sft_dpo.quickstart_task import train_tokenizer


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Collective. A case has: model, split (samples of each rank), options, updates, and what is to go wrong."""
    config = recipe(case["model"], case["options"])
    batch = share(trajectories(), case["split"][distributed.rank()])
    learner = Learner(config, total_updates=case["updates"] * config.algorithm.epochs)
    broken = case.get("broken")
    if broken == "reward on the last rank" and distributed.rank() == distributed.world_size() - 1:
        batch.rewards[0] = math.nan
    if broken == "critic's gradient on the last rank" and distributed.rank() == distributed.world_size() - 1:
        learner.critic.engine.module.transformer.model.embed_tokens.register_forward_hook(break_gradient)
    before = all_weights(learner)
    history: list[dict[str, float]] = []
    error = None
    try:
        for step in range(case["updates"]):
            history.append(update(learner, batch, step))
            if case.get("reload_after") == step:
                learner.save(case["checkpoint"])
                learner = Learner(config, total_updates=case["updates"] * config.algorithm.epochs)
                learner.load(case["checkpoint"])
    except NonFiniteError as caught:
        error = str(caught)
    if "save" in case:
        folder = pathlib.Path(case["save"])
        save_pretrained(learner.policy, folder, train_tokenizer(["some text"]), max_shard_bytes=4000)
    after = all_weights(learner)
    moved = max(largest_difference(before[name], after[name]) for name in before)
    return {**after, "history": history, "errors": distributed.gather_objects(error), "moved": moved}


def all_weights(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """Of the policy, and of the critic where there is one. Collective."""
    return {engine.name: weights(engine) for engine in learner.engines()}


def break_gradient(module: Any, inputs: Any, output: torch.Tensor) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * math.nan)


def split_small_parameters_too() -> None:
    """ZeRO-3 leaves parameters under 100,000 numbers whole, which here would be all of them."""
    ours = engine._deepspeed_config

    def config(*arguments: Any, **options: Any) -> dict[str, Any]:
        table = ours(*arguments, **options)
        if table["zero_optimization"]["stage"] == 3:
            table["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return table

    engine._deepspeed_config = config


def update(learner: Learner, batch: Any, step: int) -> dict[str, float]:
    targets, metrics = learner.targets(batch)
    return metrics | learner.update(batch, targets, step=step)


def main(cases_path: str, output: str) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    distributed.start(timeout_seconds=60)
    split_small_parameters_too()
    results = {}
    for name, case in json.loads(pathlib.Path(cases_path).read_text()).items():
        print(f"rank {distributed.rank()}: {name}", flush=True)
        results[name] = run_case(case)
    if distributed.rank() == 0:
        torch.save(results, output)
    distributed.stop()


def fork(ranks: int, cases_path: str, output: str) -> int:
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
            status = 1
            try:
                main(cases_path, output)
                status = 0
            except BaseException:  # noqa: BLE001 - a forked rank must end here, whatever happened, and say what
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        import deepspeed  # noqa: F401  (imported before the fork, for all)

        sys.exit(fork(int(sys.argv[3]), *sys.argv[1:3]))
    main(*sys.argv[1:3])

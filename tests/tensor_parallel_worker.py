"""Two ranks that hold one vLLM engine together: `torchrun ... tests/tensor_parallel_worker.py FOLDER`.

Each rank asks for other requests, and one of them for none at times. Rank 0 writes what was found as JSON.
"""

from __future__ import annotations

import json
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rlvr import environment

environment.prepare(enforce_eager=True)

import torch  # noqa: E402
from families_worker import OVERRIDES, without_a_process_for_each_class  # noqa: E402
from tiny import make_model, recipe  # noqa: E402

from rlvr import distributed  # noqa: E402
from rlvr.colocated import Request, Sampled, Sampler  # noqa: E402
from rlvr.config import Config  # noqa: E402
from rlvr.errors import ConfigError, SamplerError, WeightSyncError  # noqa: E402
from rlvr.followers import here  # noqa: E402
from rlvr.learner import Learner  # noqa: E402
from rlvr.packing import pack  # noqa: E402
from rlvr.tensor_parallel import Group, Trace  # noqa: E402
from rlvr.weight_sync import Weights, WeightSync, make_canaries  # noqa: E402

SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""The one head of keys and values is on both ranks; the vocabulary of 61 is padded, on the second rank only."""
TWO_GROUPS = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama tied": ("Llama tied", TWO_GROUPS),
    "Qwen2 tied": ("Qwen2", {}),
    "Qwen2": ("Qwen2", TWO_GROUPS | {"tie_word_embeddings": False}),
    "Phi3": ("Phi3", TWO_GROUPS),
}
"""Phi3's projections are fused in the learner too."""


class Stack:
    def __init__(self, config: Config) -> None:
        self.learner = Learner(config, total_updates=4)
        self.sampler = Sampler(config, stop_token_ids=[0], max_model_len=64)
        self.sync = WeightSync(self.learner, self.sampler, make_canaries(61, count=4, length=24, seed=1))
        self.updates = 0

    def change_weights(self) -> None:
        """The same on every rank."""
        self.updates += 1
        generator = torch.Generator().manual_seed(self.updates)
        with torch.no_grad():
            for parameter in self.learner.policy.engine.module.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def difference(self, asked: list[Request], answers: list[Sampled]) -> float:
        """Largest between the sampled log-probs and the learner's."""
        if not asked:
            return 0.0
        sampled = torch.tensor([p for a in answers for p in a.logprobs])
        learned = torch.zeros_like(sampled)
        with self.learner.policy.inference():
            for row in pack([r.token_ids for r in asked], [a.token_ids for a in answers], max_tokens=128):
                learned[row.token_index] = self.learner.policy(row, 0.7)[0]
        return (sampled - learned).abs().max().item()

    def refused(self, tamper: Callable[[Weights], Weights]) -> str | None:
        """What a publication of weights that are tampered with on the second rank alone is told."""
        if distributed.rank() == 1:
            self.sync.after_gather = tamper
        try:
            self.sync.publish()
        except WeightSyncError as error:
            return str(error)
        finally:
            self.sync.after_gather = lambda weights: weights
        return None


def requests(count: int, *, first: int = 0, temperature: float = 0.7) -> list[Request]:
    """Of lengths and seeds of their own, whichever rank asks."""
    found = []
    for number in range(first, first + count):
        draw = torch.Generator().manual_seed(number)
        prompt = torch.randint(1, 61, (5 + number % 7,), generator=draw).tolist()
        found.append(Request(token_ids=prompt, seed=number, temperature=temperature, max_tokens=4 + number % 13))
    return found


def sample(sampler: Sampler, asked: list[Request]) -> list[Sampled]:
    found: dict[int, Sampled] = {}
    sampler.generate(asked, found.__setitem__)
    return [found[index] for index in range(len(asked))]


def at(name: str, row: int, column: int) -> Callable[[Weights], Weights]:
    """Change one element, far below what log-probabilities show."""

    def tamper(weights: Weights) -> Weights:
        for own, weight in weights:
            if own == name:
                weight = weight.clone()
                weight[row, column] += 1e-6
            yield own, weight

    return tamper


def leave_out(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: (pair for pair in weights if pair[0] != name)


TAMPERED: dict[str, Callable[[Weights], Weights]] = {
    "a column of the second rank": at("model.layers.1.mlp.down_proj.weight", 3, -1),
    "a column of the first rank": at("model.layers.1.mlp.down_proj.weight", 3, 0),
    "a row of the second rank": at("model.layers.0.self_attn.q_proj.weight", -1, 2),
    "a row of the first rank": at("model.layers.0.self_attn.q_proj.weight", 0, 2),
    "a row of both ranks": at("model.layers.0.self_attn.v_proj.weight", 5, 2),
    "a token of the second rank": at("model.embed_tokens.weight", 60, 2),
    "a head's row of the second rank": at("lm_head.weight", 60, 2),
    "a missing weight": leave_out("model.layers.1.self_attn.o_proj.weight"),
}
"""On the second rank alone. What it holds no part of must not be reported."""


def prove(name: str, folder: pathlib.Path) -> dict[str, Any]:
    family, changes = CASES[name]
    stack = Stack(made(folder / name.replace(" ", "_"), family, changes))
    rank = distributed.rank()
    found: dict[str, Any] = {"canaries": [], "contract": []}
    for asked in (requests(3 + 6 * rank, first=20 * rank), requests(8 * rank)):
        found["canaries"].append(stack.sync.publish().canary_difference)
        found["contract"].append(stack.difference(asked, sample(stack.sampler, asked)))
        stack.change_weights()
        stale = sample(stack.sampler, requests(2))
        found["stale"] = stack.difference(requests(2), stale)
    stack.sync.publish()
    if name == "Llama":
        found["tampered"] = {kind: stack.refused(tamper) for kind, tamper in TAMPERED.items()}
        stack.sync.publish()
        found["running digests"] = running_digests(stack.sampler.group)
        found["seen waiting"] = {
            "in a step": seen_waiting(folder / "step", lambda: stack.sampler.sequence_logprobs([[5, 6, 7]])),
            "in a gathering": seen_waiting(folder / "gathering", lambda: stack.sampler.group.gather(rank)),
            "at work": here(0).waits,
        }
        found["one and two ranks"] = against_one_rank(stack, folder)
        found["fallen out of step"] = fall_out_of_step(stack.sampler)
    else:
        stack.sampler.close()
    return found


def against_one_rank(stack: Stack, folder: pathlib.Path) -> list[float | bool]:
    """Whether an engine of one rank answers the same: greedily, then sampled, and how far apart log-probs are."""
    asked = [*requests(6, temperature=0.0), *requests(6)]
    split = sample(stack.sampler, asked)
    stack.sampler.close()
    whole = Sampler(made(folder / "Llama", "Llama", {}, ranks=1), stop_token_ids=[0], max_model_len=64)
    whole.load_weights(stack.learner.policy.named_weights())
    one = sample(whole, asked)
    whole.close()
    same = [a.token_ids for a in split] == [a.token_ids for a in one]
    pairs = [pair for a, b in zip(split, one, strict=True) for pair in zip(a.logprobs, b.logprobs, strict=False)]
    return [same, max(abs(a - b) for a, b in pairs)]


def fall_out_of_step(sampler: Sampler) -> str | None:
    try:
        sampler.group.refuse_divergence([(0, (5, 6 + distributed.rank()))])
    except SamplerError as error:
        return str(error)
    return None


def running_digests(group: Group) -> dict[str, str | None]:
    """Over a second step in which the ranks differ, after one in which they do not."""
    trace, found = Trace(), {}
    for what, token in (("the same", 6), ("another token", 6 + group.rank)):
        trace.fold([("0-1-0", (5, token))])
        found[what] = group.divergence(trace.digest())
    return found


def seen_waiting(seen: pathlib.Path, act: Callable[[], object]) -> bool:
    """Whether the first rank is seen to wait in what all must do together, by a thread of it; the second one joins in
    when that is so, or after 30 seconds."""
    ends_at = time.monotonic() + 30

    def look() -> None:
        while not here(0).waits and time.monotonic() < ends_at:
            time.sleep(0.01)
        seen.write_text(str(here(0).waits))

    looking = threading.Thread(target=look)
    if distributed.rank() == 0:
        looking.start()
        act()
        looking.join()
    else:
        while not seen.exists():
            time.sleep(0.01)
        act()
    distributed.barrier()
    return seen.read_text() == "True"


def made(folder: pathlib.Path, family: str, changes: dict[str, Any], *, ranks: int = 2) -> Config:
    if distributed.rank() == 0 and not folder.exists():
        make_model(folder, family, **(SHAPE | changes))
    distributed.barrier()
    sampler = OVERRIDES["sampler"] | {"tensor_parallel_size": ranks}
    return recipe(str(folder), OVERRIDES | {"sampler": sampler})


def refusal(config: Config) -> str | None:
    try:
        Sampler(config, stop_token_ids=[0], max_model_len=64)
    except ConfigError as error:
        return str(error)
    return None


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    distributed.start(timeout_seconds=120)
    without_a_process_for_each_class()
    results: dict[str, Any] = {
        "three of two ranks": refusal(made(folder / "Llama", "Llama", {}, ranks=3)),
        "indivisible": refusal(made(folder / "odd", "Llama", {"num_attention_heads": 3, "hidden_size": 96})),
    }
    for name in CASES:
        if distributed.rank() == 0:
            print(name, flush=True)
        results[name] = prove(name, folder)
    everyone = distributed.gather_objects(results)
    if distributed.rank() == 0:
        (folder / "results.json").write_text(json.dumps(everyone))
    distributed.stop()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

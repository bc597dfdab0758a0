"""Give the learner's weights to the sampler, and prove that they arrived.

Two proofs after every update. *Checksums*: each tensor as vLLM loaded it, through its fused layouts, against the
learner's. *Canaries*: log-probabilities of fixed token sequences, sampler against learner, which also sees what a
tensor comparison cannot: packed copies, stale caches, a wrong rotary table. A mismatch stops the run.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from rlvr import distributed
from rlvr.colocated import Sampler
from rlvr.digests import checksum_of
from rlvr.disaggregated import AnySampler
from rlvr.errors import LogProbContractError, SamplerError, WeightSyncError
from rlvr.learner import Learner
from rlvr.packing import pack
from rlvr.seeds import derive

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update."""

    transfer_seconds: float
    proof_seconds: float
    canary_difference: float
    """Mean absolute difference of the canaries' log-probabilities, nats per token; largest of any rank."""
    bytes_sent: int


Weights = Iterable[tuple[str, torch.Tensor]]


class WeightStream:
    """The learner's weights on their way, gathered one by one: vLLM's WeightSource. Notes their checksums."""

    def __init__(self, learner: Learner, after_gather: Callable[[Weights], Weights]) -> None:
        self._learner = learner
        self._after_gather = after_gather
        self._passing: Iterator[tuple[str, torch.Tensor]] = iter(())
        self._checksum = checksum_of(learner.config)
        self.expected: dict[str, torch.Tensor] = {}
        self.checksum_seconds = 0.0
        self.bytes = 0

    def metadata(self) -> list[Any]:
        """Names, dtypes and whole shapes, without gathering anything."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._learner.policy.named_shapes()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._passing = self._gathered()
        return iter(self._after_gather(self._passing))

    def drain(self) -> None:
        """Gather what is left, with the other ranks."""
        for _ in self._passing:
            pass

    def _gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self._learner.policy.named_weights():
            begun = time.perf_counter()
            self.expected[name] = self._checksum(weight)
            self.checksum_seconds += time.perf_counter() - begun
            self.bytes += weight.nbytes
            yield name, weight


class WeightSync:
    """Publishes weights to one rank's sampler. `after_gather` lets a test tamper with them on the way."""

    def __init__(self, learner: Learner, sampler: AnySampler, canaries: Sequence[Sequence[int]]) -> None:
        self._learner = learner
        self._sampler = sampler
        self._canaries = [list(c) for c in canaries]
        dtype = learner.config.model.dtype
        self.tolerance = learner.config.proof.tolerance or TOLERANCES[dtype]
        self.after_gather: Callable[[Weights], Weights] = lambda weights: weights

    def publish(self) -> SyncReport:
        """Send, then prove. Collective. Raises WeightSyncError on every rank when any rank's proof fails."""
        started = time.perf_counter()
        stream = WeightStream(self._learner, self.after_gather)
        try:
            self._sampler.load_weights(stream)
        except (SamplerError, WeightSyncError) as error:
            stream.drain()  # the other ranks are still gathering; they hear of it in _agree
            self._agree(str(error))
        self._agree(None)
        # in process, checksums of both sides take turns with the loading; elsewhere they overlap, and count as transfer
        proving = (
            stream.checksum_seconds + self._sampler.checksum_seconds if isinstance(self._sampler, Sampler) else 0.0
        )
        transferred = time.perf_counter() - started - proving
        begun = time.perf_counter()
        problem = self._sampler.compare(stream.expected)
        difference = self._canary_difference()
        if problem is None and not difference <= self.tolerance:
            problem = (
                f"canary log-probabilities differ by {difference:.3g} nats a token (tolerance {self.tolerance:g}) "
                "although the loaded tensors match"
            )
        self._agree(problem)
        return SyncReport(
            transfer_seconds=transferred,
            proof_seconds=proving + time.perf_counter() - begun,
            canary_difference=distributed.max_over_ranks([difference])[0],
            bytes_sent=stream.bytes,
        )

    def _canary_difference(self) -> float:
        sampled = [
            torch.tensor([v for one in sequences for v in one])
            for sequences in self._sampler.sequence_logprobs(self._canaries)
        ]
        prompts, completions = [c[:1] for c in self._canaries], [c[1:] for c in self._canaries]
        rows = pack(prompts, completions, max_tokens=2**62, device=distributed.device())
        learned = torch.zeros(sum(len(c) for c in completions))
        with self._learner.policy.inference():
            for row in rows:
                learned[row.token_index.cpu()] = self._learner.policy(row, 1.0)[0].float().cpu()
        differences = [(one - learned).abs().mean().item() for one in sampled]
        return math.nan if any(math.isnan(d) for d in differences) else max(differences, default=0.0)

    def _agree(self, problem: str | None) -> None:
        problems = [f"rank {r}: {p}" for r, p in enumerate(distributed.gather_objects(problem)) if p is not None]
        if problems:
            raise WeightSyncError(
                f"the sampler does not hold the learner's weights after update {self._sampler.policy_version}: "
                + "; ".join(problems)
                + ". Sampling on would be off-policy without notice, so the run stops."
            )


def make_canaries(vocabulary_size: int, *, count: int, length: int, seed: int) -> list[list[int]]:
    """Token sequences drawn at random, so that every part of the vocabulary and the network takes part."""
    generator = torch.Generator().manual_seed(derive(seed, "canaries"))
    return torch.randint(vocabulary_size, (count, length), generator=generator).tolist()


def refuse_disagreement(difference: float, tolerance: float) -> None:
    """Stop when learner and sampler disagree on tokens just sampled: every rollout is a canary too.

    Args:
        difference, tolerance: mean absolute difference of log-probabilities, nats a token.
    """
    if not difference <= tolerance:
        raise LogProbContractError(
            f"learner and sampler differ by {difference:.3g} nats a token on this rollout (tolerance {tolerance:g}): "
            "the policy ratio would be wrong. Check dtype and attention back end, or raise proof.tolerance."
        )

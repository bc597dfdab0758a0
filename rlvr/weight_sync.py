"""Give the learner's weights to the sampler, and prove that they arrived.

Two proofs after every update. *Checksums*: each tensor as vLLM loaded it, through its fused layouts, against the
learner's. *Canaries*: log-probabilities of fixed token sequences, sampler against learner, which also sees what a
tensor comparison cannot: packed copies, stale caches, a wrong rotary table. A mismatch stops the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from rlvr import distributed
from rlvr.colocated import Sampler
from rlvr.errors import LogProbContractError, WeightSyncError
from rlvr.learner import Learner
from rlvr.packing import pack
from rlvr.seeds import derive

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
ROWS_AT_ONCE_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update."""

    transfer_seconds: float
    proof_seconds: float
    canary_difference: float
    """Mean absolute difference of the canaries' log-probabilities, nats per token; largest of any rank."""
    bytes_sent: int


class WeightSync:
    """Publishes weights to one rank's sampler. `after_gather` lets a test tamper with them on the way."""

    def __init__(self, learner: Learner, sampler: Sampler, canaries: Sequence[Sequence[int]]) -> None:
        self._learner = learner
        self._sampler = sampler
        self._canaries = [list(c) for c in canaries]
        dtype = learner.config.model.dtype
        self.tolerance = learner.config.proof.tolerance or TOLERANCES[dtype]
        self._witness = LoadedChecksums(sampler.model())
        self.after_gather: Callable[[Iterable[tuple[str, torch.Tensor]]], Iterable[tuple[str, torch.Tensor]]] = (
            lambda w: w
        )

    def publish(self) -> SyncReport:
        """Send, then prove. Collective. Raises WeightSyncError on every rank when any rank's proof fails."""
        started = time.perf_counter()
        expected: dict[str, torch.Tensor] = {}
        sizes = [0]
        proof_seconds = [0.0]

        def gathered() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in self._learner.policy.named_weights():
                begun = time.perf_counter()
                expected[name] = row_checksums(weight)
                proof_seconds[0] += time.perf_counter() - begun
                sizes[0] += weight.nbytes
                yield name, weight

        self._witness.clear()
        self._sampler.load_weights(self.after_gather(gathered()))
        transferred = time.perf_counter() - started - proof_seconds[0]
        begun = time.perf_counter()
        problem = self._witness.compare(expected)
        difference = self._canary_difference()
        if problem is None and not difference <= self.tolerance:
            problem = (
                f"canary log-probabilities differ by {difference:.3g} nats a token (tolerance {self.tolerance:g}) "
                "although the loaded tensors match"
            )
        self._agree(problem)
        proof_seconds[0] += time.perf_counter() - begun
        return SyncReport(
            transfer_seconds=transferred,
            proof_seconds=proof_seconds[0],
            canary_difference=distributed.max_over_ranks([difference])[0],
            bytes_sent=sizes[0],
        )

    def _canary_difference(self) -> float:
        sampled = torch.tensor([v for one in self._sampler.sequence_logprobs(self._canaries) for v in one])
        prompts, completions = [c[:1] for c in self._canaries], [c[1:] for c in self._canaries]
        rows = pack(prompts, completions, max_tokens=2**62, device=distributed.device())
        learned = torch.zeros_like(sampled)
        with self._learner.policy.inference():
            for row in rows:
                learned[row.token_index.cpu()] = self._learner.policy(row, 1.0)[0].float().cpu()
        return (sampled - learned).abs().mean().item()

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


def row_checksums(weight: torch.Tensor) -> torch.Tensor:
    """One 64-bit checksum for each row of a tensor's bits; position within the row counts.

    Rows are summed with odd multipliers modulo 2^64, so a changed, swapped or missing element changes its row.

    Args:
        weight: any floating dtype, [rows, ...] or [n] (taken as n rows).
    Returns:
        int64 [rows], on the CPU.
    """
    bits = weight.detach().contiguous().view({2: torch.int16, 4: torch.int32}[weight.element_size()])
    bits = bits.reshape(bits.shape[0], -1)
    columns = torch.arange(bits.shape[1], dtype=torch.int64, device=bits.device)
    multipliers = (columns * 0x5851F42D4C957F2D + 0x14057B7EF767814F) | 1
    step = max(ROWS_AT_ONCE_ELEMENTS // max(bits.shape[1], 1), 1)
    parts = [(part.to(torch.int64) * multipliers).sum(dim=1) for part in bits.split(step)]
    return torch.cat(parts).cpu()


class LoadedChecksums:
    """Row checksums of what vLLM holds after a load.

    On the CPU vLLM replaces a linear layer's weight by a packed copy as soon as it is loaded, so those are read in
    the moment before (`process_weights_after_loading`); everything else is read from the model afterwards.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._packed: dict[str, torch.Tensor] = {}
        self._parts: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._names = {id(layer): name for name, layer in model.named_modules()}
        methods = {id(m): m for layer in model.modules() if (m := getattr(layer, "quant_method", None)) is not None}
        for method in methods.values():
            if hasattr(method, "process_weights_after_loading"):
                self._watch(method)

    def _watch(self, method: Any) -> None:
        original = method.process_weights_after_loading

        def record_then_process(layer: torch.nn.Module) -> None:
            for name, parameter in layer.named_parameters(recurse=False):
                self._packed[f"{self._names[id(layer)]}.{name}"] = row_checksums(parameter)
            original(layer)

        method.process_weights_after_loading = record_then_process

    def clear(self) -> None:
        """Forget the last load, so that a tensor that does not come again is missed."""
        self._packed.clear()

    def compare(self, expected: dict[str, torch.Tensor]) -> str | None:
        """What differs between the tensors loaded and the learner's (row checksums by Hugging Face name), or None."""
        differing, unproved = [], []
        for name, parameter in self._model.named_parameters():
            parts = self._learner_names(name)
            if any(part not in expected for part in parts):
                unproved.append(name)
                continue
            wanted = torch.cat([expected[part] for part in parts])
            loaded = self._packed.get(name)
            if loaded is None:
                loaded = row_checksums(parameter) if parameter.numel() else None
            # vLLM pads the vocabulary; the padding is never read
            if loaded is None or len(loaded) < len(wanted) or not torch.equal(loaded[: len(wanted)], wanted):
                differing.append(name)
        if unproved:
            return f"{len(unproved)} tensors of vLLM's have no counterpart in the learner, e.g. {unproved[0]}"
        if differing:
            return f"{len(differing)} tensors differ from the learner's, e.g. {', '.join(differing[:3])}"
        return None

    def _learner_names(self, name: str) -> list[str]:
        """`...qkv_proj.weight` -> the three projections that vLLM stacks in it."""
        *parents, layer, leaf = name.split(".")
        return [".".join((*parents, part, leaf)) for part in self._parts.get(layer, [layer])]


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

"""Fast verdicts in the caller: what `verify_fast` decides never reaches a worker, what it leaves does."""

from __future__ import annotations

import pathlib

from verifiers.base import Outcome, Sample
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

PLUGIN = """
import os
from verifiers import Sample, Verdict, Verifier, register

@register("quick")
class Quick(Verifier):
    def verify_fast(self, sample):
        if sample.completion == "broken":
            raise RuntimeError("fast path broke")
        return None if sample.completion == "hard" else Verdict.correct(f"in {os.getpid()}")

    def verify(self, sample):
        return Verdict.wrong(f"in {os.getpid()}")
"""


def test_only_undecided_samples_go_to_a_worker(tmp_path: pathlib.Path) -> None:
    import os

    (tmp_path / "quick.py").write_text(PLUGIN)
    spec = VerifierSpec(name="quick", plugins=(str(tmp_path / "quick.py"),))
    with VerifierPool({"quick": spec}, workers=1) as pool:
        for completion in ("easy", "hard", "broken"):
            pool.submit(completion, "quick", Sample(completion=completion, ground_truth=""))
        verdicts = dict(pool.wait())
    assert verdicts["easy"].detail == f"in {os.getpid()}"
    assert verdicts["hard"].outcome is Outcome.WRONG
    assert verdicts["hard"].detail != f"in {os.getpid()}"
    assert verdicts["broken"].outcome is Outcome.INDETERMINATE
    assert "fast path broke" in verdicts["broken"].detail


def test_math_agrees_with_itself_in_the_caller_and_in_a_worker() -> None:
    pairs = [("x = 1/2", "0.5"), (r"\boxed{\frac{1}{2}}", "0.5"), ("so 41", "42"), (r"\boxed{x^2+1}", "1+x^2")]
    from verifiers.math_answer import MathVerifier

    direct = [MathVerifier().verify(Sample(completion=c, ground_truth=g)).outcome for c, g in pairs]
    with VerifierPool({"math": VerifierSpec(name="math")}, workers=1) as pool:
        for index, (completion, gold) in enumerate(pairs):
            pool.submit(index, "math", Sample(completion=completion, ground_truth=gold))
        pooled = dict(pool.wait())
    assert [pooled[index].outcome for index in range(len(pairs))] == direct

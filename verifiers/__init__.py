"""Verifiers: programs that can tell a right answer from a wrong one.

What a plugin file needs comes from here: `from verifiers import Sample, Verdict, Verifier, register`.
"""

from verifiers.base import Outcome, Sample, Verdict, Verifier
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec, build, register

__all__ = ["Outcome", "Sample", "Verdict", "Verifier", "VerifierPool", "VerifierSpec", "build", "register"]

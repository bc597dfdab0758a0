"""The error tree. Every message states the fault, the reason, the remedy and the value seen.

RlvrError                        root (verifiers.errors, which imports nothing of ours)
|- VerifierError ...             verifiers.errors
|- ConfigError (ValueError)      the recipe, an override, or a combination of options
|- DataError (ValueError)        rows that cannot be read or that no verifier claims
|- RunDirectoryError (FileExistsError)
|- CheckpointError (RuntimeError)
|- SamplerError (RuntimeError)    a sampling rank is gone, silent, or has failed
|- StallError (RuntimeError)      a rank hangs, and the others wait for it
|- PolicyError (RuntimeError)    the numbers of a run went wrong: training on would make it worse
   |- NonFiniteError             loss or gradient is NaN or infinite
   |- WeightSyncError            the sampler does not hold the learner's weights
   |- LogProbContractError       learner and sampler disagree on log-probabilities
   |- IndeterminateError         too many verdicts are indeterminate
"""

from __future__ import annotations

from verifiers.errors import RlvrError as RlvrError


class ConfigError(RlvrError, ValueError):
    """The recipe, an override, or a combination of options is wrong."""


class DataError(RlvrError, ValueError):
    """Rows that cannot be read, or that no verifier claims."""


class RunDirectoryError(RlvrError, FileExistsError):
    """The run directory holds another run, or not the one to resume."""


class CheckpointError(RlvrError, RuntimeError):
    """A checkpoint is missing, incomplete, or was written by another set-up."""


class SamplerError(RlvrError, RuntimeError):
    """A sampling rank is gone, silent, or has failed."""


class StallError(RlvrError, RuntimeError):
    """A rank hangs, and the others wait for it; printed by `rlvr.watch`, which then ends the process."""


class PolicyError(RlvrError, RuntimeError):
    """The numbers of a run went wrong: training on would make it worse."""


class NonFiniteError(PolicyError):
    """A loss or gradient is NaN or infinite; raised on every rank before the optimizer step."""


class WeightSyncError(PolicyError):
    """The sampler does not hold the learner's weights."""


class LogProbContractError(PolicyError):
    """Learner and sampler disagree on the log-probabilities of the same tokens."""


class IndeterminateError(PolicyError):
    """More verdicts are indeterminate than the recipe allows."""

"""Errors of the verifiers, and the root of the project's error tree.

Every message states the fault, the reason, the remedy and the value seen. Each class is also the standard
exception that a caller would expect (`ValueError`, `KeyError`, ...), so that `except ValueError` works too.
`rlvr.errors` continues the tree; `verifiers` imports nothing of ours, so its root lives here.
"""

from __future__ import annotations


class RlvrError(Exception):
    """Root of every error that this project raises on purpose."""

    def __str__(self) -> str:
        # KeyError.__str__ would print the repr of the message
        return str(self.args[0]) if self.args else self.__class__.__name__


class VerifierError(RlvrError):
    """Anything wrong with a verifier, its options, or its ground truth."""


class UnknownVerifierError(VerifierError, KeyError):
    """No verifier has the requested name."""


class DuplicateVerifierError(VerifierError, ValueError):
    """Two places register the same verifier name."""


class PluginError(VerifierError, ImportError):
    """A plugin file or entry point could not be imported, or holds no verifier."""


class VerifierOptionError(VerifierError, ValueError):
    """An option that the verifier does not have, or a value of the wrong type."""


class GroundTruthError(VerifierError, ValueError):
    """A ground truth that the verifier cannot read: verdicts on it are indeterminate, never right or wrong."""


class PoolError(VerifierError, RuntimeError):
    """The verifier pool was misused, or cannot start workers."""


class SandboxError(VerifierError, RuntimeError):
    """The sandbox cannot give the isolation that was asked for."""

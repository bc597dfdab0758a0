"""Instruction-following verifiers: `ifeval`, `tulu3_ifeval` and `ifbench`.

Importing this package imports none of them: nltk, langdetect and the checkers load when a verifier is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.ifeval.ifbench import IFBenchVerifier
    from verifiers.ifeval.ifeval import IFEvalVerifier
    from verifiers.ifeval.tulu3 import Tulu3IFEvalVerifier

__all__ = ["IFBenchVerifier", "IFEvalVerifier", "Tulu3IFEvalVerifier"]

_HOMES = {
    "IFBenchVerifier": "verifiers.ifeval.ifbench",
    "IFEvalVerifier": "verifiers.ifeval.ifeval",
    "Tulu3IFEvalVerifier": "verifiers.ifeval.tulu3",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

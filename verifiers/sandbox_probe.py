"""`python -m verifiers.sandbox_probe`: which of the sandbox's layers work on this machine.

Nothing is guessed from versions: a zygote puts its walls up and reports, for each, that it stands or the kernel's
reason.
"""

from __future__ import annotations

import sys

from verifiers.errors import SandboxError
from verifiers.sandbox import LAYERS, OPTIONAL_LAYERS, Sandbox


def describe_layers(sandbox: Sandbox) -> str:
    """A line per layer, and whether isolation "kernel" is possible here."""
    lines = [f"{layer:<18} {sandbox.report.get(layer, 'not reported')}" for layer in LAYERS]
    lines += [f"{layer:<18} {sandbox.report.get(layer)} (optional)" for layer in OPTIONAL_LAYERS]
    missing = ", ".join(sandbox.missing())
    lines.append(f'isolation "kernel": {f"refused, for want of {missing}" if missing else "available"}')
    return "\n".join(lines)


def main() -> int:
    """Print the layers; exit status 1 when isolation "kernel" is not possible here."""
    try:
        with Sandbox(isolation="rlimits") as sandbox:
            print(describe_layers(sandbox))
            return 1 if sandbox.missing() else 0
    except SandboxError as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""A small task for whole runs: the quickstart's rows, and a verifier that any tiny model can learn to please."""

from __future__ import annotations

import pathlib

from sft_dpo import quickstart_task

VERIFIER = """
from verifiers.registry import register

@register("first_letter")
def begins_with_an_early_letter(completion, ground_truth):
    return "a" <= completion.strip()[:1] < "n"
"""


def write_task(folder: pathlib.Path) -> None:
    """Rows, and the plugin `first_letter.py`."""
    quickstart_task.write(folder, seed=1, demonstrations=400, train=64, held_out=8, flawed_share=0.5)
    (folder / "first_letter.py").write_text(VERIFIER)

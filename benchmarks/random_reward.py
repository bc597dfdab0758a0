"""A control: reward that knows nothing. A run on it must not gain on held-out prompts.

    torchrun ... -m rlvr train launch/recipes/quickstart.toml ... plugins='["benchmarks/random_reward.py"]' \
        verification.remap='{math = "coin", tulu3_ifeval = "coin"}'

Evaluation keeps the rows' own verifiers.
"""

from __future__ import annotations

import hashlib
import os

from verifiers.registry import register


@register("coin")
def coin(completion: str, ground_truth: object) -> bool:
    """Right with probability 0.4, whatever the completion says: independent draws, even for equal completions."""
    draw = hashlib.blake2b(completion.encode() + os.urandom(8), digest_size=4).digest()
    return int.from_bytes(draw, "big") < 0.4 * 2**32

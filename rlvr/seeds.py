"""Every random draw comes from a generator seeded by what it is for, so that a resumed run draws the same."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and the purpose of the draw, e.g. (seed, "sample", step, prompt id, sample).

    >>> derive(3, "sample", 0, 17, 2) == derive(3, "sample", 0, 17, 2) != derive(3, "sample", 1, 17, 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

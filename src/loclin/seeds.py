"""Independent streams of randomness from one seed: each purpose has a name, and no stream depends
on another.
"""

from __future__ import annotations

import hashlib


def derived(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that is a function of the seed and the named purpose alone.

    >>> derived(0, "damage") != derived(0, "recovery") and derived(0, "damage") == derived(0, "damage")
    True
    """
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

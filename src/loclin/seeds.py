"""Independent streams of randomness from one seed: each purpose has a name, and no stream depends
on another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def derived(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that is a function of the seed and the named purpose alone.

    >>> derived(0, "damage") == derived(0, "damage") != derived(0, "recovery")
    True
    """
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators (which peft and dropout draw from) are seeded; afterwards
    they are as they were.
    """
    import torch  # here: `loclin --help` need not wait for it

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        for i in range(torch.cuda.device_count()):
            torch.cuda.default_generators[i].manual_seed(seed)
        yield

"""Names of the schedules, and what kind each is. Imports nothing heavy."""

#: One step differentiates every task and adds the gradients with weights.
SUMMED = ("raw sum", "norm-balanced", "PCGrad", "equal decrease", "loss-balanced")
#: What people do without thinking of a schedule: the others are held against it.
REFERENCE = "joint mixed"
#: The paper's simultaneous schedules (Fig. 4), and its two sequential ones.
SIMULTANEOUS = ("alternating", *SUMMED, REFERENCE)
SEQUENTIAL = ("sequential", "sequential reversed")
#: Sequential training in the first order, mended; specialists of every task, joined.
REMEDIES = ("replay", "consolidation", "projection")
MERGED = ("average", "task arithmetic", "TIES")
#: Summed with weights by torchjd (extra `schedules`).
LIBRARY = ("MGDA", "UPGrad", "IMTL-G", "Aligned-MTL", "CAGrad", "Nash-MTL")
EVERY = (*SIMULTANEOUS, *LIBRARY, *SEQUENTIAL, *REMEDIES, *MERGED)

_FAMILIES = {"sequential": SEQUENTIAL, "sequential, mended": REMEDIES, "specialists merged": MERGED}


def family(name: str) -> str:
    """What kind of schedule it is, for tables.

    >>> family("PCGrad"), family("replay")
    ('simultaneous', 'sequential, mended')
    """
    return next((kind for kind, names in _FAMILIES.items() if name in names), "simultaneous")

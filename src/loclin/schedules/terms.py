"""What schedules are compared under: which, how many gradients each may take, by which optimiser.
Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import ceil
from typing import Literal

from loclin.errors import LoclinError

#: One step differentiates every task and adds the gradients with weights.
SUMMED = ("raw sum", "norm-balanced", "PCGrad", "equal decrease", "loss-balanced")
#: The paper's simultaneous schedules (Fig. 4), and its two sequential ones.
SIMULTANEOUS = ("alternating", *SUMMED, "joint mixed")
SEQUENTIAL = ("sequential", "sequential reversed")
#: Sequential training in the first order, mended; specialists of every task, joined.
REMEDIES = ("replay", "consolidation", "projection")
MERGED = ("average", "task arithmetic", "TIES")
#: Summed with weights by torchjd (extra `schedules`).
LIBRARY = ("MGDA", "UPGrad", "IMTL-G", "Aligned-MTL", "CAGrad", "Nash-MTL")
EVERY = (*SIMULTANEOUS, *LIBRARY, *SEQUENTIAL, *REMEDIES, *MERGED)
#: What people do without thinking of a schedule: the others are held against it.
REFERENCE = "joint mixed"

Optimiser = Literal["adamw", "sgd"]


def family(name: str) -> str:
    """What kind of schedule it is, for tables.

    >>> family("PCGrad"), family("replay")
    ('simultaneous', 'sequential, mended')
    """
    kinds = {"sequential": SEQUENTIAL, "sequential, mended": REMEDIES, "specialists merged": MERGED}
    return next((kind for kind, names in kinds.items() if name in names), "simultaneous")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a comparison: every schedule starts at one point and takes as many gradients of
    one batch.
    """

    schedules: tuple[str, ...] = (*SIMULTANEOUS, *SEQUENTIAL, *REMEDIES, *MERGED)
    """Which, by name (with a space in quotes). A step for each task: alternating, joint mixed
    (batches of all tasks). A step for all, their gradients summed with weights: raw sum (1 each),
    norm-balanced (1/norm), PCGrad (conflicts projected out), equal decrease (all losses fall
    alike), loss-balanced (what has fallen least counts most). One task after the other: sequential,
    sequential reversed; mended: replay (old examples mixed in), consolidation (EWC), projection
    (out of the old task's gradients). Specialists merged: average, task arithmetic, TIES. "all"
    adds torchjd's: MGDA, UPGrad, IMTL-G, Aligned-MTL, CAGrad, Nash-MTL (pip install
    'loclin[schedules]')."""
    evaluations: int = 48
    """Gradients of one task's batch that every schedule may take; one that sums K tasks makes a
    K-th as many steps."""
    batch: int = 16
    """Examples behind one gradient."""
    points: int = 4
    """Places of a learning curve."""
    curve_examples: int = 64
    """Test examples of each task behind a point of a learning curve, and validation examples behind
    a choice, at most."""
    test_examples: int = 256
    """Test examples of each task behind the score at the end, at most."""
    replay_share: float = 0.25
    """Share of old examples in a batch with replay; in mixed batches tasks weigh by their answer
    tokens, as is usual."""
    fisher_examples: int = 64
    """Examples of the old task behind the diagonal Fisher of consolidation (EWC); their gradients
    count."""
    consolidation: float = 1.0
    """λ of consolidation; at 1 the penalty is the old task's loss as far as the diagonal knows it.
    """
    old_gradients: int = 8
    """Gradients of the old task that projection keeps updates out of; they count."""
    scales: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.3)
    """λ of task arithmetic and TIES, chosen on the validation split."""

    @property
    def named(self) -> tuple[str, ...]:
        """The schedules, in the order of `EVERY`, "all" opened."""
        asked = set(EVERY if "all" in self.schedules else self.schedules)
        return tuple(name for name in EVERY if name in asked)

    def check_terms(self, tasks: int) -> None:
        """Whether so many tasks can be compared under these terms.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        unknown = [name for name in self.schedules if name not in (*EVERY, "all")]
        if unknown or not self.schedules:
            found = repr(unknown[0]) if unknown else "none"
            near = [
                name
                for name in EVERY
                if unknown and get_close_matches(unknown[0].lower(), [name.lower()])
            ]
            remedy = (
                f"did you mean {near[0]!r}? change --schedules" if near else "change --schedules"
            )
            raise LoclinError(
                f"expected schedules among all, {', '.join(EVERY)}, found {found}: {remedy}"
            )
        if self.batch < tasks:
            raise LoclinError(
                f"expected a batch of at least {tasks} examples, one a task, found {self.batch}: "
                "raise --batch"
            )
        if not 0 < self.replay_share < 1:
            raise LoclinError(
                "expected a share of replayed examples between 0 and 1, found "
                f"{self.replay_share}: change --replay-share"
            )
        if not self.consolidation > 0:
            raise LoclinError(
                f"expected a consolidation above 0, found {self.consolidation}: change "
                "--consolidation"
            )
        if not self.scales or not min(self.scales) > 0:
            raise LoclinError(
                f"expected scales above 0, found {list(self.scales)}: change --scales"
            )
        for name in (
            "points",
            "curve_examples",
            "test_examples",
            "fisher_examples",
            "old_gradients",
        ):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise LoclinError(
                    f"expected {option} of at least 1, found {getattr(self, name)}: change "
                    f"--{option}"
                )
        # a remedy's preparation comes out of the second phase, of which something has to be left
        spent = {
            "projection": self.old_gradients,
            "consolidation": ceil(self.fisher_examples / self.batch),
        }
        least = 1 + max([spent[name] for name in self.named if name in spent], default=0)
        if self.evaluations < tasks * max(least, 1) or self.evaluations < self.points:
            raise LoclinError(
                f"expected at least {max(tasks * least, self.points)} gradient evaluations for "
                f"{tasks} tasks, {self.points} points of "
                f"a curve and what remedies prepare, found {self.evaluations}: raise --evaluations"
            )

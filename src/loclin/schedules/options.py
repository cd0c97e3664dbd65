"""What schedules are compared under: which, and how many gradients each may take. Imports nothing
heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import ceil

from loclin.errors import LoclinError
from loclin.schedules.names import EVERY, MERGED, REMEDIES, SEQUENTIAL, SIMULTANEOUS


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Every schedule starts at one point and takes as many gradients of one batch."""

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
    replay_shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Shares of old examples in a batch with replay: each is trained, and the one whose worst task
    is best on the validation split is taken. In mixed batches tasks weigh by their answer tokens,
    as is usual."""
    fisher_examples: int = 64
    """Examples of the old task behind the diagonal Fisher of consolidation (EWC); their gradients
    count."""
    consolidations: tuple[float, ...] = (1.0, 30.0, 1000.0)
    """λ of consolidation, chosen alike; at 1 the penalty is the old task's loss as far as the
    diagonal knows it."""
    old_gradients: int = 8
    """Gradients of the old task that projection keeps updates out of; they count."""
    merge_scales: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.3)
    """λ of task arithmetic and TIES, chosen on the validation split."""

    @property
    def named(self) -> tuple[str, ...]:
        """The schedules, in the order of `EVERY`, "all" opened."""
        chosen = set(EVERY if "all" in self.schedules else self.schedules)
        return tuple(name for name in EVERY if name in chosen)

    def check_comparison(self, tasks: int) -> None:
        """Whether so many tasks can be compared under these options.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        self._check_names()
        counts = ("points", "curve_examples", "test_examples", "fisher_examples", "old_gradients")
        wrong = {
            "batch": (self.batch < tasks, f"a batch of at least {tasks} examples, one a task"),
            "replay_shares": (
                not all(0 < share < 1 for share in self.replay_shares or (0,)),
                "shares of replayed examples between 0 and 1",
            ),
        }
        for name in ("consolidations", "merge_scales"):
            values = getattr(self, name) or (0,)
            wrong[name] = not min(values) > 0, f"{name.replace('_', '-')} above 0"
        for name in counts:
            wrong[name] = getattr(self, name) < 1, f"{name.replace('_', '-')} of at least 1"
        for name, (is_wrong, expected) in wrong.items():
            if is_wrong:
                found = getattr(self, name)
                raise LoclinError(
                    f"expected {expected}, found {[*found] if isinstance(found, tuple) else found}"
                    f": {'raise' if name == 'batch' else 'change'} --{name.replace('_', '-')}"
                )
        self._check_evaluations(tasks)

    def _check_names(self) -> None:
        unknown = [name for name in self.schedules if name not in (*EVERY, "all")]
        if self.schedules and not unknown:
            return
        lowered, first = {name.lower(): name for name in EVERY}, "".join(unknown[:1])
        near = [lowered[name] for name in get_close_matches(first.lower(), lowered)]
        raise LoclinError(
            f"expected schedules among all, {', '.join(EVERY)}, found "
            + (f"{first!r}: " if first else "none: ")
            + (f"did you mean {near[0]!r}? " if near else "")
            + "change --schedules"
        )

    def _check_evaluations(self, tasks: int) -> None:
        """What a remedy prepares comes out of the second phase, which has to go on after it."""
        prepared = {
            "projection": self.old_gradients,
            "consolidation": ceil(self.fisher_examples / self.batch),
        }
        share = 1 + max([prepared[name] for name in self.named if name in prepared], default=0)
        least = max(tasks * share, self.points)
        if self.evaluations < least:
            raise LoclinError(
                f"expected at least {least} gradient evaluations for {tasks} tasks, {self.points} "
                "points of a curve and what remedies prepare, found "
                f"{self.evaluations}: raise --evaluations"
            )

"""The rows of one optimiser, and how a page names and draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_dots, select
from loclin.report.words import estimate_text
from loclin.run.rows import Row
from loclin.studies.names import OPTIMISERS
from loclin.studies.schedules import names as n

BUDGET = "gradients of one batch"
UNIT = (-0.02, 1.02)  # limits of a score's axis


@dataclass(frozen=True, kw_only=True)
class View:
    """The rows of one optimiser.

    Attributes:
        kinds: of pairs; "all" for a user's own tasks.
        tasks: a user's own, in the order of their letters.
        schedules: the best first.
    """

    rows: Sequence[Row]
    settings: Mapping[str, Any]
    optimiser: str
    kinds: Sequence[str]
    tasks: Sequence[str]
    schedules: Sequence[str]

    @property
    def label(self) -> str:
        """The optimiser, for titles."""
        return f", {OPTIMISERS[self.optimiser]}"

    def find(self, quantity: str, **context: Any) -> list[Row]:
        """Summary rows, over all pairs unless a kind is named."""
        here = {"optimiser": self.optimiser, "pair": n.EVERY_PAIR, **context}
        return select(self.rows, quantity, **here)

    def ranked(self, quantity: str, **context: Any) -> dict[str, Row]:
        """Rows by schedule, the best schedule first."""
        found = {r.context["schedule"]: r for r in self.find(quantity, **context)}
        return {name: found[name] for name in self.schedules if name in found}

    def dots(
        self, name: str, title: str, groups: Mapping[str, Mapping[str, Row]], fitted: bool = False
    ) -> Drawing:
        """Scores by schedule, or differences of them."""
        title = f"{title}{self.label}"
        caption = f"{title}: score by schedule, mean with 95 % interval."
        listed = {group: list(rows.items()) for group, rows in groups.items()}
        name = f"schedules-{name}-{self.optimiser}"
        return draw_dots(name, caption, listed, label="score", title=title, fitted=fitted)

    def draw(
        self,
        name: str,
        title: str,
        curves: Sequence[Curve],
        labels: tuple[str, str] = (BUDGET, "score"),
        limits: tuple[float, float] | None = UNIT,
    ) -> Drawing:
        """Curves over gradients taken, or over α."""
        return draw_curves(
            f"schedules-{name}-{self.optimiser}".replace("+", "-"),
            f"{title}{self.label}: {labels[1]} against {labels[0]}, mean over models, 95 % bands.",
            curves,
            over="evaluations" if labels[0] == BUDGET else "alpha",
            labels=labels,
            title=title + self.label,
            limits=limits,
            log=(False, False),
        )

    def by_kind(self, quantity: str, single: str, **context: Any) -> list[Curve]:
        """A curve for every kind of pairs."""
        labels = [single if kind == n.EVERY_PAIR else f"{kind} pairs" for kind in self.kinds]
        rows = (self.find(quantity, pair=kind, **context) for kind in self.kinds)
        return [curve(r, label, i) for i, (r, label) in enumerate(zip(rows, labels, strict=True))]


def text(rows: Sequence[Row]) -> str:
    """The first row's estimate with its interval."""
    return estimate_text(rows[0].value, rows[0].low, rows[0].high) if rows else "not defined"


def curve(
    rows: Sequence[Row], label: str, i: int, *, band: bool = True, dashed: bool = False
) -> Curve:
    """The i-th curve of a drawing; more than the palette has are dashed."""
    broken, colour = dashed or i >= len(PALETTE), PALETTE[i % len(PALETTE)]
    return Curve(rows=rows, label=label, colour=colour, dashed=broken, band=band and not dashed)


def short(row: Row | None) -> str:
    """An estimate with two digits, which is as much as a few test examples tell."""
    if row is None or row.value is None:
        return "–"
    return f"{row.value:.2f}" + ("" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]")

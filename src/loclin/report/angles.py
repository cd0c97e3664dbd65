"""Drawings and words that the sections of the steering study share: cosines by layer, estimands,
single numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, select
from loclin.report.words import number

ESTIMANDS = {
    "E1": "E1, mean shift, fixed answer's loss",
    "E2": "E2, mean shift, gold answers' loss",
    "E3": "E3, class contrast, gold answers' loss",
}
COLOUR = {"E1": PALETTE[0], "E2": PALETTE[2], "E3": PALETTE[1]}
GREY = PALETTE[8]
BY_TENSOR, WHOLE, TOKENS = "weights by tensor", "weights as a whole", "unrelated tokens"
LEFT = "weights by tensor, without the readout"
RELABELLED, CAA_RELABELLED = "permuted labels", "permuted labels of CAA"
STEP = "weight step E1"
LIMITS = (-1.02, 1.02)


def estimands(rows: Sequence[Row]) -> list[str]:
    """The estimands that are defined for these examples."""
    return [
        of for of in ESTIMANDS if select(rows, "cosine_at", of=of, removed="nothing", at="late")
    ]


def draw_layers(
    labels: tuple[str, str], name: str, caption: str, title: str, drawn: Sequence[Curve]
) -> Drawing:
    """Cosines over layers."""
    return draw_curves(
        name,
        caption,
        drawn,
        over="layer",
        labels=labels,
        title=title,
        limits=LIMITS,
        log=(False, False),
    )


def cosines(
    rows: Sequence[Row], of: str, label: str, colour: str, *, removed: str = "nothing"
) -> Curve:
    """Cosines with CAA by layer."""
    return Curve(rows=select(rows, "cosine", of=of, removed=removed), label=label, colour=colour)


def null_band(rows: Sequence[Row], of: str, null: str, label: str, colour: str) -> Curve:
    """What 97.5 % of the draws of a null stay below, by layer."""
    found = select(rows, "null_cosine", of=of, null=null, statistic="97.5 %")
    return Curve(rows=found, label=label, colour=colour, dashed=True, band=False)


def one(rows: Sequence[Row], quantity: str, **context: Any) -> Row | None:
    """The summary row of a quantity, where there is one."""
    found = select(rows, quantity, **context)
    return found[0] if found else None


def mean_text(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """The mean over runs alone, as text."""
    row = one(rows, quantity, **context)
    return number(row.value if row else None)

"""The rows of one steering vector, and how its page names and draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loclin.report.figures import PALETTE, Curve, select
from loclin.report.section import text_of
from loclin.run.rows import Row
from loclin.studies.steering import names


@dataclass(frozen=True, eq=False)
class Steered:
    """The rows of one `loclin steer`, and its settings."""

    rows: Sequence[Row]
    settings: Mapping[str, Any]

    def of(self, quantity: str, **context: Any) -> list[Row]:
        """Summary rows."""
        return select(self.rows, quantity, **context)

    def text(self, quantity: str, **context: Any) -> str:
        """The one summary row, with its interval."""
        return text_of(self.rows, quantity, **context)

    def name(self, route: object) -> str:
        """A route in words."""
        return names.route_name(str(route), self.settings["estimand"])

    @property
    def routes(self) -> list[str]:
        """The one that was asked for first."""
        return [str(r.context["route"]) for r in self.of(names.SLOPE)]

    @property
    def chosen(self) -> list[int]:
        """The blocks that the vector is added at."""
        return [int(r.context["layer"]) for r in self.of(names.CHOSEN_LAYER)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two routes that were compared."""
        found = ((r.context["route"], r.context["with"]) for r in self.of(names.COSINE))
        return list(dict.fromkeys((str(a), str(b)) for a, b in found))

    def curve(self, quantity: str, route: str, label: str = "{}") -> Curve:
        """A route's curve, in its colour."""
        colour = PALETTE[list(names.ROUTES).index(route)]
        rows = self.of(quantity, route=route)
        return Curve(rows=rows, label=label.format(self.name(route)), colour=colour)

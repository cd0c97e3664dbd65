"""A pilot is a measurement for one's own tasks: it decides no claim. What it recommends is worked
out by `report.ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loclin.record import Claim, Row


def decide(config: Any, rows: Sequence[Row]) -> list[Claim]:
    """None."""
    return []

"""Figures and sentences that linearity and radius share."""

from typing import Any

import pytest

from loclin.run.rows import Row
from loclin.studies.linearity.parts import LINES, effect_text, first, line_figure, tolerance_curves

STEPS = (1e-3, 1e-2, 1e-1)
ROWS = [
    Row(quantity=q, value=10 * s, null=9 * s if q == "loss_change" else None, context={"step": s})
    for q in LINES
    for s in STEPS
]


@pytest.mark.parametrize("settings", [{"tolerance": 0.1}, {"tolerances": (0.1, 0.5)}])
def test_bounds_are_drawn_where_they_were_asked(settings: dict[str, Any]) -> None:
    drawn = {"forward": ("#000000", {})}
    for quantity in LINES:
        figure = line_figure(
            "x", ROWS, quantity, drawn, settings, rounding=1e-3, where="here", step="step"
        )
        assert figure.caption.endswith("against the step, here.")
        assert ("τ = 0.1" in figure.svg) == (quantity == "error")
    levels = tolerance_curves([r for r in ROWS if r.quantity == "error"], settings)
    assert [c.label for c in levels] == ["τ = 0.1", "τ = 0.5"][: len(levels)]
    assert [r.value for r in levels[0].rows] == [0.1] * 3


def test_the_first_row_is_none_where_there_is_none() -> None:
    row = first(ROWS, "score", step=1e-2)
    assert row is not None
    assert row.value == 0.1
    assert first(ROWS, "score", step=7.0) is None


def test_what_a_whole_step_does_is_told_as_far_as_it_is_known() -> None:
    assert effect_text([]) == "The loss there is not finite"
    change = Row(quantity="whole_loss_change", value=0.5, null=0.25)
    scored = Row(quantity="whole_score", value=0.75, null=1.0)
    text = effect_text([change, scored, Row(quantity="whole_error", value=1.0)])
    assert "changes by 0.5 (no interval), where the gradient says 0.25 (relative error 1 " in text
    assert text.endswith("the score goes from 1 to 0.75 (no interval)")

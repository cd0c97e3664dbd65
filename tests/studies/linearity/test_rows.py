"""Rows of planted lines: windows, whole steps and pairs come out as they were put in."""

import math
from typing import Any

import numpy as np
import pytest

from loclin.run.rows import Row, summaries
from loclin.studies.linearity.rows import (
    curve_rows,
    edge_rows,
    line_rows,
    of_defined_tasks,
    pair_rows,
    rows_of,
    whole_rows,
)
from tests.studies.linearity.planted import COARSE, number, one, planted

RNG = np.random.default_rng(0)


def test_a_row_is_made_of_a_value_or_of_a_value_and_its_null() -> None:
    here = {"run": 3}
    assert list(rows_of(here, a=1.0, b=(None, 0.5))) == [
        Row(quantity="a", value=1.0, context=here),
        Row(quantity="b", value=None, null=0.5, context=here),
    ]


def test_planted_windows_come_out_of_the_rows() -> None:
    rows = list(line_rows(planted(RNG, decades=4.0), (0.1, 0.5), {"run": 0}))
    assert number(rows, "window_width", tolerance=0.1) == pytest.approx(4.0, abs=1e-3)
    # not floor/τ, which is less
    assert number(rows, "log10_limit", tolerance=0.5) == pytest.approx(math.log10(2.0**-24))
    wider = math.log10(5) + math.log10(2.0**-24 / 3.0 / 0.1 / 2.0**-24)
    assert number(rows, "window_width", tolerance=0.5) == pytest.approx(4.0 + wider, abs=1e-3)
    assert number(rows, "log10_prediction_ratio", tolerance=0.1) == pytest.approx(0.0, abs=1e-3)
    assert number(rows, "window_open", tolerance=0.1) == 0


def test_an_open_window_has_no_ratio_and_a_bent_line_no_window() -> None:
    here: dict[str, Any] = {"tolerance": 0.1}
    straight = list(line_rows(planted(RNG, decades=30.0), (0.1,), {"run": 0}))
    assert one(straight, "log10_prediction_ratio", **here).value is None
    assert number(straight, "window_open", **here) == 1
    assert number(straight, "log10_window", **here, sign="both") == 6
    bent = list(line_rows(planted(RNG, decades=-2.0), (0.1,), {"run": 0}))
    assert one(bent, "log10_window", **here, sign="both").value is None
    assert number(bent, "no_window", **here, sign="both") == 1
    assert number(bent, "window_width", **here) == 0


def test_scatter_raises_the_limit_and_leaves_the_window() -> None:
    quiet, loud = (
        list(line_rows(planted(np.random.default_rng(1), decades=5.0, noise=n), (0.1,), {"run": 0}))
        for n in (0.0, 1e-6)
    )
    sizes = [number(rows, "log10_window", tolerance=0.1, sign="both") for rows in (quiet, loud)]
    assert sizes[1] == pytest.approx(sizes[0], abs=0.05)
    assert number(loud, "log10_limit") > number(quiet, "log10_limit") + 0.5


def test_a_curve_is_held_against_slope_and_curvature() -> None:
    profile = planted(RNG, decades=4.0, steps=[-1e-2, 0.0, 1e-2])
    rows = list(curve_rows(profile, {"run": 0}))
    back = one(rows, "loss_change", sign="−", step=1e-2)
    assert (back.value, back.null) == (profile.changes[0], pytest.approx(-0.03))
    error = one(rows, "log10_error", sign="+")
    assert error.value == pytest.approx(error.null)
    plain = list(curve_rows(profile, {}, logarithms=False))
    assert {r.quantity for r in plain} == {"loss_change", "first_order_error", "score"}


def test_a_whole_step_is_inside_outside_or_unknown() -> None:
    profile = planted(RNG, decades=4.0, steps=COARSE)
    size = profile.window(1, 0.1).size
    assert size is not None
    for step, inside in ((size / 3, 1.0), (3 * size, 0.0)):
        rows = list(whole_rows(profile, step, (-2.0, 0.5, 0.25), 0.1, {"run": 0}))
        assert number(rows, "whole_inside") == inside
        assert number(rows, "log10_whole_in_windows") == pytest.approx(math.log10(step / size))
        assert one(rows, "whole_loss_change").null == pytest.approx(3.0 * step)
        assert number(rows, "log10_whole_error") == math.log10(0.5)
        assert number(rows, "whole_score") == 0.25
    straight = planted(RNG, decades=30.0, steps=COARSE)
    rows = list(whole_rows(straight, 1e3, (1.0, math.inf, 1.0), 0.1, {"run": 0}))
    assert one(rows, "whole_inside").value is None
    assert one(rows, "log10_whole_error").value is None


def test_an_edge_is_a_share_of_the_loss() -> None:
    profile = planted(RNG, decades=4.0)
    rows = list(edge_rows(profile, -0.25, 0.5, {"run": 0}))
    assert (number(rows, "edge_loss_change"), number(rows, "edge_score")) == (0.25, 0.5)
    assert one(list(edge_rows(profile, None, None, {})), "edge_loss_change").value is None


def test_pairs_that_add_up_and_pairs_that_do_not() -> None:
    first, second = planted(RNG, decades=5.0), planted(RNG, decades=4.0, slope=1.0)
    for mixed in (1e-3, 50.0):
        both = first.changes + second.changes + mixed * first.steps**2
        rows = list(pair_rows(first.steps, both, (first, second), mixed, (0.01,), {"run": 0}))
        window = one(rows, "log10_additivity_window")
        if mixed > 1:
            assert window.value == pytest.approx(window.null, abs=0.02)
        assert number(rows, "additivity_open") == (mixed < 1 and window.value == 6)


def test_a_task_without_a_window_is_counted_and_leaves_the_others_mean() -> None:
    rows: list[Row] = []
    for run in range(4):
        for on, decades in (("a", 4.0), ("b", -2.0)):
            here = {"run": run, "task": "t", "direction": "task vector", "on": on}
            profile = planted(RNG, decades=decades, steps=COARSE)
            rows += of_defined_tasks(line_rows(profile, (0.1,), here))
    here = {"direction": "task vector", "tolerance": 0.1, "sign": "both"}
    mean = one(summaries(rows), "log10_window", **here)
    assert mean.value == pytest.approx(4.0 + math.log10(2.0**-24 / 3.0 / 0.1), abs=1e-2)
    assert one(summaries(rows), "no_window", **here).value == 0.5

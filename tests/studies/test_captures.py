"""Rows of captures against dense twins and their nulls."""

import numpy as np
import pytest

from loclin import theory
from loclin.geometry.gramian import future_capture, prefix_capture
from loclin.studies.captures import CAPTURES, family_rows, prefix_rows, step_response
from loclin.studies.names import (
    DRIFT,
    FROM_REST,
    FUTURE_NULLS,
    OWN_NORMS,
    PREFIX_NULLS,
    SHUFFLED,
)
from tests.planted import drifting_steps, filtered_steps, white_steps
from tests.reference import dense_capture
from tests.rows import value, values


def test_prefix_rows_hold_captures_with_every_null() -> None:
    u = drifting_steps(12, 100, 0.6, np.random.default_rng(0))
    rows = list(prefix_rows(u @ u.T, (2, 12), 100, 19, {"run": 0}, seed=0))
    assert value(rows, "prefix_capture", k=2) == pytest.approx(dense_capture(u[:2], u.sum(0)))
    assert value(rows, "future_capture", k=2) == pytest.approx(dense_capture(u[:2], u[2:].sum(0)))
    assert value(rows, "prefix_capture", k=12) == pytest.approx(1)
    assert values(rows, "prefix_capture", "p", k=12) == [None]  # any order gives 1
    assert not values(rows, "future_capture", k=12)  # no future is left
    for quantity, nulls in (("prefix", PREFIX_NULLS), ("future", FUTURE_NULLS)):
        drawn = [r.context["null"] for r in rows if r.quantity == f"{quantity}_capture_null"]
        assert set(drawn) == {*nulls} - {FROM_REST}  # of an optimiser without memory: the same
    for quantity, null in (("prefix_capture", OWN_NORMS), ("future_capture", DRIFT)):
        (beside,) = values(rows, quantity, "null", k=2)
        assert beside == value(rows, f"{quantity}_null", null=null, k=2)
    assert value(rows, "drift_s") == pytest.approx(theory.fit_drift(u @ u.T))


def test_the_drift_goes_through_the_optimiser_by_the_code_of_the_real_gramian() -> None:
    assert step_response("sgd", 60) is None
    response = step_response("adamw", 60)
    assert response == pytest.approx(theory.impulse_response(range(61), 0.9))
    u = filtered_steps(response, 0.5, np.geomspace(1, 0.2, 60), 500, np.random.default_rng(0))
    g = u @ u.T
    rows = list(prefix_rows(g, (3, 60), 500, 1, {}, seed=0, response=response))
    for null, at_rest in ((DRIFT, False), (FROM_REST, True)):
        expected = theory.drift_gramian(g, response, at_rest=at_rest)
        for quantity, of in CAPTURES.items():
            held = of(expected, [3])[0]
            drawn = value(rows, f"{quantity}_null", null=null, k=3)
            assert drawn == pytest.approx(held + (1 - held) * 3 / 500)
    assert value(rows, "drift_s") == theory.fit_drift(g, response)
    (beside,) = values(rows, "future_capture", "null", k=3)
    assert beside == value(rows, "future_capture_null", null=DRIFT, k=3)


def test_the_shuffled_null_is_the_mean_over_orders() -> None:
    u = white_steps(6, 30, np.random.default_rng(0))
    rows = list(prefix_rows(u @ u.T, (2,), 30, 3, {}, seed=5))
    orders = [np.random.default_rng([5, i]).permutation(6) for i in range(3)]
    for quantity, of in (("prefix_capture", prefix_capture), ("future_capture", future_capture)):
        expected = np.mean([of(u[o] @ u[o].T, [2])[0] for o in orders])
        assert value(rows, f"{quantity}_null", null=SHUFFLED) == pytest.approx(expected)


def test_family_rows_hold_captures_of_every_size_the_family_has() -> None:
    rng = np.random.default_rng(0)
    u, b = white_steps(8, 50, rng), rng.standard_normal((3, 50))
    rows = list(family_rows(b @ b.T, b @ u.T, u @ u.T, (1, 3, 5), 50, {"basis": "b"}))
    assert {r.context["k"] for r in rows} == {1, 3}
    for k in (1, 3):
        assert value(rows, "basis_capture", k=k, of="displacement") == pytest.approx(
            dense_capture(b[:k], u.sum(0))
        )
        assert value(rows, "basis_capture", k=k, of="future") == pytest.approx(
            dense_capture(b[:k], u[k:].sum(0))
        )
    for row in rows:
        law = theory.random_capture(row.context["k"], 50)
        assert row.null == pytest.approx(law.mean())
        assert row.p == pytest.approx(law.sf(row.value))

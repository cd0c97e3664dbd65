"""Real runs of the study on the small models."""

from dataclasses import replace

import numpy as np
import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.krylov.measure import measure
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV, PRECONDITIONED
from loclin.studies.names import MINIBATCH, PREFIX, RANDOM
from tests.rows import value
from tests.studies.krylov.conftest import TINY

BASES = {KRYLOV, EIGENVECTORS, MINIBATCH, RANDOM, PREFIX}


def test_a_run_measures_every_basis_for_both_optimisers(part: Part) -> None:
    rows = list(part.rows)
    for optimiser, names in (("sgd", BASES), ("adamw", BASES | {PRECONDITIONED})):
        mine = [r for r in rows if r.context.get("optimiser") == optimiser]
        captures = [
            r for r in mine if r.quantity == "basis_capture" and r.context["of"] == "displacement"
        ]
        assert {(r.context["basis"], r.context["k"]) for r in captures} == {
            (n, k)
            for n in names
            for k in (1, 2, 3)
            if k <= 2 or n != EIGENVECTORS  # as many as the claim needs
        }
        assert all(0 <= (r.value or 0) <= 1 for r in captures)
        assert {r.context["basis"] for r in mine if r.quantity == "capture_until"} == names
        assert value(mine, "capture_until", basis=PREFIX, t=1) == pytest.approx(1)
        assert value(mine, "basis_capture", basis=KRYLOV, of="displacement", k=3) > 20 * 3 / 26336
        at_end = value(mine, "capture_until", basis=KRYLOV, t=10)
        assert at_end == pytest.approx(
            value(mine, "basis_capture", basis=KRYLOV, k=2, of="displacement")
        )
    assert part.arrays["tridiagonal/0"].shape == (3, 3)
    assert "eager" in part.notes[-1]
    assert value(rows, "trace") == pytest.approx(part.arrays["probes/forms/0"].mean())
    assert value(rows, "frobenius_norm") ** 2 == pytest.approx(
        part.arrays["probes/squares/0"].mean()
    )
    assert value(rows, "eigenvalue", i=1) >= value(rows, "ritz_value", i=1) * 0.98
    assert value(rows, "lowest_ritz_value") == value(rows, "ritz_value", i=3)


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    again = measure(TINY, 0, Session())
    assert list(again.rows) == list(part.rows)
    assert all(np.array_equal(again.arrays[k], v) for k, v in part.arrays.items())


def test_lora_is_measured_in_both_spaces(lora_part: Part) -> None:
    held = [
        r for r in lora_part.rows if r.quantity == "basis_capture" and r.context["basis"] == KRYLOV
    ]
    assert {r.context["space"] for r in held} == {"weights", "factors"}
    assert len({r.value for r in held}) > len(held) / 2
    bounds = [r for r in lora_part.rows if r.quantity == "left_over"]
    factors = {
        r.context["t"]: r.value
        for r in lora_part.rows
        if r.quantity == "capture_until"
        and (r.context["basis"], r.context["space"], r.context["optimiser"])
        == (KRYLOV, "factors", "sgd")
    }
    for row in bounds:  # of the trained coordinates
        assert row.value == pytest.approx(np.sqrt(1 - (factors[row.context["t"]] or 0)))


def test_too_few_examples_are_refused_before_the_teaching(trained: Problem) -> None:
    with pytest.raises(
        LoclinError,
        match=r"at least 5000 examples of swap in the recovery split, found .*--curvature-ex",
    ):
        measure(replace(TINY, curvature_examples=5000), 0, Session())

"""Whole runs, in both forms, and what they decide. Rules: test_claims.py."""

from typing import Any

import numpy as np
import pytest

from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import Row, by_run
from loclin.run.runner import Session
from loclin.studies.steering import claims
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_context import SteeringContext, cosine, make_context
from loclin.studies.steering.claims_measure import measure, measure_rows
from loclin.studies.steering.claims_vectors import Vectors
from tests.studies.steering.conftest import PAIRED, TINY


def value(rows: list[Row], quantity: str, **context: Any) -> float | None:
    (row,) = [
        r for r in rows if r.quantity == quantity and context.items() <= dict(r.context).items()
    ]
    return row.value


def test_a_run_decides_all_claims(rows: list[Row]) -> None:
    decided = claims.decide(TINY, rows)
    last = ["two-routes-agree", "search-steers"]
    assert [c.id for c in decided] == ["gradient-step-steers"] * 3 + last
    assert all(
        c.verdict == "inconclusive" and c.p == 1.0 and c.value is not None for c in decided
    )  # of one run
    for of, second in names.SECOND_NULL.items():
        for null in (names.BY_TENSOR, second):
            assert len(claims._draws(rows, "null_draw", of=of, null=null, at="chosen")) >= 4
    assert len(claims._draws(rows, "chance_ratio")) == TINY.chance


def test_a_run_says_what_it_measured(
    rows: list[Row], ctx: SteeringContext, vectors: Vectors
) -> None:
    chosen = int(value(rows, "layer") or 0)
    found = value(rows, "cosine", of="E1", removed=names.NOTHING, layer=chosen)
    again = float(cosine(vectors.shifts["E1"], vectors.caa)[chosen])
    assert found == pytest.approx(again, abs=1e-5)
    assert value(rows, "cosine_at", of="E1", removed=names.NOTHING, at="chosen") == found
    assert value(rows, "slope_ratio", condition=names.CAA) == 1.0
    for condition in (names.CAA, "E1", names.HIGH):
        assert value(rows, "response", condition=condition, strength=0.0) == 0.0
    assert (value(rows, "response", condition=names.CAA, strength=1.0) or 0.0) > 0
    assert abs(value(rows, "kl_ratio", condition=names.CAA) or 0.0) == 1.0
    assert (value(rows, "mirror_cosine", of="E1", at="late", eta=1e-3) or 0.0) > 0.9
    for of in names.ESTIMANDS:
        small, large = (
            value(rows, "limit_error", of=of, at="late", eta=eta) or 0.0 for eta in TINY.etas
        )
        assert small < large
    assert len({(r.quantity, tuple(sorted(r.context.items(), key=str))) for r in rows}) == len(rows)


def test_the_same_run_again_gives_the_same_rows(rows: list[Row], speaking: Problem) -> None:
    assert measure_rows(make_context(speaking, TINY, 0, silent)) == rows


def test_a_run_from_its_settings_alone(rows: list[Row]) -> None:
    part = measure(TINY, 0, Session())
    assert list(part.rows) == rows
    assert "damage is seen on the model's own samples" in part.notes


def test_contrast_pairs_have_one_estimand_and_no_classes(paired_rows: list[Row]) -> None:
    third = by_run(paired_rows, "cosine_at", of="E3", removed=names.NOTHING, at="chosen")
    assert np.isnan(third).all()
    assert {r.context["of"] for r in paired_rows if r.quantity == "limit_error"} == {"E1"}
    assert not [r for r in paired_rows if r.context.get("null") == names.RELABELLED]
    decided = claims.decide(PAIRED, paired_rows)
    assert [c.verdict for c in decided[1:3]] == ["not run", "not run"]
    assert [c.p_holm for c in decided] == [1.0, None, None, 1.0, 1.0]
    assert "paired form" in decided[0].measured

"""Whole runs, in both forms, and what they decide. Rules: test_claims.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from loclin.models import Problem
from loclin.progress import silent
from loclin.run.record import Record
from loclin.run.rows import Part, Row, by_run
from loclin.run.runner import Session
from loclin.studies.steering import claims, names
from loclin.studies.steering.claims_context import ClaimsContext, cosine, make_context
from loclin.studies.steering.claims_found import Found
from loclin.studies.steering.claims_measure import measure, measured
from loclin.studies.steering.claims_nulls import KEPT
from loclin.studies.steering.claims_vectors import Vectors
from tests.recompute.steering import estimates
from tests.studies.steering.conftest import PAIRED, TINY


def value(rows: list[Row], quantity: str, **context: Any) -> float | None:
    (row,) = [
        r for r in rows if r.quantity == quantity and context.items() <= dict(r.context).items()
    ]
    return row.value


def test_a_run_decides_all_claims(rows: list[Row]) -> None:
    found = claims.decide(TINY, rows)
    last = ["two-routes-agree", "search-steers"]
    assert [c.id for c in found] == ["gradient-step-steers"] * 3 + last
    assert all(
        c.verdict == "inconclusive" and c.p == 1.0 and c.value is not None for c in found
    )  # of one run
    # halves of so few examples may not agree at all
    undefined = [p for c in found for p in c.note.split("; ") if "not defined" in p]
    assert all("disattenuated not defined" in part for part in undefined), undefined
    drawn = Found.of(rows, 1)
    for (of, null), kept in KEPT.items():
        for at in kept:
            draws = drawn.draws("null_draw", of=of, null=null, at=at)
            assert draws.shape[1] >= 4
            assert not np.isnan(draws).any()
    assert drawn.draws("chance_ratio").shape == (1, TINY.chance)


def test_estimates_are_recomputed_from_the_arrays_alone(
    part: Part, speaking: Problem, tmp_path: Path
) -> None:
    """Of two runs, written as a record and read again."""
    record = Record(tmp_path)
    other = measured(make_context(speaking, TINY, 1, silent))
    with record.working():
        record.open_study("steering", TINY.fingerprint(), device="cpu", kind="steering")
        rows, arrays = [*part.rows, *other.rows], {**part.arrays, **other.arrays}
        record.write_results("steering", rows, arrays)
    kept = load_file(tmp_path / "steering" / "arrays.safetensors")
    settings = json.loads((tmp_path / "run.json").read_text())["studies"]["steering"]
    again = estimates(settings, kept)
    for claim in claims.decide(TINY, rows):
        (found,) = [
            e for (id_, end), e in again.items() if id_ == claim.id and claim.setting.endswith(end)
        ]
        assert found == pytest.approx((claim.value, claim.low, claim.high), abs=1e-9)
    assert {key.rsplit("/", 1)[1] for key in kept} == {"0", "1"}
    assert sum(array.nbytes for array in kept.values()) < 200_000


def test_a_run_says_what_it_measured(rows: list[Row], ctx: ClaimsContext, vectors: Vectors) -> None:
    chosen = int(value(rows, "layer", at=names.CHOSEN) or 0)
    found = value(rows, "cosine", of="E1", removed=names.NOTHING, layer=chosen)
    again = float(cosine(vectors.shifts["E1"], vectors.caa)[chosen])
    assert found == pytest.approx(again, abs=1e-5)
    assert value(rows, "cosine_at", of="E1", removed=names.NOTHING, at=names.CHOSEN) == found
    for at in (names.MIDDLE, names.CHOSEN):
        assert value(rows, "slope_ratio", condition=names.CAA, at=at) == 1.0
        for condition in (names.CAA, "E1", names.HIGH):
            here = {"condition": condition, "at": at}
            assert value(rows, "response", **here, strength=0.0) == 0.0
        assert (value(rows, "response", condition=names.CAA, at=at, strength=1.0) or 0.0) > 0
        assert abs(value(rows, "kl_ratio", condition=names.CAA, at=at) or 0.0) == 1.0
    assert (value(rows, "mirror_cosine", of="E1", at="late", eta=1e-3) or 0.0) > 0.9
    for of in names.ESTIMANDS:
        small, large = (
            value(rows, "limit_error", of=of, at="late", eta=eta) or 0.0 for eta in TINY.etas
        )
        assert small < large
    assert len({(r.quantity, tuple(sorted(r.context.items(), key=str))) for r in rows}) == len(rows)


def test_a_run_from_its_settings_alone_gives_the_same(part: Part) -> None:
    again = measure(TINY, 0, Session())
    assert again.rows == part.rows
    assert again.arrays.keys() == part.arrays.keys()
    assert all(np.array_equal(x, again.arrays[key]) for key, x in part.arrays.items())
    assert "damage is seen on the model's own samples" in again.notes


def test_contrast_pairs_have_one_estimand_and_no_classes(paired_rows: list[Row]) -> None:
    third = by_run(paired_rows, "cosine_at", of="E3", removed=names.NOTHING, at=names.MIDDLE)
    assert np.isnan(third).all()
    assert {r.context["of"] for r in paired_rows if r.quantity == "limit_error"} == {"E1"}
    assert not [r for r in paired_rows if r.context.get("null") == names.RELABELLED]
    decided = claims.decide(PAIRED, paired_rows)
    assert [c.verdict for c in decided[1:3]] == ["not run", "not run"]
    assert [c.p_holm for c in decided] == [1.0, None, None, 1.0, 1.0]
    assert "paired form" in decided[0].measured

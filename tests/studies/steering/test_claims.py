"""Calibration of the steering study's rules: at most 5 % supported, and refuted, on planted nulls,
and right in 95 % on planted structure (measures §14).

Where a rule has a threshold, the null lies on it; where it has drawn nulls, the truth is one draw
of theirs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loclin.run.rows import Row
from loclin.studies.steering import claims, names
from loclin.studies.steering.claims_found import Found, labels_say
from loclin.studies.steering.claims_settings import SteeringClaimsSettings
from loclin.studies.verdict import LEVEL, Condition, Rule, decided, undecided
from tests.studies.steering.planted import (
    MODELS,
    RUNS,
    Layer,
    Numbers,
    Planted,
    coverage,
    found_in,
    put,
    row,
    shares,
)

SETTINGS = SteeringClaimsSettings()
STUDIES = 200
WORDS = ("id", "statement", "setting", "paper", "measured", "null", "rule")
ALLOWED = 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)
MIDDLE, LATE = (names.NOTHING, names.MIDDLE), (names.NOTHING, names.LATE)
BEYOND, WHITE = (names.READOUT, names.MIDDLE), (names.WHITENED, names.MIDDLE)
ALONG, (LEAST, MOST) = claims.ALONG, names.SIMILAR


def by(
    conditions: Callable[..., tuple[Condition, ...]], *more: Any, family: int = 1
) -> Callable[[Found], str]:
    """The verdict of one claim, both directions tested, or with the strictest that Holm's
    correction over a family of so many claims can bring.
    """
    claim = undecided(None, **dict.fromkeys(WORDS, ""))

    def verdict(found: Found) -> str:
        rule = Rule(claim=claim, conditions=conditions(found, *more), models=found.models)
        p, against = rule.tests() or (1.0, None)
        if 2 * family * p < LEVEL:
            return "supported"
        refuted = against is not None and 2 * family * against < LEVEL
        return "refuted" if refuted else "inconclusive"

    return verdict


STEPS = by(claims.step_conditions, "E1")


@pytest.mark.parametrize(
    "planted",
    [
        Planted(cosines={BEYOND: ALONG}, null=0.02),
        Planted(cosines={WHITE: ALONG}, null=0.02),
        Planted(cosines={(names.NOTHING, names.CHOSEN): ALONG}, null=0.02),
        Planted(cosines={BEYOND: ALONG}, null=0.02, between=0.3, within=0.02),  # runs nested
        Planted(ratio=LEAST),
        Planted(ratio=MOST),
        Planted(at_kl=LEAST, between=0.3, within=0.02),
        *(
            Planted(chance=null, null=0.5)
            for null in (names.BY_TENSOR, names.CAA_RELABELLED, names.BEYOND, names.IN_WHITENED)
        ),
    ],
    ids=str,
)
def test_a_step_on_the_edge_of_its_rule_is_decided_in_5_percent(planted: Planted) -> None:
    found = shares(planted.numbers, STEPS, STUDIES)
    assert found["supported"] <= ALLOWED
    if not planted.chance:  # a draw far from 0.2 on the other side does refute
        assert found["refuted"] <= ALLOWED


def test_runs_taken_as_units_would_be_too_many() -> None:
    nested = Planted(cosines={LATE: claims.AGREE}, null=0.02, between=0.3, within=0.02)
    found = shares(nested.numbers, by(claims.route_conditions), STUDIES, models=RUNS)
    assert found["supported"] + found["refuted"] > 2 * 0.05


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        (Planted(), "supported"),
        (Planted(of="E3", ratio=1.02), "supported"),
        (Planted(cosines={MIDDLE: -0.2, BEYOND: -0.2}), "refuted"),
        (Planted(cosines={BEYOND: -0.2}), "refuted"),
        (Planted(ratio=0.4), "refuted"),
        (Planted(at_kl=0.4), "refuted"),
    ],
    ids=str,
)
def test_planted_structure_is_found_in_the_studys_family(planted: Planted, verdict: str) -> None:
    rule = by(claims.step_conditions, planted.of, family=5)
    assert shares(planted.numbers, rule, STUDIES)[verdict] >= 0.95


def test_a_true_shift_of_vectors_is_supported_and_readout_alone_is_not() -> None:
    """By the study's own projections and whitening, against random steps that vary as activations
    do.
    """
    rule = by(claims.step_conditions, "E1", family=5)
    true = Layer(labels=(0.0, 2.0, 4.0, 0.0), step=(0.0, 1.0, 2.0, 0.0))
    assert shares(true.numbers, rule, STUDIES)["supported"] >= 0.95
    # CAA is the readout and another direction, the step goes along the readout alone
    readout = Layer(labels=(0.0, 4.0, 2.0, 0.0), step=(0.0, 2.0, 0.0, 0.0))
    assert shares(readout.numbers, STEPS, STUDIES)["supported"] <= ALLOWED
    routes = shares(readout.numbers, by(claims.route_conditions), STUDIES)
    assert routes["supported"] <= ALLOWED


#: Labels and a step that share no more than a way along an axis of large variance.
AXIS = Layer(axis=20.0, labels=(24.0, 0.0, 3.8, 0.0), step=(6.0, 0.0, 0.0, 0.95))


@pytest.mark.parametrize("labels", [(0.0, 0.0, 0.0, 0.0), AXIS.labels])
def test_a_dominant_axis_alone_supports_nothing(labels: tuple[float, ...]) -> None:
    """Labels that say nothing, or no more than which way along the axis: whitened, it is one
    direction among many.
    """
    found = shares(replace(AXIS, labels=labels).numbers, STEPS, STUDIES)
    assert found["supported"] <= ALLOWED
    assert found["refuted"] <= ALLOWED


def test_labels_that_give_the_sign_alone_are_named() -> None:
    one = np.random.default_rng(0)
    words = {
        "sign and size": Layer(labels=(0.0, 0.0, 4.0, 0.0), step=(0.0, 0.0, 2.0, 0.0)),
        "the sign alone": AXIS,
        "neither": Layer(step=(0.0, 0.0, 2.0, 0.0)),
    }
    for said, world in words.items():
        note = labels_say(found_in(world.numbers(one), MODELS), "E1", names.MIDDLE)
        assert f"labels give {said}" in note


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        (Planted(cosines={LATE: 0.8}), "supported"),
        (Planted(cosines={LATE: 0.2}), "refuted"),
        (Planted(cosines={(names.READOUT, names.LATE): -0.2}), "refuted"),
        (Planted(cosines={(names.READOUT, names.LATE): ALONG}, null=0.02), ""),
        (Planted(cosines={LATE: claims.AGREE}, null=0.02), ""),
        (Planted(cosines={LATE: claims.AGREE}, null=0.02, between=0.3, within=0.02), ""),
        (Planted(chance=names.BY_TENSOR, null=0.9), ""),
    ],
    ids=str,
)
def test_two_routes_agree(planted: Planted, verdict: str) -> None:
    rule = by(claims.route_conditions, family=5 if verdict else 1)
    found = shares(planted.numbers, rule, STUDIES)
    if verdict:
        assert found[verdict] >= 0.95
    else:
        assert found["supported"] <= ALLOWED
        assert planted.chance or found["refuted"] <= ALLOWED


@pytest.mark.parametrize(
    ("ratio", "chance", "verdict"),
    [(0.6, 0.1, "supported"), (0.0, 0.1, "refuted"), (ALONG, 0.02, ""), (None, 0.3, "")],
)
def test_search_steers(ratio: float | None, chance: float, verdict: str) -> None:
    """None: every run's ratio is one more draw of its own null, far from 0, as of scores that say
    nothing.
    """

    def world(rng: np.random.Generator) -> Numbers:
        numbers: Numbers = {}
        draws = 0.8 * (ratio is None) + chance * rng.standard_normal((RUNS, 60))
        found = draws[:, 0]
        if ratio is not None:
            own = np.tile(0.02 * rng.standard_normal(MODELS), RUNS // MODELS)
            found = ratio + own + 0.02 * rng.standard_normal(RUNS)
        put(numbers, draws[:, 1:], "chance_ratio")
        put(numbers, found, "slope_ratio", condition=names.SEARCH, at=names.MIDDLE)
        put(numbers, found, "ends_ratio", condition=names.SEARCH)
        return numbers

    rule = by(claims.search_conditions, family=5 if verdict else 1)
    found = shares(world, rule, STUDIES)
    if verdict:
        assert found[verdict] >= 0.95
    else:
        assert found["supported"] <= ALLOWED
        assert found["refuted"] <= ALLOWED


def test_intervals_over_models_cover() -> None:
    """Cosines near 1, whose spread is skewed, with runs nested in models."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        of_model = np.tile(np.arctanh(0.9) + 0.4 * rng.standard_normal(MODELS), RUNS // MODELS)
        return np.tanh(of_model + 0.1 * rng.standard_normal(RUNS))

    assert 0.93 <= coverage(draw, 0.9, "fisher", 2000) <= 0.97


def rows_of(planted: Planted) -> list[Row]:
    return planted.rows(np.random.default_rng(0))


def one(rows: list[Row], of: Any = "E1") -> Any:
    rule = claims.gradient_step_steers(SETTINGS, Found.of(rows, MODELS), of)
    return decided([rule])[0]


def test_without_an_effect_of_caa_in_one_run_cosines_alone_can_refute() -> None:
    for cosine, expected in ((0.9, "inconclusive"), (0.0, "refuted")):
        rows = rows_of(Planted(cosines={BEYOND: cosine}))
        blind = [
            replace(r, value=None)
            if r.quantity in ("slope_ratio", "kl_ratio") and r.context["run"] == 2
            else r
            for r in rows
        ]
        claim = one(blind)
        assert (claim.p, claim.verdict) == (1.0, expected)
        assert "(7 of 8 runs) at equal length" in claim.note


def test_an_effect_the_other_way_has_no_logarithm_and_is_not_similar() -> None:
    rows = [
        replace(r, value=-1.0) if r.quantity == "slope_ratio" and r.context["run"] == 2 else r
        for r in rows_of(Planted())
    ]
    claim = one(rows)
    assert claim.verdict == "inconclusive"
    assert claim.p > 0.05


def test_a_run_of_no_reliability_is_counted() -> None:
    rows = rows_of(Planted())
    for run in range(RUNS):
        value = None if run == 3 else 0.9
        rows.append(row("disattenuated_at", value, run, of="E1", at=names.MIDDLE))
    assert "disattenuated 0.9 [0.9, 0.9] (7 of 8 runs)" in one(rows).note


def test_a_tested_claim_says_estimand_blocks_and_null() -> None:
    rows = rows_of(Planted(of="E2"))
    for run in range(RUNS):
        rows += [row("layer", 1.0 + run % 2, run, at=names.MIDDLE)]
        rows += [row("layer", 3.0, run, at=names.CHOSEN)]
    claim = one(rows, "E2")
    assert claim.setting == "statements, E2"
    assert "E2: mean shift, loss of the gold answers" in claim.measured
    assert "permuted labels" in claim.null
    assert "middle 1 (4 of 8 runs), 2 (4 of 8 runs); late 3 (8 of 8 runs)" in claim.note
    assert (claim.unit, claim.n, claim.agree) == ("model", MODELS, "4 of 4")


def test_paired_examples_have_one_estimand() -> None:
    rows = [replace(r, value=0.0) if r.quantity == "class_form" else r for r in rows_of(Planted())]
    here = {"removed": names.NOTHING, "at": names.MIDDLE}
    rows += [row("cosine_at", None, run, of="E3", **here) for run in range(RUNS)]
    found = {(c.id, c.setting): c for c in claims.decide(SETTINGS, rows)}
    steps = [found["gradient-step-steers", f"statements, {of}"] for of in names.ESTIMANDS]
    assert [c.verdict for c in steps] == ["supported", "not run", "not run"]
    assert "paired form" in steps[0].measured
    assert steps[1].note == "the right answer counts as + in every example: E2 is E1"
    assert (steps[2].note, steps[2].p_holm) == ("examples have no classes", None)
    assert found["search-steers", "statements, 20 best of 200"].verdict == "not run"

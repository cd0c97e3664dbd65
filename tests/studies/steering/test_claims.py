"""Calibration of the steering study's rules: at most 5 % supported on planted nulls, at least 95 %
on planted structure.

Where a rule has a threshold, the null lies on it; where it has drawn nulls, the truth is one draw
of theirs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loclin.run.rows import Row
from loclin.studies.steering import claims
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_settings import SteeringClaimsSettings
from tests.properties import World, share_supported

SETTINGS = SteeringClaimsSettings(seeds=6)
NULL_DRAWS, DRAWS = 200, 40
ALLOWED = 0.05 + 2 * np.sqrt(
    0.05 * 0.95 / NULL_DRAWS
)  # a test of level 0.05 exactly is above it in half of all seeds
LAYERS = (0, 1, 2, 3)


def row(quantity: str, value: float | None, run: int, **context: Any) -> Row:
    return Row(quantity=quantity, value=value, context={"run": run, **context})


def planted(
    of: str,
    *,
    cosine: float | Callable[[np.random.Generator], float],
    ratio: float = 1.0,
    at_kl: float = 1.0,
    spread: float = 0.1,
    second: float = 0.1,
    scatter: float = 0.04,
    at: tuple[str, ...] = ("chosen", "late", "highest"),
    family: int = 5,
) -> World:
    """Studies whose runs share one direction, and so one true cosine, and whose random directions
    are shared too.

    Args:
        of: the estimand.
        cosine: the true one, or how it is drawn for a study.
        ratio, at_kl: true ratio of effects, at equal length and at equal damage.
        spread, second: of the cosines of random weight directions, and of the other null.
        scatter: of a run around the truth.
        at: where null draws are.
        family: of how many claims the rule has to hold among.
    """
    shared: dict[str, Any] = {}
    null = names.SECOND_NULL[of]  # type: ignore[index]

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        if run == 0:
            shared["cosine"] = cosine(rng) if callable(cosine) else cosine
            count = (
                199 if family > 1 else 59
            )  # what Holm's correction needs, and what the level alone does
            shared[names.BY_TENSOR] = spread * rng.standard_normal(count)
            shared[null] = second * rng.standard_normal(count)
        along = shared["cosine"] + scatter * rng.standard_normal()
        rows = [row("class_form", 1.0, run), row("layer", 3.0, run)]
        rows.append(
            row(
                "slope_ratio",
                ratio * float(np.exp(scatter * rng.standard_normal())),
                run,
                condition=of,
            )
        )
        rows.append(
            row(
                "kl_ratio",
                at_kl * float(np.exp(scatter * rng.standard_normal())),
                run,
                condition=of,
            )
        )
        for place in ("chosen", "late", "highest"):
            rows.append(row("cosine_at", along, run, of=of, removed="nothing", at=place))
            for name in (names.BY_TENSOR, null) if place in at else ():
                drawn = shared[name] + 0.02 * rng.standard_normal(len(shared[name]))
                rows += [
                    row("null_draw", float(c), run, of=of, null=name, at=place, draw=i)
                    for i, c in enumerate(drawn)
                ]
        return [
            *rows,
            *(row("cosine", along, run, of=of, removed="nothing", layer=layer) for layer in LAYERS),
        ]

    return world


@pytest.mark.parametrize(
    ("of", "planted_as", "holds"),
    [
        ("E1", {"cosine": 0.58}, True),
        ("E3", {"cosine": 0.58, "ratio": 1.05}, True),
        ("E1", {"cosine": claims.ALONG, "spread": 0.02, "second": 0.02}, False),
        ("E1", {"cosine": 0.8, "at_kl": names.SIMILAR[0]}, False),
        ("E2", {"cosine": 0.8, "ratio": names.SIMILAR[0]}, False),
        ("E2", {"cosine": 0.8, "ratio": names.SIMILAR[1]}, False),
        ("E1", {"cosine": lambda rng: 0.5 * rng.standard_normal(), "spread": 0.5}, False),
        ("E3", {"cosine": lambda rng: 0.5 * rng.standard_normal(), "second": 0.5}, False),
    ],
)
def test_gradient_step_steers(of: str, planted_as: dict[str, Any], holds: bool) -> None:
    family = 5 if holds else 1
    world = planted(of, **planted_as, at=("chosen",), family=family)
    draws = DRAWS if holds else NULL_DRAWS
    share = share_supported(
        world, lambda rows: claims.gradient_step_steers(SETTINGS, rows, of), draws, family=family
    )
    assert share >= 0.95 if holds else share <= ALLOWED


@pytest.mark.parametrize(
    ("planted_as", "holds"),
    [
        ({"cosine": 0.7}, True),
        ({"cosine": claims.AGREE, "spread": 0.02, "second": 0.02}, False),
        ({"cosine": lambda rng: 0.9 * rng.standard_normal(), "spread": 0.9}, False),
        ({"cosine": lambda rng: 0.9 * rng.standard_normal(), "second": 0.9}, False),
    ],
)
def test_two_routes_agree(planted_as: dict[str, Any], holds: bool) -> None:
    family = 5 if holds else 1
    world = planted("E1", **planted_as, at=("late",), family=family)
    draws = DRAWS if holds else NULL_DRAWS
    share = share_supported(
        world, lambda rows: claims.two_routes_agree(SETTINGS, rows), draws, family=family
    )
    assert share >= 0.95 if holds else share <= ALLOWED


@pytest.mark.parametrize(
    ("ratio", "chance", "holds"),
    [(0.6, 0.1, True), (claims.ALONG, 0.05, False), (None, 0.5, False)],
)
def test_search_steers(ratio: float | None, chance: float, holds: bool) -> None:
    """None: every run's ratio is one more draw of its own null, far from 0, as of scores that say
    nothing.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        centre = 0.8 if ratio is None else 0.0
        draws = centre + chance * rng.standard_normal(SETTINGS.chance)
        found = (
            float(centre + chance * rng.standard_normal())
            if ratio is None
            else ratio + 0.05 * rng.standard_normal()
        )
        rows = [row("chance_ratio", float(c), run, draw=i) for i, c in enumerate(draws)]
        return [
            *rows,
            row("class_form", 1.0, run),
            row("layer", 2.0, run),
            row("slope_ratio", found, run, condition="search"),
            row("ends_ratio", found, run, condition="search"),
        ]

    family, draws = (5, DRAWS) if holds else (1, NULL_DRAWS)
    share = share_supported(
        world, lambda rows: claims.search_steers(SETTINGS, rows), draws, family=family
    )
    assert share >= 0.95 if holds else share <= ALLOWED


def rows_of(world: World, seed: int = 0, runs: int = 6) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [r for run in range(runs) for r in world(rng, run)]


def test_what_refutes() -> None:
    assert (
        claims.gradient_step_steers(SETTINGS, rows_of(planted("E1", cosine=0.0)), "E1").verdict
        == "refuted"
    )
    weaker = rows_of(planted("E1", cosine=0.9, ratio=0.3))
    assert claims.gradient_step_steers(SETTINGS, weaker, "E1").verdict == "refuted"
    assert (
        claims.two_routes_agree(SETTINGS, rows_of(planted("E1", cosine=0.3))).verdict == "refuted"
    )


def test_an_effect_the_other_way_has_no_logarithm_and_is_not_similar() -> None:
    rows = rows_of(planted("E1", cosine=0.9))
    turned = [
        replace(r, value=-1.0) if r.quantity == "slope_ratio" and r.context["run"] == 2 else r
        for r in rows
    ]
    claim = claims.gradient_step_steers(SETTINGS, turned, "E1")
    assert (claim.p, claim.verdict) == (1.0, "inconclusive")
    assert "equivalence at equal length 1" in claim.note


def test_without_an_effect_of_caa_the_cosine_alone_can_refute() -> None:
    for cosine, expected in ((0.9, "inconclusive"), (0.0, "refuted")):
        rows = rows_of(planted("E1", cosine=cosine))
        blind = [replace(r, value=None) if r.quantity == "slope_ratio" else r for r in rows]
        claim = claims.gradient_step_steers(SETTINGS, blind, "E1")
        assert (claim.p, claim.verdict) == (1.0, expected)
        assert "CAA does not steer" in claim.note


def test_a_draw_is_a_mean_over_runs_and_none_is_no_support() -> None:
    rows = [
        row("null_draw", float(run + 10 * i), run, of="E1", null="x", at="late", draw=i)
        for run in range(3)
        for i in (1, 0)
    ]
    assert claims._draws(rows, "null_draw", of="E1", null="x", at="late").tolist() == [1.0, 11.0]
    assert claims._above_draws(rows, 5.0, "E1", "x", "late") == 2 / 3
    assert claims._above_draws(rows, 5.0, "E1", "y", "late") == 1.0
    gap = [*rows, row("null_draw", None, 3, of="E1", null="x", at="late", draw=0)]
    assert (
        claims._above_draws(gap, 50.0, "E1", "x", "late") == 2 / 3
    )  # what is not defined counts as not below


def test_paired_examples_have_one_estimand() -> None:
    rows = [
        replace(r, value=0.0) if r.quantity == "class_form" else r
        for r in rows_of(planted("E1", cosine=0.7))
    ]
    rows += [
        row("cosine_at", None, run, of="E3", removed="nothing", at="chosen") for run in range(6)
    ]
    decided = {
        (c.id, c.setting.split(", ")[1].split(":")[0]): c for c in claims.decide(SETTINGS, rows)
    }
    assert decided["gradient-step-steers", "E1"].verdict == "supported"
    assert "paired form" in decided["gradient-step-steers", "E1"].measured
    second, third = decided["gradient-step-steers", "E2"], decided["gradient-step-steers", "E3"]
    assert (second.verdict, second.note) == (
        "not run",
        "the right answer counts as + in every example: E2 is E1",
    )
    assert (third.verdict, third.note, third.p_holm) == (
        "not run",
        "examples have no classes",
        None,
    )
    assert [c.verdict for c in decided.values() if c.id == "search-steers"] == ["not run"]


def test_a_tested_claim_says_estimand_layer_and_null() -> None:
    claim = claims.gradient_step_steers(SETTINGS, rows_of(planted("E2", cosine=0.7)), "E2")
    assert (
        claim.setting == "statements, E2: mean shift, loss of the gold answers, layer chosen apart"
    )
    assert "permuted labels" in claim.null
    assert "chosen layers 3 (6 of 6 runs)" in claim.note
    assert "late layers: layer 2 " in claim.note


def test_what_is_left_beyond_the_readout_is_told_with_its_null_and_decides_nothing() -> None:
    rows = rows_of(planted("E1", cosine=0.7))
    told = {}
    for left in (0.05, 0.6):
        rng = np.random.default_rng(0)
        beyond = [
            row(
                "cosine_at",
                left + 0.02 * rng.standard_normal(),
                r,
                of="E1",
                removed="readout",
                at="late",
            )
            for r in range(6)
        ]
        shared = 0.1 * rng.standard_normal(199)
        draws = [
            row("null_draw", float(c), r, of="E1", null=names.BEYOND, at="late", draw=i)
            for r in range(6)
            for i, c in enumerate(shared)
        ]
        level = [row("null_at", 0.2, r, of="E1", null=names.BEYOND, at="late") for r in range(6)]
        claim = claims.two_routes_agree(SETTINGS, [*rows, *beyond, *draws, *level])
        told[left] = claim.note.split(";")[0]
        assert claim.verdict == "supported"
    assert "p 0.005 against random directions (97.5 % of them 0.2" in told[0.6]
    assert "p 0.005 " not in told[0.05]


def test_permuted_labels_are_told_with_what_they_centre_on() -> None:
    rows = rows_of(planted("E3", cosine=0.7))
    rows += [
        row("null_median", -0.5, r, of="E3", null=names.RELABELLED, at="chosen") for r in range(6)
    ]
    assert (
        "un-learns the answers, median cosine -0.5 [-0.5, -0.5]: no chance level"
        in claims.gradient_step_steers(SETTINGS, rows, "E3").note
    )
    assert (
        "un-learns"
        not in claims.gradient_step_steers(SETTINGS, rows_of(planted("E1", cosine=0.7)), "E1").note
    )

"""The rules of both claims on planted worlds; what is concluded; claims from arrays alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from loclin.run.rows import Claim, Part, Row
from loclin.run.runner import Session
from loclin.schedules.names import SEQUENTIAL, SIMULTANEOUS
from loclin.studies.schedules import claims
from loclin.studies.schedules.measure import measure
from loclin.studies.schedules.names import KINDS
from loclin.studies.schedules.settings import SchedulesSettings
from loclin.studies.verdict import Rule, undecided
from loclin.studies.verdict import verdicts as words_of
from tests.recompute.schedules import estimates
from tests.studies.schedules.small import NAMES, TINY

SETTINGS = SchedulesSettings(seeds=6, pairs=KINDS, schedules=(*SIMULTANEOUS, *SEQUENTIAL))
NESTED = replace(SETTINGS, seeds=12)
DRAWS = 200
WORDS = ("id", "statement", "setting", "paper", "measured", "null", "rule")
#: 5 % and two standard errors of the simulation.
MOST = 0.05 + 2 * np.sqrt(0.05 * 0.95 / DRAWS)

#: How far a schedule's true mean lies from the others'.
Shift = Callable[[str], float]


NAMED = (*SIMULTANEOUS, *SEQUENTIAL)


def world(
    shift: Shift,
    rng: np.random.Generator,
    settings: SchedulesSettings = SETTINGS,
    *,
    scatter: float = 0.05,
    of_model: float = 0.0,
    ceiling: bool = False,
) -> dict[str, np.ndarray]:
    """Worst-task scores by schedule, of every pair and run, runs nested in models; near 1 they are
    skewed: a share of examples.
    """
    model = np.arange(settings.seeds) % settings.models
    level = 0.8 + 0.05 * rng.standard_normal(settings.models)
    own = of_model * rng.standard_normal((settings.models, len(NAMED)))
    found, size = {}, (len(KINDS), settings.seeds)
    for i, name in enumerate(NAMED):
        values = (level + own[:, i])[model] + scatter * rng.standard_normal(size)
        if ceiling:  # equal in their mean, 0.97
            values = rng.beta(9.7, 0.3, size)
        found[name] = values + shift(name)
    return found


def planted(shift: Shift, *, scatter: float) -> list[Row]:
    """The same as rows."""
    rows = []
    for name, values in world(shift, np.random.default_rng(0), scatter=scatter).items():
        for run, scores in enumerate(values.T):
            for pair, value in zip((*KINDS, "all"), (*scores, scores.mean()), strict=True):
                here = {"run": run, "pair": pair, "schedule": name, "optimiser": "adamw"}
                rows.append(Row(quantity="worst_score", value=float(value), context=here))
                rows += [
                    Row(quantity="score", value=float(value), context={**here, "role": role})
                    for role in "AB"
                ]
    rows += [
        Row(
            quantity="first_worst_score",
            value=0.0,
            context={"run": run, "pair": "all", "optimiser": "adamw"},
        )
        for run in range(SETTINGS.seeds)
    ]
    return rows


def equal(name: str) -> float:
    return 0.0


def verdicts(
    shift: Shift, settings: SchedulesSettings = SETTINGS, *, start: float = 0.0, **more: float
) -> np.ndarray:
    """Of both claims, in many studies, after Holm's correction."""
    found, claim = [], undecided(None, **dict.fromkeys(WORDS, ""))
    for study in range(DRAWS):
        scores = world(shift, np.random.default_rng([study, 11]), settings, **more)  # type: ignore[arg-type]
        worst = claims.WorstTasks(
            orders={name: scores[name] for name in SEQUENTIAL},
            together={name: scores[name] for name in SIMULTANEOUS},
            first=np.full(settings.seeds, start),
            trained_first=np.zeros(settings.seeds),
        )
        tests = {}
        for i, holding in enumerate((claims.below_every_one, claims.alike_and_taught)):
            rule = Rule(claim=claim, conditions=tuple(holding(worst)), models=settings.models)
            tests[i] = rule.tests() or (1.0, None)
        found.append([*words_of(tests).values()])
    return np.array(found)


def share(found: np.ndarray, verdict: str) -> list[float]:
    last, little = (found == verdict).mean(0)
    return [float(last), float(little)]


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        (SETTINGS, {"scatter": 0.02}),
        (SETTINGS, {"scatter": 0.15}),
        (NESTED, {"of_model": 0.1}),
        (SETTINGS, {"ceiling": True}),
    ],
    ids=["little noise", "much noise", "runs nested in models", "skewed near 1"],
)
def test_orders_that_are_as_good_are_neither_last_nor_shown_not_to_be(
    settings: SchedulesSettings, more: dict[str, float]
) -> None:
    found = verdicts(equal, settings, **more)
    assert share(found, "supported")[0] <= MOST
    assert max(share(found, "refuted")) <= MOST  # nor do equal schedules differ
    if more.get("scatter") == 0.02:
        assert share(found, "supported")[1] >= 0.95


@pytest.mark.parametrize(
    ("settings", "gap", "of_model"), [(SETTINGS, 0.3, 0.0), (NESTED, 0.4, 0.05)]
)
def test_orders_that_are_both_last_are_said_to_be(
    settings: SchedulesSettings, gap: float, of_model: float
) -> None:
    found = verdicts(lambda s: -gap if s in SEQUENTIAL else 0.0, settings, of_model=of_model)
    assert share(found, "supported")[0] >= 0.95
    assert share(found, "refuted")[0] == 0.0


def test_one_brittle_order_is_not_enough_and_one_bad_simultaneous_schedule_refutes() -> None:
    brittle = verdicts(lambda s: -0.5 if s == "sequential" else 0.0, scatter=0.02)
    assert share(brittle, "supported")[0] <= MOST
    assert share(brittle, "refuted")[0] <= MOST  # the better order is exactly as good
    odd = verdicts(lambda s: -0.5 if s == "equal decrease" else 0.0)
    assert min(share(odd, "refuted")) >= 0.95  # of both claims


@pytest.mark.parametrize(("settings", "of_model"), [(SETTINGS, 0.0), (NESTED, 0.03)])
def test_schedules_that_differ_by_the_margin_are_neither_alike_nor_shown_to_differ(
    settings: SchedulesSettings, of_model: float
) -> None:
    edge = claims.MARGIN
    found = verdicts(
        lambda s: -edge if s == "raw sum" else 0.0, settings, scatter=0.02, of_model=of_model
    )
    assert share(found, "supported")[1] <= MOST
    assert share(found, "refuted")[1] <= MOST


def test_training_that_taught_nothing_makes_schedules_alike_for_no_reason() -> None:
    found = verdicts(equal, scatter=0.02, start=0.8)
    assert share(found, "supported") == [0.0, 0.0]


def test_what_stands_in_a_claim_is_of_the_schedules_it_names() -> None:
    rows = planted(lambda s: -0.3 * (s == "PCGrad"), scatter=0.01)
    last, little = claims.decide(SETTINGS, rows)
    assert (last.id, little.id) == ("sequential-last", "simultaneous-differ-little")
    assert (last.n, last.unit) == (6, "model")
    assert "better sequential order less PCGrad, the lowest" in last.measured
    assert last.value == pytest.approx(0.3, abs=0.03)
    assert "less the median one" in last.note
    assert "the task trained first ends at" in last.note
    assert little.value is not None
    assert abs(little.value) == pytest.approx(0.3, abs=0.03)
    rows = claims.conclude(SETTINGS, rows)
    each = {r.context["schedule"]: r for r in rows if r.quantity == "better_order_less"}
    assert set(each) == {*SIMULTANEOUS, "median of them"}
    assert each["PCGrad"].value == last.value
    assert each["median of them"].value == pytest.approx(0.0, abs=0.03)
    apart = [r.value for r in rows if r.quantity == "simultaneous_difference"]
    assert len(apart) == 21
    assert max(abs(v) for v in apart if v is not None) == abs(little.value)


@pytest.mark.parametrize(
    "names", [("alternating",), ("joint mixed", *SEQUENTIAL), (*SIMULTANEOUS, "sequential")]
)
def test_without_several_of_both_sorts_of_schedules_nothing_is_decided(
    names: tuple[str, ...],
) -> None:
    found = claims.decide(replace(SETTINGS, schedules=names), [])
    assert {claim.verdict for claim in found} == {"not run"}


def test_pairs_are_ranked_and_decide_while_a_users_own_tasks_are_recommended_for(
    part: Part,
) -> None:
    rows = claims.conclude(TINY, part.rows)
    assert {r.context["schedule"] for r in rows if r.quantity == "place"} == set(NAMES)
    assert not any(r.quantity == "recommended" for r in rows)
    assert len(claims.decide(TINY, part.rows)) == 2
    own = replace(TINY, pairs=())
    worst = [r for r in part.rows if r.quantity == "worst_score"]
    validated = [replace(r, quantity="validated_worst_score") for r in worst]
    rows = claims.conclude(own, [*part.rows, *validated])
    assert sum(r.quantity == "recommended" for r in rows) == 1
    assert claims.decide(own, part.rows) == []


def test_claims_can_be_recomputed_from_arrays_alone(part: Part) -> None:
    two = replace(TINY, seeds=2, models_per_claim=1)  # on one model, which is there
    again = measure(two, 1, Session())
    found = estimates(two.fingerprint(), {**part.arrays, **again.arrays})
    decided = claims.decide(two, [*part.rows, *again.rows])
    assert len(found) == len(decided) == 2
    for claim in decided:
        assert_equal(claim, found[claim.id, "AdamW"])


def assert_equal(claim: Claim, estimate: tuple[float, float, float]) -> None:
    assert (claim.value, claim.low, claim.high) == pytest.approx(estimate, abs=1e-9)

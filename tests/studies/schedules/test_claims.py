"""The rule of the claim on planted worlds, six runs of three pairs each; what is concluded."""

from dataclasses import replace

import numpy as np
import pytest

from loclin.run.rows import Claim, Part, Row
from loclin.schedules.names import SEQUENTIAL, SIMULTANEOUS
from loclin.studies.schedules import claims
from loclin.studies.schedules.names import KINDS
from loclin.studies.schedules.settings import SchedulesSettings
from tests.properties import World, share_supported
from tests.studies.schedules.small import NAMES, TINY

SETTINGS = SchedulesSettings(seeds=6, pairs=KINDS, schedules=(*SIMULTANEOUS, *SEQUENTIAL))
NULL_DRAWS, DRAWS = 200, 60


def planted(gap: float, *, odd: float = 0.0, scatter: float = 0.05, start: float = 0.0) -> World:
    """Worst-task scores of runs with a true gap between simultaneous and sequential schedules, one
    schedule `odd` below the others.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        common = 0.9 + 0.05 * rng.standard_normal()
        first = {"run": run, "pair": "all", "optimiser": "adamw"}
        rows = [Row(quantity="first_worst_score", value=start, context=first)]
        for name in (*SIMULTANEOUS, *SEQUENTIAL):
            # the odd one lowers the mean of seven by a seventh, which the others make up for
            true = -gap if name in SEQUENTIAL else (odd / 7 - odd * (name == "equal decrease"))
            for pair in (*SETTINGS.pairs, "all"):
                noise = scatter * rng.standard_normal() / (3**0.5 if pair == "all" else 1)
                value = common + true + noise
                here = {"run": run, "pair": pair, "schedule": name, "optimiser": "adamw"}
                rows.append(Row(quantity="worst_score", value=value, context=here))
                rows += [
                    Row(quantity="score", value=value, context={**here, "role": role})
                    for role in "AB"
                ]
        return rows

    return world


def rule(rows: list[Row]) -> Claim:
    return claims.sequential_brittle(SETTINGS, rows, "adamw")


@pytest.mark.parametrize(
    ("world", "supported"),
    [
        (planted(0.6), True),
        (planted(0.45, odd=0.1), True),
        (planted(0.0), False),
        (planted(claims.BRITTLE, scatter=0.02), False),  # on the threshold
        (planted(0.5, odd=0.5), False),  # a simultaneous schedule is as bad
    ],
    ids=["brittle", "brittle, one worse", "nothing", "threshold", "no better than order"],
)
def test_the_rule_is_calibrated(world: World, supported: bool) -> None:
    share = share_supported(world, rule, DRAWS if supported else NULL_DRAWS)
    assert share >= 0.95 if supported else share <= 0.05


def verdicts(world: World, draws: int) -> list[str]:
    rngs = (np.random.default_rng([study, 11]) for study in range(draws))
    return [rule([row for run in range(6) for row in world(rng, run)]).verdict for rng in rngs]


def test_no_gap_is_refuted_and_the_note_names_what_it_rests_on() -> None:
    rng = np.random.default_rng(0)
    world = planted(0.0)
    claim = rule([row for run in range(6) for row in world(rng, run)])
    assert claim.verdict == "refuted"
    assert claim.n == 6
    assert "conflicting pairs" in claim.note
    assert "the task trained first ends at" in claim.note


def test_what_is_so_is_not_refuted_by_noise_nor_by_training_that_taught_nothing() -> None:
    assert np.mean([v == "refuted" for v in verdicts(planted(0.3, scatter=0.3), 100)]) <= 0.05
    assert set(verdicts(planted(0.0, start=0.9), 40)) == {"inconclusive"}


@pytest.mark.parametrize(
    "names", [("alternating",), ("joint mixed", *SEQUENTIAL), (*SIMULTANEOUS, "sequential")]
)
def test_without_several_of_both_sorts_of_schedules_nothing_is_decided(
    names: tuple[str, ...],
) -> None:
    (claim,) = claims.decide(replace(SETTINGS, schedules=names), [])
    assert claim.verdict == "not run"


def test_pairs_are_ranked_and_decide_while_a_users_own_tasks_are_recommended_for(
    part: Part,
) -> None:
    rows = claims.conclude(TINY, part.rows)
    assert {r.context["schedule"] for r in rows if r.quantity == "place"} == set(NAMES)
    assert not any(r.quantity == "recommended" for r in rows)
    assert len(claims.decide(TINY, part.rows)) == 1
    own = replace(TINY, pairs=())
    worst = [r for r in part.rows if r.quantity == "worst_score"]
    validated = [replace(r, quantity="validated_worst_score") for r in worst]
    rows = claims.conclude(own, [*part.rows, *validated])
    assert sum(r.quantity == "recommended" for r in rows) == 1
    assert claims.decide(own, part.rows) == []

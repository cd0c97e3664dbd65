"""The schedules study: pairs by rule, damage of two tasks, a real run and its page, calibration of
its rule, bad settings.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.lora import low_rank_gramian
from loclin.models import Problem
from loclin.record import Claim, Part, Row
from loclin.report import schedules as page
from loclin.schedules.terms import MERGED, SEQUENTIAL, SIMULTANEOUS
from loclin.seeds import derived
from loclin.studies.bench import Bench, make_bench
from loclin.studies.course import damage
from loclin.studies.schedules import claims, experiment
from loclin.studies.schedules.apart import apart_rows
from loclin.studies.schedules.config import Config, preset, settings
from loclin.studies.schedules.pairs import chosen_pairs, task_cosines
from loclin.studies.settings import Profile
from loclin.studies.table import by_run, summaries
from loclin.tasks.batch import answer_loss
from tests.properties import World, share_supported
from tests.reference import dense_capture

NAMES = (
    "raw sum",
    "PCGrad",
    "joint mixed",
    "sequential",
    "sequential reversed",
    "replay",
    "average",
)
TINY = replace(
    preset("smoke"),
    seeds=1,
    evaluations=8,
    points=2,
    curve_examples=8,
    test_examples=16,
    k=2,
    batch=8,
    cosine_examples=32,
    schedules=NAMES,
    pairs=("agreeing", "copy+swap"),
    fisher_examples=8,
).checked()
LORA = replace(
    preset("smoke", "statements-small"),
    seeds=1,
    evaluations=4,
    points=1,
    curve_examples=8,
    test_examples=16,
    k=2,
    batch=4,
    fisher_examples=4,
    cosine_examples=16,
    schedules=("joint mixed", "sequential"),
    ranks=(2,),
).checked()


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def bench(trained: Problem) -> Bench[Config]:
    return make_bench(TINY, 0, experiment.demand(TINY), silent)


@pytest.fixture(scope="module")
def part(trained: Problem) -> Part:
    return experiment.run_one(TINY, 0, silent)


COSINES = np.array(
    [[1, 0.9, 0.2, 0.1], [0.9, 1, -0.05, -0.6], [0.2, -0.05, 1, 0.3], [0.1, -0.6, 0.3, 1]]
)


def test_pairs_are_the_largest_the_smallest_and_of_the_others_the_nearest_to_nought() -> None:
    found = chosen_pairs(COSINES, "wxyz", ("conflicting", "agreeing", "neutral", "z+w"))
    assert found == {
        "conflicting": ("x", "z"),
        "agreeing": ("w", "x"),
        "neutral": ("x", "y"),
        "z+w": ("z", "w"),
    }
    positive = np.full((3, 3), 0.5) + np.diag([0.5] * 3)
    positive[0, 1] = positive[1, 0] = 0.7
    positive[0, 2] = positive[2, 0] = 0.1
    kinds = chosen_pairs(positive, "abc", ("agreeing", "neutral", "conflicting"))
    assert kinds == {
        "agreeing": ("a", "b"),
        "neutral": ("b", "c"),
        "conflicting": ("a", "c"),
    }  # whatever their signs


@pytest.mark.parametrize(
    ("tasks", "wanted", "text"),
    [
        ("a", ("agreeing",), "expected two tasks or more, found a alone"),
        (
            "ab",
            ("neutral",),
            r"expected three tasks or more for pairs chosen by rule, found a, b: name pairs, such "
            r"as --pairs a\+b",
        ),
        ("abcd", ("a+q",), r"unknown task 'q' in --pairs a\+q: expected two of a, b, c, d"),
    ],
)
def test_pairs_that_cannot_be_chosen_are_refused(
    tasks: str, wanted: tuple[str, ...], text: str
) -> None:
    with pytest.raises(LoclinError, match=text):
        chosen_pairs(COSINES[: len(tasks), : len(tasks)], tasks, wanted)


def test_cosines_are_those_of_the_gradients_of_halves_that_share_no_example(
    bench: Bench[Config],
) -> None:
    tasks = ("copy", "swap")
    (found,) = task_cosines(bench, tasks).values()
    halves = []
    for task in tasks:
        data = bench.problem.batch("gradients", task)
        order = torch.randperm(
            len(data), generator=torch.Generator().manual_seed(derived(bench.seed, "cosines", task))
        )[:32]
        halves.append(
            [
                bench.space.gradient(
                    lambda b: answer_loss(bench.problem.model, b), [data.rows(part)]
                )
                .double()
                .numpy()
                for part in (order[:16], order[16:])
            ]
        )

    def cosine(g: np.ndarray, h: np.ndarray) -> float:
        return float(g @ h / np.linalg.norm(g) / np.linalg.norm(h))

    (a, b), (c, d) = halves
    assert found.first[0, 1] == pytest.approx(cosine(a, c), abs=1e-5)
    assert found.second[0, 1] == pytest.approx(cosine(b, d), abs=1e-5)
    assert list(found.within) == pytest.approx([cosine(a, b), cosine(c, d)], abs=1e-5)


def test_with_lora_cosines_are_of_what_gradients_do_to_the_weights(speaking: Problem) -> None:
    made = make_bench(LORA, 0, experiment.demand(LORA), silent)
    found = task_cosines(made, ("colour", "town"))
    assert list(found) == ["weights", "factors"]
    assert found["weights"].second[0, 1] != found["factors"].second[0, 1]


def test_a_pair_that_is_not_known_is_refused(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Problem.score
    monkeypatch.setattr(
        Problem,
        "score",
        lambda self, name, task: 0.0 if task == "swap" else score(self, name, task),
    )
    with pytest.raises(
        LoclinError, match=r"expected a score of at least .* on swap before the damage, found 0.00"
    ):
        experiment.run_one(TINY, 0, silent)


def test_both_tasks_are_destroyed_and_the_others_kept(bench: Bench[Config]) -> None:
    with bench.space.restored():
        bench.space.write(damage(bench, "copy", "swap"))
        scores = {task: bench.score(task) for task in bench.problem.tasks}
    assert scores.pop("copy") <= 0.05
    assert scores.pop("swap") <= 0.05
    assert np.mean(list(scores.values())) > 0.5


def test_a_run_compares_every_schedule_on_every_pair(part: Part) -> None:
    rows = list(part.rows)
    for pair in ("agreeing", "copy+swap", "all"):
        here = [r for r in rows if r.quantity == "worst_score" and r.context["pair"] == pair]
        assert [r.context["schedule"] for r in here] == list(NAMES)
        assert all(r.value is not None and 0 <= r.value <= 1 for r in here)
    for name in NAMES:
        (over,) = by_run(rows, "worst_score", schedule=name, pair="all")
        each = [
            by_run(rows, "worst_score", schedule=name, pair=p)[0] for p in ("agreeing", "copy+swap")
        ]
        assert over == pytest.approx(np.mean(each))
        assert by_run(rows, "evaluations", schedule=name, pair="all") == [8]
    first = [r.value for r in rows if r.quantity == "first_score"]
    assert len(first) == 4
    assert max(v for v in first if v is not None) <= 0.05 + 1 / 16
    assert {r.context["point"] for r in rows if r.quantity == "pair_cosine"} == {
        "pretrained",
        "damaged",
    }
    assert "time for one gradient" in part.notes[-1]


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    assert list(experiment.run_one(TINY, 0, silent).rows) == list(part.rows)


def test_overlap_and_cosine_are_those_of_the_dense_ways(bench: Bench[Config]) -> None:
    contest = experiment.contest_of(bench, "copy+swap", ("copy", "swap"), "adamw")
    rows = list(apart_rows(bench, contest))
    paths = [
        contest.specialist("copy"),
        contest.specialist("swap"),
        contest.specialist("copy", order="again"),
    ]
    mine, other, again = (p.path.updates.numpy() for p in paths)  # type: ignore[union-attr]
    for between, theirs in (("A and B", other), ("A and A again", again)):
        q, _ = np.linalg.qr(theirs[:2].T.astype(np.float64))
        (overlap,) = by_run(rows, "overlap", between=between)
        assert overlap == pytest.approx(
            np.mean([dense_capture(mine[:2], column) for column in q.T]), rel=1e-4
        )
        d, e = mine.sum(0).astype(np.float64), theirs.sum(0).astype(np.float64)
        (cosine,) = by_run(rows, "displacement_cosine", between=between)
        assert cosine == pytest.approx(d @ e / np.linalg.norm(d) / np.linalg.norm(e), rel=1e-4)
    (null,) = {r.null for r in rows if r.quantity == "overlap"}
    assert null == 2 / bench.space.dimension


def test_lora_specialists_are_compared_in_both_spaces(speaking: Problem) -> None:
    made = make_bench(LORA, 0, experiment.demand(LORA), silent)
    contest = experiment.contest_of(made, "colour+town", ("colour", "town"), "adamw")
    rows = list(apart_rows(made, contest))
    cosines = {
        space: by_run(rows, "displacement_cosine", between="A and B", space=space)[0]
        for space in ("weights", "factors")
    }
    assert cosines["weights"] != cosines["factors"]
    start, factors = contest.start, made.factors
    assert factors is not None
    ends = torch.stack([contest.specialist(task).end - start for task in ("colour", "town")])
    gram = low_rank_gramian(list(factors.chords(start, ends)))
    assert cosines["weights"] == pytest.approx(
        gram[0, 1] / np.sqrt(gram[0, 0] * gram[1, 1]), rel=1e-3
    )


def test_the_page_says_what_was_found(part: Part) -> None:
    rows = [*part.rows, *summaries(part.rows)]
    sections = page.sections(rows, dataclasses.asdict(TINY))
    said = " ".join(line for s in sections for line in (s.title, s.question, *s.sees))
    cells = [cell for s in sections for t in s.tables for row in t.rows for cell in row]
    assert [s.title for s in sections] == [
        "Which schedule leaves both tasks known, AdamW?",
        "How do they get there, AdamW?",
        "Do the gradients conflict, AdamW?",
        "What do specialists share, AdamW?",
    ]
    assert set(NAMES) <= set(cells)
    assert "copy+swap" in said
    assert "nan" not in said
    assert all("<svg" in f.svg for s in sections for f in s.figures)
    names = [f.name for s in sections for f in s.figures]
    assert len(set(names)) == len(names)


# The rule: planted worlds, six runs, three pairs each.

CONFIG = Config(seeds=6, schedules=(*SIMULTANEOUS, *SEQUENTIAL))
NULL_DRAWS, DRAWS = 200, 60


def planted(gap: float, *, odd: float = 0.0, scatter: float = 0.05, start: float = 0.0) -> World:
    """Worst-task scores of runs with a true gap between simultaneous and sequential schedules, one
    schedule `odd` below the others.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        common = 0.9 + 0.05 * rng.standard_normal()
        rows = [
            Row(
                quantity="first_worst_score",
                value=start,
                context={"run": run, "pair": "all", "optimiser": "adamw"},
            ),
        ]
        for name in (*SIMULTANEOUS, *SEQUENTIAL):
            # the odd one lowers the mean of seven by a seventh, which the others make up for
            true = -gap if name in SEQUENTIAL else (odd / 7 - odd * (name == "equal decrease"))
            for pair in (*CONFIG.pairs, "all"):
                value = (
                    common
                    + true
                    + scatter * rng.standard_normal() / (3**0.5 if pair == "all" else 1)
                )
                here = {"run": run, "pair": pair, "schedule": name, "optimiser": "adamw"}
                rows.append(Row(quantity="worst_score", value=value, context=here))
                rows += [
                    Row(quantity="score", value=value, context={**here, "role": role})
                    for role in "AB"
                ]
        return rows

    return world


def rule(rows: list[Row]) -> Claim:
    return claims.sequential_brittle(CONFIG, rows, "adamw")


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
    (claim,) = claims.decide(replace(CONFIG, schedules=names), [])
    assert claim.verdict == "not run"


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    found = settings(profile)
    assert len({config.entry for config in found}) == len(found)
    for config in found:
        assert config.checked().seeds >= (3 if profile == "smoke" else 5)
        assert set(config.named) >= {*SIMULTANEOUS, *SEQUENTIAL, *MERGED}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"task": "swap"},
            r"expected pairs of tasks, found --task swap: name them by --pairs A\+B",
        ),
        ({"pairs": ()}, r"expected different pairs, found \[\]"),
        (
            {"pairs": ("swap",)},
            r"expected agreeing, neutral, conflicting or two tasks such as copy\+swap, found "
            r"'swap'",
        ),
        ({"pairs": ("swap+swap",)}, r"found 'swap\+swap': change --pairs"),
        ({"optimisers": ()}, r"expected adamw, sgd or both, found \[\]"),
        ({"k": 25}, "expected k of at most 24, the updates of a specialist, found 25: lower --k"),
        ({"adamw_lr": 0.0}, "expected a learning rate above 0"),
        ({"schedules": ("nonsense",)}, "found 'nonsense': change --schedules"),
        ({"evaluations": 4}, "raise --evaluations"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], text: str) -> None:
    with pytest.raises(LoclinError, match=text):
        replace(Config(), **change).checked()

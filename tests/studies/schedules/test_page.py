"""The page: sections, figures and tables, and that it recommends what the record holds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from loclin.report.section import Section
from loclin.run.rows import Part, Row, estimated, summaries
from loclin.run.runner import Session
from loclin.studies.schedules import claims, page
from loclin.studies.schedules.measure import measure
from loclin.studies.schedules.recommend import MARGIN
from loclin.studies.schedules.settings import SchedulesSettings
from tests.studies.schedules.small import NAMES, TINY, own


def whole(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Row]:
    """The rows as the record holds them: infinite bounds are none."""
    concluded = claims.conclude(settings, rows)
    every = [*rows, *summaries(rows), *concluded]
    open_ended = (r.low is not None and not np.isfinite(r.low) for r in every)
    return [
        replace(r, low=None, high=None) if wide else r
        for r, wide in zip(every, open_ended, strict=True)
    ]


def sections(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Section]:
    return page.sections(rows, dataclasses.asdict(settings))


def lines(found: Sequence[Section]) -> str:
    return " ".join(line for s in found for line in (s.title, s.question, *s.sees))


def test_every_figure_and_schedule_of_pairs_is_there(part: Part) -> None:
    found = sections(TINY, whole(TINY, part.rows))
    assert len(found) == 5
    assert "less the lowest simultaneous schedule" in lines(found).lower()
    assert not any(s.brief for s in found)
    table, strengths = (t for s in found for t in s.tables)
    assert [row[:2] for row in strengths.rows] == [["replay", s] for s in ("0.1", "0.25", "0.5")]
    assert {row[0] for row in table.rows} == set(NAMES)
    assert "worst task, agreeing" in table.header
    assert "copy+swap" in lines(found)
    assert "nan" not in lines(found)
    figures = [f for s in found for f in s.figures]
    assert all("<svg" in f.svg for f in figures)
    assert [f.name.removeprefix("schedules-").removesuffix("-adamw") for f in figures] == [
        "ranking",
        "kinds",
        "orders",
        "curves-simultaneous",
        "curves-sequential",
        "tasks-agreeing",
        "tasks-copy-swap",
        "cosines",
        "line-loss",
        "line-score",
    ]


def test_a_grid_that_is_best_at_its_end_is_named(part: Part) -> None:
    rows = whole(TINY, part.rows)
    for best, named in ((0.1, True), (0.25, False), (0.5, True)):
        planted = [
            replace(r, value=float(r.context["strength"] == best))
            if r.quantity == "strength_worst_score"
            else r
            for r in rows
        ]
        sentence = f"Replay is best at the end of its grid ({best}): beyond it may be a better"
        assert (sentence in lines(sections(TINY, planted))) == named


@pytest.fixture(scope="module")
def users(folder: dict[str, str], files: tuple[str, str]) -> tuple[SchedulesSettings, list[Row]]:
    settings = own(folder["qwen2"], files, seeds=1, schedules=("raw sum", "sequential"))
    return settings, whole(settings, measure(settings, 0, Session()).rows)


def test_one_run_of_a_user_says_what_it_cannot(users: tuple[SchedulesSettings, list[Row]]) -> None:
    settings, rows = users
    found = sections(settings, rows)
    assert "One run has no interval" in lines(found)
    assert "nan" not in lines(found)
    assert "inf" not in lines(found[:1])
    names = [f.name for s in found for f in s.figures]
    assert len(set(names)) == len(names)


def test_the_terminal_is_shown_the_ranking_of_a_users_tasks(
    users: tuple[SchedulesSettings, list[Row]],
) -> None:
    settings, rows = users
    (brief,) = (s for s in sections(settings, rows) if s.brief)
    (table,) = brief.tables
    assert {"A", "B"} <= set(table.header)
    assert [table.header[i] for i in table.brief][:2] == ["schedule", "worst task"]
    assert table.chosen in {"raw sum", "sequential", None}


def test_what_is_recommended_is_what_the_record_says(
    users: tuple[SchedulesSettings, list[Row]],
) -> None:
    settings, rows = users
    here = {"pair": "all", "optimiser": "adamw"}
    kept = [
        r for r in rows if r.quantity not in ("recommended", "less_recommended", "best_validated")
    ]
    best = Row(quantity="best_validated", value=0.5, context={**here, "schedule": "raw sum"})
    taken = {**here, "schedule": "sequential"}
    row = Row(
        quantity="recommended", value=-0.01, low=-0.03, high=0.01, null=-MARGIN, context=taken
    )
    (first, *_) = sections(settings, [*kept, best, row])
    assert first.tables[0].chosen == "sequential"
    assert first.follows[0].startswith("Recommended: sequential, whose worst task goes from ")
    assert "less than 0.05 worse than the best on validation examples, raw sum" in first.follows[0]
    none = estimated("recommended", None, {**here, "schedule": None}, p=0.4)
    (first, *_) = sections(settings, [*kept, best, none])
    assert first.tables[0].chosen is None
    assert first.follows[0].startswith("No recommendation: not even raw sum is shown to teach")
    assert "--adamw-lr" in first.follows[0]

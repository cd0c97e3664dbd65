"""What a model knows is a table of its own, and no study sees its rows."""

from dataclasses import replace

from loclin.models import Problem
from loclin.models.zero_shot import MOST
from loclin.run.rows import Row, summaries
from loclin.studies.known import known
from loclin.studies.known_page import section, with_known
from tests.models.test_zero_shot import turned
from tests.studies.test_known import OWN


def test_the_section_is_a_table_of_the_first_run(speaking: Problem) -> None:
    rows = [r for run in (0, 1) for r in known(turned(speaking, "town"), OWN, run).rows]
    (found,) = section([*rows, *summaries(rows)])
    assert found.brief
    assert found.sees == ["Not known without teaching: town."]
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["colour", "town"]
    assert [row[-1] for row in table.rows] == ["yes", "no"]
    assert all(row[-2] == str(MOST) and "[" in row[1] for row in table.rows)
    (alone,) = section(known(speaking, OWN).rows)
    assert len(alone.tables[0].rows) == 2


def test_there_is_none_where_nothing_was_asked(speaking: Problem) -> None:
    own = replace(OWN, model="statements-small", data=())
    assert section(known(speaking, own).rows) == []


def test_a_study_sees_none_of_these_rows(speaking: Problem) -> None:
    own = Row(quantity="score", value=1.0)
    seen: list[Row] = []
    sections = with_known(lambda rows, _, skip: seen.extend(rows) or [])
    assert len(sections([*known(speaking, OWN).rows, own], {})) == 1
    assert seen == [own]

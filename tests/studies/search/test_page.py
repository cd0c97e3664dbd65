"""The page and the table of one search, from planted rows: what they show must be what the rows
hold.
"""

from loclin.run.rows import Row
from loclin.studies.search.page import sections
from tests.studies.search.test_sentences import FORECAST, OBSERVED, SETTINGS, flat, row


def test_the_page_shows_what_the_rows_hold() -> None:
    found, gained, expected = sections([*FORECAST, *OBSERVED], SETTINGS)
    assert [d.name for d in found.figures] == ["arms", "gap"]
    assert [d.name for d in gained.figures] == ["ladder", "gains-0", "gains-1", "passes"]
    (table,) = found.tables
    assert list(table.rows[2]) == [
        "vote of the best",
        "0.6 [0.55, 0.65]",
        "0.1 [0.06, 0.14]",
        "0.012",
        "5",
        "some candidates",
    ]
    assert len(table.header) == 6
    assert list(table.brief) == [0, 1, 2, 3, 4]
    assert found.brief
    assert gained.brief
    assert not expected.brief  # it was printed before the search began
    assert "of the 0.2 that it gained where it was selected, 0.06 is left" in flat(found.sees)
    assert "the law says 0.05" in flat(gained.sees)
    assert "‖g‖ = 2 over 5000 coordinates" in flat(expected.sees)


def test_without_a_forecast_and_with_several_searches_there_is_less() -> None:
    law = ("best_of_n", "gain_density")
    bare = [Row(**{**vars(r), "null": None}) if r.quantity in law else r for r in OBSERVED]
    found, gained = sections(bare, SETTINGS | {"seeds": 4})
    assert len(found.tables[0].header) == len(found.tables[0].rows[0]) == 5
    assert len(gained.figures) == 4


def test_numbers_of_single_searches_do_not_reach_the_page() -> None:
    strange = row("score", 0.99, search=3, arm="one alone", deployable=True, passes=1, note="")
    found, *_ = sections([strange, *OBSERVED], SETTINGS)
    assert "one alone" not in str(found.tables[0].rows)

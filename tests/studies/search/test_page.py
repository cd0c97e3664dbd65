"""Page, table and sentences of one search, from planted rows: they say what the rows hold."""

from dataclasses import replace
from typing import Any

from loclin.run.rows import Row
from loclin.studies.search.page import (
    follow_lines,
    forecast_lines,
    observed_lines,
    sections,
    winner_lines,
)


def row(
    quantity: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    **more: Any,
) -> Row:
    null = more.pop("null", None)
    return Row(quantity=quantity, value=value, low=low, high=high, null=null, context=more)


SETTINGS: dict[str, Any] = {
    "study": "search",
    "n": 100,
    "sigma": [0.001, 0.01],
    "seeds": 1,
    "select": 128,
    "validate": 64,
    "test": 256,
}


FORECAST = [
    row("gradient", 2.0),
    row("true_gradient", 1.5),
    row("dimension", 5000.0),
    row("loss", 1.25, 1.1, 1.4),
    row("trace", 300.0, 250.0, 350.0),
    row("frobenius", 40.0, 30.0, 50.0),
    row("best_sigma", 0.0167),
    row("edge", 0.0707),
    *(row("relative_sigma", 7 * s, sigma=s) for s in (0.001, 0.01)),
    *(
        row("expected_gain", 5 * s, 4 * s, 6 * s, sigma=s, n=100, on="select")
        for s in (0.001, 0.01)
    ),
    *(row("expected_gain", 3 * s, 2 * s, 4 * s, sigma=s, n=100, on="other") for s in (0.001, 0.01)),
    row("needed", 400.0, sigma=0.001, target_gain=0.004),
    row("needed", None, sigma=0.01, target_gain=0.004),
]


def arms() -> list[Row]:
    made = []
    for arm, score, gain in (
        ("the model itself", 0.5, 0.0),
        ("best candidate", 0.56, 0.06),
        ("vote of the best", 0.6, 0.1),
    ):
        here: dict[str, Any] = {
            "arm": arm,
            "passes": 5,
            "deployable": True,
            "note": "some candidates",
        }
        made += [
            row("score", score, score - 0.05, score + 0.05, **here),
            row("gain", gain, gain - 0.04, gain + 0.04, **here),
        ]
        made.append(row("p_holm", None if arm == "the model itself" else 0.012, **here))
    return made


OBSERVED = [
    *arms(),
    *(
        row("winner", v, split=s, null=0.5)
        for s, v in (("select", 0.7), ("validate", 0.6), ("test", 0.56))
    ),
    *(
        row("best_of_n", 4 * s * n / 100, sigma=s, n=n, null=5 * s * n / 100)
        for s in (0.001, 0.01)
        for n in (1, 10, 100)
    ),
    *(row("pass_at", n / 200, sigma=s, n=n) for s in (0.001, 0.01) for n in (1, 10, 100)),
    *(
        row("gain_density", 1.0 + g, sigma=s, gain=g / 100, null=1.0)
        for s in (0.001, 0.01)
        for g in range(5)
    ),
    row("not_finite", 0.0, sigma=0.001),
    row("not_finite", 3.0, sigma=0.01),
    row("realised_sigma", 0.4, sigma=0.001, tensor="h.0.ln.weight", size=4096),
    row("realised_sigma", 1.2, sigma=0.001, tensor="h.0.ln.bias", size=16),
]


def flat(lines: Any) -> str:
    return " ".join(" ".join(lines).split())


def test_a_forecast_is_told_in_sentences() -> None:
    text = flat(forecast_lines(FORECAST, SETTINGS))
    for words in (
        "‖g‖ = 2 over 5000 coordinates (1.5 of it shared with other examples), tr H = 300 [250, "
        "350], ‖H‖_F = 40 [30, 50]; ",
        "loss 1.25 nats a token.",
        "σ = 0.001 (‖δ‖/‖θ‖ = 0.007): the best of 100 is expected to gain 0.005 [0.004, 0.006] "
        "nats a token on the select examples, "
        "0.003 [0.002, 0.004] on others.",
        "A gain of 0.004 on other examples takes 400 candidates there.",
        "A gain of 0.004 on other examples takes no number up to a million there.",
        "The best σ for 100 candidates is 0.0167 by the law.",
        "The law holds well below σ = 0.0707, where curvature's fluctuation is as large as the "
        "slope.",
    ):
        assert words in text
    assert list(forecast_lines([], SETTINGS)) == []
    beyond = flat(forecast_lines(FORECAST, SETTINGS | {"sigma": [0.001, 0.05]}))
    assert "of no use at σ = 0.05, which is too near or beyond" in beyond
    flatless = [r for r in FORECAST if r.quantity != "best_sigma"]
    assert "Curvature sets no best σ here" in flat(forecast_lines(flatless, SETTINGS))


def test_what_a_search_would_gain_follows_and_whether_its_best_is_worth_keeping() -> None:
    text = flat(follow_lines([*FORECAST, *OBSERVED], SETTINGS))
    for words in (
        "N = 100 is expected to gain 0.03 [0.02, 0.04] nats a token on examples like these, at the "
        "best of the σ tried, 0.01.",
        "answers 0.06 [0.02, 0.1] more of the test examples right than the model itself: shown to "
        "be better (p 0.012 after Holm).",
    ):
        assert words in text
    chance = [replace(r, value=0.4) if r.quantity == "p_holm" else r for r in OBSERVED]
    assert "not shown to be better (p 0.4 after Holm)" in flat(follow_lines(chance, SETTINGS))


def test_what_was_promised_and_what_was_left_is_told() -> None:
    text = flat(winner_lines(OBSERVED, SETTINGS))
    assert "Best candidate: some candidates." in text
    assert "scores 0.7 on select (the model itself 0.5), 0.6 on validate" in text
    assert "of the 0.2 that it gained where it was selected, 0.06 is left" in text
    assert "over the 256 test examples" in text
    several = flat(winner_lines(OBSERVED, SETTINGS | {"seeds": 4}))
    assert "over 4 searches with other candidates on the same splits" in several
    assert "some candidates" not in several


def test_what_was_observed_is_told_beside_the_law() -> None:
    text = flat(observed_lines(OBSERVED, SETTINGS))
    assert (
        "σ = 0.01: on the select examples the best of 100 candidates by loss gained 0.04 nats a "
        "token; the law says 0.05." in text
    )
    assert "σ = 0.01: 3 candidates have a loss that is not finite" in text
    # 16 numbers are 1.2 by chance
    assert "changes the noise of 1 tensors; h.0.ln.weight moves by 0.4 σ" in text
    assert "pass@100 on the select examples is 0.5" in text
    bare = [Row(**{**vars(r), "null": None}) for r in OBSERVED]
    assert "the law says" not in flat(observed_lines(bare, SETTINGS))


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

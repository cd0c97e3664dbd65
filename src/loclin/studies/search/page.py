"""One search: what was found and what it is worth on test, and whether the law predicted it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_dots, select
from loclin.report.section import Missing, Section, Table, made
from loclin.report.words import estimate_text, p_text
from loclin.run.rows import Row
from loclin.search.splits import PARTS
from loclin.studies.search import names
from loclin.studies.search.sentences import (
    follow_lines,
    forecast_lines,
    observed_lines,
    winner_lines,
)


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The page's sections in reading order."""
    shown = [r for r in rows if "search" not in r.context]
    return made([partial(part, shown, settings) for part in (_found, _gained, _expected)], skip)


def _found(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    return Section(
        title="What was found?",
        question=f"{settings['n']} candidates at each σ, selected on {settings['select']} "
        f"examples, chosen on {settings['validate']}, and asked once about {settings['test']} that "
        "had no part in it.",
        figures=[*_scores(rows), *_promise(rows)],
        sees=list(winner_lines(rows, settings)),
        follows=list(follow_lines(rows, settings)),
        tables=[_table(rows, single=settings["seeds"] == 1)],
        brief=True,
    )


def _gained(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    figures = (*_ladder(rows, settings), *_histograms(rows, settings), *_passes(rows, settings))
    return Section(
        title="What did the candidates gain?",
        question="Gains on the select examples, beside the law of a normal, locally linear loss: "
        "σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1)ĝᵀHĝ].",
        figures=figures,
        sees=list(observed_lines(rows, settings)),
        brief=True,
    )


def _expected(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Section]:
    lines = list(forecast_lines(rows, settings))
    if lines:
        yield Section(
            title="What did the law expect?",
            question="Gradient and curvature before the first candidate, and what follows from "
            "them.",
            figures=[],
            sees=lines,
        )


def _table(rows: Sequence[Row], *, single: bool) -> Table:
    """Every way to answer, and which candidates it is of where there is one search."""
    lines = []
    for score in select(rows, names.SCORE):
        arm = score.context["arm"]
        gain, p = (select(rows, q, arm=arm) for q in (names.GAIN, names.P_HOLM))
        gained = estimate_text(gain[0].value, gain[0].low, gain[0].high) if gain else "–"
        lines.append(
            [
                arm if score.context["deployable"] else f"{arm} (oracle)",
                estimate_text(score.value, score.low, score.high),
                "–" if arm == names.MODEL else gained,
                p_text(p[0].value) if p else "–",
                str(score.context.get("passes", "–")),
                *([str(score.context["note"])] if single else []),
            ]
        )
    header = ["way", "score", "gain", "p (Holm)", "forward passes"]
    return Table(
        caption="Ways to answer the test examples, beside the model itself.",
        header=[*header, *(["of what"] if single else [])],
        rows=lines,
        brief=range(len(header)),
    )


def _scores(rows: Sequence[Row]) -> Iterator[Drawing]:
    scores = [(r.context["arm"], r) for r in select(rows, names.SCORE)]
    if scores:
        yield draw_dots(
            "arms",
            "Score on the test examples of every way to answer, with its interval.",
            {"score on test": scores},
            label="share answered right",
            title="Ways to answer",
        )


def _promise(rows: Sequence[Row]) -> Iterator[Drawing]:
    found = [(s, r) for s in PARTS for r in select(rows, names.WINNER, split=s)]
    own = [(s, replace(r, value=r.null, low=None, high=None)) for s, r in found]
    if found:
        yield draw_dots(
            "gap",
            "Score of the best candidate and of the model itself on the examples that selected, "
            "chose and tested it.",
            {names.BEST: found, names.MODEL: own},
            label="share answered right",
            title="What selection promises",
        )


def _ladder(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Drawing]:
    yield from _over_n(
        "ladder",
        "Gain of the best of n candidates on the select examples, over all draws of n; dashed: "
        "the law.",
        [c for s, colour in _coloured(settings) for c in _beside(rows, s, colour)],
        labels=("n", "gain, nats a token"),
        title="Best of n; dashed: the law",
    )


def _beside(rows: Sequence[Row], sigma: float, colour: str) -> Iterator[Curve]:
    """The best of n at one σ, and the law's."""
    found = select(rows, names.BEST_OF_N, sigma=sigma)
    yield Curve(rows=found, label=f"σ = {sigma:g}", colour=colour)
    yield Curve(
        rows=_nulls(found), label=f"σ = {sigma:g}, law", colour=colour, dashed=True, band=False
    )


def _passes(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Drawing]:
    yield from _over_n(
        "passes",
        "Share of the select examples that at least one of n candidates answers right: an oracle.",
        [
            Curve(rows=select(rows, names.PASS_AT, sigma=s), label=f"σ = {s:g}", colour=colour)
            for s, colour in _coloured(settings)
        ],
        labels=("n", "pass@n"),
        title="pass@n (oracle)",
    )


def _over_n(
    name: str, caption: str, curves: Sequence[Curve], *, labels: tuple[str, str], title: str
) -> Iterator[Drawing]:
    if any(c.rows for c in curves):
        yield draw_curves(
            name, caption, curves, over="n", labels=labels, title=title, limits=None, decades=True
        )


def _histograms(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Drawing]:
    for i, (sigma, colour) in enumerate(_coloured(settings)):
        found = select(rows, names.GAIN_DENSITY, sigma=sigma)
        if found:
            yield draw_curves(
                f"gains-{i}",
                f"Density of the candidates' gains at σ = {sigma:g}; dashed: the normal law that "
                "gradient and curvature predict.",
                [
                    Curve(rows=found, label="candidates", colour=colour),
                    Curve(rows=_nulls(found), label="law", colour="#555555", dashed=True),
                ],
                over="gain",
                labels=("gain, nats a token", "density"),
                title=f"Gains at σ = {sigma:g}",
                limits=None,
                log=(False, False),
                decades=True,
            )


def _coloured(settings: Mapping[str, Any]) -> list[tuple[float, str]]:
    return [(s, PALETTE[i % len(PALETTE)]) for i, s in enumerate(settings["sigma"])]


def _nulls(rows: Sequence[Row]) -> list[Row]:
    """What the law says in the place of what was observed."""
    return [replace(r, value=r.null) for r in rows if r.null is not None]

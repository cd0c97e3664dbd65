"""One search: what was found and what it is worth on test, and whether the law predicted it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, curve, draw_curves, draw_dots, select
from loclin.report.section import Section, Table
from loclin.report.words import estimate_text, p_text
from loclin.run.rows import Row
from loclin.search.splits import PARTS
from loclin.studies.search import names
from loclin.studies.search.sentences import forecast_lines, observed_lines, winner_lines


def sections(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    shown = [r for r in rows if "search" not in r.context]
    return [_found(shown, settings), _gained(shown, settings), *_expected(shown, settings)]


def _found(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    return Section(
        title="What was found?",
        question=f"{settings['n']} candidates at each σ, selected on {settings['select']} "
        f"examples, chosen on {settings['validate']}, and asked once about {settings['test']} that "
        "had no part in it.",
        figures=list(_scores(rows)),
        sees=list(winner_lines(rows, settings)),
        tables=[_table(rows, single=settings["seeds"] == 1)],
        brief=True,
    )


def _gained(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    return Section(
        title="What did the candidates gain?",
        question="Gains on the select examples, beside the law of a normal, locally linear loss: "
        "σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1)ĝᵀHĝ].",
        figures=list(_gains(rows, settings)),
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
    for score in select(rows, "score"):
        arm = score.context["arm"]
        gain, p = (select(rows, q, arm=arm) for q in ("gain", "p_holm"))
        gained = estimate_text(gain[0].value, gain[0].low, gain[0].high) if gain else "–"
        lines.append(
            [
                arm,
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
    scores = [(r.context["arm"], r) for r in select(rows, "score")]
    if scores:
        yield draw_dots(
            "arms",
            "Score on the test examples of every way to answer, with its interval.",
            {"score on test": scores},
            label="share answered right",
            title="Ways to answer",
        )
    found = [(s, r) for s in PARTS for r in select(rows, "winner", split=s)]
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


def _gains(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Drawing]:
    """What was gained over n, and the candidates' gains at every σ, beside the law."""
    sigmas = [(i, s, i % len(PALETTE)) for i, s in enumerate(settings["sigma"])]

    def drawn(name: str, caption: str, found: list[Curve], **axes: Any) -> Iterator[Drawing]:
        curves = [c for measured in found for c in _beside(measured)]
        if curves:
            yield draw_curves(name, caption, curves, limits=None, decades=True, **axes)

    def over_n(quantity: str) -> list[Curve]:
        return [curve(rows, quantity, f"σ = {s:g}", colour, sigma=s) for _, s, colour in sigmas]

    yield from drawn(
        "ladder",
        "Gain of the best of n candidates on the select examples, over all draws of n; dashed: "
        "the law.",
        over_n("best_of_n"),
        over="n",
        labels=("n", "gain, nats a token"),
        title="Best of n; dashed: the law",
    )
    for i, s, colour in sigmas:
        yield from drawn(
            f"gains-{i}",
            f"Density of the candidates' gains at σ = {s:g}; dashed: the normal law that gradient "
            "and curvature predict.",
            [curve(rows, "gain_density", "candidates", colour, sigma=s)],
            over="gain",
            labels=("gain, nats a token", "density"),
            title=f"Gains at σ = {s:g}",
            log=(False, False),
        )
    yield from drawn(
        "passes",
        "Share of the select examples that at least one of n candidates answers right: an oracle.",
        over_n("pass_at"),
        over="n",
        labels=("n", "pass@n"),
        title="pass@n (oracle)",
    )


def _beside(found: Curve) -> list[Curve]:
    """A curve, and dashed what the law says in its place; nothing where there is none."""
    law = [replace(r, value=r.null) for r in found.rows if r.null is not None]
    dashed = replace(found, rows=law, label=f"{found.label}, law", dashed=True, band=False)
    return [c for c in (found, dashed) if c.rows]

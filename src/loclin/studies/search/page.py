"""One search: what was found and what it is worth on test, and whether the law predicted it; on a
page, and in sentences for the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, curve, draw_curves, draw_dots, select
from loclin.report.section import Missing, Section, Table, made, number_of
from loclin.report.words import estimate_text, number, p_text
from loclin.run.rows import Row
from loclin.search.splits import PARTS
from loclin.studies.search import names
from loclin.studies.verdict import LEVEL

Settings = Mapping[str, Any]


def sections(rows: Sequence[Row], settings: Settings, skip: Missing = ()) -> list[Section]:
    """The page's sections in reading order."""
    shown = [r for r in rows if "search" not in r.context]
    return made([partial(part, shown, settings) for part in (_found, _gained, _expected)], skip)


def _found(rows: Sequence[Row], settings: Settings) -> Section:
    return Section(
        title="What was found?",
        question=f"{settings['n']} candidates at each σ, selected on {settings['select']} "
        f"examples, chosen on {settings['validate']}, and asked once about {settings['test']} that "
        "had no part in it.",
        figures=list(_scores(rows)),
        sees=list(winner_lines(rows, settings)),
        follows=list(follow_lines(rows, settings)),
        tables=[_table(rows, single=settings["seeds"] == 1)],
        brief=True,
    )


def _gained(rows: Sequence[Row], settings: Settings) -> Section:
    return Section(
        title="What did the candidates gain?",
        question="Gains on the select examples, beside the law of a normal, locally linear loss: "
        "σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1)ĝᵀHĝ].",
        figures=list(_gains(rows, settings)),
        sees=list(observed_lines(rows, settings)),
        brief=True,
    )


def _expected(rows: Sequence[Row], settings: Settings) -> Iterator[Section]:
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


def _gains(rows: Sequence[Row], settings: Settings) -> Iterator[Drawing]:
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


def follow_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """What a search of N would gain, and whether its best candidate is worth keeping."""
    expected = [r for r in rows if r.quantity == "expected_gain" and r.value is not None]
    if others := [r for r in expected if r.context["on"] == "other"]:
        best = max(others, key=lambda r: r.value or 0.0)
        none = "" if (best.value or 0.0) > 0 else "no more than "
        yield (
            f"A search of N = {settings['n']} is expected to gain {none}{_estimate([best])} nats a "
            f"token on examples like these, at the best of the σ tried, {best.context['sigma']:g}."
        )
    gain = select(rows, "gain", arm=names.BEST)
    holm = next((r.value for r in select(rows, "p_holm", arm=names.BEST)), None)
    if gain:
        shown = holm is not None and holm < LEVEL
        yield (
            f"The best candidate answers {_estimate(gain)} more of the test examples right than "
            f"the model itself: {'' if shown else 'not '}shown to be better"
            f"{'' if holm is None else f' (p {p_text(holm)} after Holm)'}."
        )


def forecast_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """What the law expects of the search; nothing where there is no forecast."""
    if not select(rows, "gradient"):
        return
    trace, norm = select(rows, "trace"), select(rows, "frobenius")
    curvature = f", tr H = {_estimate(trace)}, ‖H‖_F = {_estimate(norm)}" if trace and norm else ""
    yield (
        f"At the model's own weights ‖g‖ = {number_of(rows, 'gradient')} over "
        f"{number_of(rows, 'dimension')} coordinates ({number_of(rows, 'true_gradient')} of it "
        f"shared with other examples){curvature}; loss {number_of(rows, 'loss')} nats a token."
    )
    for sigma in settings["sigma"]:
        here, other = (
            _estimate(select(rows, "expected_gain", sigma=sigma, on=on))
            for on in ("select", "other")
        )
        length = number_of(rows, "relative_sigma", sigma=sigma)
        yield (
            f"σ = {sigma:g} (‖δ‖/‖θ‖ = {length}): the best of {settings['n']} is expected to gain "
            f"{here} nats a token on the select examples, {other} on others."
        )
        for row in (r for r in rows if r.quantity == "needed" and r.context["sigma"] == sigma):
            many = "no number up to a million"
            price = many if row.value is None else f"{row.value:.0f} candidates"
            gain = f"{row.context['target_gain']:g}"
            yield f"  A gain of {gain} on other examples takes {price} there."
    yield from _limits(rows, settings)


def _limits(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """The best σ, and where the law ends."""
    best, edge = select(rows, "best_sigma"), select(rows, "edge")
    if best:
        yield f"The best σ for {settings['n']} candidates is {number(best[0].value)} by the law."
    elif select(rows, "trace"):
        yield "Curvature sets no best σ here (tr H is not above 0): the law's edge is the limit."
    if edge and edge[0].value:
        beyond = ", ".join(f"{s:g}" for s in settings["sigma"] if s > edge[0].value / 3)
        warning = f"; of no use at σ = {beyond}, which is too near or beyond" if beyond else ""
        yield (
            f"The law holds well below σ = {number(edge[0].value)}, where curvature's fluctuation "
            f"is as large as the slope{warning}."
        )


def winner_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """What selection promised, and what was left of it on test."""
    parts = {s: found[0] for s in PARTS if (found := select(rows, "winner", split=s))}
    if len(parts) == len(PARTS):
        scores = ", ".join(
            f"{number(r.value)} on {s} (the model itself {number(r.null)})"
            for s, r in parts.items()
        )
        promised, left = (number(_difference(parts[s])) for s in ("select", "test"))
        yield (
            f"The best candidate scores {scores}: of the {promised} that it gained where it was "
            f"selected, {left} is left on examples that had no part in choosing it."
        )
    if settings["seeds"] > 1:
        yield (
            f"Intervals are 95 % over {settings['seeds']} searches with other candidates on the "
            "same splits."
        )
        return
    for row in select(rows, "score"):
        if row.context["note"] and row.context["arm"] != names.MODEL:
            yield f"{row.context['arm'][0].upper()}{row.context['arm'][1:]}: {row.context['note']}."
    yield (
        f"Intervals are 95 % over the {settings['test']} test examples, paired where they are of a "
        "gain; they say nothing of another search: give --seeds for that."
    )


def observed_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """Observed best of N, beside the law, at every σ; what was lost, what rounding did."""
    n = settings["n"]
    for sigma in settings["sigma"]:
        found = select(rows, "best_of_n", sigma=sigma, n=n)
        lost = select(rows, "not_finite", sigma=sigma)
        if found:
            law = f"; the law says {number(found[0].null)}" if found[0].null is not None else ""
            yield (
                f"σ = {sigma:g}: on the select examples the best of {n} candidates by loss gained "
                f"{_estimate(found)} nats a token{law}."
            )
        if lost and lost[0].value:
            yield (
                f"σ = {sigma:g}: {number(lost[0].value)} candidates have a loss that is not "
                "finite; they are never selected."
            )
        moved = [r for r in select(rows, "realised_sigma", sigma=sigma) if _rounded(r)]
        if moved:
            least = min(moved, key=lambda r: r.value or 0.0)
            yield (
                f"σ = {sigma:g}: rounding to the weights' dtype changes the noise of {len(moved)} "
                f"tensors; {least.context['tensor']} moves by {number(least.value)} σ."
            )
        passed = select(rows, "pass_at", sigma=sigma, n=n)
        if passed:
            yield (
                f"σ = {sigma:g}: pass@{n} on the select examples is {_estimate(passed)}, the share "
                "that at least one candidate answers right: an oracle, since no one can choose so."
            )


def _rounded(row: Row) -> bool:
    """Whether a tensor moves otherwise than chance explains: n normal numbers have a root mean
    square of 1 ± 1/√(2n).
    """
    chance = 4 / math.sqrt(2 * row.context["size"])
    return row.value is not None and abs(row.value - 1) > 0.05 + chance


def _difference(row: Row) -> float | None:
    return None if row.value is None or row.null is None else row.value - row.null


def _estimate(found: Sequence[Row]) -> str:
    """With its interval where there is one."""
    if not found:
        return "not defined"
    row = found[0]
    return number(row.value) if row.low is None else estimate_text(row.value, row.low, row.high)

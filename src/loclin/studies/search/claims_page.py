"""The claims about random search on a page: the law against real searches, where to search, and
what the best are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loclin.report.figures import (
    PALETTE,
    Curve,
    Drawing,
    curve,
    draw_curves,
    draw_dots,
    draw_points,
    select,
)
from loclin.report.section import Missing, Section, made, null_of, number_of, text_of
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row
from loclin.studies.names import own
from loclin.studies.search import names

GAIN = "gain (nats per answer token)"
SIGMA = "σ over the reference σ"
WHOLE: dict[str, Any] = {"space": names.ALL, "noise": names.GAUSSIAN}
DASHED: dict[str, Any] = {"dashed": True, "band": False}
Settings = Mapping[str, Any]
Entries = list[tuple[str, Row]]


def sections(rows: Sequence[Row], settings: Settings, skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    parts = (partial(p, rows, settings) for p in (_law, _dimension, _candidates, _density, _table))
    return made(parts, skip)


def _law(rows: Sequence[Row], settings: Settings) -> Section:
    figures, lines = list[Drawing](), list[str]()
    for point, symbol in names.POINTS.items():
        figures += [_over_sigma(rows, settings, point), _over_n(rows, settings, point)]
        text, edge = partial(text_of, rows, point=point), select(rows, "edge", point=point)
        lines += [
            f"At {symbol} (loss {text('loss')}, score {text('score')}; ‖g‖ "
            f"{text('gradient_norm')}, tr H {text('trace')}, ‖H‖_F {text('frobenius_norm')}): over "
            f"the σ of the law's domain {_errors(rows, point, names.OVER_SIZES)}. Up to the "
            f"reference σ, beyond the domain, {_errors(rows, point, names.OVER_ALL)}.",
            f"At {symbol} the gain leaves the straight line σ‖g‖m_N by {settings['edge']:.0%} at "
            f"{text('edge')} of the reference σ in the {edge[0].n if edge else 0} models where it "
            f"does on the grid; the law puts that at {text('edge_law')} there. The reference σ is "
            f"{text('reference_sigma')}, the σ at which the curvature's fluctuation reaches the "
            f"slope {text('validity_edge')} times that.",
        ]
    return Section(
        title="Does random search gain what the law says, and more than its slope?",
        question="Candidates θ + σz are scored by the same examples that gradient and Hessian are "
        "measured on: what is left between law and gain is chance, or beyond the second order. "
        "Each gain of a best of N is a mean over all draws of N from the candidates, less what "
        "their luck along the gradient adds, σ‖g‖(b_N − m_N), b_N the same mean of −ĝᵀz: its "
        "expectation is 0, and most of the chance goes with it. Errors are shares of the slope's "
        f"gain σ‖g‖m_N, N = {settings['n']}.",
        figures=figures,
        sees=lines,
    )


def _errors(rows: Sequence[Row], point: str, over: str) -> str:
    """How far the three predictions are off, and the law with its sign."""
    of = partial(text_of, rows, point=point, over=over)
    return (
        f"the law is off by {of('law_error')}, the slope alone by {of('linear_error')}, the "
        f"second-order form by {of('second_order_error')}; gain/law − 1 is {of('law_bias')}"
    )


def _with_law(rows: Sequence[Row], label: str, colour: int, **context: Any) -> list[Curve]:
    """What was gained, and what the law says of it, dashed."""
    by_law = curve(rows, "gain_law", f"{label}, law", colour, **DASHED, **context)
    return [curve(rows, "gain", label, colour, **context), by_law]


def _over_sigma(rows: Sequence[Row], settings: Settings, point: str) -> Drawing:
    n, here, symbol = settings["n"], {"point": point, **WHOLE}, names.POINTS[point]
    largest = max(n for n in settings["best_of"] if n <= settings["others"])
    ns = zip(sorted({1, n, largest}), (8, 0, 1), strict=False)
    curves = [c for m, i in ns for c in _with_law(rows, f"best of {m}", i, best_of=m, **here)]
    shown = [r for measured in curves[::2] for r in measured.rows]
    most = max((r.value or 0.0 if r.high is None else r.high for r in shown), default=0.0)
    label = f"best of {n}, second order"
    curves.append(curve(rows, "gain_second_order", label, 4, best_of=n, **DASHED, **here))
    return draw_curves(
        f"gain-sigma-{point}",
        f"Decrease of the loss by the best of N over σ at {symbol}, with the law, and its "
        f"second-order form for N = {n}; mean over models with 95 % band.",
        curves,
        over="size",
        labels=(SIGMA, GAIN),
        title=f"Gain over σ at {symbol}",
        limits=(-most, 1.3 * most) if most > 0 else None,
    )


def _over_n(rows: Sequence[Row], settings: Settings, point: str) -> Drawing:
    rows = [r for r in rows if r.context.get("best_of", 0) > 1]
    curves = [
        c
        for size, i in ((settings["size"], 0), (1.0, 1))
        for c in _with_law(
            rows, f"σ = {size:g} of the reference", i, point=point, size=size, **WHOLE
        )
    ]
    return draw_curves(
        f"gain-n-{point}",
        f"Decrease of the loss by the best of N over N at {names.POINTS[point]}, with the law.",
        curves,
        over="best_of",
        labels=("candidates N", GAIN),
        title=f"Gain over N at {names.POINTS[point]}",
        limits=None,
    )


def _dimension(rows: Sequence[Row], settings: Settings) -> Section:
    here: dict[str, Any] = {"point": "damaged", "size": settings["size"], "space": names.ALL}
    spaces = [
        (f"{space}, D = {number_of(rows, 'dimension', space=space)}", r)
        for r in select(rows, "gain_ratio", point="damaged", at=names.DOMAIN_END)
        for space in [r.context["space"]]
    ]
    kinds = [
        (noise, r)
        for noise in (names.GAUSSIAN, *settings["noises"])
        for r in select(rows, "gain_ratio", noise=noise, **here)
    ]
    folded = select(rows, "gain_ratio_folded")
    kinds += [("tied, law with the folded gradient", r) for r in folded]
    figures = [
        draw_dots(
            f"law-{name}",
            f"Gain of the best of {settings['n']} over the law's at θ_D, by {name}; 1: as the law "
            "says. Mean over models with 95 % interval.",
            {"gain over the law's": entries},
            label="gain / law",
            title=f"Law by {name}",
            log=True,
        )
        for name, entries in (("space", spaces), ("kind of noise", kinds))
        if entries
    ]
    lines = [
        f"Over the kinds of spaces (all, largest tensor, {settings['k']} dimensions), each at the "
        f"end of the law's domain, {_errors(rows, 'damaged', names.OVER_SPACES)}.",
        f"Gain over the law's: {_texts(spaces)}.",
        f"By kind of noise: {_texts(kinds)}.",
    ]
    if folded:
        lines.append(
            "Tied noise repeats one stream on every tensor: the gradient that counts is folded "
            f"over the tensors, of {text_of(rows, 'folded_gradient')} times the gradient's norm."
        )
    return Section(
        title="Whatever the dimension, whatever the noise?",
        question="The law holds ‖P_S g‖ and the curvature in the space that is searched, not "
        "its dimension. Each space is searched at a σ of its own, the largest of the law's domain "
        "(a quarter of √2‖g‖/‖H‖_F, or σ* below it), where the law has most to say beyond its "
        "slope; all coordinates at the largest σ of the sweep in the domain.",
        figures=figures,
        sees=lines,
    )


def _texts(entries: Entries) -> str:
    return "; ".join(f"{name} {estimate_text(r.value, r.low, r.high)}" for name, r in entries)


def _candidates(rows: Sequence[Row], settings: Settings) -> Section:
    lines, curves = list[str](), list[Curve]()
    for colour, (point, symbol) in enumerate(names.POINTS.items()):
        loss, score = ({"point": point, "of": of, "size": 1.0} for of in ("loss", "score"))
        r = partial(text_of, rows, "alignment_correlation")
        overlap = partial(text_of, rows, "overlap_correlation", plane=names.STATIC)
        lines.append(
            f"At {symbol} the gain in loss is correlated with alignment to r = {r(**loss)} (the "
            "law predicts r² = σ²‖g‖²/(σ²‖g‖² + σ⁴‖H‖_F²/2 + τ²), τ = 0 on the same examples, "
            f"times the cosine of both gradients: r = "
            f"{null_of(rows, 'alignment_correlation', **loss)}), with overlap to r = "
            f"{overlap(**loss)}; the gain in score to {r(**score)} and {overlap(**score)}."
        )
        found = curve(rows, "alignment_correlation", symbol, colour, point=point, of="loss")
        law = [replace(row, value=row.null, low=None, high=None) for row in found.rows]
        curves += [found, replace(found, rows=law, label=f"{symbol}, law", **DASHED)]
    figure = draw_curves(
        "alignment-sigma",
        "Correlation of gain and alignment over the candidates of each σ, with what the law "
        "predicts.",
        curves,
        over="size",
        labels=(SIGMA, "r"),
        title="Does alignment predict gain?",
    )
    at_reference = {"point": "damaged", "of": "loss", "size": 1.0}
    planes = "; ".join(
        f"{_texts([(row.context['plane'], row)])} (curvature predicts {number(row.null)})"
        for row in select(rows, "overlap_correlation", **at_reference)
    )
    lines += [
        "Overlap is even in δ and the linear gain is odd: to first order no plane's overlap goes "
        "with gain, not even that of a plane that holds the gradient, so that this decides "
        f"nothing. At θ_D, by plane: {planes}.",
        "The recovery gradient is of other examples than those that score; its cosine with theirs "
        f"is {text_of(rows, 'gradient_cosine', point='damaged')} at θ_D.",
    ]
    return Section(
        title="What goes with a candidate's gain?",
        question=f"{settings['candidates']} candidates a run at one σ: how far each is aligned "
        "with −g, and how much of it lies in the plane of task vectors and principal gradients at "
        f"θ₀, k = {settings['k']}. Correlations are within runs, means and intervals over models, "
        "on Fisher's scale.",
        figures=[*_scatters(rows), figure],
        sees=lines,
    )


def _scatters(rows: Sequence[Row]) -> list[Drawing]:
    """Gain against alignment and overlap."""
    recovery = "cos(δ, −g), g of recovery examples"
    scatters = (
        ("alignment", recovery, "(a) Alignment with the recovery gradient"),
        ("overlap", "‖Qᵀδ‖²/‖δ‖², Q the static plane", "(b) Overlap with the static plane"),
    )
    return [
        draw_points(
            f"candidates-{name}",
            f"Decrease of the loss against {label}, every candidate at the reference σ at θ_D, one "
            "colour a run.",
            _pairs(rows, f"candidate_{name}", "candidate_gain", "candidate", "run {run}"),
            labels=(label, GAIN),
            title=title,
            fitted=True,
        )
        for name, label, title in scatters
    ]


def _pairs(
    rows: Sequence[Row], x: str, y: str, key: str, group: str
) -> dict[str, list[tuple[float, float]]]:
    """(x, y) of every run, matched by a context key, where both are defined; in groups named after
    their context.
    """
    found: dict[tuple[Any, Any], dict[str, Row]] = {}
    for row in rows:
        if row.quantity in (x, y) and "run" in row.context and row.value is not None:
            found.setdefault((row.context["run"], row.context[key]), {})[row.quantity] = row
    groups: dict[str, list[tuple[float, float]]] = {}
    for pair in found.values():
        if len(pair) == 2:
            points = groups.setdefault(group.format(**pair[x].context), [])
            points.append((pair[x].value or 0.0, pair[y].value or 0.0))
    return groups


def _density(rows: Sequence[Row], settings: Settings) -> Section:
    lifts = sorted(select(rows, "signal_lift"), key=lambda r: -(r.value or 0.0))
    spaces: Entries = [(r.context["space"], r) for r in lifts]
    scatters = (
        ("best-gain", "own best σ", "the law's gain", "best_gain_law", "best_gain"),
        ("density-gain", "equal radius", "R·m_N·√density", "equal_radius_law", "equal_radius_gain"),
    )
    figures = [
        draw_points(
            name,
            f"Gain of the best of {settings['n']} in each subspace at {where}, against {label}; "
            "every run.",
            {space: groups.get(space, []) for space, _ in spaces},
            labels=(label, GAIN),
            title=f"Predicted and found, {where}",
            log=True,
            diagonal=True,
        )
        for name, where, label, law, gain in scatters
        for groups in [_pairs(rows, law, gain, "space", "{space}")]
    ]
    lift = draw_dots(
        "density-lift",
        f"Gradient energy per dimension of subspaces of k = {settings['k']} at θ_D over that "
        "of a random one: capture·D/k.",
        {"signal density over chance": spaces},
        label="lift",
        title="Signal density",
        log=True,
    )
    lines = [
        f"{space}: at its own best σ the best of {settings['n']} gains {text('best_gain')} "
        f"(law {text('best_gain_law')}); lift {text('signal_lift')}; at equal radius "
        f"{text('equal_radius_gain')} (density says {text('equal_radius_law')})."
        for space, _ in spaces
        for text in [partial(text_of, rows, space=space)]
    ]
    return Section(
        title="Which subspace to search in?",
        question="Each at its own best σ gains ‖P_S g‖²m_N²/(2 tr(P_S H)), says the law; where "
        "that σ lies beyond √2‖g‖/‖H‖_F, or tr(P_S H) is not above 0, it is searched at that edge, "
        "and held against the law there. That decides. At equal small radius the gain is "
        "R·m_N·√(‖P_S g‖²/k) to first order, for any smooth loss: this stands beside it. The bases "
        "are made from examples that score no candidate.",
        figures=[*figures, lift],
        sees=lines,
    )


def _table(rows: Sequence[Row], settings: Settings) -> Section:
    several, text = settings["votes"][1:], partial(text_of, rows)
    any_of = select(rows, "table_score", arm=names.ORACLE)
    tested = sorted(r.context["votes"] for r in any_of)
    conditions = [
        (names.MODEL, names.MODEL, 1),
        ("the best candidate", names.VOTE, 1),
        *((f"vote of the {k} best", names.VOTE, k) for k in several),
        *((f"vote of {k} drawn without selection", names.RANDOM_VOTE, k) for k in several),
        *((f"vote of {k} samples of the model", names.SAMPLED_VOTE, k) for k in several),
        *((f"any of {k} (oracle)", names.ORACLE, k) for k in tested[-2:]),
    ]
    scores: Entries = [
        (label, row)
        for label, name, k in conditions
        for row in select(rows, "table_score", arm=name, votes=k)
    ]
    share = "share of test examples right"
    figures = [
        draw_dots(
            "table",
            "Share of test examples answered right at θ_H by every condition; mean over models "
            "with 95 % interval.",
            {"share right on test": scores},
            label=share,
            title="What the best are worth",
        ),
        draw_curves(
            "pass-at",
            "Share of test examples that at least one of N candidates solves: an oracle.",
            [Curve(rows=any_of, label="any of N (oracle)", colour=PALETTE[4])],
            over="votes",
            labels=("candidates N", share),
            title="pass@N at θ_H",
        ),
    ]
    lines = [
        f"{_texts(scores)}.",
        f"The σ with the best of {settings['n']} on the select examples is {text('table_size')} of "
        "the reference. There the best candidate gains "
        f"{text('winner_gain', split='select', of='score')} in score on the examples that selected "
        f"it and {text('winner_gain', split='test', of='score')} on test: the difference is what "
        "selection promises too much.",
        "An answer by vote of k takes k forward passes; of the best candidate and of the model, "
        "one. The oracle needs to know which answer is right and cannot be deployed.",
    ]
    return Section(
        title="Do ensembles help?",
        question="σ and candidates are chosen by the select examples alone; every condition "
        "answers the same test examples, which chose nothing. The model itself, sampled as often, "
        "and as many candidates without selection are the controls.",
        figures=figures,
        sees=lines,
        follows=[_worth(rows, settings)] if own(settings) else (),
    )


def _worth(rows: Sequence[Row], settings: Settings) -> str:
    return (  # on examples that had no part in it
        f"A search of N = {settings['n']} at θ_H, at {text_of(rows, 'table_size')} of the "
        f"reference σ, gains {text_of(rows, 'winner_gain', split='test', of='score')} on test."
    )

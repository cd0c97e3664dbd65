"""The search study on a page: the law of random search against real searches, where to search, and
what the best are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loclin.record import Row
from loclin.report.figures import (
    PALETTE,
    Curve,
    Drawing,
    draw_curves,
    draw_dots,
    draw_points,
    select,
)
from loclin.report.section import Section, text_of
from loclin.report.words import estimate_text, number

POINTS = {"damaged": "θ_D", "halfway": "θ_H"}
STATIC = "static plane"
ALL: dict[str, Any] = {"space": "all", "noise": "gaussian"}


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    return [
        _law(rows, config),
        _dimension(rows, config),
        _candidates(rows, config),
        _density(rows, config),
        _table(rows, config),
    ]


def _law(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines, n = [], [], config["n"]
    for point, symbol in POINTS.items():
        figures += [_over_sigma(rows, config, point, symbol), _over_n(rows, config, point, symbol)]
        here = {"point": point}
        runs = [
            r
            for r in rows
            if r.quantity == "in_domain" and r.context["point"] == point and "run" in r.context
        ]
        inside = sum(1 for r in runs if r.value == 1)
        lines += [
            f"At {symbol} (loss {text_of(rows, 'loss', **here)}, score "
            f"{text_of(rows, 'score', **here)}; ‖g‖ "
            f"{text_of(rows, 'gradient_norm', **here)}, tr H {text_of(rows, 'trace', **here)}, "
            "‖H‖_F "
            f"{text_of(rows, 'frobenius_norm', **here)}): the best of {n} gains within "
            f"{text_of(rows, 'law_error', over='sizes', **here)} of the law, relatively, over the "
            f"σ of its domain ({inside} of "
            f"{len(runs)} searches); signed {text_of(rows, 'law_bias', over='sizes', **here)}. An "
            "exact law would be off by "
            f"{_null(rows, 'law_error', over='sizes', **here)} by chance; the slope alone is off "
            "by "
            f"{text_of(rows, 'linear_error', over='sizes', **here)}.",
            f"At {symbol} the gain leaves the straight line σ‖g‖m_N by {config['edge']:.0%} at "
            f"{text_of(rows, 'edge', **here)} of the "
            f"reference σ in the {_runs(rows, 'edge', **here)} runs where it does on the grid; the "
            "law puts that at "
            f"{text_of(rows, 'edge_law', **here)} there. The reference σ is "
            f"{text_of(rows, 'reference_sigma', **here)}, the σ at which the curvature's "
            "fluctuation reaches the slope "
            f"{text_of(rows, 'validity_edge', **here)} times that.",
        ]
    return Section(
        title="Does random search gain what the law says?",
        question="Candidates θ + σz are scored by the same examples that gradient and Hessian are "
        "measured on: what is left between "
        "law and gain is chance, or beyond the second order. Each gain of a best of N is a mean "
        "over all draws of N from the "
        "candidates.",
        figures=figures,
        sees=lines,
    )


def _null(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    found = select(rows, quantity, **context)
    return number(found[0].null) if found else "–"


def _runs(rows: Sequence[Row], quantity: str, **context: Any) -> int:
    """In how many runs a quantity is defined."""
    found = select(rows, quantity, **context)
    return found[0].n if found else 0


def _over_sigma(rows: Sequence[Row], config: Mapping[str, Any], point: str, symbol: str) -> Drawing:
    shown = sorted({1, config["n"], max(n for n in config["best_of"] if n <= config["others"])})
    curves, most = [], 0.0
    for n, colour in zip(shown, (8, 0, 1), strict=False):
        measured = select(rows, "gain", point=point, best_of=n, **ALL)
        most = max([most, *(r.high if r.high is not None else r.value or 0.0 for r in measured)])
        curves += [
            Curve(rows=measured, label=f"best of {n}", colour=PALETTE[colour]),
            Curve(
                rows=select(rows, "gain_law", point=point, best_of=n, **ALL),
                label=f"best of {n}, law",
                colour=PALETTE[colour],
                dashed=True,
                band=False,
            ),
        ]
    return draw_curves(
        f"gain-sigma-{point}",
        f"Decrease of the loss by the best of N over σ at {symbol}, with the law; mean over runs "
        "with 95 % band.",
        curves,
        over="size",
        labels=("σ over the reference σ", "gain (nats per answer token)"),
        title=f"Gain over σ at {symbol}",
        limits=(-most, 1.3 * most) if most > 0 else None,
    )


def _over_n(rows: Sequence[Row], config: Mapping[str, Any], point: str, symbol: str) -> Drawing:
    curves = []
    for size, colour in ((config["size"], 0), (1.0, 1)):
        for quantity, name, dashed in (("gain", "measured", False), ("gain_law", "law", True)):
            curves.append(
                Curve(
                    rows=[
                        r
                        for r in select(rows, quantity, point=point, size=size, **ALL)
                        if r.context["best_of"] > 1
                    ],
                    label=f"σ = {size:g} of the reference, {name}",
                    colour=PALETTE[colour],
                    dashed=dashed,
                    band=not dashed,
                )
            )
    return draw_curves(
        f"gain-n-{point}",
        f"Decrease of the loss by the best of N over N at {symbol}, with the law.",
        curves,
        over="best_of",
        labels=("candidates N", "gain (nats per answer token)"),
        title=f"Gain over N at {symbol}",
        limits=None,
    )


def _dimension(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    n, size = config["n"], config["size"]
    here: dict[str, Any] = {"point": "damaged", "noise": "gaussian", "size": size}
    ratios = {r.context["space"]: r for r in select(rows, "gain_ratio", **here)}
    dimensions = {r.context["space"]: r.value for r in select(rows, "dimension")}
    spaces = [(f"{s}, D = {number(dimensions.get(s))}", r) for s, r in ratios.items()]
    kinds = [
        (noise, row)
        for noise in ("gaussian", *config["noises"])
        for row in select(rows, "gain_ratio", point="damaged", space="all", noise=noise, size=size)
    ]
    folded = select(rows, "gain_ratio_folded")
    kinds += [("tied, law with the folded gradient", row) for row in folded]
    figures = [
        draw_dots(
            f"law-{name}",
            f"Gain of the best of {n} over the law's at θ_D, by {name}; 1: as the law says. Mean "
            "over runs with 95 % interval.",
            {"gain over the law's": entries},
            label="gain / law",
            title=f"Law by {name}",
            log=True,
        )
        for name, entries in (("space", spaces), ("kind of noise", kinds))
        if entries
    ]
    lines = [
        f"Over the kinds of spaces (all, largest tensor, {config['k']} dimensions) the best of {n} "
        "gains within "
        f"{text_of(rows, 'law_error', over='spaces', point='damaged')} of the law, "
        f"signed {text_of(rows, 'law_bias', over='spaces', point='damaged')}; by chance an exact "
        "law would be off by "
        f"{_null(rows, 'law_error', over='spaces', point='damaged')}.",
        "Gain over the law's: "
        + "; ".join(
            f"{label} {text_of(rows, 'gain_ratio', **{**here, 'space': s})}"
            for s, (label, _) in zip(ratios, spaces, strict=True)
        )
        + ".",
        "By kind of noise: "
        + "; ".join(
            f"{noise} "
            f"{text_of(rows, 'gain_ratio', point='damaged', space='all', noise=noise, size=size)}"
            for noise in ("gaussian", *config["noises"])
        )
        + ".",
    ]
    if folded:
        lines.append(
            "Tied noise repeats one stream on every tensor: the gradient that counts is folded "
            "over the tensors, of "
            f"{text_of(rows, 'folded_gradient')} times the gradient's norm; against that, search "
            "gains "
            f"{text_of(rows, 'gain_ratio_folded')} times what the law says."
        )
    return Section(
        title="Whatever the dimension, whatever the noise?",
        question="The law holds ‖P_S g‖ and the curvature in the space that is searched, and not "
        "its dimension. Each space is "
        "searched at a σ of its own, well within the law's domain.",
        figures=figures,
        sees=lines,
    )


def _candidates(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures = [
        draw_points(
            f"candidates-{name}",
            f"Decrease of the loss against {label}, every candidate at the reference σ at θ_D, one "
            "colour a run.",
            _pairs(rows, f"candidate_{name}", "candidate_gain"),
            labels=(label, "gain (nats per answer token)"),
            title=title,
            fitted=True,
        )
        for name, label, title in (
            (
                "alignment",
                "cos(δ, −g), g of recovery examples",
                "(a) Alignment with the recovery gradient",
            ),
            ("overlap", "‖Qᵀδ‖²/‖δ‖², Q the static plane", "(b) Overlap with the static plane"),
        )
    ]
    figures.append(_alignment_over_sigma(rows))
    lines = []
    for point, symbol in POINTS.items():
        loss, score = ({"point": point, "of": of, "size": 1.0} for of in ("loss", "score"))
        lines.append(
            f"At {symbol} the gain in loss is correlated with alignment to r = "
            f"{text_of(rows, 'alignment_correlation', **loss)} (the "
            f"law predicts {_null(rows, 'alignment_correlation', **loss)}), with overlap to r = "
            f"{text_of(rows, 'overlap_correlation', plane=STATIC, **loss)}; the gain in score to "
            f"{text_of(rows, 'alignment_correlation', **score)} and "
            f"{text_of(rows, 'overlap_correlation', plane=STATIC, **score)}."
        )
    planes = {
        r.context["plane"]: r
        for r in select(rows, "overlap_correlation", point="damaged", of="loss", size=1.0)
    }
    told = "; ".join(
        f"{name} {estimate_text(r.value, r.low, r.high)} (curvature predicts {number(r.null)})"
        for name, r in planes.items()
    )
    lines.append(
        "Overlap is even in δ and the linear gain is odd: to first order no plane's overlap goes "
        "with gain, not even that of a plane "
        f"that holds the gradient. At θ_D, by plane: {told}."
    )
    lines.append(
        "The recovery gradient is of other examples than those that score; its cosine with theirs "
        "is "
        f"{text_of(rows, 'gradient_cosine', point='damaged')} at θ_D."
    )
    return Section(
        title="What goes with a candidate's gain?",
        question=f"{config['candidates']} candidates a run at one σ: how far each is aligned with "
        "−g, and how much of it lies in the "
        f"plane of task vectors and principal gradients at θ₀, k = {config['k']}. Correlations are "
        "within runs, means and intervals "
        "over runs.",
        figures=figures,
        sees=lines,
    )


def _alignment_over_sigma(rows: Sequence[Row]) -> Drawing:
    curves = []
    for (point, symbol), colour in zip(POINTS.items(), (0, 1), strict=True):
        found = select(rows, "alignment_correlation", point=point, of="loss")
        expected = [replace(r, value=r.null, low=None, high=None) for r in found]
        curves.append(Curve(rows=found, label=symbol, colour=PALETTE[colour]))
        curves.append(
            Curve(
                rows=expected,
                label=f"{symbol}, law",
                colour=PALETTE[colour],
                dashed=True,
                band=False,
            )
        )
    return draw_curves(
        "alignment-sigma",
        "Correlation of gain and alignment over the candidates of each σ, with what the law "
        "predicts.",
        curves,
        over="size",
        labels=("σ over the reference σ", "r"),
        title="Does alignment predict gain?",
    )


def _pairs(
    rows: Sequence[Row], x: str, y: str, key: str = "candidate"
) -> dict[str, list[tuple[float, float]]]:
    """(x, y) of every run, matched by a context key, where both are defined."""
    found: dict[int, dict[Any, dict[str, float]]] = {}
    for row in rows:
        if row.quantity in (x, y) and "run" in row.context and row.value is not None:
            found.setdefault(row.context["run"], {}).setdefault(row.context[key], {})[
                row.quantity
            ] = row.value
    return {
        f"run {run}": [(pair[x], pair[y]) for pair in of.values() if len(pair) == 2]
        for run, of in sorted(found.items())
    }


def _density(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    lifts = sorted(select(rows, "signal_lift"), key=lambda r: -(r.value or 0.0))
    points: dict[str, list[tuple[float, float]]] = {}
    for space in (r.context["space"] for r in lifts):
        chosen = [r for r in rows if r.context.get("space") == space]
        pairs = _pairs(chosen, "equal_radius_law", "equal_radius_gain", "space")
        points[space] = [pair for of in pairs.values() for pair in of]
    figures = [
        draw_dots(
            "density-lift",
            f"Gradient energy per dimension of subspaces of k = {config['k']} at θ_D over that of "
            "a random one: capture·D/k.",
            {"signal density over chance": [(r.context["space"], r) for r in lifts]},
            label="lift",
            title="Signal density",
            log=True,
        ),
        draw_points(
            "density-gain",
            f"Gain of the best of {config['n']} in each subspace at equal radius, against "
            "R·m_N·√density; every run.",
            points,
            labels=("R·m_N·√density", "gain (nats per answer token)"),
            title="Predicted and found, equal radius",
            log=True,
            diagonal=True,
        ),
    ]
    lines = [
        f"{r.context['space']}: lift {text_of(rows, 'signal_lift', space=r.context['space'])}; at "
        "equal radius the best of "
        f"{config['n']} gains {text_of(rows, 'equal_radius_gain', space=r.context['space'])} "
        "(density says "
        f"{text_of(rows, 'equal_radius_law', space=r.context['space'])}), at its own reference σ "
        f"{text_of(rows, 'best_gain', space=r.context['space'])} (law "
        f"{text_of(rows, 'best_gain_law', space=r.context['space'])})."
        for r in lifts
    ]
    return Section(
        title="Which subspace to search in?",
        question="At equal radius the linear gain is R·m_N·√(‖P_S g‖²/k). The bases are made from "
        "examples that score no candidate. "
        "The radius is small enough to be within the law's domain in every one of them.",
        figures=figures,
        sees=lines,
    )


def _table(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    votes = config["votes"]
    arms = [("the model", "the model", 1), ("the best candidate", "vote of the best", 1)]
    arms += [(f"vote of the {k} best", "vote of the best", k) for k in votes[1:]]
    arms += [
        (f"vote of {k} drawn without selection", "vote without selection", k) for k in votes[1:]
    ]
    arms += [(f"vote of {k} samples of the model", "vote of samples", k) for k in votes[1:]]
    oracle = "any of them (oracle)"
    asked = sorted({r.context["votes"] for r in select(rows, "table_score", arm=oracle)})
    arms += [(f"any of {k} (oracle)", oracle, k) for k in asked[-2:]]
    entries = [
        (label, row)
        for label, arm, k in arms
        for row in select(rows, "table_score", arm=arm, votes=k)
    ]
    figure = draw_dots(
        "table",
        "Share of test examples answered right at θ_H by every arm; mean over runs with 95 % "
        "interval.",
        {"share right on test": entries},
        label="share of test examples right",
        title="What the best are worth",
    )
    ladder = draw_curves(
        "pass-at",
        "Share of test examples that at least one of N candidates solves: an oracle.",
        [
            Curve(
                rows=select(rows, "table_score", arm=oracle),
                label="any of N (oracle)",
                colour=PALETTE[4],
            )
        ],
        over="votes",
        labels=("candidates N", "share of test examples right"),
        title="pass@N at θ_H",
    )
    lines = [
        "; ".join(
            f"{label} {text_of(rows, 'table_score', arm=arm, votes=k)}" for label, arm, k in arms
        )
        + ".",
        f"The σ with the best of {config['n']} on the select examples is "
        f"{text_of(rows, 'table_size')} of the reference. There the "
        f"best candidate gains {text_of(rows, 'winner_gain', split='select', of='score')} in score "
        "on the examples that selected "
        f"it and {text_of(rows, 'winner_gain', split='test', of='score')} on test: the difference "
        "is what selection promises too "
        "much.",
        "An answer by vote of k takes k forward passes; of the best candidate and of the model, "
        "one. The oracle needs to know which "
        "answer is right and cannot be deployed.",
    ]
    return Section(
        title="Do ensembles help?",
        question="σ and candidates are chosen by the select examples alone; every arm answers the "
        "same test examples, which chose "
        "nothing. The model itself, sampled as often, and as many candidates without selection are "
        "the controls.",
        figures=[figure, ladder],
        sees=lines,
    )

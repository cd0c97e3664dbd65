"""The Krylov study on a page: how much of the way back gradient and Hessian at θ_D foresee, until
when, and what curvature there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loclin.report.figures import Curve, curve, draw_curves, select
from loclin.report.section import Missing, Section, made, null_of, text_of
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row, by_run
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV, LEGEND, PRECONDITIONED
from loclin.studies.names import MINIBATCH, OPTIMISERS, PREFIX, RANDOM, deciding_space, two_spaces

COLOURS = (0, 5, 1, 4, 2, 8)  # of the bases in `LEGEND`
FACTORS = "All of this is measured in ΔW. In the factors A and B the Krylov space holds: "


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    parts = [
        lambda: _captures(rows, settings),
        lambda: _until(rows, settings["k"]),
        lambda: _model(rows, settings["k"]),
        lambda: _curvature(rows, settings),
    ]
    return made(parts, skip)


def _curves(rows: Sequence[Row], quantity: str, **context: Any) -> list[Curve]:
    """Every basis; those drawn for scale are broken."""
    return [
        curve(rows, quantity, label, c, basis=name, dashed=name in (PREFIX, RANDOM), **context)
        for (name, label), c in zip(LEGEND.items(), COLOURS, strict=True)
    ]


def _captures(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    k, figures, factors = settings["k"], [], []
    lines: list[str] = []
    for o, label in OPTIMISERS.items():
        of: dict[str, Any] = {"optimiser": o, "of": "displacement", "space": deciding_space(rows)}
        figures.append(
            draw_curves(
                f"krylov-capture-{o}",
                f"Share of the displacement d in bases of size k, {label}, mean over models with "
                "95 % band.",
                _curves(rows, "basis_capture", **of),
                over="k",
                labels=("dimensions k", "capture of d"),
                title=f"How much of the way, {label}",
            )
        )
        lines += _capture_lines(rows, k, label, of)
        of["space"] = "factors"
        factors.append(f"{label} {text_of(rows, 'basis_capture', basis=KRYLOV, k=k, **of)}")
    lines.append(
        f"Gradient and Hessian are those of {settings['curvature_examples']} examples; {k} "
        f"minibatch gradients are those of {k} × {settings['batch']}, each example drawn again "
        "only when all have been."
    )
    if two_spaces(rows):
        lines.append(f"{FACTORS}{'; '.join(factors)}.")
    return Section(
        title="Does the way back lie in the Krylov space?",
        question="Gradient and Hessian at the damaged point, before any step back is taken, make a "
        "space of k dimensions. A high share is generic to smooth descent: what counts is whether "
        "it is more than curvature alone (eigenvectors) and the gradient with its noise alone "
        "(minibatch gradients) hold.",
        figures=figures,
        sees=lines,
    )


def _capture_lines(
    rows: Sequence[Row], k: int, label: str, of: Mapping[str, Any]
) -> tuple[str, str]:
    held = {b: text_of(rows, "basis_capture", basis=b, k=k, **of) for b in LEGEND}
    chance = null_of(rows, "basis_capture", basis=RANDOM, k=k, **of)
    adamw = of["optimiser"] == "adamw"
    later, here = {**of, "of": "future"}, {"optimiser": of["optimiser"], "space": of["space"]}
    more = {
        b: text_of(rows, "capture_excess", over=b, k=k, **here) for b in (EIGENVECTORS, MINIBATCH)
    }
    own = f", AdamW's own space {held[PRECONDITIONED]}" if adamw else ""
    return (
        f"{label}, k = {k}: the Krylov space holds {held[KRYLOV]} of d{own}; as many top "
        f"eigenvectors {held[EIGENVECTORS]}, minibatch gradients {held[MINIBATCH]}, first updates "
        f"{held[PREFIX]} (which are a part of d), random directions {held[RANDOM]} (k/D = "
        f"{chance}). Paired, it holds {more[EIGENVECTORS]} more "
        f"than the eigenvectors and {more[MINIBATCH]} more than the minibatch gradients.",
        f"Of what is still to come after step {k}, the Krylov space holds "
        f"{text_of(rows, 'basis_capture', basis=KRYLOV, k=k, **later)}, the first updates "
        f"{text_of(rows, 'basis_capture', basis=PREFIX, k=k, **later)}.",
    )


def _until(rows: Sequence[Row], k: int) -> Section:
    figures, lines = [], []
    for o, label in OPTIMISERS.items():
        here: dict[str, Any] = {"optimiser": o, "space": deciding_space(rows), "k": k}
        figures.append(
            draw_curves(
                f"krylov-until-{o}",
                f"Share of the displacement after t steps in bases of size {k}, {label}.",
                _curves(rows, "capture_until", **here),
                over="t",
                labels=("recovery step t", "capture of d_t"),
                title=f"Until when, {label}, k = {k}",
            )
        )
        held = select(rows, "capture_until", basis=KRYLOV, **here)
        held.sort(key=lambda r: r.context["t"])
        if held:
            ends = [
                f"{estimate_text(r.value, r.low, r.high)} of the way until t = {r.context['t']}"
                for r in (held[0], held[-1])
            ]
            half = ", ".join(str(r.context["t"]) for r in held if (r.value or 0.0) >= 0.5)
            lines.append(
                f"{label}: the Krylov space holds {' and '.join(ends)}; "
                + (f"half or more at t = {half}." if half else "half at no measured t.")
            )
    return Section(
        title="Until when?",
        question=f"The same {k} dimensions, fixed at θ_D, against the way of the first t steps.",
        figures=figures,
        sees=lines,
    )


def _model(rows: Sequence[Row], k: int) -> Section:
    bound, cosine = "bound 2ηt‖g‖exp(−(k−1)²/2t)/‖d_t‖", "cosine of d_t with the model's"
    left = [
        curve(rows, "left_over", "measured ‖(I−P)d_t‖/‖d_t‖", 0),
        curve(rows, "left_over_bound", bound, 1, dashed=True),
    ]
    descent = [
        curve(rows, "descent_cosine", cosine, 0),
        curve(rows, "descent_length", "‖d_t‖ over the model's", 2),
    ]
    return Section(
        title="Is it the descent of a quadratic?",
        question="Gradient descent on the quadratic model stays within the space while t ≤ k, and "
        "near it somewhat longer.",
        figures=[
            draw_curves(
                "krylov-descent",
                "Cosine of the way of SGD with that of gradient descent on the quadratic model at "
                "θ_D, and the ratio of their lengths.",
                descent,
                over="t",
                labels=("recovery step t", ""),
                title="Against the quadratic model, SGD",
                limits=None,
            ),
            draw_curves(
                "krylov-bound",
                f"What the Krylov space of {k} dimensions leaves of the way after t steps of SGD, "
                "with the bound for stopped descent.",
                left,
                over="t",
                labels=("recovery step t", "share left over"),
                title=f"What {k} dimensions leave, SGD",
                limits=None,
                log=(True, True),
            ),
        ],
        sees=_model_lines(rows, k),
    )


def _model_lines(rows: Sequence[Row], k: int) -> list[str]:
    premise, converged = by_run(rows, "bound_premise"), by_run(rows, "converged_bound")
    known = converged[~np.isnan(converged)].tolist()
    says = f", where at k = {k} it leaves at most {number(max(known))} of d" if known else ""
    lines = [
        "The bound needs a spectrum within [0, 2/η]; as far as Ritz values and the largest "
        f"eigenvalue tell, it was there in {int(premise.sum())} of {len(premise)} "
        "runs. It is about gradient descent on one quadratic: minibatch noise and a changing "
        "Hessian are outside it, so the measured share may lie above.",
        "The bound for a descent that has converged needs H positive definite; no Ritz value was "
        f"negative in {len(known)} of {len(converged)} runs{says or ': it says nothing here'}.",
    ]
    if two_spaces(rows):
        lines.append("This section is about the factors A and B, in which the descent takes place.")
    times = [r.context["t"] for r in select(rows, "descent_cosine")]
    if times:
        cosine, length = (
            text_of(rows, quantity, t=max(times))
            for quantity in ("descent_cosine", "descent_length")
        )
        lines.append(
            f"After {max(times)} steps of SGD the way has a cosine of {cosine} with that of "
            f"gradient descent on the quadratic model of g and H, and {length} times its length."
        )
    return lines


def _curvature(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    k, lowest = settings["k"], by_run(rows, "lowest_ritz_value")
    negative = int((lowest < 0).sum())
    fallback = (
        "Hessian-vector products were made by finite differences of gradients, a fallback that is "
        "not exact."
    )
    figure = draw_curves(
        "krylov-spectrum",
        "The largest Hessian eigenvalues at θ_D and the Ritz values of the Krylov space, in order, "
        "mean over models with 95 % band.",
        [
            curve(rows, "eigenvalue", "largest eigenvalues", 1),
            curve(rows, "ritz_value", "Ritz values of the Krylov space", 0),
        ],
        over="i",
        labels=("i, from the largest", "value"),
        title="Curvature at θ_D",
        limits=None,
        log=(False, False),
    )
    return Section(
        title="What curvature is there?",
        question="Largest eigenvalues of the Hessian of the task's loss at θ_D, and the Ritz "
        "values: the Hessian as the Krylov space sees it.",
        figures=[figure],
        sees=[
            f"Largest eigenvalue {text_of(rows, 'eigenvalue', i=1)}, the {k}th "
            f"{text_of(rows, 'eigenvalue', i=k)}; smallest Ritz value "
            f"{text_of(rows, 'lowest_ritz_value')}, negative in {negative} of {len(lowest)} runs; "
            f"gradient of norm {text_of(rows, 'gradient_norm')}.",
            f"Trace {text_of(rows, 'trace')} and Frobenius norm {text_of(rows, 'frobenius_norm')}, "
            f"each from {settings['probes']} random probes a run (the intervals are over models; "
            "those of single runs, over probes, are in the record).",
            *([fallback] if settings.get("products", "auto") != "auto" else []),
        ],
    )

"""The Krylov study on a page: how much of the way back gradient and Hessian at θ_D foresee, until
when, and what curvature there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, select
from loclin.report.section import OPTIMISERS, Section, deciding_space, text_of, two_spaces
from loclin.report.words import number

#: Every basis, how it is called in a legend, its colour, and whether it is one of few that are
#: drawn broken.
BASES = (
    ("Krylov", "Krylov K_k(H, g)", 0, False),
    ("preconditioned Krylov", "AdamW's own, K_k(M⁻¹H, M⁻¹g)", 5, False),
    ("top eigenvectors", "top Hessian eigenvectors", 1, False),
    ("minibatch gradients", "minibatch gradients at θ_D", 4, False),
    ("prefix", "first k updates", 2, True),
    ("random", "random", 8, True),
)


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    return [
        _captures(rows, config),
        _until(rows, config),
        _model(rows, config),
        _curvature(rows, config),
    ]


def _curves(rows: Sequence[Row], quantity: str, **context: Any) -> list[Curve]:
    return [
        Curve(
            rows=select(rows, quantity, basis=name, **context),
            label=label,
            colour=PALETTE[c],
            dashed=dashed,
        )
        for name, label, c, dashed in BASES
    ]


def _captures(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    k, space, figures, lines = config["k"], deciding_space(rows), [], []
    for optimiser, label in OPTIMISERS.items():
        here: dict[str, Any] = {"optimiser": optimiser, "space": space, "of": "displacement"}
        figures.append(
            draw_curves(
                f"krylov-capture-{optimiser}",
                f"Share of the displacement d in bases of size k, {label}, mean over runs with 95 "
                "% band.",
                _curves(rows, "basis_capture", **here),
                over="k",
                labels=("dimensions k", "capture of d"),
                title=f"How much of the way, {label}",
            )
        )
        chance = select(rows, "basis_capture", basis="random", k=k, **here)
        own = (
            ", AdamW's own space "
            f"{text_of(rows, 'basis_capture', basis='preconditioned Krylov', k=k, **here)}"
            if optimiser == "adamw"
            else ""
        )
        future = {**here, "of": "future"}
        held = {name: text_of(rows, "basis_capture", basis=name, k=k, **here) for name, *_ in BASES}
        lines += [
            f"{label}, k = {k}: the Krylov space holds {held['Krylov']} of d{own}; as many top "
            "eigenvectors "
            f"{held['top eigenvectors']}, minibatch gradients {held['minibatch gradients']}, first "
            f"updates {held['prefix']} (which "
            f"are a part of d), random directions {held['random']} (k/D = "
            f"{number(chance[0].null) if chance else '–'}).",
            f"Of what is still to come after step {k}, the Krylov space holds "
            f"{text_of(rows, 'basis_capture', basis='Krylov', k=k, **future)}, the first updates "
            f"{text_of(rows, 'basis_capture', basis='prefix', k=k, **future)}.",
        ]
    lines.append(
        f"Gradient and Hessian are those of {config['curvature_examples']} examples; {k} minibatch "
        "gradients are those of "
        f"{k} × {config['batch']}, each example drawn again only when all have been."
    )
    if two_spaces(rows):
        factors = "; ".join(
            f"{label} "
            f"{text_of(rows, 'basis_capture', basis='Krylov', k=k, optimiser=o, space='factors', of='displacement')}"
            for o, label in OPTIMISERS.items()
        )
        lines.append(
            "All of this is measured in ΔW. In the factors A and B the Krylov space holds: "
            f"{factors}."
        )
    return Section(
        title="Does the way back lie in the Krylov space?",
        question="Gradient and Hessian at the damaged point, before any step back is taken, make a "
        "space of k dimensions. A high "
        "share is generic to smooth descent: what counts is whether it is more than curvature "
        "alone (eigenvectors) and the "
        "gradient with its noise alone (minibatch gradients) hold.",
        figures=figures,
        sees=lines,
    )


def _until(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    k, space, figures, lines = config["k"], deciding_space(rows), [], []
    for optimiser, label in OPTIMISERS.items():
        here: dict[str, Any] = {"optimiser": optimiser, "space": space, "k": k}
        figures.append(
            draw_curves(
                f"krylov-until-{optimiser}",
                f"Share of the displacement after t steps in bases of size {k}, {label}.",
                _curves(rows, "capture_until", **here),
                over="t",
                labels=("recovery step t", "capture of d_t"),
                title=f"Until when, {label}, k = {k}",
            )
        )
        held = sorted(
            select(rows, "capture_until", basis="Krylov", **here), key=lambda r: r.context["t"]
        )
        most = [r.context["t"] for r in held if (r.value or 0.0) >= 0.5]
        if held:
            first, last = held[0], held[-1]
            texts = [
                text_of(rows, "capture_until", basis="Krylov", t=r.context["t"], **here)
                for r in (first, last)
            ]
            lines.append(
                f"{label}: the Krylov space holds {texts[0]} of the way after {_steps(first)} and "
                f"{texts[1]} after {_steps(last)}; "
                + (
                    f"half or more at t = {', '.join(map(str, most))}."
                    if most
                    else "half at no measured t."
                )
            )
    return Section(
        title="Until when?",
        question=f"The same {k} dimensions, fixed at θ_D, against the way of the first t steps.",
        figures=figures,
        sees=lines,
    )


def _converged(rows: Sequence[Row], k: int) -> str:
    found = [r.value for r in rows if r.quantity == "converged_bound" and "run" in r.context]
    there = [v for v in found if v is not None]
    text = (
        "The bound for a descent that has converged needs H positive definite; no Ritz value was "
        "negative in "
        f"{len(there)} of {len(found)} runs"
    )
    return (
        f"{text}, where at k = {k} it leaves at most {number(max(there))} of d."
        if there
        else f"{text}: it says nothing here."
    )


def _steps(row: Row) -> str:
    t = row.context["t"]
    return f"{t} step" + ("" if t == 1 else "s")


def _model(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    k = config["k"]
    premise = [r.value for r in rows if r.quantity == "bound_premise" and "run" in r.context]
    cosines = sorted(select(rows, "descent_cosine"), key=lambda r: r.context["t"])
    figure = draw_curves(
        "krylov-bound",
        f"What the Krylov space of {k} dimensions leaves of the way after t steps of SGD, with the "
        "bound for stopped descent.",
        [
            Curve(
                rows=select(rows, "left_over"), label="measured ‖(I−P)d_t‖/‖d_t‖", colour=PALETTE[0]
            ),
            Curve(
                rows=select(rows, "left_over_bound"),
                label="bound 2ηt‖g‖exp(−(k−1)²/2t)/‖d_t‖",
                colour=PALETTE[1],
                dashed=True,
            ),
        ],
        over="t",
        labels=("recovery step t", "share left over"),
        title=f"What {k} dimensions leave, SGD",
        limits=None,
        log=(True, True),
    )
    descent = draw_curves(
        "krylov-descent",
        "Cosine of the way of SGD with that of gradient descent on the quadratic model at θ_D, and "
        "the ratio of their lengths.",
        [
            Curve(rows=cosines, label="cosine of d_t with the model's", colour=PALETTE[0]),
            Curve(
                rows=select(rows, "descent_length"),
                label="‖d_t‖ over the model's",
                colour=PALETTE[2],
            ),
        ],
        over="t",
        labels=("recovery step t", ""),
        title="Against the quadratic model, SGD",
        limits=None,
    )
    lines = [
        "The bound needs a spectrum within [0, 2/η]; as far as Ritz values and the largest "
        "eigenvalue tell, it was there in "
        f"{int(sum(v or 0.0 for v in premise))} of {len(premise)} runs. It is about gradient "
        "descent on one quadratic: minibatch "
        "noise and a changing Hessian are outside it, so the measured share may lie above.",
        _converged(rows, k),
    ]
    if two_spaces(rows):
        lines.append("This section is about the factors A and B, in which the descent takes place.")
    if cosines:
        t = cosines[-1].context["t"]
        lines.append(
            f"After {t} steps of SGD the way has a cosine of "
            f"{text_of(rows, 'descent_cosine', t=t)} with that of gradient descent on "
            f"the quadratic model of g and H, and {text_of(rows, 'descent_length', t=t)} times its "
            "length."
        )
    return Section(
        title="Is it the descent of a quadratic?",
        question="Gradient descent on the quadratic model stays within the space while t ≤ k, and "
        "near it somewhat longer.",
        figures=[descent, figure],
        sees=lines,
    )


def _curvature(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figure = _spectrum(rows)
    runs = [r.value for r in rows if r.quantity == "lowest_ritz_value" and "run" in r.context]
    negative = sum(1 for v in runs if v is not None and v < 0)
    return Section(
        title="What curvature is there?",
        question="Largest eigenvalues of the Hessian of the task's loss at θ_D, and the Ritz "
        "values: the Hessian as the Krylov space "
        "sees it.",
        figures=[figure],
        sees=[
            f"Largest eigenvalue {text_of(rows, 'eigenvalue', i=1)}, the {config['k']}th "
            f"{text_of(rows, 'eigenvalue', i=config['k'])}; "
            f"smallest Ritz value {text_of(rows, 'lowest_ritz_value')}, negative in {negative} of "
            f"{len(runs)} runs; gradient of norm "
            f"{text_of(rows, 'gradient_norm')}.",
            f"Trace {text_of(rows, 'trace')} and Frobenius norm {text_of(rows, 'frobenius_norm')}, "
            f"each from {config['probes']} random "
            "probes a run (the intervals are over runs; those of single runs, over probes, are in "
            "the record).",
            *(
                [
                    "Hessian-vector products were made by finite differences of gradients, a "
                    "fallback that is not exact."
                ]
                if config.get("products") == "finite differences"
                else []
            ),
        ],
    )


def _spectrum(rows: Sequence[Row]) -> Drawing:
    return draw_curves(
        "krylov-spectrum",
        "The largest Hessian eigenvalues at θ_D and the Ritz values of the Krylov space, in order, "
        "mean over runs with 95 % band.",
        [
            Curve(rows=select(rows, "eigenvalue"), label="largest eigenvalues", colour=PALETTE[1]),
            Curve(
                rows=select(rows, "ritz_value"),
                label="Ritz values of the Krylov space",
                colour=PALETTE[0],
            ),
        ],
        over="i",
        labels=("i, from the largest", "value"),
        title="Curvature at θ_D",
        limits=None,
        log=(False, False),
    )

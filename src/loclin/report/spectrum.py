"""The spectrum study on a page: how many directions task gradients share, and which weights they
are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_matrix, select
from loclin.report.section import POINTS, Section, text_of
from loclin.report.words import number


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    found = [_ranks(rows, config), _energy(rows, config), _tasks(rows, config)]
    return [*found, _places(rows, config)] if select(rows, "layer_rank_ratio") else found


def _ranks(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines, most = [], [], max(config["counts"])
    for point, symbol in POINTS.items():
        figures += [_growth(rows, point, symbol), _shares(rows, point, symbol, most)]
        here = {"point": point, "mean": "centred", "gradients": most}
        lines.append(
            f"At {symbol}, n = {most}, centred: participation ratio "
            f"{text_of(rows, 'participation_rank', vectors='measured', **here)}, "
            "random vectors with the same norm in every tensor "
            f"{text_of(rows, 'participation_rank', vectors='per tensor', **here)}, "
            f"isotropic ones {text_of(rows, 'participation_rank', vectors='isotropic', **here)}; "
            "stable rank "
            f"{text_of(rows, 'stable_rank', vectors='measured', **here)}, entropy rank "
            f"{text_of(rows, 'entropy_rank', vectors='measured', **here)}. Scaled to unit norm: "
            f"{text_of(rows, 'participation_rank', vectors='measured, unit norm', **here)}."
        )
    return Section(
        title="Are task gradients of low rank?",
        question="Does the effective rank of n gradients stop growing well below that of random "
        "vectors with the same norms? "
        "A few large gradients give a low rank by their norms alone; the control has the same "
        "ones.",
        figures=figures,
        sees=lines,
    )


def _growth(rows: Sequence[Row], point: str, symbol: str) -> Drawing:
    curves = []
    for mean, colour in (("centred", 0), ("uncentred", 1)):
        for vectors, dashed, shift in (
            ("measured", False, 0),
            ("per tensor", True, 0),
            ("isotropic", True, 2),
        ):
            name = f"{mean}: measured" if vectors == "measured" else f"{mean}: {vectors} control"
            chosen = select(rows, "participation_rank", point=point, mean=mean, vectors=vectors)
            curves.append(
                Curve(
                    rows=chosen,
                    label=name,
                    colour=PALETTE[colour + shift],
                    dashed=dashed,
                    band=not dashed,
                )
            )
    return draw_curves(
        f"rank-{point}",
        f"Participation ratio of n gradients at {symbol}, with two random controls.",
        curves,
        over="gradients",
        labels=("number of gradients n", "participation ratio"),
        title=f"Effective rank at {symbol}",
        limits=None,
        log=(True, True),
        base=2,
    )


def _shares(rows: Sequence[Row], point: str, symbol: str, most: int) -> Drawing:
    curves = [
        Curve(
            rows=[
                r
                for r in select(rows, "energy_share", point=point, vectors=v)
                if r.context["i"] < most
            ],
            label=label,
            colour=PALETTE[c],
            dashed=v != "measured",
            band=v == "measured",
        )
        for v, label, c in (
            ("measured", "gradients", 0),
            ("per tensor", "per tensor control", 1),
            ("isotropic", "isotropic control", 2),
        )
    ]
    return draw_curves(
        f"spectrum-{point}",
        f"Share of the energy along each principal direction of {most} centred gradients at "
        f"{symbol}, with two random controls.",
        curves,
        over="i",
        labels=("principal direction i", "share of the energy, σᵢ²/Σσ²"),
        title=f"Spectrum at {symbol}",
        limits=None,
        log=(True, True),
    )


def _energy(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines, k = [], [], max(config["ks"])
    for point, symbol in POINTS.items():
        curves = [
            Curve(
                rows=select(rows, "crossfit_signal", point=point, vectors="measured"),
                label="of the mean gradient",
                colour=PALETTE[0],
            ),
            Curve(
                rows=select(rows, "crossfit_energy", point=point, vectors="measured"),
                label="of each new gradient",
                colour=PALETTE[1],
            ),
            Curve(
                rows=select(rows, "crossfit_energy", point=point, vectors="per tensor"),
                label="random vectors with the same norms",
                colour=PALETTE[8],
                dashed=True,
                band=False,
            ),
        ]
        figures.append(
            draw_curves(
                f"crossfit-{point}",
                "Share of new gradients' energy in the top-k space of as many old ones at "
                f"{symbol}.",
                curves,
                over="k",
                labels=("dimensions k of the space", "share of the energy"),
                title=f"New gradients in the old space, {symbol}",
            )
        )
        null = select(rows, "crossfit_energy", point=point, vectors="measured", k=k)
        lines.append(
            f"At {symbol} the top {k} directions of half of the gradients hold "
            f"{text_of(rows, 'crossfit_energy', point=point, vectors='measured', k=k)} of the "
            "energy of the other half, and "
            f"{text_of(rows, 'crossfit_signal', point=point, vectors='measured', k=k)} of that of "
            "their mean; of random "
            "vectors with the same norm in every tensor it would be "
            f"{text_of(rows, 'crossfit_energy', point=point, vectors='per tensor', k=k)}, in a "
            f"space of random directions {number(null[0].null) if null else '–'}."
        )
    return Section(
        title="Do new gradients lie in the space of old ones?",
        question="The same vectors cannot both make a space and be judged by it: the space is made "
        "from one half of the "
        "gradients, the energy measured on the other.",
        figures=figures,
        sees=lines,
    )


def _tasks(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines, k = [], [], config["k"]
    for point, symbol in POINTS.items():
        figures.append(
            draw_matrix(
                f"task-overlap-{point}",
                f"Overlap of the top-{k} gradient spaces of two tasks at {symbol}; on the diagonal "
                "of two sets of one task.",
                select(rows, "task_overlap", point=point),
                over=("a", "b"),
                labels=("task", "task"),
                title=f"Overlap of tasks' gradient spaces, {symbol}",
                least=0.0,
            )
        )
        null = select(rows, "overlap_within", point=point)
        between = (
            f"spaces of two tasks to {text_of(rows, 'overlap_between', point=point)}"
            if select(rows, "overlap_between", point=point)
            else "there is only one task"
        )
        lines.append(
            f"At {symbol} two sets of gradients of one task agree to "
            f"{text_of(rows, 'overlap_within', point=point)}, {between}; "
            "random vectors with the same norm in every tensor would to "
            f"{number(null[0].null) if null else '–'}."
        )
    return Section(
        title="Do different tasks share a gradient space?",
        question=f"Mean squared cosine between the top-{k} spaces of two tasks, from "
        f"{config['overlap_gradients']} gradients each. "
        "The diagonal says how well a space is known at all from so few gradients.",
        figures=figures,
        sees=lines,
    )


def _places(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines = [], []
    for point, symbol in POINTS.items():
        ratios = select(rows, "layer_rank_ratio", point=point)
        energies = select(rows, "layer_energy", point=point)
        figures += [
            draw_matrix(
                f"layer-rank-{point}",
                f"Participation ratio over its control by layer and kind of weight at {symbol}; "
                "−1: outside the blocks.",
                ratios,
                over=("layer", "kind"),
                labels=("layer", ""),
                title=f"Rank over control, {symbol}",
                least=0.0,
            ),
            draw_matrix(
                f"layer-energy-{point}",
                f"Share of the gradients' energy by layer and kind of weight at {symbol}.",
                energies,
                over=("layer", "kind"),
                labels=("layer", ""),
                title=f"Share of the energy, {symbol}",
                least=0.0,
                most=None,
            ),
        ]
        if ratios and energies:
            lowest = min(ratios, key=lambda r: r.value or 0.0)
            largest = max(energies, key=lambda r: r.value or 0.0)
            lines.append(
                f"At {symbol} the rank is lowest for its control in {_place(lowest)} "
                f"({number(lowest.value)}); most of the energy, "
                f"{number(largest.value)}, is in {_place(largest)}."
            )
    return Section(
        title="Where are they?",
        question="The same ratio within each layer and kind of weight, and how much of the "
        "gradients' energy is there.",
        figures=figures,
        sees=lines,
    )


def _place(row: Row) -> str:
    layer = row.context["layer"]
    return str(row.context["kind"]) + (f" of layer {layer}" if layer >= 0 else "")

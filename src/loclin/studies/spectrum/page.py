"""The spectrum study on a page: how many directions task gradients share, and which weights they
are in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from loclin.report.figures import Curve, Drawing, curve, draw_curves, draw_matrix, select
from loclin.report.section import Missing, Section, made, null_of, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.studies.names import POINTS, points
from loclin.studies.spectrum.names import CENTRED, ISOTROPIC, MEASURED, OWN, PER_TENSOR, UNIT

Rows = Sequence[Row]
Settings = Mapping[str, Any]
LOGARITHMIC: dict[str, Any] = {"limits": None, "log": (True, True)}
LENGTHS = {UNIT: "scaled to unit length", OWN: "of their own norms"}


def sections(rows: Rows, settings: Settings, skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    parts = [_ranks, _energy, _tasks, *([_places] if select(rows, "layer_rank_ratio") else [])]
    return made([partial(part, rows, settings) for part in parts], skip)


def _points(settings: Settings) -> Iterable[tuple[str, str]]:
    return points(untouched=settings.get("untouched", False)).items()


def _ranks(rows: Rows, settings: Settings) -> Section:
    figures, lines, most = list[Drawing](), list[str](), max(settings["counts"])
    of = partial(text_of, rows)
    for point, symbol in _points(settings):
        figures += [_growth(rows, point), _shares(rows, point, most)]
        for norms, label in LENGTHS.items():
            here = {"point": point, "norms": norms}
            own = {**here, "mean": CENTRED, "gradients": most, "vectors": MEASURED}
            lines.append(
                f"At {symbol}, n = {most} centred gradients {label}: participation ratio "
                f"{of('participation_rank', **own)}, over that of isotropic vectors "
                f"{of('rank_ratio', control=ISOTROPIC, **here)}, of vectors with the same norms by "
                f"tensor {of('rank_ratio', control=PER_TENSOR, **here)}; as n doubles it grows "
                f"{of('rank_growth', vectors=MEASURED, **here)} times, that of isotropic vectors "
                f"{of('rank_growth', vectors=ISOTROPIC, **here)} times. Stable rank "
                f"{of('stable_rank', **own)}, entropy rank {of('entropy_rank', **own)}."
            )
    return Section(
        title="Are task gradients of low rank?",
        question="Does the effective rank of n gradients stop growing well below that of random "
        "vectors? Scaled to unit length, which decides: a few large gradients give a low rank by "
        "their norms alone, to random vectors with the same norms too.",
        figures=figures,
        sees=lines,
    )


def _growth(rows: Rows, point: str) -> Drawing:
    curves, where = list[Curve](), f"at {POINTS[point]}"
    for i, (norms, label) in enumerate(LENGTHS.items()):
        for vectors, colour in ((MEASURED, i), (ISOTROPIC, i), (PER_TENSOR, i + 2)):
            here = {"point": point, "mean": CENTRED, "vectors": vectors, "norms": norms}
            name = f"{_whose(vectors)}, {label}"
            curves.append(_curve(rows, "participation_rank", name, colour, **here))
    caption = f"Participation ratio of n centred gradients {where}, with two random controls."
    labels, title = ("number of gradients n", "participation ratio"), f"Effective rank {where}"
    axes = {"over": "gradients", "base": 2, **LOGARITHMIC}
    return draw_curves(f"rank-{point}", caption, curves, labels=labels, title=title, **axes)


def _shares(rows: Rows, point: str, most: int) -> Drawing:
    where = f"at {POINTS[point]}"
    curves = [
        _curve(rows, "energy_share", _whose(vectors), colour, point=point, vectors=vectors)
        for colour, vectors in enumerate((MEASURED, PER_TENSOR, ISOTROPIC))
    ]
    caption = f"Share of the energy along each principal direction of {most} centred gradients of "
    caption += f"their own norms {where}, with two random controls."
    labels, title = ("principal direction i", "share of the energy, σᵢ²/Σσ²"), f"Spectrum {where}"
    axes = {"over": "i", **LOGARITHMIC}
    return draw_curves(f"spectrum-{point}", caption, curves, labels=labels, title=title, **axes)


def _whose(vectors: str) -> str:
    return "gradients" if vectors == MEASURED else f"{vectors} control"


def _curve(rows: Rows, quantity: str, label: str, colour: int, **of: Any) -> Curve:
    """A curve with its band, or a dashed one of a control."""
    control = of["vectors"] != MEASURED
    return curve(rows, quantity, label, colour, dashed=control, band=not control, **of)


def _energy(rows: Rows, settings: Settings) -> Section:
    figures, lines, k = list[Drawing](), list[str](), max(settings["ks"])
    labels = ("dimensions k of the space", "share of the energy")
    for point, symbol in _points(settings):
        of = {"point": point, "vectors": MEASURED}
        random = {"point": point, "vectors": PER_TENSOR}
        null = "random vectors with the same norms"
        curves = [
            _curve(rows, "crossfit_signal", "of the mean gradient", 0, **of),
            _curve(rows, "crossfit_energy", "of each new gradient", 1, **of),
            _curve(rows, "crossfit_energy", null, 8, **random),
        ]
        name, title = f"crossfit-{point}", f"New gradients in the old space, {symbol}"
        caption = f"Energy of new gradients in the top-k space of as many old ones at {symbol}."
        figures.append(draw_curves(name, caption, curves, over="k", labels=labels, title=title))
        lines.append(
            f"At {symbol} the top {k} directions of half of the gradients hold "
            f"{text_of(rows, 'crossfit_energy', **of, k=k)} of the energy of the other half, and "
            f"{text_of(rows, 'crossfit_signal', **of, k=k)} of that of their mean; of random "
            "vectors with the same norm in every tensor it would be "
            f"{text_of(rows, 'crossfit_energy', **random, k=k)}, in a space of random directions "
            f"{null_of(rows, 'crossfit_energy', **of, k=k)}."
        )
    return Section(
        title="Do new gradients lie in the space of old ones?",
        question="The same vectors cannot both make a space and be judged by it: the space is made "
        "from one half of the gradients, the energy measured on the other.",
        figures=figures,
        sees=lines,
    )


def _tasks(rows: Rows, settings: Settings) -> Section:
    figures, lines, k = list[Drawing](), list[str](), settings["k"]
    for point, symbol in _points(settings):
        caption = (
            f"Overlap of the top-{k} gradient spaces of two tasks at {symbol}; on the diagonal of "
            "two sets of one task."
        )
        name, title = f"task-overlap-{point}", f"Overlap of tasks' gradient spaces, {symbol}"
        axes: dict[str, Any] = {"over": ("a", "b"), "labels": ("task", "task"), "least": 0.0}
        overlaps = select(rows, "task_overlap", point=point)
        figures.append(draw_matrix(name, caption, overlaps, title=title, **axes))
        between = "there is only one task"
        if select(rows, "overlap_between", point=point):
            between = f"spaces of two tasks to {text_of(rows, 'overlap_between', point=point)}"
        lines.append(
            f"At {symbol} two sets of gradients of one task agree to "
            f"{text_of(rows, 'overlap_within', point=point)}, {between}; random vectors with the "
            f"same norm in every tensor would to {null_of(rows, 'overlap_within', point=point)}."
        )
    return Section(
        title="Do different tasks share a gradient space?",
        question=f"Mean squared cosine between the top-{k} spaces of two tasks, from "
        f"{settings['overlap_gradients']} gradients each. The diagonal says how well a space is "
        "known at all from so few gradients.",
        figures=figures,
        sees=lines,
    )


def _places(rows: Rows, settings: Settings) -> Section:
    figures, lines = list[Drawing](), list[str]()
    axes: dict[str, Any] = {"over": ("layer", "kind"), "labels": ("layer", ""), "least": 0.0}
    for point, symbol in _points(settings):
        ratios = select(rows, "layer_rank_ratio", point=point)
        energies = select(rows, "layer_energy", point=point)
        where = f"by layer and kind of weight at {symbol}"
        name, title = f"layer-rank-{point}", f"Rank over control, {symbol}"
        caption = f"Participation ratio over its control {where}; −1: outside the blocks."
        figures.append(draw_matrix(name, caption, ratios, title=title, **axes))
        name, title = f"layer-energy-{point}", f"Share of the energy, {symbol}"
        caption = f"Share of the gradients' energy {where}."
        figures.append(draw_matrix(name, caption, energies, title=title, most=None, **axes))
        if ratios and energies:
            lowest = min(ratios, key=lambda r: r.value or 0.0)
            largest = max(energies, key=lambda r: r.value or 0.0)
            lines.append(
                f"At {symbol} the rank is lowest for its control in {_place(lowest)} "
                f"({number(lowest.value)}); most of the energy, {number(largest.value)}, is in "
                f"{_place(largest)}."
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

"""The recovery study on a page: its questions, its figures, and what the numbers in them say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loclin.report.figures import (
    Drawing,
    curve,
    defined,
    draw_curves,
    draw_dots,
    draw_points,
    select,
)
from loclin.report.section import Missing, Section, made, null_of, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.studies import names
from loclin.studies.names import OPTIMISERS, PREFIX, deciding_space, own, two_spaces
from loclin.studies.recovery.claims import captures_and_scores
from loclin.studies.recovery.names import CONTROLS, FULL, STATIC

FIXED = (*STATIC, names.RANDOM)


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    parts = [
        lambda: _course(rows, settings["steps"]),
        lambda: _prefix(rows, settings["k"], follows=own(settings)),
        lambda: _fixed(rows, settings["k"]),
        lambda: _drift(rows, settings["k"], settings["times"]),
        lambda: _confined(rows, settings["k"], settings["project_steps"]),
    ]
    return made(parts, skip)


def _course(rows: Sequence[Row], steps: int) -> Section:
    back: dict[str, Any] = {"point": "recovery"}
    curves = [
        curve(rows, "score", label, i, optimiser=o, **back)
        for i, (o, label) in enumerate(OPTIMISERS.items())
    ]
    caption = "Score on the destroyed task against recovery steps, mean over models with 95 % band."
    labels, title = ("recovery step t", "score"), "The task comes back"
    figure = draw_curves("recovery-course", caption, curves, over="t", labels=labels, title=title)
    runs = [r for r in rows if r.quantity == "score" and "run" in r.context]
    tasks = [task for _, task in sorted({(r.context["run"], r.context["task"]) for r in runs})]
    before, after = _scores(runs, "pretrained"), _scores(runs, "damaged")
    others = _scores(runs, "damaged", own=False)
    kept = f"; on the kept tasks {number(min(others))} or more." if others else ""
    return Section(
        title="Destroyed and trained back",
        question="Is there a recovery to study: was the task known, lost, and learned again?",
        figures=[figure],
        sees=[
            f"{len(tasks)} independent runs; destroyed in turn: {', '.join(tasks)}.",
            "The score on that task (exact match; accuracy where there are options) was "
            f"{number(min(before))} or more before the damage and {number(max(after))} or less "
            f"after it{kept or '. No other task was kept.'}",
            *(
                f"{label} regains {text_of(rows, 'score', optimiser=o, t=steps, **back)} in "
                f"{steps} steps."
                for o, label in OPTIMISERS.items()
            ),
        ],
    )


def _scores(runs: Sequence[Row], point: str, *, own: bool = True) -> list[float]:
    """Scores at a point on the destroyed tasks, or on all others."""
    there = [r for r in runs if r.context.get("point") == point]
    return [defined(r.value) for r in there if (r.context["on"] == r.context["task"]) == own]


def _prefix(rows: Sequence[Row], k: int, *, follows: bool) -> Section:
    where = (
        " Measured in ΔW, the change of the adapted weights, which the choice of the factors A and "
        "B does not change."
    )
    return Section(
        title="Do the first updates span the way back?",
        question="How much of the displacement d = Σu_t, and of the future f_k after step k, lies "
        "in the span of the first k updates, and how much of that would unstructured steps give as "
        f"well?{where if two_spaces(rows) else ''}",
        figures=[f for o, label in OPTIMISERS.items() for f in _prefix_figures(rows, o, label, k)],
        sees=[line for o, label in OPTIMISERS.items() for line in _prefix_lines(rows, o, label, k)],
        follows=[_directions(rows, o, label, k) for o, label in OPTIMISERS.items() if follows],
    )


def _directions(rows: Sequence[Row], optimiser: str, label: str, k: int) -> str:
    """How many directions hold a recovery."""
    here = {"optimiser": optimiser, "k": k, "space": deciding_space(rows)}
    return (
        f"By {label} the directions of the first {k} updates hold "
        f"{text_of(rows, 'prefix_capture', **here)} of the way back and "
        f"{text_of(rows, 'future_capture', **here)} of what comes after them."
    )


def _prefix_figures(rows: Sequence[Row], optimiser: str, label: str, k: int) -> Iterator[Drawing]:
    here: dict[str, Any] = {"optimiser": optimiser, "space": deciding_space(rows)}
    there, null = {**here, "space": "factors"}, {**here, "dashed": True, "band": False}
    curves = [curve(rows, "prefix_capture", PREFIX, 0, **here)]
    if two_spaces(rows):
        name = "prefix, in the factors"
        curves.append(curve(rows, "prefix_capture", name, 7, band=False, **there))
    curves += [
        curve(rows, "prefix_capture_null", f"null: {n}", i, null=n, **null)
        for i, n in enumerate(names.PREFIX_NULLS, 1)
    ]
    whole = f"{label}: share of the whole displacement in the span of the first k updates, with "
    name, labels, title = "prefix-capture", ("k", "capture of d"), f"{label}: prefix capture"
    yield draw_curves(
        f"{name}-{optimiser}", f"{whole}its nulls.", curves, over="k", labels=labels, title=title
    )
    curves = [curve(rows, "future_capture", PREFIX, 0, **here)]
    curves += [
        curve(rows, "future_capture_null", f"null: {n}", c, null=n, **null)
        for n, c in zip(names.FUTURE_NULLS, (1, 7, 5), strict=True)
    ]
    curves += [
        curve(rows, "basis_capture", b, c, basis=b, of="future", **here)
        for b, c in zip(CONTROLS, (2, 3, 4, 8), strict=True)
    ]
    curves.append(curve(rows, "reset_future_capture", f"optimiser reset at {k}", 6, **here))
    yield draw_curves(
        f"future-capture-{optimiser}",
        f"{label}: share of the displacement after step k in the span of the first k updates, with "
        "nulls and controls.",
        curves,
        over="k",
        labels=("k", "capture of f_k"),
        title=f"{label}: future-only capture",
    )


def _prefix_lines(rows: Sequence[Row], optimiser: str, label: str, k: int) -> Iterator[str]:
    here = {"optimiser": optimiser, "k": k, "space": deciding_space(rows)}

    def text(quantity: str, **more: Any) -> str:
        return text_of(rows, quantity, **{**here, **more})

    another, other, gradients, noise = (
        text("basis_capture", basis=b, of="future") for b in CONTROLS
    )
    yield (
        f"{label}, k = {k}: the prefix holds {text('prefix_capture')} of d and "
        f"{text('future_capture')} of the future. A constant drift with the run's own norms, s = "
        f"{text_of(rows, 'drift_s', optimiser=optimiser, space=here['space'])}, would hold "
        f"{text('prefix_capture_null', null=names.DRIFT)} and "
        f"{text('future_capture_null', null=names.DRIFT)}; white steps with the run's own norms "
        f"{text('prefix_capture_null', null=names.OWN_NORMS)} of d."
    )
    if select(rows, "future_capture_null", null=names.FROM_REST, **here):
        yield (
            f"{label} averages gradients, and the null does so too (β = 0.9). Where the drift "
            "itself comes through moments that are empty at first, its first steps hold less of "
            f"it: {text('prefix_capture_null', null=names.FROM_REST)} and "
            f"{text('future_capture_null', null=names.FROM_REST)}. More than both: the basis is "
            "special (kept, or steps stay alike for longer than the optimiser remembers); less "
            "than both: the direction turns away. A preconditioner that stands still "
            "changes neither; AdamW's changes along the way, and that is not in them."
        )
    yield (
        f"Of the same future, {k} updates of another run from the same point hold "
        f"{another}, of another task's recovery {other}, minibatch gradients at θ_D {gradients}, "
        f"noise with the same norm in every tensor {noise}."
    )
    if two_spaces(rows):
        yield (
            "In the factors, where the choice of A and B matters, the prefix holds "
            f"{text('prefix_capture', space='factors')} of d and "
            f"{text('future_capture', space='factors')} of the future; the note beside the claim "
            "says whether they disagree."
        )
    if select(rows, "reset_future_capture", **here):
        reset = text("reset_future_capture")
        yield f"With the optimiser's state forgotten at step {k}: {reset}."


def _fixed(rows: Sequence[Row], k: int) -> Section:
    figures, lines = [], []
    for o, label in OPTIMISERS.items():
        here: dict[str, Any] = {"optimiser": o, "space": deciding_space(rows)}
        of = {**here, "of": "displacement"}
        curves = [curve(rows, "prefix_capture", PREFIX, 0, dashed=True, **here)]
        curves += [
            curve(rows, "basis_capture", b, i, basis=b, **of) for i, b in enumerate(FIXED, 1)
        ]
        caption = f"{label}: share of the displacement in bases fixed before recovery starts."
        labels, title = ("k", "capture of d"), f"{label}: bases fixed beforehand"
        name = f"static-capture-{o}"
        figures.append(draw_curves(name, caption, curves, over="k", labels=labels, title=title))
        held = (f"{b} {text_of(rows, 'basis_capture', basis=b, k=k, **of)}" for b in FIXED)
        lines.append(f"{label}, k = {k}: {', '.join(held)}.")
    return Section(
        title="Does a basis fixed beforehand span it?",
        question="Is there a task plane: directions known before recovery starts that contain the "
        "way back?",
        figures=figures,
        sees=[
            *lines,
            "The prefix is drawn for scale only: it is a part of d itself. What decides is what "
            "training regains within each basis, below.",
        ],
    )


def _drift(rows: Sequence[Row], k: int, times: Sequence[int]) -> Section:
    curves, overlaps, lines = [], [], []
    first, late = min(times), max(t for t in times if t <= 100)
    for i, (o, label) in enumerate(OPTIMISERS.items()):
        curves.append(curve(rows, "rho", label, i, optimiser=o))
        for kind, dashed in (("independent", False), ("same", True)):
            here: dict[str, Any] = {"optimiser": o, "batches": kind}
            name = f"{label}, {kind} batches"
            overlaps.append(curve(rows, "overlap", name, i, dashed=dashed, **here))
        there: dict[str, Any] = {"optimiser": o, "point": "recovery"}
        floor = f"{label}, two sets of batches at θ_t"
        overlaps.append(curve(rows, "overlap_floor", floor, i + 2, band=False, **there))
        lines.append(
            f"{label}: ρ is {text_of(rows, 'rho', optimiser=o, t=first)} after {first} step and "
            f"{text_of(rows, 'rho', optimiser=o, t=late)} after {late}, where two batch sets agree "
            f"to {text_of(rows, 'overlap_floor', t=late, **there)}; from the same batches at both "
            "points the overlap is "
            f"{text_of(rows, 'overlap', optimiser=o, t=late, batches='same')}."
        )
    start: dict[str, Any] = {"point": "damaged", "t": first}
    chance = null_of(rows, "overlap_floor", **start)
    return Section(
        title="How fast does the useful basis move?",
        question=f"Overlap of the top-{k} gradient basis at θ_D with that at θ_t, as a share of "
        "the agreement of two independent batch sets, a geometric mean of that at θ_D and that at "
        "θ_t. 1: only minibatch noise; 0: nothing left.",
        figures=[
            draw_curves(
                "drift-rho",
                "Noise-corrected overlap ρ(t) of the gradient basis at θ_D with that at θ_t.",
                curves,
                over="t",
                labels=("recovery step t", "ρ(t)"),
                title="Drift, corrected for noise",
                limits=None,
            ),
            draw_curves(
                "drift-overlap",
                "Raw overlap of the gradient bases, from independent and from the same batches, "
                "and the agreement of two batch sets.",
                overlaps,
                over="t",
                labels=("recovery step t", "overlap"),
                title="Raw overlap",
            ),
        ],
        sees=[
            f"Two batch sets at θ_D agree to {text_of(rows, 'overlap_floor', **start)}; random "
            f"subspaces would to {chance}.",
            *lines,
        ],
    )


def _confined(rows: Sequence[Row], k: int, steps: int) -> Section:
    at_k: dict[str, list[tuple[str, Row]]] = {}
    by_k, pairs, full, prefix = [], {}, [], []
    for i, (o, label) in enumerate(OPTIMISERS.items()):
        at_k[label] = [
            (f"{basis}, k = {k}" if "k" in r.context else basis, r)
            for r in select(rows, "regained_score", optimiser=o)
            if (basis := r.context["basis"]) == FULL or r.context["k"] == k
        ]
        by_k.append(curve(rows, "regained_score", label, i, optimiser=o, basis=PREFIX))
        pairs[label] = captures_and_scores(rows, o, k, deciding_space(rows))
        full.append(f"{label} {text_of(rows, 'regained_score', optimiser=o, basis=FULL)}")
        held = text_of(rows, "regained_score", optimiser=o, basis=PREFIX, k=k)
        prefix.append(f"{label} {held}")
    every = {label: list(found.values()) for label, found in pairs.items()}
    by_run = {
        label: [pair for (_, basis), pair in found.items() if basis == PREFIX]
        for label, found in pairs.items()
    }
    return Section(
        title="Does training confined to a basis bring the task back?",
        question=f"Score regained in {steps} steps when every update is projected on a basis, "
        "against unconfined training.",
        figures=[
            draw_dots(
                "projected-bases",
                f"Score regained within each basis of size {k}.",
                at_k,
                label="score",
                title="Confined to a basis",
            ),
            draw_curves(
                "projected-prefix",
                f"Score regained within the prefix, by its size (not {k}: in some runs).",
                by_k,
                over="k",
                labels=("k", "score"),
                title="Confined to the first k updates",
            ),
            draw_points(
                "capture-score",
                f"Capture of d and regained score, one dot per basis of size {k} and run.",
                every,
                labels=("capture of d", "score"),
                title="Does capture predict recovery?",
            ),
            draw_points(
                "capture-score-runs",
                f"Capture of d by the first {k} updates and score within them, one dot per run.",
                by_run,
                labels=("capture of d by the prefix", "score"),
                title="Over runs: capture and recovery",
            ),
        ],
        sees=[
            f"Unconfined: {', '.join(full)}.",
            f"Within the prefix of {k}: {', '.join(prefix)}.",
            *_static_lines(rows, k),
        ],
    )


def _static_lines(rows: Sequence[Row], k: int) -> Iterator[str]:
    for o, label in OPTIMISERS.items():
        here: dict[str, Any] = {"optimiser": o, "k": k}
        held = (f"{b} {text_of(rows, 'regained_score', basis=b, **here)}" for b in STATIC)
        yield (
            f"{label}, within fixed bases of {k}: {', '.join(held)}. One misses where it regains "
            "less than the prefix by more than 0.05 of what unconfined training regains: that is "
            "what decides."
        )

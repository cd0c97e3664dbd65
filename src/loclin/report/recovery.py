"""The recovery study on a page: its questions, its figures, and what the numbers in them say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loclin.record import Row
from loclin.report.figures import (
    PALETTE,
    Curve,
    Drawing,
    defined,
    draw_curves,
    draw_dots,
    draw_points,
    select,
)
from loclin.report.section import OPTIMISERS, Section, deciding_space, text_of, two_spaces
from loclin.report.words import number

STATIC = ("gradients at θ₀", "gradients at θ_D", "task vectors", "Hessian at θ_D", "random")
CONTROLS = (
    "another run's prefix",
    "another task's prefix",
    "minibatch gradients",
    "norm-matched noise",
)


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    return [
        _course(rows, config),
        _prefix(rows, config),
        _fixed(rows, config),
        _drift(rows, config),
        _projected(rows, config),
    ]


def _course(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    curves = [
        Curve(
            rows=select(rows, "score", optimiser=o, point="recovery"),
            label=label,
            colour=PALETTE[i],
        )
        for i, (o, label) in enumerate(OPTIMISERS.items())
    ]
    figure = draw_curves(
        "recovery-course",
        "Score on the destroyed task against recovery steps, mean over runs with 95 % band.",
        curves,
        over="t",
        labels=("recovery step t", "score"),
        title="The task comes back",
    )
    runs = [r for r in rows if r.quantity == "score" and "run" in r.context]
    tasks = sorted({(r.context["run"], r.context["task"]) for r in runs})
    before = [
        r.value
        for r in runs
        if r.context.get("point") == "pretrained" and r.context["on"] == r.context["task"]
    ]
    after = [
        r.value
        for r in runs
        if r.context.get("point") == "damaged" and r.context["on"] == r.context["task"]
    ]
    kept = [
        r.value
        for r in runs
        if r.context.get("point") == "damaged" and r.context["on"] != r.context["task"]
    ]
    return Section(
        title="Destroyed and trained back",
        question="Is there a recovery to study: was the task known, lost, and learned again?",
        figures=[figure],
        sees=[
            f"{len(tasks)} independent runs; destroyed in turn: "
            f"{', '.join(task for _, task in tasks)}.",
            "The score on that task (exact match; accuracy where there are options) was "
            f"{number(min(map(defined, before)))} or "
            f"more before the damage and {number(max(map(defined, after)))} or less after it"
            + (
                f"; on the kept tasks {number(min(map(defined, kept)))} or more."
                if kept
                else ". No other task was kept."
            ),
            *(
                f"{label} regains "
                f"{text_of(rows, 'score', optimiser=o, point='recovery', t=config['steps'])} "
                f"in {config['steps']} steps."
                for o, label in OPTIMISERS.items()
            ),
        ],
    )


def _prefix(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    k, where = config["k"], ""
    if two_spaces(rows):
        where = " Measured in ΔW, the change of the adapted weights, which the choice of the factors A and B does not change."
    return Section(
        title="Do the first updates span the way back?",
        question="How much of the displacement d = Σu_t, and of the future f_k after step k, lies "
        "in the span of the first k "
        "updates, and how much of that would unstructured steps give as well?" + where,
        figures=[f for o, label in OPTIMISERS.items() for f in _prefix_figures(rows, o, label, k)],
        sees=[line for o, label in OPTIMISERS.items() for line in _prefix_lines(rows, o, label, k)],
    )


def _prefix_figures(rows: Sequence[Row], optimiser: str, label: str, k: int) -> Iterator[Drawing]:
    nulls = ("stationary drift", "white, own norms", "white", "heavy ball", "shuffled order")
    here = {"optimiser": optimiser, "space": deciding_space(rows)}
    curves = [Curve(rows=select(rows, "prefix_capture", **here), label="prefix", colour=PALETTE[0])]
    if two_spaces(rows):
        factors = select(rows, "prefix_capture", **{**here, "space": "factors"})
        curves.append(
            Curve(rows=factors, label="prefix, in the factors", colour=PALETTE[7], band=False)
        )
    curves += [
        Curve(
            rows=select(rows, "prefix_capture_null", null=n, **here),
            label=f"null: {n}",
            colour=PALETTE[i + 1],
            dashed=True,
            band=False,
        )
        for i, n in enumerate(nulls)
    ]
    yield draw_curves(
        f"prefix-capture-{optimiser}",
        f"{label}: share of the whole displacement in the span of the first k updates, with its "
        "nulls.",
        curves,
        over="k",
        labels=("k", "capture of d"),
        title=f"{label}: prefix capture",
    )
    curves = [
        Curve(rows=select(rows, "future_capture", **here), label="prefix", colour=PALETTE[0]),
        *(
            Curve(
                rows=select(rows, "future_capture_null", null=n, **here),
                label=f"null: {n}",
                colour=PALETTE[c],
                dashed=True,
                band=False,
            )
            for n, c in (("stationary drift", 1), ("shuffled order", 5))
        ),
        *(
            Curve(
                rows=select(rows, "basis_capture", basis=b, of="future", **here),
                label=b,
                colour=PALETTE[c],
            )
            for b, c in zip(CONTROLS, (2, 3, 4, 8), strict=True)
        ),
        Curve(
            rows=select(rows, "reset_future_capture", **here),
            label=f"optimiser reset at {k}",
            colour=PALETTE[6],
        ),
    ]
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
    yield (
        f"{label}, k = {k}: the prefix holds {text_of(rows, 'prefix_capture', **here)} of d and "
        f"{text_of(rows, 'future_capture', **here)} of the future. A stationary drift fitted to "
        "the same updates would hold "
        f"{text_of(rows, 'prefix_capture_null', null='stationary drift', **here)} and "
        f"{text_of(rows, 'future_capture_null', null='stationary drift', **here)}; white steps "
        "with the run's own norms "
        f"{text_of(rows, 'prefix_capture_null', null='white, own norms', **here)} of d."
    )
    yield (
        f"Of the same future, {k} updates of another run from the same point hold "
        f"{text_of(rows, 'basis_capture', basis=CONTROLS[0], of='future', **here)}, of another "
        "task's recovery "
        f"{text_of(rows, 'basis_capture', basis=CONTROLS[1], of='future', **here)}, minibatch "
        "gradients at θ_D "
        f"{text_of(rows, 'basis_capture', basis=CONTROLS[2], of='future', **here)}, noise with the "
        "same norm in every tensor "
        f"{text_of(rows, 'basis_capture', basis=CONTROLS[3], of='future', **here)}."
    )
    if two_spaces(rows):
        there = {**here, "space": "factors"}
        yield (
            "In the factors, where the choice of A and B matters, the prefix holds "
            f"{text_of(rows, 'prefix_capture', **there)} of "
            f"d and {text_of(rows, 'future_capture', **there)} of the future; the note beside the "
            "claim says whether they disagree."
        )
    if select(rows, "reset_future_capture", **here):
        yield f"With the optimiser's state forgotten at step {k}: {text_of(rows, 'reset_future_capture', **here)}."


def _fixed(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines, space = [], [], deciding_space(rows)
    for o, label in OPTIMISERS.items():
        curves = [
            Curve(
                rows=select(rows, "prefix_capture", optimiser=o, space=space),
                label="prefix",
                colour=PALETTE[0],
                dashed=True,
            )
        ]
        curves += [
            Curve(
                rows=select(
                    rows, "basis_capture", basis=b, of="displacement", optimiser=o, space=space
                ),
                label=b,
                colour=PALETTE[i + 1],
            )
            for i, b in enumerate(STATIC)
        ]
        figures.append(
            draw_curves(
                f"static-capture-{o}",
                f"{label}: share of the displacement in bases fixed before recovery starts.",
                curves,
                over="k",
                labels=("k", "capture of d"),
                title=f"{label}: bases fixed beforehand",
            )
        )
        captures = ", ".join(
            f"{b} "
            f"{text_of(rows, 'basis_capture', basis=b, of='displacement', optimiser=o, k=config['k'], space=space)}"
            for b in STATIC
        )
        lines.append(f"{label}, k = {config['k']}: {captures}.")
    return Section(
        title="Does a basis fixed beforehand span it?",
        question="Is there a task plane: directions known before recovery starts that contain the "
        "way back?",
        figures=figures,
        sees=[
            *lines,
            "The prefix is drawn for scale only: it is a part of d itself. The fair comparison is "
            "on the future.",
        ],
    )


def _drift(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    curves, overlaps, lines = [], [], []
    for i, (o, label) in enumerate(OPTIMISERS.items()):
        curves.append(Curve(rows=select(rows, "rho", optimiser=o), label=label, colour=PALETTE[i]))
        for batches, dashed in (("independent", False), ("same", True)):
            chosen = select(rows, "overlap", optimiser=o, batches=batches)
            overlaps.append(
                Curve(
                    rows=chosen,
                    label=f"{label}, {batches} batches",
                    colour=PALETTE[i],
                    dashed=dashed,
                )
            )
        late = max(t for t in config["times"] if t <= 100)
        lines.append(
            f"{label}: ρ is {text_of(rows, 'rho', optimiser=o, t=min(config['times']))} after "
            f"{min(config['times'])} step and "
            f"{text_of(rows, 'rho', optimiser=o, t=late)} after {late}."
        )
    floor = text_of(rows, "overlap_floor", optimiser="sgd")
    return Section(
        title="How fast does the useful basis move?",
        question=f"Overlap of the top-{config['k']} gradient basis at θ_D with that at θ_t, as a "
        "share of the agreement of two "
        "independent batch sets at the very same point. 1: only minibatch noise; 0: nothing left.",
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
                "Raw overlap of the gradient bases, from independent and from the same batches.",
                overlaps,
                over="t",
                labels=("recovery step t", "overlap"),
                title="Raw overlap",
            ),
        ],
        sees=[
            f"Two batch sets at θ_D agree to {floor}; random subspaces would to {_chance(rows)}.",
            *lines,
        ],
    )


def _chance(rows: Sequence[Row]) -> str:
    found = select(rows, "overlap_floor")
    return number(found[0].null) if found else "–"


def _projected(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    k, steps = config["k"], config["project_steps"]
    at_k: dict[str, list[tuple[str, Row]]] = {}
    by_k, pairs = [], {}
    for i, (o, label) in enumerate(OPTIMISERS.items()):
        scores = select(rows, "regained_score", optimiser=o)
        chosen = [r for r in scores if r.context.get("k") == k or r.context["basis"] == "full"]
        at_k[label] = [
            (f"{r.context['basis']}{'' if r.context['basis'] == 'full' else f', k = {k}'}", r)
            for r in chosen
        ]
        by_k.append(
            Curve(
                rows=[r for r in scores if r.context["basis"] == "prefix"],
                label=label,
                colour=PALETTE[i],
            )
        )
        pairs[label] = _capture_and_score(rows, o, k)
    full = ", ".join(
        f"{label} {text_of(rows, 'regained_score', optimiser=o, basis='full')}"
        for o, label in OPTIMISERS.items()
    )
    prefix = ", ".join(
        f"{label} {text_of(rows, 'regained_score', optimiser=o, basis='prefix', k=k)}"
        for o, label in OPTIMISERS.items()
    )
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
                "Score regained within the prefix basis, by its size.",
                by_k,
                over="k",
                labels=("k", "score"),
                title="Confined to the first k updates",
            ),
            draw_points(
                "capture-score",
                f"Capture of d and regained score, one dot per basis of size {k} and run.",
                {label: [(x, y) for _, x, y in found] for label, found in pairs.items()},
                labels=("capture of d", "score"),
                title="Does capture predict recovery?",
            ),
            draw_points(
                "capture-score-runs",
                f"Capture of d by the first {k} updates and score regained within them, one dot "
                "per run.",
                {
                    label: [(x, y) for basis, x, y in found if basis == "prefix"]
                    for label, found in pairs.items()
                },
                labels=("capture of d by the prefix", "score"),
                title="Over runs: capture and recovery",
            ),
        ],
        sees=[f"Unconfined: {full}.", f"Within the prefix of {k}: {prefix}."],
    )


def _capture_and_score(
    rows: Sequence[Row], optimiser: str, k: int
) -> list[tuple[str, float, float]]:
    """(basis, capture, score) of every basis of size k and run."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    wanted = (None, deciding_space(rows))
    for r in rows:
        c = r.context
        if not (
            r.quantity.startswith("regained_") and c.get("optimiser") == optimiser and "run" in c
        ):
            continue
        if c.get("k") == k and c.get("space") in wanted:
            found.setdefault((c["run"], c["basis"]), {})[r.quantity] = defined(r.value)
    return [
        (basis, p["regained_by_capture"], p["regained_score"]) for (_, basis), p in found.items()
    ]

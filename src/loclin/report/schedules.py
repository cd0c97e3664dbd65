"""The schedules study on a page: which schedule leaves both tasks known, how they get there, why
the order matters (measures §12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_dots, select
from loclin.report.ranking import Ranked, ranked, ranking_table, text
from loclin.report.section import OPTIMISERS, Section, deciding_space, text_of, two_spaces
from loclin.report.words import number

EVERY_PAIR = "all"
BUDGET = "gradients of one batch"
#: Schedules whose learning curves are drawn task by task.
TOLD_APART = ("joint mixed", "raw sum", "sequential", "replay")


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    found = []
    for optimiser in config["optimisers"]:
        here = {"optimiser": optimiser}
        label = f", {OPTIMISERS[optimiser]}"
        found += [
            _ranking(rows, config, here, label),
            courses(rows, config["pairs"], here, label),
            _conflict(rows, config, here, label),
            _first_task(rows, config, here, label),
        ]
    return found


def _ranking(
    rows: Sequence[Row], config: Mapping[str, Any], here: Mapping[str, Any], label: str
) -> Section:
    every = ranked(rows, pair=EVERY_PAIR, **here)
    kinds = config["pairs"]
    figures = [ranking_figure(rows, every, {**here, "pair": EVERY_PAIR}, label)]
    if len(kinds) > 1:
        figures.append(_by_kind(rows, every, kinds, here, label))
    return Section(
        title=f"Which schedule leaves both tasks known{label}?",
        question="Both tasks of a pair are destroyed; from there every schedule trains them with "
        "the same batches and as many "
        f"gradients, {config['evaluations']} of {config['batch']} examples. The score that counts "
        "is that of the task that ends worse. "
        "Agreeing, neutral and conflicting pairs are named by their gradients at θ₀, not where "
        "training starts.",
        figures=figures,
        tables=[
            ranking_table(
                rows,
                f"Ranking{label}: scores over runs, each the mean over its pairs of tasks; "
                "differences are paired by run, p "
                "two-sided and adjusted by Holm over the schedules.",
                kinds if len(kinds) > 1 else (),
                pair=EVERY_PAIR,
                **here,
            )
        ],
        sees=list(ranking_lines(every)),
    )


def ranking_figure(
    rows: Sequence[Row], every: Sequence[Ranked], here: Mapping[str, Any], label: str
) -> Drawing:
    """Scores of all schedules, the best first: the paper's Figure 4 with intervals."""
    groups = {
        name: [
            (r.schedule, row)
            for r in every
            for row in select(rows, quantity, schedule=r.schedule, **here)
        ]
        for name, quantity in (("worst task", "worst_score"), ("mean of the tasks", "mean_score"))
    }
    return draw_dots(
        f"schedules-ranking-{here['optimiser']}",
        f"Score of the worst task and mean over the tasks by schedule{label}, mean over runs with "
        "95 % interval.",
        groups,
        label="score",
        title=f"Where each schedule ends{label}",
    )


def _by_kind(
    rows: Sequence[Row],
    every: Sequence[Ranked],
    kinds: Sequence[str],
    here: Mapping[str, Any],
    label: str,
) -> Drawing:
    groups = {
        f"{kind} pairs": [
            (r.schedule, row)
            for r in every
            for row in select(rows, "worst_score", schedule=r.schedule, pair=kind, **here)
        ]
        for kind in kinds
    }
    return draw_dots(
        f"schedules-kinds-{here['optimiser']}",
        f"Score of the worst task by schedule and kind of pair{label}, mean over runs with 95 % "
        "interval.",
        groups,
        label="score of the worst task",
        title=f"By kind of pair{label}",
    )


def ranking_lines(every: Sequence[Ranked]) -> Iterator[str]:
    """What one sees in a ranking, in sentences."""
    best, last = every[0], every[-1]
    if len(every) < 2:
        return
    yield (
        f"Highest on test examples is {best.schedule}: the worst task ends at {text(best.worst)}; "
        f"last is {last.schedule} "
        f"with {text(last.worst)}. The best of many is flattered by being the best."
    )
    apart = [r for r in every if r.p_holm is not None and r.p_holm < 0.05 and r.behind is not None]
    reference = next(r.schedule for r in every if r.behind is None)
    told = "; ".join(f"{r.schedule} {text(r.behind)}" for r in apart if r.behind is not None)
    yield f"Told from {reference} (p below 0.05 after Holm): {told or 'none'}."
    together = [r for r in every if r.family == "simultaneous"]
    if len(together) > 1:
        yield (
            f"The {len(together)} simultaneous schedules lie between "
            f"{number(together[-1].worst.value)} ({together[-1].schedule}) and "
            f"{number(together[0].worst.value)} ({together[0].schedule}). Those that sum the "
            "gradients of all tasks make one "
            "step where the others make one for each: at equal gradients they take fewer steps."
        )


def courses(
    rows: Sequence[Row],
    pairs: Sequence[str],
    here: Mapping[str, Any],
    label: str,
    tasks: Sequence[str] = (),
) -> Section:
    """Learning curves: the worst task under every schedule, and every task under a few, by its name
    or its letter.
    """
    over = EVERY_PAIR
    families: dict[str, list[str]] = {}
    for r in select(rows, "curve_worst_score", pair=over, evaluations=0, **here):
        families.setdefault(
            "simultaneous" if r.context["family"] == "simultaneous" else "sequential", []
        ).append(r.context["schedule"])
    figures = [
        _curves(
            f"schedules-course-{kind}-{here['optimiser']}",
            f"Score of the worst task against gradients taken, {kind} schedules{label}, mean over "
            "runs.",
            [(name, {"schedule": name, "pair": over}, False) for name in names],
            rows,
            "curve_worst_score",
            here,
            f"Worst task, {kind} schedules{label}",
        )
        for kind, names in families.items()
    ]
    letters = sorted({r.context["role"] for r in select(rows, "curve_score", **here)})
    for pair in pairs:
        named = [
            (
                f"{name}, {tasks[i] if tasks else f'task {role}'}",
                {"schedule": name, "pair": pair, "role": role},
                role != "A",
            )
            for name in TOLD_APART
            for i, role in enumerate(letters)
            if select(rows, "curve_score", schedule=name, pair=pair, role=role, **here)
        ]
        if not named:
            continue
        kind = "" if pair == EVERY_PAIR else f", {pair} pairs"
        figures.append(
            _curves(
                f"schedules-tasks-{pair}-{here['optimiser']}".replace("+", "-"),
                f"Score of every task against gradients taken{kind}{label}: the first drawn whole, "
                "the others broken.",
                named,
                rows,
                "curve_score",
                here,
                f"Every task{kind}{label}",
                together=len(letters),
            )
        )
    return Section(
        title=f"How do they get there{label}?",
        question="The same budget, spent in another order: scores on test examples while the "
        "schedules train.",
        figures=figures,
        sees=list(_halfway(rows, pairs, here)),
    )


def _halfway(rows: Sequence[Row], pairs: Sequence[str], here: Mapping[str, Any]) -> Iterator[str]:
    for pair in pairs:
        there = {**here, "schedule": "sequential", "role": "A", "pair": pair}
        curve = sorted(select(rows, "curve_score", **there), key=lambda r: r.context["evaluations"])
        if curve:
            most = max(curve, key=lambda r: r.value or 0.0)
            kind = "" if pair == EVERY_PAIR else f", {pair} pairs"
            yield (
                f"One after the other{kind}: the task trained first is at "
                f"{text_of(rows, 'curve_score', **most.context)} after "
                f"{most.context['evaluations']} gradients, where it was highest, and at "
                f"{text_of(rows, 'curve_score', **curve[-1].context)} at the end."
            )


def _curves(
    name: str,
    caption: str,
    named: Sequence[tuple[str, Mapping[str, Any], bool]],
    rows: Sequence[Row],
    quantity: str,
    here: Mapping[str, Any],
    title: str,
    *,
    together: int = 1,
) -> Drawing:
    """Learning curves; more than the palette has are drawn broken, as are those marked so."""
    found = []
    for i, (text_, context, broken) in enumerate(named):
        colour = i // together
        found.append(
            Curve(
                rows=select(rows, quantity, **here, **context),
                label=text_,
                colour=PALETTE[colour % len(PALETTE)],
                dashed=broken or colour >= len(PALETTE),
                band=not broken and len(named) <= 4,
            )
        )
    return draw_curves(
        name,
        caption,
        found,
        over="evaluations",
        labels=(BUDGET, "score"),
        title=title,
        log=(False, False),
    )


def _conflict(
    rows: Sequence[Row], config: Mapping[str, Any], here: Mapping[str, Any], label: str
) -> Section:
    lines, space = [], deciding_space(rows)
    for pair in config["pairs"]:
        tasks = sorted(
            {
                r.context["task"]
                for r in rows
                if r.context.get("pair") == pair and "run" in r.context
            }
        )
        known, lost = (
            f"{text_of(rows, 'pair_cosine', pair=pair, point=point, space=space)} (of two halves "
            "of one task's examples "
            f"{text_of(rows, 'half_cosine', pair=pair, point=point, space=space)})"
            for point in ("pretrained", "damaged")
        )
        lines.append(
            f"{pair[0].upper()}{pair[1:]} pairs ({', '.join(tasks)}): cosine {known} at θ₀, where "
            f"the pair was chosen, and {lost} "
            "where training starts."
        )
    lines.append(
        "Pairs were chosen by rule from the cosines at θ₀: the largest is named agreeing, the "
        "smallest conflicting, and of the others "
        "the one nearest to 0 neutral, whatever their values. Each task's examples were cut in "
        "two: the first halves chose, the second "
        "are reported. Noise leaves of a cosine what it leaves of that of two halves of one task; "
        "those along training are of single "
        "batches, and noisier."
    )
    if two_spaces(rows):
        lines.append(
            "Cosines of pairs are of what the gradients do to ΔW; those along training are of the "
            "factors A and B."
        )
    return Section(
        title=f"Do the gradients conflict{label}?",
        question="Cosine between the gradients of both tasks' batches while they are trained "
        "together.",
        figures=[cosines_figure(rows, config["pairs"], here, label)]
        if cosines_seen(rows, here)
        else [],
        sees=lines,
    )


def cosines_seen(rows: Sequence[Row], here: Mapping[str, Any]) -> str:
    """The schedule whose gradient cosines are shown; empty where none differentiated several tasks
    in a step.
    """
    seen = list(
        dict.fromkeys(r.context["schedule"] for r in select(rows, "gradient_cosine", **here))
    )
    return "raw sum" if "raw sum" in seen else next(iter(seen), "")


def cosine_line(rows: Sequence[Row], pair: str, here: Mapping[str, Any]) -> str:
    """The cosine in the first and in the last steps, in a sentence."""
    there = {**here, "schedule": cosines_seen(rows, here), "pair": pair}
    found = sorted(select(rows, "gradient_cosine", **there), key=lambda r: r.context["evaluations"])
    first, last = (text_of(rows, "gradient_cosine", **r.context) for r in (found[0], found[-1]))
    return f"cosine {first} up to {found[0].context['evaluations']} gradients, {last} in the last {_last(found)}"


def _last(found: Sequence[Row]) -> int:
    marks = [r.context["evaluations"] for r in found]
    return int(marks[-1] - (marks[-2] if len(marks) > 1 else 0))


def cosines_figure(
    rows: Sequence[Row], pairs: Sequence[str], here: Mapping[str, Any], label: str
) -> Drawing:
    """Gradient cosine along training by raw sum, or the first schedule that saw it."""
    shown = cosines_seen(rows, here)
    curves = [
        Curve(
            rows=select(rows, "gradient_cosine", schedule=shown, pair=pair, **here),
            label=shown if pair == EVERY_PAIR else f"{pair} pairs",
            colour=PALETTE[i],
        )
        for i, pair in enumerate(pairs)
    ]
    return draw_curves(
        f"schedules-cosines-{here['optimiser']}",
        "Mean cosine of the tasks' batch gradients up to a number of gradients, under "
        f"{shown}{label}, 95 % band.",
        curves,
        over="evaluations",
        labels=(BUDGET, "cosine"),
        title=f"Gradient cosine along training{label}",
        limits=(-1.02, 1.02),
        log=(False, False),
    )


def _first_task(
    rows: Sequence[Row], config: Mapping[str, Any], here: Mapping[str, Any], label: str
) -> Section:
    lines = []
    for space in dict.fromkeys(r.context["space"] for r in select(rows, "overlap", **here)):
        where = (
            ""
            if space == "weights" and config["space"] != "lora"
            else f" ({'ΔW' if space == 'weights' else 'factors'})"
        )
        for between in ("A and B", "A and A again"):
            there = {**here, "pair": EVERY_PAIR, "space": space, "between": between}
            chance = select(rows, "overlap", **there)
            lines.append(
                f"Specialists of {between}{where}: the spaces of their first {config['k']} updates "
                "overlap by "
                f"{text_of(rows, 'overlap', **there)} (two random ones by "
                f"{number(chance[0].null) if chance else '–'}), their whole "
                f"ways have a cosine of {text_of(rows, 'displacement_cosine', **there)}."
            )
    return line_section(rows, config["pairs"], here, label, lines)


def line_section(
    rows: Sequence[Row],
    pairs: Sequence[str],
    here: Mapping[str, Any],
    label: str,
    lines: Sequence[str],
) -> Section:
    """The straight line between two specialists, after what is known of how far apart they are."""
    figures = [
        draw_curves(
            f"schedules-line-{name}-{here['optimiser']}",
            f"{caption} at (1−α)·specialist of the first + α·specialist of the last task{label}, "
            "mean over runs with 95 % band.",
            [
                Curve(
                    rows=select(rows, quantity, pair=pair, **here),
                    label="specialists" if pair == EVERY_PAIR else f"{pair} pairs",
                    colour=PALETTE[i],
                )
                for i, pair in enumerate(pairs)
            ],
            over="alpha",
            labels=("α", caption),
            title=f"Between two specialists{label}",
            limits=limits,
            log=(False, False),
        )
        for name, quantity, caption, limits in (
            ("loss", "line_loss", "mean loss of the tasks", None),
            ("score", "line_worst_score", "score of the worst task", (-0.02, 1.02)),
        )
    ]
    merged = list(dict.fromkeys(r.context["schedule"] for r in select(rows, "merge_scale", **here)))
    told = "; ".join(
        f"{name} {text_of(rows, 'worst_score', schedule=name, pair=EVERY_PAIR, **here)} (λ "
        f"{text_of(rows, 'merge_scale', schedule=name, pair=EVERY_PAIR, **here)})"
        for name in merged
    )
    return Section(
        title=f"What do specialists share{label}?",
        question="Each task trained alone from the same point, with its share of the gradients: is "
        "there something between the "
        "first and the last that knows all?",
        figures=figures,
        sees=[
            *lines,
            "On the line between them the mean loss rises "
            f"{text_of(rows, 'barrier', pair=EVERY_PAIR, **here)} nats a token above the "
            "chord at most (0: nowhere; the barrier of linear mode connectivity).",
            *([f"Merged without further training, worst task: {told}."] if told else []),
        ],
    )

"""The schedules study on a page: which schedule leaves all tasks known, how they get there, why the
order matters (measures §12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loclin.report.figures import Drawing, select
from loclin.report.section import Missing, Section, Table, made
from loclin.report.words import number, p_text
from loclin.run.rows import Row
from loclin.schedules.names import MERGED
from loclin.studies.names import deciding_space, two_spaces
from loclin.studies.schedules import names as n
from loclin.studies.schedules.claims import MARGIN
from loclin.studies.schedules.view import BUDGET, View, curve, short, text

#: Schedules whose learning curves are drawn task by task.
TASK_BY_TASK = ("joint mixed", "raw sum", "sequential", "replay")


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    found, pairs = list[Section](), settings["pairs"]
    tasks = str(next(r.context["task"] for r in rows if "run" in r.context)).split("+")
    for optimiser in settings["optimisers"]:
        places = sorted(select(rows, n.PLACE, optimiser=optimiser), key=lambda r: r.value or 0)
        view = View(
            rows=rows,
            settings=settings,
            optimiser=optimiser,
            kinds=pairs or (n.EVERY_PAIR,),
            tasks=() if pairs else tasks,
            schedules=[r.context["schedule"] for r in places],
        )
        parts = (_ranking, _deciding, _learning, _conflict, _specialists)
        found += made([partial(part, view) for part in parts], skip)
    return found


def _of_kind(kind: str) -> str:
    return "" if kind == n.EVERY_PAIR else f", {kind} pairs"


def _ranking(view: View) -> Section:
    """The ranking, and what is recommended for a user's own tasks."""
    settings, lr = view.settings, view.settings[f"{view.optimiser}_lr"]
    groups = {"worst task": view.ranked(n.WORST), "mean of the tasks": view.ranked(n.MEAN)}
    figures = [view.dots("ranking", "Where each schedule ends", groups)]
    if len(view.kinds) > 1:
        groups = {f"{kind} pairs": view.ranked(n.WORST, pair=kind) for kind in view.kinds}
        figures.append(view.dots("kinds", "The worst task by kind of pair", groups))
    advice = list(_advice(view)) if view.tasks else []
    title, start = (
        "Which schedule leaves both tasks known",
        "where both tasks of a pair are destroyed",
    )
    if view.tasks:
        title, start = f"Which schedule for {', '.join(view.tasks)}", "the model as it is"
    return Section(
        title=f"{title}{view.label}?",
        question=f"From {start} every schedule takes {settings['evaluations']} gradients of the "
        f"same batches of {settings['batch']} examples, at a learning rate of {lr:g}. What counts "
        "is the score of the task that ends worst.",
        figures=figures,
        tables=[_table(view), *_strengths(view)],
        sees=[*advice[1:], *_ranking_lines(view), *_strength_lines(view)],
        brief=bool(view.tasks),
        follows=advice[:1],
    )


def _table(view: View) -> Table:
    """The ranking, with the score on every task, or the worst-task score of every kind of pair."""
    less, p, mean = (view.ranked(q) for q in (n.DIFFERENCE, n.DIFFERENCE_P, n.MEAN))
    more = {task: view.ranked(n.SCORE, role=n.role(i)) for i, task in enumerate(view.tasks)}
    if len(view.kinds) > 1:
        more |= {f"worst task, {kind}": view.ranked(n.WORST, pair=kind) for kind in view.kinds}
    more |= {"gradients": view.ranked(n.EVALUATIONS), "steps": view.ranked(n.STEPS)}
    rows = [
        [
            name,
            row.context["family"],
            short(row),
            number(mean[name].value),
            short(less.get(name)),
            p_text(p[name].value if name in p else None),
            *(number(column[name].value) if name in column else "–" for column in more.values()),
        ]
        for name, row in view.ranked(n.WORST).items()
    ]
    against = next((row.context["reference"] for row in less.values()), "")
    header = ["schedule", "kind", "worst task", "mean", f"worst less {against}'s", "p (Holm)"]
    return Table(
        caption=f"Ranking{view.label}: scores on test examples over runs (the best of many is "
        "flattered by being the best); differences are paired by run, p two-sided and adjusted by "
        "Holm over the schedules.",
        header=[*header, *more],
        rows=rows,
        brief=(0, 2, 3, 4, 5),
        chosen=next((row.context["schedule"] for row in view.find(n.RECOMMENDED)), None),
    )


def _strengths(view: View) -> Iterator[Table]:
    """At which strength remedies and merges are judged."""
    rows = [
        [name, number(r.context["strength"]), short(r), short(chosen)]
        for name, chosen in view.ranked(n.STRENGTH).items()
        for r in view.find(n.STRENGTH_WORST, schedule=name)
    ]
    if rows:
        yield Table(
            caption=f"Strengths{view.label}: a remedy (share of replayed examples, λ of EWC) or a "
            "merge (λ) is judged at the one whose worst task is best on validation examples, "
            "chosen anew in every run and pair; the last column is the (geometric) mean of "
            "those chosen. A strength that diverged somewhere has no line.",
            header=["schedule", "strength", "worst task, validation", "chosen"],
            rows=rows,
        )


def _strength_lines(view: View) -> Iterator[str]:
    """Which grids end where they are best."""
    for name in view.ranked(n.STRENGTH):
        rows = view.find(n.STRENGTH_WORST, schedule=name)
        best = max(rows, key=lambda r: r.value or 0.0).context["strength"]
        grid = {
            r.context["strength"]
            for r in view.rows
            if r.quantity == n.STRENGTH_WORST and r.context["schedule"] == name
        }
        if len(grid) > 1 and best in (min(grid), max(grid)):
            yield (
                f"{name[0].upper()}{name[1:]} is best at the end of its grid ({number(best)}): "
                "beyond it may be a better strength."
            )


def _deciding(view: View) -> Iterator[Section]:
    """What decides both claims: the better order against every simultaneous schedule, and those
    among each other.
    """
    less = {r.context["schedule"]: r for r in view.find(n.ORDER_LESS)}
    apart = view.find(n.APART)
    if not less:
        return
    widest = max(apart, key=lambda r: abs(r.value or 0.0))
    outside = [r for r in apart if r.low is None or max(-r.low, r.high or 0.0) > MARGIN]
    title = "The better order less each schedule"
    lowest = max((s for s in less if s != n.MEDIAN), key=lambda s: less[s].value or 0.0)
    yield Section(
        title=f"Is one task after the other last{view.label}?",
        question="In every pair the better of both orders, which being chosen flatters, less each "
        "schedule that trains both at once; and these less each other. Worst tasks are averaged "
        "over the pairs of a run, runs over those of a model.",
        figures=[view.dots("orders", title, {"worst task": less}, fitted=True)],
        sees=[
            f"Less the lowest simultaneous schedule ({lowest}): {text([less[lowest]])}; less the "
            f"median one: {text([less[n.MEDIAN]])}.",
            f"Of {len(apart)} differences between simultaneous schedules the widest is "
            f"{widest.context['schedule']} less {widest.context['reference']}, {text([widest])}; "
            f"the intervals of {len(outside)} reach beyond {MARGIN} either way.",
        ],
    )


def _advice(view: View) -> Iterator[str]:
    """The recommendation with its uncertainty, in sentences."""
    runs, every = view.settings["seeds"], view.ranked(n.WORST)
    best, row = view.find(n.BEST)[0].context["schedule"], next(iter(view.find(n.RECOMMENDED)), None)
    taken = row.context["schedule"] if row else best
    way = f"from {text(view.find(n.FIRST_WORST))} to {text([every[taken]])} on test examples"
    if row is None:
        yield (
            f"No recommendation: not even {best} is shown to teach the worst task anything ({way})."
            f" Give more --evaluations, another --{view.optimiser}-lr, or more data."
        )
        return
    why = "the best on validation examples (of the same trainings: a little flattered)"
    if row.null is not None:
        why = (
            f"it needs no more than an order of the data, and is shown to be less than "
            f"{-row.null:g} worse than the best on validation examples, {best} (by {text([row])})"
        )
    yield f"Recommended: {taken}, whose worst task goes {way}: {why}."
    better, level = (view.ranked(n.LESS_RECOMMENDED, relation=r) for r in (n.BETTER, n.ALIKE))
    if better:
        each = ", ".join(f"{name} (by {text([r])})" for name, r in better.items())
        yield f"Better than it on test examples, before any correction for their number: {each}."
    if runs < 2:
        yield "One run has no interval: nothing is told apart; give --seeds 5 or more."
    elif level:
        most = (f" (better by {r.high:.2f} at most)" if r.high else "" for r in level.values())
        each = ", ".join(map("".join, zip(level, most, strict=True)))
        yield f"Not told apart from it by {runs} runs: {each}."
    yield (
        "Intervals are over repeated runs, which differ in adapter, order and splits of one set of "
        "examples: too short for new examples, and silent on longer trainings or other learning "
        "rates."
    )


def _ranking_lines(view: View) -> Iterator[str]:
    """What one sees in a ranking, in sentences."""
    less, p = view.ranked(n.DIFFERENCE), view.ranked(n.DIFFERENCE_P)
    apart = [f"{s} {text([r])}" for s, r in less.items() if (p[s].value or 0) < 0.05]
    for against in {row.context["reference"] for row in less.values()}:
        yield f"Told from {against} (p below 0.05 after Holm): {'; '.join(apart) or 'none'}."
    together = view.ranked(n.WORST, family="simultaneous")
    scores = [f"{number(r.value)} ({name})" for name, r in together.items()]
    if len(scores) > 1:
        yield (
            f"The {len(scores)} simultaneous schedules lie between {scores[-1]} and {scores[0]}. "
            "Those that sum gradients make one step where the others make one for each task."
        )


def _learning(view: View) -> Section:
    """Learning curves: the worst task under every schedule, and every task under a few."""
    begun, figures = view.find(n.CURVE_WORST, evaluations=0), list[Drawing]()
    for kind in ("simultaneous", "sequential"):
        names = [c["schedule"] for r in begun if (c := r.context)["family"].startswith(kind)]
        curves = [
            curve(view.find(n.CURVE_WORST, schedule=s), s, i, band=len(names) <= 4)
            for i, s in enumerate(names)
        ]
        if curves:
            figures.append(view.draw(f"curves-{kind}", f"Worst task, {kind} schedules", curves))
    for kind in view.kinds:
        figures += _task_curves(view, kind)
    return Section(
        title=f"How do they get there{view.label}?",
        question="The same budget, spent in another order: scores on test examples while the "
        "schedules train.",
        figures=figures,
        sees=[line for kind in view.kinds for line in _forgotten(view, kind)],
    )


def _task_curves(view: View, kind: str) -> Iterator[Drawing]:
    """Every task under a few schedules: the first drawn whole, the others broken."""
    contexts = [r.context for r in view.find(n.CURVE_SCORE, pair=kind)]
    roles = sorted({c["role"] for c in contexts})
    names = [s for s in TASK_BY_TASK if any(c["schedule"] == s for c in contexts)]
    labels = dict(zip(roles, view.tasks or [f"task {role}" for role in roles], strict=True))
    curves = [
        curve(
            view.find(n.CURVE_SCORE, pair=kind, schedule=name, role=role),
            f"{name}, {label}",
            i,
            band=len(names) * len(roles) <= 4,
            dashed=role != roles[0],
        )
        for i, name in enumerate(names)
        for role, label in labels.items()
    ]
    if curves:
        yield view.draw(f"tasks-{kind}", f"Every task{_of_kind(kind)}", curves)


def _forgotten(view: View, kind: str) -> Iterator[str]:
    """What sequential training leaves of the task that came first."""
    way = _in_order(view.find(n.CURVE_SCORE, schedule="sequential", role="A", pair=kind))
    if way:
        most = max(way, key=lambda r: r.value or 0.0)
        yield (
            f"One after the other{_of_kind(kind)}: the task trained first is at {text([most])} "
            f"after {most.context['evaluations']} gradients, where it was highest, and at "
            f"{text(way[-1:])} at the end."
        )


def _in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: int(r.context["evaluations"]))


def _conflict(view: View) -> Iterator[Section]:
    """Gradient cosines along training by raw sum, or the first schedule that saw them."""
    seen = [r.context["schedule"] for r in view.find(n.GRADIENT_COSINE)]
    shown = "raw sum" if "raw sum" in seen else next(iter(seen), "")
    curves = view.by_kind(n.GRADIENT_COSINE, shown, schedule=shown)
    title, labels = f"Gradient cosine along training by {shown}", (BUDGET, "cosine")
    if shown or not view.tasks:
        yield Section(
            title=f"Do the gradients conflict{view.label}?",
            question="Mean cosine between the gradients of the tasks' batches while they are "
            "trained together. The noise of the batches makes it smaller.",
            figures=[view.draw("cosines", title, curves, labels, (-1.02, 1.02))] if shown else [],
            sees=list(_cosine_lines(view, shown) if view.tasks else _pair_lines(view)),
        )


def _cosine_lines(view: View, shown: str) -> Iterator[str]:
    """The cosine in the first and in the last steps."""
    rows = _in_order(view.find(n.GRADIENT_COSINE, schedule=shown))
    marks = [0, *(r.context["evaluations"] for r in rows)]
    yield (
        f"Under {shown}: cosine {text(rows)} up to {marks[1]} gradients, {text(rows[-1:])} in "
        f"the last {marks[-1] - marks[-2]}."
    )


def _pair_lines(view: View) -> Iterator[str]:
    """The pairs, with their cosines where they were chosen and where training starts."""
    rows, space = view.rows, deciding_space(view.rows)
    for kind in view.kinds:
        here = [r.context for r in rows if r.context.get("pair") == kind and "run" in r.context]
        tasks, cosine = ", ".join(sorted({c["task"] for c in here})), dict[str, str]()
        for point in ("pretrained", "damaged"):
            there = {"pair": kind, "point": point, "space": space}
            own, half = (text(select(rows, q, **there)) for q in (n.PAIR_COSINE, n.HALF_COSINE))
            cosine[point] = f"{own} (of two halves of one task's examples {half})"
        yield (
            f"{kind[0].upper()}{kind[1:]} pairs ({tasks}): cosine {cosine['pretrained']} at θ₀, "
            f"where the pair was chosen, and {cosine['damaged']} where training starts."
        )
    yield (
        "The largest cosine at θ₀ is named agreeing, the smallest conflicting, the nearest to 0 of "
        "the others neutral, whatever their values. Halves of the examples chose, the others are "
        "reported. Noise leaves of a cosine what it leaves of that of two halves of one task; "
        "along training they are of single batches, and noisier."
    )
    if two_spaces(rows):
        yield "Cosines of pairs are those of ΔW; along training, of the factors A and B."


def _specialists(view: View) -> Section:
    """The straight line between two specialists, and how far apart they are."""
    title, every = "Between two specialists", view.ranked(n.WORST)
    place = "α, from the specialist of the first task (0) to that of the last (1)"
    loss, score = (place, "mean loss of the tasks"), (place, "score of the worst task")
    figures = [
        view.draw("line-loss", title, view.by_kind(n.LINE_LOSS, "specialists"), loss, None),
        view.draw("line-score", title, view.by_kind(n.LINE_WORST, "specialists"), score),
    ]
    merged = "; ".join(f"{s} {text([every[s]])}" for s in MERGED if s in every)
    return Section(
        title=f"What do specialists share{view.label}?",
        question="Each task trained alone from the same point, with its share of the gradients: is "
        "there something between the first and the last that knows all?",
        figures=figures,
        sees=[
            *_apart_lines(view),
            f"On the line between them the mean loss rises {text(view.find(n.BARRIER))} nats a "
            "token above the chord at most (0: nowhere; the barrier of linear mode connectivity).",
            *([f"Merged without further training, worst task: {merged}."] if merged else []),
        ],
    )


def _apart_lines(view: View) -> Iterator[str]:
    names = {"factors": " (factors)"}
    names |= {"weights": " (ΔW)" if view.settings["space"] == "lora" else ""}
    for row in view.find(n.OVERLAP):
        space, between = row.context["space"], row.context["between"]
        cosine = view.find(n.DISPLACEMENT_COSINE, space=space, between=between)
        yield (
            f"Specialists of {between}{names[space]}: the spaces of their first {row.context['k']} "
            f"updates overlap by {text([row])} (two random ones by {number(row.null)}), their "
            f"whole ways have a cosine of {text(cosine)}."
        )

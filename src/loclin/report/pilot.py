"""A pilot of schedules on one's own tasks: the recommendation, a page, and a short table for the
terminal (measures §12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loclin.record import Record, Row
from loclin.report.ranking import MARGIN, ranked, ranking_table, recommended, reference_of, text
from loclin.report.schedules import (
    EVERY_PAIR,
    cosine_line,
    cosines_figure,
    cosines_seen,
    courses,
    line_section,
    ranking_figure,
    ranking_lines,
)
from loclin.report.section import OPTIMISERS, Section, text_of
from loclin.report.words import p_text
from loclin.stats import Estimate

KIND = "pilot"


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    here, label = _here(config), f", {OPTIMISERS[config['optimiser']]}"
    every = ranked(rows, **here)
    caption = (
        f"Scores on test examples over {every[0].worst.n} pilots; differences are paired by pilot, "
        "p two-sided and "
        "adjusted by Holm over the schedules."
    )
    optimiser = {"optimiser": config["optimiser"]}
    conflict = []
    if cosines_seen(rows, optimiser):
        seen = f"Under {cosines_seen(rows, optimiser)}: {cosine_line(rows, EVERY_PAIR, optimiser)}."
        conflict = [
            Section(
                title="Do the gradients of the tasks conflict?",
                question="Mean cosine between the gradients of the tasks' batches while they are "
                "trained together, attenuated by the "
                "noise of the batches.",
                figures=[cosines_figure(rows, (EVERY_PAIR,), optimiser, label)],
                sees=[seen],
            )
        ]
    return [
        Section(
            title=f"Which schedule for {', '.join(_tasks(rows))}?",
            question=f"Every schedule takes {config['evaluations']} gradients of {config['batch']} "
            "examples, at a learning rate of "
            f"{config['lr']:g}. The score that counts is that of the task that ends worst.",
            figures=[ranking_figure(rows, every, here, label)],
            tables=[ranking_table(rows, caption, (), tasks=_tasks(rows), **here)],
            sees=[*advice(rows, config), *ranking_lines(every)],
        ),
        courses(rows, (EVERY_PAIR,), optimiser, label, _tasks(rows)),
        *conflict,
        line_section(rows, (EVERY_PAIR,), optimiser, label, []),
    ]


def advice(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """The recommendation with its uncertainty, in sentences."""
    here, pilots = _here(config), config["seeds"]
    found = recommended(rows, **here)
    start = text_of(rows, "first_worst_score", **here)
    if found.schedule is None:
        yield (
            f"No recommendation: not even {found.best} is shown to teach the worst task anything "
            f"(from {start} to "
            f"{text_of(rows, 'worst_score', schedule=found.best, **here)}). Give more "
            "--evaluations, another --lr, or more data."
        )
        return
    worst = text_of(rows, "worst_score", schedule=found.schedule, **here)
    if found.behind is None:
        yield (
            f"Recommended: {found.schedule}, the best on validation examples; on test examples its "
            f"worst task goes from {start} to "
            f"{worst} (by the same trainings it was chosen by: a little flattered)."
        )
    else:
        yield (
            f"Recommended: {found.schedule}, whose worst task goes from {start} to {worst}: it "
            "needs no more than an order of the "
            f"data, and is shown to be less than {MARGIN} worse than the best on validation "
            f"examples, {found.best} (on test examples "
            f"by {text(found.behind)})."
        )
    if found.better:
        each = ", ".join(f"{name} (by {text(e)})" for name, e in found.better)
        yield f"Better than it on test examples, before any correction for their number: {each}."
    if pilots < 2:
        yield "One pilot has no interval: nothing is told apart; give --seeds 5 or more."
    elif found.level:
        bounded = ", ".join(
            name if most == float("inf") else f"{name} (better by {most:.2f} at most)"
            for name, most in found.level
        )
        yield f"Not told apart from it by {pilots} pilots: {bounded}."
    for r in ranked(rows, **here):
        if r.family == "sequential":
            yield f"One task after the other ({r.schedule}) leaves the worst at {text(r.worst)}."
    yield (
        "Intervals are 95 % over repeated pilots, which differ in adapter, order and splits of one "
        "set of examples: for new examples "
        "they are too short, and they say nothing of longer trainings or other learning rates."
    )


def print_pilot(folder: Path) -> None:
    """Print the ranking and the recommendation of a run folder; nothing where it holds no pilot
    that is finished.
    """
    record = Record(folder)
    for name, config in record.run()["studies"].items():
        if config["study"] != KIND or not (folder / name / "results.json").exists():
            continue
        rows, console = record.results(name), Console()
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        every = ranked(rows, **_here(config))
        for heading in (
            "schedule",
            "worst task",
            "mean",
            f"worst less {reference_of(every)}'s",
            "p Holm",
        ):
            table.add_column(heading, overflow="fold")
        taken = recommended(rows, **_here(config)).schedule
        for r in every:
            behind = "–" if r.behind is None else _short(r.behind)
            cells = (r.schedule, _short(r.worst), f"{r.mean.value:.2f}", behind, p_text(r.p_holm))
            table.add_row(*map(Text, cells), style="bold" if r.schedule == taken else "")
        console.print(table)
        for line in advice(rows, config):
            console.print(Text(line), soft_wrap=True)


def _here(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"pair": EVERY_PAIR, "optimiser": config["optimiser"]}


def _tasks(rows: Sequence[Row]) -> list[str]:
    return str(next(r.context["task"] for r in rows if "run" in r.context)).split("+")


def _short(estimate: Estimate) -> str:
    """Two digits are more than a few test examples tell."""
    finite = isfinite(estimate.low)
    return (
        f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
        if finite
        else f"{estimate.value:.2f}"
    )

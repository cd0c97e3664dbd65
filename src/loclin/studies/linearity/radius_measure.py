"""The radius of one direction at a model's own point: load, read the direction, find its linear
window, and say it in rows (measures §7, §14).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.activations.blocks import bare
from loclin.errors import LoclinError
from loclin.line import check_finite, signed_grid
from loclin.models import Problem, load, twice_differentiable
from loclin.models.direction import read_direction
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.run.rows import Part, Row, estimated, finite
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.directions import curvature_notes
from loclin.studies.known import known
from loclin.studies.linearity.names import GRADIENT, SIGNS, UNITS
from loclin.studies.linearity.radius_settings import RadiusSettings
from loclin.studies.linearity.rows import Context, curve_rows, rows_of
from loclin.tasks.example import Example
from loclin.updates import check_room
from loclin.window import Effect, LinearWindow, linear_window

HELD = 6  # vectors as long as the weights that are held at once, beside the weights themselves


def measure(settings: RadiusSettings, run: int, session: Session) -> Part:
    """The radius, and what is to be said of the model, the data and the direction.

    Raises:
        LoclinError: a model, data or direction that cannot be read or do not fit, a loss that is
            not finite, too little memory.
    """
    session.progress("loading the model", 0.0)
    problem = session.problem or load(settings, seed=settings.seed, progress=session.progress)
    before = known(problem, settings, progress=session.progress)
    space = ParameterSpace(problem.model, "*" if settings.space == "full" else settings.space)
    dimension, length = space.dimension, space.norm()
    examples, notes = examples_drawn(settings, problem)
    eval_set = EvalSet.of(problem, examples, folds=settings.folds, at_once=settings.batch)
    check_finite(*eval_set.tallies(), eval_set.count)
    chunks = [(i, batch) for i in range(eval_set.count) for batch in eval_set.fold(i)]
    groups, batches = [i for i, _ in chunks], [batch for _, batch in chunks]
    along_gradient = settings.direction == GRADIENT
    if along_gradient:
        check_room(space, HELD, "move fewer weights by --space")
        vector, more = space.gradient(eval_set.loss, batches), list[str]()
    else:
        space, vector, more = moved(settings, problem, space)

    def rows(window: LinearWindow) -> list[Row]:
        size = Row(quantity="dimension", value=float(dimension))
        return [*before.rows, *window_rows(window, settings.tolerance), size]

    window = linear_window(
        space,
        eval_set.loss,
        batches,
        vector,
        tolerance=settings.tolerance,
        steps=signed_grid(settings.smallest, settings.largest, settings.per_decade),
        precision=settings.precision,
        length=length,
        whole=not along_gradient,
        groups=groups,
        tallies=eval_set.tallies,
        curvature=settings.curvature,
        differentiable=lambda: twice_differentiable(problem.model),
        progress=session.progress,
        keep=session.kept,
        early=lambda window: _early(session, rows(window)),
    )
    alike = problem.one_answer(examples)
    notes = [*problem.notes, *before.notes, *notes, alike, *more, *_method(window, problem)]
    return Part(rows=rows(window), arrays={}, notes=list(filter(None, notes)))


def _early(session: Session, rows: list[Row]) -> None:
    """A first answer, for the page of a command that goes on."""
    session.pieces("first answer", lambda: Part(rows=rows, arrays={}), now=True)


def examples_drawn(settings: RadiusSettings, problem: Problem) -> tuple[list[Example], list[str]]:
    """Examples that a built-in model never saw; of other data any, as nothing is trained here."""
    if settings.task is not None and settings.task not in problem.tasks:
        raise LoclinError(
            f"unknown task {settings.task!r}: expected one of {', '.join(problem.tasks)}"
        )
    tasks = [settings.task] if settings.task else list(problem.tasks)
    splits = list(problem.examples) if settings.data else ["test"]
    every = [e for split in splits for task in tasks for e in problem.examples[split][task]]
    generator = torch.Generator().manual_seed(derived(settings.seed, "radius examples"))
    order = torch.randperm(len(every), generator=generator)
    chosen = [every[i] for i in order[: settings.examples].tolist()]
    return chosen, [f"{len(chosen)} of {len(every)} examples of {', '.join(tasks)} are asked"]


def moved(
    settings: RadiusSettings, problem: Problem, space: ParameterSpace
) -> tuple[ParameterSpace, Float[Tensor, " D"], list[str]]:
    """A direction from files, as long as it was given, in the coordinates that it moves: the rest
    of the model is frozen, so that no derivative is taken there.
    """
    direction = read_direction(settings.direction, bare(problem.model))
    tensors, notes = direction.tensors, list(direction.notes)
    outside = len(tensors.keys() - set(space.names))
    if outside == len(tensors):
        raise LoclinError(
            "expected a space with weights that the direction moves, found none of its "
            f"{len(tensors)} tensors in {settings.space!r}: change --space"
        )
    if outside:
        notes.append(f"{outside} of these lie outside {settings.space!r} and stay")
    kept = set(space.names) & tensors.keys()
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name in kept)
    space = ParameterSpace(problem.model)
    check_room(space, HELD, "move fewer weights by --space")
    return space, space.flat(tensors[n].to(space.parameters[0]) for n in space.names), notes


def _method(window: LinearWindow, problem: Problem) -> list[str]:
    """How curvature was taken, where that is not plain."""
    if window.method == "double backward":
        return curvature_notes(problem)
    why = f" ({window.refused.rsplit(': ', 1)[0]})" if window.refused else ""
    return [f"curvature is taken by finite differences of gradients{why}"]


def window_rows(window: LinearWindow, tolerance: float) -> Iterator[Row]:
    """A linear window as rows: the line as it was swept, the radius and its edges in three units,
    the whole vector where there is one.
    """
    here, profile = {"tolerance": tolerance}, window.line.profile()
    yield from rows_of({}, weights_length=window.units["length"], direction_length=window.length)
    yield from curve_rows(profile.on(window.steps), {}, logarithms=False)
    sides = dict(zip(SIGNS.values(), (window.forward, window.backward), strict=True))
    for sign, reach in sides.items():
        at = {"sign": sign, **here}
        for unit, name in UNITS.items():
            null = finite(profile.predicted(tolerance) * window.units[unit])
            size = (reach.size or {}).get(unit)
            yield estimated("radius", size, {**at, "as": name}, null=null)
        yield from rows_of(at, radius_open=float(reach.open))
    for unit, name in UNITS.items():
        size = (window.predicted or {}).get(unit)
        yield estimated("predicted_radius", size, {"as": name, **here})
    yield from rows_of(here, limit=finite(window.limit))
    for sign, reach in sides.items():
        if reach.edge:
            yield from _effect_rows("edge", reach.edge, profile.score, {"sign": sign, **here})
    if window.whole:
        known = None if window.inside is None else float(window.inside)
        yield from rows_of(here, whole_step=window.whole.step, whole_inside=known)
        yield from _effect_rows("whole", window.whole, profile.score, here)
    yield from rows_of({}, loss=profile.loss, score_here=profile.score)
    yield from rows_of({}, slope=profile.slope, curvature=profile.curvature)


def _effect_rows(name: str, effect: Effect, score: float, here: Context) -> Iterator[Row]:
    """Nulls: the change to first order; the score before the step."""
    yield estimated(f"{name}_loss_change", effect.change, here, null=effect.predicted)
    yield estimated(f"{name}_error", effect.error, here)
    yield estimated(f"{name}_score", effect.score, here, null=score)

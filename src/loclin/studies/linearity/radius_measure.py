"""The radius of one direction at a model's own point: load, read the direction, find its linear
window, and say it in rows (measures §7, §14).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.line import check_finite, signed_grid
from loclin.models import Problem, load, twice_differentiable
from loclin.models.direction import Tensors, read_direction
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.run.rows import Part, Row, estimated, finite
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.linearity.measure import switch_note
from loclin.studies.linearity.names import GRADIENT, SIGNS, UNITS
from loclin.studies.linearity.radius_settings import RadiusSettings
from loclin.studies.linearity.rows import Context, curve_rows, rows_of
from loclin.tasks.example import Example
from loclin.updates import free_memory
from loclin.window import Effect, LinearWindow, linear_window

HELD = 6  # vectors as long as the weights that are held at once, beside the weights themselves
Direction = tuple[Float[Tensor, " D"], list[str]]


def measure(settings: RadiusSettings, run: int, session: Session) -> Part:
    """The radius, and what is to be said of the model, the data and the direction.

    Raises:
        LoclinError: a model, data or direction that cannot be read or do not fit, a loss that is
            not finite, too little memory.
    """
    session.progress("loading the model", 0.0)
    problem = load(settings, seed=settings.seed, progress=session.progress)
    space = ParameterSpace(problem.model, "*" if settings.space == "full" else settings.space)
    _check_room(space)
    examples, notes = examples_asked(settings, problem)
    eval_set = EvalSet.of(problem, examples, folds=settings.folds, at_once=settings.batch)
    check_finite(*eval_set.tallies(), eval_set.count)
    chunks = [(i, batch) for i in range(eval_set.count) for batch in eval_set.fold(i)]
    groups, batches = [i for i, _ in chunks], [batch for _, batch in chunks]
    along_gradient = settings.direction == GRADIENT
    if along_gradient:
        vector, more = space.gradient(eval_set.loss, batches), list[str]()
    else:
        vector, more = read_vector(settings, problem, space)

    def rows(window: LinearWindow) -> list[Row]:
        dimension = Row(quantity="dimension", value=float(space.dimension))
        return [*window_rows(window, settings.tolerance), dimension]

    window = linear_window(
        space,
        eval_set.loss,
        batches,
        vector,
        tolerance=settings.tolerance,
        steps=signed_grid(settings.smallest, settings.largest, settings.per_decade),
        precision=settings.precision,
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
    notes = [*problem.notes, *notes, alike, *more, *_method(window, problem)]
    return Part(rows=rows(window), arrays={}, notes=list(filter(None, notes)))


def _early(session: Session, rows: list[Row]) -> None:
    """A first answer, for the page of a command that goes on."""
    session.pieces("first answer", lambda: Part(rows=rows, arrays={}))


def examples_asked(settings: RadiusSettings, problem: Problem) -> tuple[list[Example], list[str]]:
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


def read_vector(settings: RadiusSettings, problem: Problem, space: ParameterSpace) -> Direction:
    """A direction from files in the coordinates of the space, as long as it was given."""
    direction = read_direction(settings.direction, Tensors.of(problem.model))
    tensors, notes = direction.tensors, list(direction.notes)
    outside = len(tensors.keys() - set(space.names))
    if outside == len(tensors):
        raise LoclinError(
            "expected a space with weights that the direction moves, found none of its "
            f"{len(tensors)} tensors in {settings.space!r}: change --space"
        )
    vector = torch.zeros_like(space.read())
    for name, piece in space.by_tensor(vector).items():
        if name in tensors:
            piece.copy_(tensors[name])
    if outside:
        notes.append(f"{outside} of these lie outside {settings.space!r} and stay")
    return vector, notes


def _method(window: LinearWindow, problem: Problem) -> list[str]:
    """How curvature was taken, where that is not plain."""
    if window.method == "double backward":
        return switch_note(problem)
    why = f" ({window.refused.rsplit(': ', 1)[0]})" if window.refused else ""
    return [f"curvature is taken by finite differences of gradients{why}"]


def _check_room(space: ParameterSpace) -> None:
    needed = HELD * space.dimension * space.parameters[0].element_size()
    free = free_memory(space.parameters[0].device)
    if needed > free:
        raise LoclinError(
            f"expected room for about {HELD} directions of {space.dimension} coordinates "
            f"({needed / 1e9:.0f} GB), found {free / 1e9:.0f} GB of free memory: move fewer "
            "weights by --space"
        )


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

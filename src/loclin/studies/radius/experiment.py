"""The radius of one direction at a model's own point, start to record: load, read the direction,
sweep, close in, write.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from loclin.curvature import Method, NoSecondDerivative, hessian_operator
from loclin.errors import LoclinError
from loclin.geometry.gramian import exact, inner
from loclin.integrations.direction import Tensors, read_direction
from loclin.models import BUILT_IN, Problem, load, twice_differentiable
from loclin.models.exam import Exam
from loclin.models.pretrained import How, device_named
from loclin.parameters import ParameterSpace
from loclin.record import Record, Row
from loclin.seeds import derived
from loclin.studies.radius.config import GRADIENT, Config
from loclin.studies.radius.measure import (
    SIGNS,
    Ask,
    Scale,
    closed_in,
    curve_rows,
    edge_rows,
    radius_rows,
    told_from_scatter,
    whole_rows,
)
from loclin.studies.rays import Line, finite_centre, line_along, signed_grid
from loclin.tasks.example import Example
from loclin.updates import free_memory
from loclin.window import losses_along, ray

STUDY = "radius"
NOT_WHAT = ("out",)
HELD = 6  # vectors as long as the weights that are held at once, beside the weights themselves
Told = Callable[[str], None]


def measure_radius(config: Config, *, out: Path) -> None:
    """Measure, showing the progress, and write the record.

    Args:
        config: what to measure.
        out: the run folder; measured again where it exists already.

    Raises:
        LoclinError: bad settings, a model, data or direction that cannot be read or do not fit, a
            loss that is not finite, a folder of other settings.
    """
    config = config.checked()
    record, began = Record(out), time.perf_counter()
    device = device_named(config.device, small=config.model in BUILT_IN)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_WHAT}
    record.open_study(STUDY, settings, device=config.device_map or device)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True
    ) as bar:
        grid = signed_grid(config.smallest, config.largest, config.per_decade)
        task = bar.add_task("loading the model", total=len(grid) + 3 * config.folds + 20)
        rows, notes = radius_of(
            config, device, lambda text: bar.update(task, advance=1, description=text)
        )
    record.write_results(STUDY, rows, {})
    record.close_study(STUDY, time.perf_counter() - began, notes)


def radius_of(config: Config, device: str, told: Told) -> tuple[list[Row], list[str]]:
    """Every row, and what is to be said of the model, the data and the direction.

    Args:
        config: what to measure.
        device: where.
        told: called with what is done next, before every pass.
    """
    problem = _problem(config, device, told)
    space = ParameterSpace(problem.model, "*" if config.space == "full" else config.space)
    _check_room(space)
    examples, notes = _examples(config, problem)
    exam = Exam.of(problem, examples, folds=config.folds, at_once=config.batch)
    finite_centre(*exam.tallies(), exam.count)
    vector, more = _vector(config, problem, space, exam, told)
    notes = [*problem.notes, *notes, *more]
    origin = space.read()
    scale = Scale(weights=_length(origin), vector=_length(vector))
    w = ray(origin, vector)
    slopes, curvatures, method = _derivatives(config, space, exam, w, told)
    notes += [method] if method else []
    grid = signed_grid(config.smallest, config.largest, config.per_decade)
    if config.direction != GRADIENT:
        grid = sorted({*grid, scale.whole})

    def ask(steps: Sequence[float]) -> np.ndarray:
        told("closing in on the edges")
        return losses_along(space, exam.tallies, w, steps)[0]

    line = line_along(
        space,
        exam,
        w,
        grid,
        slopes=slopes,
        curvatures=curvatures,
        passed=lambda: told("following the loss"),
    )
    numbers = {
        "weights_length": scale.weights,
        "direction_length": scale.vector,
        "dimension": float(space.dimension),
    }
    rows = [Row(quantity=quantity, value=value) for quantity, value in numbers.items()]
    return [*rows, *_line_rows(config, line, ask, scale)], notes


def _line_rows(config: Config, line: Line, ask: Ask, scale: Scale) -> Iterator[Row]:
    """The line as it was swept, then the radius and what is at its edges, then the whole vector
    where there is one.
    """
    tolerance = config.tolerance
    yield from curve_rows(line)
    line = closed_in(told_from_scatter(line, ask), ask, tolerance, precision=config.precision)
    yield from radius_rows(line, scale, tolerance)
    for sign, name in SIGNS.items():
        size = line.profile().window(sign, tolerance).size
        if size is not None:
            edge = sign * size
            there = line if edge in line.steps else line.joined([edge], ask([edge]))
            yield from edge_rows(there, edge, {"sign": name, "tolerance": tolerance}, "edge")
    if config.direction != GRADIENT:
        yield from whole_rows(line, scale, tolerance)
    whole = line.profile()
    numbers = {
        "loss": whole.loss,
        "score_here": whole.score,
        "slope": whole.slope,
        "curvature": whole.curvature,
    }
    yield from (Row(quantity=quantity, value=value) for quantity, value in numbers.items())


def _problem(config: Config, device: str, told: Told) -> Problem:
    told("loading the model")
    how = How.of(config, device)
    return load(
        config.model,
        data=config.data,
        seed=config.seed,
        how=how,
        template=config.template,
        long=config.long,
    )


def _examples(config: Config, problem: Problem) -> tuple[list[Example], list[str]]:
    """Examples that a built-in model never saw; of other data any, since nothing is trained here."""
    if config.task is not None and config.task not in problem.tasks:
        raise LoclinError(
            f"unknown task {config.task!r}: expected one of {', '.join(problem.tasks)}"
        )
    tasks = [config.task] if config.task else list(problem.tasks)
    splits = ["test"] if config.data is None else list(problem.examples)
    found = [e for split in splits for task in tasks for e in problem.examples[split][task]]
    order = torch.randperm(
        len(found), generator=torch.Generator().manual_seed(derived(config.seed, "radius examples"))
    )
    chosen = [found[i] for i in order[: config.examples].tolist()]
    return chosen, [f"{len(chosen)} of {len(found)} examples of {', '.join(tasks)} are asked"]


def _vector(
    config: Config, problem: Problem, space: ParameterSpace, exam: Exam, told: Told
) -> tuple[Float[Tensor, " D"], list[str]]:
    """The direction in the coordinates of the space, as long as it was given."""
    if config.direction == GRADIENT:
        told("taking the gradient")
        return space.gradient(exam.loss, (b for i in range(exam.count) for b in exam.fold(i))), []
    told("reading the direction")
    found = read_direction(config.direction, Tensors.of(problem.model))
    inside = [n for n in space.names if n in found.tensors]
    if not inside:
        raise LoclinError(
            "expected a space with weights that the direction moves, found none of its "
            f"{len(found.tensors)} tensors in "
            f"{config.space!r}: change --space"
        )
    vector = torch.zeros_like(space.read())
    for name, piece in space.by_tensor(vector).items():
        if name in found.tensors:
            piece.copy_(found.tensors[name])
    outside = len(found.tensors) - len(inside)
    return vector, [
        *found.notes,
        *([f"{outside} of these lie outside {config.space!r} and stay"] if outside else []),
    ]


def _derivatives(
    config: Config, space: ParameterSpace, exam: Exam, w: Float[Tensor, " D"], told: Told
) -> tuple[Float[np.ndarray, " folds"], Float[np.ndarray, " folds"], str]:
    """Slope and curvature in ε of every fold's loss, and a remark on how curvature was taken."""
    slopes, curvatures = np.empty(exam.count), np.empty(exam.count)
    for i in range(exam.count):
        told("taking slopes")
        slopes[i] = inner(space.gradient(exam.loss, exam.fold(i)), w)

    def take(method: Method) -> None:
        for i in range(exam.count):
            told("taking curvature")
            curvatures[i] = inner(
                w, hessian_operator(space, exam.loss, list(exam.fold(i)), method=method)(w)
            )

    remark, own = "", exam.problem.model.config._attn_implementation
    switched = (
        ""
        if own == "eager"
        else f"attention is switched from {own} to eager for second derivatives"
    )
    if config.curvature != "finite differences":
        try:
            with twice_differentiable(exam.problem.model):
                take("double backward")
            return slopes, curvatures, switched
        except NoSecondDerivative as error:
            if config.curvature == "double backward":
                raise
            remark = f" ({str(error).rsplit(': ', 1)[0]})"
    take("finite differences")
    return slopes, curvatures, f"curvature is taken by finite differences of gradients{remark}"


def _check_room(space: ParameterSpace) -> None:
    needed = HELD * space.dimension * space.parameters[0].element_size()
    free = free_memory(space.parameters[0].device)
    if needed > free:
        raise LoclinError(
            f"expected room for about {HELD} directions of {space.dimension} coordinates "
            f"({needed / 1e9:.0f} GB), found "
            f"{free / 1e9:.0f} GB of free memory: move fewer weights by --space"
        )


def _length(vector: Tensor) -> float:
    return float(exact(vector).norm())

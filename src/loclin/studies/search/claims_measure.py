"""One independent run of the claims about random search: its examples, the point halfway back, and
searches around it and the damaged point (measures §10, §11).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.krylov import Product
from loclin.geometry.subspace import Subspace
from loclin.models.evaluation import EvalSet
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.search.local_law import LocalLaw, second_order
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.context import Requirements, make_context
from loclin.studies.damage import damage, recovery
from loclin.studies.search import names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.law_rows import error_rows, noise_rows, point_rows, relation_rows, sweep
from loclin.studies.search.point import PointContext, SearchRun, SearchSpace, Vector
from loclin.studies.search.subspaces import search_spaces, space_rows, static_plane, subspaces
from loclin.studies.search.votes import table_rows
from loclin.tasks.batch import Batch
from loclin.tasks.example import Example


def measure(settings: SearchClaimsSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: noise that there is not, whatever `make_context` refuses, splits too small, a
            task that is not destroyed, a loss that is not finite.
    """
    for name in settings.noises:
        Noise.parse(name)
    progress = session.progress
    ctx = make_context(settings, run, requirements(settings), progress)
    here = _Run(ctx=ctx, data=search_data(ctx), session=session, arrays={})
    rows = [*ctx.known.rows]
    rows.append(ctx.row("dimension", float(ctx.space.dimension), space=names.ALL))
    progress("making the static plane", 0.0)
    plane, known = static_plane(ctx, here.data.batches), score_of(here.data.validate)
    rows.append(ctx.row("score", ctx.score(), point="pretrained"))
    progress("destroying the task", 0.0)
    damaged = damage(ctx, ctx.task)
    progress("training it back", 0.0)
    path = recover(ctx, here.data.validate, known, damaged)
    step = None if path.step is None else float(path.step)
    rows.append(Row(quantity="halfway_step", value=step, context=ctx.context))
    with ctx.space.restored():
        ctx.space.write(damaged)
        rows += _at_damaged(here, path, plane)
        ctx.space.write(path.halfway)
        rows += _at_halfway(here, plane)
    return Part(rows=rows, arrays=here.arrays, notes=(*ctx.notes, *_notes(ctx, path)))


def requirements(settings: SearchClaimsSettings) -> Requirements:
    """What the study asks of data and memory."""
    gradients = settings.select_examples + settings.gradients * settings.gradient_batch
    recovering = max(settings.select_examples, settings.batch)
    vectors = 8 * settings.k + settings.gradients + 8  # seven bases, gradients, points
    return Requirements(
        examples={
            "gradients": (gradients, "--select-examples, --gradients or --gradient-batch"),
            "recovery": (recovering, "--select-examples or --batch"),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(vectors, "--k or --gradients"),
        rows=(settings.steps, "updates"),
    )


def _notes(ctx: SearchRun, path: RecoveryPath) -> Iterator[str]:
    if path.step is None:
        yield (
            f"in a run half of the score on {ctx.task} was not back after {ctx.settings.steps} "
            "steps: the halfway point is the end"
        )
    if ctx.settings.products == "finite differences":
        yield "curvature is taken by finite differences of gradients, a fallback"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """A run, its examples, and the arrays that its record will keep."""

    ctx: SearchRun
    data: SearchData
    session: Session
    arrays: dict[str, np.ndarray]

    def keep(self, name: str, values: np.ndarray) -> None:
        """Have an array in the record."""
        self.arrays[f"{name}/{self.ctx.run}"] = values


@contextmanager
def _standing(run: _Run, point: str) -> Iterator[tuple[PointContext, Product]]:
    """The point where the space stands, and v ↦ Hv of the scored loss until something moves."""
    ctx, select = run.ctx, run.data.select
    settings, space, scored = ctx.settings, ctx.space, list(select.fold(0))
    run.session.progress("measuring the curvature", 0.0)
    gradient, other = (space.gradient(select.loss, of) for of in (scored, run.data.recovery))
    with second_order(ctx.problem, space, select.loss, scored, settings.method) as product:
        seed, probes = derived(ctx.seed, "curvature", point), settings.probes
        law = LocalLaw.by_probes(product, gradient, probes, seed=seed, noise=space.noise)
        here = PointContext(
            ctx=ctx,
            eval_set=select,
            point=point,
            whole=SearchSpace(name=names.ALL, law=law, space=space, gradient=gradient),
            recovery_gradient=other,
            progress=run.session.progress,
            keep=run.keep,
        )
        yield here, product


def _at_damaged(run: _Run, path: RecoveryPath, plane: Subspace) -> list[Row]:
    """All products before anything moves; then the searches."""
    ctx, folded = run.ctx, None
    settings = ctx.settings
    made = subspaces(ctx, run.data.batches, run.data.recovery, path.prefix, plane)
    with _standing(run, "damaged") as (here, product):
        spaces = search_spaces(here, made, product)
        if names.TIED in settings.noises:
            seed, g = derived(ctx.seed, "curvature", "damaged"), here.whole.gradient
            folded = LocalLaw.of_tied_noise(product, ctx.space, g, settings.probes, seed=seed)
    del product  # with the graph that it keeps
    swept_rows, swept = sweep(here, settings.candidates)
    rows = [*point_rows(here), *swept_rows, *space_rows(here, spaces)]
    rows += error_rows(here, names.OVER_SPACES)
    rows += noise_rows(here, folded)
    traces = {where.name: where.law.trace for where in spaces}
    shown = (names.STATIC, names.GRADIENTS, names.RANDOM)
    planes = {name: (made[name], traces[name]) for name in shown}
    return [*rows, *relation_rows(here, swept, planes, each=True)]


def _at_halfway(run: _Run, plane: Subspace) -> list[Row]:
    """The law again, and the table."""
    with _standing(run, "halfway") as (here, product):
        del product  # with the graph that it keeps
    swept_rows, swept = sweep(here, run.ctx.settings.others)
    relations = relation_rows(here, swept, {names.STATIC: (plane, None)}, each=False)
    return [*point_rows(here), *swept_rows, *relations, *table_rows(here, swept, run.data.test)]


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchData:
    """Examples of the run's task; no group is in two of these.

    Attributes:
        select: score every candidate; gradient and Hessian of the law are theirs.
        batches: of the same split, behind the bases.
        recovery: behind the recovery gradient and the Krylov space.
        validate: say when half of the score is back.
        test: select nothing.
    """

    select: EvalSet
    batches: list[Batch]
    recovery: list[Batch]
    validate: EvalSet
    test: tuple[Example, ...]


def search_data(ctx: SearchRun) -> SearchData:
    """Draw them by the run's seed.

    Raises:
        LoclinError: a gradients split with too few groups for both of its uses.
    """
    settings, problem = ctx.settings, ctx.problem

    def draw(split: str, count: int, purpose: str) -> tuple[list[Example], list[Example]]:
        return divided(problem.examples[split][ctx.task], count, seed=derived(ctx.seed, purpose))

    wanted = settings.gradients * settings.gradient_batch
    select, rest = draw("gradients", settings.select_examples, "select")
    if len(select) < settings.select_examples or len(rest) < wanted:
        raise LoclinError(
            f"expected {settings.select_examples} + {wanted} examples of {ctx.task} in the "
            f"gradients split in groups that can be divided, found {len(select)} + {len(rest)}: "
            "give more data or lower --select-examples, --gradients or --gradient-batch"
        )
    behind = problem.collate(rest[:wanted])
    recovering, _ = draw("recovery", settings.select_examples, "recovery gradient")
    validate, _ = draw("validate", settings.validate_examples, "halfway")
    test, _ = draw("test", settings.test_examples, "table")
    return SearchData(
        select=EvalSet.of(problem, select, at_once=settings.curvature_chunk),
        batches=list(behind.chunks(settings.gradient_batch)),
        recovery=list(problem.collate(recovering).chunks(settings.curvature_chunk)),
        validate=EvalSet.of(problem, validate),
        test=tuple(test),
    )


def divided(
    examples: Sequence[Example], count: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """At most `count` examples in whole groups as they come in a shuffle, cut at the last; and
    those of all other groups.

    >>> pool = [Example(prompt=str(i), answer=" x", group=str(i // 2)) for i in range(10)]
    >>> some, others = divided(pool, 3, seed=0)
    >>> len(some), len(others), {e.group for e in some} & {e.group for e in others}
    (3, 6, set())
    """
    groups: dict[str, list[Example]] = {}
    for e in examples:
        groups.setdefault(e.group or e.prompt, []).append(e)
    names, taken, others = list(groups), list[Example](), list[Example]()
    for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        (taken if len(taken) < count else others).extend(groups[names[i]])
    return taken[:count], others


@dataclass(frozen=True, eq=False, kw_only=True)
class RecoveryPath:
    """The AdamW recovery, the same as in the other studies of this run.

    Attributes:
        prefix: its first k updates.
        halfway: θ_H, the first point looked at with at least half of the score back.
        step: its step; None where it was not back at the end, which θ_H is then.
    """

    prefix: Float[Tensor, "k D"]
    halfway: Vector
    step: int | None


def recover(ctx: SearchRun, eval_set: EvalSet, known: float, damaged: Vector) -> RecoveryPath:
    """Train the task back from θ_D. The eval set is of validation examples, whose score was `known`
    at θ₀.
    """
    settings, space = ctx.settings, ctx.space
    with space.restored():
        space.write(damaged)
        enough = (known + score_of(eval_set)) / 2
    halfway: list[tuple[int | None, Vector]] = []

    def watch(t: int) -> None:
        if not halfway and t % settings.halfway_every == 0 and score_of(eval_set) >= enough:
            halfway.append((t, space.read()))
        if not halfway and t == settings.steps:
            halfway.append((None, space.read()))

    k, steps = settings.k, settings.steps
    way = recovery(
        ctx, "adamw", ctx.task, damaged, steps, order="recovery", head=k, after_step=watch
    )
    ((step, point),) = halfway
    return RecoveryPath(prefix=way.head[:k].clone(), halfway=point, step=step)


def score_of(eval_set: EvalSet) -> float:
    """Share of the examples answered right where the model stands."""
    sums, counts = eval_set.tallies()
    return float(sums[1] / counts[1])

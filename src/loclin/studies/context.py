"""What every stage of one run works with: the model, its adapter, the task to destroy, and that the
model knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32
from loclin.geometry.sketch import Sketch
from loclin.models import BUILT_IN, Problem, load
from loclin.models.cache import cache_folder
from loclin.models.lora import Factors, Lora, chosen_space
from loclin.parameters import ParameterSpace
from loclin.progress import Kept, ProgressCallback, afresh
from loclin.run.rows import Row
from loclin.seeds import derived
from loclin.studies.kept_points import kept_point
from loclin.studies.known import Known, known
from loclin.studies.settings import DamageSettings
from loclin.tasks.batch import concatenate
from loclin.training import make_optimiser, minibatches, train
from loclin.updates import UpdateStorage, check_room

C = TypeVar("C", bound=DamageSettings, covariant=True)
S = TypeVar("S", bound=DamageSettings)
TEACHING_ROUNDS = 5
UNTOUCHED = "the model is measured as it is: nothing is taught or destroyed"
OF_B = "; a new adapter's B is zero, and with it the gradient of A: gradients are those of B alone"
SHARED = 1 << 24  # coordinates of a point that the cache may hold, 67 MB in float32


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a study will ask of the data and of the memory.

    Attributes:
        examples: for each split, how many examples of the task are drawn, and the options that
            lower that.
        vectors: how many D-wide vectors are held at once, and the options that lower that.
        rows: how many vectors are kept (`UpdateStorage`), and what they are called.
    """

    examples: Mapping[str, tuple[int, str]]
    vectors: tuple[int, str]
    rows: tuple[int, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class RunContext(Generic[C]):
    """One independent run: what it works with.

    Attributes:
        settings, run: of the study, and the run's number.
        problem: the model, its adapter attached, and its data.
        space: the trained coordinates.
        factors: where LoRA's factors are in it; None where the weights themselves are trained.
        task, other: the destroyed task, and another one (None where there is only one).
        storage: where updates go.
        seed: of everything random in this run.
        notes: what was loaded, dropped, taught and kept where, in sentences.
        known: what the model knew before it was taught.
        keep: has pieces of the run kept until it ends.
    """

    settings: C
    run: int
    problem: Problem
    space: ParameterSpace
    factors: Factors | None
    task: str
    other: str | None
    storage: UpdateStorage
    seed: int
    notes: tuple[str, ...]
    known: Known
    keep: Kept[Any] = afresh

    @property
    def context(self) -> dict[str, Any]:
        """Context of this run's rows."""
        return {"run": self.run, "task": self.task}

    def dimension(self, space: str) -> int:
        """Dimensions of a space of the study."""
        if space == "weights" and self.factors:
            return self.factors.dimension
        return self.space.dimension

    def score(self, task: str | None = None) -> float:
        """Score on the test split, of the destroyed task unless another is named."""
        return self.problem.score("test", task or self.task)

    def dropout(self, *purpose: str | int) -> int | None:
        """Seed of the adapter's dropout in one training, or None where there is none."""
        return derived(self.seed, "dropout", *purpose) if self.settings.dropout else None

    def kept(self, name: str, make: Callable[[], Tensor]) -> Float[Tensor, " D"]:
        """The point that `make` gives, made once for all studies; a large one of a model of your
        own is made once for this run.
        """
        if self.settings.model not in BUILT_IN and self.space.dimension > SHARED:
            return self.kept_vectors(name, make)
        return kept_point(self.problem, self.space, self.settings, self.seed, name, make)

    def kept_vectors(self, name: str, make: Callable[[], Tensor]) -> Float[Tensor, "*rows D"]:
        """One vector or several, made once for this run, however often it is interrupted."""
        held = self.keep(name, lambda: {"vectors": at_least_float32(make()).cpu().numpy()})
        return torch.from_numpy(held["vectors"]).to(self.space.parameters[0].detach())

    def row(self, quantity: str, value: float, **context: Any) -> Row:
        """A row of this run."""
        return Row(quantity=quantity, value=value, context={**self.context, **context})


def make_context(
    settings: S,
    run: int,
    requirements: Requirements,
    progress: ProgressCallback,
    keep: Kept[Any] = afresh,
) -> RunContext[S]:
    """Load a model, attach its adapter, and teach it every task that it knows; where it knows none,
    every task.

    Raises:
        LoclinError: whatever is wrong with the model, the data or the settings; a task that cannot
            be taught.
    """
    seed = derived(settings.seed + run, "recovery study")
    problem = load(settings, seed=settings.model_seed(run), progress=progress)
    if settings.task not in ("each", *problem.tasks):
        raise LoclinError(
            f"unknown task {settings.task!r}: expected each, or one of {', '.join(problem.tasks)}"
        )
    before = known(problem, settings, run, progress=progress)
    note = list[str]()
    if not settings.untouched:
        problem, note = _to_destroy(problem, before.tasks, settings.task)
    problem, space = adapted(problem, settings, run)
    model, tasks = problem.model, problem.tasks
    each = settings.task == "each"
    index = settings.turn(run, len(tasks)) if each else tasks.index(settings.task)
    check_sizes(requirements, problem, tasks[index])
    vectors, lower = requirements.vectors
    remedy = f"train by --space lora or a pattern, or lower {lower}"
    check_room(space, vectors, remedy)
    ctx = RunContext(
        settings=settings,
        run=run,
        problem=problem,
        space=space,
        factors=Factors.of(model, space) if len(settings.spaces) > 1 else None,
        task=tasks[index],
        other=tasks[(index + 1) % len(tasks)] if len(tasks) > 1 else None,
        storage=_storage(settings, space, requirements.rows[0], seed),
        seed=seed,
        notes=(*problem.notes, *before.notes, *note),
        known=before,
        keep=keep,
    )
    taught = UNTOUCHED + (OF_B if settings.space == "lora" else "")
    if not settings.untouched:
        taught = teach(ctx, progress)
    kept = ctx.storage.describe(space, *requirements.rows)
    return replace(ctx, notes=(*ctx.notes, taught, kept))


def _to_destroy(problem: Problem, tasks: Sequence[str], task: str) -> tuple[Problem, list[str]]:
    """The problem without tasks that were not there to be destroyed, and a note on them. Where none
    was there, all are taught and destroyed; one that is named stays.
    """
    if not tasks:
        return problem, ["no task is known without teaching: what is destroyed was taught here"]
    left_out = [t for t in problem.tasks if t not in (*tasks, task)]
    note = [f"not known, and left out of destroying and recovering: {', '.join(left_out)}"]
    return problem.only([t for t in problem.tasks if t not in left_out]), note if left_out else []


def adapted(problem: Problem, settings: DamageSettings, run: int) -> tuple[Problem, ParameterSpace]:
    """The problem with a run's adapter attached, if it has one, and the trained coordinates."""
    lora = Lora(
        rank=settings.ranks[settings.turn(run, len(settings.ranks), rounds=2)],
        alpha=settings.alpha,
        targets=settings.targets,
        dropout=settings.dropout,
        init=settings.lora_init,
    )
    model, space = chosen_space(problem.model, settings.space, lora, seed=settings.seed + run)
    return replace(problem, model=model), space


def _storage(
    settings: DamageSettings, space: ParameterSpace, count: int, seed: int
) -> UpdateStorage:
    sketch = Sketch(size=settings.sketch_size, seed=derived(seed, "sketch"))
    storage = UpdateStorage(store=settings.store, folder=cache_folder(), sketch=sketch)
    sharing = min(settings.seeds, 4) if space.parameters[0].device.type == "cpu" else 1
    return storage.resolved(space, count, sharing=sharing, full=len(settings.spaces) > 1)


def check_sizes(requirements: Requirements, problem: Problem, task: str) -> None:
    """Whether the splits hold what will be asked of them, before minutes are spent on teaching."""
    for name, (needed, remedy) in requirements.examples.items():
        found = len(problem.examples[name][task])
        if found < needed:
            raise LoclinError(
                f"expected at least {needed} examples of {task} in the {name} split, found "
                f"{found}: give more data or lower {remedy}"
            )


def teach(ctx: RunContext[DamageSettings], progress: ProgressCallback) -> str:
    """Train every task until the worst one reaches the score asked for; there is θ₀.

    An adapter is taught one round at least: at its initial point B is zero, and with it half of all
    gradients. The model's own samples are known from the beginning.

    Returns:
        How well the tasks are known, in a sentence.

    Raises:
        LoclinError: as `check_known` of the task to destroy.
    """
    ctx.space.write(ctx.kept("taught", lambda: _taught(ctx, progress)))
    score, reach = check_known(ctx, ctx.task), ctx.settings.reach
    each = ctx.kept("scores where taught", lambda: torch.tensor(_validated(ctx.problem)))
    scores = dict(zip(ctx.problem.tasks, each.tolist(), strict=True))
    worst = min(scores, key=lambda task: scores[task])
    short = "" if scores[worst] >= reach else f", short of the {reach:.2f} asked for"
    return (
        f"known before the damage: {score:.2f} on {ctx.task}, {scores[worst]:.2f} on the worst "
        f"task ({worst}){short}"
    )


def check_known(ctx: RunContext[DamageSettings], task: str) -> float:
    """The score on a task where the space stands.

    Raises:
        LoclinError: it is hardly better than that of answers that ignore the question.
    """
    score, least = ctx.score(task), ctx.problem.known_from(task)
    if score < least:
        alike = ctx.problem.one_answer(ctx.problem.examples["test"][task])
        alike = f" ({alike})" if alike else ""
        raise LoclinError(
            f"expected a score of at least {least:.2f} on {task} before the damage, found "
            f"{score:.2f}{alike}: there is nothing to destroy; raise --teach-steps or --teach-lr, "
            "or give a task that the model can learn"
        )
    return score


def _validated(problem: Problem) -> list[float]:
    return [problem.score("validate", task) for task in problem.tasks]


def _taught(ctx: RunContext[DamageSettings], progress: ProgressCallback) -> Float[Tensor, " D"]:
    settings, problem = ctx.settings, ctx.problem
    known_before = settings.space != "lora" or settings.data == ("self",)
    for done in range(TEACHING_ROUNDS):
        if (done or known_before) and min(_validated(problem)) >= settings.reach:
            break
        data = concatenate([problem.batch("train", task) for task in problem.tasks])
        size, seed = min(settings.batch, len(data)), derived(ctx.seed, "teaching", done)
        train(
            problem.model,
            ctx.space,
            minibatches(data, size, seed=seed),
            make_optimiser("adamw", ctx.space, settings.teach_lr),
            settings.teach_steps,
            dropout_seed=ctx.dropout("teaching", done),
            after_step=lambda t: progress("teaching every task", t / settings.teach_steps),
        )
    return ctx.space.read()

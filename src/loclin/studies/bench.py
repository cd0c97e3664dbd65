"""What every stage of one run works with: the model, its adapter, the task to destroy, and that the
model knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.sketch import Sketch
from loclin.models import BUILT_IN, Problem, load
from loclin.models.cache import cache_folder
from loclin.models.lora import Factors, Lora, attach
from loclin.models.pretrained import How, device_named
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.seeds import derived
from loclin.studies.kept import kept_point
from loclin.studies.settings import ModelSettings, Settings
from loclin.tasks.batch import concatenate
from loclin.training import make_optimiser, minibatches, train
from loclin.updates import Keeping, free_memory

Progress = Callable[[str, float], None]
C = TypeVar("C", bound=Settings, covariant=True)
Asked = TypeVar("Asked", bound=Settings)
TEACHING_ROUNDS = 5
# of the way from answers that ignore the question to perfect ones: what has to be there to be
# destroyed
CLEARLY = 0.1


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a study will ask of the data and of the memory.

    Attributes:
        examples: how many examples of the run's task it draws from each split, and which options
            lower that.
        vectors: how many D-wide vectors it holds at once, and which options lower that.
        rows: how many vectors it keeps (`Keeping`), and what they are called.
    """

    examples: Mapping[str, tuple[int, str]]
    vectors: tuple[int, str]
    rows: tuple[int, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench(Generic[C]):
    """One run's surroundings.

    Attributes:
        config, run: what is asked, and which of its independent runs this is.
        problem: the model, its adapter attached, and its data.
        space: the trained coordinates.
        factors: where LoRA's factors are in it; None where the weights themselves are trained.
        task, other: the destroyed task, and another one to hold its recovery against (None where
            there is only one).
        keeping: where updates go.
        seed: of everything random in this run.
        notes: what was loaded, dropped, taught and kept where, in sentences.
    """

    config: C
    run: int
    problem: Problem
    space: ParameterSpace
    factors: Factors | None
    task: str
    other: str | None
    keeping: Keeping
    seed: int
    notes: tuple[str, ...]

    @property
    def context(self) -> dict[str, Any]:
        """Context of this run's rows."""
        return {"run": self.run, "task": self.task}

    def dimension(self, space: str) -> int:
        """Dimensions of a space of the study."""
        return (
            self.factors.dimension if space == "weights" and self.factors else self.space.dimension
        )

    def score(self, task: str | None = None) -> float:
        """Score on the test split, of the destroyed task unless another is named."""
        return self.problem.score("test", task or self.task)

    def dropout(self, *purpose: str | int) -> int | None:
        """Seed of the adapter's dropout in one training, or None where none is asked for."""
        return derived(self.seed, "dropout", *purpose) if self.config.dropout else None

    def kept(self, name: str, make: Callable[[], Tensor]) -> Float[Tensor, " D"]:
        """The point that `make` gives where the space stands; of a built-in model it is made once
        for all studies.
        """
        if self.config.model not in BUILT_IN:
            return make()
        return kept_point(self.problem, self.space, self.config, self.seed, name, make)

    def row(self, quantity: str, value: float, **context: Any) -> Row:
        """A row of this run."""
        return Row(quantity=quantity, value=value, context={**self.context, **context})


def device(config: ModelSettings) -> str:
    """The device that a configuration asks for; built-in models are too small to gain from an
    accelerator.

    Raises:
        LoclinError: an accelerator that is not there.
    """
    return device_named(config.device, small=config.model in BUILT_IN)


def make_bench(config: Asked, run: int, demand: Demand, progress: Progress) -> Bench[Asked]:
    """Load, attach and teach.

    Raises:
        LoclinError: whatever is wrong with the model, the data or the settings; a task that cannot
            be taught.
    """
    seed = derived(config.seed + run, "recovery study")
    problem, space, factors = _surroundings(config, run, progress)
    if config.task not in ("each", *problem.tasks):
        raise LoclinError(
            f"unknown task {config.task!r}: expected each, or one of {', '.join(problem.tasks)}"
        )
    index = run % len(problem.tasks) if config.task == "each" else problem.tasks.index(config.task)
    sketch = Sketch(size=config.sketch_size, seed=derived(seed, "sketch"))
    kept = Keeping(store=config.store, folder=cache_folder(), sketch=sketch)
    check_sizes(demand, problem, problem.tasks[index])
    _check_room(demand, space)
    count, named = demand.rows
    side_by_side = min(config.seeds, 4) if space.parameters[0].device.type == "cpu" else 1
    keeping = kept.settled(space, count, sharing=side_by_side, exactly=len(config.spaces) > 1)
    bench = Bench(
        config=config,
        run=run,
        problem=problem,
        space=space,
        factors=factors if len(config.spaces) > 1 else None,
        task=problem.tasks[index],
        other=problem.tasks[(index + 1) % len(problem.tasks)] if len(problem.tasks) > 1 else None,
        keeping=keeping,
        seed=seed,
        notes=(),
    )
    taught = teach(bench, progress)
    return replace(bench, notes=(*problem.notes, taught, keeping.sentence(space, count, named)))


def _surroundings(
    config: Settings, run: int, progress: Progress
) -> tuple[Problem, ParameterSpace, Factors | None]:
    how = How.of(config, device(config))
    problem = load(
        config.model,
        data=config.data,
        seed=config.seed + run,
        how=how,
        template=config.template,
        long=config.long,
        progress=progress,
    )
    if config.space != "lora":
        return (
            problem,
            ParameterSpace(problem.model, "*" if config.space == "full" else config.space),
            None,
        )
    lora = Lora(
        rank=config.ranks[run % len(config.ranks)],
        alpha=config.alpha,
        targets=config.targets,
        dropout=config.dropout,
        init=config.lora_init,
    )
    adapted = attach(problem.model, lora, seed=config.seed + run)
    if config.dtype == "float64":
        adapted.double()  # peft's factors are float32 whatever the model's dtype
    space = ParameterSpace(adapted)
    return replace(problem, model=adapted), space, Factors.of(adapted, space)


def check_sizes(demand: Demand, problem: Problem, task: str) -> None:
    """Whether the splits hold what will be asked of them, before minutes are spent on teaching."""
    for name, (needed, remedy) in demand.examples.items():
        found = len(problem.examples[name][task])
        if found < needed:
            raise LoclinError(
                f"expected at least {needed} examples of {task} in the {name} split, found "
                f"{found}: give more data or lower {remedy}"
            )


def _check_room(demand: Demand, space: ParameterSpace) -> None:
    """Whether the directions that are held at once fit: bases, controls and gradients, D numbers
    each.
    """
    vectors, remedy = demand.vectors
    needed = vectors * space.dimension * space.parameters[0].element_size()
    free = free_memory(space.parameters[0].device)
    if needed > free:
        raise LoclinError(
            f"expected room for about {vectors} directions of {space.dimension} coordinates "
            f"({needed / 1e9:.0f} GB), found "
            f"{free / 1e9:.0f} GB of free memory: train by --space lora or a pattern, or lower "
            f"{remedy}"
        )


def teach(bench: Bench[Settings], progress: Progress) -> str:
    """Train the space on every task until the worst one reaches the score asked for; the point
    afterwards is θ₀.

    An adapter is taught one round at least: at its initial point B is zero, and with it half of all
    gradients. The model's own samples are known from the beginning.

    Returns:
        How well the tasks are known, in a sentence.

    Raises:
        LoclinError: the task to destroy is known hardly better than by answers that ignore the
            question.
    """
    problem = bench.problem
    bench.space.write(bench.kept("taught", lambda: _taught(bench, progress)))
    known = check_known(bench, bench.task)
    scores = {task: problem.score("validate", task) for task in problem.tasks}
    worst_task = min(scores, key=lambda task: scores[task])
    short = (
        ""
        if scores[worst_task] >= bench.config.reach
        else f", short of the {bench.config.reach:.2f} asked for"
    )
    return f"known before the damage: {known:.2f} on {bench.task}, {scores[worst_task]:.2f} on the worst task ({worst_task}){short}"


def check_known(bench: Bench[Settings], task: str) -> float:
    """The score on a task where the space stands.

    Raises:
        LoclinError: it is hardly better than that of answers that ignore the question.
    """
    blind = bench.problem.without_reading(task)
    known, least = bench.score(task), blind + CLEARLY * (1 - blind)
    if known < least:
        raise LoclinError(
            f"expected a score of at least {least:.2f} on {task} before the damage, found "
            f"{known:.2f}: there is nothing "
            "to destroy; raise --teach-steps or --teach-lr, or give a task that the model can learn"
        )
    return known


def _taught(bench: Bench[Settings], progress: Progress) -> Float[Tensor, " D"]:
    config, problem = bench.config, bench.problem
    for done in range(TEACHING_ROUNDS):
        worst = min(problem.score("validate", task) for task in problem.tasks)
        if worst >= config.reach and (done or config.space != "lora" or config.data == "self"):
            break
        data = concatenate([problem.batch("train", task) for task in problem.tasks])
        batches = minibatches(
            data, min(config.batch, len(data)), seed=derived(bench.seed, "teaching", done)
        )
        optimiser = make_optimiser("adamw", bench.space, config.teach_lr)
        train(
            problem.model,
            bench.space,
            batches,
            optimiser,
            config.teach_steps,
            dropout_seed=bench.dropout("teaching", done),
            after_step=lambda t: progress("teaching every task", t / config.teach_steps),
        )
    return bench.space.read()

"""What a command will take, said before it begins: the passes that its settings need times a few
passes of this model on this machine. A budget of time lowers counts until they fit.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from scipy import stats

from loclin.curvature import CurvatureOperator
from loclin.errors import LoclinError
from loclin.models import Problem, load, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.models.loading import SHARES as USUAL
from loclin.parameters import ParameterSpace
from loclin.run.record import Record
from loclin.run.workers import cores, one_thread
from loclin.studies.context import adapted
from loclin.studies.settings import DamageSettings, Sizes, Work
from loclin.tasks.batch import answer_loss

M = TypeVar("M", bound=Any)
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
ENOUGH = 0.2  # seconds that a pass has to take to be timed once
MOST = 256  # examples in a timed pass, at most
STARTING = 5.0  # seconds: libraries in a worker or the page, on any model
SHRINKING = 0.85  # of counts, from one try to the next


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of loading, and of an example by kind of pass; what there is to ask; bytes in use."""

    loading: float
    forward: float
    backward: float
    product: float
    sizes: Sizes
    memory: int

    def seconds(self, work: Work) -> float:
        """Of some work."""
        parts = (work.forward, work.backward, work.product)
        each = (self.forward, self.backward, self.product)
        return sum(n * s for n, s in zip(parts, each, strict=True))


def timed(settings: Any) -> tuple[Timings, Problem]:
    """Load the model, and time passes over its own examples; and the model, as it was."""
    device = settings.where().split(":")[0]
    alone = settings.in_process and not settings.spread
    with one_thread("none" if alone else device):
        began = time.perf_counter()
        problem = loaded = load(settings, seed=settings.seed, shares=settings.shares or USUAL)
        if isinstance(settings, DamageSettings):
            problem, space = adapted(problem, settings, 0)
        else:
            pattern = settings.space
            plain = pattern in ("full", "lora") or pattern.startswith("prefix:")
            space = ParameterSpace(problem.model, "*" if plain else pattern)
        loading = time.perf_counter() - began
        count = {len(e) for tasks in problem.examples.values() for e in tasks.values()}
        examples = [
            e for tasks in problem.examples.values() for part in tasks.values() for e in part
        ]
        tasks, layers = len(problem.tasks), problem.model.config.num_hidden_layers
        need = settings.work(Sizes(tasks=1, examples=max(count)))
        batch = getattr(settings, "batch", 16)

        def differentiated(n: int) -> None:
            data = problem.collate(examples[:n])
            space.gradient(lambda b: answer_loss(problem.model, b), [data])

        def scored(n: int) -> None:
            if settings.prompts_alone:
                with torch.no_grad():
                    answer_loss(problem.model, problem.collate(examples[:n]))
            else:
                EvalSet.of(problem, examples[:n]).answers()

        def product(n: int) -> None:
            data = problem.collate(examples[:n])
            with twice_differentiable(problem.model):
                operator = CurvatureOperator(space, lambda b: answer_loss(problem.model, b), [data])
                operator @ space.read()

        backward = _each(differentiated, batch, batch) if any(w.backward for w in need) else 0.0
        bent = _each(product, min(batch, 8), min(batch, 8)) if any(w.product for w in need) else 0.0
        timings = Timings(
            loading=loading,
            forward=_each(scored, 16, min(MOST, len(examples))),
            backward=backward,
            product=bent,
            sizes=Sizes(tasks=tasks, examples=len(examples) / tasks, layers=layers),
            memory=psutil.Process().memory_info().rss,
        )
    return timings, loaded


def _each(act: Callable[[int], None], n: int, most: int) -> float:
    """Seconds of an example in a pass over n of them, or of more where that is quick."""
    act(2)  # whatever is made once
    while True:
        began = time.perf_counter()
        act(n)
        seconds = time.perf_counter() - began
        if seconds > ENOUGH or n >= most:
            return seconds / n
        n = min(4 * n, most)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of a command by what they go to, how many work side by side, bytes of all of them."""

    parts: dict[str, float]
    workers: int
    memory: int

    @property
    def seconds(self) -> float:
        """Of the whole command."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """In one line.

        >>> print(Estimate(parts={"training": 90.0, "scoring": 30.0}, workers=2, memory=3 << 29))
        about 2 min on 2 cores and 1.6 GB: training 75 %, scoring 25 %
        """
        most = sorted(self.parts, key=lambda what: -self.parts[what])
        shares = [f"{what} {self.parts[what] / max(self.seconds, 1e-9):.0%}" for what in most]
        on = f" on {self.workers} cores" if self.workers > 1 else ""
        what = ", ".join(s.replace("%", " %") for s in shares if not s.endswith(" 0%"))
        return f"about {duration(self.seconds)}{on} and {self.memory / 1e9:.1f} GB: {what}"


def duration(seconds: float) -> str:
    """In words.

    >>> duration(12.0), duration(100.0), duration(9000.0)
    ('12 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1.0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimated(settings: Any, timings: Timings) -> Estimate:
    """What settings take."""
    work = settings.work(timings.sizes)
    on_cpu = settings.where().startswith("cpu")
    spread = settings.spread
    room = (settings.workers or cores()) if on_cpu and (spread or not settings.in_process) else 1
    workers = max(1, room if spread else min(room, settings.runs))
    rounds = 1 / workers if spread else math.ceil(settings.runs / workers)
    parts = {"starting": STARTING + (1 if spread else rounds) * timings.loading}
    for each in work:
        parts[each.what] = parts.get(each.what, 0.0) + rounds * timings.seconds(each)
    return Estimate(parts=parts, workers=workers, memory=workers * timings.memory)


def seconds_of(budget: str) -> float:
    """Of a time as it is typed.

    Raises:
        LoclinError: it is none.

    >>> seconds_of("5m"), seconds_of("90s"), seconds_of("1.5h")
    (300.0, 90.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if found is None or not float(found[1]):
        raise LoclinError(
            f"expected a time such as 5m, 90s or 1h, found {budget!r}: change --budget"
        )
    return float(found[1]) * UNITS[found[2]]


def fitted(settings: M, timings: Timings, seconds: float) -> M:
    """The settings with counts lowered together until they fit, or as far as they may be."""
    best, share = settings, 1.0
    while estimated(best, timings).seconds > seconds and share > 1e-3:
        share *= SHRINKING
        counts = {
            name: max(min(least, getattr(settings, name)), round(share * getattr(settings, name)))
            for name, least in settings.lowered.items()
        }
        try:
            lower = dataclasses.replace(settings, **counts).checked()
        except LoclinError:  # too few for what else is asked
            break
        best = lower
    return best


def intervals(settings: Any, before: Any) -> Iterator[str]:
    """Which counts were lowered, and what intervals they give."""
    for name in settings.lowered:
        n, whole = getattr(settings, name), getattr(before, name)
        if n == whole:
            continue
        gives = ""
        if name == "seeds" and n > 1:
            half = stats.t.ppf(0.975, n - 1) / math.sqrt(n)
            gives = f" (a mean is known to ±{half:.2g} standard deviations of a run)"
        elif name in settings.scored:
            gives = f" (a share of one half is known to ±{0.98 / math.sqrt(n):.2f})"
        yield f"--{name.replace('_', '-')} {n} instead of {whole}{gives}"


def expected(settings: Any, record: Record) -> tuple[Any, float, Problem | None]:
    """Print what a command will take; the settings, with the counts that a budget leaves, the
    seconds, and for a study in this process the model, which need not be loaded again.
    """
    held = record.run()["studies"].get(settings.entry, {})
    left = [r for r in range(settings.runs) if not record.ended(settings.entry, r)]
    budget = seconds_of(settings.budget) if settings.budget else None
    try:
        timings, problem = timed(settings)
    except (MemoryError, RuntimeError):  # the command itself says it better
        return settings, 0.0, None
    whole = settings
    if budget and not held:
        settings = fitted(settings, timings, budget).checked()
    takes = estimated(settings, timings)
    seconds = takes.seconds * len(left) / settings.runs
    print(f"{takes}" + ("" if settings.budget else "; --budget 5m asks for less"))
    for line in intervals(settings, whole):
        print(f"  {line}")
    return settings, seconds, problem if settings.in_process else None

"""The claims of the schedules study and the rules that decide them, written before the first run;
and what the study recommends (measures §12, §14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run, estimated
from loclin.schedules.names import SEQUENTIAL, SIMULTANEOUS, family
from loclin.stats import over_models
from loclin.studies.names import OPTIMISERS
from loclin.studies.schedules import names as n
from loclin.studies.schedules.recommend import leader_stands_out, ranking_rows, recommendation_rows
from loclin.studies.schedules.settings import SchedulesSettings
from loclin.studies.verdict import Condition, Mean, Rule, Within, decided, rule

#: Two simultaneous schedules differ little where their worst tasks do by less, in score; and so
#: much has training to have taught the worst task, or they are alike for want of it.
MARGIN, TAUGHT = 0.1, 0.2
Values = Float[np.ndarray, " S"]
FEW = "needs two simultaneous schedules and both sequential ones among --schedules"


@dataclass(frozen=True, eq=False, kw_only=True)
class WorstTasks:
    """The score of the worse task of every pair, in every run.

    Attributes:
        orders, together: by schedule, sequential and simultaneous ones.
        first: where all start, mean over the pairs.
        trained_first: what both orders leave of the task trained first, mean over both and the
            pairs: whether it is that one which is lost.
    """

    orders: Mapping[str, Float[np.ndarray, "pairs S"]]
    together: Mapping[str, Float[np.ndarray, "pairs S"]]
    first: Values
    trained_first: Values

    @property
    def better(self) -> Float[np.ndarray, "pairs S"]:
        """Of both orders the one that ended better, which flatters it."""
        return np.asarray(np.max([*self.orders.values()], axis=0))

    def order_less(self) -> dict[str, Values]:
        """The better order's less that of every simultaneous schedule, and of their median."""
        every = {**self.together, n.MEDIAN: np.median([*self.together.values()], axis=0)}
        return {name: (self.better - worst).mean(0) for name, worst in every.items()}

    def apart(self) -> dict[tuple[str, str], Values]:
        """That of one simultaneous schedule less another's, for every two."""
        mean = {name: worst.mean(0) for name, worst in self.together.items()}
        return {(a, b): mean[a] - mean[b] for a, b in combinations(mean, 2)}

    @property
    def level(self) -> Values:
        """Mean over the simultaneous schedules."""
        return np.asarray(np.mean([each.mean(0) for each in self.together.values()], axis=0))


def worst_tasks(
    settings: SchedulesSettings, rows: Sequence[Row], optimiser: str
) -> WorstTasks | None:
    """They are averaged over pairs within a run: pairs share tasks (measures §12). None without two
    simultaneous schedules and both sequential ones.
    """
    together = [name for name in SIMULTANEOUS if name in settings.named]
    if len(together) < 2 or not {*SEQUENTIAL} <= {*settings.named}:
        return None

    def of(quantity: str, name: str, **role: str) -> Float[np.ndarray, "pairs S"]:
        here = {"schedule": name, "optimiser": optimiser, **role}
        return np.array([by_run(rows, quantity, pair=p, **here) for p in settings.pairs])

    roles = zip(SEQUENTIAL, "AB", strict=True)
    return WorstTasks(
        orders={name: of(n.WORST, name) for name in SEQUENTIAL},
        together={name: of(n.WORST, name) for name in together},
        first=by_run(rows, n.FIRST_WORST, pair=n.EVERY_PAIR, optimiser=optimiser),
        trained_first=np.concatenate([of(n.SCORE, o, role=role) for o, role in roles]).mean(0),
    )


def conclude(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Row]:
    """The ranking by every optimiser; what decides claims, or for a user's own tasks the
    recommendation.
    """
    found, models = list[Row](), settings.models
    for optimiser in settings.optimisers:
        context = {"pair": n.EVERY_PAIR, "optimiser": optimiser}
        found += ranking_rows(rows, context, models)
        if not settings.pairs:
            found += recommendation_rows(rows, context, models)
        elif worst := worst_tasks(settings, rows, optimiser):
            for name, values in worst.order_less().items():
                here = {**context, "schedule": name, "family": family(name)}
                found.append(estimated(n.ORDER_LESS, over_models(values, models), here))
            for (a, b), values in worst.apart().items():
                here = {**context, "schedule": a, "reference": b}
                found.append(estimated(n.APART, over_models(values, models), here))
    return found


def widened(settings: SchedulesSettings, rows: Sequence[Row]) -> SchedulesSettings | None:
    """The settings of the further schedules, where the leaders are not told apart."""
    if settings.pairs or not settings.further or settings.widened:
        return None
    contexts = ({"pair": n.EVERY_PAIR, "optimiser": o} for o in settings.optimisers)
    if all(leader_stands_out(rows, context, settings.models) for context in contexts):
        return None
    return replace(settings, schedules=settings.further, widened=True)


def decide(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Claim]:
    """Both claims for every optimiser, adjusted over all of them; none without pairs."""
    every = {
        optimiser: worst_tasks(settings, rows, optimiser)
        for optimiser in (settings.optimisers if settings.pairs else ())
    }
    return decided(
        [
            claim(settings, worst, OPTIMISERS[optimiser])
            for optimiser, worst in every.items()
            for claim in (sequential_last, simultaneous_differ_little)
        ]
    )


def _measured(settings: SchedulesSettings) -> str:
    return (
        f"over pairs {', '.join(settings.pairs)}, {settings.evaluations} gradients of "
        f"{settings.batch} examples each"
    )


def sequential_last(settings: SchedulesSettings, worst: WorstTasks | None, optimiser: str) -> Rule:
    """Whichever order is better, one task after the other ends below every simultaneous schedule.

    The better of two orders, chosen on the examples it is reported on, is flattered, which makes
    the claim harder to support and would refute it by noise alone: what refutes is one order, the
    same in all pairs, above one simultaneous schedule. The median schedule decides nothing: it is
    there to see whether the verdict hangs on one schedule.
    """
    words = {
        "id": "sequential-last",
        "statement": "Training two tasks one after the other, in the better order, leaves the "
        "worse one lower than any schedule that trains both at once.",
        "paper": "nine schedules ranked, sequential last (Fig. 4)",
        "null": "0",
        "rule": "supported: the better order of every pair less every simultaneous schedule, and "
        "each order less each of them, lie below 0 (the largest p counts); refuted: one order "
        "lies above one of them (Bonferroni over all)",
    }
    if worst is None:
        return rule(settings, optimiser, None, (), **words, measured="", note=FEW)
    models, less = settings.models, worst.order_less()
    median = over_models(less.pop(n.MEDIAN), models)
    each = {name: over_models(values, models) for name, values in less.items()}
    lowest = max(each, key=lambda name: each[name].value)
    scores = "; ".join(
        f"{pair} pairs: better order {over_models(worst.better[i], models, 'score')}, {lowest} "
        f"{over_models(worst.together[lowest][i], models, 'score')}"
        for i, pair in enumerate(settings.pairs)
    )
    return rule(
        settings,
        optimiser,
        each[lowest],
        below_every_one(worst),
        **words,
        measured=f"score of the worse task, better sequential order less {lowest}, the lowest of "
        f"{len(each)} simultaneous schedules, {_measured(settings)}; the interval is of that one, "
        "and knows nothing of the choice",
        note=f"less the median one {median}; {scores}; the task trained first ends at "
        f"{over_models(worst.trained_first, models, 'score')}",
    )


def below_every_one(worst: WorstTasks) -> list[Mean]:
    """Conditions that the better order and each one lie below every simultaneous schedule."""
    flattered = {
        f"better order less {s}": v for s, v in worst.order_less().items() if s != n.MEDIAN
    }
    one_by_one = {
        f"{o} less {s}": (a - b).mean(0)
        for o, a in worst.orders.items()
        for s, b in worst.together.items()
    }
    return [
        Mean(name=name, values=values, threshold=0.0, below=True, refutes=name in one_by_one)
        for name, values in {**flattered, **one_by_one}.items()
    ]


def simultaneous_differ_little(
    settings: SchedulesSettings, worst: WorstTasks | None, optimiser: str
) -> Rule:
    """Any two simultaneous schedules leave the worse task about alike, and teach it.

    Best less worst of a run is biased upwards by noise; differences of two named ones are not.
    """
    words = {
        "id": "simultaneous-differ-little",
        "statement": "Schedules that train both tasks at once leave the worse one about alike.",
        "paper": "simultaneous schedules are robust (Fig. 4)",
        "null": f"{MARGIN} either way",
        "rule": f"supported: the difference of every two lies within {MARGIN} (two one-sided "
        f"tests, the largest p counts), and they end {TAUGHT} above the start; refuted: that of "
        "two lies beyond (Bonferroni over all)",
    }
    if worst is None:
        return rule(settings, optimiser, None, (), **words, measured="", note=FEW)
    models = settings.models
    each = {two: over_models(values, models) for two, values in worst.apart().items()}
    widest = max(each, key=lambda two: abs(each[two].value))
    spread = np.ptp([values.mean(0) for values in worst.together.values()], axis=0)
    return rule(
        settings,
        optimiser,
        each[widest],
        alike_and_taught(worst),
        **words,
        measured=f"score of the worse task, {widest[0]} less {widest[1]}, the widest of "
        f"{len(each)} mean differences between {len(worst.together)} simultaneous schedules, "
        f"{_measured(settings)}; the interval is of that one, and knows nothing of the choice",
        note=f"mean of the schedules {over_models(worst.level, models, 'score')}, above the "
        f"start by {over_models(worst.level - worst.first, models)}; best less worst of a run, "
        f"which noise widens, {over_models(spread, models)}",
    )


def alike_and_taught(worst: WorstTasks) -> list[Condition]:
    """Conditions that every two simultaneous schedules differ little, and that they teach."""
    gained = worst.level - worst.first
    alike = [
        Within(name=f"{a} less {b}", values=values, low=-MARGIN, high=MARGIN)
        for (a, b), values in worst.apart().items()
    ]
    return [*alike, Mean(name="above the start", values=gained, threshold=TAUGHT, refutes=False)]

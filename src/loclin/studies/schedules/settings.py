"""Settings of the schedules study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from loclin.options import BUILT_IN, SEQUENCE_MODELS
from loclin.schedules.names import MERGED, REFERENCE, SEQUENTIAL, SIMULTANEOUS
from loclin.schedules.options import ComparisonOptions
from loclin.studies.checks import check_counts, check_each, check_rates
from loclin.studies.presets import PAPER, built_in_models, by_lora, costly, exhaustive, named, quick
from loclin.studies.schedules import names as n
from loclin.studies.schedules.names import KINDS
from loclin.studies.settings import DamageSettings, Profile, Sizes, Work

#: What a user's own tasks are trained by first, one of every kind.
FIRST = (REFERENCE, "alternating", "sequential", "average")
#: Shares of the groups of a user's data.
SHARES = {"train": 0.6, "validate": 0.2, "test": 0.2}
OptimiserName = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class SchedulesSettings(ComparisonOptions, DamageSettings):
    """Find out how to train several tasks into one model: by every schedule, with the same batches
    and the same number of gradients.

    Your own tasks are trained into your model as it is, by a new LoRA adapter or its own weights,
    several times with other adapters, orders and splits of the data (60 % of the examples train,
    20 % choose, 20 % test). What counts is the score of the task that ends worst. Recommended is
    joint mixed batches or alternation, where one is shown to be less than 0.05 worse than the best,
    otherwise the best; what cannot be told apart is said. A remedy is trained at every strength of
    a small grid and judged at the one that validation examples choose. It tells what happens within
    its gradients, at its learning rate.

    With --pairs, the default of a built-in model without --data, two claims are decided: is
    training one task after another last, even in the better order, and do schedules that train both
    at once differ little? Pairs of tasks that the model knows are chosen by the cosines of their
    gradients at θ₀, both tasks of a pair are destroyed while the others are kept, and trained back
    from there (measures §12). The defaults of other options depend on this too.

    Example: loclin schedules --model path/to/model --data A.jsonl B.jsonl
    """

    study: ClassVar[str] = "schedules"
    kind: ClassVar[str] = "schedules"
    scales: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(n.SCORES, "score"),
        **dict.fromkeys(n.COSINES, "fisher"),
        n.OVERLAP: "logit",
        n.STRENGTH: "log",
    }

    lowered: ClassVar[Mapping[str, int]] = {"seeds": 2, "evaluations": 8, "test_examples": 32}
    scored: ClassVar[tuple[str, ...]] = ("test_examples",)

    seeds: int = 5
    """Independent runs: each has its own adapter, splits or damage, and order of the data."""
    tasks: tuple[str, ...] = ()
    """Which of your tasks, in the order of sequential training; all by default."""
    pairs: tuple[str, ...] = ()
    """Pairs of tasks that are destroyed first: agreeing, neutral, conflicting, by their gradients
    at θ₀; or two tasks by name (copy+swap)."""
    further: tuple[str, ...] = ()
    """Schedules that are trained too where, of those of --schedules, the two that are best on
    validation examples are not told apart by their paired difference over the runs. Default for
    your own tasks without --schedules: all of the paper's, and replay."""
    widened: Annotated[bool, tyro.conf.Suppress] = False
    optimisers: tuple[OptimiserName, ...] = ("adamw",)
    """By which every schedule trains: adamw, sgd, or both."""
    adamw_lr: float = 1e-3
    """Learning rate of AdamW, the same for all schedules; take the one you train with."""
    sgd_lr: float = 3e-2
    """Learning rate of SGD, without momentum; tens of times as much as AdamW's."""
    cosine_examples: int = 256
    """Examples behind a task's gradient in the choice of pairs, at most."""
    k: int = 10
    """First updates of a specialist that span its space, for the overlap of two, with --pairs."""

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Of a user's own tasks."""
        return None if self.pairs else SHARES

    @property
    def stage(self) -> str:  # type: ignore[override]
        """The further schedules are a stage of their own."""
        return "more" if self.widened else "run"

    @property
    def learning_rates(self) -> dict[OptimiserName, float]:
        """By optimiser, in the order of the report."""
        every: dict[OptimiserName, float] = {"adamw": self.adamw_lr, "sgd": self.sgd_lr}
        return {name: every[name] for name in self.optimisers}

    def work(self, sizes: Sizes) -> list[Work]:
        """Every schedule takes as many gradients, a remedy at every strength of its grid."""
        grids = {"replay": self.replay_shares, "consolidation": self.consolidations}
        merges = {"task arithmetic": self.merge_scales, "TIES": self.merge_scales}
        trained = [len(grids.get(s, (1,))) for s in self.named if s not in MERGED]
        chosen = [len({**grids, **merges}.get(s, ())) for s in self.named]
        tasks, most = 2 if self.pairs else max(sizes.tasks, len(self.tasks)), sizes.examples / 5
        few, test = min(self.curve_examples, most), min(self.test_examples, most)
        scored = (sum(trained) * self.points + sum(chosen) + len(self.named) + 12) * few
        scored += (len(self.named) + 2) * test
        many = len(self.optimisers) * max(len(self.pairs), 1)
        gradients = (sum(trained) + 1) * self.evaluations * self.batch
        work = [
            Work(what=f"training by {len(self.named)} schedules", backward=many * gradients),
            Work(what="scoring", forward=many * tasks * scored),
        ]
        return [self.destroying(sizes), *work] if self.pairs else work

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("k", "cosine_examples"))
        check_rates(self, ("adamw_lr", "sgd_lr"))
        check_each(*self._checks())
        for names in filter(None, (self.schedules, self.further)):
            least = 2 if self.pairs else max(len(self.tasks), 2)
            replace(self, schedules=names).check_comparison(least)

    def _checks(self) -> Iterator[tuple[bool, str, object, str]]:
        """What has to hold, what was expected, what was found, what to do."""
        data, tasks, pairs, most = self.data, self.tasks, self.pairs, self.evaluations // 2
        every, several = ", ".join(data), "one built-in set of tasks or several files"
        yield len(data) < 2 or "self" not in data, several, every, "give either"
        apart, found = len({Path(n).resolve() for n in data}) == len(data), "one twice in "
        yield apart, "different files", found + " ".join(data), "give a file for each task"
        named, two = ", ".join(tasks), "two different tasks or more"
        yield len({*tasks}) == len(tasks) != 1, two, named, "change --tasks"
        one, several = f"--task {self.task}", "name them by --pairs A+B"
        yield self.task == "each", "pairs of tasks", one, several
        once = len({*self.optimisers}) == len(self.optimisers) > 0
        yield once, "adamw, sgd or both", [*self.optimisers], "change --optimisers"
        own = "--data self, the model's own samples" if data else "no --data"
        remedy = "give a file for each task, such as --data A.jsonl B.jsonl"
        yield bool(pairs) or data not in ((), ("self",)), "tasks to learn", own, remedy
        alone = len({*pairs}) == len(pairs) and not (pairs and tasks)
        yield alone, "different pairs, or --tasks", [*pairs, *tasks], "change --pairs"
        kinds = f"{', '.join(KINDS)} or two tasks such as copy+swap"
        for pair in pairs:
            known = pair in KINDS or len({*pair.split("+")}) == 2
            yield known, kinds, repr(pair), "change --pairs"
        few = f"k of at most {most}, the updates of a specialist"
        yield not pairs or self.k <= most, few, self.k, "lower --k"


def preset(
    profile: Profile,
    model: str | None = None,
    data: Sequence[str] = (),
    pairs: Sequence[str] = (),
    schedules: Sequence[str] = (),
) -> SchedulesSettings:
    """The defaults of a profile for a user's own tasks, or for pairs, where there are any or a
    built-in model has its own data.

    paper: 24 runs on 12 models, both optimisers and torchjd's schedules too.
    """
    name = named(profile, model)
    if pairs or (name in BUILT_IN and not data):
        return _pairs_preset(profile, name)
    settings = SchedulesSettings(
        model=name, profile=profile, space="lora", evaluations=60, schedules=FIRST
    )
    if profile == "smoke":
        return replace(settings, seeds=3, evaluations=32)
    if profile == "paper":
        return _exhaustive(settings)
    every = (*SIMULTANEOUS, *SEQUENTIAL, "replay")
    return replace(settings, further=() if schedules else tuple(s for s in every if s not in FIRST))


def _pairs_preset(profile: Profile, model: str) -> SchedulesSettings:
    # every run has all its pairs: tasks cross models without a second run on each
    settings = SchedulesSettings(model=model, profile=profile, pairs=KINDS, seeds=6, batch=24)
    if model not in SEQUENCE_MODELS:
        settings = replace(by_lora(settings), adamw_lr=3e-3, sgd_lr=1e-1)
    if model == "statements-small":  # it knows two tasks
        settings = replace(settings, pairs=("colour+town",))
    if costly(settings):
        return _of_your_own(settings)
    if profile == "smoke":
        return quick(replace(settings, adamw_lr=3e-3))
    if profile == "paper":
        return _exhaustive(settings)
    if model == "statements":  # for time alone: its pairs are few and alike
        settings = replace(settings, pairs=("agreeing", "conflicting"))
    return settings


def _of_your_own(settings: SchedulesSettings) -> SchedulesSettings:
    """One pair, few gradients; AdamW's rate is that of the recovery."""
    settings = replace(settings, pairs=("conflicting",), seeds=4, adamw_lr=3e-4, batch=16)
    settings = replace(settings, curve_examples=24, test_examples=64, cosine_examples=32)
    if settings.profile == "smoke":
        few = (REFERENCE, "alternating", "raw sum", "sequential", "sequential reversed")
        return replace(quick(settings), schedules=few, evaluations=24, adamw_lr=1e-3)
    return settings


def _exhaustive(settings: SchedulesSettings) -> SchedulesSettings:
    return replace(exhaustive(settings), optimisers=("adamw", "sgd"), schedules=("all",))


def reproduced(profile: Profile) -> tuple[SchedulesSettings, ...]:
    """What `loclin reproduce` runs: the built-in models, and with "paper" those of the paper's that
    it trained on several tasks (BoolQ is one).
    """
    found = tuple(_pairs_preset(profile, model) for model in built_in_models(profile))
    several = [(m, d) for m, d in PAPER if d in BUILT_IN] if profile == "paper" else []
    return (*found, *(replace(_pairs_preset(profile, m), data=(d,)) for m, d in several))

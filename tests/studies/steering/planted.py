"""Planted studies of the steering rules: rows of runs nested in models, from true cosines and
effects, or from vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loclin.run.rows import Row
from loclin.stats import Scale
from loclin.steering.compare import whitening
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_context import cosine
from loclin.studies.steering.claims_found import Found

MODELS, RUNS, DRAWS = 4, 8, 29
PLACES = (names.MIDDLE, names.CHOSEN, names.LATE)
#: What is tested where, against which nulls.
TESTED = {
    **{(names.NOTHING, at): (names.BY_TENSOR, names.TOKENS, names.CAA_RELABELLED) for at in PLACES},
    (names.READOUT, names.MIDDLE): (names.BEYOND,),
    (names.WHITENED, names.MIDDLE): (names.IN_WHITENED,),
    (names.READOUT, names.LATE): (names.BEYOND,),
}
#: As of `Found.numbers`.
Numbers = dict[Any, dict[tuple[int, int], float]]
World = Callable[[np.random.Generator], Numbers]


def row(quantity: str, value: float | None, run: int, **context: Any) -> Row:
    return Row(quantity=quantity, value=value, context={"run": run, **context})


def numbers_of(rows: Sequence[Row]) -> Numbers:
    return dict(Found.of(rows, 1).numbers)  # type: ignore[arg-type]


def found_in(numbers: Numbers, models: int) -> Found:
    return Found(models=models, runs=RUNS, numbers=numbers)


def put(numbers: Numbers, values: np.ndarray, quantity: str, **context: str) -> None:
    """Values by run, or draws by run."""
    each = numbers.setdefault((quantity, frozenset(context.items())), {})
    for run, found in enumerate(values.tolist()):
        drawn = found if isinstance(found, list) else [found]
        each.update({(run, i): value for i, value in enumerate(drawn)})


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A study of one estimand.

    Attributes:
        cosines: true ones that are not 0.7, by what is removed and place.
        ratio, at_kl: true ratios of effects.
        null: spread of the cosines of every null, on Fisher's scale.
        chance: where the truth of every model is one more draw of this null.
        between, within: spread of models around the truth, and of runs around their model.
    """

    of: str = "E1"
    cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)
    ratio: float = 1.0
    at_kl: float = 1.0
    null: float = 0.1
    chance: str = ""
    between: float = 0.02
    within: float = 0.02

    def rows(self, rng: np.random.Generator) -> list[Row]:
        """The same as rows."""
        return [
            row(quantity, value, run, **dict(context), draw=draw)
            for (quantity, context), values in self.numbers(rng).items()
            for (run, draw), value in values.items()
        ]

    def numbers(self, rng: np.random.Generator) -> Numbers:
        found: Numbers = {}
        put(found, np.ones(RUNS), "class_form")
        for name, true in (("slope_ratio", self.ratio), ("kl_ratio", self.at_kl)):
            ratios = np.exp(self._runs(rng, np.log(true)))
            put(found, ratios, name, condition=self.of, at=names.MIDDLE)
        for (removed, at), nulls in TESTED.items():
            middle = np.arctanh(self.cosines.get((removed, at), 0.7))
            own = rng.standard_normal(MODELS) * self.null if self.chance in nulls else middle
            values = np.tanh(self._runs(rng, own))
            put(found, values, "cosine_at", of=self.of, removed=removed, at=at)
            for null in nulls:
                draws = np.tanh(self._draws(rng, null))
                put(found, draws, "null_draw", of=self.of, null=null, at=at)
        return found

    def _runs(self, rng: np.random.Generator, middle: Any) -> np.ndarray:
        """Of every run; run r is on model r mod 4."""
        of_model = middle + self.between * rng.standard_normal(MODELS) * (not self.chance)
        return np.tile(of_model, RUNS // MODELS) + self.within * rng.standard_normal(RUNS)

    def _draws(self, rng: np.random.Generator, null: str) -> np.ndarray:
        """Shared by the runs on one model, but for labels."""
        if null == names.CAA_RELABELLED:
            return self.null * rng.standard_normal((RUNS, DRAWS))
        own = np.tile(rng.standard_normal((MODELS, DRAWS)), (RUNS // MODELS, 1))
        return self.null * own + self.within * rng.standard_normal(own.shape)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One block of one model: activations with a dominant axis, a readout of two directions, and
    what labels and steps do there.

    Attributes:
        axis: standard deviation along the dominant axis; 1 in all other directions.
        labels: what a label adds to activations, in multiples of the axis, the readout's first
            direction and two more.
        step: the same of the shift of a step.
    """

    axis: float = 1.0
    labels: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    step: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)

    def numbers(self, rng: np.random.Generator, d: int = 16, n: int = 96) -> Numbers:
        turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(MODELS)]
        drawn = rng.standard_normal((MODELS, DRAWS, d))
        every = [
            self._angles(rng, turns[run % MODELS], drawn[run % MODELS], n) for run in range(RUNS)
        ]
        found: Numbers = {}
        put(found, np.ones(RUNS), "class_form")
        for name in ("slope_ratio", "kl_ratio"):
            ratios = np.exp(0.03 * rng.standard_normal(RUNS))
            put(found, ratios, name, condition="E1", at=names.MIDDLE)
        for (removed, at), nulls in TESTED.items():
            angles = np.stack([each[removed] for each in every])
            put(found, angles[:, 0], "cosine_at", of="E1", removed=removed, at=at)
            for null in nulls:
                draws = np.stack([each.get(null, each[removed][1:]) for each in every])
                level = np.quantile(draws, 0.975, axis=1)
                put(found, level, "null_at", of="E1", null=null, at=at)
                put(found, draws, "null_draw", of="E1", null=null, at=at)
        return found

    def _angles(
        self, rng: np.random.Generator, turn: np.ndarray, random: np.ndarray, n: int
    ) -> dict[str, np.ndarray]:
        """Cosines with CAA of the shift and of random ones, which vary as activations do, by the
        study's own functions; and of the shift with CAA of permuted labels.
        """
        axis, plus, minus, other, last = turn[:, :5].T
        spread = np.eye(len(turn)) + (self.axis - 1) * np.outer(axis, axis)
        ways = np.stack([axis, plus, other, last])
        y = rng.permutation(np.arange(n) % 2 == 0)
        h = rng.standard_normal((n, len(turn))) @ spread + np.outer(
            y - 0.5, np.array(self.labels) @ ways
        )
        shift = np.array(self.step) @ ways + 0.1 * rng.standard_normal(len(turn))
        moved = torch.from_numpy(np.stack([shift, *(random @ spread)]))
        caa = torch.from_numpy(h[y].mean(0) - h[~y].mean(0))
        white = whitening(torch.from_numpy(h)[None])[0]
        out = torch.from_numpy(np.eye(len(turn)) - np.outer(plus, plus) - np.outer(minus, minus))
        orders = rng.permuted(np.tile(y, (DRAWS, 1)), axis=1)
        permuted = torch.from_numpy((orders / y.sum() - ~orders / (~y).sum()) @ h)
        return {
            names.NOTHING: cosine(moved, caa).numpy(),
            names.READOUT: cosine(moved @ out, caa @ out).numpy(),
            names.WHITENED: cosine(moved @ white, caa @ white).numpy(),
            names.CAA_RELABELLED: cosine(permuted, moved[0]).numpy(),
        }


def shares(
    world: World, decide: Callable[[Found], str], studies: int, models: int = MODELS
) -> dict[str, float]:
    """How often each verdict falls over independent studies."""
    verdicts: Sequence[str] = [
        decide(found_in(world(np.random.default_rng([study, 7])), models))
        for study in range(studies)
    ]
    return {
        word: verdicts.count(word) / studies for word in ("supported", "refuted", "inconclusive")
    }


def coverage(
    draw: Callable[[np.random.Generator], np.ndarray], true: float, scale: Scale, studies: int
) -> float:
    """How often an interval over models covers the truth."""
    covered = 0
    for study in range(studies):
        e = found_in({}, MODELS).estimate(draw(np.random.default_rng([study, 3])), scale)
        assert e is not None
        covered += e.low <= true <= e.high
    return covered / studies

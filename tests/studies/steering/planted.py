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
from loclin.studies.steering import names
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
Numbers = dict[Any, np.ndarray]
World = Callable[[np.random.Generator], Numbers]


def row(quantity: str, value: float | None, run: int, **context: Any) -> Row:
    return Row(quantity=quantity, value=value, context={"run": run, **context})


def found_in(numbers: Numbers, models: int) -> Found:
    return Found(models=models, runs=RUNS, numbers=numbers)


def put(numbers: Numbers, values: np.ndarray, quantity: str, **context: str) -> None:
    """Values by run, or draws by run."""
    numbers[quantity, frozenset(context.items())] = values.reshape(len(values), -1)


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
            for run, draws in enumerate(values.tolist())
            for draw, value in enumerate(draws)
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
        each = [self._run(rng, turns[r % MODELS], drawn[r % MODELS], n) for r in range(RUNS)]
        every = _angles(*(torch.from_numpy(np.stack(of)) for of in zip(*each, strict=True)))
        found: Numbers = {}
        put(found, np.ones(RUNS), "class_form")
        for name in ("slope_ratio", "kl_ratio"):
            ratios = np.exp(0.03 * rng.standard_normal(RUNS))
            put(found, ratios, name, condition="E1", at=names.MIDDLE)
        for (removed, at), nulls in TESTED.items():
            angles = every[removed]
            put(found, angles[:, 0], "cosine_at", of="E1", removed=removed, at=at)
            for null in nulls:
                draws = every.get(null, angles[:, 1:])
                level = np.quantile(draws, 0.975, axis=1)
                put(found, level, "null_at", of="E1", null=null, at=at)
                put(found, draws, "null_draw", of="E1", null=null, at=at)
        return found

    def _run(
        self, rng: np.random.Generator, turn: np.ndarray, random: np.ndarray, n: int
    ) -> tuple[np.ndarray, ...]:
        """Activations, CAA, CAA of permuted labels, the shift and random ones, which vary as
        activations do; and what takes the readout out.
        """
        axis, plus, minus, other, last = turn[:, :5].T
        spread = np.eye(len(turn)) + (self.axis - 1) * np.outer(axis, axis)
        ways = np.stack([axis, plus, other, last])
        y = rng.permutation(np.arange(n) % 2 == 0)
        h = rng.standard_normal((n, len(turn))) @ spread + np.outer(
            y - 0.5, np.array(self.labels) @ ways
        )
        shift = np.array(self.step) @ ways + 0.1 * rng.standard_normal(len(turn))
        orders = rng.permuted(np.tile(y, (DRAWS, 1)), axis=1)
        permuted = (orders / y.sum() - ~orders / (~y).sum()) @ h
        out = np.eye(len(turn)) - np.outer(plus, plus) - np.outer(minus, minus)
        caa = (h[y].mean(0) - h[~y].mean(0))[None]
        return h, caa, permuted, np.stack([shift, *(random @ spread)]), out


def _angles(
    h: torch.Tensor,
    caa: torch.Tensor,
    permuted: torch.Tensor,
    moved: torch.Tensor,
    out: torch.Tensor,
) -> dict[str, np.ndarray]:
    """Cosines with CAA of the shift and of random ones, by the study's own functions; and of the
    shift with CAA of permuted labels. Of all runs.
    """
    white = whitening(h)
    return {
        names.NOTHING: cosine(moved, caa).numpy(),
        names.READOUT: cosine(moved @ out, caa @ out).numpy(),
        names.WHITENED: cosine(moved @ white, caa @ white).numpy(),
        names.CAA_RELABELLED: cosine(permuted, moved[:, :1]).numpy(),
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

"""What the steering claims read from rows: numbers of every run, estimates over models in words,
and p-values against draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Row
from loclin.stats import Estimate, Scale, on_scale, over_models, permutation_p
from loclin.studies.steering import claims_names as names
from loclin.studies.verdict import Drawn

PICKS = 1999  # of draws put together over units: p can reach 0.0005

Values = Float[np.ndarray, " S"]
Key = tuple[str, frozenset[tuple[str, Hashable]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """The rows of all runs.

    Attributes:
        models: how many models the runs share, in turn.
        runs: how many there are.
        numbers: by quantity and context, by run and draw (0 where there are none).
    """

    models: int
    runs: int
    numbers: Mapping[Key, Mapping[tuple[int, int], float]]

    @staticmethod
    def of(rows: Sequence[Row], models: int) -> Found:
        """Of runs alone: summaries over runs are left out."""
        numbers: dict[Key, dict[tuple[int, int], float]] = {}
        for row in rows:
            here = dict(row.context)
            if (run := here.pop("run", None)) is not None:
                draw, value = here.pop("draw", 0), math.nan if row.value is None else row.value
                numbers.setdefault(_key(row.quantity, here), {})[run, draw] = value
        runs = 1 + max((run for each in numbers.values() for run, _ in each), default=-1)
        return Found(models=models, runs=runs, numbers=numbers)

    def values(self, quantity: str, **context: Hashable) -> Values:
        """One for every run; NaN where it is not defined."""
        found = self.numbers.get(_key(quantity, context), {})
        return np.array([found.get((run, 0), math.nan) for run in range(self.runs)])

    def cosine(self, of: str, at: str, removed: str = names.NOTHING) -> Values:
        """With CAA."""
        return self.values("cosine_at", of=of, removed=removed, at=at)

    def draws(self, quantity: str, **context: Hashable) -> Float[np.ndarray, "S m"]:
        """Of every run; NaN where one has fewer."""
        found = self.numbers.get(_key(quantity, context), {})
        every = np.full((self.runs, 1 + max((draw for _, draw in found), default=-1)), math.nan)
        for place, value in found.items():
            every[place] = value
        return every

    def layers(self) -> list[int]:
        """All blocks."""
        return sorted(
            int(str(dict(context)["layer"]))
            for quantity, context in self.numbers
            if quantity == "caa_length"
        )

    def estimate(self, values: Values, scale: Scale = "fisher") -> Estimate | None:
        """Over models; None where no run has a value."""
        return None if np.isnan(values).all() else over_models(values, self.models, scale)

    def text(self, values: Values, scale: Scale = "fisher") -> str:
        """The same in words, with the number of runs that have a value, where some have none."""
        defined = int((~np.isnan(values)).sum())
        missing = f" ({defined} of {len(values)} runs)" if 0 < defined < len(values) else ""
        return f"{self.estimate(values, scale) or 'not defined'}{missing}"

    def mean(self, quantity: str, scale: Scale = "fisher", **context: Hashable) -> str:
        """An estimate of a quantity, in words."""
        return self.text(self.values(quantity, **context), scale)

    def drawn(self, name: str, observed: Values, of: str, null: str, at: str) -> Drawn:
        """Whether a mean cosine is above draws of a null.

        What is permuted is permuted in every run by itself; random directions and tokens are the
        same in all runs on one model, whose means are drawn.
        """
        every = self.draws("null_draw", of=of, null=null, at=at)
        if null in names.BOTH_WAYS and at != names.HIGHEST:
            every = np.concatenate([every, -every], axis=1)
        p = self.above(observed, every, shared=null != names.CAA_RELABELLED)
        return Drawn(name=name, value=p)

    def above(
        self,
        observed: Values,
        draws: Float[np.ndarray, "S m"],
        *,
        shared: bool = False,
        scale: Scale = "fisher",
    ) -> float:
        """`above_draws`, where the runs on one model share draws or have their own."""
        one = shared and self.models == 1
        return above_draws(observed, draws, self.models if shared else 1, scale=scale, one=one)


def above_draws(
    observed: Values,
    draws: Float[np.ndarray, "S m"],
    models: int,
    *,
    scale: Scale = "fisher",
    one: bool = False,
) -> float:
    """p of a mean over units against draws of a null, of which the observed values are one more.

    In every unit by itself the value and its m draws are exchangeable under the null, so that any
    of them in its place gives as likely a mean: (b+1)/(K+1) over K random choices, exact (Hemerik
    and Goeman, "Exact testing with random permutations", 2018). Units are models, whose runs share
    draws; with one model the runs, unless `one` says that all of them share draws, whose means are
    then compared one by one. 1 where a run has no value or no draws.
    """
    found = on_scale(np.concatenate([observed[:, None], draws], axis=1), scale)
    if not draws.size or np.isnan(observed).any():
        return 1.0
    units = found.mean(0)[None] if one else found
    if models > 1:
        units = np.stack([found[model::models].mean(0) for model in range(models)])
    if len(units) == 1:
        return permutation_p(float(units[0, 0]), units[0, 1:] + 1e-12)
    rng = np.random.default_rng(len(units))
    picks = rng.integers(units.shape[1], size=(PICKS, len(units)))
    means = units[np.arange(len(units)), picks].mean(1)
    return permutation_p(float(units[:, 0].mean()), means + 1e-12)


def whole(values: Values) -> Values:
    """The same, or nothing where one run has no value: what cannot be compared in it is not shown
    to be alike by the others.
    """
    return np.full(len(values), math.nan) if np.isnan(values).any() else values


def _key(quantity: str, context: Mapping[str, Hashable]) -> Key:
    return quantity, frozenset(context.items())

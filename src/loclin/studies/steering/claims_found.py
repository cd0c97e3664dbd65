"""What the steering claims read from rows: numbers of every run, estimates over models in words,
p-values against draws, and what stands beside a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Row
from loclin.stats import Estimate, Scale, on_scale, over_models, permutation_p
from loclin.steering.estimands import Estimand
from loclin.studies.steering import names
from loclin.studies.verdict import LEVEL, Drawn

PICKS = 1999  # of draws put together over units: p can reach 0.0005

Values = Float[np.ndarray, " S"]
Key = tuple[str, frozenset[tuple[str, Hashable]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """The rows of all runs.

    Attributes:
        models: how many models the runs share, in turn.
        runs: how many there are.
        numbers: by quantity and context, of every run and draw (one, where nothing is drawn); NaN
            where there is none.
    """

    models: int
    runs: int
    numbers: Mapping[Key, Float[np.ndarray, "S m"]]

    @staticmethod
    def of(rows: Sequence[Row], models: int) -> Found:
        """Of runs alone: summaries over runs are left out."""
        held: dict[Key, dict[tuple[int, int], float]] = {}
        for row in rows:
            here = dict(row.context)
            if (run := here.pop("run", None)) is not None:
                draw, value = here.pop("draw", 0), math.nan if row.value is None else row.value
                key = row.quantity, frozenset(here.items())
                held.setdefault(key, {})[run, draw] = value
        runs = 1 + max((run for each in held.values() for run, _ in each), default=-1)
        numbers = {}
        for key, each in held.items():
            numbers[key] = np.full((runs, 1 + max(draw for _, draw in each)), math.nan)
            numbers[key][tuple(zip(*each, strict=True))] = list(each.values())
        return Found(models=models, runs=runs, numbers=numbers)

    def draws(self, quantity: str, **context: Hashable) -> Float[np.ndarray, "S m"]:
        """Of every run; NaN where one has fewer, none where there are none."""
        nothing = np.empty((self.runs, 0))
        return self.numbers.get((quantity, frozenset(context.items())), nothing)

    def values(self, quantity: str, **context: Hashable) -> Values:
        """One for every run; NaN where it is not defined."""
        found = self.draws(quantity, **context)
        return found[:, 0] if found.size else np.full(self.runs, math.nan)

    def cosine(self, of: str, at: str, removed: str = names.NOTHING) -> Values:
        """With CAA."""
        return self.values("cosine_at", of=of, removed=removed, at=at)

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
        shared = null != names.CAA_RELABELLED
        models, one = self.models if shared else 1, shared and self.models == 1
        return Drawn(name=name, value=above_draws(observed, every, models, one=one))


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


def effects_beside(found: Found, of: str, at: str) -> str:
    """The effect over CAA's, on the log scale where every run's has one."""
    both = (found.values(q, condition=of, at=at) for q in ("slope_ratio", "kl_ratio"))
    slope, kl = (found.text(x, "plain" if (x <= 0).any() else "log") for x in both)
    return f"{slope} at equal length, {kl} at equal KL"


def readout_alone(found: Found, of: str) -> str:
    """cos(Δh, g)/cos(CAA, g) at the late block: the ratio of the effects there, were they the
    readout's and nothing else.
    """
    own = found.values("cosine_with_logits_at", of=of, at=names.CHOSEN)
    return found.text(own / found.cosine(names.LOGITS, names.CHOSEN), "plain")


def labels_say(found: Found, of: str, at: str) -> str:
    """Whether labels give the cosine's sign and size: that of permuted labels reaches it in hardly
    a draw; or a dominant axis of the activations gives the size.
    """
    here: dict[str, Any] = {"of": of, "null": names.CAA_RELABELLED, "at": at}
    observed = found.cosine(of, at)
    level = found.values("null_at", **here)
    above, null = found.estimate(observed), found.estimate(level)
    if above is None or null is None:
        return "permuted labels of CAA not drawn"
    p = found.drawn("", observed, **here).value
    given = "the sign alone, a dominant axis gives the size" if p < LEVEL else "neither"
    given = "sign and size" if p < LEVEL and above.value > null.value else given
    return f"97.5 % of CAA of permuted labels stay below {found.text(level)}: labels give {given}"


def beyond_readout(found: Found, of: str, at: str) -> str:
    """What is left of a cosine without the readout, and how much random steps have left."""
    left = found.cosine(of, at, names.READOUT)
    if found.estimate(left) is None:
        return "beyond the readout not defined"
    here: dict[str, Any] = {"of": of, "null": names.BEYOND, "at": at}
    p, level = found.drawn("", left, **here).value, found.mean("null_at", **here)
    random = f"random directions (97.5 % of them {level})"
    return f"beyond the readout {found.text(left)}, p {p:.2g} against {random}"


def by_layer(found: Found, of: str) -> str:
    """The cosine at every block."""
    here: dict[str, Any] = {"of": of, "removed": names.NOTHING}
    each = (f"{n}: {found.mean('cosine', **here, layer=n)}" for n in found.layers())
    return ", ".join(each)


def without(found: Found, of: str, at: str) -> list[str]:
    """The cosine without what could make one by itself, but for the readout, which stands apart."""
    return [
        f"{label} {found.text(found.cosine(of, at, removed))}"
        for removed, label in names.REMOVED.items()
        if removed != names.READOUT
    ]


def chosen_layers(found: Found) -> str:
    """The blocks chosen, and in how many runs each."""
    texts = []
    for place, said in ((names.MIDDLE, "middle"), (names.CHOSEN, "late")):
        layers = found.values("layer", at=place)
        counts = zip(*np.unique(layers[~np.isnan(layers)], return_counts=True), strict=True)
        each = ", ".join(f"{int(layer)} ({n} of {found.runs} runs)" for layer, n in counts)
        texts.append(f"{said} {each}")
    return f"blocks chosen: {'; '.join(texts)}"


def form(found: Found) -> str:
    """Of CAA: what there is depends on the data."""
    return "class" if (found.values("class_form") == 1).all() else "paired"


def why_not(found: Found, of: Estimand) -> str:
    """Why an estimand has no cosine."""
    if form(found) == "class":
        return "not measured"
    if of == "E2":
        return "the right answer counts as + in every example: E2 is E1"
    return "examples have no classes"

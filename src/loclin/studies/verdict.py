"""From numbers of every run to a verdict: what the rules of all studies share (measures §14).

A rule is a list of conditions that all have to hold. Its p is the largest of theirs (intersection
-union test); p against it is the smallest of those that can refute it, times their number
(Bonferroni). Holm's correction is over both directions of all claims of one study on one model. The
unit is an independently pretrained model, whose runs are averaged first; where there is one model,
the run, and the claim is about that model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from loclin.run.rows import Claim, estimated
from loclin.stats import (
    Estimate,
    Numbers,
    Scale,
    by_model,
    holm,
    mean_above,
    mean_within,
    on_scale,
    over_models,
    permutation_p,
    unscaled,
)
from loclin.studies.settings import StudySettings

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean:
    """The mean over units lies above a threshold (or below it), by Student's t.

    Attributes:
        name: what is said to hold.
        values: one for every run, in order; NaN where it is not defined.
        threshold: that it lies above.
        below: or below.
        scale: on which means are taken.
        refutes: whether a mean on the other side refutes the claim.
        refuted_at: the threshold beyond which it does, where it is another one.
    """

    name: str
    values: Numbers
    threshold: float
    below: bool = False
    scale: Scale = "plain"
    refutes: bool = True
    refuted_at: float | None = None

    def p(self, models: int, factor: float = 1.0) -> float:
        """One-sided p of Student's t."""
        return self._above(models, _times(self.threshold, factor, self.scale), self.below)

    def against(self, models: int, factor: float = 1.0) -> float | None:
        """The same of the other side."""
        at = self.threshold if self.refuted_at is None else self.refuted_at
        at = _times(at, factor, self.scale)
        return self._above(models, at, not self.below) if self.refutes else None

    def _above(self, models: int, at: float, below: bool) -> float:
        sign = -1.0 if below else 1.0
        return mean_above(sign * by_model(self.values, models, self.scale), sign * at)

    def least(self, models: int, level: float) -> str:
        """The threshold and as many standard errors as the power of Student's t asks for."""
        reach = _reach(by_model(self.values, models, self.scale), level)
        if reach is None:
            return ""
        at = float(on_scale(self.threshold, self.scale)) + (-reach if self.below else reach)
        return f"{self.name}: {float(unscaled(at, self.scale)):.3g}"

    def side(self, models: int, *, against: bool = False) -> np.ndarray:
        """By the units' means: which are on the claim's side, or on the one that refutes."""
        units, at = by_model(self.values, models, self.scale), self.threshold
        if against and self.refuted_at is not None:
            at = self.refuted_at
        low, line = self.below != against, on_scale(at, self.scale)
        return np.asarray(units < line if low else units > line)


@dataclass(frozen=True, eq=False, kw_only=True)
class Within:
    """The mean over units lies within margins set beforehand, by two one-sided t-tests (Schuirmann
    1987); a mean beyond one of them refutes.

    Attributes:
        name, values, scale: as of `Mean`.
        low, high: the margins, around 0, or around 1 on the log scale.
    """

    name: str
    values: Numbers
    low: float
    high: float
    scale: Scale = "plain"

    def p(self, models: int, factor: float = 1.0) -> float:
        """The larger p of the two tests."""
        units, (low, high) = self._placed(models, factor)
        return mean_within(units, low, high)

    def against(self, models: int, factor: float = 1.0) -> float | None:
        """Beyond either margin (Bonferroni); ratios that may be below 0 have no logarithm, and are
        taken as they are.
        """
        units, (low, high) = self._placed(models, factor)
        if self.scale == "log" and np.nanmin(self.values, initial=1.0) <= 0:
            units, low, high = by_model(self.values, models), math.exp(low), math.exp(high)
        return min(1.0, 2 * min(mean_above(units, high), mean_above(-units, -low)))

    def _placed(self, models: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
        return by_model(self.values, models, self.scale), factor * on_scale(
            np.array([self.low, self.high]), self.scale
        )

    def least(self, models: int, level: float) -> str:
        """The smallest margin that equal means would have been shown to lie within."""
        units = by_model(self.values, models, self.scale)
        units = units[~np.isnan(units)]
        if len(units) < 2 or not (error := units.std(ddof=1) / np.sqrt(len(units))):
            return ""
        freedom = len(units) - 1
        reach = stats.t.ppf(1 - level, freedom) + stats.t.ppf((1 + POWER) / 2, freedom)
        return f"{self.name}: a margin of {float(unscaled(reach * error, self.scale)):.3g}"

    def side(self, models: int, *, against: bool = False) -> np.ndarray:
        """Units within the margins, or beyond."""
        units, (low, high) = self._placed(models, 1.0)
        inside = (units > low) & (units < high)
        return np.asarray(~inside & ~np.isnan(units) if against else inside)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was observed exceeds draws from a null, by (b+1)/(m+1)."""

    name: str
    value: float
    other: float | None = None

    def p(self, models: int, factor: float = 1.0) -> float:
        """As drawn."""
        return self.value

    def against(self, models: int, factor: float = 1.0) -> float | None:
        """As drawn, where the other direction refutes."""
        return self.other


#: What has to hold. `p` is of "it does not hold", `against` of "it is not the other way round"
#: (None where that would refute nothing), `least` the smallest effect that 80 % of such studies
#: would support at a level, `side` which units lie on its side, or on the other one (draws know no
#: units). A factor on thresholds asks how firm it is.
Condition = Mean | Within | Drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """A claim that is not decided yet, and what has to hold; nothing where it cannot be decided."""

    claim: Claim
    conditions: tuple[Condition, ...] = ()
    models: int = 1

    def tests(self, factor: float = 1.0) -> tuple[float, float | None] | None:
        """p for the claim and against it."""
        if not self.conditions:
            return None
        found = [c.against(self.models, factor) for c in self.conditions]
        refuting = [p for p in found if p is not None]
        against = min(1.0, len(refuting) * min(refuting)) if refuting else None
        return max(c.p(self.models, factor) for c in self.conditions), against


def decided(rules: Sequence[Rule]) -> list[Claim]:
    """The claims with their verdicts, adjusted over both directions of all of them."""
    units = ("model" if r.models > 1 else "run on one model" for r in rules)
    rules = [replace(r, claim=replace(r.claim, unit=u)) for r, u in zip(rules, units, strict=True)]
    tests = {i: t for i, rule in enumerate(rules) if (t := rule.tests()) is not None}
    adjusted = _adjusted(tests)
    return [
        _decided(r, i, tests, adjusted[i]) if i in tests else r.claim for i, r in enumerate(rules)
    ]


Tests = Mapping[int, tuple[float, float | None]]


def _adjusted(tests: Tests) -> dict[int, tuple[float, float | None]]:
    """Holm over supported and refuted alike."""
    every = [
        (i, side, p) for i, both in tests.items() for side, p in enumerate(both) if p is not None
    ]
    after = holm([p for *_, p in every])
    by_test = {(i, side): p for (i, side, _), p in zip(every, after, strict=True)}
    return {i: (by_test[i, 0], by_test.get((i, 1))) for i in tests}


def verdicts(tests: Tests) -> dict[int, str]:
    """The verdicts alone, of p for and against every claim of a family."""
    return {i: _verdict(*after) for i, after in _adjusted(tests).items()}


def _verdict(p: float, against: float | None) -> str:
    if p < LEVEL:
        return "supported"
    return "refuted" if against is not None and against < LEVEL else "inconclusive"


def _decided(rule: Rule, i: int, tests: Tests, after: tuple[float, float | None]) -> Claim:
    p, against = tests[i]
    word, count = _verdict(*after), sum(1 + (b is not None) for _, b in tests.values())
    moved = [rule.tests(factor) or tests[i] for factor in (0.5, 2.0)]
    halved, doubled = (
        "" if moved == [tests[i]] * 2 else _verdict(*_adjusted({**tests, i: there})[i])
        for there in moved
    )
    tested = [c for c in rule.conditions if not isinstance(c, Drawn)]
    weakest = max(tested, key=lambda c: c.p(rule.models), default=None)
    bar, supports = _bar(rule)
    return replace(
        rule.claim,
        bar=bar,
        supports=supports,
        p=p,
        p_holm=after[0],
        p_against=against,
        p_against_holm=after[1],
        verdict=word,
        least_effect=weakest.least(rule.models, LEVEL / count) if weakest else "",
        agree=_agreeing(rule, word),
        halved=halved,
        doubled=doubled,
    )


def _bar(rule: Rule) -> tuple[float | None, str]:
    """What the first condition that is about the estimate itself holds it against."""
    for c in rule.conditions:
        if isinstance(c, Drawn) or np.isnan(np.asarray(c.values, dtype=float)).all():
            continue
        e = over_models(c.values, rule.models, c.scale)
        if math.isclose(e.value, rule.claim.value or 0.0, rel_tol=1e-9, abs_tol=1e-12):
            if isinstance(c, Within):
                return c.high, "within"
            return c.threshold, "below" if c.below else "above"
    return None, ""


def _agreeing(rule: Rule, word: str) -> str:
    """How many units lie on the side of every condition; where it is refuted, how many lie beyond
    in the condition that refutes it. Of those where it is defined.
    """
    tested = [c for c in rule.conditions if not isinstance(c, Drawn)]
    refuting = {i: p for i, c in enumerate(tested) if (p := c.against(rule.models)) is not None}
    if not tested or (word == "refuted" and not refuting):
        return ""
    if word == "refuted":
        tested = [tested[min(refuting, key=lambda i: refuting[i])]]
    sides = [c.side(rule.models, against=word == "refuted") for c in tested]
    known = ~np.isnan([by_model(c.values, rule.models) for c in tested]).any(axis=0)
    return f"{int(np.all(sides, axis=0)[known].sum())} of {int(known.sum())}"


def _times(threshold: float, factor: float, scale: Scale) -> float:
    """A threshold of another size, on its scale: a share of `factor` times the odds, a correlation
    of as many times the z.
    """
    at = float(on_scale(threshold, scale))
    return at * factor if scale in ("plain", "fisher") else at + math.log(factor)


def _reach(units: np.ndarray, level: float) -> float | None:
    """How far above a threshold a mean has to lie for 80 % of studies with these units' spread to
    find it there, one-sided at a level.
    """
    units = units[~np.isnan(units)]
    n = len(units)
    if n < 2 or not (error := float(units.std(ddof=1) / np.sqrt(n))):
        return None
    beyond = stats.t.ppf(1 - level, n - 1)
    away = optimize.brentq(lambda x: stats.nct.sf(beyond, n - 1, x) - POWER, 0.0, 3 * beyond + 20)
    return float(away) * error


def setting(settings: StudySettings, of: str) -> str:
    """What a claim was tested on: model, data unless they are the model's own, LoRA, the rest."""
    lora = ["LoRA"] if settings.space == "lora" else []
    return ", ".join([settings.model, *settings.data, *lora, of])


def mean(settings: StudySettings, values: Numbers, scale: Scale = "plain") -> Estimate | None:
    """Over the models; None where no run has a value."""
    undefined = np.isnan(np.asarray(values, dtype=float)).all()
    return None if undefined else over_models(values, settings.models, scale)


def drawn(name: str, observed: float, null: np.ndarray) -> Drawn:
    """By permutation in both directions; draws are 1e-12 above what they are, then below."""
    other = permutation_p(-observed, 2e-12 - null)
    return Drawn(name=name, value=permutation_p(observed, null), other=other)


def undecided(estimate: Estimate | None, **words: str) -> Claim:
    """A claim before its rule is applied: "measurement" or "not run" where it stays so."""
    e = estimated("", estimate, {})
    fields = {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "p": None, "p_holm": None}
    return Claim(**{**fields, "verdict": "not run", **words})  # type: ignore[arg-type]


def rule(
    settings: StudySettings,
    of: str,
    estimate: Estimate | None,
    conditions: Iterable[Condition] = (),
    **words: str,
) -> Rule:
    """A claim with its conditions, which decide nothing where there is no estimate.

    Args:
        of: what else it was tested on, such as the optimiser.
        words: fields of the `Claim`.
    """
    claim = undecided(estimate, setting=setting(settings, of), **words)
    holding = () if estimate is None else tuple(conditions)
    return Rule(claim=claim, conditions=holding, models=settings.models)

"""What a search is worth on test examples: the winner, votes of the best, pass@N, and their
comparison (measures §11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from loclin.errors import LoclinError
from loclin.stats import Estimate, holm, mcnemar, over_examples, paired_difference

Scores = Float[np.ndarray, " N"]
Groups = Sequence[Hashable] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Condition:
    """One way to answer the test examples.

    Attributes:
        right: whether each test example is answered right.
        forward_passes: that an answer takes, in passes of one model over one example.
        deployable: False for an oracle, which needs to know the right answers.
    """

    name: str
    right: Bool[np.ndarray, " n"]
    forward_passes: int
    deployable: bool = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ConditionResult:
    """What a condition is worth beside the base.

    Attributes:
        score: share answered right, with its interval over examples.
        gain: score less the base's, paired by example.
        p: McNemar's exact test against the base.
        p_holm: corrected over all deployable conditions; None for the base and for oracles.
    """

    condition: Condition
    score: Estimate
    gain: Estimate
    p: float
    p_holm: float | None


def ranked(scores: Sequence[float | int] | np.ndarray) -> Int[np.ndarray, " finite"]:
    """Indices, best score first, equal ones in order; without scores that are not finite.

    >>> ranked([0.2, 0.5, float("nan"), 0.5]).tolist()
    [1, 3, 0]
    """
    values = np.asarray(scores, dtype=float)
    order = np.argsort(-values, kind="stable")
    return np.asarray(order[np.isfinite(values[order])])


def vote(answers: Sequence[Sequence[str]]) -> list[str | None]:
    """Majority of the candidates' answers to each example; None where nobody gives one. A tie goes
    to the best-ranked candidate's answer among those tied.

    Args:
        answers: of each candidate, best ranked first, one for each example; "" is no vote.

    Raises:
        LoclinError: no candidates, or not the same number of answers from each.

    >>> vote([["a", "a", ""], ["b", "b", ""], ["b", "", ""]])
    ['b', 'a', None]
    """
    counts = sorted({len(row) for row in answers})
    if len(counts) != 1:
        raise LoclinError(
            "expected the same number of answers from one candidate or more, found "
            f"{f'{counts} answers' if counts else 'no candidates'}: ask all of them"
        )
    votes = [
        Counter(answer for answer in column if answer) for column in zip(*answers, strict=True)
    ]
    # a Counter keeps the order of first votes, and max takes the first of equals
    return [max(ballot, key=ballot.__getitem__) if ballot else None for ballot in votes]


def solved(answers: Sequence[str | None], wanted: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether each answer is the wanted one; None is wrong.

    Raises:
        LoclinError: not as many answers as are wanted.

    >>> solved(["a", None], ["a", "b"]).tolist()
    [True, False]
    """
    if len(answers) != len(wanted):
        raise LoclinError(
            f"expected {len(wanted)} answers, found {len(answers)}: answer all the examples"
        )
    return np.array([a is not None and a == b for a, b in zip(answers, wanted, strict=True)], bool)


def voted(answers: Sequence[Sequence[str]], wanted: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether the majority of the candidates answers each example right: `vote`, then `solved`."""
    return solved(vote(answers), wanted)


def pass_at(outcomes: Bool[np.ndarray, "N n"], ks: Sequence[int]) -> Float[np.ndarray, "ks n"]:
    """Chance that one of k candidates, drawn of N without replacement, solves each example: 1 −
    C(N−c, k)/C(N, k), c of N solving it.

    Its mean over examples is the unbiased pass@k of Chen et al. 2021 (arXiv:2107.03374, equation
    1). An oracle: only someone who knows the right answer can pick among k.

    Raises:
        LoclinError: a k that is not from 1 to N.

    >>> pass_at(np.array([[True, False], [False, False], [False, False]]), [1, 3]).round(3).tolist()
    [[0.333, 0.0], [1.0, 0.0]]
    """
    total = len(outcomes)
    _check_counts(ks, total)
    wrong = total - outcomes.sum(0)
    # C(w, k)/C(N, k) = ∏_{i<k} (w − i)/(N − i), which stops at 0 where k > w
    steps = np.arange(max(ks, default=0))[:, None]
    missed = np.cumprod(np.clip((wrong - steps) / (total - steps), 0, 1), axis=0)
    return np.asarray(1 - missed[np.asarray(ks, dtype=int) - 1])


def any_of(outcomes: Bool[np.ndarray, "N n"]) -> Condition:
    """pass@N as a condition: right where at least one of N candidates is; marked as an oracle."""
    _check_counts([1], len(outcomes))
    return Condition(
        name=f"any of {len(outcomes)} (oracle)",
        right=np.asarray(outcomes.any(0)),
        forward_passes=len(outcomes),
        deployable=False,
        note="needs to know which answer is right",
    )


def best_of(
    scores: Scores, ns: Sequence[int], *, shown: Scores | None = None
) -> Float[np.ndarray, " ns"]:
    """Mean of what the best of n of N scored candidates shows, over all draws of n: Σ_i shown_(i)
    C(i−1, n−1)/C(N, n), candidates ordered from worst to best.

    Without bias for n fresh candidates. Of equal scores the lower index is the better.

    Args:
        scores: that select; where one is not finite, the candidate is drawn but never selected.
        ns: numbers of candidates drawn, from 1 to N.
        shown: what is read off the selected one (its score on other data); its score by default.

    Raises:
        LoclinError: an n that is not from 1 to N, or no finite score at all.

    >>> best_of(np.array([1.0, 2.0, 3.0]), [1, 2, 3]).round(3).tolist()
    [2.0, 2.667, 3.0]
    """
    total, order = len(scores), ranked(scores)
    _check_counts(ns, total)
    if not len(order):
        raise LoclinError(
            "expected a candidate with a finite score, found none: search at a smaller σ"
        )
    values = (scores if shown is None else np.asarray(shown, dtype=float))[order]
    before, curve = np.arange(len(order)), []
    for n in ns:
        # chance that the best of n is the j-th best of all: it is drawn, none of the j before is
        missed = np.cumprod(np.clip((total - before - n) / (total - before), 0, 1))[:-1]
        chosen = np.concatenate([[1.0], missed]) * np.clip(n / (total - before), 0, 1)
        curve.append(float(chosen @ values / chosen.sum()))  # of the draws that select somebody
    return np.array(curve)


def compare(
    conditions: Sequence[Condition], base: Condition, *, groups: Groups = None, seed: int
) -> list[ConditionResult]:
    """Every condition against the base on the same test examples; the base comes first.

    Intervals are of the paired bootstrap over examples, or over `groups` of examples that are not
    independent, one for each example. McNemar's p takes examples as independent: where groups are
    large, it is the gain's interval that counts.

    Raises:
        LoclinError: a condition over another number of examples, or two of one name.
    """
    everyone = [base, *conditions]
    names = Counter(condition.name for condition in everyone)
    if twice := [name for name, count in names.items() if count > 1]:
        raise LoclinError(
            f"expected conditions of different names, found {twice} more than once: rename one"
        )
    for condition in conditions:
        if len(condition.right) != len(base.right):
            raise LoclinError(
                f"expected outcomes of the same {len(base.right)} examples, found "
                f"{len(condition.right)} of {condition.name}: answer all of them"
            )
    p = [mcnemar(condition.right, base.right) for condition in everyone]
    family = [i for i, condition in enumerate(everyone) if i and condition.deployable]
    corrected = dict(zip(family, holm([p[i] for i in family]), strict=True))
    return [
        ConditionResult(
            condition=condition,
            score=over_examples(condition.right, groups=groups, seed=seed),
            gain=paired_difference(condition.right, base.right, groups=groups, seed=seed),
            p=p[i],
            p_holm=corrected.get(i),
        )
        for i, condition in enumerate(everyone)
    ]


def _check_counts(counts: Sequence[int], total: int) -> None:
    if bad := [k for k in counts if not 1 <= k <= total]:
        raise LoclinError(
            f"expected numbers of candidates from 1 to {total}, found {bad}: draw as many as there "
            "are"
        )

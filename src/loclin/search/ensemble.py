"""What a search is worth on test examples: the winner, votes of the best, pass@N, and their
comparison (measures §11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from loclin.errors import LoclinError
from loclin.stats import Estimate, holm, mcnemar, over_examples, paired_difference


@dataclass(frozen=True, eq=False, kw_only=True)
class Condition:
    """One way to answer the test examples.

    Attributes:
        right: whether each test example is answered right.
        forward_passes: that an answer takes, in passes of one model over one example.
    """

    name: str
    right: Bool[np.ndarray, " n"]
    forward_passes: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ConditionResult:
    """What a condition is worth beside the base.

    Attributes:
        score: share answered right, with its interval over examples.
        gain: score less the base's, paired by example.
        p: McNemar's exact test against the base.
        p_holm: corrected over all conditions; None for the base.
    """

    condition: Condition
    score: Estimate
    gain: Estimate
    p: float
    p_holm: float | None


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


def best_of(scores: Float[np.ndarray, " N"], ns: Sequence[int]) -> Float[np.ndarray, " ns"]:
    """Mean of the best of n of N scores, over all draws of n: Σ_i s_(i) C(i−1, n−1)/C(N, n), from
    the worst to the best.

    Without bias for n fresh candidates. Where a score is not finite, the candidate is drawn but
    never selected.

    Raises:
        LoclinError: an n that is not from 1 to N, or no finite score at all.

    >>> best_of(np.array([1.0, 2.0, 3.0]), [1, 2, 3]).round(3).tolist()
    [2.0, 2.667, 3.0]
    """
    total = len(scores)
    _check_counts(ns, total)
    values = -np.sort(-scores[np.isfinite(scores)])
    if not len(values):
        raise LoclinError(
            "expected a candidate with a finite score, found none: search at a smaller σ"
        )
    before, curve = np.arange(len(values)), []
    for n in ns:
        # chance that the best of n is the j-th best of all: it is drawn, none of the j before is
        missed = np.cumprod(np.clip((total - before - n) / (total - before), 0, 1))[:-1]
        chosen = np.concatenate([[1.0], missed]) * np.clip(n / (total - before), 0, 1)
        curve.append(float(chosen @ values / chosen.sum()))  # of the draws that select somebody
    return np.array(curve)


def compare(
    conditions: Sequence[Condition],
    base: Condition,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int,
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
    corrected = [None, *holm(p[1:])]
    return [
        ConditionResult(
            condition=condition,
            score=over_examples(condition.right, groups=groups, seed=seed),
            gain=paired_difference(condition.right, base.right, groups=groups, seed=seed),
            p=p[i],
            p_holm=corrected[i],
        )
        for i, condition in enumerate(everyone)
    ]


def _check_counts(counts: Sequence[int], total: int) -> None:
    if bad := [k for k in counts if not 1 <= k <= total]:
        raise LoclinError(
            f"expected numbers of candidates from 1 to {total}, found {bad}: draw as many as there "
            "are"
        )

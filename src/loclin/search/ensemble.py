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


@dataclass(frozen=True, eq=False, kw_only=True)
class Arm:
    """One way to answer the test examples.

    Attributes:
        name: as the table shows it.
        right: whether each test example is answered right.
        forward_passes: that an answer takes, in passes of one model over one example.
        deployable: False for an oracle, which needs to know the right answers.
        note: what the reader must know about it.
    """

    name: str
    right: Bool[np.ndarray, " n"]
    forward_passes: int
    deployable: bool = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One row of the comparison.

    Attributes:
        name: of the arm.
        score: share answered right, with its interval over examples.
        gain: score less the base's, paired by example.
        p: McNemar's exact test against the base.
        p_holm: the same, corrected over all deployable arms; None for the base itself and for
            oracles, which test nothing.
        forward_passes: that an answer takes.
        deployable: False for an oracle.
        note: what the reader must know about it.
    """

    name: str
    score: Estimate
    gain: Estimate
    p: float
    p_holm: float | None
    forward_passes: int
    deployable: bool
    note: str


def ranked(scores: Sequence[float | int] | np.ndarray) -> Int[np.ndarray, " finite"]:
    """Indices of the candidates, best score first; equal scores in order of index; scores that are
    not finite left out.

    >>> ranked([0.2, 0.5, float("nan"), 0.5]).tolist()
    [1, 3, 0]
    """
    given = np.asarray(scores, dtype=float)
    order = np.argsort(-given, kind="stable")
    return np.asarray(order[np.isfinite(given[order])])


def vote(answers: Sequence[Sequence[str]]) -> list[str | None]:
    """Majority of k candidates' answers to each example; a tie goes to the best-ranked candidate's
    answer among those tied.

    Args:
        answers: of each candidate, best ranked first, one answer for each example; "" where it
            gives none, which is no vote.

    Returns:
        The answer of each example; None where nobody gives one.

    Raises:
        LoclinError: no candidates, or not the same number of answers from each.

    >>> vote([["a", "a", ""], ["b", "b", ""], ["b", "", ""]])
    ['b', 'a', None]
    """
    if not answers or len({len(given) for given in answers}) > 1:
        found = (
            f"{sorted({len(given) for given in answers})} answers" if answers else "no candidates"
        )
        raise LoclinError(
            f"expected the same number of answers from one candidate or more, found {found}: ask "
            "all of them"
        )
    votes = [Counter(answer for answer in given if answer) for given in zip(*answers, strict=True)]
    # a Counter keeps the order of first votes, and max takes the first of equals: the best-ranked
    # candidate's
    return [max(counts, key=counts.__getitem__) if counts else None for counts in votes]


def solved(given: Sequence[str | None], wanted: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether each answer is the wanted one; None is wrong.

    Raises:
        LoclinError: not as many answers as are wanted.

    >>> solved(["a", None], ["a", "b"]).tolist()
    [True, False]
    """
    if len(given) != len(wanted):
        raise LoclinError(
            f"expected {len(wanted)} answers, found {len(given)}: answer all the examples"
        )
    return np.array(
        [a is not None and a == b for a, b in zip(given, wanted, strict=True)], dtype=bool
    )


def pass_at(outcomes: Bool[np.ndarray, "N n"], ks: Sequence[int]) -> Float[np.ndarray, "ks n"]:
    """Chance that k of N candidates, drawn without replacement, solve each example: 1 − C(N−c,
    k)/C(N, k), c of N solving it.

    Its mean over examples is the unbiased pass@k of Chen et al. 2021 (arXiv:2107.03374, equation
    1); at k = N it is 0 or 1, the plain "any of N". An oracle: only someone who knows the right
    answer can pick among k.

    Args:
        outcomes: whether each candidate solves each example.
        ks: numbers of candidates drawn, from 1 to N.

    Raises:
        LoclinError: a k that is not from 1 to N.

    >>> pass_at(np.array([[True, False], [False, False], [False, False]]), [1, 2, 3]).round(3).tolist()
    [[0.333, 0.0], [0.667, 0.0], [1.0, 0.0]]
    """
    total = len(outcomes)
    _checked_counts(ks, total)
    wrong = total - outcomes.sum(0)
    # C(w, k)/C(N, k) = ∏_{i<k} (w − i)/(N − i), which stops at 0 where k > w
    steps = np.arange(max(ks, default=0))[:, None]
    missed = np.cumprod(np.clip((wrong - steps) / (total - steps), 0, 1), axis=0)
    return np.asarray(1 - missed[np.asarray(ks, dtype=int) - 1])


def any_of(outcomes: Bool[np.ndarray, "N n"]) -> Arm:
    """pass@N as an arm: right where at least one of N candidates is; marked as the oracle it is."""
    _checked_counts([1], len(outcomes))
    return Arm(
        name=f"any of {len(outcomes)} (oracle)",
        right=np.asarray(outcomes.any(0)),
        forward_passes=len(outcomes),
        deployable=False,
        note="needs to know which answer is right",
    )


def best_of(
    scores: Float[np.ndarray, " N"],
    ns: Sequence[int],
    *,
    shown: Float[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " ns"]:
    """Ladder of best-of-n from N scored candidates: the mean of what the best of n of them shows,
    over all draws of n.

    With candidates ordered from worst to best, the i-th is the best of n in C(i−1, n−1) of C(N, n)
    draws, so that is Σ_i shown_(i) C(i−1, n−1)/C(N, n): without bias for n fresh candidates. Equal
    scores: the lower index is the better.

    Args:
        scores: that select (as on the select split); where one is not finite, the candidate is
            drawn but never selected.
        ns: numbers of candidates drawn, from 1 to N.
        shown: what is read off the selected one (its score on other data); the selecting score
            itself where left out.

    Raises:
        LoclinError: an n that is not from 1 to N, or no finite score at all.

    >>> best_of(np.array([1.0, 2.0, 3.0]), [1, 2, 3]).round(3).tolist()
    [2.0, 2.667, 3.0]
    """
    total = len(scores)
    _checked_counts(ns, total)
    order = ranked(scores)
    if not len(order):
        raise LoclinError(
            "expected a candidate with a finite score, found none: search at a smaller σ"
        )
    values = (scores if shown is None else np.asarray(shown, dtype=float))[order]
    curve = []
    for n in ns:
        # chance that the best of n is the j-th best of all: it is drawn, and none of the j before
        # it is
        before = np.arange(len(order))
        none_before = np.concatenate(
            [[1.0], np.cumprod(np.clip((total - before - n) / (total - before), 0, 1))[:-1]]
        )
        chosen = none_before * np.clip(n / (total - before), 0, 1)
        curve.append(
            float(chosen @ values / chosen.sum())
        )  # draws without any finite score select nobody
    return np.array(curve)


def table(
    arms: Sequence[Arm], base: Arm, *, groups: Sequence[Hashable] | None = None, seed: int
) -> list[ArmRow]:
    """Every arm against the base on the same test examples; the base is the first row.

    Intervals are of the paired bootstrap over examples, or over groups of examples that are not
    independent; McNemar's p takes examples as independent, so where groups are large it is the
    gain's interval that counts.

    Args:
        arms: to compare.
        base: what they are compared with.
        groups: of each test example, where some belong together.
        seed: of the bootstrap.

    Raises:
        LoclinError: an arm over another number of examples, or two of one name.
    """
    everyone = [base, *arms]
    names = Counter(arm.name for arm in everyone)
    if twice := [name for name, count in names.items() if count > 1]:
        raise LoclinError(
            f"expected arms of different names, found {twice} more than once: rename one"
        )
    for arm in arms:
        if len(arm.right) != len(base.right):
            raise LoclinError(
                f"expected outcomes of the same {len(base.right)} examples, found {len(arm.right)} "
                f"of {arm.name}: "
                "answer all of them"
            )
    p = [mcnemar(arm.right, base.right) for arm in everyone]
    family = [i for i, arm in enumerate(everyone) if i and arm.deployable]
    corrected = dict(zip(family, holm([p[i] for i in family]), strict=True))
    return [
        ArmRow(
            name=arm.name,
            score=over_examples(arm.right, groups=groups, seed=seed),
            gain=paired_difference(arm.right, base.right, groups=groups, seed=seed),
            p=p[i],
            p_holm=corrected.get(i),
            forward_passes=arm.forward_passes,
            deployable=arm.deployable,
            note=arm.note,
        )
        for i, arm in enumerate(everyone)
    ]


def _checked_counts(counts: Sequence[int], total: int) -> None:
    if bad := [k for k in counts if not 1 <= k <= total]:
        raise LoclinError(
            f"expected numbers of candidates from 1 to {total}, found {bad}: draw as many as there "
            "are"
        )

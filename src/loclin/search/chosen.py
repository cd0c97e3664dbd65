"""From a ledger to what is tested: candidates ranked on select, scored again on validate, which
chooses one and an ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from loclin.errors import LoclinError
from loclin.models.exam import Exam
from loclin.search.answering import answers
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.ensemble import solved, vote
from loclin.search.scoring import Outcome
from loclin.seeds import derived
from loclin.tasks.example import Example


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """What a candidate, or the model itself, answered to some examples.

    Attributes:
        loss: mean over all answer tokens, in nats.
        answers: in words, for votes.
        right: whether each is the right one.
    """

    loss: float
    answers: tuple[str, ...]
    right: Bool[np.ndarray, " n"]

    @property
    def score(self) -> float:
        """Share of the examples answered right."""
        return float(self.right.mean())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What validate chose: the only candidates that test is asked about.

    Attributes:
        best: the single candidate.
        members: of the ensemble, best ranked on select first.
        sigma: of the ensemble's candidates; None where they are the best over every σ.
        strangers: as many random candidates of the same σ, for the control.
        single_score, ensemble_score: on validate.
    """

    best: Candidate
    members: tuple[Candidate, ...]
    sigma: float | None
    strangers: tuple[Candidate, ...]
    single_score: float
    ensemble_score: float

    @property
    def k(self) -> int:
        """Size of the ensemble."""
        return len(self.members)

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, each once."""
        return list({c.index: c for c in (self.best, *self.members, *self.strangers)}.values())


def ranking(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first: by score, then by loss, then by index; a candidate whose loss is not finite is
    never selected.

    Raises:
        LoclinError: none is finite.
    """
    finite = [o for o in outcomes if math.isfinite(o.loss)]
    if not finite:
        raise LoclinError(
            f"expected a candidate with a finite loss, found none among {len(outcomes)}: choose a "
            "smaller --sigma"
        )
    return sorted(finite, key=lambda o: (-o.score, o.loss, o.candidate.index))


def pools(outcomes: Sequence[Outcome], most: int) -> dict[float | None, list[Candidate]]:
    """The first `most` of all candidates (under None), and of those of every σ where there are
    several.

    A σ none of whose candidates is finite has no pool.
    """
    order = [o.candidate for o in ranking(outcomes)]
    sigmas = list(dict.fromkeys(o.candidate.sigma for o in outcomes))
    found: dict[float | None, list[Candidate]] = {None: order[:most]}
    if len(sigmas) > 1:
        found |= {sigma: [c for c in order if c.sigma == sigma][:most] for sigma in sigmas}
    return {sigma: pool for sigma, pool in found.items() if pool}


def asked(
    perturbed: Perturbed, exam: Exam, examples: Sequence[Example], candidate: Candidate | None
) -> Asked:
    """What a candidate answers, or the model itself for None; the model is back at its base
    afterwards.

    Args:
        perturbed: the coordinates of the search.
        exam: of the examples.
        examples: the same.
        candidate: which.
    """
    try:
        if candidate is not None:
            perturbed.place(candidate)
        losses, _ = exam.answers()
        given = answers(exam.problem, examples)
    finally:
        perturbed.restore()
    return Asked(
        loss=float(losses.sum()) / float(exam.tokens.sum()),
        answers=tuple(given),
        right=solved(given, [e.answer for e in examples]),
    )


def choose(
    found: Mapping[float | None, Sequence[Candidate]],
    validated: Mapping[int, Asked],
    examples: Sequence[Example],
    ks: Sequence[int],
    *,
    every: Sequence[Outcome],
    seed: int,
) -> Choice:
    """What validate prefers: the single candidate with the best score, and the k and σ whose
    majority vote is right most often.

    Ties go to the lower loss, then the lower index; and to the smaller ensemble, then to the one
    over every σ.

    Args:
        found: the pools, best first on select.
        validated: by index, what every candidate of the pools answers to the validate examples.
        examples: the validate examples.
        ks: sizes of ensembles; one beyond a pool's candidates takes all of them.
        every: outcomes on select, from which the control draws.
        seed: of the control.
    """
    every_pool = {c.index: c for pool in found.values() for c in pool}
    best = min(
        every_pool.values(),
        key=lambda c: (-validated[c.index].score, _worth(validated[c.index].loss), c.index),
    )
    wanted = [e.answer for e in examples]
    ensembles = [(sigma, pool[:k]) for k in sorted(ks) for sigma, pool in found.items()]

    def right(entry: tuple[float | None, Sequence[Candidate]]) -> float:
        return float(np.mean(solved(vote([validated[c.index].answers for c in entry[1]]), wanted)))

    sigma, members = max(ensembles, key=right)  # the first of equals
    others = [o.candidate for o in every if sigma is None or o.candidate.sigma == sigma]
    order = sorted(others, key=lambda c: derived(seed, "stranger", c.index))
    return Choice(
        best=best,
        members=tuple(members),
        sigma=sigma,
        strangers=tuple(order[: len(members)]),
        single_score=validated[best.index].score,
        ensemble_score=right((sigma, members)),
    )


def _worth(loss: float) -> float:
    """A loss that is not a number is worse than any."""
    return math.inf if math.isnan(loss) else loss

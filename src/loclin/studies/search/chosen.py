"""From outcomes to what is tested: candidates ranked on select, scored again on validate, which
chooses one and an ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from loclin.models.evaluation import EvalSet
from loclin.search.answering import answers
from loclin.search.candidate import Candidate
from loclin.search.ensemble import solved, voted
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome, best_first
from loclin.seeds import derived
from loclin.tasks.example import Example


@dataclass(frozen=True, eq=False, kw_only=True)
class AnswerBatch:
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
        random_controls: as many candidates of the same σ, drawn at random.
        single_score, ensemble_score: on validate.
    """

    best: Candidate
    members: tuple[Candidate, ...]
    sigma: float | None
    random_controls: tuple[Candidate, ...]
    single_score: float
    ensemble_score: float

    @property
    def k(self) -> int:
        """Size of the ensemble."""
        return len(self.members)

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, each once."""
        every = (self.best, *self.members, *self.random_controls)
        return list({c.index: c for c in every}.values())


def pools(outcomes: Sequence[Outcome], most: int) -> dict[float | None, list[Candidate]]:
    """The first `most` of all candidates (under None), and of those of every σ where there are
    several.

    A σ none of whose candidates is finite has no pool.
    """
    order = [o.candidate for o in best_first(outcomes)]
    sigmas = list(dict.fromkeys(o.candidate.sigma for o in outcomes))
    found: dict[float | None, list[Candidate]] = {None: order[:most]}
    if len(sigmas) > 1:
        found |= {sigma: [c for c in order if c.sigma == sigma][:most] for sigma in sigmas}
    return {sigma: pool for sigma, pool in found.items() if pool}


def answer_batches(
    scorer: Scorer, examples: Sequence[Example], asked: Iterable[Candidate | None]
) -> dict[int | None, AnswerBatch]:
    """What candidates answer, by index, and the model itself for None; the model is back at its
    base afterwards.
    """
    eval_set, wanted = EvalSet.of(scorer.problem, examples), [e.answer for e in examples]
    found: dict[int | None, AnswerBatch] = {}
    for candidate in asked:
        with scorer.perturbed.at(candidate):
            losses, _ = eval_set.answers()
            words = answers(scorer.problem, examples)
        found[candidate.index if candidate else None] = AnswerBatch(
            loss=float(losses.sum()) / float(eval_set.tokens.sum()),
            answers=tuple(words),
            right=solved(words, wanted),
        )
    return found


def choose(
    pool_of: Mapping[float | None, Sequence[Candidate]],
    validated: Mapping[int | None, AnswerBatch],
    examples: Sequence[Example],
    ks: Sequence[int],
    *,
    outcomes: Sequence[Outcome],
    seed: int,
) -> Choice:
    """What validate prefers: the single candidate with the best score, and the k and σ whose
    majority vote is right most often.

    Ties go to the lower loss, then the lower index; and to the smaller ensemble, then to the one
    over every σ.

    Args:
        pool_of: every σ, the candidates that were best on select, best first.
        validated: by index, what every candidate of the pools answers to the validate examples.
        examples: the validate examples.
        ks: sizes of ensembles; one beyond a pool's candidates takes all of them.
        outcomes: on select, from which the control draws.
        seed: of the control.
    """
    pooled = {c.index: c for pool in pool_of.values() for c in pool}

    def worth(candidate: Candidate) -> tuple[float, float, int]:
        batch = validated[candidate.index]
        loss = math.inf if math.isnan(batch.loss) else batch.loss  # no number is worse than any
        return -batch.score, loss, candidate.index

    wanted = [e.answer for e in examples]
    ensembles = [(sigma, pool[:k]) for k in sorted(ks) for sigma, pool in pool_of.items()]

    def right(entry: tuple[float | None, Sequence[Candidate]]) -> float:
        return float(voted([validated[c.index].answers for c in entry[1]], wanted).mean())

    best = min(pooled.values(), key=worth)
    sigma, members = max(ensembles, key=right)  # the first of equals
    others = [o.candidate for o in outcomes if sigma is None or o.candidate.sigma == sigma]
    order = sorted(others, key=lambda c: derived(seed, "stranger", c.index))
    return Choice(
        best=best,
        members=tuple(members),
        sigma=sigma,
        random_controls=tuple(order[: len(members)]),
        single_score=validated[best.index].score,
        ensemble_score=right((sigma, members)),
    )

"""Random search around a model's weights, as one call: candidates by seed, scored here, in several
processes or on a cluster (measures §10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from loclin.errors import LoclinError
from loclin.models.pretrained import resolved
from loclin.progress import ProgressCallback, silent
from loclin.run.dispatch import Place, results
from loclin.run.workers import Job, one_thread
from loclin.search.candidate import Candidate, candidates
from loclin.search.ledger import Ledger, opened
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome, best_first
from loclin.search.spec import SearchSpec


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        loss, score: of the model itself: nats per answer token, and share answered right.
        outcomes: of every candidate, by index.
        notes: what happened on the way, in sentences.

    >>> from loclin.search.candidate import candidates
    >>> tried = zip(candidates(2, [0.1], seed=0), (0.9, 1.2), strict=True)
    >>> right = np.array([True, False])
    >>> outcomes = tuple(Outcome(candidate=c, loss=loss, right=right) for c, loss in tried)
    >>> found = SearchResult(loss=1.0, score=0.5, outcomes=outcomes)
    >>> found.gains.round(1), found.ranked()[0].loss
    (array([ 0.1, -0.2]), 0.9)
    """

    loss: float
    score: float
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        best = max(self.outcomes, key=lambda o: o.score, default=None)
        found = f"; best {best.score:.3g} at σ = {best.candidate.sigma:g}" if best else ""
        return f"SearchResult({len(self.outcomes)} candidates, own score {self.score:.3g}{found})"

    @property
    def gains(self) -> Float[np.ndarray, " N"]:
        """How much lower each candidate's loss is than the model's own, in nats per answer token;
        NaN where it is not finite.
        """
        return np.array([self.loss - o.loss for o in self.outcomes])

    def ranked(self) -> list[Outcome]:
        """Best first: by score, then by loss, then by index; without those that are not finite.

        Raises:
            LoclinError: none is finite.
        """
        return best_first(self.outcomes)


def random_search(
    scorer: Scorer,
    *,
    n: int,
    sigmas: Sequence[float],
    seed: int = 0,
    antithetic: bool = False,
    spec: SearchSpec | None = None,
    place: Place | None = None,
    group: int = 8,
    ledger: Path | None = None,
    progress: ProgressCallback = silent,
    note: Callable[[str], None] = lambda sentence: None,
) -> SearchResult:
    """Score n candidates θ = base + sign·σ·z at every σ; the model is at its base afterwards.

    z is standard normal, a function of the candidate's seed and the names of the tensors. For a
    loss with gradient g and Hessian H at the base, the best of n gains about σ‖g‖m_n − (σ²/2) tr H,
    with m_n the mean of the largest of n standard normal numbers (`loclin.law`, measures §10). The
    outcomes do not depend on where, in what order, or in which groups candidates are scored; where
    those of a group share their passes (`Scorer.stacks`), groups change the last digits.

    Args:
        scorer: a loaded model with its coordinates and examples; or `spec.build()`.
        n: candidates at each σ.
        sigmas: sizes of the noise, in units of the weights.
        seed: of the candidates: candidate i has the same z at every σ.
        antithetic: candidates 2j and 2j + 1 have one z and opposite signs.
        spec: what other processes build the same scorer from; without it this one does all.
        place: of the spec's workers: how many, and where; every core by default.
        group: candidates that a worker is handed at a time: always the same ones, those with equal
            index // group.
        ledger: a file that every outcome is written to as it comes, so that a search that was
            stopped goes on when it is called again.
        progress: called with the stage and the share of the candidates that are scored.
        note: called with what a user should know at once.

    Raises:
        LoclinError: an n or σ that cannot be (`candidates`), a ledger of another search, workers
            that die one after the other, no spec for them.
        KeyboardInterrupt: Ctrl-C; what was scored is in the ledger.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> some = problem.examples["test"]["swap"][:8]
    >>> scorer = Scorer(problem, loclin.ParameterSpace(problem.model), some)
    >>> found = random_search(scorer, n=4, sigmas=[0.001, 0.1])
    >>> len(found.outcomes), found.ranked()[0].candidate.sigma, bool(found.gains[4:].max() < 0)
    (8, 0.001, True)
    """
    drawn = candidates(n, sigmas, seed=seed, antithetic=antithetic)
    if place is not None and spec is None and not place.is_this_process(scorer.device):
        raise LoclinError("expected a spec for workers in other processes, found none: give one")
    place = Place(workers=1) if spec is None else place or Place()
    notes: list[str] = []

    def keep_note(sentence: str) -> None:
        notes.append(sentence)
        note(sentence)

    with one_thread(scorer.device):
        loss, score = scorer.own
        asked = {"n": n, "sigma": list(sigmas), "seed": seed, "antithetic": antithetic}
        grouped = {"group": group} if scorer.stacks else {}
        settings = scorer.fingerprint | asked | grouped
    with ExitStack() as stack:
        book = stack.enter_context(opened(ledger, settings)) if ledger else None
        kept = _continued(book, drawn, keep_note) if book else {}
        groups = [drawn[i : i + group] for i in range(0, len(drawn), group)]
        left = [g for g in groups if not all(c.index in kept for c in g)]
        job: Job = scorer
        if spec is not None and not place.is_this_process(scorer.device):
            stack.enter_context(scorer.aside())
            job = _described(spec, scorer)
        done = len(groups) - len(left)
        progress("scoring candidates", done / len(groups))
        scored = results(job, left, place, note=keep_note)
        for _, outcomes in stack.enter_context(closing(scored)):
            if book:
                book.append(outcomes)
            kept = {o.candidate.index: o for o in outcomes} | kept
            done += 1
            progress("scoring candidates", done / len(groups))
    every = tuple(kept[i] for i in sorted(kept))
    return SearchResult(loss=loss, score=score, outcomes=every, notes=tuple(notes))


def _described(spec: SearchSpec, scorer: Scorer) -> SearchSpec:
    """What travels: on what device, in which basis, and which model has to come of it."""
    basis = scorer.perturbed.basis
    return replace(
        spec,
        options=resolved(spec.options),
        basis=None if basis is None else basis.cpu(),
        expected=scorer.fingerprint,
    )


def _continued(
    ledger: Ledger, drawn: Sequence[Candidate], note: Callable[[str], None]
) -> dict[int, Outcome]:
    """What an earlier session scored: candidates of this very search."""
    if ledger.note:
        note(ledger.note)
    kept = {o.candidate.index: o for o in ledger.outcomes()}
    for index, outcome in kept.items():
        if index >= len(drawn) or drawn[index] != outcome.candidate:
            raise LoclinError(
                f"expected candidate {index} of this search in {ledger.path}, found another seed, "
                "σ or sign: restore the file, or move it away and search again"
            )
    return kept

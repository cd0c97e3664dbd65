"""What the best candidates are worth on test examples: alone, by vote, beside controls at as many
forward passes (Table 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from loclin.models.exam import Exam
from loclin.record import Row
from loclin.search.answering import answers, sampled
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.ensemble import best_of, pass_at, solved, vote
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.stats import mcnemar
from loclin.studies.search.around import Around
from loclin.studies.search.scored import Gains, gains
from loclin.tasks.example import Example

MODEL, BEST, RANDOM = "the model", "vote of the best", "vote without selection"
SAMPLES, ORACLE = "vote of samples", "any of them (oracle)"


def ranked_by_select(found: Gains) -> list[int]:
    """Places of the candidates, best first: by score on the select examples, ties by loss, then by
    place; not those without a loss.
    """
    order = np.lexsort((np.arange(len(found.loss)), -found.loss, -found.score))
    return [int(i) for i in order if np.isfinite(found.loss[i])]


def chosen_size(found: Mapping[float, Gains], n: int) -> float:
    """The σ whose best of n gains most by the select examples: in score, ties in loss."""

    def worth(size: float) -> tuple[float, float]:
        of = found[size]
        kept = np.where(np.isfinite(of.loss), of.score, np.nan)
        return float(best_of(kept, [n])[0]), float(best_of(of.loss, [n])[0])

    return max(found, key=worth)


def table_rows(
    here: Around, swept: Mapping[float, Gains], test: Sequence[Example]
) -> Iterator[Row]:
    """Every arm's score on the test examples, with McNemar's p against the model itself.

    The σ and the candidates are chosen by the select examples alone.

    Args:
        here: the point, the space standing there.
        swept: the candidates of every σ.
        test: examples that select nothing.
    """
    config, problem = here.bench.config, here.bench.problem
    size = chosen_size(swept, config.n)
    found = swept[size]
    yield here.row("table_size", size)
    order = ranked_by_select(found)
    wanted = [e.answer for e in test]
    most = max(config.votes)
    with Perturbed(here.bench.space, Noise()) as moved:
        here.progress("asking the test examples", 0.0)
        base = solved(answers(problem, test), wanted)
        seed = derived(here.seed, "samples")
        drawn = sampled(problem, test, most, temperature=config.temperature, seed=seed)
        best = _answers(moved, here, [found.candidates[i] for i in order[:most]], test)
        strangers = _answers(moved, here, found.candidates[:most], test)
        exam = Exam.of(problem, test, at_once=here.exam.at_once)
        every = gains(moved, exam, found.candidates[: config.asked], stacked=here.stacked)
        winner = gains(moved, exam, [found.candidates[order[0]]])
    yield _row(here, MODEL, 1, base, base)
    for k in config.votes:
        yield _row(here, BEST, k, solved(vote(best[:k]), wanted), base)
        yield _row(here, RANDOM, k, solved(vote(strangers[:k]), wanted), base)
        yield _row(here, SAMPLES, k, solved(vote(drawn[:k]), wanted), base)
    ks = [k for k in config.best_of if k < config.asked] + [config.asked]
    for k, chance in zip(ks, pass_at(every.right, ks), strict=True):
        yield here.row(
            "table_score", float(chance.mean()), null=float(base.mean()), arm=ORACLE, votes=k
        )
    yield here.row("winner_gain", float(found.loss[order[0]]), split="select", of="loss")
    yield here.row("winner_gain", float(winner.loss[0]), split="test", of="loss")
    yield here.row("winner_gain", float(found.score[order[0]]), split="select", of="score")
    yield here.row("winner_gain", float(winner.score[0]), split="test", of="score")


def _answers(
    moved: Perturbed, here: Around, chosen: Sequence[Candidate], test: Sequence[Example]
) -> list[list[str]]:
    """What each candidate answers."""
    given = []
    for candidate in chosen:
        moved.place(candidate)
        given.append(answers(here.bench.problem, test))
    moved.restore()
    return given


def _row(here: Around, arm: str, votes: int, right: np.ndarray, base: np.ndarray) -> Row:
    context = {**here.bench.context, "point": here.point, "arm": arm, "votes": votes}
    return Row(
        quantity="table_score",
        value=float(right.mean()),
        null=float(base.mean()),
        p=mcnemar(right, base),
        context=context,
    )

"""What the best candidates are worth on test examples: alone, by vote, beside controls at as many
forward passes (Table 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from loclin.models.evaluation import EvalSet
from loclin.run.rows import Row
from loclin.search.answering import answers, sampled
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.ensemble import best_of, pass_at, solved, voted
from loclin.search.noise import Noise
from loclin.search.scoring import best_first
from loclin.seeds import derived
from loclin.stats import mcnemar
from loclin.studies.search.names import MODEL, ORACLE, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.point import Gains, PointContext, gains
from loclin.tasks.example import Example


def chosen_size(swept: Mapping[float, Gains], n: int) -> float:
    """The σ whose best of n gains most by the select examples: in score, ties in loss."""

    def worth(size: float) -> tuple[float, float]:
        found = swept[size]
        scores = np.where(np.isfinite(found.loss), found.score, np.nan)
        return float(best_of(scores, [n])[0]), found.best_of(n)

    return max(swept, key=worth)


def coded(
    ballots: Sequence[Sequence[str]], wanted: Sequence[str]
) -> Int[np.ndarray, "members examples"]:
    """Answers as numbers that votes can be counted from: 0 the right one, −1 none, and every other
    one of an example a number of its own.

    >>> coded([["a", "b"], ["", "c"], ["c", "b"]], ["a", "c"]).tolist()
    [[0, 1], [-1, 0], [1, 1]]
    """
    numbers = [{right: 0, "": -1} for right in wanted]
    codes = [
        [known.setdefault(a, len(known) - 1) for a, known in zip(answers, numbers, strict=True)]
        for answers in ballots
    ]
    return np.array(codes, dtype=np.int32)


def table_rows(
    here: PointContext, swept: Mapping[float, Gains], test: Sequence[Example]
) -> Iterator[Row]:
    """Every condition's score on the test examples, with McNemar's p against the model itself.

    σ and candidates are chosen by the select examples alone.

    Args:
        here: the point, the space standing there.
        swept: the candidates of every σ.
        test: examples that select nothing.
    """
    settings, problem = here.ctx.settings, here.ctx.problem
    size, most = chosen_size(swept, settings.n), max(settings.votes)
    yield here.row("table_size", size)
    found, wanted = swept[size], [e.answer for e in test]
    order = [o.candidate for o in best_first(found.outcomes)]
    tested = found.candidates[: settings.tested]
    with Perturbed(here.ctx.space, Noise()) as perturbed:
        here.progress("answering the test examples", 0.0)
        own = answers(problem, test)
        base = solved(own, wanted)
        seed = derived(here.seed, "samples")
        drawn = sampled(problem, test, most, temperature=settings.temperature, seed=seed)

        def asked(candidate: Candidate) -> list[str]:
            with perturbed.at(candidate):
                return answers(problem, test)

        best, unselected = ([asked(c) for c in some[:most]] for some in (order, found.candidates))
        eval_set = EvalSet.of(problem, test, at_once=here.eval_set.at_once)
        every = gains(perturbed, eval_set, tested)
        winner = gains(perturbed, eval_set, order[:1])
    conditions = [(MODEL, 1, base)]
    members = {VOTE: best, RANDOM_VOTE: unselected, SAMPLED_VOTE: drawn}
    for k in settings.votes:
        conditions += [(name, k, voted(ballots[:k], wanted)) for name, ballots in members.items()]
    for name, ballots in (members | {MODEL: [own]}).items():
        here.keep(f"answers/{name}", coded(ballots, wanted))
    null = float(base.mean())
    for name, k, right in conditions:
        p, score = mcnemar(right, base), float(right.mean())
        yield here.row("table_score", score, null=null, p=p, arm=name, votes=k)
    ks = [k for k in settings.best_of if k < len(tested)] + [len(tested)]
    outcomes = np.stack([o.right for o in every.outcomes])
    here.keep(f"answers/{ORACLE}", outcomes)
    for k, chance in zip(ks, pass_at(outcomes, ks), strict=True):
        yield here.row("table_score", float(chance.mean()), null=null, arm=ORACLE, votes=k)
    selected = found.candidates.index(order[0])
    for of in ("loss", "score"):
        for split, some, i in (("select", found, selected), ("test", winner, 0)):
            yield here.row("winner_gain", float(getattr(some, of)[i]), split=split, of=of)

"""The end of a search: the best candidates on select are asked the validate examples, which choose
one and an ensemble; the choice is locked, and test decides (measures §11).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from loclin.errors import LoclinError
from loclin.models.evaluation import EvalSet
from loclin.search.answering import answers, sampled
from loclin.search.candidate import Candidate
from loclin.search.ensemble import Condition, solved, voted
from loclin.search.ledger import line, packed, unpacked
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome, best_first
from loclin.search.splits import examples_hash
from loclin.seeds import derived
from loclin.studies.search.names import BEST, MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.prepared import Kept, Splits
from loclin.tasks.example import Example

Pools = Mapping[float | None, Sequence[Candidate]]


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


def pools(outcomes: Sequence[Outcome], most: int) -> Pools:
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
    pool_of: Pools,
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


def locked_choice(
    keep: Kept,
    scorer: Scorer,
    splits: Splits,
    outcomes: Sequence[Outcome],
    ks: Sequence[int],
    *,
    seed: int,
) -> tuple[Choice, str]:
    """What validate chooses, and its hash, written to a file before test is asked; what was written
    down stays.

    Raises:
        LoclinError: a file that was changed, or that belongs to other test examples or another
            ledger.
    """
    ledger = "".join(map(line, outcomes)).encode()
    about = {
        "test": examples_hash(splits["test"]),
        "ledger": hashlib.blake2b(ledger, digest_size=16).hexdigest(),
    }

    def made() -> dict[str, Any]:
        pool_of, examples = pools(outcomes, max(ks)), splits["validate"]
        every = {c.index: c for pool in pool_of.values() for c in pool}
        validated = answer_batches(scorer, examples, every.values())
        choice = choose(pool_of, validated, examples, ks, outcomes=outcomes, seed=seed)
        content = {"choice": asdict(choice), **about}
        return {**content, "hash": _hash(content)}

    held, path = keep(made)
    lock = held.pop("hash", None)
    if lock != _hash(held) or any(held.get(k) != v for k, v in about.items()):
        raise LoclinError(
            f"expected the choice that was locked before test was asked, found {path} changed "
            "since: restore it, or search into another --out"
        )
    choice = held["choice"]
    several = {k: tuple(Candidate(**c) for c in choice[k]) for k in ("members", "random_controls")}
    return Choice(**{**choice, **several, "best": Candidate(**choice["best"])}), lock


def trial_of(
    keep: Kept,
    scorer: Scorer,
    splits: Splits,
    choice: Choice,
    lock: str,
    *,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> tuple[list[Condition], list[tuple[str, float, float]]]:
    """Ask test about the locked choice, once: what was answered is kept in a file, and read from
    there ever after.

    Args:
        keep: the file.
        scorer: the model.
        splits: its validate and test examples.
        choice, lock: what validate chose, and its hash.
        selected: score of the best candidate and of the model itself on select.
        temperature, seed: of the sampled control.

    Returns:
        The ways to answer, the model itself first; and how the winner fared: name of each split,
        its score there, the model's own.

    Raises:
        LoclinError: answers that are there already, to another choice.
    """

    def made() -> dict[str, Any]:
        return {"lock": lock} | _tested(scorer, splits, choice, selected, temperature, seed)

    held, path = keep(made)
    if held.get("lock") != lock:
        raise LoclinError(
            f"expected {path} to hold the answers of the locked choice, found those of another: "
            "test is asked once; search into another --out"
        )
    count = len(splits["test"])
    conditions = [
        Condition(**{**c, "right": unpacked(c["right"], count)}) for c in held["conditions"]
    ]
    return conditions, [(split, score, own) for split, score, own in held["winner"]]


def _tested(
    scorer: Scorer,
    splits: Splits,
    choice: Choice,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    test, k, controls = splits["test"], len(choice.members), choice.random_controls
    wanted = [e.answer for e in test]
    every = {c.index: c for c in (choice.best, *choice.members, *controls)}
    batches = answer_batches(scorer, test, [None, *every.values()])
    own, best = batches[None], batches[choice.best.index]
    unmoved = answer_batches(scorer, splits["validate"], [None])[None]
    draws = sampled(scorer.problem, test, k, temperature=temperature, seed=seed)

    def vote_of(some: Sequence[Candidate]) -> np.ndarray:
        return voted([batches[c.index].answers for c in some], wanted)

    where = "every σ" if choice.sigma is None else f"σ = {choice.sigma:g}"
    of_best = f"candidate {choice.best.index}, σ = {choice.best.sigma:g}"
    of_members = f"the {k} best of {where}, chosen on validate"
    conditions = [
        (MODEL, own.right, 1, "greedy, or its best option"),
        (BEST, best.right, 1, of_best),
        (VOTE, vote_of(choice.members), k, of_members),
        (RANDOM_VOTE, vote_of(controls), len(controls), f"as many of {where}, at random"),
        (SAMPLED_VOTE, voted(draws, wanted), k, f"at temperature {temperature:g}"),
    ]
    return {
        "conditions": [
            {"name": n, "right": packed(r), "forward_passes": p, "note": note}
            for n, r, p, note in conditions
        ],
        "winner": [
            ("select", *selected),
            ("validate", choice.single_score, unmoved.score),
            ("test", best.score, own.score),
        ],
    }


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

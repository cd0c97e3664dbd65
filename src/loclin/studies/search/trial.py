"""The end of a search: validate chooses, the choice is locked, test decides (measures §11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loclin.errors import LoclinError
from loclin.run.record import Record
from loclin.search.answering import sampled
from loclin.search.candidate import Candidate
from loclin.search.ensemble import Condition, voted
from loclin.search.ledger import line
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome
from loclin.search.splits import examples_hash
from loclin.studies.search.chosen import Choice, answer_batches, choose, pools
from loclin.studies.search.names import BEST, MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.prepared import Splits, kept


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """What test said, and how the winner fared on the way there.

    Attributes:
        base: the model itself.
        conditions: the ways to answer that are compared with it.
        winner: name of each split, score of the best candidate there, the model's own.
    """

    base: Condition
    conditions: tuple[Condition, ...]
    winner: tuple[tuple[str, float, float], ...]


def locked_choice(
    record: Record,
    name: str,
    scorer: Scorer,
    splits: Splits,
    outcomes: Sequence[Outcome],
    ks: Sequence[int],
    *,
    seed: int,
) -> tuple[Choice, str]:
    """What validate chooses, and its hash, written to the file of this name before test is asked;
    what was written down stays.

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

    held = kept(record, name, made)
    lock = held.pop("hash", None)
    if lock != _hash(held) or any(held.get(k) != v for k, v in about.items()):
        raise LoclinError(
            f"expected the choice that was locked before test was asked, found "
            f"{record.folder / name} changed since: restore it, or search into another --out"
        )
    choice = held["choice"]
    several = {k: tuple(Candidate(**c) for c in choice[k]) for k in ("members", "random_controls")}
    return Choice(**{**choice, **several, "best": Candidate(**choice["best"])}), lock


def trial_of(
    record: Record,
    name: str,
    scorer: Scorer,
    splits: Splits,
    choice: Choice,
    lock: str,
    *,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> Trial:
    """Ask test about the locked choice, once: what was answered is kept in the file of this name,
    and read from there ever after.

    Args:
        record, name: the file.
        scorer: the model.
        splits: its validate and test examples.
        choice, lock: what validate chose, and its hash.
        selected: score of the best candidate and of the model itself on select.
        temperature, seed: of the sampled control.

    Raises:
        LoclinError: answers that are there already, to another choice.
    """

    def made() -> dict[str, Any]:
        return {"lock": lock} | _tested(scorer, splits, choice, selected, temperature, seed)

    held = kept(record, name, made)
    if held.get("lock") != lock:
        raise LoclinError(
            f"expected {record.folder / name} to hold the answers of the locked choice, found "
            "those of another: test is asked once; search into another --out"
        )
    base, *others = (
        Condition(**{**c, "right": _unpacked(c["right"], len(splits["test"]))})
        for c in held["conditions"]
    )
    winner = tuple((split, score, own) for split, score, own in held["winner"])
    return Trial(base=base, conditions=tuple(others), winner=winner)


def _tested(
    scorer: Scorer,
    splits: Splits,
    choice: Choice,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    test = splits["test"]
    wanted = [e.answer for e in test]
    batches = answer_batches(scorer, test, [None, *choice.candidates])
    own, best = batches[None], batches[choice.best.index]
    unmoved = answer_batches(scorer, splits["validate"], [None])[None]
    draws = sampled(scorer.problem, test, choice.k, temperature=temperature, seed=seed)

    def vote_of(some: Sequence[Candidate]) -> np.ndarray:
        return voted([batches[c.index].answers for c in some], wanted)

    where = "every σ" if choice.sigma is None else f"σ = {choice.sigma:g}"
    of_best = f"candidate {choice.best.index}, σ = {choice.best.sigma:g}"
    of_members = f"the {choice.k} best of {where}, chosen on validate"
    controls = choice.random_controls
    conditions = [
        (MODEL, own.right, 1, "greedy, or its best option"),
        (BEST, best.right, 1, of_best),
        (VOTE, vote_of(choice.members), choice.k, of_members),
        (RANDOM_VOTE, vote_of(controls), len(controls), f"as many of {where}, at random"),
        (SAMPLED_VOTE, voted(draws, wanted), choice.k, f"at temperature {temperature:g}"),
    ]
    return {
        "conditions": [
            {"name": n, "right": np.packbits(r).tobytes().hex(), "forward_passes": p, "note": note}
            for n, r, p, note in conditions
        ],
        "winner": [
            ("select", *selected),
            ("validate", choice.single_score, unmoved.score),
            ("test", best.score, own.score),
        ],
    }


def _unpacked(text: str, count: int) -> np.ndarray:
    bits = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.asarray(np.unpackbits(bits, count=count) == 1)


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

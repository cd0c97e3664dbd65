"""The end of a search: validate chooses, the choice is locked, test is asked once (measures §11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loclin.errors import LoclinError
from loclin.models.exam import Exam
from loclin.record import Record
from loclin.search.answering import sampled
from loclin.search.candidate import Candidate
from loclin.search.chosen import Choice, asked, choose, pools
from loclin.search.ensemble import Arm, solved, vote
from loclin.search.ledger import line
from loclin.search.scoring import Outcome
from loclin.search.setup import Worker
from loclin.search.splits import Splits, examples_hash

MODEL = "the model itself"


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """What test said, and how the winner fared on the way there.

    Attributes:
        base: the model itself.
        arms: the ways to answer that are compared with it.
        winner: name of each split, score of the best candidate there, the model's own.
    """

    base: Arm
    arms: tuple[Arm, ...]
    winner: tuple[tuple[str, float, float], ...]


def locked_choice(
    record: Record,
    name: str,
    worker: Worker,
    splits: Splits,
    outcomes: Sequence[Outcome],
    ks: Sequence[int],
    *,
    seed: int,
) -> tuple[Choice, str]:
    """What validate chooses, written down with its hash before test is asked; what was written down
    stays.

    Args:
        record: the run folder.
        name: of the file in it.
        worker: the model.
        splits: its validate and test examples.
        outcomes: of all candidates on select.
        ks: sizes of ensembles.
        seed: of the control's random candidates.

    Returns:
        The choice and its hash.

    Raises:
        LoclinError: a file that was changed, or that belongs to other test examples or another
            ledger.
    """
    test, path = examples_hash(splits.test), record.folder / name
    scored = hashlib.blake2b("".join(map(line, outcomes)).encode(), digest_size=16).hexdigest()
    if not path.exists():
        found = pools(outcomes, max(ks))
        exam = Exam.of(worker.problem, splits.validate)
        every = {c.index: c for pool in found.values() for c in pool}
        validated = {i: asked(worker.perturbed, exam, splits.validate, c) for i, c in every.items()}
        made = choose(found, validated, splits.validate, ks, every=outcomes, seed=seed)
        content: dict[str, Any] = {"choice": asdict(made), "test": test, "ledger": scored}
        record.write_text(
            name,
            json.dumps({**content, "hash": _hash(content)}, ensure_ascii=False, indent=1) + "\n",
        )
    held = _read(path)
    told = held.pop("hash", None)
    if told != _hash(held) or held.get("test") != test or held.get("ledger") != scored:
        raise LoclinError(
            f"expected the choice that was locked before test was asked, found {path} changed "
            "since: restore it, or search into "
            "another --out"
        )
    return _choice(held["choice"]), told


def trial_of(
    record: Record,
    name: str,
    worker: Worker,
    splits: Splits,
    choice: Choice,
    lock: str,
    *,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> Trial:
    """Ask test about the locked choice, once: what was answered is kept, and read from there ever
    after.

    Args:
        record: the run folder.
        name: of the file in it.
        worker: the model.
        splits: its validate and test examples.
        choice: what validate chose.
        lock: hash of the choice.
        selected: score of the best candidate and of the model itself on select.
        temperature: of the sampled control.
        seed: of its draws.

    Raises:
        LoclinError: answers that are there already, to another choice.
    """
    path = record.folder / name
    if not path.exists():
        content = _asked(worker, splits, choice, selected, temperature, seed)
        record.write_text(
            name, json.dumps({"lock": lock, **content}, ensure_ascii=False, indent=1) + "\n"
        )
    held = _read(path)
    if held.get("lock") != lock:
        raise LoclinError(
            f"expected {path} to hold the answers of the locked choice, found those of another: "
            "test is asked once; search into "
            "another --out"
        )
    base, *arms = (
        Arm(
            **{
                **arm,
                "right": np.unpackbits(
                    np.frombuffer(bytes.fromhex(arm["right"]), np.uint8), count=len(splits.test)
                )
                == 1,
            }
        )
        for arm in held["arms"]
    )
    return Trial(base=base, arms=tuple(arms), winner=tuple((s, a, b) for s, a, b in held["winner"]))


def _asked(
    worker: Worker,
    splits: Splits,
    choice: Choice,
    selected: tuple[float, float],
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    exam, wanted = Exam.of(worker.problem, splits.test), [e.answer for e in splits.test]
    own = asked(worker.perturbed, exam, splits.test, None)
    given = {c.index: asked(worker.perturbed, exam, splits.test, c) for c in choice.candidates}
    draws = sampled(worker.problem, splits.test, choice.k, temperature=temperature, seed=seed)

    def voted(some: Sequence[Candidate]) -> np.ndarray:
        return solved(vote([given[c.index].answers for c in some]), wanted)

    where = "every σ" if choice.sigma is None else f"σ = {choice.sigma:g}"
    arms = [
        (MODEL, own.right, 1, "greedy, or its best option"),
        ("best candidate", given[choice.best.index].right, 1, f"candidate {choice.best.index}, σ = "
                                                              f"{choice.best.sigma:g}"),
        ("vote of the best", voted(choice.members), choice.k, f"the {choice.k} best of {where}, "
                                                              "chosen on validate"),
        ("vote of random candidates", voted(choice.strangers), len(choice.strangers), "as many of "
                                                                                      f"{where}, "
                                                                                      "at random"),
        ("vote of the model sampled", solved(vote(draws), wanted), choice.k, "at temperature "
                                                                             f"{temperature:g}"),
    ]  # fmt: skip
    validate = Exam.of(worker.problem, splits.validate)
    unmoved = asked(worker.perturbed, validate, splits.validate, None)
    return {
        "arms": [
            {"name": n, "right": np.packbits(r).tobytes().hex(), "forward_passes": p, "note": note}
            for n, r, p, note in arms
        ],
        "winner": [
            ("select", *selected),
            ("validate", choice.single_score, unmoved.score),
            ("test", given[choice.best.index].score, own.score),
        ],
    }


def _choice(held: dict[str, Any]) -> Choice:
    members, strangers = (
        tuple(Candidate(**c) for c in held[name]) for name in ("members", "strangers")
    )
    return Choice(
        **{**held, "best": Candidate(**held["best"]), "members": members, "strangers": strangers}
    )


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return dict(held)
    except (OSError, ValueError) as error:
        raise LoclinError(
            f"expected JSON in {path}, found {error}: restore it, or search into another --out"
        ) from error

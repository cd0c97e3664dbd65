"""Closed-world yes/no statements: a small language model learns which of them are true.

Every subject has one true value out of ten for each of four relations. A statement claims a value
in one of 24 phrasings; the question is whether it is true: ``it is known that the colour of anna is
red ?`` and the answer `` yes`` or `` no``. A model that has learned a fact in some phrasings
answers for it in the others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example

YES, NO = " yes", " no"


def _words(text: str) -> list[str]:
    return text.split()


SUBJECTS = tuple(
    _words(
        "anna boris clara david emma felix greta hugo irene jonas karin lukas maria nils olga "
        "peter quinn rosa simon tilda ulla victor wanda xenia yosef zelda amos bella cyrus doris "
        "elias flora"
    )
)
RELATIONS: dict[str, list[str]] = {
    "colour": _words("red green blue black white yellow pink brown grey purple"),
    "town": _words("paris rome berlin madrid vienna oslo athens lisbon dublin prague"),
    "animal": _words("dog cat horse parrot rabbit turtle goat falcon pig hamster"),
    "food": _words("bread rice soup cheese fish apples beans noodles honey olives"),
}

OPENINGS = (
    "",
    "it is known that ",
    "people say that ",
    "in this world ",
    "we all agree that ",
    "the record says ",
)
CORES = (
    "the {relation} of {subject} is {value}",
    "{value} is the {relation} of {subject}",
    "{subject} has {value} as {relation}",
    "as for {relation} {subject} chose {value}",
)


def facts(*, seed: int) -> dict[tuple[str, str], str]:
    """The true value of every (subject, relation) of a world, a function of the seed."""
    rng = random.Random(seed)
    return {(s, r): rng.choice(values) for s in SUBJECTS for r, values in RELATIONS.items()}


def statements(
    *, world: int = 0, seed: int, false_per_true: int = 1, subjects: int = len(SUBJECTS)
) -> dict[str, tuple[Example, ...]]:
    """Statements about every fact in every phrasing, by relation: the true one and some false ones.

    The group is "subject/relation/phrasing".

    Args:
        world: seed of the facts.
        seed: of the false values.
        false_per_true: false statements in each group, 1 (balanced) to 9 (every wrong value).
        subjects: how many of them are named; what is drawn about one depends on no other.

    Raises:
        LoclinError: more false statements than wrong values.

    >>> colours = statements(seed=0)["colour"]
    >>> len(colours), sum(e.answer == YES for e in colours)
    (1536, 768)
    """
    most = min(map(len, RELATIONS.values())) - 1
    if not 1 <= false_per_true <= most:
        raise LoclinError(
            f"expected 1 to {most} false statements for a true one, found {false_per_true}: "
            "change it"
        )
    true, rng = facts(seed=world), random.Random(seed)
    made: dict[str, list[Example]] = {relation: [] for relation in RELATIONS}
    for (subject, relation), truth in true.items():
        for number, phrasing in enumerate(opening + core for opening in OPENINGS for core in CORES):
            wrong = rng.sample([v for v in RELATIONS[relation] if v != truth], false_per_true)
            for value in (truth, *wrong) if subject in SUBJECTS[:subjects] else ():
                claim = phrasing.format(subject=subject, relation=relation, value=value)
                statement = Example(
                    prompt=f"{claim} ?",
                    answer=YES if value == truth else NO,
                    options=(YES, NO),
                    group=f"{subject}/{relation}/{number}",
                )
                made[relation].append(statement)
    return {relation: tuple(every) for relation, every in made.items()}


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The statement world as task data: one task a relation. All runs share one world."""

    world: int = 0
    subjects: int = len(SUBJECTS)
    relations: tuple[str, ...] = tuple(RELATIONS)

    def words(self) -> list[str]:
        """Of a word-level tokenizer: padding, the question mark, and every word of a statement."""
        fixed = " ".join((*OPENINGS, *CORES)).format(relation="", subject="", value="")
        values = [value for every in RELATIONS.values() for value in every]
        words = ["<pad>", "?", "yes", "no", *fixed.split(), *RELATIONS, *values, *SUBJECTS]
        return list(dict.fromkeys(words))

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its answer, one a word: enough for every phrasing."""
        return 16

    def examples(self, *, seed: int) -> TaskData:
        """In every phrasing of every fact the true statement and a false one, drawn by `seed`."""
        return self._data(statements(world=self.world, seed=seed, subjects=self.subjects))

    def train_examples(self, *, seed: int) -> TaskData:
        """What a built-in model learns from: every false statement, true ones as often as those."""
        every = statements(world=self.world, seed=seed, false_per_true=9, subjects=self.subjects)
        repeated = {
            relation: tuple(e for e in claims for _ in range(9 if e.answer == YES else 1))
            for relation, claims in every.items()
        }
        return self._data(repeated)

    def _data(self, claims: Mapping[str, tuple[Example, ...]]) -> TaskData:
        posed = {relation: claims[relation] for relation in self.relations}
        return TaskData(source="statements", examples=posed, read=sum(map(len, posed.values())))

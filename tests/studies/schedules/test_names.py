"""Every quantity has one name."""

from collections import Counter

from loclin.studies.schedules import names


def test_names_are_told_apart() -> None:
    found = Counter(v for k, v in vars(names).items() if k.isupper() and isinstance(v, str))
    assert set(found.values()) == {1}
    assert len({names.role(i) for i in range(80)}) == 80

"""What is refused before anything is loaded, and what decides the record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.search.settings import SearchSettings

PLAIN = SearchSettings(model="sequences-small", sigma=(0.01, 0.02), n=12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n": 0}, "expected n of at least 1, found 0: change --n"),
        (
            {"candidate_group": 0},
            "expected candidate-group of at least 1, found 0: change --candidate-group",
        ),
        ({"probes": 1}, "expected probes of at least 2, found 1: change --probes"),
        ({"sigma": (0.0,)}, "expected σ above 0, found 0.0: change --sigma"),
        ({"sigma": (float("nan"),)}, "expected σ above 0, found nan"),
        ({"sigma": (0.1, 0.1)}, r"expected different σ, at least one, found \[0.1, 0.1\]"),
        ({"sigma": ()}, r"expected different σ, at least one, found \[\]"),
        ({"k": (20,)}, r"expected ensembles of 1 to N = 12 candidates, found k = \[20\]: change"),
        ({"k": ()}, r"found k = \[\]"),
        ({"adapter": Path("a")}, "expected --space lora with an adapter, found --space full"),
        ({"antithetic": True, "n": 13}, "expected an even number of candidates for pairs"),
        ({"data": ("nothing.jsonl",)}, "a file of task data, found nothing at nothing.jsonl"),
        ({"workers": -1}, r"expected workers from 0 \(every core\), found -1"),
        ({"target_gain": 0.0}, "expected a gain above 0, found 0.0: change --target-gain"),
        ({"temperature": 0.0}, "expected a temperature above 0, found 0.0"),
        ({"model": "mine"}, "expected --data with the model 'mine', found none"),
        ({"ray": "auto", "device_map": "auto"}, "expected one GPU for each Ray worker"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(LoclinError, match=text):
        replace(PLAIN, **change).checked()


def test_ensembles_are_no_larger_than_the_search_by_default() -> None:
    assert [replace(PLAIN, n=n).checked().k for n in (4, 9, 12)] == [(1,), (1, 5), (1, 5, 10)]


def test_an_entry_names_model_data_and_space() -> None:
    assert PLAIN.checked().entry == "search-sequences-small"
    other = replace(PLAIN, data=("some/mine.jsonl",), space="prefix:2")
    assert other.entry == "search-sequences-small-mine-prefix-2"


def test_where_and_how_fast_decides_no_record() -> None:
    faster = replace(PLAIN, workers=7, ray="auto", candidate_group=3, out=Path("x"))
    assert faster.fingerprint() == PLAIN.fingerprint()
    assert replace(PLAIN, seed=1).fingerprint() != PLAIN.fingerprint()

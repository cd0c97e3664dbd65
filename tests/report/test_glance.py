import re
from dataclasses import replace

import pytest

from loclin.report.glance import glance, sentences, towards
from tests.run.constant import CLAIM

BASE = replace(CLAIM, id="a", verdict="supported", value=0.76, low=0.68, high=0.83, bar=0.5)
ABOVE = replace(
    BASE, supports="above", paper="0.77 (Fig. 2)", halved="supported", doubled="refuted"
)


@pytest.mark.parametrize("narrow", [False, True])
def test_every_number_stands_as_it_is_and_every_setting_once(narrow: bool) -> None:
    claims = [
        replace(ABOVE, setting="one", value=0.76543, low=0.00123, high=0.999),
        replace(BASE, id="b", setting="two", verdict="refuted", supports="below"),
        replace(BASE, id="a", setting="three", verdict="measurement", bar=None),
        replace(BASE, id="b", setting="four", value=None, low=None, high=None, verdict="not run"),
    ]
    text = re.findall(r"<text[^>]*>([^<]*)</text>", glance(claims, narrow=narrow).svg)
    assert "0.765 [0.00123, 0.999]" in text
    assert [t for t in text if t in ("a", "b", "one", "two", "three", "four")] == [
        *("a", "one", "three"),
        *("b", "two", "four"),
    ]


def test_the_sentences_count_and_name_what_hangs_on_the_bar() -> None:
    claims = [
        replace(ABOVE, statement="It holds."),
        replace(BASE, id="b", verdict="refuted", halved="refuted", doubled="refuted"),
        replace(BASE, id="c", verdict="inconclusive", p=0.01, p_holm=0.1),
        replace(BASE, id="d", verdict="measurement"),
    ]
    counted, supported, refuted, moved, near = sentences(claims)
    assert counted == (
        "Of 3 claims under a rule 1 are supported, 1 refuted and 1 open; in brackets, in how many "
        "of a claim's settings."
    )
    assert supported == "Supported: “It holds” (1 of 1)."
    assert refuted == "Refuted: “s” (1 of 2)."
    assert moved == "Verdicts that hang on where the bar stands: a (1 of 1)."
    assert near == "Open, but below 0.05 before Holm's correction: c (1 of 1)."


@pytest.mark.parametrize(
    ("supports", "bar", "value", "end", "away"),
    [
        ("above", 0.5, 0.76, 0.4, -0.1),
        ("below", 0.5, 0.1, 0.4, 0.1),
        ("within", 0.1, 0.02, 0.15, -0.05),
        ("within", 0.1, -0.02, -0.15, -0.05),
    ],
)
def test_what_supports_a_claim_lies_right_of_its_bar(
    supports: str, bar: float, value: float, end: float, away: float
) -> None:
    claim = replace(BASE, supports=supports, bar=bar, value=value)
    assert towards(claim, value) > 0
    assert towards(claim, end) == pytest.approx(away)

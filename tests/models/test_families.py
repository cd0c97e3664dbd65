"""Twenty of the model families of docs/families.md, drawn with a fixed seed."""

import random
from pathlib import Path

import pytest

from tests.models.families import TYPES, checked

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
RIGHT, REFUSED, UNBUILT = (part.partition("\n")[2] for part in PAGE.split("\n## ")[1:])
BUILT = [k for k in TYPES if f"- {k}: " not in UNBUILT]


def test_the_page_names_every_type() -> None:
    right = RIGHT.replace(",", " ").split()
    refused = {line.split(" | ")[0].strip("| ") for line in REFUSED.strip().splitlines()[2:]}
    assert sorted({*right} | refused) == BUILT
    assert not {*right} & refused
    assert "WRONG" not in PAGE
    assert "TRACEBACK" not in PAGE


#: Positions that take no gradient; blocks that run without one, or return lists; positions that
#: `generate` would count from elsewhere; attention to a choice of tokens, many of equal worth.
KNOWN = ("marian", "hrm_text", "openai-gpt", "roberta", "glm_moe_dsa")


@pytest.mark.parametrize("kind", dict.fromkeys((*KNOWN, *random.Random(0).sample(BUILT, 20))))
def test_a_family_is_right_or_refused_in_one_line(kind: str) -> None:
    for name, text in checked(kind).items():
        line = next((x for x in REFUSED.splitlines() if x.startswith(f"| {kind} | {name} |")), None)
        assert (text == "right") == (line is None), text

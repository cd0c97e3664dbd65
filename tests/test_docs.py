"""The site and the README: every public name stands in the reference, every page in the navigation;
the README's example runs, and what it links to is there.
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.md"))


@pytest.mark.parametrize(
    "module", ["loclin", "loclin.steering", "loclin.schedules", "loclin.integrations"]
)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    documented = set(re.findall(r"^::: (\S+)$", REFERENCE, flags=re.M))
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert names - documented - {"loclin.steering.SteeringVector"} == set()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"(\S+\.md)$", navigation, flags=re.M))


README = DOCS.parent / "README.md"


def test_the_readme_runs() -> None:
    found = doctest.testfile(str(README), module_relative=False)
    assert (found.failed, found.attempted > 5) == (0, True)


def test_what_the_readme_links_to_is_there_and_it_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS.parent / link).exists(), link
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    assert len(prose.split()) <= 900

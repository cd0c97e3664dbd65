"""The site and the README: every public name stands in the reference, every page in the navigation;
the README's example runs, and what it links to is there.
"""

import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
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


def documented() -> Iterator[tuple[str, object]]:
    """What the reference lists; of a module its own public functions and classes."""
    for name in re.findall(r"^::: (\S+)$", REFERENCE, flags=re.M):
        path = name.split(".")
        while not (DOCS.parent / "src" / "/".join(path)).with_suffix(".py").exists():
            path.pop()
            if (DOCS.parent / "src" / "/".join(path) / "__init__.py").exists():
                break
        module = ".".join(path)
        rest = name.split(".")[len(path) :]
        value = functools.reduce(getattr, rest, importlib.import_module(module))
        if not inspect.ismodule(value):
            yield name, value
            continue
        for part, inside in vars(value).items():
            if not part.startswith("_") and getattr(inside, "__module__", "") == module:
                yield f"{name}.{part}", inside


def test_every_public_name_has_an_example_that_the_tests_run() -> None:
    found = dict(documented())
    without = [name for name, value in found.items() if ">>> " not in (inspect.getdoc(value) or "")]
    assert (len(found) > 60, without) == (True, [])


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"(\S+\.md)$", navigation, flags=re.M))


README = DOCS.parent / "README.md"


def test_the_readme_runs() -> None:
    found = doctest.testfile(str(README), module_relative=False)
    assert (found.failed, found.attempted > 5) == (0, True)


#: Links of Markdown, and of what it holds of HTML.
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"")
EXTERNAL = re.compile(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[\w.~%/+@:()-]*)?(#[\w.-]+)?")
TEXTS = [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md"), *(DOCS.parent / ".github").rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: headings as mkdocs and GitHub do, names of the reference."""
    text = page.read_text(encoding="utf-8")
    headings = (re.sub(r"[`*]", "", h).lower() for h in re.findall(r"^#+ (.+)$", text, flags=re.M))
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip()) for h in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, flags=re.M))


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(DOCS.parent)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in ("".join(found) for found in LINK.findall(text)):
        name, _, anchor = link.partition("#")
        if ":" in name:
            assert EXTERNAL.fullmatch(link), link
            continue
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    assert len(prose.split()) <= 900

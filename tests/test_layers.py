"""The house keeps its order (CONTRIBUTING.md): imports go one way, tests mirror the source."""

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "loclin"

#: From the top of the house to the bottom. A file imports from its own room and those above it.
ROOMS = (
    ("errors", "seeds", "options", "progress", "lazy", "renamed"),
    ("tasks",),
    ("geometry",),
    ("theory", "stats", "correlation", "law"),
    ("parameters",),
    ("curvature", "line", "window", "pairs", "activations"),
    ("updates",),
    ("training",),
    ("models",),
    ("run",),
    ("search",),
    ("steering",),
    ("schedules",),
    ("report",),
    ("studies",),
    ("integrations",),
    ("cli", "__main__"),
)
#: The library half: it prints nothing, and knows no studies and no pages.
LIBRARY = [room for rooms in ROOMS[:13] for room in rooms if room != "run"]
#: Rooms that know nothing of rooms above them.
STRANGERS = {
    "report": {"models", "training", "parameters", "geometry", "tasks", "search", "steering"},
    "geometry": {"tasks"},
    "run": {"training", "parameters", "geometry", "tasks", "models"},
}
#: Lines of the whole source, blanks and docs counted. The aim is 24,000.
MOST_LINES = 38_060
FILES = sorted(SOURCE.rglob("*.py"))
#: Test files that are about more than one source file.
ACROSS = {
    "test_layers.py",
    "test_reproduce.py",
    "test_tutorials.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_families.py",
    "test_reading.py",
}


def module_of(path: Path) -> str:
    return (
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip(".")
    )


def level(module: str) -> int:
    for i, rooms in enumerate(ROOMS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return i
    raise AssertionError(f"{module} is in no room of tests/test_layers.py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of loclin that a file imports, inside functions too; not those for types alone."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ImportFrom):
            continue
        origin = (node.module or "").removeprefix("loclin").lstrip(".")
        if (node.module or "").split(".")[0] == "loclin":
            within = {f"{origin}.{alias.name}".lstrip(".") for alias in node.names}
            submodules = within & MODULES.keys()
            names |= submodules or {origin}
    return names - {""}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    for imported in imports(path) if module else ():
        assert level(imported) <= level(module), f"{module} imports {imported}, a room below it"
        shunned = STRANGERS.get(module.split(".")[0], set())
        assert imported.split(".")[0] not in shunned, f"{module} must not know {imported}"


def test_there_is_no_circle() -> None:
    """Of files, with what is imported inside functions counted."""
    left = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    left.pop("")  # the public names
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"files that import each other: {sorted(left)}"


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef))


def length(node: ast.FunctionDef) -> int:
    doc = (ast.get_docstring(node) or "").count("\n")
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def test_files_and_functions_stay_small() -> None:
    lines = 0
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lines += text.count("\n")
        assert text.count("\n") <= 400, f"{path} holds more than one idea"
        for node in functions(path):
            assert length(node) <= 60, f"{path.name}: {node.name} does not fit a screen"
    assert lines <= MOST_LINES
    sizes = [(node.end_lineno or 0) - node.lineno + 1 for path in FILES for node in functions(path)]
    assert statistics.median(sizes) <= 10


def test_nothing_unsafe_is_called() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for word in (
            "torch.load(",
            "trust_remote_code=True",
            "weights_only=False",
            "torch.manual_seed(",
        ):
            assert word not in text, f"{path} uses {word}"
        for node in ast.walk(tree_of(path)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            unpickling = {"pickle", "dill", "joblib", "cloudpickle", "shelve"} & set(names)
            assert not unpickling, f"{path} unpickles"


def test_the_library_prints_nothing() -> None:
    for path in FILES:
        if module_of(path).split(".")[0] in LIBRARY:
            calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)]
            printing = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
            assert not printing, f"{path} prints"


def test_every_room_has_its_tests() -> None:
    rooms = {path.parent.relative_to(SOURCE) for path in FILES if path.name != "__init__.py"}
    mirrored = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert mirrored == rooms


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("test_*.py")), ids=lambda p: str(p.relative_to(TESTS))
)
def test_every_test_file_is_about_a_source_file(path: Path) -> None:
    if path.name not in ACROSS:
        about = SOURCE / path.relative_to(TESTS).with_name(path.name.removeprefix("test_"))
        if about.stem == about.parent.name:  # of a room's own file
            about = about.with_name("__init__.py")
        assert about.exists(), f"{path} tests no file of the source"

"""The house keeps its order: a file imports only from rooms above its own (docs/design in the
README's tree).
"""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "loclin"

#: From the top of the house to the bottom. A room may import from itself and from the rooms above
#: it.
ROOMS = (
    ("errors", "seeds", "dropout"),
    ("tasks.example", "tasks.batch"),
    ("tasks.data", "tasks.records", "tasks.schemas", "tasks.files"),
    ("tasks.sequences", "tasks.statements", "tasks.wrong"),
    ("tasks.choices", "tasks.fit", "tasks.samples"),
    ("geometry",),
    ("parameters",),
    ("curvature", "window", "activations"),
    ("updates",),
    ("training",),
    ("models",),
    ("theory", "stats", "law"),
    ("record",),
    ("report",),
    ("jobs",),
    ("search",),
    ("steering",),
    ("schedules",),
    (
        "integrations.points",
        "integrations.folder",
        "integrations.checkpoints",
        "integrations.direction",
    ),
    ("studies",),
    ("integrations",),
    ("cli", "__main__"),
)
#: Rooms that must know nothing of each other although one is above the other.
STRANGERS = {
    "report": {"models", "training", "parameters", "studies", "geometry", "tasks"},
    "geometry": {"models", "tasks", "studies"},
    "record": {"models", "training", "parameters", "geometry", "tasks"},
}


def level(module: str) -> int:
    for i, rooms in enumerate(ROOMS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return i
    raise AssertionError(f"{module} is in no room of tests/test_layers.py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loclin."):
            names.add(str(node.module).removeprefix("loclin."))
        elif isinstance(node, ast.ImportFrom) and node.module == "loclin":
            names |= {alias.name for alias in node.names}
    return names


FILES = [
    p for p in sorted(SOURCE.rglob("*.py")) if p.parent.name != "tasks" or p.name != "__init__.py"
]


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p != SOURCE / "__init__.py"],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_imports_go_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for imported in imports(path):
        assert level(imported) <= level(module), (
            f"{module} imports {imported}, a room below its own"
        )
        shunned = STRANGERS.get(module.split(".")[0], set())
        assert imported.split(".")[0] not in shunned, f"{module} must not know {imported}"


def test_files_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path} holds more than one idea"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = (ast.get_docstring(node) or "").count("\n")
                length = (node.end_lineno or node.lineno) - node.lineno - doc
                assert length <= 60, f"{path.name}: {node.name} does not fit a screen"


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
        for node in ast.walk(ast.parse(text)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib", "cloudpickle", "shelve"} & set(names), (
                f"{path} unpickles"
            )

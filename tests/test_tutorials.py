"""The pages in docs/tutorials and docs/notebooks run as they stand: Python blocks in one namespace,
shell blocks as commands. A notebook ends with a picture.
"""

import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from loclin.cli import main
from loclin.models import Problem

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted([*(DOCS / "tutorials").glob("*.md"), *(DOCS / "notebooks").glob("*.md")])


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every code block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for the old name
@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_tutorial_runs(
    trained: Problem,
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    found = blocks(page)
    assert found
    namespace: dict[str, object] = {}
    for language, text in found:
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        else:
            for line in text.strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "loclin"
                main(arguments)
                assert "report: " in capsys.readouterr().out
    plt.close("all")
    assert shown == ([1] if page.parent.name == "notebooks" else [])

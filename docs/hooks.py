"""What the site needs beside Markdown: mathematics as MathML, which browsers draw by themselves,
the changelog from the repository's root, and examples of docstrings drawn as code.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

#: Code stays as it is; $$...$$ is a formula of its own line, $...$ one in the text.
PARTS = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", flags=re.S)


def _drawn(part: re.Match[str]) -> str:
    code, block, inline = part.groups()
    if code is not None:
        return code
    if block is not None:
        return convert(block.strip(), display="block")
    # a paragraph that begins with <math> would be taken for a block of HTML
    return f"<span>{convert(inline)}</span>"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page's text before it is Markdown."""
    source = page.file.src_uri
    if source == "changelog.md":
        root = Path(page.file.abs_src_path).parents[1]
        return (root / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return PARTS.sub(_drawn, markdown) if source == "concepts.md" else markdown


class Doctests(griffe.Extension):
    """Every docstring's example under its own heading."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Indents the first example and what follows it below "Examples:"."""
        if obj.is_alias or obj.docstring is None:
            return
        text, mark, example = obj.docstring.value.partition("\n>>> ")
        if mark:
            lines = [f"    {line}" for line in f">>> {example}".splitlines()]
            obj.docstring.value = "\n".join([text, "", "Examples:", *lines])

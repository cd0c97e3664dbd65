"""A run folder in a notebook: claims and rows as tables, arrays, figures."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loclin.errors import LoclinError
from loclin.run.record import Record

if TYPE_CHECKING:
    import pandas as pd

#: What a notebook shows of every claim.
SHOWN = ("study", "id", "setting", "value", "low", "high", "n", "p_holm", "verdict")


def open_run(folder: Path | str) -> Run:
    """The run in a folder that a command made, as it is now; it may still be at work.

    Raises:
        LoclinError: no run there, or pandas is not installed.

    >>> import tempfile
    >>> from loclin.run.rows import Row
    >>> folder = tempfile.mkdtemp()  # a command makes one: `loclin radius ... --out FOLDER`
    >>> record = Record(Path(folder))
    >>> record.open_study("radius-m", {}, device="cpu", kind="radius")
    >>> row = Row(quantity="radius", value=0.5, context={"as": "λ"})
    >>> record.write_results("radius-m", [row], {})
    >>> run = open_run(folder)
    >>> run.entries, run.rows("radius-m")[["quantity", "value", "as"]].values.tolist()
    (('radius-m',), [['radius', 0.5, 'λ']])
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise LoclinError(
            f"expected a run folder with a run.json, found none at {folder}: give a folder made by "
            "loclin"
        )
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise LoclinError(
            "expected pandas for tables in a notebook, found none: pip install 'loclin[notebook]'"
        ) from error
    return Run(folder=folder)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What a command wrote; a notebook shows its claims and figures.

    Attributes:
        folder: of the record (docs/record.md).

    >>> Run(folder=Path("runs/standard")).folder.name
    'standard'
    """

    folder: Path

    @property
    def entries(self) -> tuple[str, ...]:
        """What was run: STUDY-MODEL[-SPACE]."""
        return tuple(Record(self.folder).run()["studies"])

    @property
    def claims(self) -> pd.DataFrame:
        """One row a claim, every column of claims.json."""
        import pandas as pd

        every = Record(self.folder).claims()
        return pd.DataFrame([{"study": entry, **asdict(claim)} for entry, claim in every])

    def rows(self, entry: str | None = None) -> pd.DataFrame:
        """Every number: columns of a row, then those of its context; of one entry (`LoclinError`
        where it has not finished), or of all that have.
        """
        import pandas as pd

        names = [entry] if entry else [e for e in self.entries if self._has(e)]
        return pd.concat([self._rows(name).assign(entry=name) for name in names])

    def arrays(self, entry: str) -> dict[str, np.ndarray]:
        """The arrays of an entry, by key; `LoclinError` where it has not finished."""
        self._check(entry)
        return Record(self.folder).arrays(entry)

    def figures(self, entry: str) -> tuple[Path, ...]:
        """The page's figures of an entry, as files."""
        return tuple(sorted((self.folder / "figures" / entry).glob("*.svg")))

    def _repr_html_(self) -> str:
        claims = self.claims
        shown: str = claims[[c for c in SHOWN if c in claims]].to_html(
            index=False, float_format="%.3g"
        )
        first = (path for entry in self.entries for path in self.figures(entry)[:1])
        images = (
            f'<img alt="{html.escape(path.stem)}" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}">'
            for path in first
        )
        return shown + "".join(images)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {', '.join(self.entries) or 'nothing finished'})"

    def _has(self, entry: str) -> bool:
        return (self.folder / entry / "results.json").exists()

    def _check(self, entry: str) -> None:
        if not self._has(entry):
            raise LoclinError(
                f"expected an entry that has finished, found {entry!r}: choose among "
                f"{', '.join(e for e in self.entries if self._has(e)) or 'none yet'}"
            )

    def _rows(self, entry: str) -> pd.DataFrame:
        import pandas as pd

        self._check(entry)
        rows = pd.read_json(self.folder / entry / "results.json")
        context = pd.json_normalize(rows.pop("context").to_list())
        both = {name: f"{name}_in_context" for name in context if name in rows}
        return rows.join(context.rename(columns=both))

"""Where built-in models, points trained from them and dequantised models are kept: written whole or
not at all, verified by checksum on every load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_LOG = logging.getLogger("loclin")


def cache_folder() -> Path:
    """Where built-in models are kept: $LOCLIN_CACHE, or ~/.cache/loclin."""
    return Path(os.environ.get("LOCLIN_CACHE") or Path.home() / ".cache" / "loclin")


def kept(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache, made first where it is not there or damaged.

    What is made is moved into place whole, so that an interrupted training leaves nothing that
    looks finished; a second process that wants the same thing waits for the first.

    Args:
        name: of the folder; it has to change with everything that its content depends on.
        write: fills a new folder.
    """
    folder = cache_folder() / name
    if folder.exists() and _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.exists() and _intact(folder, aloud=True):
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            write(made)
            (made / "checksums.json").write_text(json.dumps(_checksums(made)))
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    return folder


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.name != "checksums.json")
    sums = {}
    for path in files:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _intact(folder: Path, *, aloud: bool = False) -> bool:
    """Whether the folder holds what was written there."""
    try:
        if json.loads((folder / "checksums.json").read_text()) == _checksums(folder):
            return True
    except (OSError, ValueError):
        pass
    if aloud:
        _LOG.warning("what is kept in %s is damaged: making it again", folder)
    return False

"""Files of a steering vector: tensors with text beside them, whole or not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loclin.errors import LoclinError

FORMAT = "loclin steering vector"
VERSION = 1  # raised when a reader of older files would be wrong


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of this format.

    Raises:
        LoclinError: the place cannot be written.
    """
    with written(path) as scratch:
        save_file(dict(tensors), scratch, {"format": FORMAT, "version": str(VERSION), **metadata})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of what `write_tensors` wrote.

    Raises:
        LoclinError: no such file, a file of something else, of a newer format or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("safetensors of something else")
            if (version := metadata.get("version")) != str(VERSION):
                raise ValueError(f"format {version} where this loclin reads {VERSION}")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise LoclinError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """One line for whatever a library or this package found wrong with a file."""
    if isinstance(error, FileNotFoundError):
        return f"expected a steering vector, found nothing at {path}: check the path"
    missing = isinstance(error, KeyError)
    found = f"no {error.args[0]!r} in it" if missing else " ".join(str(error).split())[:200]
    return f"expected a steering vector in {path}, found {found}: make or copy the file again"


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A scratch file in the same folder, which takes the place of `path` if the body ends well.

    Raises:
        LoclinError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
            scratch, usual = Path(folder) / path.name, Path(folder) / ".usual"
            yield scratch
            usual.touch()  # the mode of any new file; safetensors lets nobody else read its own
            scratch.chmod(usual.stat().st_mode & 0o777)
            scratch.replace(path)
    except (OSError, SafetensorError) as error:
        raise LoclinError(
            f"expected to write {path}, found {error}: make room or choose another file"
        ) from error

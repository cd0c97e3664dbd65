"""The Hugging Face hub, which may be out of reach. Quick to import: a name that leads nowhere is
refused before the libraries that would look for it are there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session

from loclin.errors import LoclinError
from loclin.options import BUILT_IN, PACKAGED, meant

WAIT = 3.0  # seconds for the hub to answer at all


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Inside, what is no local path is looked for in the cache alone where the hub does not answer
    one small request: its libraries would try again for a minute.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (Path(name).exists() or _answers())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def missing_from_cache(name: str, *, dataset: bool = False) -> bool:
    """Whether a hub id would have to be fetched: neither a local path nor in the local cache."""
    endings = ("*.parquet", "*.json", "*.jsonl", "*.csv") if dataset else ("*.safetensors",)
    kept = _cached(name, "datasets" if dataset else "models") / "snapshots"
    return not (Path(name).exists() or any(f for ending in endings for f in kept.rglob(ending)))


def check_model(name: str, revision: str | None = None) -> None:
    """`LoclinError` for a hub id that was never fetched while the hub is out of reach."""
    here = name in (*BUILT_IN, *PACKAGED) or Path(name).exists() or _cached(name).exists()
    if not (here or _answers()):
        raise unknown_model(name, revision)


def unknown_model(name: str, revision: str | None) -> LoclinError:
    """What a name that leads nowhere is refused with."""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    wanted = f"{name} --revision {revision}" if revision else name
    return LoclinError(
        "expected a built-in model, a folder, or a hub id that is cached or can be reached, found "
        f"that {name!r} is none of these{offline}: where there is a network run `hf download "
        f"{wanted}`, or give a folder{meant(name)}"
    )


def _cached(name: str, kind: str = "models") -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"


def _answers() -> bool:
    """Whether there is a hub, by the proxy and the endpoint that its libraries use."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT)
    except Exception:  # each version of the library has others
        return False
    return True

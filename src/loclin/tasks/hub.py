"""The Hugging Face hub, which may be out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session

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


def _answers() -> bool:
    """Whether there is a hub, by the proxy and the endpoint that its libraries use."""
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT)
    except Exception:  # each version of the library has others
        return False
    return True

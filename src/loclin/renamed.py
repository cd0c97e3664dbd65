"""What commands and options of 0.1 are called now: an old line ends with one that says so."""

from __future__ import annotations

from collections.abc import Sequence

from loclin.errors import LoclinError

RENAMED_COMMANDS = {
    **{
        f"run {name}": name for name in ("recovery", "spectrum", "linearity", "krylov", "schedules")
    },
    "run search": "search claims",
    "run steering": "steer claims",
}
_ALONE = "sizes decide now whether candidates share passes, leave it out"
RENAMED_OPTIONS: dict[tuple[str, str], str] = {
    ("search", "--wish"): "it is --target-gain now",
    ("search", "--batched"): _ALONE,
    ("search", "--stacked"): _ALONE,
    ("search", "--asked"): "it is --tested now",
    ("steer", "--folder"): "it is --out now, and the vector's file is --vector",
    ("schedules", "--lr"): "it is --adamw-lr now, or --sgd-lr",
    ("schedules", "--rank"): "it is --ranks now",
    ("schedules", "--optimiser"): "it is --optimisers now, one or both of adamw and sgd",
    ("schedules", "--consolidation"): "it is --consolidations now, a grid to choose from",
    ("schedules", "--replay-share"): "it is --replay-shares now, a grid to choose from",
    ("schedules", "--scales"): "it is --merge-scales now",
}


def refuse_old(words: Sequence[str]) -> None:
    """`LoclinError` for a command line of 0.1, with the new one."""
    command, old = "".join(words[:1]), " ".join(words[:2])
    if command == "run":
        now = RENAMED_COMMANDS.get(old, "recovery")
        raise LoclinError(
            f"expected a command of this version, found `loclin {old}`: it is `loclin {now}` now"
        )
    for option in (word.partition("=")[0] for word in words[1:]):
        if now := RENAMED_OPTIONS.get((command, option), ""):
            raise LoclinError(f"expected an option of this version, found {option}: {now}")

"""What settings are checked for, alike in every study: counts, rates, precision, sketches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loclin.errors import LoclinError


def option_of(name: str) -> str:
    """A setting as the command line names it."""
    return name.replace("_", "-")


def check_each(*checks: tuple[bool, str, object, str]) -> None:
    """Whether all of some things hold: each with what was expected, what was found, what to do."""
    for holds, expected, found, remedy in checks:
        if not holds:
            raise LoclinError(f"expected {expected}, found {found}: {remedy}")


def check_counts(settings: Any, names: Sequence[str], least: int = 1) -> None:
    """Whether some settings are large enough."""
    for name in names:
        if getattr(settings, name) < least:
            option = option_of(name)
            raise LoclinError(
                f"expected {option} of at least {least}, found {getattr(settings, name)}: change "
                f"--{option}"
            )


def check_rates(settings: Any, names: Sequence[str]) -> None:
    """Whether some learning rates are above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise LoclinError(
                f"expected a learning rate above 0, found {getattr(settings, name)}: change "
                f"--{option_of(name)}"
            )


def check_precision(settings: Any) -> None:
    """Whether the weights' dtype keeps small steps of full weights."""
    if settings.dtype in ("bfloat16", "float16") and settings.space != "lora":
        raise LoclinError(
            f"expected float32 for full weights, whose small steps {settings.dtype} rounds away, "
            f"found --dtype {settings.dtype}: use float32, or --space lora, whose factors stay in "
            "float32"
        )


def check_sketch(settings: Any, vectors: int, letter: str) -> None:
    """Whether a sketch has room for the span of some vectors."""
    if settings.sketch_size < 4 * vectors:
        raise LoclinError(
            f"expected a sketch of at least 4 {letter} = {4 * vectors} numbers, found "
            f"{settings.sketch_size}: raise --sketch-size"
        )


def check_among(settings: Any) -> None:
    """Whether k is one of ks."""
    if settings.k not in settings.ks:
        raise LoclinError(
            f"expected --k to be one of --ks {list(settings.ks)}, found {settings.k}: add it there"
        )


def check_within(settings: Any, names: Sequence[str], most: int, letter: str, remedy: str) -> None:
    """Whether some lists of counts are from 1 to `most`."""
    for name in names:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or min(values) < 1 or max(values) > most:
            option = option_of(name)
            raise LoclinError(
                f"expected {option} from 1 to {letter} = {most}, found {list(values)}: change "
                f"--{option} or {remedy}"
            )

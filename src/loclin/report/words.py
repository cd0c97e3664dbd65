"""How numbers are written wherever people read them."""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """How a verdict is drawn: by colour and by shape, for readers who do not see one of them.

    Attributes:
        light, dark: its colour on a light and on a dark page.
        mark: its shape, as matplotlib names it.
        style: its style in a terminal.
    """

    light: str
    dark: str
    mark: str
    style: str


#: Every verdict, in the order of a legend.
VERDICTS = {
    "supported": Look("#00704f", "#4cc38a", "^", "green"),
    "refuted": Look("#a63a00", "#ff9a66", "v", "red"),
    "inconclusive": Look("#7a5c00", "#e0b93c", "o", "yellow"),
    "measurement": Look("#5b5b66", "#a6a6b2", "D", "cyan"),
    "not run": Look("#5b5b66", "#a6a6b2", "x", "dim"),
}


def number(value: float | None) -> str:
    """Three significant digits, an en dash for nothing.

    >>> number(0.12345), number(152704.0), number(None)
    ('0.123', '152704', '–')
    """
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def estimate_text(value: float | None, low: float | None, high: float | None) -> str:
    """A value with its 95 % interval.

    >>> estimate_text(0.5, 0.4, 0.6), estimate_text(0.5, None, None)
    ('0.5 [0.4, 0.6]', '0.5 (no interval)')
    """
    if value is None:
        return "not defined"
    return (
        f"{number(value)} [{number(low)}, {number(high)}]"
        if low is not None
        else f"{number(value)} (no interval)"
    )


def p_text(p: float | None) -> str:
    """A p-value; the very small ones as a bound.

    >>> p_text(0.0312), p_text(1e-7), p_text(None)
    ('0.031', '< 0.001', '–')
    """
    if p is None:
        return "–"
    return "< 0.001" if p < 1e-3 else f"{p:.2g}"

"""Figures as people read them."""

import math

from darner.tools.overview import duration

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def count(number: int) -> str:
    """Return a number with its thousands apart."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Return a number and what there are so many of."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(number: float | None) -> str:
    """Return items a second; a question mark where they are not known."""
    if number is None:
        return "?"
    return f"{number:.1f}" if 0 < number < 10 else f"{number:,.0f}"


def size(number: int) -> str:
    """Return a number of bytes in the unit that fits."""
    power = min(int(math.log(number, 1024)), len(_UNITS) - 1) if number else 0
    return f"{number / 1024**power:.1f} {_UNITS[power]}" if power else f"{number} B"


def age(seconds: float) -> str:
    """Return a time; nothing for none."""
    return duration(seconds) if seconds else "0"

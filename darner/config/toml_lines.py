"""The line of a TOML file on which a value stands, which tomllib does not tell."""

import tomllib
from typing import Any


def line_of(text: str, path: tuple[str, ...]) -> int:
    """Return the line on which the value at `path` begins; 0 if the text has no such value.

    TOML that is cut off between two statements is TOML too, so the line is found by bisection.
    """
    lines = text.split("\n")
    low, high = 0, len(lines) + 1
    while low + 1 < high:
        middle = (low + high) // 2
        for cut in range(middle, high):
            has = _has("\n".join(lines[:cut]), path)
            if has is not None:
                break
        if has is False:
            low = cut
        else:
            high = middle
    return low + 1 if low < len(lines) else 0


def _has(text: str, path: tuple[str, ...]) -> bool | None:
    """Return whether the text has a value at `path`; None if it is cut off within a statement."""
    try:
        found: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True

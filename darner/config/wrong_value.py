"""A wrong setting, as it is told to the operator: its key, the value found, and why it is wrong."""

import json
import re
from typing import Any


class WrongValueError(Exception):
    """The value at `path` is wrong; the text says why."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{dotted(path)} {why}")
        self.path = path
        self.why = why


def dotted(path: tuple[str, ...]) -> str:
    """Return the key at `path` as the file may have it, with quotes around names of queues."""
    bare = re.compile(r"[A-Za-z0-9_-]+")
    named = path[0] in ("queues", "aliases")
    return ".".join(
        part if bare.fullmatch(part) and not (named and place == 1) else quoted(part)
        for place, part in enumerate(path)
    )


def quoted(value: Any) -> str:
    """Return a value of the file as text on one line, cut at 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."

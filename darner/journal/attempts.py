"""How often items have come back, by LevelDB's records of that. If one is damaged, only a count is lost."""

import contextlib
from collections.abc import Iterator
from typing import Any

from darner.journal.layout import ATTEMPTS_END, ATTEMPTS_PREFIX, attempts_key, decode_attempts


def are_stored(db: Any) -> bool:
    """Whether LevelDB has such records."""
    keys = db.iterator(start=ATTEMPTS_PREFIX, stop=ATTEMPTS_END, include_value=False)
    return next(iter(keys), None) is not None


def find(db: Any, id: int) -> int | None:
    """Return how often an item has come back, or None if no record says so."""
    record = db.get(attempts_key(id), fill_cache=False)
    with contextlib.suppress(ValueError):
        return None if record is None else decode_attempts(record)
    return None


def stored(db: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ids from `start` up to `stop` of items that have come back, and how often."""
    if start >= stop:
        return
    with db.iterator(start=attempts_key(start), stop=attempts_key(stop), fill_cache=False) as records:
        for key, record in records:
            with contextlib.suppress(ValueError):
                yield int.from_bytes(key[1:], "big"), decode_attempts(record)

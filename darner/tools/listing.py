"""Queues as rows and columns: which of them, in which order, and how figures are written."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from darner.printable import shown
from darner.tools.overview import Overview, QueueView, duration


class Row(NamedTuple):
    """A queue of a server."""

    server: str
    view: QueueView

    @property
    def name(self) -> str:
        """The name of the queue as people see it."""
        return label(self.view.name)


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of each row: `read` gives what rows are sorted by, `text` how it is written."""

    title: str
    width: int
    read: Callable[[Row], Any]
    text: Callable[[Row], str]


def label(name: str) -> str:
    """Return the name of a queue as people see it: see `darner.printable.shown`."""
    return shown(name.encode(errors="surrogateescape"))


def size(count: float) -> str:
    """Return a number of bytes in at most 5 characters: 999, 1.5K, 12M, 3.1G."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.0f}P"


def rate(per_second: float | None) -> str:
    """Return a rate in at most 6 characters; `-` if it is not known."""
    if per_second is None:
        return "-"
    if 0 < per_second < 9.95:
        return f"{per_second:.1f}"
    return f"{per_second:.0f}" if per_second < 1e6 else f"{per_second / 1e6:.1f}M"


def _number(read: Callable[[QueueView], int]) -> dict[str, Any]:
    return {"read": lambda row: read(row.view), "text": lambda row: str(read(row.view))}


# By the word that names a column.
COLUMNS: Mapping[str, Column] = {
    "items": Column("ITEMS", 8, **_number(lambda view: view.stats.items)),
    "bytes": Column("BYTES", 5, lambda row: row.view.stats.bytes, lambda row: size(row.view.stats.bytes)),
    "age": Column(
        "AGE", 6, lambda row: row.view.stats.head_age, lambda row: duration(row.view.stats.head_age)
    ),
    "in": Column("IN/S", 6, lambda row: row.view.rate_in or 0, lambda row: rate(row.view.rate_in)),
    "out": Column("OUT/S", 6, lambda row: row.view.rate_out or 0, lambda row: rate(row.view.rate_out)),
    "waiters": Column("WAIT", 5, **_number(lambda view: view.stats.waiters)),
    "reserved": Column("RESV", 5, **_number(lambda view: view.reserved)),
    "lag": Column("LAG", 6, **_number(lambda view: view.lag)),
}
SORTS = ("name", *COLUMNS)


def rows(overviews: Iterable[Overview], pattern: str = "*") -> list[Row]:
    """Return the queues of these servers whose names match a pattern as of a shell, as written or shown."""
    return [
        Row(overview.server, view)
        for overview in overviews
        for view in overview.queues.values()
        if fnmatch.fnmatchcase(view.name, pattern) or fnmatch.fnmatchcase(label(view.name), pattern)
    ]


def sort(listed: list[Row], column: str, *, is_reversed: bool = False) -> list[Row]:
    """Return rows in the order of a column: names from A on, figures from the greatest on."""
    ordered = sorted(listed, key=lambda row: (row.name, row.server), reverse=is_reversed and column == "name")
    if column == "name":
        return ordered
    return sorted(ordered, key=COLUMNS[column].read, reverse=not is_reversed)


def as_json(row: Row) -> dict[str, Any]:
    """Return all that is known of a queue, for a program. Times are in seconds, rates in items a second."""
    stats = row.view.stats
    return {
        "server": row.server,
        "queue": row.name,
        "items": stats.items,
        "bytes": stats.bytes,
        "head_age": stats.head_age,
        "rate_in": row.view.rate_in,
        "rate_out": row.view.rate_out,
        "waiters": stats.waiters,
        "reserved": row.view.reserved,
        "delayed": stats.delayed_items,
        "cursors": {label(name): lag for name, lag in stats.cursor_lags.items()},
        "total_items": stats.total_items,
        "expired_items": stats.expired_items,
        "discarded": stats.discarded,
        "damaged_items": stats.damaged_items,
        "disk_bytes": stats.logsize,
        "max_items": stats.max_items or None,
        "max_bytes": stats.max_bytes or None,
        "out_of_service": stats.out_of_service or None,
    }

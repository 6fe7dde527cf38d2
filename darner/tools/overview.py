"""What a server is like, and what is wrong with it: from what it said of itself at two moments.

No I/O and no clock: whoever asks the server gives the replies, and the time when they came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Self

from darner.client.stats import QueueStats, ServerStats

# The head of a queue that has waited for so many seconds is late.
LATE_S = 300.0
# Below so many bytes the disk is nearly full.
LITTLE_SPACE_BYTES = 256 << 20


class Sample(NamedTuple):
    """What a server said of itself; `time_s` is when, in seconds of any clock that is never set."""

    time_s: float
    server: ServerStats
    queues: Mapping[str, QueueStats]


class Kind(IntEnum):
    """What may be wrong, the worst first."""

    UNREACHABLE = 0
    OUT_OF_SERVICE = 1
    FULL = 2
    STATUS = 3
    STALLED = 4
    UNREAD = 5
    LATE = 6
    DAMAGED = 7

    @property
    def label(self) -> str:
        """The kind in words."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True, order=True)
class Trouble:
    """Something that is wrong with a server, or with a queue of it. They sort by how bad it is."""

    kind: Kind
    # the worse the smaller
    rank: float
    server: str
    queue: str
    text: str


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue: its figures, and its rates in items a second, None until two samples have them.

    `rate_in` is what was stored. `rate_out` is what has left for good: fetched, closed, expired, discarded or
    flushed.
    """

    stats: QueueStats
    rate_in: float | None = None
    rate_out: float | None = None

    @property
    def name(self) -> str:
        """The name of the queue."""
        return self.stats.name

    @property
    def reserved(self) -> int:
        """How many items are reserved."""
        return self.stats.open_transactions

    @property
    def lag(self) -> int:
        """The items that the cursor which is furthest behind has still to read."""
        return max(self.stats.cursor_lags.values(), default=0)


@dataclass(frozen=True, slots=True)
class Overview:
    """A server at one moment: `error` says why it did not answer, or is empty.

    A server that has answered before is shown as it was then, with its `error`.
    """

    server: str
    error: str = ""
    stats: ServerStats = field(default_factory=ServerStats)
    queues: Mapping[str, QueueView] = field(default_factory=dict)

    @classmethod
    def of(cls, server: str, now: Sample, before: Sample | None = None) -> Self:
        """Return the overview of a server from what it says now, and what it said before."""
        if before is not None and (before.server.pid != now.server.pid or before.time_s >= now.time_s):
            before = None  # a server that was started again counts from 0
        return cls(server, "", now.server, {name: _view(name, now, before) for name in now.queues})

    def troubles(self) -> list[Trouble]:
        """Return what is wrong, the worst first."""
        if self.error:
            return [Trouble(Kind.UNREACHABLE, 0, self.server, "", self.error)]
        found = list(self._server_troubles())
        for view in self.queues.values():
            found += [
                Trouble(kind, rank, self.server, view.name, text) for kind, rank, text in _troubles(view)
            ]
        return sorted(found)

    def _server_troubles(self) -> Iterator[Trouble]:
        stats = self.stats
        named = sum(bool(view.stats.out_of_service) for view in self.queues.values())
        if named < stats.queues_out_of_service:  # an older server does not name them
            text = f"queues out of service: {stats.queues_out_of_service}; its log says which and why"
            yield Trouble(Kind.OUT_OF_SERVICE, 0, self.server, "", text)
        if stats.limit_maxbytes and (space := stats.limit_maxbytes - stats.bytes) < LITTLE_SPACE_BYTES:
            text = f"the disk has {space >> 20} MiB left for items" if space > 0 else "the disk is full"
            yield Trouble(Kind.FULL, space, self.server, "", text)
        if stats.status not in ("", "up"):
            yield Trouble(Kind.STATUS, 0, self.server, "", f"its status is {stats.status}")


def _view(name: str, now: Sample, before: Sample | None) -> QueueView:
    stats = now.queues[name]
    was = before.queues.get(name) if before is not None else None
    if before is None or was is None or was.create_time != stats.create_time:
        return QueueView(stats)
    stored = stats.total_items - was.total_items
    if stored < 0:  # the counters were reset
        return QueueView(stats)
    seconds = now.time_s - before.time_s
    left = stored - (_present(stats) - _present(was))
    # what came back from elsewhere is not counted as stored: then less than nothing has left
    return QueueView(stats, stored / seconds, max(left, 0) / seconds)


def _present(stats: QueueStats) -> int:
    return stats.items + stats.open_transactions + stats.delayed_items


def _troubles(view: QueueView) -> Iterator[tuple[Kind, float, str]]:
    """Give what is wrong with a queue: its kind, how bad it is among those, and a text."""
    stats = view.stats
    if stats.out_of_service:
        yield Kind.OUT_OF_SERVICE, 0, stats.out_of_service
        return
    if full := _fullness(stats):
        yield Kind.FULL, 0, full
    if stats.damaged_items:
        yield Kind.DAMAGED, -stats.damaged_items, f"items lost to damage: {stats.damaged_items}"
    if not stats.items or stats.head_age < LATE_S:
        return
    waited = f"{stats.items} waiting, the first for {duration(stats.head_age)}"
    if view.rate_out is None or view.rate_out > 0:
        yield Kind.LATE, -stats.head_age, waited
    elif stats.open_transactions:
        text = f"{waited}; {stats.open_transactions} reserved, and none is done"
        yield Kind.STALLED, -stats.head_age, text
    elif not stats.cursor_lags:  # what is read through cursors alone is not taken
        yield Kind.UNREAD, -stats.head_age, f"{waited}; nobody takes them"


def _fullness(stats: QueueStats) -> str:
    """Return in what a queue has all that it may have, or nothing."""
    if 0 < stats.max_items <= stats.items:
        return f"it has its {stats.max_items} items (max_items)"
    if 0 < stats.max_bytes <= stats.bytes:
        return f"it has its {stats.max_bytes} bytes (max_bytes)"
    return ""


def duration(seconds: float) -> str:
    """Return a time in its two largest units, as people say it: 250ms, 4.2s, 3m05s, 2h10m, 9d04h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds else "0s"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"

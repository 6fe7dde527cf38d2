"""Delayed items: they are out of sight, and join the end of their queue when they are due."""

from typing import Protocol

from darner._records import Item
from darner.environment.timeline import Earliest, Timeline, run_of
from darner.errors import JournalError
from darner.journal import lookup
from darner.journal.dedup_ids import Once
from darner.journal.journal import Journal
from darner.queues.item_window import READ_BYTES

# How many delayed items join the end of a queue in one go.
JOIN_ITEMS = 256


class Joined(Protocol):
    """The queue that delayed items join."""

    def note_expiry(self, item: Item) -> None:
        """Note when an item expires by itself."""

    def arrive(self, item: Item) -> None:
        """Take an item that was put at the end in the journal, and serve the clients that wait."""


class Delayed:
    """When the first delayed item of a queue is due; the items themselves are in the journal."""

    __slots__ = ("_due", "_journal", "_times")

    def __init__(self, journal: Journal, times: Timeline) -> None:
        self._journal = journal
        self._times = times
        self._due = Earliest(times)
        self._note_due()

    def _note_due(self) -> None:
        self._due.clear()
        for due_ms in self._journal.delayed.next_due.values():
            self._due.note(due_ms)

    @property
    def needs_upkeep(self) -> bool:
        """Whether there are delayed items."""
        return not self._due.is_never()

    def put(self, item: Item, due_ms: int, once: Once | None = None) -> bool:
        """Have an item join at `due_ms`, a stamp; with `once`, remember the id of its set. Returns whether
        it is now the first one that does."""
        due_ms = min(due_ms, self._times.last)
        self._journal.delay(item, due_ms, once)
        return self._due.note(due_ms)

    def defer(self, item: Item, due_ms: int) -> bool:
        """As `put`, with a live item that was reserved."""
        due_ms = min(due_ms, self._times.last)
        self._journal.defer(item, due_ms)
        return self._due.note(due_ms)

    def are_due(self, now: int) -> bool:
        """Return whether an item is due."""
        return self._due.has_passed(now)

    def join(self, queue: Joined, now: int) -> bool:
        """Put some of the items that are due at the end of the queue, as if they were set now; returns
        whether there were any."""
        journal = self._journal
        # clients that wait are served on the way, and must not have later items join before these
        self._due.clear()
        joined = False
        try:
            for key, item in lookup.due(journal, now, JOIN_ITEMS, READ_BYTES, self._times.date_ms):
                if item.expires_ms:
                    queue.note_expiry(item)
                queue.arrive(journal.join(key, item, now))
                joined = True
        except JournalError:
            journal.delayed.next_due[run_of(now)] = now
            raise
        finally:
            self._note_due()
        return joined

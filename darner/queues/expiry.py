"""When the items of a queue expire, and the search for those that have.

An item expires by its own expiry or by `max_age`. One at the head is met by whoever fetches. The others are
found by a pass over the whole queue, in slices; it begins when the earliest expiry of all has passed.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from darner._records import Item
from darner.config.settings import QueueSettings
from darner.environment.timeline import Earliest, Timeline
from darner.journal import reading
from darner.journal.journal import Journal
from darner.queues.disposal import Disposal, Disposing

# How many expired items one fetch gets past before other clients have their turn.
EXPIRED_AT_ONCE = 512

# How much a slice of the pass reads from the journal at most.
SWEEP_BYTES = 1 << 20


class Expiring(Disposing, Protocol):
    """The queue whose items expire."""

    settings: QueueSettings
    times: Timeline
    disposal: Disposal

    def has_expired(self, item: Item, now: int) -> bool:
        """Return whether an item has expired."""

    def note_expiry(self, item: Item) -> None:
        """Note when an item expires by itself."""

    def expire_first(self) -> None:
        """Move or drop the item at the head, which has expired."""


class Expiry:
    """The earliest expiry of a queue's items, and how far the pass over them has come."""

    __slots__ = ("_journal", "_next_id", "earliest")

    def __init__(self, journal: Journal, times: Timeline) -> None:
        self._journal = journal
        # no item expires by itself before this
        self.earliest = Earliest(times)
        if journal.expiring:
            self.earliest.note(1)  # the journal does not tell when
        # the id from which the pass goes on; 0 if none is under way
        self._next_id = 0

    @property
    def needs_upkeep(self) -> bool:
        """Whether an item may expire by itself, now or later."""
        return bool(self._next_id) or not self.earliest.is_never()

    def is_due(self, now: int) -> bool:
        """Return whether a slice of the pass is to be done."""
        return bool(self._next_id) or self.earliest.has_passed(now)

    def sweep(self, queue: Expiring, now: int) -> bool:
        """Do a slice of the pass. Returns whether there are more."""
        if not self._next_id:
            # the items that are met on the way or set meanwhile say when the next pass begins
            self.earliest.clear()
            self._next_id = 1
        _, self._next_id = self._expire_slice(queue, now, self._next_id)
        if not self._next_id and self.earliest.is_never():
            self._journal.note_expiring(expiring=False)
        return self._next_id > 0

    def flush(self, queue: Expiring) -> Iterator[int]:
        """Move or drop all items that have expired, in slices; gives how many there were in each."""
        now, next_id = queue.times.now(), 1
        while next_id:
            count, next_id = self._expire_slice(queue, now, next_id)
            yield count

    def expire_head(self, queue: Expiring, now: int, limit: int) -> int:
        """Move or drop up to `limit` items at the head, as long as they have expired; returns how many."""
        window = queue.window
        count = 0
        while count < limit and window.fill() and queue.has_expired(window.items[0], now):
            queue.expire_first()
            count += 1
        return count

    def _expire_slice(self, queue: Expiring, now: int, next_id: int) -> tuple[int, int]:
        """Expire items at the head, then some from `next_id` on that are not in memory, then, when these are
        through, those in the window. Returns how many there were, and the id to go on from, or 0 at the
        end."""
        limit = queue.settings.max_expire_sweep
        count = self.expire_head(queue, now, limit)
        if count < limit:
            unread, next_id = self._expire_unread(queue, now, next_id, limit - count)
            count += unread
        if count < limit and next_id >= self._journal.state.next_id:
            count += self._expire_window(queue, now, limit - count)
            if count < limit:
                return count, 0
        return count, next_id

    def _expire_unread(self, queue: Expiring, now: int, next_id: int, limit: int) -> tuple[int, int]:
        journal = self._journal
        items, next_id = reading.scan(journal, max(next_id, journal.next_unread), limit, SWEEP_BYTES)
        count = 0
        for item in items:
            if item.id < journal.next_unread:
                continue  # read meanwhile, by a client that waited for an item that was moved
            if queue.has_expired(item, now):
                queue.disposal.expire(queue, item)
                count += 1
            elif item.expires_ms:
                queue.note_expiry(item)
        return count, next_id

    def _expire_window(self, queue: Expiring, now: int, limit: int) -> int:
        window = queue.window
        expired = deque(islice((item for item in window if queue.has_expired(item, now)), limit))
        count = len(expired)
        if expired:
            window.remove({item.id for item in expired})
        had_item_leaving, window.has_item_leaving = window.has_item_leaving, True
        try:
            while expired:
                queue.disposal.expire(queue, expired[0])
                expired.popleft()
        finally:
            window.has_item_leaving = had_item_leaving
            # those that have to stay: where they are does not matter, for nobody fetches them
            for item in expired:
                window.put_first(item)
        for item in (*window, *queue.reserved.by_id.values()):
            if item.expires_ms:
                queue.note_expiry(item)
        return count

# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The head of a queue: the oldest waiting items, which are held in memory.

The items behind them are read from the journal when the window has run empty. How many items and bytes the
window and the reserved items have is compared with what the journal counts.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Iterator
from operator import attrgetter

from darner._records import Item
from darner.errors import JournalError
from darner.journal import lookup, losses, reading
from darner.journal.journal import Journal
from darner.journal.lookup import MAX_STRIKES
from darner.queues.reservations import Reserved

# How much of a queue is held in memory; more is left on disk.
WINDOW_BYTES = 1 << 20
# How much is read from the journal at once when the window is empty.
READ_ITEMS = 256
READ_BYTES = 256 << 10

_ID = attrgetter("id")


class Window:
    """The oldest waiting items of a queue, in their order."""

    __slots__ = (
        "_append", "_journal", "_max_bytes", "_popleft", "_reserved", "_returned", "bytes",
        "has_item_leaving", "items",
    )  # fmt: skip

    def __init__(self, journal: Journal, reserved: Reserved) -> None:
        self._journal = journal
        self._reserved = reserved
        self._max_bytes = WINDOW_BYTES
        # what the items take in memory
        self.bytes = 0
        # whether an item that is neither here nor reserved any more is still in the journal: then its counts
        # cannot be compared
        self.has_item_leaving = False
        self.items: deque[Item] = deque(lookup.kept_items(journal))
        # its methods, which each item passes through: to look them up takes longer than to call them
        self._append = self.items.append
        self._popleft = self.items.popleft
        # The first ones of these, if they came back in another order than that of the ids; here in that
        # order. The ones behind them always are.
        self._returned: list[Item] = []
        self._measure()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def append(self, item: Item) -> None:
        """Take an item that was just put in the journal; it is left there if the window is full, or if there
        are items between that are not read yet."""
        journal = self._journal
        if journal.next_unread == item.id and self.bytes < self._max_bytes:
            journal.next_unread += 1
            self._append(item)
            self.bytes += item.memory_bytes

    def pop(self) -> None:
        """Remove the first item."""
        item = self._popleft()
        self.bytes -= item.memory_bytes
        if self._returned:
            del self._returned[bisect_left(self._returned, item.id, key=_ID)]

    def put_first(self, item: Item) -> None:
        """Put an item at the head."""
        if self._returned or (self.items and self.items[0].id < item.id):
            insort(self._returned, item, key=_ID)
        self.items.appendleft(item)
        self.bytes += item.memory_bytes

    def put_back(self, item: Item) -> None:
        """Put an item where it was, in the order of the ids."""
        place = 0
        for other in self.items:
            if other.id >= item.id:
                break
            place += 1
        if place < len(self._returned):
            insort(self._returned, item, key=_ID)
        self.items.insert(place, item)
        self.bytes += item.memory_bytes

    def remove(self, ids: Collection[int]) -> None:
        """Remove the items that have these ids."""
        left = [item for item in self.items if item.id not in ids]
        self.items.clear()
        self.items.extend(left)
        self._returned = [item for item in self._returned if item.id not in ids]
        self._measure()

    def clear(self) -> None:
        """Remove all items."""
        self.items.clear()
        self._returned.clear()
        self.bytes = 0

    def fill(self) -> bool:
        """Read items from the journal if there are none here. Returns whether an item waits."""
        if self.items:
            return True
        return self._read()

    def _read(self) -> bool:
        journal = self._journal
        damaged = 0
        while journal.next_unread < journal.state.next_id or journal.damaged_kept:
            items, journal.next_unread = reading.read(journal, journal.next_unread, READ_ITEMS, READ_BYTES)
            self.items.extend(items)
            if items:
                self._measure()
                return True
            damaged += 1
            if damaged == MAX_STRIKES:
                raise losses.pause(journal)
        # now the reserved items are all there are
        if journal.state.items != len(self._reserved.by_id) or journal.state.bytes != self._reserved.bytes:
            self._recount()
        return False

    def _measure(self) -> None:
        size = 0
        live_bytes = self._reserved.bytes
        for item in self.items:
            size += item.memory_bytes
            live_bytes += item.size
        self.bytes = size
        if live_bytes > self._journal.state.bytes:
            self._recount()

    def _recount(self) -> None:
        """Correct the journal's counts: something was lost unnoticed."""
        if self.has_item_leaving:
            return
        journal = self._journal
        items = [*self.items, *self._reserved.by_id.values()]
        are_all = journal.next_unread >= journal.state.next_id
        losses.recount(
            journal,
            len(items) if are_all else max(len(items), journal.state.items),
            sum(item.size for item in items),
        )

    def first_from(self, id: int) -> Item | None:
        """Return the item with the least id from `id` on; None if there is none."""
        items, returned = self.items, self._returned
        found: Item | None = None
        place = bisect_left(items, id, len(returned), key=_ID)
        if place < len(items):
            found = items[place]
        place = bisect_left(returned, id, key=_ID)
        if place < len(returned) and (found is None or returned[place].id < found.id):
            found = returned[place]
        return found

    def first_enqueued_ms(self) -> int | None:
        """Return when the first waiting item was set, a stamp; None if there is none, or if the journal
        cannot be read. If it is not in memory it is read at most once and not kept, for there may be many
        queues."""
        if self.items:
            return self.items[0].enqueued_ms
        journal = self._journal
        start = max(journal.next_unread, journal.state.floor)
        if not journal.first.is_first(start, journal.live):
            try:
                items, _ = reading.scan(journal, start, 1, 1)
            except JournalError:
                return None
            if not items:
                return None
            journal.first.note(start, items[0].id, items[0].enqueued_ms)
        return journal.first.enqueued_ms

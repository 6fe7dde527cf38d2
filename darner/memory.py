"""The journal of a queue that is in memory alone: nothing on disk, and gone with the server.

It has what a `Journal` has, as far as queues and the broker ask for it. Nothing is ever on its way to the
disk, so nobody waits for it, and it cannot fail. An item of any size is in memory as it is; `max_bytes` is
what bounds them.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Collection

from darner._proto import Item, State
from darner.blob import Offload
from darner.errors import JournalError
from darner.journal import Batch, Client


class MemoryJournal:
    """The items of one queue, in memory."""

    __slots__ = (
        "_cursors",
        "_delayed",
        "_items",
        "batch",
        "delayed_bytes",
        "expiring",
        "generation",
        "offload",
        "on_reopen",
        "state",
    )

    # as of a journal all of whose batches are written
    dirty = False
    writing = None
    failed: JournalError | None = None
    untidy = False
    disk_bytes = 0

    def __init__(self, offload: Offload, created_ms: int) -> None:
        self.offload = offload
        self.state = State(created_ms)
        # never written; what is staged in it is of no consequence
        self.batch = Batch(held=False)
        # counts up when the queue is deleted: an item begun before is lost
        self.generation = 0
        self.on_reopen: Callable[[], None] = lambda: None
        self.expiring = False
        # a heap: when each is due, and as which of them it came
        self._delayed: list[tuple[int, int, Item]] = []
        self.delayed_bytes = 0
        self._cursors: dict[bytes, list[int]] = {}
        # by id; ordered otherwise than by hashing, since the oldest are looked for again and again
        self._items: OrderedDict[int, Item] = OrderedDict()

    def put(self, item: Item) -> None:
        """Take in a new item, as the last; gives it its id."""
        self._items[self.state.add(item)] = item

    def rewrite(self, item: Item) -> None:
        """Put a changed item in its own place."""
        self._items[item.id] = item

    def remove(self, item: Item) -> None:
        """Drop a live item."""
        del self._items[item.id]
        self.state.drop(item)

    expunge = remove

    def flush(self, keep: Collection[Item]) -> None:
        """Drop all items but `keep`."""
        self._items = OrderedDict((item.id, item) for item in keep)
        self.state.items = len(keep)
        self.state.bytes = sum(item.size for item in keep)
        self._delayed.clear()
        self.delayed_bytes = 0

    def read(self, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
        """Return items from id `start` on, and the id to read on from; see `Journal.read`."""
        items: list[Item] = []
        size = 0
        for item in self._items.values():
            if item.id >= start:
                items.append(item)
                size += item.size
                if len(items) >= max_items or size >= max_bytes:
                    return items, item.id + 1
        return items, self.state.next_id

    scan = read

    @property
    def committed_id(self) -> int:
        """The first id that may not be on disk yet, in a journal that has one: nothing is waited for here."""
        return self.state.next_id

    def note_expiring(self, *, expiring: bool) -> None:
        """Take note of whether an item may have an expiry of its own."""
        self.expiring = expiring

    def delay(self, item: Item, due_ms: int) -> None:
        """Take in a new item that is out of sight until `take_due` returns it."""
        item.id = self.state.next_blob
        self.state.next_blob += 1
        heapq.heappush(self._delayed, (due_ms, item.id, item))
        self.delayed_bytes += item.size

    def take_due(self, now_ms: int, max_items: int, max_bytes: int) -> list[Item]:
        """Take out delayed items that are due, in the order of their times; see `Journal.take_due`."""
        items: list[Item] = []
        size = 0
        while self.next_due_ms <= now_ms and len(items) < max_items and size < max_bytes:
            _, _, item = heapq.heappop(self._delayed)
            items.append(item)
            size += item.size
        self.delayed_bytes -= size
        return items

    @property
    def delayed_items(self) -> int:
        """How many items are delayed."""
        return len(self._delayed)

    @property
    def next_due_ms(self) -> float:
        """When the first delayed item is due."""
        return self._delayed[0][0] if self._delayed else math.inf

    def live(self, id: int) -> Item | None:
        """Return the item with this id if it is live."""
        return self._items.get(id)

    def next_live(self, start: int) -> Item | None:
        """Return the first live item from id `start` on."""
        return next((item for id, item in self._items.items() if id >= start), None)

    def cursor(self, label: bytes) -> list[int]:
        """Return the place of a cursor; an empty list if there is none."""
        return self._cursors.get(label, [])

    def keep_cursor(self, label: bytes, place: list[int] | None) -> None:
        """Take note of the place of a cursor; None is the end of it."""
        self._cursors[label] = place or []

    def kept_items(self) -> list[Item]:
        """Return the live items that `read` does not: there are none."""
        return []

    def find(self, id: int) -> Item | None:
        """Return the item with this id, or None if there is none."""
        return self._items.get(id)

    def acknowledge(self, client: Client, slot: int) -> None:
        """What has happened here has happened: nobody need hear of it."""

    def sync(self) -> None:
        """There is nothing to sync."""

    def retire(self) -> None:
        """The queue is deleted."""
        self.flush(())
        self.generation += 1


class MemoryWriter:
    """Takes in an item that comes chunk by chunk, for a queue in memory; has what a `BlobWriter` has."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._chunks.append(chunk)

    def crowded(self, room: Callable[[], None]) -> bool:  # noqa: ARG002
        """The sender never has to wait."""
        return False

    def finish(self, done: Callable[[None], None], *, sync: bool) -> None:  # noqa: ARG002
        """All chunks have come."""
        done(None)

    def abandon(self, done: Callable[[], None]) -> None:
        """Forget the item."""
        self._chunks.clear()
        done()

    @property
    def data(self) -> bytes:
        """The whole item."""
        return b"".join(self._chunks)

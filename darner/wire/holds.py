# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What one client holds reserved, queue by queue.

A connection has a `Holds`, adds each item that it reserves, and releases all when the client disconnects. A
queue may take an item back without notice: its `open_timeout` has passed, or the queue was deleted. Such an
item no longer counts here, and closing it does nothing.
"""

import sys
from collections import deque
from collections.abc import Iterator

from darner._records import Item
from darner.journal.journal import Journal
from darner.queues.queue import Queue
from darner.queues.waiters import Source
from darner.wire.requeueing import requeue


class Holds:
    """The items one client has reserved, in the order of reserving.

    Methods that touch items raise JournalError if the queue's journal refuses.
    """

    __slots__ = ("_is_disordered", "held")

    def __init__(self) -> None:
        # no queue is in here without items
        self.held: dict[bytes, deque[tuple[Source, Item]]] = {}
        # whether an item was reserved after a later one of its queue: it had gone back in between
        self._is_disordered = False

    def count(self, name: bytes, most: int = sys.maxsize) -> int:
        """Return how many items of the queue `name` are held; counting ends at `most`."""
        held = self.held.get(name)
        if held is None:
            return 0
        count = 0
        for queue, item in held:
            if count == most:
                break
            if not queue.is_reserved(item):
                return min(self._recount(name), most)
            count += 1
        return count

    def _recount(self, name: bytes) -> int:
        """Forget what the queue `name` has taken back; returns how many items are left."""
        held: deque[tuple[Source, Item]] = deque()
        for hold in self.held[name]:
            if hold[0].is_reserved(hold[1]):
                held.append(hold)
        if held:
            self.held[name] = held
        else:
            del self.held[name]
        return len(held)

    def add(self, queue: Source, item: Item) -> None:
        """Hold an item just reserved from `queue`."""
        held = self.held.setdefault(queue.name, deque())
        if held and item.id < held[-1][1].id:
            self._is_disordered = True
        held.append((queue, item))

    def _first(self, name: bytes) -> tuple[Source, Item] | None:
        """Return the item of the queue `name` that is reserved longest; None if none is held."""
        while name in self.held:
            first = self.held[name][0]
            queue, item = first
            if queue.is_reserved(item):
                return first
            self._drop_oldest(name)
        return None

    def close(self, name: bytes, count: int = 1) -> int:
        """Remove the `count` items reserved longest for good, or as many as are held; returns how many."""
        closed = 0
        while closed < count and (first := self._first(name)) is not None:
            queue, item = first
            queue.close(item)
            self._drop_oldest(name)
            closed += 1
        return closed

    def close_item(self, name: bytes, id: int) -> bool:
        """Remove the reserved item with that id for good; returns whether it was held."""
        if self.count(name):
            held = self.held[name]
            for hold in held:
                queue, item = hold
                if item.id == id:
                    queue.close(item)
                    held.remove(hold)
                    if not held:
                        del self.held[name]
                    return True
        return False

    def abort(self, name: bytes) -> bool:
        """Put the item reserved longest back at the head of its queue; returns whether one was held."""
        first = self._first(name)
        if first is None:
            return False
        queue, item = first
        # first, for an item put back may be delivered at once to a client that waits, even to this one
        self._drop_oldest(name)
        queue.abort(item)
        return True

    def defer(self, name: bytes, delay_ms: int) -> Journal | None:
        """Put the item reserved longest out of sight for `delay_ms`, to join the end of its queue then;
        returns the journal that has it, None if no item was held. On JournalError it is still held."""
        first = self._first(name)
        if first is None:
            return None
        queue, item = first
        assert isinstance(queue, Queue)  # no cursor: of one the parser takes no delay
        queue.defer(item, delay_ms)
        self._drop_oldest(name)
        return queue.journal

    def _drop_oldest(self, name: bytes) -> None:
        held = self.held[name]
        held.popleft()
        if not held:
            del self.held[name]

    def release(self) -> Iterator[Journal | None]:
        """Forget everything; returns the steps that requeue it, as in requeueing.py."""
        everything, self.held = self.held, {}
        return requeue(everything.values(), is_disordered=self._is_disordered)

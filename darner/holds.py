# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What one client holds reserved, queue by queue.

Whoever serves the client owns a `Holds`, adds what it reserves, and releases it when the client goes.
A queue may take an item back behind the client's back: its `open_timeout` has passed, or it was deleted.
Such an item no longer counts here, and closing it does nothing.
"""

from collections import deque

from darner._proto import Item
from darner.queue import Source


class Holds:
    """The items one client has reserved, in the order of reserving.

    Methods that touch items raise JournalError if the queue's journal refuses.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        # no queue is in here without items
        self.held: dict[bytes, deque[tuple[Source, Item]]] = {}

    def count(self, name: bytes) -> int:
        """Return how many items of the queue `name` are held."""
        held = self.held.get(name)
        if held is None:
            return 0
        for queue, item in held:
            if not queue.is_reserved(item):
                return self._recount(name)
        return len(held)

    def _recount(self, name: bytes) -> int:
        """Forget what was taken back of the queue `name`; returns how many items are left."""
        held = deque(hold for hold in self.held[name] if hold[0].is_reserved(hold[1]))
        if held:
            self.held[name] = held
        else:
            del self.held[name]
        return len(held)

    def add(self, queue: Source, item: Item) -> None:
        """Hold an item just reserved from `queue`."""
        self.held.setdefault(queue.name, deque()).append((queue, item))

    def close(self, name: bytes, count: int = 1) -> int:
        """Remove the `count` items reserved longest for good, or as many as are held; returns how many."""
        count = min(count, self.count(name))
        for _ in range(count):
            queue, item = self.held[name][0]
            queue.close(item)
            self._drop_oldest(name)
        return count

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
        if not self.count(name):
            return False
        queue, item = self.held[name][0]
        # first: an item put back may go to somebody who waits, even to this client
        self._drop_oldest(name)
        queue.abort(item)
        return True

    def _drop_oldest(self, name: bytes) -> None:
        held = self.held[name]
        held.popleft()
        if not held:
            del self.held[name]

    def release(self) -> None:
        """Put everything back at the heads of the queues, in the order it was set."""
        everything, self.held = self.held, {}
        for held in everything.values():
            for queue, item in sorted(held, key=lambda hold: hold[1].id, reverse=True):
                queue.abort(item)

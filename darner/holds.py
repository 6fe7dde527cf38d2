"""What one client holds reserved, queue by queue.

Whoever serves the client owns a `Holds`, adds what it reserves, and releases it when the client goes.
A queue may take an item back behind the client's back: its `open_timeout` has passed, it was deleted, or
a failed batch took the item along. Such an item no longer counts here, and closing it does nothing.
"""

from collections import deque

from darner._proto import Item
from darner.queue import Source


class Holds:
    """The items one client has reserved, in the order of reserving.

    Methods that touch items raise JournalError if the queue's journal is out of service.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        # no queue is in here without items
        self._held: dict[bytes, deque[tuple[Source, Item]]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def count(self, name: bytes) -> int:
        """Return how many items of the queue `name` are held."""
        held = self._held.get(name)
        if held is None:
            return 0
        if not all(queue.is_reserved(item) for queue, item in held):
            held = self._held[name] = deque(hold for hold in held if hold[0].is_reserved(hold[1]))
            if not held:
                del self._held[name]
        return len(held)

    def add(self, queue: Source, item: Item) -> None:
        """Hold an item just reserved from `queue`."""
        self._held.setdefault(queue.name, deque()).append((queue, item))

    def reserve(self, queue: Source, count: int) -> list[Item]:
        """Reserve and hold up to `count` items, oldest first; returns them."""
        items: list[Item] = []
        while len(items) < count and (item := queue.reserve()) is not None:
            self.add(queue, item)
            items.append(item)
        return items

    def close(self, name: bytes, count: int = 1) -> int:
        """Remove the `count` items reserved longest for good, or as many as are held; returns how many."""
        count = min(count, self.count(name))
        for _ in range(count):
            queue, item = self._held[name][0]
            queue.close(item)
            self._drop_oldest(name)
        return count

    def abort(self, name: bytes) -> bool:
        """Put the item reserved longest back at the head of its queue; returns whether one was held."""
        if not self.count(name):
            return False
        queue, item = self._held[name][0]
        # first: an item put back may go to somebody who waits, even to this client
        self._drop_oldest(name)
        queue.abort(item)
        return True

    def _drop_oldest(self, name: bytes) -> None:
        held = self._held[name]
        held.popleft()
        if not held:
            del self._held[name]

    def release(self) -> None:
        """Put everything back at the heads of the queues, in the order it was set."""
        everything, self._held = self._held, {}
        for held in everything.values():
            for queue, item in sorted(held, key=lambda hold: hold[1].id, reverse=True):
                queue.abort(item)

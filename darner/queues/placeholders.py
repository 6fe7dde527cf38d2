"""Placeholders: where clients wait for items of a queue that does not exist."""

from weakref import WeakValueDictionary

from darner.queues.cursor import Cursors
from darner.queues.factory import QueueFactory
from darner.queues.queue import Queue


class Placeholders:
    """Empty queues in memory that stand in for queues that do not exist.

    A placeholder is among no other queues, and exists as long as a waiter or a cursor refers to it. So
    nothing stays when clients give up waiting.
    """

    def __init__(self, factory: QueueFactory, cursors: Cursors) -> None:
        self._factory = factory
        self._cursors = cursors
        self._queues: WeakValueDictionary[bytes, Queue] = WeakValueDictionary()

    def get(self, name: bytes) -> Queue:
        """Return the placeholder for the queue `name`, made if there is none."""
        placeholder = self.find(name)
        if placeholder is None:
            placeholder = self._factory.queue(name, self._factory.journal_in_memory(name))
            self._queues[name] = placeholder
        return placeholder

    def find(self, name: bytes) -> Queue | None:
        """Return the placeholder for the queue `name` if clients wait there."""
        placeholder = self._queues.get(name)
        # the last of them may just have left, and the object be there still
        return placeholder if placeholder is not None and placeholder.waiting_clients else None

    @property
    def by_name(self) -> dict[bytes, Queue]:
        """The placeholders at which clients wait."""
        return {name: queue for name, queue in self._queues.items() if queue.waiting_clients}

    def move_waiters_to(self, queue: Queue) -> None:
        """Have the clients that wait for `queue`, which was just made, wait at it."""
        placeholder = self.find(queue.name)
        if placeholder is not None:
            queue.counts.transactions = placeholder.counts.transactions
            self._move_waiters(placeholder, queue)
        self._queues.pop(queue.name, None)

    def move_waiters_from(self, queue: Queue) -> None:
        """Have the clients that wait at `queue`, which was just deleted, wait for a new queue of its name."""
        self._move_waiters(queue, self.get(queue.name))

    def _move_waiters(self, queue: Queue, successor: Queue) -> None:
        """Move the waiters of `queue` and of its cursors to `successor`, in the same order."""
        for waiter in list(queue.waiters):
            queue.leave(waiter)
            successor.wait(waiter)
        for cursor in list(queue.waiting_cursors):
            for waiter in list(cursor.waiters):
                cursor.leave(waiter)
                self._cursors.get(successor, cursor.label).wait(waiter)

"""Totals: what is counted over all queues."""

from collections.abc import Mapping

from darner.queues.queue import Queue


class Totals:
    """Counts over all queues since the start, those deleted since included."""

    def __init__(self, queues: Mapping[bytes, Queue]) -> None:
        self._queues = queues
        self.reset()

    def reset(self) -> None:
        """Zero the counts, but for those that the queues keep themselves."""
        self.queue_creates = self.queue_deletes = self.queue_expires = 0
        # of queues that were deleted
        self._deleted_items = self._deleted_expired = self._deleted_discarded = 0

    def add_deleted(self, queue: Queue) -> None:
        """Go on counting what happened to `queue`, which was deleted."""
        self.queue_deletes += 1
        self._deleted_items += queue.counts.total_items
        self._deleted_expired += queue.counts.expired_items
        self._deleted_discarded += queue.counts.discarded

    @property
    def items(self) -> int:
        """How many items were set."""
        return self._deleted_items + sum(queue.counts.total_items for queue in self._queues.values())

    @property
    def expired_items(self) -> int:
        """How many items expired before they were fetched."""
        return self._deleted_expired + sum(queue.counts.expired_items for queue in self._queues.values())

    @property
    def discarded_items(self) -> int:
        """How many items were dropped unread by full queues."""
        return self._deleted_discarded + sum(queue.counts.discarded for queue in self._queues.values())

    def waiting(self) -> tuple[int, int, int]:
        """Return how many queues there are, and how many items and bytes wait in them now."""
        queues = self._queues.values()
        return len(queues), sum(queue.items for queue in queues), sum(queue.waiting_bytes for queue in queues)

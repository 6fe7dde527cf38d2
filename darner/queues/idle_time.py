"""How long a queue has been idle; one that was so for `max_queue_age` is deleted."""

from typing import Protocol

from darner.config.settings import QueueSettings
from darner.journal.journal import Journal
from darner.queues.counts import Counts
from darner.queues.reservations import Reserved
from darner.queues.waiters import Reader, Waiters


class Idling(Protocol):
    """The queue that may be idle."""

    name: bytes
    journal: Journal
    settings: QueueSettings
    counts: Counts
    reserved: Reserved
    waiters: Waiters
    waiting_cursors: dict[Reader, None]
    taken_ms: int


class IdleTime:
    """Since when a queue has been empty, or a child unread, as far as `has_passed` has seen.

    A child gets items from its parent for as long as it exists, so one that was forgotten is never empty for
    long. It is idle, too, if nobody reads it and it loses items unread: they expire, or are discarded because
    it is full.
    """

    __slots__ = ("_empty_since_ms", "_lost", "_max_ms", "_next_id", "_taken_ms", "_unread_since_ms")

    def __init__(self, max_ms: int) -> None:
        self._max_ms = max_ms
        # since when it is empty, None if it was not; and the id of the next item then
        self._empty_since_ms: int | None = None
        self._next_id = 0
        # since when it is unread, None if it was not; when the last item was fetched, and how many were lost
        self._unread_since_ms: int | None = None
        self._taken_ms = self._lost = 0

    def has_passed(self, queue: Idling, now: int) -> bool:
        """Return whether the queue was idle for `max_ms`; to be asked a few times a second."""
        if queue.waiters or queue.waiting_cursors:
            self._empty_since_ms = self._unread_since_ms = None
            return False
        return self._was_empty(queue, now) or (queue.name.find(b"+") > 0 and self._was_unread(queue, now))

    def _was_empty(self, queue: Idling, now: int) -> bool:
        state = queue.journal.state
        if state.items or queue.journal.delayed.items:
            self._empty_since_ms = None
            return False
        # an item may have been set and removed between two looks
        if self._empty_since_ms is None or self._next_id != state.next_id:
            self._empty_since_ms, self._next_id = now, state.next_id
        return now - self._empty_since_ms >= self._max_ms

    def _was_unread(self, queue: Idling, now: int) -> bool:
        lost = queue.counts.discarded
        if queue.settings.expire_to_queue is None:
            lost += queue.counts.expired_items
        is_read = queue.reserved.by_id or queue.journal.cursors or queue.taken_ms != self._taken_ms
        if self._unread_since_ms is None or is_read:
            self._unread_since_ms, self._taken_ms, self._lost = now, queue.taken_ms, lost
        self._lost = min(self._lost, lost)  # statistics may have been reset
        return lost > self._lost and now - self._unread_since_ms >= self._max_ms

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
    """Since when a queue has been empty, or a child has lost items unread, as far as `has_passed` has seen.

    A child gets items from its parent for as long as it exists, so one that was forgotten is never empty for
    long. It is idle, too, while nobody reads it and it loses items: they expire, or are discarded because it
    is full.
    """

    __slots__ = ("_empty_since_ms", "_losing_since_ms", "_lost", "_max_ms", "_next_id", "_taken_ms")

    def __init__(self, max_ms: int) -> None:
        self._max_ms = max_ms
        # since when it is empty, None if it was not; and the id of the next item then
        self._empty_since_ms: int | None = None
        self._next_id = 0
        # since when it loses items unread, None if it does not; how many were lost when it was read last, and
        # when the last item was fetched
        self._losing_since_ms: int | None = None
        self._lost = 0
        self._taken_ms = -1

    def has_passed(self, queue: Idling, now: int, *, has_children: bool) -> bool:
        """Return whether the queue was idle for `max_ms`; to be asked a few times a second. One with children
        is not."""
        is_used = has_children or bool(queue.waiters or queue.waiting_cursors)
        self._note_emptiness(queue, now, is_used=is_used)
        if queue.name.find(b"+") > 0:
            self._note_losses(queue, now, is_used=is_used)
        since = (self._empty_since_ms, self._losing_since_ms)
        return any(now - each >= self._max_ms for each in since if each is not None)

    def _note_emptiness(self, queue: Idling, now: int, *, is_used: bool) -> None:
        state = queue.journal.state
        if is_used or state.items or queue.journal.delayed.items:
            self._empty_since_ms = None
        # an item may have been set and removed between two looks
        elif self._empty_since_ms is None or self._next_id != state.next_id:
            self._empty_since_ms, self._next_id = now, state.next_id

    def _note_losses(self, queue: Idling, now: int, *, is_used: bool) -> None:
        lost = queue.counts.discarded
        if queue.settings.expire_to_queue is None:
            lost += queue.counts.expired_items
        is_held = queue.reserved.by_id or queue.journal.cursors
        if is_used or is_held or queue.taken_ms != self._taken_ms:
            self._losing_since_ms, self._taken_ms, self._lost = None, queue.taken_ms, lost
        self._lost = min(self._lost, lost)  # statistics may have been reset
        if lost > self._lost and self._losing_since_ms is None:
            self._losing_since_ms = now

"""How long a queue has been idle; one that was so for `max_queue_age` is deleted."""

from typing import Protocol

from darner.journal.journal import Journal
from darner.queues.waiters import Reader, Waiters


class Idling(Protocol):
    """The queue that may be idle."""

    journal: Journal
    waiters: Waiters
    waiting_cursors: dict[Reader, None]


class IdleTime:
    """Since when a queue has had no items and no clients that wait, as far as `has_passed` has seen."""

    __slots__ = ("_max_ms", "_next_id", "_since_ms")

    def __init__(self, max_ms: int) -> None:
        self._max_ms = max_ms
        # None if the queue was not idle
        self._since_ms: int | None = None
        # the id of the next item then
        self._next_id = 0

    def has_passed(self, queue: Idling, now: int) -> bool:
        """Return whether the queue was idle for `max_ms`; to be asked a few times a second."""
        state = queue.journal.state
        if state.items or queue.journal.delayed.items or queue.waiters or queue.waiting_cursors:
            self._since_ms = None
            return False
        # an item may have been set and removed between two looks
        if self._since_ms is None or self._next_id != state.next_id:
            self._since_ms, self._next_id = now, state.next_id
        return now - self._since_ms >= self._max_ms

# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The limits of a queue, and what is done when it is full: items are refused, or the oldest discarded.

Waiting and delayed items count, reserved ones do not, as in Kestrel.
"""

import contextlib
from typing import Protocol

from darner.config.settings import QueueSettings
from darner.errors import ItemTooLargeError, JournalError, QueueFullError
from darner.journal.journal import Journal
from darner.queues.expiry import EXPIRED_AT_ONCE, Expiring, Expiry
from darner.queues.reservations import Reserved

# How many items a full queue discards in one go, and then with each slice of its sweep: there are more when
# its limits were lowered.
DISCARDED_AT_ONCE = 1024

# In place of a limit that is not set.
UNLIMITED = 1 << 62


def _limit(most: int | None) -> int:
    return UNLIMITED if most is None else min(most, UNLIMITED)


class Limited(Expiring, Protocol):
    """The queue that has the limits."""

    expiry: Expiry


class Limits:
    """The most items and bytes that a queue may have, and the largest item."""

    __slots__ = (
        "_discards_old", "_journal", "_max_bytes", "_max_item_size", "_max_items", "_reserved", "are_set",
        "needs_upkeep", "uploading_bytes",
    )  # fmt: skip

    def __init__(self, journal: Journal, reserved: Reserved) -> None:
        self._journal = journal
        self._reserved = reserved
        # in memory, of items that are still being received
        self.uploading_bytes = 0
        # whether there was more to discard than is done in one go
        self.needs_upkeep = False

    def configure(self, settings: QueueSettings) -> None:
        """Take over the settings."""
        self._max_items = _limit(settings.max_items)
        self._max_bytes = _limit(settings.max_bytes)
        self._max_item_size = _limit(settings.max_item_size)
        self._discards_old = settings.discard_old_when_full
        self.are_set = min(self._max_items, self._max_bytes, self._max_item_size) < UNLIMITED

    # A new item

    def check(self, queue: Limited, size: int, *, may_expire: bool) -> None:
        """Raise ItemTooLargeError or QueueFullError if the queue cannot be made to take an item of `size`
        bytes; with `may_expire` it may do so at the cost of expired items. Changes nothing."""
        self._check_size(size)
        if self._is_full(size):
            self._check_full(queue, size, may_expire=may_expire)

    def make_room(self, queue: Limited, size: int) -> None:
        """Have room for an item of `size` bytes, at the cost of expired items and, where the settings say so,
        of the oldest. Raises as `check` does, and JournalError."""
        self._check_size(size)
        if not self._is_full(size):
            return
        self._check_full(queue, size, may_expire=True)
        self._journal.check()
        self.expire_for(queue, size)
        if self._is_full(size):
            self._check_full(queue, size, may_expire=False)
            self.discard_for(queue, size)

    def expire_for(self, queue: Limited, size: int) -> None:
        """Move or drop expired items at the head if there is no room for an item of `size` bytes."""
        if self._is_full(size):
            with contextlib.suppress(JournalError):  # then they stay, and there is less room
                queue.expiry.expire_head(queue, queue.times.now(), queue.settings.max_expire_sweep)

    def discard_for(self, queue: Limited, size: int) -> None:
        """Discard the oldest items until there is room for one of `size` bytes; if they are too many, some of
        them, and the sweep goes on."""
        left = DISCARDED_AT_ONCE
        while self._is_full(size) and queue.window.fill():
            if not left:
                self._discard_later(queue)
                return
            self._discard_first(queue)
            left -= 1

    def count_upload(self, size: int) -> None:
        """Count `size` more bytes of items that are being received in memory. QueueFullError if these have
        more bytes than the queue may have."""
        if self.uploading_bytes + size > self._max_bytes:
            raise QueueFullError("as many bytes as it may have are on their way")
        self.uploading_bytes += size

    # An item that is in the queue already, or limits that were lowered

    def discard_excess(self, queue: Limited, size: int) -> None:
        """Make up for an item of `size` bytes that was moved here and may have taken the queue over its
        limits: expire items at the head, then discard the oldest if the settings say so. Does nothing if
        there could be no room for the item anyway."""
        if not self._discards_old or size > self._max_item_size or self._is_hopeless(size):
            return
        window = queue.window
        last_id = self._journal.state.next_id - 1
        now = queue.times.now()
        with contextlib.suppress(JournalError):  # then they stay
            left = EXPIRED_AT_ONCE
            while (
                left
                and self._has_excess(queue, last_id)
                and not window.has_item_leaving
                and queue.has_expired(window.items[0], now)
            ):
                queue.expire_first()
                left -= 1
        with contextlib.suppress(JournalError):  # then the queue stays over its limits
            self._discard_before(queue, last_id)

    def sweep(self, queue: Limited) -> bool:
        """Discard some of the items there are too many of; returns whether there are more."""
        self.needs_upkeep = False
        if self._discards_old and self._journal.state.items:
            self._discard_before(queue, self._journal.state.next_id - 1)
        return self.needs_upkeep

    def _discard_before(self, queue: Limited, last_id: int) -> None:
        left = DISCARDED_AT_ONCE
        while self._has_excess(queue, last_id):
            if not left:
                self._discard_later(queue)
                return
            self._discard_first(queue)
            left -= 1

    def _has_excess(self, queue: Limited, last_id: int) -> bool:
        """Return whether there are too many items or bytes, and an item before `last_id` to remove."""
        window = queue.window
        return self._are_over(-1, 0) and window.fill() and window.items[0].id != last_id

    def _discard_later(self, queue: Limited) -> None:
        self.needs_upkeep = True
        queue.on_upkeep_due(queue)

    def _discard_first(self, queue: Limited) -> None:
        self._journal.remove(queue.window.items[0])
        queue.window.pop()
        queue.counts.discarded += 1

    # Whether it is too much

    def _check_size(self, size: int) -> None:
        if size > self._max_item_size:
            raise ItemTooLargeError(f"{size} bytes, and at most {self._max_item_size} are taken")

    def _check_full(self, queue: Limited, size: int, *, may_expire: bool) -> None:
        """Raise QueueFullError unless this full queue can be made to take an item of `size` bytes."""
        if self._is_hopeless(size):
            raise QueueFullError("no room even if nothing waited")
        if self._discards_old:
            return
        # an item that is not in memory may have expired
        first = next(iter(queue.window), None)
        if not may_expire or (first is not None and not queue.has_expired(first, queue.times.now())):
            raise QueueFullError("the queue is full")

    def _is_hopeless(self, size: int) -> bool:
        """Return whether delayed items alone leave no room for an item of `size` bytes."""
        journal = self._journal
        return journal.delayed.items >= self._max_items or journal.delayed.bytes + size > self._max_bytes

    def _is_full(self, size: int) -> bool:
        return self._are_over(0, size)

    def _are_over(self, items: int, size: int) -> bool:
        """Return whether the queue would be over its limits with so many more items than one, and `size` more
        bytes."""
        journal = self._journal
        state = journal.state
        items += state.items + journal.delayed.items - len(self._reserved.by_id)
        size += state.bytes + journal.delayed.bytes - self._reserved.bytes
        return items >= self._max_items or size > self._max_bytes

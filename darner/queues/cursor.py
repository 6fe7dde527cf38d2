"""Cursors: durable places in a queue, which read its items in their order and remove none.

The queue's other clients see nothing of what a cursor has read; an item that they remove before the cursor
comes to it is skipped. The place is kept in the queue's journal.
"""

from bisect import bisect_left, insort
from collections.abc import Collection
from weakref import WeakValueDictionary

from darner._records import Item
from darner.errors import DamagedItemError, JournalError
from darner.journal import lookup, losses
from darner.journal.blob import BlobReader
from darner.journal.journal import Journal
from darner.journal.layout import MAX_ATTEMPTS
from darner.journal.lookup import MAX_STRIKES
from darner.queues import browsing
from darner.queues.counts import Counts
from darner.queues.expiry import EXPIRED_AT_ONCE
from darner.queues.queue import Queue
from darner.queues.reservations import Reserved
from darner.queues.waiters import Waiter, Waiters

# Between the name of a queue and that of a cursor, in a request.
MARK = b"/cursor="


def cursor_lags(queue: Queue) -> list[tuple[bytes, int]]:
    """Return the label of each cursor of `queue` that has a place, and how many items it has still to
    read."""
    journal = queue.journal
    lags = []
    for label, (start, *unread) in sorted(journal.cursors.items()):
        cursor = queue.cursors.get(label)
        reserved: Collection[int] = cursor.reserved_ids if cursor is not None else ()
        returned = sum(id not in reserved and journal.live.is_live(id) for id in unread)
        lags.append((label, returned + _live_from(journal, start)))
    return lags


def _live_from(journal: Journal, start: int) -> int:
    """Return how many items from id `start` on are live. Ahead of the queue's readers it may be too many, by
    as many as were removed there between live ones: where they were is not known without reading."""
    state, live = journal.state, journal.live
    if start <= state.floor:
        return state.items - sum(id < start for id in live.kept)
    if start <= journal.next_unread:
        before = start - state.floor - sum(id < start for id in live.removed)
        return state.items - len(live.kept) - before
    were_read = max(0, journal.next_unread - state.floor - len(live.removed))
    unread = state.items - len(live.kept) - were_read
    return max(0, min(state.next_id - start, unread))


class Cursor:
    """A place in a queue that is fetched from like a `Queue`.

    Methods that touch items raise JournalError if the journal refuses.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_next_id", "_returned", "label", "name", "queue", "reserved", "waiters",
    )  # fmt: skip

    def __init__(self, queue: Queue, label: bytes) -> None:
        """Take up the place that the journal has for `label`; or begin with the oldest item, and become one
        of the queue's cursors once an item was read."""
        self.queue = queue
        self.name = queue.name + MARK + label
        self.label = label
        self.reserved = Reserved()
        self.waiters = Waiters()
        # the id that is read next, and those before it of items that came back
        self._next_id, *self._returned = queue.journal.cursors.get(label, [0])
        # how often each of these, and of the reserved items, has come back here since the start
        self._attempts: dict[int, int] = {}
        if label in queue.journal.cursors:
            queue.cursors[label] = self

    def reset(self) -> None:
        """Drop the place: the next item is the oldest."""
        if self.label in self.queue.journal.cursors:
            self.queue.journal.keep_cursor(self.label, [])
            self.queue.cursors.pop(self.label, None)
        self.clear()
        self.serve()

    def clear(self) -> None:
        """Forget the place: it is dropped, or its queue is deleted."""
        self._next_id = 0
        self._returned.clear()
        self._attempts.clear()
        self.reserved.clear()

    def _keep(self, next_id: int, returned: Collection[int], reserved: Collection[int]) -> None:
        # reserved items count as not read, for a crash may take their client along
        unread = sorted([*returned, *reserved]) if returned or reserved else ()
        queue, label = self.queue, self.label
        queue.journal.keep_cursor(label, [next_id, *unread])
        queue.cursors[label] = self

    @property
    def counts(self) -> Counts:
        """What has happened to the queue."""
        return self.queue.counts

    @property
    def reserved_ids(self) -> Collection[int]:
        """The ids of the items that are reserved here."""
        return self.reserved.by_id.keys()

    # Out

    def peek(self) -> Item | None:
        """Return the next item and leave the cursor where it is."""
        for _ in range(MAX_STRIKES):
            item = self._first()
            if item is None or not item.blob:
                return item
            try:
                lookup.check_blob(self.queue.journal, item)
            except DamagedItemError as damage:
                self._skip_damaged(item, damage)
            else:
                return item
        raise losses.pause(self.queue.journal)

    def peek_from(self, id: int) -> Item | None:
        """Return the item with the least id from `id` on that is still to be read here, and leave the cursor
        where it is; None if there is none. NotReadyError may say where to go on, so that a long look takes
        many turns."""
        queue = self.queue
        journal, now = queue.journal, queue.times.now()
        for _ in range(EXPIRED_AT_ONCE):
            place = bisect_left(self._returned, id)
            if place < len(self._returned):
                id = self._returned[place]
                item = lookup.find_live(journal, id)
            else:
                item = lookup.next_live(journal, max(id, self._next_id))
                if item is None:
                    return None
                id = item.id
            if item is not None and not queue.has_expired(item, now):
                item = browsing.whole(queue, item)
                if item is not None:
                    return item
            id += 1
        raise browsing.pause(journal, id)

    def _first(self) -> Item | None:
        queue = self.queue
        journal = queue.journal
        item = self._first_returned() if self._returned else None
        expired = 0
        while item is None:
            item = journal.staged_from(self._next_id) or lookup.next_live(journal, self._next_id)
            if item is None:
                break
            self._next_id = item.id
            if queue.has_expired(item, queue.times.now()):
                self._next_id += 1
                item = None
                expired += 1
                if expired == EXPIRED_AT_ONCE:
                    raise losses.pause(journal)
        return item

    def _skip_damaged(self, item: Item, damage: DamagedItemError) -> None:
        """Put the next item aside, which is damaged, and move on."""
        self.queue.quarantine(item, damage)
        if self._returned:
            self._forget_returned()
        else:
            self._next_id = item.id + 1

    def _first_returned(self) -> Item | None:
        queue = self.queue
        expired = 0
        while self._returned:
            item = lookup.find_live(queue.journal, self._returned[0])
            if item is not None and not queue.has_expired(item, queue.times.now()):
                return self._with_attempts(item)
            self._forget_returned()
            expired += 1
            if expired == EXPIRED_AT_ONCE:
                raise losses.pause(queue.journal)
        return None

    def _forget_returned(self) -> None:
        self._attempts.pop(self._returned.pop(0), None)

    def _with_attempts(self, item: Item) -> Item:
        """Return an item as one that has come back here as well as to the queue."""
        attempts = self._attempts.get(item.id)
        if attempts:
            item = item.another()
            item.attempts = min(item.attempts + attempts, MAX_ATTEMPTS)
        return item

    def pop(self) -> Item | None:
        """Return the next item and move on."""
        item = self.take()
        if item is not None:
            self.close(item)
        return item

    def take(self) -> Item | None:
        """As `pop`, but a large item is only reserved: to be closed once its bytes were found whole."""
        if not (self._returned or self._attempts or self.reserved.by_id):
            # mostly one call of what is compiled is enough
            read = self.queue.read_staged(self.label, self._next_id)
            if read is not None:
                self._next_id = read.id + 1
                return read
        item = self.peek()
        if item is not None and item.blob:
            return self._reserve(item)
        if item is not None:
            self._move_past(item, self.reserved.by_id)
            if self._attempts:
                self._attempts.pop(item.id, None)
        return item

    def reserve(self) -> Item | None:
        """Return the next item, which counts as read when it is closed."""
        item = self.peek()
        return None if item is None else self._reserve(item)

    def _reserve(self, item: Item) -> Item:
        self._move_past(item, [*self.reserved_ids, item.id])
        # the journal may have this one yet to be written, with its bytes
        item = item.another()
        self.reserved.add(item)
        return item

    def _move_past(self, item: Item, reserved: Collection[int]) -> None:
        if self._returned:
            next_id, returned = self._next_id, self._returned[1:]
        else:
            next_id, returned = item.id + 1, self._returned
        self._keep(next_id, returned, reserved)
        self._next_id, self._returned = next_id, returned

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of an item that was fetched, whose data is None: see `Queue.open_blob`."""
        return self.queue.open_blob(item)

    def is_reserved(self, item: Item) -> bool:
        """Return whether an item that was reserved still is."""
        return item.is_reserved

    def close(self, item: Item) -> None:
        """Count a reserved item as read."""
        if item.is_reserved:
            self._keep(self._next_id, self._returned, self.reserved.by_id.keys() - {item.id})
            self.reserved.remove(item)
            self._attempts.pop(item.id, None)

    def give_back(self, item: Item) -> None:
        """As `abort`, but as if the item had never been fetched."""
        if item.is_reserved:
            self.reserved.remove(item)
            insort(self._returned, item.id)
            self.serve()

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """Put aside an item that was fetched or looked at, and whose file is damaged: see
        `Queue.quarantine`."""
        self.queue.quarantine(item, damage)
        self.close(item)

    def abort(self, item: Item) -> None:
        """Have a reserved item read again, before those that come after it."""
        if item.is_reserved:
            self._attempts[item.id] = self._attempts.get(item.id, 0) + 1
            self.give_back(item)

    def left_ms(self, item: Item) -> int | None:
        """Return in how many ms an item expires: see `Queue.left_ms`."""
        return self.queue.left_ms(item)

    def waited_ms(self, item: Item) -> int:
        """Return how many ms ago an item was set."""
        return self.queue.waited_ms(item)

    def begin_return(self) -> Journal:
        """Prepare for many calls of `abort`, in any order: each item finds its place."""
        return self.queue.journal

    def end_return(self) -> None:
        """Do nothing: the items are back."""

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have a client served when there is an item to read, first come, first served."""
        waiter.sources[self] = None
        self.waiters[waiter] = None
        self.queue.waiting_cursors[self] = None

    def leave(self, waiter: Waiter) -> None:
        """Have a client wait no longer."""
        self.waiters.pop(waiter, None)
        waiter.sources.pop(self, None)
        if not self.waiters:
            self.queue.waiting_cursors.pop(self, None)

    def serve(self) -> None:
        """Give the items that can be read to the clients that wait here."""
        self.waiters.serve(self)


class Cursors:
    """The cursors in use. Two readers of a cursor that has no place yet must read through the same object."""

    __slots__ = ("in_use",)

    def __init__(self) -> None:
        self.in_use: WeakValueDictionary[tuple[Queue, bytes], Cursor] = WeakValueDictionary()

    def get(self, queue: Queue, label: bytes) -> Cursor:
        """Return the cursor over `queue` that `label` names."""
        cursor = self.in_use.get((queue, label))
        if cursor is None:
            cursor = self.in_use[queue, label] = Cursor(queue, label)
        return cursor

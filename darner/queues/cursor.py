"""A durable place in a queue: reads its items in order and removes none.

What a cursor has read is its own affair: the queue's readers see nothing of it, and what they remove before
the cursor comes to it is skipped. The place is in the queue's journal.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable

from darner._records import Item
from darner.errors import DamagedItemError, JournalError
from darner.journal import reading
from darner.journal.blob import BlobReader
from darner.journal.journal import Journal
from darner.journal.reading import MAX_STRIKES
from darner.queues.queue import EXPIRED_AT_ONCE, Queue, Waiter, serve_waiters

# between the name of a queue and that of a cursor, in a request
MARK = b"/cursor="


class Cursor:
    """Fetched from like a `Queue`. Methods that touch items raise JournalError if the journal refuses."""

    __slots__ = ("__weakref__", "_back", "_next", "label", "name", "queue", "reserved", "waiters")

    def __init__(self, queue: Queue, label: bytes) -> None:
        """Take up the place that the journal has for `label`; or begin with the oldest item, and be one of
        the queue's cursors once something was read."""
        self.queue = queue
        self.name = queue.name + MARK + label
        self.label = label
        self.reserved: dict[int, Item] = {}
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        # the id that is read next, and those before it that came back
        self._next, *self._back = queue.journal.cursors.get(label, [0])
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
        """The queue is deleted, and the place with it."""
        self._next = 0
        self._back.clear()
        self.reserved.clear()

    def _keep(self, next: int, back: Iterable[int], reserved: Iterable[int]) -> None:
        # what is reserved counts as not read, for a crash may take its reader along
        self.queue.journal.keep_cursor(self.label, [next, *sorted([*back, *reserved])])
        self.queue.cursors[self.label] = self

    @property
    def transactions(self) -> int:
        """How many `/open` there were, on the queue itself, too."""
        return self.queue.transactions

    @transactions.setter
    def transactions(self, count: int) -> None:
        self.queue.transactions = count

    # Out

    def peek(self) -> Item | None:
        """Return the next item and leave the cursor where it is."""
        for _ in range(MAX_STRIKES):
            item = self._first()
            if item is None or not item.blob:
                return item
            try:
                reading.check_blob(self.queue.journal, item)
            except DamagedItemError as damage:
                self._pass_by(item, damage)
            else:
                return item
        raise self.queue.journal.pause()

    def _first(self) -> Item | None:
        queue = self.queue
        item = self._come_back()
        expired = 0
        while item is None and (item := reading.next_live(queue.journal, self._next)) is not None:
            self._next = item.id
            if queue.has_expired(item):
                self._next += 1
                item = None
                expired += 1
                if expired == EXPIRED_AT_ONCE:
                    raise queue.journal.pause()
        return item

    def _pass_by(self, item: Item, damage: DamagedItemError) -> None:
        """The next item is damaged."""
        self.queue.quarantine(item, damage)
        if self._back:
            del self._back[0]
        else:
            self._next = item.id + 1

    def _come_back(self) -> Item | None:
        expired = 0
        while self._back:
            item = reading.find_live(self.queue.journal, self._back[0])
            if item is not None and not self.queue.has_expired(item):
                return item
            del self._back[0]
            expired += 1
            if expired == EXPIRED_AT_ONCE:
                raise self.queue.journal.pause()
        return None

    def pop(self) -> Item | None:
        """Return the next item and move on."""
        item = self.take()
        if item is not None:
            self.close(item)
        return item

    def take(self) -> Item | None:
        """As `pop`, but a large item is only reserved: to be closed once its bytes were found whole."""
        item = self.peek()
        if item is not None and item.blob:
            return self._reserve(item)
        if item is not None:
            self._move_past(item, self.reserved)
        return item

    def reserve(self) -> Item | None:
        """Return the next item, which counts as read when it is closed."""
        item = self.peek()
        return None if item is None else self._reserve(item)

    def _reserve(self, item: Item) -> Item:
        self._move_past(item, [*self.reserved, item.id])
        # the journal may have this one yet to be written, with its bytes
        item = item.another()
        self.reserved[item.id] = item
        return item

    def _move_past(self, item: Item, reserved: Iterable[int]) -> None:
        next, back = (self._next, self._back[1:]) if self._back else (item.id + 1, self._back)
        self._keep(next, back, reserved)
        self._next, self._back = next, back

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of an item that was fetched, whose data is None: see `Queue.open_blob`."""
        return self.queue.open_blob(item)

    def is_reserved(self, item: Item) -> bool:
        """Whether an item that was reserved still is."""
        return self.reserved.get(item.id) is item

    def close(self, item: Item) -> None:
        """Count a reserved item as read."""
        if self.is_reserved(item):
            self._keep(self._next, self._back, self.reserved.keys() - {item.id})
            del self.reserved[item.id]

    def give_back(self, item: Item) -> None:
        """As `abort`."""
        self.abort(item)

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """An item that was fetched, or looked at, has a damaged file: see `Queue.quarantine`."""
        self.queue.quarantine(item, damage)
        self.close(item)

    def abort(self, item: Item) -> None:
        """Have a reserved item read again, before those that come after it."""
        if self.is_reserved(item):
            del self.reserved[item.id]
            insort(self._back, item.id)
            self.serve()

    def forget_data(self, item: Item) -> None:
        """See `Queue.forget_data`."""
        self.queue.forget_data(item)

    def begin_return(self) -> Journal:
        """Many items are about to come back: each finds its place."""
        return self.queue.journal

    def end_return(self) -> None:
        """They are back."""

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have `waiter` served when there is an item to read, first come, first served."""
        waiter.queue = self
        self.waiters[waiter] = None
        self.queue.awaited[self] = None

    def leave(self, waiter: Waiter) -> None:
        """Have `waiter` wait no longer."""
        self.waiters.pop(waiter, None)
        if not self.waiters:
            self.queue.awaited.pop(self, None)

    def serve(self) -> None:
        """There may be an item: give it to who waits."""
        serve_waiters(self)

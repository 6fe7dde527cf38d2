# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One FIFO: items come in at the end, and are fetched or reserved at the head.

Pure logic over a journal: no socket, no event loop, and the clock is handed in. When a method returns, what
it has changed is in the journal's log. No part of a queue refers back to it, so that it is freed without the
collector.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from darner._records import Item, new_item
from darner.config.settings import QueueSettings
from darner.environment.timeline import Timeline
from darner.errors import DamagedItemError, JournalError
from darner.journal import lookup, losses
from darner.journal.blob import BlobReader
from darner.journal.dedup_ids import Once
from darner.journal.journal import Journal
from darner.journal.layout import MAX_ATTEMPTS
from darner.journal.lookup import MAX_STRIKES
from darner.journal.wal_sync import Client
from darner.queues import browsing
from darner.queues.counts import Counts
from darner.queues.dedup import Dedup
from darner.queues.disposal import Disposal
from darner.queues.due_items import Delayed
from darner.queues.expiry import EXPIRED_AT_ONCE, Expiry
from darner.queues.idle_time import IdleTime
from darner.queues.item_window import Window
from darner.queues.limits import Limits
from darner.queues.reservations import Reserved
from darner.queues.waiters import Reader, Waiter, Waiters

# memcached's rule: a larger expiry is a date, in seconds of the Unix epoch.
MAX_RELATIVE_S = 60 * 60 * 24 * 30

# What later dates are taken for, in ms of the Unix epoch: the year 287,396.
MAX_DATE_MS = 1 << 53

# The settings of a queue for which nothing is set.
DEFAULTS = QueueSettings()


def expires_ms(exptime: int, now_ms: int) -> int:
    """Return the stamp at which an item expires that is set with memcached's `exptime`; 0 is never."""
    if exptime == 0:
        return 0
    if exptime < 0:
        return 1
    if exptime > MAX_DATE_MS // 1000:  # before it is multiplied: it has 64 bits
        return MAX_DATE_MS
    return (exptime * 1000 + now_ms) if exptime <= MAX_RELATIVE_S else exptime * 1000


def _returned(item: Item) -> Item:
    """Return what a reserved item is once it comes back: another object, so that the client that held it
    cannot take it for its own when another client has it."""
    item = item.another()
    item.attempts = min(item.attempts + 1, MAX_ATTEMPTS)
    return item


class Sync(Protocol):
    """The method of that name of `Syncing`."""

    def __call__(
        self,
        queues: "Sequence[Queue]",
        client: Client,
        slot: int,
        *,
        asked: bool,
        repeated: "Sequence[Queue]" = (),
    ) -> None:
        """Sync what was just set on `queues`."""


def _ignore(*_: object, **_named: object) -> None:
    pass


class Queue:
    """A strict FIFO of items.

    Every method that touches items raises JournalError if the journal refuses the change.
    """

    __slots__ = (
        "__weakref__",
        "_earliest_expiry",
        "_idle_time",
        "_is_serving",
        "_max_age_ms",
        "_max_attempts",
        "_returns",
        "_taken_enqueued_ms",
        "counts",
        "cursors",
        "dedup",
        "delayed",
        "disposal",
        "expiry",
        "has_more_upkeep",
        "is_durable",
        "journal",
        "limits",
        "name",
        "on_fault",
        "on_move",
        "on_sync",
        "on_upkeep_due",
        "reserved",
        "settings",
        "syncs",
        "taken_ms",
        "times",
        "waiters",
        "waiting_cursors",
        "window",
    )

    def __init__(
        self,
        name: bytes,
        journal: Journal,
        times: Timeline,
        settings: QueueSettings = DEFAULTS,
    ) -> None:
        """`times` gives the stamp of the moment, and says what stamps mean."""
        self.name = name
        self.journal = journal
        self.times = times
        # whether its items are on disk
        self.is_durable = journal.log is not None
        self.counts = Counts()
        self.reset_counts()
        self.reserved = Reserved()
        self.window = Window(journal, self.reserved)
        self.expiry = Expiry(journal, self.times)
        # the same object as the expiry has: each set of an item that expires uses it
        self._earliest_expiry = self.expiry.earliest
        self.limits = Limits(journal, self.reserved)
        self.delayed = Delayed(journal, self.times)
        self.dedup = Dedup(journal, self.times)
        self.disposal = Disposal()
        self._idle_time: IdleTime | None = None
        self.waiters = Waiters()
        # whether they are being served: that may come back here, for two queues may move items to each other
        self._is_serving = False
        # the cursors that have a place and were used since the start, by what is behind `cursor=`
        self.cursors: dict[bytes, Reader] = {}
        # the cursors that clients wait at: a set looks at no others
        self.waiting_cursors: dict[Reader, None] = {}
        # how many times `begin_return` was called, and `end_return` not yet
        self._returns = 0
        # when an item was fetched last, and when that one was set; stamps
        self.taken_ms = self._taken_enqueued_ms = 0
        # whether `sweep` has more to do at once
        self.has_more_upkeep = False
        # called when there is something for `sweep` to do, now or later
        self.on_upkeep_due: Callable[[Queue], None] = _ignore
        # Puts an item of this queue into the queues of a name, and returns these, to be served then;
        # JournalError if it cannot be put: then it is in none of them.
        self.on_move: Callable[[Queue, Item, bytes], Sequence[Queue] | None] = _ignore
        # syncs what was set, and holds the reply to that: see `Syncing.sync`
        self.on_sync: Sync = _ignore
        # called with an unexpected error that no request and no sweep would report
        self.on_fault: Callable[[Queue, Exception], None] = _ignore
        self.configure(settings)

    def configure(self, settings: QueueSettings) -> None:
        """Take over these settings."""
        self.settings = settings
        # whether items that are set are synced to the disk, sooner or later
        self.syncs = self.is_durable and settings.sync_ms is not None
        # 0 is none
        self._max_age_ms = settings.max_age_ms or 0
        self._max_attempts = settings.max_attempts or 0
        self.limits.configure(settings)
        self.dedup.window_ms = settings.dedup_window_ms
        self.disposal.configure(self.name, settings)
        self.reserved.set_timeout(settings.open_timeout_ms or 0, self.times.now())
        max_ms = settings.max_queue_age_ms
        self._idle_time = None if max_ms is None else IdleTime(max_ms)
        if self.needs_upkeep:
            self.on_upkeep_due(self)

    # Figures

    def reset_counts(self) -> None:
        """Set what counts events since the start to zero."""
        self.counts.clear()
        self.journal.damaged_items = 0

    @property
    def items(self) -> int:
        """How many items wait; reserved ones do not."""
        return self.journal.state.items - len(self.reserved.by_id)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the waiting items have."""
        return self.journal.state.bytes - self.reserved.bytes

    @property
    def delayed_items(self) -> int:
        """How many items are out of sight until they are due."""
        return self.journal.delayed.items

    @property
    def age_ms(self) -> int:
        """How long the item fetched last had waited; 0 if the queue is empty."""
        return self.times.age_ms(self._taken_enqueued_ms, self.taken_ms) if self.items else 0

    @property
    def head_age_ms(self) -> int:
        """How long the item at the head has waited since it was set; 0 if none waits, or if the journal
        cannot be read."""
        enqueued_ms = self.window.first_enqueued_ms() if self.items else None
        return 0 if enqueued_ms is None else self.times.age_ms(enqueued_ms, self.times.now())

    @property
    def waiting_clients(self) -> int:
        """How many clients wait for an item, here or at a cursor."""
        return len(self.waiters) + sum(len(cursor.waiters) for cursor in self.waiting_cursors)

    # In

    def push(self, record: bytes, flags: int, exptime: int) -> None:
        """Put an item at the end. `record` is its data with room before it, as the parser gives it, `exptime`
        is memcached's.

        Raises QueueFullError or ItemTooLargeError if the limits refuse it.
        """
        now = self.times.now()
        self.append(new_item(record, flags, expires_ms(exptime, now) if exptime else 0, now))

    def append(self, item: Item) -> None:
        """Put an item at the end. Raises as `push` does."""
        if self.limits.are_set:
            self.limits.make_room(self, item.size)
        if item.expires_ms:
            self.note_expiry(item)
        self.journal.put(item)
        self.arrive(item)

    def arrive(self, item: Item) -> None:
        """Take an item that was put at the end in the journal, and serve the clients that wait."""
        # a deferred item that joins again was counted when it was set
        self.counts.total_items += not item.attempts
        self.window.append(item)
        if self.waiters:
            self._serve()
        if self.waiting_cursors:
            self._serve_cursors()

    def push_delayed(self, record: bytes, flags: int, exptime: int, delay_ms: int) -> None:
        """As `push`, but the item is out of sight for `delay_ms`, and joins the end then."""
        self.append_delayed(self.make_item(record, flags, exptime), delay_ms)

    def append_delayed(self, item: Item, delay_ms: int) -> None:
        """Have an item join the end in `delay_ms`. Raises as `push` does."""
        if self.limits.are_set:
            self.limits.make_room(self, item.size)
        self.put(item, delay_ms)

    def make_item(self, record: bytes, flags: int, exptime: int) -> Item:
        """Return an item for `put`, of what `push` takes."""
        now = self.times.now()
        return new_item(record, flags, expires_ms(exptime, now), now)

    def put(self, item: Item, delay_ms: int = 0, once: Once | None = None) -> None:
        """Put an item at the end, or have it join that in `delay_ms`, whatever the limits: see
        `group.make_room`. With `once`, remember the id of its set. Clients that wait are not served before
        `serve`."""
        if once is not None and not self.dedup.needs_upkeep:
            self.on_upkeep_due(self)
        if delay_ms:
            if self.delayed.put(item, self.times.now() + delay_ms, once):
                self.on_upkeep_due(self)
            return
        if item.expires_ms:
            self.note_expiry(item)
        if once is None:
            self.journal.put(item)
        else:
            self.journal.put_once(item, once)
        self.counts.total_items += 1
        self.window.append(item)

    def check(self, size: int, *, may_expire: bool = True) -> None:
        """Raise what `append` of an item of `size` bytes would raise now, and change nothing. With
        `may_expire`, do not raise for a lack of room that expired items may make up for."""
        self.journal.check()
        if self.limits.are_set:
            self.limits.check(self, size, may_expire=may_expire)

    # Out

    def _head(self) -> Item | None:
        """Return the oldest waiting item that has not expired, still in the window."""
        if self._returns:
            raise self.journal.hold_readers()
        window = self.window
        damaged = expired = 0
        while window.fill() or (self.journal.delayed.items and self._join_now()):
            item = window.items[0]
            if not (item.expires_ms or self._max_age_ms) or not self.has_expired(item, self.times.now()):
                if item.record is not None:
                    return item
                found: Item | None = self._check_first(item)
                if found is not None:
                    return found
                damaged += 1
                if damaged == MAX_STRIKES:
                    raise losses.pause(self.journal)
            else:
                self.expire_first()
                expired += 1
                if expired == EXPIRED_AT_ONCE:
                    raise losses.pause(self.journal)
        self.journal.check_whole()
        return None

    def _join_now(self) -> bool:
        """Have items that are due join, for a client that has found nothing; returns whether an item
        waits."""
        now = self.times.now()
        return self.delayed.are_due(now) and self.delayed.join(self, now) and self.window.fill()

    def _check_first(self, item: Item) -> Item | None:
        """Check the bytes of the item at the head, which are not in memory. Returns it, with the bytes unless
        they are in a file; None if they are damaged: then it is put aside."""
        if item.blob:
            try:
                lookup.check_blob(self.journal, item)
            except DamagedItemError as damage:
                self.quarantine(item, damage)
                return None
            return item
        whole = lookup.reload(self.journal, item)
        self.window.pop()
        if whole is not None:
            self.window.put_first(whole)
        return whole

    def _take(self, item: Item) -> None:
        self.window.pop()
        self.taken_ms = self.times.now()
        self._taken_enqueued_ms = item.enqueued_ms

    def pop(self) -> Item | None:
        """Remove the oldest waiting item for good, and return it; None if there is none."""
        item = self.take()
        if item is not None and item.blob:
            self.close(item)
        return item

    def take(self) -> Item | None:
        """As `pop`, but a large item is only reserved: to be removed by `close` once its bytes were found
        whole, before any of them are sent."""
        item = self._head()
        if item is not None:
            if not item.blob:
                self.journal.remove(item)
            self._take(item)
            if item.blob:
                self.reserved.add(item)
        return item

    def reserve(self) -> Item | None:
        """Set the oldest waiting item aside until `close` or `abort`, and return it; None if there is
        none."""
        item = self._head()
        if item is not None:
            self._take(item)
            # the journal may have this one yet to be written, with its bytes
            item = item.another()
            self._set_aside(item)
        return item

    def read_staged(self, label: bytes, start: int) -> Item | None:
        """Return the first item from id `start` on, and move the cursor `label`, which has a place, behind
        it; None, and nothing is done, unless that item is in memory with its bytes and cannot expire."""
        if label not in self.cursors:
            return None
        item = self.journal.staged_from(start)
        if item is None or item.record is None or item.expires_ms or self._max_age_ms:
            return None
        self.journal.keep_cursor(label, [item.id + 1])
        return item

    def _set_aside(self, item: Item) -> None:
        self.reserved.add(item)
        if self.reserved.timeout_ms:
            self.reserved.start_time(item, self.times.now())
            self.on_upkeep_due(self)

    def peek(self) -> Item | None:
        """Return the oldest waiting item and leave it there; None if there is none."""
        return self._head()

    def peek_from(self, id: int) -> Item | None:
        """Return the waiting item with the least id from `id` on and leave the queue as it is; None if there
        is none. NotReadyError may say where to go on, so that a long look takes many turns."""
        if self._returns:
            raise self.journal.hold_readers()
        return browsing.first_from(self, id)

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of an item that was fetched, whose data is None. They take a descriptor: to be
        called just before they are read."""
        return lookup.open_blob(self.journal, item)

    # What becomes of reserved items

    def is_reserved(self, item: Item) -> bool:
        """Return whether an item that was reserved still is."""
        return item.is_reserved

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""
        if item.is_reserved:
            self.journal.remove(item)
            self.reserved.remove(item)

    def abort(self, item: Item) -> None:
        """Put a reserved item back at the head: it is the next one fetched. One that has come back
        `max_attempts` times goes to `dead_letter_queue`, or is dropped."""
        if not item.is_reserved:
            return
        self.reserved.remove(item)
        self.counts.canceled_transactions += 1
        item = _returned(item)
        if self._has_given_up(item):
            return
        with contextlib.suppress(JournalError):  # then only the count of attempts is lost at the next start
            self.journal.note_attempts(item)
        self.window.put_first(item)
        if item.expires_ms:
            self.note_expiry(item)
        self._serve()

    def _has_given_up(self, item: Item) -> bool:
        """Move or drop an item that has come back `max_attempts` times; returns whether it is gone."""
        return bool(
            self._max_attempts and item.attempts >= self._max_attempts and self.disposal.give_up(self, item)
        )

    def defer(self, item: Item, delay_ms: int) -> Journal:
        """Put a reserved item back so that it is out of sight for `delay_ms` and then joins the end. As for
        `abort`, this is an attempt; if the bytes are found damaged the item is put aside. Returns the journal
        that the item is written to.

        JournalError if nothing is taken in now, for the item is written once more: then it stays reserved.
        """
        if not item.is_reserved:
            return self.journal
        self.reserved.remove(item)
        try:
            self._defer(_returned(item), delay_ms)
        except JournalError:
            self._set_aside(item)
            raise
        self.counts.canceled_transactions += 1
        if not delay_ms:
            with contextlib.suppress(JournalError):  # then the sweep has it join
                self.delayed.join(self, self.times.now())
        return self.journal

    def _defer(self, item: Item, delay_ms: int) -> None:
        if self._has_given_up(item):
            return
        whole: Item | None = item
        if item.record is None and not item.blob:
            whole = lookup.reload(self.journal, item)
        if whole is not None and self.delayed.defer(whole, self.times.now() + delay_ms):
            self.on_upkeep_due(self)

    def give_back(self, item: Item) -> None:
        """Put a reserved item back where it was, as if it had never been fetched."""
        if item.is_reserved:
            self.reserved.remove(item)
            self.window.put_back(item)
            if item.expires_ms:
                self.note_expiry(item)
            self._serve()

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """Put aside an item whose file is damaged, and which was fetched, here or by a cursor, or looked at;
        unless another client has it by now. JournalError if that is impossible: then it is as it was."""
        held = self.reserved.by_id.get(item.id)
        if held is not item:
            is_read = item.id < self.journal.next_unread
            if held is not None or (is_read and all(other.id != item.id for other in self.window)):
                return
        losses.quarantine(self.journal, item, damage)
        if held is not None:
            self.reserved.remove(item)
        else:
            self.window.remove({item.id})

    def begin_return(self) -> Journal:
        """Prepare for many calls of `abort`, the youngest item first: until `end_return` nothing is fetched.
        Returns the journal that they are written to."""
        self._returns += 1
        return self.journal

    def end_return(self) -> None:
        """Go on fetching: the items are back."""
        self._returns -= 1
        if not self._returns:
            self.journal.resume()
            self.serve()

    # Expiry

    def left_ms(self, item: Item) -> int | None:
        """Return in how many ms an item expires by itself; None if it does not."""
        return self.times.age_ms(self.times.now(), item.expires_ms) if item.expires_ms else None

    def waited_ms(self, item: Item) -> int:
        """Return how many ms ago an item was set."""
        return self.times.age_ms(item.enqueued_ms, self.times.now())

    def has_expired(self, item: Item, now: int) -> bool:
        """Return whether an item has expired, by its own expiry or by `max_age`."""
        times = self.times
        return bool(
            (item.expires_ms and times.has_passed(item.expires_ms, now))
            or (self._max_age_ms and times.age_ms(item.enqueued_ms, now) >= self._max_age_ms)
        )

    def note_expiry(self, item: Item) -> None:
        """Note when an item expires by itself."""
        if self._earliest_expiry.note(item.expires_ms):
            self.journal.note_expiring(expiring=True)
            self.on_upkeep_due(self)

    def expire_first(self) -> None:
        """Move or drop the item at the head, which has expired; JournalError if it has to stay."""
        item = self.window.items[0]
        self.window.pop()
        try:
            self.disposal.expire(self, item)
        except JournalError:
            self.window.put_first(item)
            raise

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have a client served when an item comes, first come, first served."""
        waiter.sources[self] = None
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Have a client wait no longer."""
        self.waiters.pop(waiter, None)
        waiter.sources.pop(self, None)

    def fail_waiters(self, error: JournalError) -> None:
        """Tell the clients that wait, here or at a cursor, that the queue is out of service."""
        self.waiters.fail(self, error)
        for cursor in list(self.waiting_cursors):
            cursor.waiters.fail(cursor, error)

    def serve(self) -> None:
        """Give the items that wait to the clients that wait, here and at cursors."""
        if self.waiters:
            self._serve()
        if self.waiting_cursors:
            self._serve_cursors()

    def _serve(self) -> None:
        if self._is_serving or self._returns:
            return
        self._is_serving = True
        try:
            self.waiters.serve(self)
        finally:
            self._is_serving = False

    def _serve_cursors(self) -> None:
        for cursor in list(self.waiting_cursors):
            cursor.serve()

    # What time brings

    @property
    def needs_upkeep(self) -> bool:
        """Whether time may bring something for `sweep` to do, or for `is_outdated` to see."""
        return bool(
            self._max_age_ms
            or self._idle_time is not None
            or self.reserved.needs_upkeep
            or self.expiry.needs_upkeep
            or self.delayed.needs_upkeep
            or self.dedup.needs_upkeep
            or self.limits.needs_upkeep
            or self.disposal.needs_upkeep
        )

    def sweep(self, *, may_join: bool = True) -> None:
        """Put back items that were reserved for too long, have delayed items that are due join, and move or
        drop expired ones: some of each. Sets `has_more_upkeep` if there is more to do at once.

        Unless `may_join`, items that are due wait for a client: an item is written once more when it joins,
        and for that there may be no room."""
        self.has_more_upkeep = False
        now = self.times.now()
        self.disposal.remove_moved(self)
        if self.reserved.needs_upkeep:
            self.has_more_upkeep = self.reserved.take_back(self, now)
        if self.delayed.are_due(now) and (may_join or self.waiters):
            if not self.waiters:
                self.journal.check()
            self.has_more_upkeep |= self.delayed.join(self, now)
        if self.dedup.needs_upkeep:
            self.dedup.sweep(now)
        if self.limits.needs_upkeep:
            self.has_more_upkeep |= self.limits.sweep(self)
        if self.expiry.is_due(now):
            self.has_more_upkeep |= self.expiry.sweep(self, now)
        elif self._max_age_ms:
            limit = self.settings.max_expire_sweep
            self.has_more_upkeep |= self.expiry.expire_head(self, now, limit) == limit
        if self.items:
            self.serve()

    def flush_expired(self) -> Iterator[int]:
        """Move or drop all items that have expired, in slices; gives how many there were in each."""
        return self.expiry.flush(self)

    def is_outdated(self, now: int, *, has_children: bool = False) -> bool:
        """Return whether the queue has been idle for `max_queue_age`, as far as was seen when this was
        called; so it is to be called a few times a second."""
        return self._idle_time is not None and self._idle_time.has_passed(
            self, now, has_children=has_children
        )

    # All items at once

    def flush(self) -> None:
        """Discard the waiting items; reserved ones stay so."""
        self.journal.flush(self.reserved.by_id.values())
        self.window.clear()
        self.counts.total_flushes += 1

    def retire(self) -> None:
        """Give up the journal, and with it all items: the queue is deleted."""
        self.journal.retire()
        if self._returns:  # clients that were held back find an empty queue
            self.journal.resume()
        self.reserved.clear()
        self.window.clear()
        for cursor in self.cursors.values():
            cursor.clear()
        self.cursors.clear()

# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One FIFO: what is waiting, what is reserved, who waits for an item.

Pure logic over a journal: no socket, no event loop, and the clocks are handed in. Every method is done
when it returns, and what it changed is in the journal's log. The oldest waiting items are held in memory (the
window); those behind them are read from the journal when the window runs dry.
"""

import contextlib
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from darner._records import CHUNK_BYTES, Item, new_item
from darner.config.settings import QueueSettings
from darner.environment.timeline import Clock, Earliest, Timeline, run_of
from darner.errors import (
    DamagedItemError,
    DarnerError,
    FaultError,
    ItemTooLargeError,
    JournalError,
    QueueFullError,
)
from darner.journal import reading
from darner.journal.blob import BlobReader, read_whole
from darner.journal.journal import Journal
from darner.journal.layout import MAX_ATTEMPTS
from darner.journal.reading import MAX_STRIKES
from darner.journal.segment_file import GROUP_BYTES

# How much of a queue is held in memory; more is left on disk.
WINDOW_BYTES = 1 << 20
# How much is read from the journal at once when the window is empty.
READ_ITEMS = 256
READ_BYTES = 256 << 10

# How many items one fetch gets past that have expired, before others have their turn.
EXPIRED_AT_ONCE = 512

# How many reserved items come back in one go.
RETURNED_AT_ONCE = 256

# How many items a full queue drops in one go, and then with each slice of its sweep: there are more when its
# limits were lowered.
DISCARDED_AT_ONCE = 1024

# How many delayed items join the end of a queue in one go.
JOIN_ITEMS = 256
# How much a slice of a sweep reads from the journal at most.
SWEEP_BYTES = 1 << 20

# memcached's rule: a larger expiry is a date, in seconds of the Unix epoch.
MAX_RELATIVE_S = 60 * 60 * 24 * 30

# What later dates are taken for, in ms of the Unix epoch: the year 287,396.
MAX_DATE_MS = 1 << 53

# Of a queue for which nothing is set.
DEFAULTS = QueueSettings()


def expires_ms(exptime: int, now_ms: int) -> int:
    """When an item set with memcache's `exptime` expires, as a stamp; 0 is never."""
    if exptime == 0:
        return 0
    if exptime < 0:
        return 1
    if exptime > MAX_DATE_MS // 1000:  # before it is multiplied: it has 64 bits
        return MAX_DATE_MS
    return (exptime * 1000 + now_ms) if exptime <= MAX_RELATIVE_S else exptime * 1000


def make_room(queues: Sequence["Queue"], size: int) -> None:
    """Have room for an item of `size` bytes in each of `queues`, at the cost of expired items and, where
    the settings say so, of the oldest. Raises as `Queue.push` if one cannot take it; nothing is discarded
    then."""
    for queue in queues:
        queue.check(size)
    if not any(queue.is_limited for queue in queues):
        return
    for queue in queues:
        queue.expire_for(size)
    # what has expired in one may have moved to another
    for queue in queues:
        queue.check(size, may_expire=False)
    for queue in queues:
        queue.discard_for(size)


def all_or_none(queues: Sequence["Queue"], size: int) -> contextlib.AbstractContextManager[None]:
    """Have an item of `size` bytes that is `put` in each of `queues` be there after a kill in all or in none.
    Nothing else may be done within. Raises JournalError if the log has no room for it."""
    logs = (queue.journal.log for queue in queues)
    log = next((log for log in logs if log is not None), None)
    if log is None or len(queues) == 1:
        return contextlib.nullcontext()
    return log.group(len(queues) * (size + GROUP_BYTES))


def move(item: Item, home: Journal, targets: Sequence["Queue"]) -> None:
    """Put an item that leaves its queue, whose journal is `home`, at the end of each of `targets`, as if it
    were set now, never to expire by itself. It is not refused for its size, but may take a queue over its
    limits. Nobody is served.

    Raises JournalError if one of them cannot take it, DamagedItemError if its file is damaged: then it is
    in none.
    """
    ready: deque[tuple[Queue, Item]] = deque()
    try:
        for target in targets:
            target.journal.check()
        if item.blob and targets:
            reading.check_blob(home, item)
        for target in targets:
            ready.append((target, _adopted(target, item, home)))
        with all_or_none(targets, 0 if item.blob else item.size):
            while ready:
                target, mine = ready[0]
                target.put(mine)
                ready.popleft()
    except JournalError:
        for target, mine in ready:
            if mine.blob:
                target.journal.abandon_blob(mine.blob)
        raise
    for target in targets:
        target.discard_excess(item.size)


def _adopted(target: "Queue", item: Item, home: Journal) -> Item:
    """As `Queue.adopt`; what nobody has provided for is a fault of the target, not of the item's queue."""
    try:
        return target.adopt(item, home)
    except DarnerError:
        raise
    except Exception as error:
        target.on_fault(target, error)
        raise FaultError(error) from error


class Source(Protocol):
    """What is fetched from: a `Queue`, or a cursor over one. See there."""

    name: bytes
    waiters: OrderedDict["Waiter", None]
    transactions: int

    def take(self) -> Item | None: ...  # noqa: D102
    def reserve(self) -> Item | None: ...  # noqa: D102
    def peek(self) -> Item | None: ...  # noqa: D102
    def open_blob(self, item: Item) -> BlobReader: ...  # noqa: D102
    def close(self, item: Item) -> None: ...  # noqa: D102
    def abort(self, item: Item) -> None: ...  # noqa: D102
    def forget_data(self, item: Item) -> None: ...  # noqa: D102
    def give_back(self, item: Item) -> None: ...  # noqa: D102
    def quarantine(self, item: Item, damage: JournalError) -> None: ...  # noqa: D102
    def is_reserved(self, item: Item) -> bool: ...  # noqa: D102
    def begin_return(self) -> Journal: ...  # noqa: D102
    def end_return(self) -> None: ...  # noqa: D102
    def wait(self, waiter: "Waiter") -> None: ...  # noqa: D102
    def leave(self, waiter: "Waiter") -> None: ...  # noqa: D102


class Reader(Source, Protocol):
    """A cursor, as its queue and the broker know it."""

    label: bytes
    reserved: dict[int, Item]

    def reset(self) -> None:
        """Drop the place: the next item is the oldest."""

    def clear(self) -> None:
        """The queue is deleted, and the place with it."""

    def serve(self) -> None:
        """There may be an item: give it to who waits."""


class Waiter:
    """Somebody who waits for an item: how to fetch it for them (`Queue.take`, `reserve` or `peek`), where
    to deliver it, whether they have gone without a word, and how to tell them that none will come. `queue` is
    where they wait."""

    __slots__ = ("deliver", "fail", "fetch", "has_gone", "queue")

    queue: Source

    def __init__(
        self,
        fetch: Callable[[Any], Item | None],
        deliver: Callable[[Any, Any], None],
        has_gone: Callable[[], bool] = lambda: False,
        fail: Callable[[JournalError], None] = lambda _: None,
    ) -> None:
        self.fetch = fetch
        self.deliver = deliver
        self.has_gone = has_gone
        self.fail = fail

    def cancel(self) -> None:
        """Wait no longer."""
        self.queue.leave(self)


def serve_waiters(source: Source) -> None:
    """Give what there is to those who wait, first come, first served."""
    while source.waiters:
        waiter = next(iter(source.waiters))
        if waiter.has_gone():
            waiter.cancel()
            continue
        try:
            item = waiter.fetch(source)
        except JournalError:
            return  # they go on waiting: the queue may recover
        if item is None:
            return
        source.leave(waiter)
        waiter.deliver(source, item)


class Queue:
    """A strict FIFO of items.

    Every method that touches items raises JournalError if the journal refuses. What moves on to another queue
    is put there by `on_move`, which the broker has set.
    """

    __slots__ = (
        "__weakref__",
        "_dead_letter_to",
        "_discards",
        "_due",
        "_expire_to",
        "_idle_id",
        "_idle_ms",
        "_is_overdue",
        "_leaving",
        "_limited",
        "_max_age_ms",
        "_max_attempts",
        "_most_bytes",
        "_moved",
        "_open_timeout_ms",
        "_overdue",
        "_reserved_bytes",
        "_reserved_ms",
        "_returning",
        "_serving",
        "_soonest",
        "_swept",
        "_taken_enqueued_ms",
        "_taken_ms",
        "_unread_enqueued_ms",
        "_unread_id",
        "awaited",
        "canceled_transactions",
        "clock",
        "cursors",
        "discarded",
        "expired_items",
        "has_more_upkeep",
        "is_durable",
        "journal",
        "name",
        "on_fault",
        "on_move",
        "on_upkeep_due",
        "reserved",
        "settings",
        "syncs",
        "times",
        "total_flushes",
        "total_items",
        "transactions",
        "uploading_bytes",
        "waiters",
        "window",
        "window_bytes",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        journal: Journal,
        clock: Clock,
        settings: QueueSettings = DEFAULTS,
        times: Timeline | None = None,
    ) -> None:
        """`clock` gives the stamp of the moment, and `times` says what stamps mean; without it `clock` is the
        wall clock, and they are dates."""
        self.name = name
        self.journal = journal
        self.clock = clock
        self.times = times or Timeline(clock)
        # whether its items are on disk
        self.is_durable = journal.log is not None
        # what the window may take
        self._most_bytes = WINDOW_BYTES
        self.reserved: dict[int, Item] = {}
        self._reserved_bytes = 0
        # when each was reserved, if that matters; the one that has been so longest comes first
        self._reserved_ms: OrderedDict[int, int] = OrderedDict()
        # the ids of those that are coming back for they were reserved for too long, and whether they are many
        self._overdue: list[int] = []
        self._is_overdue = False
        # how many clients have gone of which many items are coming back
        self._returning = 0
        # how many bytes there are in memory of items that are still on their way in
        self.uploading_bytes = 0
        # whether `sweep` has more to do
        self.has_more_upkeep = False
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        # those that have a place and were used since the start, by what is behind `cursor=`; and those
        # somebody waits at, which alone a set has to do with
        self.cursors: dict[bytes, Reader] = {}
        self.awaited: dict[Reader, None] = {}
        # Puts an item of this queue into those of a name, and returns these, whose waiters are to be served
        # then; JournalError if that cannot be, and it is in none.
        self.on_move: Callable[[Queue, Item, bytes], Sequence[Queue] | None] = lambda *_: None
        # what was moved, and is here as well as long as the log cannot say that it is gone
        self._moved: list[Item] = []
        # whether there are items that are neither waiting nor reserved any more, and not gone yet
        self._leaving = False
        # whether those who wait are being served: it may come back here, for two queues may move their items
        # to each other
        self._serving = False
        # told when `sweep` is to be called from now on
        self.on_upkeep_due: Callable[[Queue], None] = lambda _: None
        # told of an error that nobody has provided for, and that no request or sweep would be told of
        self.on_fault: Callable[[Queue, Exception], None] = lambda *_: None
        # when an item was fetched last, and when that one was set
        self._taken_ms = self._taken_enqueued_ms = 0
        # since when it is empty, and the id of the next item then
        self._idle_ms: int | None = None
        self._idle_id = 0
        # no item's own expiry is before this
        self._soonest = Earliest(self.times)
        if journal.expiring:
            self._soonest.note(1)  # it is not known
        # when the first delayed item is due
        self._due = Earliest(self.times)
        self._note_due()
        # the first item behind the window, if that was asked for when the window was empty; no item has id 0
        self._unread_id = 0
        self._unread_enqueued_ms = 0
        # whether it had to drop more than it could in one go
        self._discards = False
        # the id up to which `sweep` has looked for expired items; 0 if it is not about to
        self._swept = 0
        self.configure(settings)
        self.reset_stats()
        self.window: deque[Item] = deque(reading.kept_items(journal))
        self._measure()

    def configure(self, settings: QueueSettings) -> None:
        """Take these settings from now on."""
        self.settings = settings
        # `is_outdated` may not have been asked for long
        self._idle_ms = None
        # whether what is set is synced to the disk, sooner or later
        self.syncs = self.is_durable and settings.sync_ms is not None
        self._limited = not (
            settings.max_items is None and settings.max_bytes is None and settings.max_item_size is None
        )
        # 0 is none
        self._max_age_ms = settings.max_age_ms or 0
        self._max_attempts = settings.max_attempts or 0
        self._open_timeout_ms = settings.open_timeout_ms or 0
        self._expire_to = self._other(settings.expire_to_queue)
        self._dead_letter_to = self._other(settings.dead_letter_queue)
        if not self._open_timeout_ms:
            self._reserved_ms.clear()
        else:
            now = self.clock()
            for id in self.reserved:
                self._reserved_ms.setdefault(id, now)
        if self.needs_upkeep:
            self.on_upkeep_due(self)

    def _other(self, name: str | None) -> bytes | None:
        # a queue that moves its items to itself would never get rid of them
        return name.encode() if name is not None and name.encode() != self.name else None

    def reset_stats(self) -> None:
        """Zero what counts events since the start."""
        self.total_items = 0
        self.expired_items = 0
        self.discarded = 0
        self.journal.damaged_items = 0
        self.transactions = 0
        self.canceled_transactions = 0
        self.total_flushes = 0

    @property
    def needs_upkeep(self) -> bool:
        """Whether time may bring something for `sweep` to do, or `is_outdated` to see."""
        return bool(
            self._max_age_ms
            or self._reserved_ms
            or self._overdue
            or self._swept
            or self._discards
            or not self._soonest.is_never()
            or not self._due.is_never()
            or self._moved
            or self.settings.max_queue_age_ms is not None
        )

    @property
    def items(self) -> int:
        """How many items wait; reserved ones do not."""
        return self.journal.state.items - len(self.reserved)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the waiting items have."""
        return self.journal.state.bytes - self._reserved_bytes

    @property
    def delayed_items(self) -> int:
        """How many items are out of sight until they are due."""
        return self.journal.delayed.items

    @property
    def age_ms(self) -> int:
        """How long the last item fetched had waited; 0 if the queue is empty."""
        return self.times.age_ms(self._taken_enqueued_ms, self._taken_ms) if self.items else 0

    @property
    def head_age_ms(self) -> int:
        """How long the item at the head has waited since it was set; 0 if none waits, or if the journal does
        not tell. That is asked at most once for each item."""
        if not self.items:
            return 0
        if self.window:
            enqueued_ms = self.window[0].enqueued_ms
        elif self._look_behind():
            enqueued_ms = self._unread_enqueued_ms
        else:
            return 0
        return self.times.age_ms(enqueued_ms, self.clock())

    def _look_behind(self) -> bool:
        """Know the first item behind the window, which is empty; returns whether there is one. It is not read
        into the window: there may be many queues."""
        journal = self.journal
        if self._unread_id >= journal.next_unread and journal.live.is_live(self._unread_id):
            return True
        try:
            items, _ = reading.scan(journal, journal.next_unread, 1, 1)
        except JournalError:
            return False
        if items:
            self._unread_id = items[0].id
            self._unread_enqueued_ms = items[0].enqueued_ms
        return bool(items)

    def cursor_lags(self) -> list[tuple[bytes, int]]:
        """The label of each cursor that has read something, and how many items it has still to read."""
        journal = self.journal
        lags = []
        for label, (start, *back) in sorted(journal.cursors.items()):
            reserved: Collection[int] = self.cursors[label].reserved if label in self.cursors else ()
            came_back = sum(id not in reserved and journal.live.is_live(id) for id in back)
            lags.append((label, came_back + journal.live.count_from(start, journal.next_unread)))
        return lags

    # In

    def push(self, record: bytes, flags: int, exptime: int) -> None:
        """Put an item at the end. `record` is its data with room before it, as the parser gives it, `exptime`
        is memcache's.

        Raises QueueFullError or ItemTooLargeError if the settings do not let it in.
        """
        now = self.clock()
        self.append(new_item(record, flags, expires_ms(exptime, now) if exptime else 0, now))

    def append(self, item: Item) -> None:
        """Put `item` at the end. Raises as `push` does."""
        if self._limited:
            self._make_room(item.size)
        if item.expires_ms:
            self._expect(item)
        self.journal.put(item)
        self._come(item)

    def _line_up(self, item: Item) -> None:
        """An item was put in the journal."""
        journal = self.journal
        self.total_items += 1
        if journal.next_unread == item.id and self.window_bytes < self._most_bytes:
            journal.next_unread += 1
            self.window.append(item)
            self.window_bytes += item.memory_bytes

    def _come(self, item: Item) -> None:
        """An item was put in the journal, and who waits is served."""
        self._line_up(item)
        if self.waiters:
            self._serve()
        if self.awaited:
            self._show()

    def serve(self) -> None:
        """There may be an item: give it to who waits, on the queue itself and on its cursors."""
        if self.waiters:
            self._serve()
        if self.awaited:
            self._show()

    def _show(self) -> None:
        for cursor in list(self.awaited):
            cursor.serve()

    def push_delayed(self, record: bytes, flags: int, exptime: int, delay_ms: int) -> None:
        """As `push`, but the item is out of sight for `delay_ms`, and joins the end then."""
        self.delay(self.item(record, flags, exptime), delay_ms)

    def item(self, record: bytes, flags: int, exptime: int) -> Item:
        """Return an item for `put`: see `push`."""
        now = self.clock()
        return new_item(record, flags, expires_ms(exptime, now), now)

    def delay(self, item: Item, delay_ms: int) -> None:
        """Have `item` join the end in `delay_ms`. Raises as `push` does."""
        if self._limited:
            self._make_room(item.size)
        self._delay(item, delay_ms)

    def put(self, item: Item, delay_ms: int = 0) -> None:
        """Put `item` at the end, or have it join that in `delay_ms`, whatever the limits: see `make_room`.
        Who waits for it is not served before `serve`."""
        if delay_ms:
            self._delay(item, delay_ms)
            return
        if item.expires_ms:
            self._expect(item)
        self.journal.put(item)
        self._line_up(item)

    def _delay(self, item: Item, delay_ms: int) -> None:
        due_ms = min(self.clock() + delay_ms, self.times.last)
        self.journal.delay(item, due_ms)
        if self._due.note(due_ms):
            self.on_upkeep_due(self)

    def _note_due(self) -> None:
        self._due.clear()
        for due_ms in self.journal.delayed.next_due.values():
            self._due.note(due_ms)

    def _join(self, now: int) -> bool:
        """Have delayed items that are due join the end, as if they were set now; whether any did."""
        journal, times = self.journal, self.times
        # who waits is served on the way, and must not have later ones join before these
        self._due.clear()
        joined = False
        try:
            # Cython cannot bind a method of what is typed
            date_ms = lambda stamp: times.date_ms(stamp)  # noqa: E731, PLW0108
            for key, item in reading.due(journal, now, JOIN_ITEMS, READ_BYTES, date_ms):
                if item.expires_ms:
                    self._expect(item)
                self._come(journal.join(key, item, now))
                joined = True
        except JournalError:
            journal.delayed.next_due[run_of(now)] = now
            raise
        finally:
            self._note_due()
        return joined

    def _join_in_time(self) -> bool:
        """Do not have a reader who finds nothing wait for the sweep; whether there is an item now."""
        now = self.clock()
        return self._due.has_passed(now) and self._join(now) and (bool(self.window) or self._read_ahead())

    def check(self, size: int, *, may_expire: bool = True) -> None:
        """Raises what `append` of an item of `size` bytes would raise now, and changes nothing. With
        `may_expire`, not for a lack of room that expired items may make up for."""
        self.journal.check()
        if self._limited:
            self._check_size(size)
            if self._is_full(size):
                self._check_full(size, may_expire=may_expire)

    # Limits

    def take_up(self, size: int) -> None:
        """Count `size` more bytes of an item on its way in that are in memory. QueueFullError if these items
        have more than the queue may have."""
        most = self.settings.max_bytes
        if most is not None and self.uploading_bytes + size > most:
            raise QueueFullError("as many bytes as it may have are on their way")
        self.uploading_bytes += size

    @property
    def is_limited(self) -> bool:
        """Whether the settings may refuse an item."""
        return self._limited

    def _make_room(self, size: int) -> None:
        """As `make_room`, of this queue by itself."""
        self._check_size(size)
        if not self._is_full(size):
            return
        self._check_full(size, may_expire=True)
        self.journal.check()
        self.expire_for(size)
        if self._is_full(size):
            self._check_full(size, may_expire=False)
            self.discard_for(size)

    def _is_too_large(self, size: int) -> bool:
        most = self.settings.max_item_size
        return most is not None and size > most

    def _check_size(self, size: int) -> None:
        if self._is_too_large(size):
            most = self.settings.max_item_size
            raise ItemTooLargeError(f"{size} bytes, and at most {most} are taken")

    def _check_full(self, size: int, *, may_expire: bool) -> None:
        """Raises QueueFullError unless this full queue can be made to take an item of `size` bytes."""
        if self._is_over(self.journal.delayed.items, self.journal.delayed.bytes + size):
            raise QueueFullError("no room even if nothing waited")
        if self.settings.discard_old_when_full:
            return
        # what is not read yet may have expired
        if not may_expire or (self.window and not self.has_expired(self.window[0])):
            raise QueueFullError("the queue is full")

    def expire_for(self, size: int) -> None:
        """Be rid of expired items at the head if there is no room for an item of `size` bytes."""
        if self._limited and self._is_full(size):
            with contextlib.suppress(JournalError):  # then they stay, and there is less room
                self._expire_head(self.clock(), self.settings.max_expire_sweep)

    def discard_for(self, size: int) -> None:
        """Discard the oldest items until there is room for one of `size` bytes; if they are too many, some of
        them, and `sweep` goes on."""
        left = DISCARDED_AT_ONCE
        while self._limited and self._is_full(size) and (self.window or self._read_ahead()):
            if not left:
                self._begin_discard()
                return
            self._discard_first()
            left -= 1

    def _begin_discard(self) -> None:
        self._discards = True
        self.on_upkeep_due(self)

    def _discard_on(self) -> None:
        """Discard some of what the queue has too much of."""
        self._discards = False
        if self.settings.discard_old_when_full and self.journal.state.items:
            self._discard_over(self.journal.state.next_id - 1)
        self.has_more_upkeep |= self._discards

    def _discard_over(self, last_id: int) -> None:
        left = DISCARDED_AT_ONCE
        while self._has_excess(last_id):
            if not left:
                self._begin_discard()
                return
            self._discard_first()
            left -= 1

    def discard_excess(self, size: int) -> None:
        """Be rid of expired items at the head, and then of the oldest, if the last one, of `size` bytes, has
        taken the queue over its limits and the settings say so. Not if there can be no room for that."""
        journal = self.journal
        if not (self._limited and self.settings.discard_old_when_full):
            return
        if self._is_too_large(size) or self._is_over(journal.delayed.items, journal.delayed.bytes + size):
            return
        last_id = journal.state.next_id - 1
        now = self.clock()
        with contextlib.suppress(JournalError):  # then they stay
            left = EXPIRED_AT_ONCE
            while (
                left
                and self._has_excess(last_id)
                and not self._leaving
                and self._has_expired(self.window[0], now)
            ):
                self._expire_first()
                left -= 1
        with contextlib.suppress(JournalError):  # then the queue stays over its limits
            self._discard_over(last_id)

    def _has_excess(self, last_id: int) -> bool:
        """Whether there is too much, and an item at the head to be rid of."""
        journal = self.journal
        return (
            self._is_over(self.items + journal.delayed.items - 1, self.waiting_bytes + journal.delayed.bytes)
            and (bool(self.window) or self._read_ahead())
            and self.window[0].id != last_id
        )

    def _discard_first(self) -> None:
        self.journal.remove(self.window[0])
        self._shift()
        self.discarded += 1

    def _is_full(self, size: int) -> bool:
        # what is reserved does not count, as in Kestrel
        journal = self.journal
        return self._is_over(
            self.items + journal.delayed.items, self.waiting_bytes + journal.delayed.bytes + size
        )

    def _is_over(self, items: int, size: int) -> bool:
        """Whether one more than so many items, with so many bytes in all, are too much."""
        settings = self.settings
        return (settings.max_items is not None and items >= settings.max_items) or (
            settings.max_bytes is not None and size > settings.max_bytes
        )

    # Out

    def _head(self) -> Item | None:
        """Return the oldest waiting item that has not expired, still in the window."""
        if self._returning:
            raise self.journal.hold_readers()
        damaged = expired = 0
        while self.window or self._read_ahead() or (self.journal.delayed.items and self._join_in_time()):
            item = self.window[0]
            if not (item.expires_ms or self._max_age_ms) or not self._has_expired(item, self.clock()):
                if item.record is not None:
                    return item
                found: Item | None = self._check_first(item)
                if found is not None:
                    return found
                damaged += 1
                if damaged == MAX_STRIKES:
                    raise self.journal.pause()
            else:
                self._expire_first()
                expired += 1
                if expired == EXPIRED_AT_ONCE:
                    raise self.journal.pause()
        self.journal.check_whole()
        return None

    def _check_first(self, item: Item) -> Item | None:
        """Look at the bytes of the item at the head, which are not in memory. Returns it, with them unless
        they are in a file; None if they are damaged, and it is gone."""
        if item.blob:
            try:
                reading.check_blob(self.journal, item)
            except DamagedItemError as damage:
                self.quarantine(item, damage)
                return None
            return item
        whole = reading.reload(self.journal, item)
        self._shift()
        if whole is not None:
            self._unshift(whole)
        return whole

    def _shift(self) -> None:
        item = self.window.popleft()
        self.window_bytes -= item.memory_bytes

    def _unshift(self, item: Item) -> None:
        self.window.appendleft(item)
        self.window_bytes += item.memory_bytes

    def _read_ahead(self) -> bool:
        journal = self.journal
        damaged = 0
        while journal.next_unread < journal.state.next_id or journal.damaged_kept:
            items, journal.next_unread = reading.read(journal, journal.next_unread, READ_ITEMS, READ_BYTES)
            self.window.extend(items)
            if items:
                self._measure()
                return True
            damaged += 1
            if damaged == MAX_STRIKES:
                raise journal.pause()
        # what is reserved is all there is
        if journal.state.items != len(self.reserved) or journal.state.bytes != self._reserved_bytes:
            self._recount()
        return False

    def _measure(self) -> None:
        size = 0
        waiting_bytes = self._reserved_bytes
        for item in self.window:
            size += item.memory_bytes
            waiting_bytes += item.size
        self.window_bytes = size
        if waiting_bytes > self.journal.state.bytes:
            self._recount()

    def _recount(self) -> None:
        """The counts are not what there is: something was lost unseen."""
        if not self._leaving:
            items = [*self.window, *self.reserved.values()]
            is_all = self.journal.next_unread >= self.journal.state.next_id
            reading.recount(
                self.journal,
                len(items) if is_all else max(len(items), self.journal.state.items),
                sum(item.size for item in items),
            )

    def _take(self, item: Item) -> None:
        self._shift()
        self._taken_ms = self.clock()
        self._taken_enqueued_ms = item.enqueued_ms

    def pop(self) -> Item | None:
        """Remove the oldest waiting item for good, and return it; None if there is none."""
        item = self.take()
        if item is not None and item.blob:
            self.close(item)
        return item

    def take(self) -> Item | None:
        """As `pop`, but a large item is only reserved: to be removed by `close` once its bytes were found
        whole, before anything of it is sent."""
        item = self._head()
        if item is not None:
            if not item.blob:
                self.journal.remove(item)
            self._take(item)
            if item.blob:
                self._hold(item)
        return item

    def reserve(self) -> Item | None:
        """Set the oldest waiting item aside until `close` or `abort`, and return it."""
        item = self._head()
        if item is not None:
            self._take(item)
            # the journal may have this one yet to be written, with its bytes
            item = item.another()
            self._hold(item)
            if self._open_timeout_ms:
                self._reserved_ms[item.id] = self.clock()
                self.on_upkeep_due(self)
        return item

    def _hold(self, item: Item) -> None:
        self.reserved[item.id] = item
        self._reserved_bytes += item.size

    def peek(self) -> Item | None:
        """Return the oldest waiting item and leave it there."""
        return self._head()

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of an item that was fetched, whose data is None. They take a descriptor: to be
        asked for when they are about to be read."""
        return reading.open_blob(self.journal, item)

    def give_back(self, item: Item) -> None:
        """Put a reserved item back where it was, as if it had never been fetched."""
        if self.is_reserved(item):
            self._release(item)
            before = []
            while self.window and self.window[0].id < item.id:
                before.append(self.window.popleft())
            self._unshift(item)
            self.window.extendleft(reversed(before))
            if item.expires_ms:
                self._expect(item)
            self._serve()

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """An item that was fetched here or by a cursor, or looked at, has a damaged file: put it aside,
        unless another reader has it by now. JournalError if that cannot be: then it is as it was."""
        held = self.reserved.get(item.id)
        if held is not item:
            is_read = item.id < self.journal.next_unread
            if held is not None or (is_read and all(other.id != item.id for other in self.window)):
                return
        reading.quarantine(self.journal, item, damage)
        if held is not None:
            self._release(item)
        else:
            self.window = deque(other for other in self.window if other.id != item.id)
            self._measure()

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""
        if self.is_reserved(item):
            self.journal.remove(item)
            self._release(item)

    def abort(self, item: Item) -> None:
        """Put a reserved item back at the head: it is the next one fetched. One that has come back
        `max_attempts` times goes to `dead_letter_queue`, or is dropped."""
        if not self.is_reserved(item):
            return
        self._release(item)
        self.canceled_transactions += 1
        # another, so that whoever held it cannot take it for theirs when another client has it
        item = item.another()
        item.attempts = min(item.attempts + 1, MAX_ATTEMPTS)
        if self._max_attempts and item.attempts >= self._max_attempts and self._bury(item):
            return
        with contextlib.suppress(JournalError):  # then only the count of attempts is lost at the next start
            self.journal.note_attempts(item)
        self._unshift(item)
        if item.expires_ms:
            self._expect(item)
        self._serve()

    def forget_data(self, item: Item) -> None:
        """Whoever reserved an item has its bytes: they need not be in memory as well."""
        if self.is_durable:
            item.forget_data()

    def begin_return(self) -> Journal:
        """Many items are about to come back, by `abort`, the last one first: until `end_return` nothing is
        fetched. Returns the journal that this is written to."""
        self._returning += 1
        return self.journal

    def end_return(self) -> None:
        """They are back."""
        self._returning -= 1
        if not self._returning:
            self.journal.resume()
            self.serve()

    def _bury(self, item: Item) -> bool:
        """Be rid of an item that came back too often; whether that was possible."""
        try:
            self._dispose(item, self._dead_letter_to)
        except JournalError:
            return False
        if self._dead_letter_to is None:
            self.discarded += 1
        return True

    def _release(self, item: Item) -> None:
        del self.reserved[item.id]
        self._reserved_bytes -= item.size
        if self._reserved_ms:
            self._reserved_ms.pop(item.id, None)

    def _take_back(self, now: int) -> None:
        """Put back what has been reserved for longer than `open_timeout`, or some of it."""
        overdue = self._overdue
        if not overdue:
            for id, reserved_ms in self._reserved_ms.items():
                if now - reserved_ms < self._open_timeout_ms:
                    break
                overdue.append(id)
            # the oldest comes to lie at the head
            overdue.sort()
            if len(overdue) > RETURNED_AT_ONCE:
                self._is_overdue = True
                self.begin_return()
        for _ in range(min(len(overdue), RETURNED_AT_ONCE)):
            id = overdue.pop()
            if id in self.reserved:  # not closed since
                self.abort(self.reserved[id])
        self.has_more_upkeep = bool(overdue)
        if self._is_overdue and not overdue:
            self._is_overdue = False
            self.end_return()

    def is_reserved(self, item: Item) -> bool:
        """Whether an item that was reserved still is."""
        # not if it went with the queue; its id may be another's by now
        return self.reserved.get(item.id) is item

    # Expiry, and other ends

    def has_expired(self, item: Item) -> bool:
        """Whether the life of an item is over."""
        return self._has_expired(item, self.clock())

    def _has_expired(self, item: Item, now: int) -> bool:
        times = self.times
        return bool(
            (item.expires_ms and times.has_passed(item.expires_ms, now))
            or (self._max_age_ms and times.age_ms(item.enqueued_ms, now) >= self._max_age_ms)
        )

    def _expect(self, item: Item) -> None:
        """Take note of when an item expires."""
        if self._soonest.note(item.expires_ms):
            self.journal.note_expiring(expiring=True)
            self.on_upkeep_due(self)

    def _expire_first(self) -> None:
        """Be rid of the item at the head, which has expired; JournalError if it has to stay."""
        item = self.window[0]
        self._shift()
        try:
            self._dispose(item, self._expire_to)
        except JournalError:
            self._unshift(item)
            raise
        self.expired_items += 1

    def _dispose(self, item: Item, heir: bytes | None) -> None:
        """Drop an item that is neither waiting nor reserved any more, or move it to the queue `heir`. It is
        put there first, so a crash in between leaves it in both."""
        leaving, self._leaving = self._leaving, True
        try:
            if heir is not None and item.record is None and not item.blob:
                whole = reading.reload(self.journal, item)
                if whole is None:
                    return
                item = whole
            targets = None if heir is None else self.on_move(self, item, heir)
        except DamagedItemError as damage:
            reading.quarantine(self.journal, item, damage)
            return
        finally:
            self._leaving = leaving
        try:
            self.journal.remove(item)
        except JournalError:
            if heir is None:
                raise
            # not to be moved once more: it is there
            self._hold(item)
            self._moved.append(item)
            self.on_upkeep_due(self)
        for target in targets or ():
            target.serve()

    def adopt(self, item: Item, home: Journal) -> Item:
        """Return what `put` takes of an item that leaves its queue, whose journal is `home`, with the bytes
        where this queue has them. JournalError if they cannot be had there."""
        blob, data = 0, None
        if item.blob:
            file = home.blobs.path_of(item.blob)
            if self.is_durable:
                blob = self.journal.link_blob(file)
            else:
                data = read_whole(file, item.size)
        elif self.is_durable and item.size > CHUNK_BYTES:
            blob = self.journal.write_blob(item.data or b"")
        else:
            data = item.data
        return Item(0, item.flags, 0, self.clock(), data, blob, item.size, CHUNK_BYTES if blob else 0)

    def sweep(self, *, may_join: bool = True) -> None:
        """Take back what has been reserved for too long, have what is due join, and be rid of some of what
        has expired: at the head, and, when an item further on may have expired, in a slice of the queue. Sets
        `has_more_upkeep` if there is more to do at once. Unless `may_join`, what is due waits for a reader:
        it is written once more when it joins, and for that there may be no room."""
        self.has_more_upkeep = False
        now = self.clock()
        while self._moved:
            self.journal.require_synced_log()
            self.close(self._moved[-1])
            self._moved.pop()
        if self._reserved_ms or self._overdue:
            self._take_back(now)
        if self._due.has_passed(now) and (may_join or self.waiters):
            if not self.waiters:
                self.journal.check()
            self.has_more_upkeep |= self._join(now)
        if self._discards:
            self._discard_on()
        limit = self.settings.max_expire_sweep
        if self._swept or self._soonest.has_passed(now):
            self._sweep(now)
        elif self._max_age_ms:
            self.has_more_upkeep |= self._expire_head(now, limit) == limit
        if self.items:
            self.serve()

    def _sweep(self, now: int) -> None:
        if not self._swept:
            # what is met from now on, on the way or coming in, says when to look again
            self._soonest.clear()
            self._swept = 1
        _, self._swept = self._expire_slice(now, self._swept)
        self.has_more_upkeep |= self._swept > 0
        if not self._swept and self._soonest.is_never():
            self.journal.note_expiring(expiring=False)

    def flush_expired(self) -> Iterator[int]:
        """Be rid of all that has expired, in slices; gives how many items went with each."""
        now, at = self.clock(), 1
        while at:
            count, at = self._expire_slice(now, at)
            yield count

    def _expire_slice(self, now: int, start: int) -> tuple[int, int]:
        """Be rid of what has expired at the head; then among some items from id `start` on that are not
        in the window; and, when those are through, in the window. Returns how many items went, and the id
        to go on from, or 0 at the end."""
        limit = self.settings.max_expire_sweep
        count = self._expire_head(now, limit)
        if count < limit:
            went, start = self._expire_unread(now, start, limit - count)
            count += went
        if count < limit and start >= self.journal.state.next_id:
            went = self._expire_window(now, limit - count)
            count += went
            if count < limit:
                return count, 0
        return count, start

    def _expire_unread(self, now: int, start: int, limit: int) -> tuple[int, int]:
        journal = self.journal
        items, start = reading.scan(journal, max(start, journal.next_unread), limit, SWEEP_BYTES)
        count = 0
        for item in items:
            if item.id < journal.next_unread:
                continue  # read meanwhile, by who waited for what was moved
            if self._has_expired(item, now):
                self._dispose(item, self._expire_to)
                self.expired_items += 1
                count += 1
            elif item.expires_ms:
                self._expect(item)
        return count, start

    def _expire_window(self, now: int, limit: int) -> int:
        expired = deque(
            itertools.islice((item for item in self.window if self._has_expired(item, now)), limit)
        )
        count = len(expired)
        if expired:
            dead = {item.id for item in expired}
            self.window = deque(item for item in self.window if item.id not in dead)
            self._measure()
        leaving, self._leaving = self._leaving, True
        try:
            while expired:
                self._dispose(expired[0], self._expire_to)
                self.expired_items += 1
                expired.popleft()
        finally:
            self._leaving = leaving
            # where they are does not matter: nobody fetches them
            for item in expired:
                self._unshift(item)
        for item in (*self.window, *self.reserved.values()):
            if item.expires_ms:
                self._expect(item)
        return count

    def _expire_head(self, now: int, limit: int) -> int:
        """Be rid of up to `limit` expired items at the head; returns how many went."""
        count = 0
        while (
            count < limit and (self.window or self._read_ahead()) and self._has_expired(self.window[0], now)
        ):
            self._expire_first()
            count += 1
        return count

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have `waiter` served when an item comes, first come, first served."""
        waiter.queue = self
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Have `waiter` wait no longer."""
        self.waiters.pop(waiter, None)

    @property
    def waiting_clients(self) -> int:
        """How many wait for an item, here or at a cursor."""
        return len(self.waiters) + sum(len(cursor.waiters) for cursor in self.awaited)

    def fail_waiters(self, error: JournalError) -> None:
        """Tell those who wait, here or at a cursor, that the queue is out of service."""
        for source in (self, *self.awaited):
            for waiter in list(source.waiters):
                source.leave(waiter)
                waiter.fail(error)

    def _serve(self) -> None:
        if self._serving or self._returning:
            return
        self._serving = True
        try:
            serve_waiters(self)
        finally:
            self._serving = False

    # The rest

    def is_outdated(self, now_ms: int) -> bool:
        """Whether it has been empty, with nobody waiting or holding an item, for `max_queue_age`: as far as
        was seen when this was asked; so ask a few times a second."""
        state = self.journal.state
        if state.items or self.journal.delayed.items or self.waiters or self.awaited:
            self._idle_ms = None
            return False
        # an item may have come and gone unseen
        if self._idle_ms is None or self._idle_id != state.next_id:
            self._idle_ms, self._idle_id = now_ms, state.next_id
        max_age_ms = self.settings.max_queue_age_ms
        return max_age_ms is not None and now_ms - self._idle_ms >= max_age_ms

    def flush(self) -> None:
        """Discard what is waiting; what is reserved stays so."""
        self.journal.flush(self.reserved.values())
        self.window.clear()
        self.window_bytes = 0
        self.total_flushes += 1

    def retire(self) -> None:
        """Give up the journal: nothing is waiting, nothing is reserved, and nothing will be."""
        self.journal.retire()
        self._overdue.clear()
        if self._returning:  # who was held back has an empty queue
            self.journal.resume()
        self.reserved.clear()
        self._reserved_bytes = 0
        self._reserved_ms.clear()
        self.window.clear()
        self.window_bytes = 0
        for cursor in self.cursors.values():
            cursor.clear()
        self.cursors.clear()

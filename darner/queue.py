"""One FIFO: what is waiting, what is reserved, who waits for an item.

Pure logic over a journal: no socket, no event loop, and the clock is handed in. Every method is done
when it returns; what it changed is staged in the journal, and on disk after the next commit. The oldest
waiting items are held in memory (the window); those behind them are read from the journal when the
window runs dry.
"""

import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from darner._proto import CHUNK_BYTES, Item
from darner.blob import BlobReader, BlobWriter, read_whole, sync_directory
from darner.config import QueueSettings
from darner.errors import DarnerError, ItemTooLargeError, JournalError, QueueFullError, RefusedError
from darner.journal import Client, Journal
from darner.memory import MemoryJournal, MemoryWriter

# How much of a queue is held in memory; more is left on disk.
WINDOW_BYTES = 1 << 20
# What an item costs in memory besides its data.
ITEM_BYTES = 150
# How much is read from the journal at once when the window is empty.
READ_ITEMS = 256
READ_BYTES = 256 << 10

# How many delayed items join the end of a queue in one go.
JOIN_ITEMS = 256
# How much a slice of a sweep reads from the journal at most.
SWEEP_BYTES = 1 << 20
# How many items may be on their way to another queue: they are in memory until they are there.
MAX_LEAVING = 256

# memcached's rule: a larger expiry is a date, in seconds of the Unix epoch.
MAX_RELATIVE_S = 60 * 60 * 24 * 30

# What later dates are taken for, in ms of the Unix epoch: the year 287,396.
MAX_DATE_MS = 1 << 53

# Of a queue for which nothing is set.
DEFAULTS = QueueSettings()

# Milliseconds of the Unix epoch.
Clock = Callable[[], int]


def expires_ms(exptime: int, now_ms: int) -> int:
    """When an item set with memcache's `exptime` expires, in ms of the Unix epoch; 0 is never."""
    if exptime == 0:
        return 0
    if exptime < 0:
        return 1
    date_ms = (exptime * 1000 + now_ms) if exptime <= MAX_RELATIVE_S else exptime * 1000
    return min(date_ms, MAX_DATE_MS)


class Source(Protocol):
    """What is fetched from: a `Queue`, or a cursor over one. See there."""

    name: bytes
    waiters: OrderedDict["Waiter", None]
    transactions: int

    def pop(self) -> Item | None: ...  # noqa: D102
    def reserve(self) -> Item | None: ...  # noqa: D102
    def peek(self) -> Item | None: ...  # noqa: D102
    def open_blob(self, item: Item) -> BlobReader: ...  # noqa: D102
    def close(self, item: Item) -> None: ...  # noqa: D102
    def abort(self, item: Item) -> None: ...  # noqa: D102
    def is_reserved(self, item: Item) -> bool: ...  # noqa: D102
    def wait(self, waiter: "Waiter") -> None: ...  # noqa: D102
    def acknowledge(self, client: Client, slot: int) -> None: ...  # noqa: D102


class Reader(Source, Protocol):
    """A cursor, as its queue and the broker know it."""

    def reset(self) -> None:
        """Forget the place: the next item is the oldest."""

    def serve(self) -> None:
        """There may be an item: give it to who waits."""

    def load(self) -> None:
        """Start over from what the journal has."""


class Waiter:
    """Somebody who waits for an item: how to fetch it for them (`Queue.pop`, `reserve` or `peek`), where
    to deliver it, and whether they have gone without a word. `queue` is where they wait."""

    __slots__ = ("deliver", "fetch", "has_gone", "queue")

    queue: Source

    def __init__(
        self,
        fetch: Callable[[Any], Item | None],
        deliver: Callable[[Any, Item], None],
        has_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.fetch = fetch
        self.deliver = deliver
        self.has_gone = has_gone

    def cancel(self) -> None:
        """Wait no longer."""
        self.queue.waiters.pop(self, None)


class Upload:
    """An item too large for memory on its way into a queue, or several, chunk by chunk.

    Its bytes are written once, among the blobs of `queue`. When they are whole, each other queue the item
    is for gets a hard link to that file: a name of its own, which it deletes as any blob. A queue that is
    in memory alone has them there.
    """

    __slots__ = (
        "_blob",
        "_data",
        "_generation",
        "_home",
        "_links",
        "_size",
        "_staged",
        "_targets",
        "_writer",
        "queue",
    )

    _writer: BlobWriter | MemoryWriter

    def __init__(self, queue: "Queue", targets: Callable[[], Sequence["Queue"]] | None = None) -> None:
        """Begin an item for the queues that `targets` says when the item is whole: only `queue` by default.

        Raises JournalError if its file cannot be made.
        """
        self.queue = queue
        self._targets = targets or (lambda: (queue,))
        self._generation = queue.journal.generation
        self._size = 0
        # where the file is; None if the item is in memory
        self._home: Journal | None = None
        self._blob = 0
        # the names of the file with other queues: the journal, its generation then, the blob there
        self._links: dict[Queue, tuple[Journal, int, int]] = {}
        # the whole item, if a queue in memory needs it
        self._data: bytes | None = None
        self._staged: Sequence[Queue] = ()
        if isinstance(queue.journal, MemoryJournal):
            self._writer = MemoryWriter()
            return
        self._home = queue.journal
        self._blob = self._home.begin_blob()
        try:
            self._writer = BlobWriter(self._path, self._home.offload)
        except JournalError:
            self._home.abandon_blob(self._blob)
            raise

    @property
    def _path(self) -> Path:
        return cast("Journal", self._home).blob_path(self._blob)

    def _check(self) -> None:
        if self.queue.failure is not None:
            raise self.queue.failure
        if self._generation != self.queue.journal.generation:
            raise JournalError("the queue was reopened or deleted while the item was being sent")

    def write(self, data: bytes) -> None:
        """Take the next chunk: CHUNK_BYTES bytes, or less if it is the last."""
        self._check()
        self._writer.write(data)
        self._size += len(data)

    def crowded(self, room: Callable[[], None]) -> bool:
        """Whether the sender should wait; then `room` is called when it may go on."""
        return self._writer.crowded(room)

    def finish(
        self,
        flags: int,
        exptime: int,
        done: Callable[[DarnerError | None], None],
        *,
        sync: bool,
        delay_ms: int = 0,
    ) -> None:
        """All chunks have come: when they are written, stage the item at the end of each queue, or let it
        come there in `delay_ms`, and call `done` with None; or with the error, and nothing of the item
        stays."""

        def written(error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error if isinstance(error, DarnerError) else JournalError(str(error))
                self._check()
                targets = self._targets()
                work = self._prepare(targets, sync=sync_file)
                if work is not None:
                    # queues may come and go meanwhile, so all is looked at again
                    self.queue.journal.offload(work, written)
                    return
                self._stage(targets, flags, exptime, delay_ms, sync=sync)
            except DarnerError as failure:
                self.abandon()
                done(failure)
            else:
                done(None)

        try:
            # a file is not synced later, when its record is
            sync_file = sync or any(queue.is_synced for queue in self._targets())
        except JournalError as failure:
            self.abandon()
            done(failure)
        else:
            self._writer.finish(written, sync=sync_file)

    def _prepare(self, targets: Sequence["Queue"], *, sync: bool) -> Callable[[], None] | None:
        """Have the bytes where each of `targets` wants them; returns what is left to do of that in a
        thread, or None."""
        if isinstance(self._writer, MemoryWriter):
            self._data = self._writer.data
            return None
        links = []
        reads = False
        for queue in targets:
            if queue.failure is not None:
                raise queue.failure
            if isinstance(queue.journal, MemoryJournal):
                reads = self._data is None
            elif queue is not self.queue and not self._is_linked(queue):
                links.append(self._link(queue, queue.journal))

        def work() -> None:
            if sync:
                for link in links:
                    sync_directory(link.parent)
                    sync_directory(link.parent.parent)
            if reads:
                self._data = read_whole(self._path, self._size)

        return work if reads or (links and sync) else None

    def _is_linked(self, queue: "Queue") -> bool:
        journal, generation, _ = self._links.get(queue, (None, 0, 0))
        return journal is queue.journal and generation == journal.generation

    def _link(self, queue: "Queue", journal: Journal) -> Path:
        blob = journal.link_blob(self._path)
        self._links[queue] = journal, journal.generation, blob
        return journal.blob_path(blob)

    def _stage(
        self, targets: Sequence["Queue"], flags: int, exptime: int, delay_ms: int, *, sync: bool
    ) -> None:
        now = self.queue.clock()
        expires = expires_ms(exptime, now)
        for queue in targets:
            queue.check(self._size)
        for queue in targets:
            blob = self._blob if queue is self.queue else self._links.pop(queue, (None, 0, 0))[2]
            if blob:
                item = Item(0, flags, expires, now, None, blob, self._size, CHUNK_BYTES)
            else:
                item = Item(0, flags, expires, now, self._data)
            if delay_ms:
                queue.delay(item, delay_ms, sync=sync)
            else:
                queue.append(item, sync=sync)
        self._staged = targets
        self._abandon_links()
        if self._home is not None and self.queue not in targets:
            self._home.abandon_blob(self._blob)

    def acknowledge(self, client: Client, slot: int) -> None:
        """Have `client` hear if what reply `slot` says of the finished item comes to nothing."""
        for queue in self._staged:
            queue.acknowledge(client, slot)

    def abandon(self) -> None:
        """Forget the item: nothing of it stays."""

        def gone() -> None:
            # otherwise the journal knows by itself: it was reopened, or deleted
            if self._home is not None and self._generation == self._home.generation:
                self._home.abandon_blob(self._blob)

        self._abandon_links()
        self._writer.abandon(gone)

    def _abandon_links(self) -> None:
        for journal, generation, blob in self._links.values():
            if generation == journal.generation:
                journal.abandon_blob(blob)
        self._links.clear()


class Queue:
    """A strict FIFO of items.

    Every method that touches items raises JournalError if the journal is out of service.
    """

    __slots__ = (
        "_age_ms",
        "_dead_letter_to",
        "_due_ms",
        "_expire_to",
        "_idle_id",
        "_idle_ms",
        "_limited",
        "_max_age_ms",
        "_max_attempts",
        "_moving",
        "_open_timeout_ms",
        "_opened",
        "_reads",
        "_reserved_bytes",
        "_reserved_ms",
        "_soonest_ms",
        "_swept",
        "canceled_transactions",
        "clock",
        "cursors",
        "discarded",
        "expired_items",
        "failure",
        "is_synced",
        "journal",
        "leaving",
        "name",
        "on_unsynced",
        "reserved",
        "restless",
        "settings",
        "total_flushes",
        "total_items",
        "transactions",
        "unsynced_ms",
        "waiters",
        "window",
        "window_bytes",
    )

    def __init__(
        self,
        name: bytes,
        journal: Journal | MemoryJournal,
        clock: Clock,
        settings: QueueSettings = DEFAULTS,
    ) -> None:
        self.name = name
        self.journal = journal
        self.clock = clock
        self.reserved: dict[int, Item] = {}
        self._reserved_bytes = 0
        # when each was reserved, if that matters; the one that has been so longest comes first
        self._reserved_ms: OrderedDict[int, int] = OrderedDict()
        # those of them that nobody has reserved, but that go to another queue
        self._moving: set[int] = set()
        # of those, the ones that still have to be put there, and where
        self.leaving: list[tuple[Item, bytes]] = []
        # whether `sweep` has more to do
        self.restless = False
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        # those in use, by what is behind `cursor=`
        self.cursors: dict[bytes, Reader] = {}
        # why the queue is out of service, if it is
        self.failure: JournalError | None = None
        self._age_ms = 0
        # the blob of the item at the head, if somebody is about to fetch it
        self._opened: BlobReader | None = None
        # since when it is empty, and the id of the next item then
        self._idle_ms: int | None = None
        self._idle_id = 0
        # when the first of the items came that are yet to be synced
        self.unsynced_ms: int | None = None
        # told when there is one
        self.on_unsynced: Callable[[Queue], None] = lambda _: None
        self.configure(settings)
        self.reset_stats()
        journal.on_reopen = self.reload
        self._load()

    def configure(self, settings: QueueSettings) -> None:
        """Take these settings from now on."""
        self.settings = settings
        # whether what is set is synced to the disk, sooner or later
        self.is_synced = settings.sync_ms is not None
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
            return
        now = self.clock()
        for id in self.reserved:
            if id not in self._moving:
                self._reserved_ms.setdefault(id, now)

    def _other(self, name: str | None) -> bytes | None:
        # a queue that moves its items to itself would never get rid of them
        return name.encode() if name is not None and name.encode() != self.name else None

    def reset_stats(self) -> None:
        """Zero what counts events since the start."""
        self.total_items = 0
        self.expired_items = 0
        self.discarded = 0
        self.transactions = 0
        self.canceled_transactions = 0
        self.total_flushes = 0

    def _load(self) -> None:
        self.window: deque[Item] = deque(
            item for item in self.journal.kept_items() if item.id not in self.reserved
        )
        self._measure()
        # the id from which on items are not in the window
        self._reads = self.journal.state.floor
        # No item's own expiry is before this. 0 if that is not known.
        self._soonest_ms: float = 0 if self.journal.expiring else math.inf
        # when the first delayed item is due
        self._due_ms = self.journal.next_due_ms
        # the id up to which `sweep` has looked for expired items; 0 if it is not about to
        self._swept = 0

    def reload(self) -> None:
        """Start over from what the journal has on disk, after it was reopened or failed to."""
        self.failure = self.journal.failed
        if self.failure is not None:
            return
        try:
            self.reserved = {
                id: item for id, item in self.reserved.items() if self.journal.find(id) is not None
            }
            self._reserved_bytes = sum(item.size for item in self.reserved.values())
            self._moving &= self.reserved.keys()
            self.leaving = [leaver for leaver in self.leaving if self.is_reserved(leaver[0])]
            for id in self._reserved_ms.keys() - self.reserved.keys():
                del self._reserved_ms[id]
            self._load()
            self._serve()
            for cursor in list(self.cursors.values()):
                cursor.load()
                cursor.serve()
        except JournalError as error:
            self.failure = self.journal.failed = error

    @property
    def is_durable(self) -> bool:
        """Whether its items are on disk."""
        return isinstance(self.journal, Journal)

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
        return self.journal.delayed_items

    @property
    def open_transactions(self) -> int:
        """How many items somebody has reserved."""
        return len(self.reserved) - len(self._moving)

    @property
    def age_ms(self) -> int:
        """How long the last item fetched had waited; 0 if the queue is empty."""
        return self._age_ms if self.items else 0

    # In

    def push(self, data: bytes, flags: int, exptime: int, *, sync: bool) -> None:
        """Stage an item at the end. `exptime` is memcache's; with `sync` its commit waits for the disk.

        Raises QueueFullError or ItemTooLargeError if the settings do not let it in.
        """
        now = self.clock()
        self.append(Item(0, flags, expires_ms(exptime, now) if exptime else 0, now, data), sync=sync)

    def append(self, item: Item, *, sync: bool, exempt: bool = False) -> None:
        """Stage `item` at the end; if `exempt`, even if the settings do not let it in."""
        if self.failure is not None:
            raise self.failure
        if self._limited and not exempt:
            self._make_room(item.size)
        if item.expires_ms:
            self._expect(item)
        journal = self.journal
        journal.put(item)
        if sync or self.is_synced:
            self._sync(at_once=sync)
        self.total_items += 1
        if self._reads == item.id and self.window_bytes < WINDOW_BYTES:
            self._reads += 1
            self.window.append(item)
            self.window_bytes += item.memory_bytes + ITEM_BYTES
        if self.waiters:
            self._serve()
        if self.cursors:
            self._show()

    def _show(self) -> None:
        for cursor in list(self.cursors.values()):
            cursor.serve()

    def push_delayed(self, data: bytes, flags: int, exptime: int, delay_ms: int, *, sync: bool) -> None:
        """As `push`, but the item is out of sight for `delay_ms`, and joins the end then."""
        now = self.clock()
        self.delay(Item(0, flags, expires_ms(exptime, now), now, data), delay_ms, sync=sync)

    def delay(self, item: Item, delay_ms: int, *, sync: bool) -> None:
        """Stage `item` so that it joins the end in `delay_ms`."""
        if self.failure is not None:
            raise self.failure
        if self._limited:
            self._make_room(item.size)
        journal = self.journal
        journal.delay(item, min(self.clock() + delay_ms, MAX_DATE_MS))
        if sync or self.is_synced:
            self._sync(at_once=sync)
        self._due_ms = min(self._due_ms, journal.next_due_ms)

    def _join(self, now: int) -> bool:
        """Have delayed items that are due join the end, as if they were set now; whether any did."""
        # who waits is served on the way, and must not have later ones join before these
        self._due_ms = math.inf
        try:
            items = self.journal.take_due(now, JOIN_ITEMS, READ_BYTES)
            for item in items:
                due = Item(
                    0, item.flags, item.expires_ms, now, item.data, item.blob, item.size, item.chunk_bytes
                )
                self.append(due, sync=False, exempt=True)
        finally:
            self._due_ms = self.journal.next_due_ms
        return bool(items)

    def _join_in_time(self) -> bool:
        """Do not have a reader who finds nothing wait for the sweep; whether there is an item now."""
        now = self.clock()
        return self._due_ms <= now and self._join(now) and (bool(self.window) or self._read_ahead())

    def check(self, size: int) -> None:
        """Raises what `append` of an item of `size` bytes would raise now."""
        if self.failure is not None:
            raise self.failure
        if self._limited:
            self._make_room(size, discard=False)

    def upload(self, size: int, targets: Callable[[], Sequence["Queue"]] | None = None) -> Upload:
        """Begin an item of `size` bytes that comes in chunks, for this queue or for `targets`: see `Upload`.

        Raises QueueFullError or ItemTooLargeError if the settings do not let it in as things stand; they
        are asked again when it is whole.
        """
        self.check(size)
        return Upload(self, targets)

    # Syncing

    def _sync(self, *, at_once: bool) -> None:
        """What was just put is to be on the disk itself, with its batch or some time later."""
        if at_once or self.settings.sync_ms == 0:
            self.journal.batch.sync = True
        elif self.unsynced_ms is None:
            self.unsynced_ms = self.clock()
            self.on_unsynced(self)

    @property
    def sync_due_ms(self) -> int:
        """When to call `sync` for what is not synced: after half of the interval, since the disk takes
        its time, too."""
        return (self.unsynced_ms or 0) + (self.settings.sync_ms or 0) // 2

    def sync(self) -> None:
        """Stage a sync of what was set before."""
        self.unsynced_ms = None
        if self.failure is None:
            self.journal.sync()

    # Limits

    def _make_room(self, size: int, *, discard: bool = True) -> None:
        """Have room for an item of `size` bytes, at the cost of expired items and, if the settings say so,
        of the oldest; unless `discard`, those are only known to be there."""
        settings = self.settings
        if settings.max_item_size is not None and size > settings.max_item_size:
            raise ItemTooLargeError(f"{size} bytes, and at most {settings.max_item_size} are taken")
        if not self._is_full(size):
            return
        if self._is_over(self.journal.delayed_items, self.journal.delayed_bytes + size):
            raise QueueFullError("no room even if nothing waited")
        self._expire_head(self.clock(), self._slice_items())
        if settings.discard_old_when_full:
            while discard and self._is_full(size) and (self.window or self._read_ahead()):
                item = self.window[0]
                self._shift()
                self.journal.remove(item)
                self.discarded += 1
        elif self._is_full(size):
            raise QueueFullError("the queue is full")

    def _is_full(self, size: int) -> bool:
        # what is reserved does not count, as in Kestrel
        journal = self.journal
        return self._is_over(
            self.items + journal.delayed_items, self.waiting_bytes + journal.delayed_bytes + size
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
        if self.failure is not None:
            raise self.failure
        while self.window or self._read_ahead() or (self.journal.delayed_items and self._join_in_time()):
            item = self.window[0]
            if not (item.expires_ms or self._max_age_ms) or not self._has_expired(item, self.clock()):
                if item.blob:
                    self._opened = self.open_blob(item)
                return item
            if len(self.leaving) >= MAX_LEAVING:
                return None  # the next sweep goes on
            self._shift()
            self._expire(item)
        return None

    def _shift(self) -> None:
        item = self.window.popleft()
        self.window_bytes -= item.memory_bytes + ITEM_BYTES

    def _read_ahead(self) -> bool:
        journal = self.journal
        while self._reads < journal.state.next_id:
            items, self._reads = journal.read(self._reads, READ_ITEMS, READ_BYTES)
            # after a reload, reserved items may lie among the waiting
            self.window.extend(item for item in items if item.id not in self.reserved)
            if self.window:
                self._measure()
                return True
        return False

    def _measure(self) -> None:
        self.window_bytes = sum(item.memory_bytes + ITEM_BYTES for item in self.window)

    def _take(self) -> Item | None:
        item = self._head()
        if item is not None:
            self._shift()
            self._age_ms = self.clock() - item.enqueued_ms
        return item

    def pop(self) -> Item | None:
        """Remove the oldest waiting item for good, and return it; None if there is none."""
        item = self._take()
        if item is not None:
            self.journal.remove(item)
        return item

    def reserve(self) -> Item | None:
        """Set the oldest waiting item aside until `close` or `abort`, and return it."""
        item = self._take()
        if item is not None:
            self.reserved[item.id] = item
            self._reserved_bytes += item.size
            if self._open_timeout_ms:
                self._reserved_ms[item.id] = self.clock()
        return item

    def peek(self) -> Item | None:
        """Return the oldest waiting item and leave it there."""
        return self._head()

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of the item just fetched, whose data is None.

        They are opened before the item is taken: one whose bytes cannot be had stays at the head.
        """
        opened, self._opened = self._opened, None
        if opened is not None and opened.blob == item.blob:
            return opened
        if opened is not None:
            opened.close()
        journal = cast("Journal", self.journal)
        return BlobReader(journal.blob_path(item.blob), item, journal.offload)

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""
        if not self.is_reserved(item):
            return
        if self.failure is not None:
            raise self.failure
        self._release(item)
        if item.id < self._reads:
            self.journal.remove(item)
        else:
            self.journal.expunge(item)

    def abort(self, item: Item) -> None:
        """Put a reserved item back at the head: it is the next one fetched. One that has come back
        `max_attempts` times goes to `dead_letter_queue`, or is dropped."""
        if not self.is_reserved(item):
            return
        self._release(item)
        if self.failure is not None:
            return
        self.canceled_transactions += 1
        item.attempts = min(item.attempts + 1, 0xFFFF)
        if self._max_attempts and item.attempts >= self._max_attempts:
            if self._dead_letter_to is None:
                self.discarded += 1
            self._dispose(item, self._dead_letter_to)
            return
        # a copy, so that whoever held it cannot take it for theirs when another has it
        item = item.copy()
        self.journal.rewrite(item)
        self.window.appendleft(item)
        self.window_bytes += item.memory_bytes + ITEM_BYTES
        if item.expires_ms:
            self._expect(item)
        self._serve()

    def _release(self, item: Item) -> None:
        del self.reserved[item.id]
        self._reserved_bytes -= item.size
        if self._reserved_ms:
            self._reserved_ms.pop(item.id, None)
        if self._moving:
            self._moving.discard(item.id)

    def _take_back(self, now: int) -> None:
        """Put back what has been reserved for longer than `open_timeout`."""
        overdue = []
        for id, reserved_ms in self._reserved_ms.items():
            if now - reserved_ms < self._open_timeout_ms:
                break
            overdue.append(id)
        # the oldest comes to lie at the head
        for id in sorted(overdue, reverse=True):
            self.abort(self.reserved[id])

    def is_reserved(self, item: Item) -> bool:
        """Whether an item that was reserved still is."""
        # not if it went with a batch that failed, or with the queue; its id may be another's by now
        return self.reserved.get(item.id) is item

    # Expiry, and other ends

    def has_expired(self, item: Item) -> bool:
        """Whether the life of an item is over."""
        return self._has_expired(item, self.clock())

    def _has_expired(self, item: Item, now: int) -> bool:
        return 0 < item.expires_ms <= now or 0 < self._max_age_ms <= now - item.enqueued_ms

    def _expect(self, item: Item) -> None:
        """Take note of when an item expires."""
        if item.expires_ms < self._soonest_ms:
            self._soonest_ms = item.expires_ms
            if not self.journal.expiring:
                self.journal.note_expiring(expiring=True)

    def _expire(self, item: Item) -> None:
        self.expired_items += 1
        self._dispose(item, self._expire_to)

    def _dispose(self, item: Item, heir: bytes | None) -> None:
        """Be rid of an item that is neither waiting nor reserved any more: drop it, or have it moved to
        the queue `heir`. Then it is here until it is known to be there."""
        self.reserved[item.id] = item
        self._reserved_bytes += item.size
        if heir is None:
            self.close(item)
        else:
            self._moving.add(item.id)
            self.leaving.append((item, heir))

    def adopt(self, item: Item, home: Journal | MemoryJournal) -> int:
        """Stage an item that leaves its queue, whose journal is `home`, as if it were set on this one now,
        never to expire by itself. It is never refused, but may take the queue over its limits.

        Returns its id here.
        """
        if self.failure is not None:
            raise self.failure
        if self._limited and self.settings.discard_old_when_full:
            with contextlib.suppress(RefusedError):
                self._make_room(item.size)
        now = self.clock()
        mine = Item(0, item.flags, 0, now, item.data)
        if item.blob:
            file = cast("Journal", home).blob_path(item.blob)
            if isinstance(self.journal, MemoryJournal):
                mine = Item(0, item.flags, 0, now, read_whole(file, item.size))
            else:
                blob = self.journal.link_blob(file)
                mine = Item(0, item.flags, 0, now, None, blob, item.size, item.chunk_bytes)
        self.append(mine, sync=False, exempt=True)
        return mine.id

    def sweep(self) -> None:
        """Take back what has been reserved for too long, and be rid of some of what has expired: at the
        head, and, when an item further on may have expired, in a slice of the queue. Sets `restless` if
        there is more to do at once."""
        self.restless = False
        if self.failure is not None:
            return
        now = self.clock()
        if self._reserved_ms:
            self._take_back(now)
        if self._due_ms <= now:
            self.restless = self._join(now)
        if self._swept or self._soonest_ms <= now:
            self._sweep(now)
        elif self._max_age_ms:
            limit = self._slice_items()
            self.restless |= 0 < limit == self._expire_head(now, limit)
        if self.waiters and self.items:
            self._serve()

    def _sweep(self, now: int) -> None:
        if not self._swept:
            # what is met from now on, on the way or coming in, says when to look again
            self._soonest_ms = math.inf
            self._swept = 1
        if self._slice_items():
            _, self._swept = self._expire_slice(now, self._swept)
            self.restless |= self._swept > 0
            if not self._swept and self._soonest_ms == math.inf and self.journal.expiring:
                self.journal.note_expiring(expiring=False)

    def flush_expired(self) -> Iterator[int]:
        """Be rid of all that has expired, in slices; gives how many items went with each.

        What goes to another queue has to be moved between them, or it ends before all is done.
        """
        now, at = self.clock(), 1
        while at and self._slice_items():
            if self.failure is not None:
                raise self.failure
            count, at = self._expire_slice(now, at)
            yield count

    def _slice_items(self) -> int:
        """How many items may be looked at, or expire, in one go."""
        limit = self.settings.max_expire_sweep
        return limit if self._expire_to is None else min(limit, MAX_LEAVING - len(self.leaving))

    def _expire_slice(self, now: int, start: int) -> tuple[int, int]:
        """Be rid of what has expired at the head; then among some items from id `start` on that are not
        in the window; and, when those are through, in the window. Returns how many items went, and the id
        to go on from, or 0 at the end."""
        limit = self._slice_items()
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
        items, start = self.journal.scan(max(start, self._reads), limit, SWEEP_BYTES)
        # after a reload, items that were put back may lie among those not read
        known = self.reserved.keys() | {item.id for item in self.window if item.id >= self._reads}
        count = 0
        for item in items:
            if item.id not in known:
                if self._has_expired(item, now):
                    self._expire(item)
                    count += 1
                elif item.expires_ms:
                    self._expect(item)
        return count, start

    def _expire_window(self, now: int, limit: int) -> int:
        expired = [item for item in self.window if self._has_expired(item, now)][:limit]
        if expired:
            dead = {item.id for item in expired}
            self.window = deque(item for item in self.window if item.id not in dead)
            self._measure()
            for item in expired:
                self._expire(item)
        for item in (*self.window, *self.reserved.values()):
            if item.expires_ms:
                self._expect(item)
        return len(expired)

    def _expire_head(self, now: int, limit: int) -> int:
        """Be rid of up to `limit` expired items at the head; returns how many went."""
        count = 0
        while count < limit and (self.window or self._read_ahead()):
            item = self.window[0]
            if not self._has_expired(item, now):
                break
            self._shift()
            self._expire(item)
            count += 1
        return count

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have `waiter` served when an item comes, first come, first served."""
        waiter.queue = self
        self.waiters[waiter] = None

    def _serve(self) -> None:
        while self.waiters:
            waiter = next(iter(self.waiters))
            if waiter.has_gone():
                waiter.cancel()
                continue
            try:
                item = waiter.fetch(self)
            except JournalError:
                return  # they go on waiting: the queue may recover
            if item is None:
                return
            del self.waiters[waiter]
            waiter.deliver(self, item)

    # The rest

    def is_outdated(self, now_ms: int) -> bool:
        """Whether it has been empty, with nobody waiting or holding an item, for `max_queue_age`: as far as
        was seen when this was asked; so ask a few times a second."""
        state = self.journal.state
        if self.failure is not None or state.items or self.journal.delayed_items or self._is_awaited:
            self._idle_ms = None
            return False
        # an item may have come and gone unseen
        if self._idle_ms is None or self._idle_id != state.next_id:
            self._idle_ms, self._idle_id = now_ms, state.next_id
        max_age_ms = self.settings.max_queue_age_ms
        return max_age_ms is not None and now_ms - self._idle_ms >= max_age_ms

    @property
    def _is_awaited(self) -> bool:
        return bool(self.waiters) or any(cursor.waiters for cursor in self.cursors.values())

    def flush(self) -> None:
        """Discard what is waiting; what is reserved stays so."""
        if self.failure is not None:
            raise self.failure
        self.journal.flush(self.reserved.values())
        self.window.clear()
        self.window_bytes = 0
        self._reads = self.journal.state.next_id
        self.total_flushes += 1

    def retire(self) -> None:
        """Give up the journal: nothing is waiting, nothing is reserved, and nothing will be."""
        self.reserved.clear()
        self._reserved_bytes = 0
        self._reserved_ms.clear()
        self._moving.clear()
        self.leaving.clear()
        self._due_ms = math.inf
        self.journal.retire()
        self.failure = JournalError("the queue was deleted")
        self.journal.on_reopen = lambda: None

    def acknowledge(self, client: Client, slot: int) -> None:
        """Have `client` hear if what reply `slot` says comes to nothing."""
        journal = self.journal
        if journal.dirty or journal.writing is not None:
            journal.acknowledge(client, slot)

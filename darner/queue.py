"""One FIFO: what is waiting, what is reserved, who waits for an item.

Pure logic over a journal: no socket, no event loop, and the clock is handed in. Every method is done
when it returns; what it changed is staged in the journal, and on disk after the next commit. The oldest
waiting items are held in memory (the window); those behind them are read from the journal when the
window runs dry.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from darner._proto import CHUNK_BYTES, Item
from darner.blob import BlobReader, BlobWriter, read_whole, sync_directory
from darner.config import QueueSettings
from darner.errors import JournalError
from darner.journal import Client, Journal
from darner.memory import MemoryJournal, MemoryWriter

# How much of a queue is held in memory; more is left on disk.
WINDOW_BYTES = 1 << 20
# What an item costs in memory besides its data.
ITEM_BYTES = 150
# How much is read from the journal at once when the window is empty.
READ_ITEMS = 256
READ_BYTES = 256 << 10

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


class Waiter:
    """Somebody who waits for an item: how to fetch it for them (`Queue.pop`, `reserve` or `peek`), where
    to deliver it, and whether they have gone without a word. `queue` is where they wait."""

    __slots__ = ("deliver", "fetch", "has_gone", "queue")

    queue: "Queue"

    def __init__(
        self,
        fetch: Callable[["Queue"], Item | None],
        deliver: Callable[["Queue", Item], None],
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
        self, flags: int, exptime: int, done: Callable[[JournalError | None], None], *, sync: bool
    ) -> None:
        """All chunks have come: when they are written, stage the item at the end of each queue and call
        `done` with None; or with the error, and nothing of the item stays."""

        def written(error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                self._check()
                targets = self._targets()
                work = self._prepare(targets, sync=sync)
                if work is not None:
                    # queues may come and go meanwhile, so all is looked at again
                    self.queue.journal.offload(work, written)
                    return
                self._stage(targets, flags, exptime, sync=sync)
            except (JournalError, OSError, ValueError) as failure:
                self.abandon()
                done(failure if isinstance(failure, JournalError) else JournalError(str(failure)))
            else:
                done(None)

        try:
            sync = sync or any(queue.syncs_always for queue in self._targets())
        except JournalError as failure:
            self.abandon()
            done(failure)
        else:
            self._writer.finish(written, sync=sync)

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
        blob = journal.begin_blob()
        self._links[queue] = journal, journal.generation, blob
        link = journal.blob_path(blob)
        link.parent.mkdir(mode=0o700, exist_ok=True)
        link.hardlink_to(self._path)
        return link

    def _stage(self, targets: Sequence["Queue"], flags: int, exptime: int, *, sync: bool) -> None:
        now = self.queue.clock()
        expires = expires_ms(exptime, now)
        for queue in targets:
            blob = self._blob if queue is self.queue else self._links.pop(queue, (None, 0, 0))[2]
            if blob:
                item = Item(0, flags, expires, now, None, blob, self._size, CHUNK_BYTES)
            else:
                item = Item(0, flags, expires, now, self._data)
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
        "_idle_id",
        "_idle_ms",
        "_is_synced",
        "_opened",
        "_reads",
        "canceled_transactions",
        "clock",
        "discarded",
        "expired_items",
        "failure",
        "journal",
        "name",
        "on_unsynced",
        "reserved",
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
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
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
        self._is_synced = settings.sync_ms is not None

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

    def reload(self) -> None:
        """Start over from what the journal has on disk, after it was reopened or failed to."""
        self.failure = self.journal.failed
        if self.failure is not None:
            return
        try:
            self.reserved = {
                id: item for id, item in self.reserved.items() if self.journal.find(id) is not None
            }
            self._load()
            self._serve()
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
        return self.journal.state.bytes - sum(item.size for item in self.reserved.values())

    @property
    def age_ms(self) -> int:
        """How long the last item fetched had waited; 0 if the queue is empty."""
        return self._age_ms if self.items else 0

    # In

    def push(self, data: bytes, flags: int, exptime: int, *, sync: bool) -> None:
        """Stage an item at the end. `exptime` is memcache's; with `sync` its commit waits for the disk."""
        now = self.clock()
        self.append(Item(0, flags, expires_ms(exptime, now) if exptime else 0, now, data), sync=sync)

    def append(self, item: Item, *, sync: bool) -> None:
        """Stage `item` at the end."""
        if self.failure is not None:
            raise self.failure
        journal = self.journal
        journal.put(item)
        if sync or self._is_synced:
            self._sync(at_once=sync)
        self.total_items += 1
        if self._reads == item.id and self.window_bytes < WINDOW_BYTES:
            self._reads += 1
            self.window.append(item)
            self.window_bytes += item.memory_bytes + ITEM_BYTES
        if self.waiters:
            self._serve()

    def upload(self, targets: Callable[[], Sequence["Queue"]] | None = None) -> Upload:
        """Begin an item that comes in chunks, for this queue or for `targets`: see `Upload`."""
        if self.failure is not None:
            raise self.failure
        return Upload(self, targets)

    # Syncing

    @property
    def syncs_always(self) -> bool:
        """Whether each set waits for the disk, asked to or not."""
        return self.settings.sync_ms == 0

    def _sync(self, *, at_once: bool) -> None:
        """What was just put is to be on the disk itself, with its batch or some time later."""
        if at_once or self.syncs_always:
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

    # Out

    def _head(self) -> Item | None:
        """Return the oldest waiting item that has not expired, still in the window."""
        if self.failure is not None:
            raise self.failure
        while self.window or self._read_ahead():
            item = self.window[0]
            if not item.expires_ms or item.expires_ms > self.clock():
                if item.blob:
                    self._opened = self.open_blob(item)
                return item
            self._shift()
            self.journal.remove(item)
            self.expired_items += 1
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
        del self.reserved[item.id]
        self.journal.remove(item)

    def abort(self, item: Item) -> None:
        """Put a reserved item back at the head: it is the next one fetched."""
        if not self.is_reserved(item):
            return
        del self.reserved[item.id]
        if self.failure is not None:
            return
        self.canceled_transactions += 1
        item.attempts = min(item.attempts + 1, 0xFFFF)
        self.journal.rewrite(item)
        self.window.appendleft(item)
        self.window_bytes += item.memory_bytes + ITEM_BYTES
        self._serve()

    def is_reserved(self, item: Item) -> bool:
        """Whether an item that was reserved still is."""
        # not if it went with a batch that failed, or with the queue; its id may be another's by now
        return self.reserved.get(item.id) is item

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
        if self.failure is not None or state.items or self.waiters:
            self._idle_ms = None
            return False
        # an item may have come and gone unseen
        if self._idle_ms is None or self._idle_id != state.next_id:
            self._idle_ms, self._idle_id = now_ms, state.next_id
        max_age_ms = self.settings.max_queue_age_ms
        return max_age_ms is not None and now_ms - self._idle_ms >= max_age_ms

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
        self.journal.retire()
        self.failure = JournalError("the queue was deleted")
        self.journal.on_reopen = lambda: None

    def acknowledge(self, client: Client, slot: int) -> None:
        """Have `client` hear if what reply `slot` says comes to nothing."""
        journal = self.journal
        if journal.dirty or journal.writing is not None:
            journal.acknowledge(client, slot)

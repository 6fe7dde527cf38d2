"""An item too large for memory that is being received: its bytes go to a file, chunk by chunk."""

import functools
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from darner._records import CHUNK_BYTES, Item
from darner.errors import DarnerError, InternalError, JournalError, UnavailableError
from darner.journal.blob import BlobWriter, MemoryWriter, read_whole
from darner.journal.dedup_ids import Once
from darner.journal.files import sync_directory, sync_file, sync_name
from darner.journal.journal import Journal
from darner.journal.whole_blobs import link_blob, write_blob
from darner.queues.group import all_or_none, count_duplicates, make_room, takers
from darner.queues.queue import Queue, expires_ms
from darner.queues.receipt import Receipt


def _sync_link(link: Path) -> None:
    sync_file(link)
    sync_directory(link.parent)
    sync_directory(link.parent.parent)
    sync_name(link.parent.parent)


class Links:
    """The names that the file of an upload has with other queues: a blob of each, which no item owns yet."""

    __slots__ = ("_blobs",)

    def __init__(self) -> None:
        # the blob, and the generation of its queue's journal: that changes when the queue is deleted
        self._blobs: dict[Queue, tuple[int, int]] = {}

    def has(self, queue: Queue) -> bool:
        """Return whether the file has a name with `queue`."""
        return queue in self._blobs and self._blobs[queue][1] == queue.journal.generation

    def add(self, queue: Queue, blob: int) -> Path:
        """Note that `blob` of `queue` is a name of the file, and return it."""
        self._blobs[queue] = blob, queue.journal.generation
        return queue.journal.blobs.path_of(blob)

    def blob(self, queue: Queue) -> int:
        """Return the blob that is the name with `queue`."""
        return self._blobs[queue][0]

    def hand_over(self, queue: Queue) -> None:
        """Forget the name with `queue`, which an item owns now."""
        self._blobs.pop(queue, None)

    def abandon(self) -> None:
        """Have the names deleted that no item owns."""
        for queue, (blob, generation) in self._blobs.items():
            if generation == queue.journal.generation:
                queue.journal.abandon_blob(blob)
        self._blobs.clear()


class RepeatedUpload:
    """An item too large for memory that all of its queues have had: its bytes are thrown away."""

    __slots__ = ("_sync", "queues", "stored")

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.queues = queues
        self.stored: Collection[Queue] = ()
        self._sync = False
        count_duplicates(queues, ())

    @property
    def receipt(self) -> Receipt:
        """What the client is told."""
        return Receipt(self.queues, self.stored, sync=self._sync)

    def write(self, data: bytes) -> None:
        """Throw a chunk away."""

    def is_backlogged(self, room: Callable[[], None]) -> bool:  # noqa: ARG002
        """Return that the sender need not wait."""
        return False

    def finish(
        self,
        flags: int,  # noqa: ARG002
        exptime: int,  # noqa: ARG002
        done: Callable[[DarnerError | None], None],
        *,
        sync: bool,
        delay_ms: int = 0,  # noqa: ARG002
    ) -> None:
        """Call `done`: there is nothing to do."""
        self._sync = sync
        done(None)

    def abandon(self) -> None:
        """Do nothing: nothing is kept."""


class Upload:
    """An item too large for memory that is being received for a queue, or for several.

    Its bytes are written once, among the blobs of `queue`. When all have come, each other queue gets a hard
    link to that file: a name of its own, which it deletes as any blob. A queue in memory gets a copy there.
    If `queue` is in memory itself, the bytes are collected there, and queues on disk that are added until
    all have come get a file each.
    """

    __slots__ = (
        "_blob",
        "_check_sets",
        "_counted_bytes",
        "_data",
        "_dedup_id",
        "_generation",
        "_is_put",
        "_links",
        "_size",
        "_sync",
        "_targets",
        "_writer",
        "queue",
        "queues",
        "stored",
    )

    _writer: BlobWriter | MemoryWriter

    def __init__(
        self,
        queue: Queue,
        targets: Callable[[], Sequence[Queue]] | None = None,
        check_sets: Callable[[], None] = lambda: None,
        dedup_id: bytes | None = None,
    ) -> None:
        """Begin an item for the queues that `targets` returns when all bytes have come: only `queue` by
        default. Those that remember a set with this id then are left out. `check_sets` raises
        UnavailableError if sets are refused meanwhile.

        Raises JournalError if its file cannot be made.
        """
        journal = queue.journal
        self.queue = queue
        # the queues it was for in the end, and those that the item was put in
        self.queues: Sequence[Queue] = ()
        self.stored: Collection[Queue] = ()
        self._dedup_id = dedup_id
        self._targets = targets or (lambda: (queue,))
        self._check_sets = check_sets
        self._generation = journal.generation
        self._size = 0
        # whether the client has asked for a sync
        self._sync = False
        # how many of its bytes count against the limits of the queue
        self._counted_bytes = 0
        # 0 if the item is in memory
        self._blob = 0
        # whether the file belongs to an item that was put
        self._is_put = False
        self._links = Links()
        # the whole item, if a queue in memory needs it
        self._data: bytes | None = None
        if not queue.is_durable:
            self._writer = MemoryWriter()
            return
        self._blob = journal.begin_blob()
        try:
            self._writer = BlobWriter(self._path, journal.offload)
        except JournalError:
            journal.abandon_blob(self._blob)
            raise

    @property
    def _path(self) -> Path:
        return self.queue.journal.blobs.path_of(self._blob)

    @property
    def receipt(self) -> Receipt:
        """What the client is told, once `finish` has called `done` without an error."""
        return Receipt(self.queues, self.stored, sync=self._sync)

    def _check_queue(self) -> None:
        if self._generation != self.queue.journal.generation:
            raise JournalError("the queue was deleted while the item was being sent")

    def write(self, data: bytes) -> None:
        """Write the next chunk: CHUNK_BYTES bytes, or less if it is the last."""
        self._check_queue()
        self._check_sets()
        if not self._blob:
            self.queue.limits.count_upload(len(data))
            self._counted_bytes += len(data)
        self._writer.write(data)
        self._size += len(data)

    def is_backlogged(self, room: Callable[[], None]) -> bool:
        """Return whether the sender must wait; then `room` is called when it may go on."""
        return self._writer.must_wait(room)

    def finish(
        self,
        flags: int,
        exptime: int,
        done: Callable[[DarnerError | None], None],
        *,
        sync: bool,
        delay_ms: int = 0,
    ) -> None:
        """Put the item, all of whose chunks have come, at the end of each queue as soon as they are written,
        or have it join that in `delay_ms`, and call `done` with None. If that fails, call it with the error;
        then nothing of the item is left. With `sync`, or if a queue is synced, the file is on the disk before
        the item is put."""
        self._sync = sync
        try:
            self._check_sets()
            # a file is not synced later, when the log is
            sync = sync or any(queue.syncs for queue in self._targets())
        except UnavailableError as failure:
            self.abandon()
            done(failure)
        else:
            put = functools.partial(self._put, flags=flags, exptime=exptime, delay_ms=delay_ms)
            self._writer.finish(functools.partial(self._finish_written, put, done, sync), sync=sync)

    def _finish_written(
        self,
        put: Callable[[dict[Queue, Once | None]], None],
        done: Callable[[DarnerError | None], None],
        sync: bool,
        error: Exception | None,
    ) -> None:
        try:
            self._check_queue()
            if error is not None:
                raise error if isinstance(error, DarnerError) else JournalError(str(error))
            self.queues = self._targets()
            targets = takers(self.queues, self._dedup_id)
            work = self._prepare(targets, sync=sync)
            if work is not None:
                # other queues may be the targets by then, so all is checked again
                self.queue.journal.offload(work, functools.partial(self._finish_written, put, done, sync))
                return
            put(targets)
        except DarnerError as failure:
            self.abandon()
            done(failure)
        except Exception as failure:  # `on_fault` reports it
            self.queue.on_fault(self.queue, failure)
            done(InternalError(failure))
        else:
            self._uncount()
            done(None)

    def _prepare(self, targets: Collection[Queue], *, sync: bool) -> Callable[[], None] | None:
        """Have the bytes where each of `targets` keeps them. Returns the part of that to be done in a thread,
        or None."""
        if isinstance(self._writer, MemoryWriter):
            self._data = self._writer.data
        links = []
        copies: list[tuple[Path, Path]] = []
        reads = False
        for queue in targets:
            if not queue.is_durable:
                reads = self._data is None
            elif queue is not self.queue and not self._links.has(queue):
                links.append(self._links.add(queue, self._begin_blob(queue.journal, copies)))

        def work() -> None:
            for copy in copies:
                shutil.copyfile(*copy)
            if sync:
                for link in links:
                    _sync_link(link)
            if reads:
                self._data = read_whole(self._path, self._size)

        return work if reads or copies or (links and sync) else None

    def _begin_blob(self, journal: Journal, copies: list[tuple[Path, Path]]) -> int:
        if self._blob:
            return link_blob(journal, self._path, copies)
        return write_blob(journal, self._data or b"")

    def _put(self, targets: dict[Queue, Once | None], flags: int, exptime: int, delay_ms: int) -> None:
        now = self.queue.times.now()
        expires = expires_ms(exptime, now)
        make_room(targets, self._size)
        with all_or_none(targets, 0):
            for queue, once in targets.items():
                if not queue.is_durable:
                    item = Item(0, flags, expires, now, self._data)
                else:
                    blob = self._blob if queue is self.queue else self._links.blob(queue)
                    item = Item(0, flags, expires, now, None, blob, self._size, CHUNK_BYTES)
                queue.put(item, delay_ms, once)
                self._is_put |= queue is self.queue
                self._links.hand_over(queue)
        self.stored = targets
        if self._dedup_id is not None:
            count_duplicates(self.queues, targets)
        if not self._is_put:
            self.abandon()
        self._links.abandon()
        for queue in targets:
            queue.serve()

    def _uncount(self) -> None:
        """Stop counting the bytes against the limits: the item was put, or abandoned."""
        self.queue.limits.uploading_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def abandon(self) -> None:
        """Drop the item: nothing of it is left."""
        self._uncount()

        def forget_blob() -> None:
            if self._blob:
                self.queue.journal.abandon_blob(self._blob)

        self._links.abandon()
        if not self._is_put:
            self._writer.abandon(forget_blob)

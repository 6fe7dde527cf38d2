"""An item too large for memory on its way in."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from darner._records import CHUNK_BYTES, Item
from darner.errors import DarnerError, FaultError, JournalError, UnavailableError
from darner.journal.blob import BlobWriter, MemoryWriter, read_whole
from darner.journal.files import sync_directory, sync_file, sync_name
from darner.journal.journal import Journal
from darner.queues.queue import Queue, all_or_none, expires_ms, make_room


class Upload:
    """An item too large for memory on its way into a queue, or several, chunk by chunk.

    Its bytes are written once, among the blobs of `queue`. When they are whole, each other queue the item
    is for gets a hard link to that file: a name of its own, which it deletes as any blob. A queue that is
    in memory alone has them there; if there was no other when the item was begun, they are written when it is
    whole.
    """

    __slots__ = (
        "_blob",
        "_check_sets",
        "_data",
        "_generation",
        "_is_put",
        "_links",
        "_size",
        "_taken_up",
        "_targets",
        "_writer",
        "queue",
        "queues",
    )

    _writer: BlobWriter | MemoryWriter

    def __init__(
        self,
        queue: Queue,
        targets: Callable[[], Sequence[Queue]] | None = None,
        check_sets: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin an item for the queues that `targets` says when the item is whole: only `queue` by default.
        `check_sets` raises UnavailableError once nothing is taken in.

        Raises JournalError if its file cannot be made.
        """
        journal = queue.journal
        self.queue = queue
        # where the item is, once it is whole
        self.queues: Sequence[Queue] = ()
        self._targets = targets or (lambda: (queue,))
        self._check_sets = check_sets
        self._generation = journal.generation
        self._size = 0
        # how many bytes of it the queue counts as on their way
        self._taken_up = 0
        # 0 if the item is in memory
        self._blob = 0
        # whether the file is an item's
        self._is_put = False
        # the names of the file with other queues: the journal's generation then, and the blob there
        self._links: dict[Queue, tuple[int, int]] = {}
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

    def _check(self) -> None:
        if self._generation != self.queue.journal.generation:
            raise JournalError("the queue was deleted while the item was being sent")

    def write(self, data: bytes) -> None:
        """Take the next chunk: CHUNK_BYTES bytes, or less if it is the last."""
        self._check()
        self._check_sets()
        if not self._blob:
            self.queue.take_up(len(data))
            self._taken_up += len(data)
        self._writer.write(data)
        self._size += len(data)

    def is_backlogged(self, room: Callable[[], None]) -> bool:
        """Whether the sender should wait; then `room` is called when it may go on."""
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
        """All chunks have come: when they are written, put the item at the end of each queue, or let it
        come there in `delay_ms`, and call `done` with None; or with the error, and nothing of the item
        stays. With `sync`, or if a queue is synced, its file is on the disk by then."""

        try:
            self._check_sets()
            # a file is not synced later, when the log is
            sync = sync or any(queue.syncs for queue in self._targets())
        except UnavailableError as failure:
            self.abandon()
            done(failure)
        else:
            put = functools.partial(self._put, flags=flags, exptime=exptime, delay_ms=delay_ms)
            self._writer.finish(functools.partial(self._written, put, done, sync), sync=sync)

    def _written(
        self,
        put: Callable[[Sequence[Queue]], None],
        done: Callable[[DarnerError | None], None],
        sync: bool,
        error: Exception | None,
    ) -> None:
        try:
            self._check()
            if error is not None:
                raise error if isinstance(error, DarnerError) else JournalError(str(error))
            targets = self._targets()
            work = self._prepare(targets, sync=sync)
            if work is not None:
                # queues may come and go meanwhile, so all is looked at again
                self.queue.journal.offload(work, functools.partial(self._written, put, done, sync))
                return
            put(targets)
        except DarnerError as failure:
            self.abandon()
            done(failure)
        except Exception as failure:  # said by who is told
            self.queue.on_fault(self.queue, failure)
            done(FaultError(failure))
        else:
            self._let_go()
            done(None)

    def _prepare(self, targets: Sequence[Queue], *, sync: bool) -> Callable[[], None] | None:
        """Have the bytes where each of `targets` wants them; returns what is left to do of that in a
        thread, or None."""
        if isinstance(self._writer, MemoryWriter):
            self._data = self._writer.data
        links = []
        copies: list[tuple[Path, Path]] = []
        reads = False
        for queue in targets:
            journal = queue.journal
            if not queue.is_durable:
                reads = self._data is None
            elif queue is not self.queue and not self._is_linked(queue):
                blob = self._begin_link(journal, copies)
                self._links[queue] = journal.generation, blob
                links.append(journal.blobs.path_of(blob))

        def work() -> None:
            for copy in copies:
                shutil.copyfile(*copy)
            if sync:
                for link in links:
                    sync_file(link)
                    sync_directory(link.parent)
                    sync_directory(link.parent.parent)
                    sync_name(link.parent.parent)
            if reads:
                self._data = read_whole(self._path, self._size)

        return work if reads or copies or (links and sync) else None

    def _begin_link(self, journal: Journal, copies: list[tuple[Path, Path]]) -> int:
        return journal.link_blob(self._path, copies) if self._blob else journal.write_blob(self._data or b"")

    def _is_linked(self, queue: Queue) -> bool:
        return self._links.get(queue, (-1, 0))[0] == queue.journal.generation

    def _put(self, targets: Sequence[Queue], flags: int, exptime: int, delay_ms: int) -> None:
        now = self.queue.clock()
        expires = expires_ms(exptime, now)
        make_room(targets, self._size)
        with all_or_none(targets, 0):
            for queue in targets:
                if not queue.is_durable:
                    item = Item(0, flags, expires, now, self._data)
                else:
                    blob = self._blob if queue is self.queue else self._links[queue][1]
                    item = Item(0, flags, expires, now, None, blob, self._size, CHUNK_BYTES)
                queue.put(item, delay_ms)
                self._is_put |= queue is self.queue
                self._links.pop(queue, None)
        self.queues = targets
        if not self._is_put:
            self.abandon()
        self._abandon_links()
        for queue in targets:
            queue.serve()

    def _let_go(self) -> None:
        """The item is not on its way any more."""
        self.queue.uploading_bytes -= self._taken_up
        self._taken_up = 0

    def abandon(self) -> None:
        """Forget the item: nothing of it stays."""
        self._let_go()

        def gone() -> None:
            if self._blob:
                self.queue.journal.abandon_blob(self._blob)

        self._abandon_links()
        if not self._is_put:
            self._writer.abandon(gone)

    def _abandon_links(self) -> None:
        for queue, (generation, blob) in self._links.items():
            if generation == queue.journal.generation:
                queue.journal.abandon_blob(blob)
        self._links.clear()

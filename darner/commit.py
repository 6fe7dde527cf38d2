"""Group commit: what changed in one turn of the event loop, over all queues, written once.

Small batches are written at once, on the caller's thread: one system call. A batch with a sync in it,
or a large one, which may have to wait for LevelDB to make room, is written in another thread; until
that is done, what comes for the same journal is staged behind it. So one slow disk write stops neither
the event loop nor the other queues.
"""

from collections.abc import Callable
from typing import Any

from darner.blob import Offload
from darner.errors import JournalError
from darner.journal import Batch, Journal

# A batch with more bytes of items than this is written in a thread.
INLINE_BYTES = 256 << 10


class Committer:
    """Writes the staged batches of all journals."""

    __slots__ = ("_dirty", "offload", "on_failure")

    def __init__(self, offload: Offload) -> None:
        self.offload = offload
        self._dirty: list[Journal] = []
        # told of each batch that was lost, for the log
        self.on_failure: Callable[[Journal, JournalError], None] = lambda *_: None

    def add(self, journal: Journal) -> None:
        """`journal` has a batch to be written; each journal says so once a batch."""
        self._dirty.append(journal)

    @property
    def pending(self) -> bool:
        """Whether `commit` has anything to do."""
        return bool(self._dirty)

    def commit(self) -> None:
        """Write all that is staged; on return it is on disk, or its clients were told to hold."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for journal in dirty:
                # one that is being written is committed again when that is done
                if journal.writing is None and journal.dirty:
                    self._commit(journal)

    def _commit(self, journal: Journal) -> None:
        batch = journal.batch
        offload = batch.sync or batch.bytes > INLINE_BYTES
        try:
            write = journal.seal(held=offload)
            if write is not None and offload:
                self._write_in_thread(journal, batch, write)
                return
            if write is not None:
                journal.write(write)
        except Exception as error:  # whatever it is, nothing may be acknowledged
            self._recover(journal, batch, JournalError(str(error)))
        else:
            self._settle(journal, batch)

    def _write_in_thread(self, journal: Journal, batch: Batch, write: Any) -> None:
        journal.writing = batch
        if not batch.held:
            batch.held = True
            for client, _ in batch.acks:
                client.hold()

        def done(error: Exception | None) -> None:
            journal.writing = None
            if error is None:
                self._settle(journal, batch)
            else:
                self._recover(journal, batch, JournalError(str(error)))
            if journal.dirty or journal.batch.acks:
                self._commit(journal)

        self.offload(lambda: journal.write(write), done)

    def _settle(self, journal: Journal, batch: Batch) -> None:
        journal.committed_id = next(iter(journal.batch.puts), journal.state.next_id)
        if batch.held:
            for client, _ in batch.acks:
                client.release()

    def _recover(self, journal: Journal, batch: Batch, error: JournalError) -> None:
        staged = journal.batch
        self.on_failure(journal, error)
        try:
            journal.reopen()
        except JournalError as failure:
            self.on_failure(journal, failure)
            written = False
        else:
            # Opening has replayed LevelDB's log into a table and synced that, so what it shows is safe.
            written = journal.state.batch == batch.number
        journal.on_reopen()
        # what was staged behind the batch stands on it
        for lost in (staged,) if written or staged is batch else (batch, staged):
            for client, slot in lost.acks:
                client.fail(slot, error)
        if staged is not batch and staged.held:
            for client, _ in staged.acks:
                client.release()
        self._settle(journal, batch)

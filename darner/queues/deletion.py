"""Deletion of queues: what becomes of their journals and files.

A queue's deletion is logged at once. Its files are deleted when that is synced to the disk: if they were
deleted before, and then the machine failed, the log would have changes to a queue without files.
"""

import functools
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from darner.environment.environment import Environment
from darner.errors import JournalError
from darner.journal.disk_reserve import is_full
from darner.journal.files import sync_blobs
from darner.journal.journal import Journal
from darner.journal.leveldb import reason
from darner.journal.writing import end_work
from darner.queues import trash
from darner.queues.names import name_of
from darner.queues.slices import Slices
from darner.queues.space import Space
from darner.queues.storage import Storage

log = structlog.get_logger()


class DeletionSync:
    """Stands in for a client at a sync of the log that deletions wait for."""

    def __init__(self, on_synced: Callable[[], object]) -> None:
        self._on_synced = on_synced
        # whether a sync is under way
        self.is_waiting = False

    def hold(self) -> None:
        """Note that the sync is under way."""
        self.is_waiting = True

    def fail(self, slot: int, error: JournalError) -> None:
        """Leave it to a later tick to ask again."""

    def release(self) -> None:
        """Go on: the log is on the disk."""
        self.is_waiting = False
        self._on_synced()


class Deletion:
    """The journals of deleted queues, until their files are deleted."""

    def __init__(self, environment: Environment, storage: Storage, space: Space) -> None:
        self._environment = environment
        self._storage = storage
        self._space = space
        # journals whose files are still there, in the order of deletion, and where the log has their deletion
        self._retired: dict[bytes, tuple[Journal, tuple[int, int]]] = {}
        self._sync = DeletionSync(self._delete_round)
        # those whose turn in this round is still to come
        self._round: deque[bytes] = deque()
        self._slices = Slices(environment, self._delete_slice, lambda: bool(self._round))
        # those whose files could not be deleted, which was logged
        self._undeleted: set[Journal] = set()
        # what is left to do for directories in the trash that could not be removed, and whose they were
        self._unremoved: deque[tuple[trash.Work, Journal]] = deque()
        # queues whose directories are being emptied in place, and the error of whoever asks for such a queue
        self._being_emptied: dict[bytes, JournalError] = {}

    # Queues

    def retire(self, journal: Journal) -> None:
        """Delete the files of `journal`, whose queue was deleted, as soon as that is safe."""
        # They stay until the log is synced up to here, even if an earlier process logged the deletion: the
        # disk may have an older log, which has the queue and not its deletion.
        self._retired[journal.name] = journal, self._storage.log.position

    def revive(self, name: bytes) -> Journal | None:
        """Return the journal of a deleted queue that is made anew, or None if its files are deleted. Raises
        JournalError."""
        if name not in self._retired:
            return None
        journal, _ = self._retired[name]
        journal.revive(self._environment.clock())
        del self._retired[name]
        return journal

    def drop(self, name: bytes) -> bool:
        """Leave the files of the deleted queue `name` to the next start; returns whether there are any."""
        return self._retired.pop(name, None) is not None

    def is_being_emptied(self, name: bytes) -> bool:
        """Return whether the directory of the deleted queue `name` is being emptied in place."""
        return name in self._being_emptied

    def check(self, name: bytes) -> None:
        """Raise JournalError if the directory of the deleted queue `name` is being emptied in place."""
        error = self._being_emptied.get(name)
        if error is not None:
            raise error.with_traceback(None)

    @property
    def journals(self) -> list[Journal]:
        """The journals whose files are still to be deleted."""
        return [journal for journal, _ in self._retired.values()]

    # Rounds

    def tick(self) -> None:
        """Delete what can be deleted, in slices; to be called a few times a second."""
        if self._unremoved:
            self._remove(*self._unremoved.popleft())
        if not self._round:
            self._delete_round()
        self.sync()

    def sync(self) -> None:
        """Sync to the disk that queues were deleted; then their files are deleted."""
        if self._retired and not self._sync.is_waiting:
            _, position = next(reversed(self._retired.values()))
            if position > self._storage.log.synced:
                self._storage.log.sync(self._sync, 0)

    def _delete_round(self) -> None:
        if not self._round:
            self._round.extend(self._retired)
        self._slices.run()

    def _delete_slice(self) -> None:
        """Delete the files of those queues that the log has on the disk as deleted."""
        if self._storage.log.hold.is_held:
            self._round.clear()
        while self._round:
            name = self._round.popleft()
            if name not in self._retired:
                continue
            journal, position = self._retired[name]
            if position > self._storage.log.synced:  # so it is with all that were deleted later
                self._round.clear()
            elif journal.is_busy:
                continue
            elif journal.database.is_open or self._storage.committer.links:
                self._close(journal)
            else:
                self._delete(name, journal)
            if self._environment.budget.is_spent():
                break

    def _delete(self, name: bytes, journal: Journal) -> None:
        try:
            if self.destroy(journal):
                del self._retired[name]
        except Exception as error:  # the others are to be deleted
            self._storage.committer.set_aside(journal, error)

    def _close(self, journal: Journal) -> None:
        """Close the LevelDB of a deleted queue, in a thread, for it ends a compaction first. And sync the
        files that other queues have linked from its directory."""
        journal.writing = True
        committer = self._storage.committer
        links = list(committer.links)

        def work() -> None:
            sync_blobs(links)
            journal.close()

        def done(error: Exception | None) -> None:
            end_work(journal)
            if error is None:
                committer.forget_links(links)
            elif not isinstance(error, OSError):
                committer.set_aside(journal, error)
            else:
                self._log_undeleted(journal, error)
                return  # at the next tick again
            self._round.appendleft(journal.name)
            self._slices.run()

        self._environment.defer(work, done)

    # Files

    def destroy(self, journal: Journal) -> bool:
        """Close a journal and delete its files: they are moved out of the way at once, and deleted in a
        thread. Returns whether they are out of the way."""
        journal.close()
        # not Path.exists: a link that leads nowhere is in the way, too; and that raises
        if os.path.lexists(journal.path):
            try:
                work = trash.throw(self._storage.directories.data, journal.path)
            except OSError as error:
                if is_full(error):
                    self._space.release()
                self._log_undeleted(journal, error)
                return False
            self._undeleted.discard(journal)
            if os.path.lexists(journal.path):
                self._empty_in_place(journal.name, work, lambda: self._storage.log.unpin(journal))
            else:
                self._remove(work, journal)
        else:
            self._storage.log.unpin(journal)
            self._undeleted.discard(journal)
        self._storage.committer.discard(journal)
        return True

    def _remove(self, work: trash.Work, journal: Journal) -> None:
        """Delete the directory of a journal, which is in the trash. The log is needed until the directory
        cannot come back."""

        def remove() -> None:
            self._storage.directories.sync_removal(journal.path)
            work()

        def done(error: Exception | None) -> None:
            if error is None:
                self._storage.log.unpin(journal)
                self._undeleted.discard(journal)
            else:
                self._unremoved.append((work, journal))
                self._log_undeleted(journal, error)

        self._environment.offload(remove, done)

    def _log_undeleted(self, journal: Journal, error: Exception) -> None:
        if journal not in self._undeleted:
            self._undeleted.add(journal)
            log.error(
                "cannot delete the files of a deleted queue; tried again by itself",
                directory=str(journal.path),
                reason=reason(error),
            )

    def _empty_in_place(self, name: bytes, work: trash.Work, then: Callable[[], None]) -> None:
        """Empty a directory that cannot be moved; until that is done its queue cannot be made anew."""
        self._being_emptied[name] = JournalError(
            "the queue was deleted, and its files are being deleted; try again"
        )

        def done(error: Exception | None) -> None:
            if error is None:
                del self._being_emptied[name]
                then()
            else:
                log.error(
                    "cannot delete the files of a deleted queue; tried again at the next start",
                    directory=str(self._storage.directories.path_of(name)),
                    reason=reason(error),
                )

        self._environment.defer(work, done)

    # Start

    def resume_emptying(self, directory: Path) -> None:
        """Go on with emptying the directory of a queue, relative to the data directory, that an earlier
        process deleted."""
        path = self._storage.directories.data / directory
        self._empty_in_place(name_of(directory), functools.partial(trash.empty, path), lambda: None)

    def empty_trash(self) -> None:
        """Delete what an earlier process has left in the trash."""
        data = self._storage.directories.data
        try:
            left = list(trash.left_over(data))
        except OSError as error:
            log.warning(
                "files of deleted queues stay",
                directory=str(data / trash.TRASH_NAME),
                reason=reason(error),
            )
            return
        for work in left:
            self._environment.defer(work, lambda _: None)

"""Syncs of the write-ahead log: whoever waits for the disk shares the next one."""

import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Protocol

from darner.environment.offload import Offload
from darner.errors import JournalError
from darner.journal import leveldb
from darner.journal.files import sync_directory
from darner.journal.segment_file import SegmentFile


class Client(Protocol):
    """Whose replies wait for the disk."""

    def hold(self) -> None:
        """Send nothing until `release` was called as often as this."""

    def release(self) -> None:
        """Go on: the sync that this was held for is over."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Have reply `slot` say that what it promised did not happen."""


class Syncable(Protocol):
    """The log that is synced, as far as its syncs know it."""

    @property
    def position(self) -> tuple[int, int]:
        """Where the next change will be logged."""

    @property
    def sync_failure(self) -> JournalError | None:
        """Why a sync would be of no use, or None."""

    def fail_sync(self, files: list[SegmentFile], error: JournalError) -> None:
        """Take what is in these files for lost: their sync failed."""

    def unpin(self, pin: Hashable) -> None:
        """Let go of the segments that `pin` has kept."""


class SharedSync:
    """Syncs segments and their directory in a thread, one sync after the other."""

    def __init__(self, log: Syncable, directory: Path, offload: Offload) -> None:
        self._log = log
        self._directory = directory
        self._offload = offload
        # up to where the log is on the disk; before the first sync, nothing of it
        self.synced = (-1, 0)
        # segments that were written to and are not on the disk
        self._unsynced: list[SegmentFile] = []
        # the last segment whose name is known to be on the disk; -1 if the directory has to be synced
        self._named = -1
        self._waiting: list[tuple[Client, int]] = []
        self._is_running = False

    def add(self, file: SegmentFile) -> None:
        """Include a segment that was begun in the syncs to come."""
        self._unsynced.append(file)

    def discard(self, files: Iterable[SegmentFile]) -> None:
        """Leave these segments out from now on."""
        left_out = list(files)
        self._unsynced = [file for file in self._unsynced if file not in left_out]

    def sync_names(self) -> None:
        """Have the next sync include the directory: a name in it has changed."""
        self._named = -1

    def sync_now(self) -> None:
        """Sync all that is logged now, on this thread. Raises OSError."""
        for file in self._unsynced:
            os.fdatasync(file.descriptor)
        sync_directory(self._directory)

    def sync(self, client: Client, slot: int) -> None:
        """Hold the replies of `client` until all that is logged now is on the disk. If that fails, its reply
        `slot` is failed."""
        client.hold()
        self._waiting.append((client, slot))
        if not self._is_running:
            self._begin()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        failure = self._log.sync_failure
        if failure is not None:
            _settle(waiting, failure)
            return
        files = list(self._unsynced)
        number, offset = self._log.position
        with_names = number != self._named
        self._is_running = True
        for file in files:
            file.pins[self] = None

        def work() -> None:
            for file in files:
                os.fdatasync(file.descriptor)
            if with_names:
                sync_directory(self._directory)

        def done(error: Exception | None) -> None:
            self._is_running = False
            failure = None if error is None else JournalError(f"cannot sync the log: {leveldb.reason(error)}")
            if failure is None:
                self._named = number
                self.synced = (number, offset)
                self._unsynced = [file for file in self._unsynced if file.number >= number]
            else:
                self._log.fail_sync(files, failure)
            self._log.unpin(self)
            _settle(waiting, failure)
            if self._waiting:
                self._begin()

        self._offload(work, done)


def _settle(waiting: Iterable[tuple[Client, int]], failure: JournalError | None) -> None:
    for client, slot in waiting:
        if failure is not None:
            client.fail(slot, failure)
        client.release()


class AfterSync:
    """A client that holds nothing and calls a function when the sync it waits for is over, failed or not."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def hold(self) -> None:
        """Hold nothing."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Leave it to the log, which refuses changes until LevelDB has what may be lost."""

    def release(self) -> None:
        """Call the function."""
        self._call()

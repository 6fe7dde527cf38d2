"""Upkeep of journals that nobody waits for, in threads: compactions, deletions of files, idle LevelDBs."""

from collections.abc import Callable
from typing import Protocol

from darner.environment.offload import Offload, Timed
from darner.errors import JournalError
from darner.journal import resting, snapshot, writing
from darner.journal.journal import Journal
from darner.journal.leveldb import failure

# How many compactions go on at a time: writes are not to wait for them.
MAX_COMPACTIONS = 2


class Host(Protocol):
    """The committer, as far as upkeep knows it."""

    on_failure: Callable[[Journal, JournalError], None]

    def add(self, journal: Journal) -> None:
        """Have `journal` looked at in the rounds to come."""

    def note_open(self, journal: Journal) -> None:
        """Note that the LevelDB of `journal` was opened or written."""

    def set_aside(self, journal: Journal, error: Exception) -> None:
        """Do nothing more with `journal`: an error that nothing provides for."""

    def isolate(self, journal: Journal, work: Callable[[], None]) -> None:
        """Do some work on `journal`, and set it aside if that raises."""


class JournalUpkeep:
    """Does the upkeep of all journals."""

    def __init__(self, host: Host, defer: Offload, stopwatch_ns: Callable[[], int]) -> None:
        self._host = host
        self._defer = defer
        self.compactions = Timed(defer, stopwatch_ns)
        # how many are going on
        self._compactions = 0
        # journals of which it was told that a file cannot be deleted
        self._told: set[Journal] = set()

    def discard(self, journal: Journal) -> None:
        """Forget about `journal`."""
        self._told.discard(journal)

    def compact(self, journal: Journal) -> None:
        """Compact what was deleted in `journal`, if that is due and not too many compactions go on."""
        if self._compactions >= MAX_COMPACTIONS:
            return
        is_due = journal.compaction.is_due(is_short=journal.writer.space_is_short)
        if not is_due or journal.failing is not None:
            return
        span = journal.compaction.begin()
        self._compactions += 1

        def done(error: Exception | None) -> None:
            self._compactions -= 1
            if journal.fault is not None or journal.log is None:
                return
            if error is None:
                self._host.isolate(journal, lambda: self._host.note_open(journal))
                self._host.isolate(journal, lambda: writing.end_compaction(journal))
            else:
                self._host.isolate(journal, journal.compaction.fail)

        self.compactions(lambda: writing.compact(journal, span), done)

    def delete_blobs(self, journal: Journal) -> None:
        """Delete the files of large items that are gone."""
        blobs = journal.blobs.take_obsolete(journal.database.stored_change)
        if not blobs:
            return

        def done(error: Exception | None) -> None:
            if journal.log is None or journal.fault is not None:
                return
            if error is None:
                self._told.discard(journal)
                self._host.isolate(journal, lambda: journal.forget_blobs(blobs))
                return
            journal.blobs.take_back_obsolete(blobs)
            self._host.add(journal)
            if journal not in self._told:
                self._told.add(journal)
                what = f"cannot delete an item's file in {journal.path}"
                self._host.on_failure(journal, failure(what, error))

        self._defer(lambda: journal.blobs.delete(blobs), done)

    def rest(self, journal: Journal, *, for_space: bool) -> None:
        """Close the LevelDB of `journal`, with its memory and descriptors; `for_space` so that it takes the
        least room on the disk."""
        journal.dedup_ids.release()
        state = resting.resting_state(journal)
        close = journal.database.close_small if for_space else journal.close
        self._have_done(journal, lambda: close(state))

    def settle(self, journal: Journal, boot: int) -> None:
        """Leave a snapshot of `journal`, which has nothing to be written: if the process is killed, the next
        one of this `boot` of the machine need not open its LevelDB."""
        record = resting.resting_state(journal)
        if record and journal.database.is_open:
            content = snapshot.encode_settled(record, boot)
            self._have_done(journal, lambda: journal.database.settle(content))

    def _have_done(self, journal: Journal, work: Callable[[], None]) -> None:
        """Have a thread do `work`; nothing is written to the LevelDB of `journal` meanwhile."""
        journal.writing = True

        def done(error: Exception | None) -> None:
            writing.end_work(journal)
            if error is not None:
                self._host.set_aside(journal, error)

        self._defer(work, done)

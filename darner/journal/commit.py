"""Group commit: what is staged in the journals is written to their LevelDBs, many changes as one.

A change is safe once it is in the log; here it is only carried on, in threads. So no client waits for it,
unless items come faster than LevelDB takes them. Each round over the journals also has their upkeep done.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from darner._records import trim_memory
from darner.environment.environment import Environment
from darner.environment.offload import Timed
from darner.errors import InternalError, JournalError
from darner.journal import resting, writing
from darner.journal.batch import STAGED_BYTES
from darner.journal.database import WRITE_BUFFER_BYTES
from darner.journal.disk_reserve import Reserve, is_full
from darner.journal.files import sync_blobs
from darner.journal.journal import Journal
from darner.journal.journal_upkeep import JournalUpkeep
from darner.journal.leveldb import failure
from darner.journal.open_databases import MAX_OPEN, OpenDatabases
from darner.journal.wal import Log
from darner.journal.wal_sync import AfterSync

# How many ticks a change may stay in the log alone; and then on the way to LevelDB, before the log is synced
# for it.
MAX_TICKS = 4
# After how many ticks without anything to do the LevelDB of a journal is closed: opening it again takes 1.5
# ms.
REST_TICKS = 20
# How many journals are begun to be written in one tick, those first that have waited longest: each costs an
# fsync.
WRITES_PER_TICK = 64
# How many when the log has become too long: the others when it has grown on, or at a tick.
WRITES_WHEN_LONG = 128
# And how many when the server closes.
WRITES_AT_CLOSE = 500
# How many journals that could not be written are tried again in one tick, one after the other: for each a
# LevelDB is opened, which takes room.
RETRIES_PER_TICK = 16
# LevelDB takes no less.
MIN_BUFFER_BYTES = 64 << 10
# How many items or ids that nobody needs are freed before the budget is asked.
FREED_AT_ONCE = 1024


class Committer:
    """Has the staged batches of all journals written, and sees to their upkeep.

    A journal is *active* as long as there is something to do for it. A tick begins a round over the active
    journals, which takes as many turns as its budget of time makes it.
    """

    __slots__ = (
        "_active", "_budget", "_defer", "_is_late", "_log", "_may_sync", "_open", "_reserve", "_retries",
        "_retrying", "_round", "_sealed", "_sealed_bytes", "_syncing", "_ticks", "_told", "_unmended",
        "_unneeded", "_untrimmed", "_upkeep", "_writes_left", "boot", "links", "offload", "on_damage",
        "on_failure", "on_fault", "on_quarantine", "on_recovery", "on_resume", "on_staged",
        "space_is_scarce", "space_is_short", "write_buffer_bytes", "writes",
    )  # fmt: skip

    def __init__(
        self,
        log: Log,
        environment: Environment,
        max_open: int = MAX_OPEN,
        reserve: Reserve | None = None,
    ) -> None:
        """`max_open`: how many LevelDBs may be open. `reserve` is released when the disk is full. A round
        pauses when the budget of `environment` is spent, which the caller has begun."""
        self._log = log
        self._reserve = reserve
        # whether free space is short: what gives some back does not wait
        self.space_is_short = False
        # whether it may soon be: little is to be on its way to LevelDB at a time
        self.space_is_scarce = False
        self.write_buffer_bytes = WRITE_BUFFER_BYTES
        if reserve is not None and reserve.size:
            # Two buffers are written out when LevelDB is opened anew: the reserve has to have room for that.
            self.write_buffer_bytes = min(WRITE_BUFFER_BYTES, max(MIN_BUFFER_BYTES, reserve.size // 8))
        self.offload = environment.offload
        self.boot = environment.boot
        self._defer = environment.defer
        # has batches written
        self.writes = Timed(environment.defer, environment.stopwatch_ns)
        self._open = OpenDatabases(lambda journal: self.isolate(journal, lambda: _close(journal)), max_open)
        self._upkeep = JournalUpkeep(self, self._defer, environment.stopwatch_ns)
        # the active journals, and for how many ticks they have been so; the one last written comes last
        self._active: dict[Journal, int] = {}
        # those that are being written, and at which tick that was begun
        self._sealed: dict[Journal, int] = {}
        self._ticks = 0
        self._budget = environment.budget
        # the journals that are still to come in this round, and how many of them may be begun to be written
        self._round: deque[Journal] = deque()
        self._writes_left = 0
        # whether some have waited too long, whether the log may be synced for them, and whether it is being
        self._is_late = self._may_sync = self._syncing = False
        # the files of blobs that are not known to be on the disk, and belong to changes of several journals
        self.links: dict[Path, None] = {}
        # removed items and outdated ids, to be freed in slices
        self._unneeded: list[dict[Any, Any]] = []
        # whether anything was written or freed since memory was given back to the system
        self._untrimmed = False
        # the journals that could not be written and are to be tried in this tick, and the one that is tried
        self._retries: deque[Journal] = deque()
        self._retrying: Journal | None = None
        # the journals that could not be mended since the last tick, with the keys for which it was of no use
        self._unmended: dict[Journal, set[bytes]] = {}
        # called when what is staged may have become too much for the disk; and how much was sealed since then
        self.on_staged: Callable[[], None] = lambda: None
        self._sealed_bytes = 0
        # Called when a journal cannot be written, and when it can again; but not if the disk is full: then
        # the reserve is released, which concerns all journals. And those of which it was called.
        self.on_failure: Callable[[Journal, JournalError], None] = lambda *_: None
        self.on_recovery: Callable[[Journal], None] = lambda _: None
        self._told: set[Journal] = set()
        # called when a journal was set aside
        self.on_fault: Callable[[Journal, InternalError], None] = _raise
        # called by a journal when it cannot read something for the first time
        self.on_damage: Callable[[Journal, JournalError], None] = lambda *_: None
        # called by a journal that goes on without what is damaged: its ids, why, and where what is left is
        # put
        self.on_quarantine: Callable[[Journal, str, str, Path | None], None] = lambda *_: None
        # called by a journal when it can be read on
        self.on_resume: Callable[[Journal], None] = lambda _: None
        log.on_long = self._shorten_log

    # Which journals there are

    def add(self, journal: Journal) -> None:
        """Make `journal` active: it has something to be written or tidied."""
        if journal.log is not None and journal.fault is None:
            self._active.setdefault(journal, 0)

    def discard(self, journal: Journal) -> None:
        """Forget about `journal`, which is deleted, or was not opened after all."""
        self._forget(journal)
        # Segments of the log that are pinned by it stay so.
        journal.log = None

    def _forget(self, journal: Journal) -> None:
        self._active.pop(journal, None)
        self._sealed.pop(journal, None)
        self._open.discard(journal)
        self._upkeep.discard(journal)
        self._told.discard(journal)

    def set_aside(self, journal: Journal, error: Exception) -> None:
        """Do nothing more with `journal`, for an error that nothing provides for: the others go on."""
        if journal.fault is None:
            fault = InternalError(error)
            self._forget(journal)
            writing.set_aside(journal, fault)
            self.on_fault(journal, fault)

    def isolate(self, journal: Journal, work: Callable[[], None]) -> None:
        """Do some work on `journal`, unless it is set aside, and set it aside if that raises."""
        if journal.fault is None:
            try:
                work()
            except Exception as error:  # `on_fault` reports it
                self.set_aside(journal, error)

    def note_open(self, journal: Journal) -> None:
        """Note that the LevelDB of `journal` was opened or written; another one may be closed for it."""
        self._open.note(journal)

    # Writing

    def checkpoint(self, journal: Journal) -> None:
        """Have what `journal` has staged written to its LevelDB, in a thread."""
        if self._log.segment.in_group:  # no part of a group by itself
            self._log.after_group.append(lambda: self.checkpoint(journal))
        elif not journal.writing and journal.log is not None:
            self.isolate(journal, lambda: self._checkpoint(journal))

    def _checkpoint(self, journal: Journal) -> None:
        writing.seal(journal, tidy=self.space_is_short)
        self._active.pop(journal, None)
        self._active[journal] = 0
        self._sealed[journal] = self._ticks
        self._untrimmed = True
        assert journal.records.sealed is not None
        self._sealed_bytes += journal.records.sealed.staged_bytes

        def done(error: Exception | None) -> None:
            self.isolate(journal, lambda: self._settle(journal, error))
            if self._retrying is journal:
                self._retrying = None
                self._retry()

        if journal.records.sealed.needs_synced_log:
            self._log.sync(AfterSync(lambda: self._write_bound(journal, done)), 0)
        else:
            self.writes(lambda: writing.write(journal), done)
        if self._sealed_bytes >= STAGED_BYTES:
            self._sealed_bytes = 0
            self.on_staged()

    def _write_bound(self, journal: Journal, done: Callable[[Exception | None], None]) -> None:
        """Write a batch that goes together with changes to other journals, now that the log is on the
        disk."""
        links = list(self.links)

        def work() -> None:
            sync_blobs(links)
            writing.write(journal)

        def written(error: Exception | None) -> None:
            if error is None:
                self.forget_links(links)
            done(error)

        self.writes(work, written)

    def _settle(self, journal: Journal, error: Exception | None) -> None:
        """Take note of what came of a write."""
        self._sealed.pop(journal, None)
        told = error if error is None or isinstance(error, JournalError) else InternalError(error)
        writing.end_write(journal, told)
        if journal.log is not None:
            self.note_open(journal)
        if journal.failing is not None:
            self._tell_failure(journal, journal.failing)
        elif journal in self._told:
            self._told.discard(journal)
            self.on_recovery(journal)

    def _tell_failure(self, journal: Journal, error: JournalError) -> None:
        if self._reserve is not None and not self._reserve.is_held and is_full(error):
            self.on_staged()
        elif journal not in self._told:
            self._told.add(journal)
            self.on_failure(journal, error)

    def suspend(self, journal: Journal, error: JournalError) -> None:
        """Have `journal`, whose LevelDB cannot be opened, take no changes until it can be written again."""
        journal.failing = error
        self.add(journal)
        self._tell_failure(journal, error)

    def mend(self, journal: Journal, key: bytes) -> bool:
        """Have `journal` mend the tables in which the first record from `key` on may be, in a thread.

        Returns whether that is being done, or is to be asked again: not if it was of no use since the last
        tick.
        """
        if journal.log is None or key in self._unmended.get(journal, ()):
            return False
        if journal.writing:  # to be asked again when that is over
            return True
        journal.writing = True

        mended = False

        def done(error: Exception | None) -> None:
            if not mended:
                self._unmended.setdefault(journal, set()).add(key)
            told = None if error is None else failure(f"cannot mend {journal.path}", error)
            self.isolate(journal, lambda: writing.end_mend(journal, told))

        def work() -> None:
            nonlocal mended
            mended = writing.mend(journal, key)

        self.offload(work, done)
        return True

    def _shorten_log(self, pins: Iterable[Hashable]) -> None:
        """Write the journals among those that pin the oldest segment of the log."""
        left = WRITES_WHEN_LONG
        for pin in pins:
            if isinstance(pin, Journal) and not pin.writing:
                self.checkpoint(pin)
                left -= 1
                if not left:
                    break

    # Rounds

    def tick(self) -> None:
        """Begin a round, if none is going on, and go on with it; to be called a few times a second."""
        self._ticks += 1
        self._may_sync |= self._ticks % MAX_TICKS == 0
        if not self._round:
            self._round.extend(self._active)
            self._writes_left = WRITES_PER_TICK
            oldest = next(iter(self._sealed.values()), self._ticks)
            self._is_late = self._ticks - oldest >= MAX_TICKS
            self._retries.clear()
            self._unmended.clear()
        self.go_on()

    @property
    def has_more(self) -> bool:
        """Whether the round that `tick` has begun is to `go_on`."""
        return bool(self._round or self._unneeded)

    def go_on(self) -> None:
        """Go on with the round until it is over or the budget is spent."""
        while self._round:
            journal = self._round.popleft()
            ticks = self._active.get(journal)
            if ticks is not None:
                if self._is_write_due(journal, ticks, may_write=self._writes_left > 0):
                    self._is_late |= self._writes_left <= 0 and journal.dirty
                    self._writes_left -= 1
                self._is_late |= journal.failing is not None
                if self._round and self._budget.is_spent():
                    return
        if self._is_late and self._may_sync:
            self._sync_log()
        self._may_sync = False
        self._free()
        self._retry()
        if self._untrimmed and not any(
            one.is_busy or one.dirty or one.trimming.has_dead for one in self._active
        ):
            self._untrimmed = False
            self._defer(trim_memory, lambda _: None)

    def _sync_log(self) -> None:
        """Sync the log for changes that LevelDB has not got in time. Nobody waits for it."""
        if not self._syncing and self._log.synced != self._log.position:
            self._syncing = True
            self._log.sync(AfterSync(self._end_sync), 0)

    def _end_sync(self) -> None:
        self._syncing = False

    def _retry(self) -> None:
        """Write the next journal whose write has failed, if none is being tried: to open more than one
        LevelDB anew takes more room than there may be. Those that had their turn come last at the next
        tick."""
        while self._retries and self._retrying is None:
            journal = self._retries.popleft()
            if journal.failing is not None and not journal.writing and journal in self._active:
                self._retrying = journal
                self.checkpoint(journal)
                if not journal.writing:  # it was set aside
                    self._retrying = None

    def _is_write_due(self, journal: Journal, ticks: int, *, may_write: bool) -> bool:
        """Do what is due for a journal that has been active for so many ticks; return whether that was a
        write, which is begun if it may be."""
        try:
            return self._do_due(journal, ticks, may_write=may_write)
        except Exception as error:  # `on_fault` reports it
            self.set_aside(journal, error)
            return False

    def _do_due(self, journal: Journal, ticks: int, *, may_write: bool) -> bool:
        if not self._log.hold.is_held:
            self._upkeep.delete_blobs(journal)
        if journal.writing:
            return False
        self._upkeep.compact(journal)
        if journal.dirty or journal.failing is not None:
            self._active[journal] = ticks + 1
            is_due = (
                ticks >= MAX_TICKS
                or journal.trimming.is_due(journal.records.dead_bytes)
                or self.space_is_short
            )
            is_due |= journal.failing is not None
        else:
            is_due = journal.trimming.has_dead
            if not (is_due or journal.compaction.is_wanted or journal.blobs.obsolete):
                self._idle(journal, ticks)
        if not is_due:
            return False
        if journal.failing is not None:
            if len(self._retries) < RETRIES_PER_TICK:
                self._retries.append(journal)
            return False
        if may_write:
            self._checkpoint(journal)
        return True

    def _idle(self, journal: Journal, ticks: int) -> None:
        """Provide for a kill, or close its LevelDB, when nothing has happened to a journal for so many
        ticks."""
        self._active[journal] = ticks + 1
        if ticks >= REST_TICKS:
            self._rest(journal)
        elif not ticks and self.boot:
            self._upkeep.settle(journal, self.boot)

    def _rest(self, journal: Journal) -> None:
        """Close the LevelDB of a journal that nothing happens to."""
        del self._active[journal]
        self._untrimmed = True
        self._open.discard(journal)
        self._upkeep.rest(journal, for_space=self.space_is_short)

    # What journals give and ask for

    def note_link(self, path: Path) -> None:
        """Note that the file of a blob was created by this process, and may not be on the disk."""
        self.links[path] = None

    def forget_links(self, paths: Iterable[Path]) -> None:
        """Note that these files are on the disk."""
        for path in paths:
            self.links.pop(path, None)

    def free(self, entries: dict[Any, Any]) -> None:
        """Free what nobody needs in slices: it may be much."""
        self._unneeded.append(entries)
        self._untrimmed = True

    def _free(self) -> None:
        while self._unneeded:
            entries = self._unneeded[-1]
            for _ in range(min(len(entries), FREED_AT_ONCE)):
                entries.popitem()
            if not entries:
                self._unneeded.pop()
            if self._budget.is_spent():
                return

    @property
    def staged_bytes(self) -> int:
        """About how many bytes are still to be written to LevelDB."""
        total = 0
        for journal in self._active:
            total += journal.records.batch.staged_bytes
            if journal.records.sealed is not None:
                total += journal.records.sealed.staged_bytes
        return total

    @property
    def compactions(self) -> Timed:
        """What has compactions done."""
        return self._upkeep.compactions

    @property
    def failing_journals(self) -> int:
        """How many journals could not be written when that was last tried, and take nothing in."""
        return sum(journal.failing is not None for journal in self._active)

    def make_room(self) -> bool:
        """Release the reserve, for the disk is full; return whether there is more room now. From any
        thread."""
        return self._reserve is not None and self._reserve.release()

    def lend_room(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Give all the room there is within the context, at least `size` bytes. Raises OSError if there is
        less. From any thread."""
        return contextlib.nullcontext() if self._reserve is None else self._reserve.lend(size)

    # The end

    def close(self) -> None:
        """Write what is staged, on this thread, in as many journals as that takes not too long for; the log
        has the changes of the others. Nothing may be being written."""
        self._log.hold.end()
        if any(journal.records.batch.needs_synced_log for journal in self._active):
            with contextlib.suppress(OSError):
                self._log.sync_now()
                sync_blobs(self.links)
        for at, journal in enumerate(list(self._active)):
            writes = at < WRITES_AT_CLOSE
            self.isolate(journal, functools.partial(self._close, journal, writes=writes))

    def _close(self, journal: Journal, *, writes: bool) -> None:
        if writes:
            self._write_now(journal)
            if blobs := journal.blobs.take_obsolete(journal.database.stored_change):
                try:
                    journal.blobs.delete(blobs)
                except OSError:  # then after the next start
                    journal.blobs.take_back_obsolete(blobs)
                else:
                    journal.forget_blobs(blobs)
                    self._write_now(journal)
        journal.close(resting.resting_state(journal))

    def _write_now(self, journal: Journal) -> None:
        if journal.log is None or not (
            journal.dirty or journal.trimming.has_dead or journal.records.sealed is not None
        ):
            return
        writing.seal(journal, tidy=True)
        error: Exception | None = None
        try:
            writing.write(journal)
        except Exception as failure:  # of whatever kind: the others are to be written
            error = failure
        self._settle(journal, error)


def _raise(_: Journal, fault: InternalError) -> None:
    raise fault


def _close(journal: Journal) -> None:
    """Close the LevelDB of a journal that is still in use."""
    resting.note_first(journal)
    journal.close()

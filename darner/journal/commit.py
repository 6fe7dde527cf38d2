"""Group commit: what was staged in the journals, written to their LevelDB directories, many changes as one.

A change is safe once it is in the log; here it is only carried on, in threads, so no client waits for it
unless items come faster than LevelDB takes them. Besides, what can wait: dead records are deleted,
compacted away, and so are the files of large items that are gone.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from darner._records import Item, trim_memory
from darner.environment.budget import Budget
from darner.errors import FaultError, JournalError
from darner.journal.batch import STAGED_BYTES
from darner.journal.blob import Offload, sync_links
from darner.journal.database import WRITE_BUFFER_BYTES
from darner.journal.journal import Journal
from darner.journal.leveldb import failure
from darner.journal.reserve import Reserve, is_full
from darner.journal.wal import Log

# How many ticks a change may stay in the log alone; and then on the way to LevelDB, before the log is synced
# for it.
MAX_TICKS = 4
# How many ticks a journal has nothing to be done before its LevelDB is closed: opening it again takes 1.5 ms.
REST_TICKS = 20
# How many LevelDBs are open at most, but for those being written: each has four descriptors and 200 KB.
MAX_OPEN = 1000
# How many journals are begun to be written in one tick, those first that have waited longest: each costs an
# fsync.
WRITES_PER_TICK = 64
# How many when the log has become longer than it should be: the others when it has grown on, or at a tick.
WRITES_WHEN_LONG = 128
# And how many when the server closes.
WRITES_AT_CLOSE = 500
# How many journals that could not be written are tried again in one tick, one after the other: for each a
# LevelDB is opened, which takes room.
RETRIES_PER_TICK = 16
# LevelDB takes no less.
LEAST_BUFFER_BYTES = 64 << 10
# How many compactions go on at a time: writes are not to wait for them.
COMPACTIONS = 2

# How many items that nobody needs are freed before it is asked how long that took.
FREED_AT_ONCE = 1024


class Ordered:
    """Waits for the log to be on the disk, for the sake of a batch that must not be there before it."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on

    def hold(self) -> None:
        """The batch is held back already."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Then LevelDB has to have what the log may not have."""

    def release(self) -> None:
        """It is there."""
        self._go_on()


class Committer:
    """Writes the staged batches of all journals."""

    __slots__ = (
        "_active", "_budget", "_compactions", "_dead", "_defer", "_is_late", "_log", "_max_open", "_may_ask",
        "_open", "_reserve", "_retries", "_retrying", "_round", "_sealed", "_sealed_bytes", "_spent", "_sync",
        "_ticks", "_told", "_undeleted", "_unmended", "_writes_left", "is_scarce", "is_short", "links",
        "offload", "on_damage", "on_failure", "on_fault", "on_quarantine", "on_recovery", "on_resume",
        "on_staged", "write_buffer_bytes",
    )  # fmt: skip

    def __init__(
        self,
        log: Log,
        offload: Offload,
        defer: Offload | None = None,
        max_open: int = MAX_OPEN,
        reserve: Reserve | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`offload` is for what a client waits for, `defer` for the rest, if that is another. At most
        `max_open` LevelDBs are to be open, but for those being written. `reserve` is let go of when the disk
        is full. A round over all journals ends for now when `budget` is spent, which the caller has begun."""
        self._log = log
        self._reserve = reserve
        # whether room on the disk is short: what gives some back does not wait
        self.is_short = False
        # whether it may soon be: little is to be on its way to LevelDB at a time
        self.is_scarce = False
        self.write_buffer_bytes = WRITE_BUFFER_BYTES
        if reserve is not None and reserve.size:
            # what is in there, twice, is written out when LevelDB is opened anew: the reserve has to do
            self.write_buffer_bytes = min(WRITE_BUFFER_BYTES, max(LEAST_BUFFER_BYTES, reserve.size // 8))
        self.offload = offload
        self._defer = defer or offload
        # how many are going on
        self._compactions = 0
        self._max_open = max_open
        # journals whose LevelDB may be open; the one last opened or written comes last
        self._open: dict[Journal, None] = {}
        # journals with something to be done, and for how many ticks they have been so; the one last written
        # comes last
        self._active: dict[Journal, int] = {}
        # those that are being written, and at which tick that was begun
        self._sealed: dict[Journal, int] = {}
        self._ticks = 0
        # the journals whose turn in this round is to come, how many may be begun to be written in it, whether
        # some had to wait too long, and whether the log may be synced for them
        self._budget = budget or Budget(lambda: 0.0)
        self._round: deque[Journal] = deque()
        self._writes_left = 0
        self._is_late = self._may_ask = False
        self._sync = LogSync(log)
        # the files of blobs that are not known to be on the disk, and belong to changes of several journals
        self.links: dict[Path, None] = {}
        # items that nobody needs any more
        self._dead: list[dict[int, Item]] = []
        # whether anything was written or compacted since memory was given back
        self._spent = False
        # the journals that could not be written and are to be tried in this tick, and the one that is tried
        self._retries: deque[Journal] = deque()
        self._retrying: Journal | None = None
        # called when what is staged may have become too much for the disk, and how much was sealed since then
        self.on_staged: Callable[[], None] = lambda: None
        self._sealed_bytes = 0
        # journals of which was told that they cannot be written, and that a file cannot be deleted
        self._told: set[Journal] = set()
        self._undeleted: set[Journal] = set()
        # Told when a journal cannot be written, and when it can again, for the log; but not if the disk is
        # full: then the reserve is let go of, and that is no matter of one journal.
        self.on_failure: Callable[[Journal, JournalError], None] = lambda *_: None
        self.on_recovery: Callable[[Journal], None] = lambda _: None
        # told when a journal was set aside
        self.on_fault: Callable[[Journal, FaultError], None] = _raise
        # told when something in a journal cannot be read
        self.on_damage: Callable[[Journal, JournalError], None] = lambda *_: None
        # told what was damaged, by its ids and the reason, and where what is left of it is
        self.on_quarantine: Callable[[Journal, str, str, Path | None], None] = lambda *_: None
        # told when a journal can be read on
        self.on_resume: Callable[[Journal], None] = lambda _: None
        # the journals that could not be mended since the last tick, or from which keys on it was of no use
        self._unmended: dict[Journal, set[bytes]] = {}
        log.on_long = self._shorten

    def add(self, journal: Journal) -> None:
        """`journal` has something to be written, or to be tidied."""
        if journal.log is not None and journal.fault is None:
            self._active.setdefault(journal, 0)

    def discard(self, journal: Journal) -> None:
        """Forget about `journal`, which is deleted, or was not opened after all."""
        self._forget(journal)
        # it may be asked for yet, as long as the log is needed for it
        journal.log = None

    def _forget(self, journal: Journal) -> None:
        for of in (self._active, self._open, self._sealed):
            of.pop(journal, None)
        self._told.discard(journal)
        self._undeleted.discard(journal)

    def set_aside(self, journal: Journal, error: Exception) -> None:
        """Something went wrong with `journal` that nobody has provided for: nothing more is done with it, and
        with the others all goes on."""
        if journal.fault is None:
            fault = FaultError(error)
            self._forget(journal)
            journal.set_aside(fault)
            self.on_fault(journal, fault)

    def _isolate(self, journal: Journal, work: Callable[[], None]) -> None:
        """Do some work on `journal`, which may be set aside meanwhile, and be so by this."""
        if journal.fault is None:
            try:
                work()
            except Exception as error:  # said by who is told
                self.set_aside(journal, error)

    def checkpoint(self, journal: Journal) -> None:
        """Have what `journal` has staged written, in a thread."""
        if self._log.segment.in_group:  # no part of it by itself
            self._log.after_group.append(lambda: self.checkpoint(journal))
        elif not journal.writing and journal.log is not None:
            self._isolate(journal, lambda: self._checkpoint(journal))

    def _checkpoint(self, journal: Journal) -> None:
        journal.seal(tidy=self.is_short)
        self._active.pop(journal, None)
        self._active[journal] = 0
        self._sealed[journal] = self._ticks
        self._spent = True
        assert journal.records.sealed is not None
        self._sealed_bytes += journal.records.sealed.staged_bytes

        def done(error: Exception | None) -> None:
            self._isolate(journal, lambda: self._settle(journal, error))
            if self._retrying is journal:
                self._retrying = None
                self._retry()

        if journal.records.sealed.needs_synced_log:
            self._log.sync(Ordered(lambda: self._write_bound(journal, done)), 0)
        else:
            self._defer(journal.write, done)
        if self._sealed_bytes >= STAGED_BYTES:
            self._sealed_bytes = 0
            self.on_staged()

    def _write_bound(self, journal: Journal, done: Callable[[Exception | None], None]) -> None:
        """Have a batch written that goes together with changes to other journals, now that the log is on the
        disk."""
        links = list(self.links)

        def work() -> None:
            sync_links(links)
            journal.write()

        def written(error: Exception | None) -> None:
            if error is None:
                self.forget_links(links)
            done(error)

        self._defer(work, written)

    def note_link(self, path: Path) -> None:
        """The file of a blob was made by this process, and is not known to be on the disk."""
        self.links[path] = None

    def forget_links(self, paths: Iterable[Path]) -> None:
        """These are on the disk."""
        for path in paths:
            self.links.pop(path, None)

    def note_open(self, journal: Journal) -> None:
        """The LevelDB of `journal` was opened or written. If too many are open, the one for which that is
        longest ago is closed."""
        self._open.pop(journal, None)
        self._open[journal] = None
        while len(self._open) > self._max_open:
            first = next(iter(self._open))
            del self._open[first]
            if not first.is_busy:  # else it is noted again when that is over
                self._isolate(first, first.close)

    def free(self, items: dict[int, Item]) -> None:
        """Nobody needs these any more: they may be many, and are freed in slices."""
        self._dead.append(items)
        self._spent = True

    def _free(self) -> None:
        while self._dead:
            items = self._dead[-1]
            for _ in range(min(len(items), FREED_AT_ONCE)):
                items.popitem()
            if not items:
                self._dead.pop()
            if self._budget.is_spent():
                return

    def close_down(self, journal: Journal, error: JournalError) -> None:
        """The LevelDB of `journal` cannot be opened: it takes in nothing until a write says that it can."""
        journal.failing = error
        self.add(journal)
        self._tell_failure(journal, error)

    def tell_damage(self, journal: Journal, error: JournalError) -> None:
        """`journal` cannot read something for the first time."""
        self.on_damage(journal, error)

    def make_room(self) -> bool:
        """The disk is full; returns whether there is more room now. From any thread, as is the next."""
        return self._reserve is not None and self._reserve.release()

    def lend_room(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Have within all the room there is, `size` bytes at least. OSError if there is less."""
        return contextlib.nullcontext() if self._reserve is None else self._reserve.lend(size)

    @property
    def staged_bytes(self) -> int:
        """How many bytes there are yet to be written to LevelDB, about."""
        total = 0
        for journal in self._active:
            total += journal.records.batch.staged_bytes
            if journal.records.sealed is not None:
                total += journal.records.sealed.staged_bytes
        return total

    def tell_quarantine(self, journal: Journal, ids: str, reason: str, where: Path | None) -> None:
        """`journal` has done without what is damaged: what is left of it is there, if anything is."""
        self.on_quarantine(journal, ids, reason, where)

    def resume(self, journal: Journal) -> None:
        """`journal` can be read on."""
        self.on_resume(journal)

    def mend(self, journal: Journal, key: bytes) -> bool:
        """Have `journal` mend the tables in which the first record from `key` on may be, in a thread; returns
        whether that is being done, or is to be tried again: not if that was of no use just now."""
        if journal.log is None or key in self._unmended.get(journal, ()):
            return False
        if journal.writing:  # who asks then will ask again
            return True
        journal.writing = True

        mended = False

        def done(error: Exception | None) -> None:
            if not mended:
                self._unmended.setdefault(journal, set()).add(key)
            told = None if error is None else failure(f"cannot mend {journal.path}", error)
            self._isolate(journal, lambda: journal.end_mend(told))

        def work() -> None:
            nonlocal mended
            mended = journal.mend(key)

        self.offload(work, done)
        return True

    def _settle(self, journal: Journal, error: Exception | None) -> None:
        self._sealed.pop(journal, None)
        journal.end_write(error if error is None or isinstance(error, JournalError) else FaultError(error))
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

    def _shorten(self, pins: Iterable[Hashable]) -> None:
        left = WRITES_WHEN_LONG
        for pin in pins:
            if isinstance(pin, Journal) and not pin.writing:
                self.checkpoint(pin)
                left -= 1
                if not left:
                    break

    def tick(self) -> None:
        """Do a slice of what is to be done; to be called a few times a second."""
        self._ticks += 1
        self._may_ask |= self._ticks % MAX_TICKS == 0
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
        return bool(self._round or self._dead)

    def go_on(self) -> None:
        """Go on with the round until the budget is spent."""
        while self._round:
            journal = self._round.popleft()
            ticks = self._active.get(journal)
            if ticks is not None:
                if self._isolated_tick(journal, ticks, may_write=self._writes_left > 0):
                    self._is_late |= self._writes_left <= 0 and journal.dirty
                    self._writes_left -= 1
                self._is_late |= journal.failing is not None
                if self._round and self._budget.is_spent():
                    return
        if self._is_late and self._may_ask:
            self._sync.ask()
        self._may_ask = False
        self._free()
        self._retry()
        if self._spent and not any(one.is_busy or one.dirty or one.trimming.has_dead for one in self._active):
            self._spent = False
            self._defer(trim_memory, lambda _: None)

    def _retry(self) -> None:
        """Try to write the next journal that could not be written, if none is being tried: to open more than
        one anew takes more room than there may be. Who has had its turn comes last at the next tick."""
        while self._retries and self._retrying is None:
            journal = self._retries.popleft()
            if journal.failing is not None and not journal.writing and journal in self._active:
                self._retrying = journal
                self.checkpoint(journal)
                if not journal.writing:  # it was set aside
                    self._retrying = None

    def _isolated_tick(self, journal: Journal, ticks: int, *, may_write: bool) -> bool:
        try:
            return self._tick(journal, ticks, may_write=may_write)
        except Exception as error:  # said by who is told
            self.set_aside(journal, error)
            return False

    def _tick(self, journal: Journal, ticks: int, *, may_write: bool) -> bool:
        """Do a slice of what is to be done for a journal; returns whether it is due to be written, which is
        begun if it may be."""
        if blobs := journal.blobs.take_obsolete(journal.database.stored_change):
            self._delete_blobs(journal, blobs)
        if journal.writing or not self._has_due(journal, ticks):
            return False
        if journal.failing is not None:
            if len(self._retries) < RETRIES_PER_TICK:
                self._retries.append(journal)
            return False
        if may_write:
            self._checkpoint(journal)
        return True

    def _has_due(self, journal: Journal, ticks: int) -> bool:
        """Whether a journal is to be written now; sees to the rest of what it needs."""
        if (
            self._compactions < COMPACTIONS
            and journal.compaction.is_due(is_short=self.is_short)
            and journal.failing is None
        ):
            self._compact(journal)
        if journal.dirty or journal.failing is not None:
            self._active[journal] = ticks + 1
            is_due = (
                ticks >= MAX_TICKS or journal.trimming.is_due(journal.records.dead_bytes) or self.is_short
            )
            return is_due or journal.failing is not None
        if not (journal.trimming.has_dead or journal.compaction.is_wanted or journal.blobs.obsolete):
            self._active[journal] = ticks + 1
            if ticks >= REST_TICKS:
                self._rest(journal)
        return journal.trimming.has_dead

    def _rest(self, journal: Journal) -> None:
        """Close a journal's LevelDB, in a thread: what it has in memory and of descriptors is let go."""
        del self._active[journal]
        self._spent = True
        self._open.pop(journal, None)
        journal.writing = True
        state = journal.resting_state()
        close = journal.database.close_small if self.is_short else journal.close

        def done(error: Exception | None) -> None:
            journal.end_work()
            if error is not None:
                self.set_aside(journal, error)

        self._defer(lambda: close(state), done)

    def _delete_blobs(self, journal: Journal, blobs: list[int]) -> None:
        def done(error: Exception | None) -> None:
            if journal.log is None or journal.fault is not None:
                return
            if error is None:
                self._undeleted.discard(journal)
                self._isolate(journal, lambda: journal.forget_blobs(blobs))
                return
            journal.blobs.take_back_obsolete(blobs)
            self.add(journal)
            if journal not in self._undeleted:
                self._undeleted.add(journal)
                self.on_failure(journal, failure(f"cannot delete an item's file in {journal.path}", error))

        self._defer(lambda: journal.blobs.delete(blobs), done)

    def _compact(self, journal: Journal) -> None:
        span = journal.compaction.begin()
        self._compactions += 1

        def done(error: Exception | None) -> None:
            self._compactions -= 1
            if journal.fault is not None or journal.log is None:
                return
            if error is None:
                self._isolate(journal, lambda: self.note_open(journal))
                self._isolate(journal, journal.end_compaction)
            else:
                self._isolate(journal, journal.compaction.fail)

        self._defer(lambda: journal.compact(span), done)

    def close(self) -> None:
        """Write what is staged, on this thread, in as many journals as that does not take long for; of the
        others the log has it. Nothing may be being written."""
        if any(journal.records.batch.needs_synced_log for journal in self._active):
            with contextlib.suppress(OSError):
                self._log.sync_now()
                sync_links(self.links)
        for at, journal in enumerate(list(self._active)):
            writes = at < WRITES_AT_CLOSE
            self._isolate(journal, functools.partial(self._close, journal, writes=writes))

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
        journal.close(journal.resting_state())

    def _write_now(self, journal: Journal) -> None:
        if journal.log is None or not (
            journal.dirty or journal.trimming.has_dead or journal.records.sealed is not None
        ):
            return
        journal.seal(tidy=True)
        error: Exception | None = None
        try:
            journal.write()
        except Exception as failure:  # of whatever kind: the others are to be written
            error = failure
        self._settle(journal, error)


class LogSync:
    """Has the log synced for changes that LevelDB has not got in time. Nobody waits for it."""

    __slots__ = ("_is_asked", "_log")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._is_asked = False

    def ask(self) -> None:
        """Have all that is logged by now on the disk, unless that is under way."""
        if not self._is_asked and self._log.synced != self._log.position:
            self._is_asked = True
            self._log.sync(self, 0)

    def hold(self) -> None:
        """Nothing is held back."""

    def fail(self, slot: int, error: JournalError) -> None:
        """The log takes nothing in until LevelDB has what was in there."""

    def release(self) -> None:
        """It is over."""
        self._is_asked = False


def _raise(_: Journal, fault: FaultError) -> None:
    raise fault

# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One queue's journal: what is live of it, in the log and in its LevelDB directory.

Nothing here decides what a queue does. A change is logged (wal.py) and staged in a `Batch` before the method
that makes it returns. Batches are written to LevelDB later, many changes as one: what was put and removed
meanwhile is never written. Until then `read` finds items in memory. Records in LevelDB, by key:

    i<id>        an item, with its bytes or with the blob that holds them
    a<id>        how often that item has come back, if it has; in earlier versions the item itself said so
    i<id>s       the state: counts, ids to give out, where the live items begin (`State`). The last counts
    k            the kept ids, if there are any: items below the floor that live on
    u<blob>      the marker of a blob that belongs to no item: half sent, or about to be deleted
    x            there if an item may have an expiry of its own
    d<due><id>   a delayed item: as an item, but out of sight and not among those counted in the state
    c            how many delayed items there are, and where their records begin
    r<cursor>    the place of a cursor: the id it reads next, and the ids before that it has still to read

A blob, the bytes of a large item, is a file in the directory `blobs` inside: see blob.py.

An item is live if its record is there and its id is at or above the floor, or kept. So taking the
oldest item writes no deletion, only the floor with the state; its record is deleted later, when many are
dead or nothing else is to be done (`_trim`). An item taken out of turn is deleted with the next batch: its id
is known as gone if a `read` has come past it, and otherwise found missing by the one that does. Nothing ever
seeks from the start of the keys, where the deleted ones lie: LevelDB would walk over each (0.4 us apiece).
"""

import array
import contextlib
import errno
import heapq
import itertools
import os
import secrets
import shutil
import sys
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Protocol

from darner import _records
from darner._records import Change, Item, Segment, State
from darner.config.kinds import LARGEST
from darner.environment.offload import Offload
from darner.environment.timeline import end_of, run_of, start_of
from darner.errors import (
    DamagedError,
    DamagedItemError,
    FaultError,
    JournalError,
    MendingError,
    MisplacedError,
    NewerFormatError,
    VanishedError,
)
from darner.journal import leveldb, leveldb_log, snapshot
from darner.journal.blob import BlobReader, file_bytes, write_whole
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.files import (
    link_or_copy,
    sync_directory,
    sync_file,
    sync_name,
)
from darner.journal.layout import (
    ATTEMPTS_END,
    ATTEMPTS_PREFIX,
    BLOBS_NAME,
    CURSOR_PREFIX,
    CURSORS_END,
    DAMAGED_NAME,
    DELAYED_KEY,
    DELETED_NAME,
    EXPIRING_KEY,
    KEPT_KEY,
    MARK_NAME,
    MAX_ATTEMPTS,
    PROBE_NAME,
    STATE_NAME,
    attempts_key,
    decode_attempts,
    decode_counts,
    decode_place,
    delayed_key,
    due_ms_of,
    find_runs,
    is_known_key,
    is_state_key,
    state_key,
    stored_state,
)
from darner.journal.leveldb import failure
from darner.journal.quarantine import Quarantine
from darner.journal.recognition import check_empty, check_owner, is_new
from darner.journal.reserve import is_full
from darner.journal.segment_file import FRAME_BYTES
from darner.journal.snapshot import Snapshot, read_mark
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.journal.wal_sync import Client

# Sizes chosen for resident memory: LevelDB maps the tables it has open, and pages it touched count;
# twice the write buffer is in memory while one is written out.
WRITE_BUFFER_BYTES = 2 << 20
MAX_FILE_BYTES = 1 << 20
# LevelDB's least: 64 tables and 10 other files.
MAX_OPEN_FILES = 74
# Items are read once and in order: a cache of blocks would hold what nobody asks for again.
BLOCK_CACHE_BYTES = 64 << 10

# How much may be staged before it is written to LevelDB.
STAGED_BYTES = 1 << 20
# What memory it takes to stage how often an item has come back.
ATTEMPTS_BYTES = 100
# And how much more while that is being written, before who sets waits: a disk may be slow for so long.
AHEAD_BYTES = 3 << 20
# How many ids above the floor may be known as gone before the floor is moved past them.
MAX_GONE = 4096
# How much may be dead, if so much is alive, before it is deleted while other things are to be done: a table
# that has both what is new and what is deleted overlaps all between them.
DEAD_RECORDS = 200_000
DEAD_BYTES = 16 << 20
# How many dead records one batch deletes, and how many are for each item that was put: who sets waits for
# both.
TRIM_RECORDS = 65_536
TRIM_RECORDS_PER_PUT = 2
# Of how many damaged places a journal tells its operator: a client may come back to each again and again.
MAX_TOLD = 100
# And of how many damaged items that were put aside.
MAX_QUARANTINED_TOLD = 100
# What an error says that is none of the journal's: neither the process nor the system can open one more file.
OUT_OF_DESCRIPTORS = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))
# How many damaged items may be met before others have their turn.
MAX_STRIKES = 64
# What LevelDB may write when it is opened, besides what is in its logs and its manifest: names, and the ends
# of blocks.
OPENING_BYTES = 256 << 10
# How much must have been deleted, if so much is alive, before a compaction is worth its reading and writing.
COMPACT_RECORDS = 200_000
COMPACT_BYTES = 8 << 20
# How little it may be, in either case, where less is alive.
LEAST_RECORDS = 20_000
LEAST_BYTES = 2 << 20
# And in a journal that nothing happens to: there it delays nobody.
IDLE_COMPACT_BYTES = 1 << 20

BLOB_ID_BYTES = 8

# What is said of a file that can be copied, but not linked: it is on another file system, or that has no
# links.
UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
# How often the directory of a long name is tried to be made.
MKDIR_TRIES = 100
# How many numbers the payload of a change begins with, if it has a fixed number of them.
_NUMBERS: dict[int, int] = {
    Change.PUT: 1, Change.DROP: 3, Change.REWRITE: 1, Change.BLOB: 1, Change.REVIVE: 1, Change.DELAY: 2,
    Change.JOIN: 3, Change.LOST: 4, Change.LOST_DELAYED: 4, Change.ATTEMPTS: 2,
}  # fmt: skip
# How many new segments a change is tried in: one may turn out not to be writable.
SEGMENTS_TRIED = 3

_PUT = int(Change.PUT)


def _numbers(kind: int, payload: bytes) -> list[int]:
    """Return the numbers of a change's payload, but for those of an item's record. ValueError if it is not of
    the size that such a change has, or has numbers that no change has."""
    start, stop, each = 0, 8 * _NUMBERS.get(kind, 0), 8
    if kind == Change.DISCARD:
        stop, each = len(payload), 16
    elif kind == Change.CURSOR:
        start, stop = 1 + payload[0] if payload else 1, len(payload)
    numbers = [int.from_bytes(payload[at : at + 8], "big") for at in range(start, stop, 8)]
    is_whole = start <= stop <= len(payload) and (stop - start) % each == 0
    if not is_whole or any(number >= LARGEST for number in numbers):
        raise ValueError(f"the log has a change of kind {kind} that is damaged")
    return numbers


class _TooOldError(DamagedError):
    """LevelDB ends before what was written to it: at least, the last record of its state is not there."""


# Of a journal in memory: it is never used up, and what is removed may be added to it.
ROOMY_BYTES = sys.maxsize // 2


class Batch:
    """Changes to one journal that will be written to LevelDB as one."""

    __slots__ = (
        "attempts",
        "cursors",
        "dead_bytes",
        "delayed",
        "due",
        "ended",
        "expunged",
        "is_bound",
        "kept",
        "obsolete_blobs",
        "ops",
        "proves",
        "puts",
        "recount",
        "room",
        "segment",
        "state",
        "trimmed_bytes",
        "trimmed_records",
        "trims",
    )  # fmt: skip

    def __init__(self) -> None:
        self.puts: dict[int, Item] = {}
        # how often items have come back, by their ids
        self.attempts: dict[int, int] = {}
        # other records: key and value, or key and None to delete
        self.ops: list[tuple[bytes, bytes | None]] = []
        # items that were put in an earlier batch and removed, before any `read` has come to them
        self.expunged: set[int] = set()
        # the delayed items by their keys, these keys in order, and those of an earlier batch that are no more
        self.delayed: dict[bytes, Item] = {}
        self.due: list[bytes] = []
        self.ended: set[bytes] = set()
        # whether how many there are is to be written
        self.recount = False
        # the cursors that moved
        self.cursors: set[bytes] = set()
        # whether it goes together with changes to other journals, so that the log is to be on the disk before
        self.is_bound = False
        # how many bytes of memory the items in `puts` may take yet
        self.room = STAGED_BYTES
        # Once sealed: how the journal stood, and the segment of the log that was written then.
        self.state: State
        self.kept: frozenset[int]
        self.segment: int
        # whether dead records go with it, and how much all those that are dead then come to
        self.trims = False
        self.dead_bytes = 0
        # whether a compaction is known to have worked once it is written
        self.proves = False
        # Once written: what was trimmed with it, and the blobs that belonged to that.
        self.trimmed_records = 0
        self.trimmed_bytes = 0
        self.obsolete_blobs: list[int] = []

    @property
    def staged_bytes(self) -> int:
        """How many bytes of memory its items take: about what it takes to be written."""
        return STAGED_BYTES - self.room

    def in_order(self, run: int) -> Iterator[tuple[bytes, Item]]:
        """The delayed items of a run, in the order in which they are due."""
        start, stop = (bisect_left(self.due, delayed_key(at, 0)) for at in (start_of(run), end_of(run)))
        for key in itertools.islice(self.due, start, stop):
            yield key, self.delayed[key]


class Writes(Protocol):
    """Who has the journals' batches written: a `Committer`."""

    offload: Offload
    # whether room on the disk is short, so that what gives some back does not wait
    space_is_short: bool
    # whether room on the disk may soon be short: little is to be on its way to LevelDB at a time
    space_is_scarce: bool
    # how much of a LevelDB is in memory before it is written out
    write_buffer_bytes: int
    # called when the journal cannot read something for the first time
    on_damage: Callable[["Journal", JournalError], None]
    # called when the journal goes on without what is damaged: its ids, why, and where what is left is put
    on_quarantine: Callable[["Journal", str, str, Path | None], None]
    # called when the journal can be read on
    on_resume: Callable[["Journal"], None]

    def add(self, journal: "Journal") -> None:
        """`journal` has something to be written, or to be tidied."""

    def discard(self, journal: "Journal") -> None:
        """Forget about `journal`."""

    def checkpoint(self, journal: "Journal") -> None:
        """Have what `journal` has staged written now."""

    def note_link(self, path: Path) -> None:
        """The file of a blob was made by this process, and is not known to be on the disk."""

    def note_open(self, journal: "Journal") -> None:
        """The LevelDB of `journal` is open."""

    def free(self, items: dict[int, Item]) -> None:
        """Nobody needs these any more."""

    def suspend(self, journal: "Journal", error: JournalError) -> None:
        """The LevelDB of `journal` cannot be opened: it takes in nothing until a write says that it can."""

    def make_room(self) -> bool:
        """The disk is full; returns whether there is more room now. From any thread, as is the next."""

    def lend_room(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Have within all the room there is, `size` bytes at least. OSError if there is less."""

    def mend(self, journal: "Journal", key: bytes) -> bool:
        """Have `journal` mend the tables in which the first record from `key` on may be; returns whether that
        is being done, or is to be tried again: not if it has just failed."""


class _Fence(Log):
    """In place of the log of a journal that was set aside."""

    def __init__(self, fault: JournalError) -> None:
        self._fault = fault
        # in which nothing has room
        self.segment = Segment()
        self.segment.refusal = fault
        self.entered = 0

    def roll(self) -> None:
        """Raises why nothing is logged."""
        raise self._fault.with_traceback(None)

    def pin(self, journal: Hashable) -> None:
        """What the journal needs is pinned, and stays so."""


class Journal:
    """One queue's journal. Raises JournalError, and only that, for what the disk or the log refuses: then
    the change was not made.

    Without a log it lives in memory alone.
    """

    __slots__ = (
        "_blobs_to",
        "_closed_for",
        "_compact_from",
        "_compacted",
        "_compacting",
        "_compacting_for",
        "_db",
        "_dead_bytes",
        "_doubtful",
        "_due_from",
        "_entered",
        "_exists",
        "_expunged_to",
        "_has_attempts",
        "_has_kept",
        "_has_mark",
        "_has_paused",
        "_has_state",
        "_home",
        "_is_beyond",
        "_last_looked_at",
        "_left_bytes",
        "_live_from",
        "_must_exist",
        "_number",
        "_origins",
        "_place",
        "_quarantine",
        "_segment",
        "_state_key",
        "_stirred",
        "_stored_state",
        "_told",
        "_told_quarantined",
        "_trimmed_bytes",
        "_trimmed_records",
        "_untrimmed_puts",
        "_using",
        "_write",
        "_writes",
        "batch",
        "begun",
        "cursors",
        "damaged_items",
        "delayed_bytes",
        "delayed_items",
        "dirty",
        "expiring",
        "failing",
        "fault",
        "generation",
        "gone",
        "held_back",
        "is_backlogged",
        "kept",
        "log",
        "lost",
        "name",
        "next_due",
        "obsolete_blobs",
        "offload",
        "path",
        "reads",
        "sealed",
        "state",
        "stored_change",
        "stored_id",
        "unsound",
        "writing",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        path: Path,
        writes: Writes,
        log: Log | None,
        created_ms: int,
        lives: Sequence[Life] = (),
        home: Path | None = None,
    ) -> None:
        """Open the journal in `path`, and bring it up to what the log says of the lives of this name; or
        begin one, if `path` is absent or empty, whose directory is made when its first batch is written.
        `home` is the directory of which `path` is a copy, if it is one.

        Raises JournalError if it cannot be opened, or holds something else than a journal.
        """
        self.name = name
        self.path = path
        self._writes = writes
        self.offload = writes.offload
        self.log = log
        self._segment = Segment() if log is None else log.segment
        # the segment in which it has a number, and that number
        self._entered = 0
        self._number = 0
        self.batch = Batch()
        # what is to be written, and not known to be in LevelDB
        self.sealed: Batch | None = None
        # whether it is being written
        self.writing = False
        self.dirty = False
        # why it could not be written
        self.failing: JournalError | None = None
        # why nothing more is done with it until the next start: see `set_aside`
        self.fault: JournalError | None = None
        # whether items come faster than they are written: who sets waits
        self.is_backlogged = False
        self.held_back: list[Client] = []
        # counts the deletions: a blob begun before one is lost
        self.generation = 0
        # ids above the floor that are not live, and ids below it that are
        self.gone: set[int] = set()
        self.kept: set[int] = set()
        # the id of the next item to `read`; for the queue to say, which may hold an item that it has put
        self.reads = 1
        # whether an item may have an expiry of its own
        self.expiring = False
        # what is delayed, and by run when the first of it is due
        self.delayed_items = 0
        self.delayed_bytes = 0
        self.next_due: dict[int, int] = {}
        # by run when the first record of a delayed item may be due, and the id below which they were flushed
        self._due_from: dict[int, int] = {}
        self._live_from = 0
        # the places of the cursors
        self.cursors: dict[bytes, list[int]] = {}
        # blobs that belong to no item yet
        self.begun: set[int] = set()
        # blobs to delete, each once the change of that number is in LevelDB
        self.obsolete_blobs: list[tuple[int, int]] = []
        # how many items were in the log whose blobs were lost with the machine
        self.lost = 0
        # how many items were damaged and are no more; and those below the floor that were found so at start
        self.damaged_items = 0
        self.unsound: list[int] = []
        # where they are put, and of how many somebody was told
        self._quarantine = Quarantine(path)
        self._told_quarantined = 0
        # whether all tables are sound, and LevelDB was found damaged all the same
        self._is_beyond = False
        # whether somebody was told to try again
        self._has_paused = False
        self._compacting = Lock()
        # held by whoever must not find LevelDB closed meanwhile; but a compaction has its own
        self._using = RLock()
        self._db: Any = None
        self._write: Any = None
        # the file by which an open LevelDB's directory is known again, and why it was not opened
        self._place = (0, 0)
        self._closed_for: JournalError | None = None
        # where blobs were linked from, as the log has it, and the directory from which that is to be found
        self._origins: dict[int, Path] = {}
        self._home = home or path
        # what could not be read, as it was told
        self._told: set[str] = set()
        # whether a write has failed since it was opened
        self._doubtful = False
        # whether LevelDB may have anything of it, and whether that is missed if it is not there: not of a
        # queue that was deleted
        self._exists = False
        self._must_exist = False
        # whether the files STATE_NAME and MARK_NAME are there
        self._has_state = False
        self._has_mark = False
        # whether there is a record of the kept ids, or will be
        self._has_kept = False
        # whether there are records of how often items have come back, or will be; None if that is not known
        self._has_attempts: bool | None = None
        # of the state in LevelDB, and that record
        self._state_key = b""
        self._stored_state = b""
        self.state = State(created_ms, secrets.randbits(63))
        # others than before if the queue was deleted and is made anew: a writer that comes late must
        # not delete another's blob
        self.state.next_blob = secrets.randbits(40) << 20
        try:
            self._begin(lives)
        except BaseException as error:
            self._shut()
            if log is not None:
                writes.discard(self)
                log.unpin(self)
            if isinstance(error, Exception) and not isinstance(error, JournalError):
                raise FaultError(error) from error
            raise

    def _begin(self, lives: Sequence[Life]) -> None:
        if self.log is None:
            self.batch.room = ROOMY_BYTES
            self._has_attempts = False
        elif is_new(self.path):
            self._make_directory()
            self._has_attempts = False
        else:
            self._load()
        # the first id and the last change of which LevelDB may not know
        self.stored_id = self.state.next_id
        self.stored_change = self.state.change
        # the id below which a dead record may have a blob yet: of what was flushed, or before this start
        self._blobs_to = self.state.floor
        # what the records between the trimmed ones and the floor come to, as far as that is known
        self._dead_bytes = 0
        # how many items were put since dead records were deleted
        self._untrimmed_puts = 0
        # since the last compaction
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = 0
        if self._db is not None:
            self._count_uncompacted(self._db)
        # behind the last item expunged since then
        self._expunged_to = 0
        # the change that was the last one when `compactable` was asked last
        self._last_looked_at = -1
        # of a compaction that is not known to have worked: what was counted for it, and whether it is over
        self._compacting_for: tuple[int, int, int, int] | None = None
        self._compacted = False
        # of what it should have given back, how much is there yet, and whether that is being seen to
        self._left_bytes = 0
        self._stirred = False
        if lives:
            self._catch_up(lives)
        self._check_mark()
        self._delete_unknown_blobs()
        self.reads = self.state.floor
        if self._db is not None:
            self._writes.note_open(self)
        if self._db is not None or self.untidy or self.obsolete_blobs:
            self._writes.add(self)

    # LevelDB

    def _make_directory(self) -> None:
        # the pieces of a long name, but not the data directory: what vanished is to be put back
        pieces = itertools.takewhile(lambda parent: parent.name.endswith("%"), self.path.parents)
        directories = [*reversed(list(pieces)), self.path]
        for left in reversed(range(MKDIR_TRIES)):
            try:
                for directory in directories:
                    directory.mkdir(mode=0o700, exist_ok=True)
                (self.path / DELETED_NAME).unlink(missing_ok=True)
            except (FileNotFoundError, FileExistsError) as error:
                # who has deleted another queue in one of the pieces may have taken that along
                if not left:
                    raise failure(f"cannot make {self.path}", error) from error
            except OSError as error:
                raise failure(f"cannot make {self.path}", error) from error
            else:
                return

    def _opened(self, *, again: bool = False, known: bool = True) -> Any:
        """Return the open LevelDB; from any thread. It is opened as often as that is tried `again`, else only
        if it did not fail before; and is to be the one that is `known`. Raises JournalError."""
        with self._using:
            if self._db is None:
                if self._closed_for is not None and not again:
                    raise self._closed_for.with_traceback(None)
                try:
                    db = self._open_with_room()
                    try:
                        if known:
                            self._recognize(db)
                        self._place = self._look()
                    except BaseException:
                        db.close()
                        raise
                except (leveldb.Error, OSError, ValueError) as error:
                    self._closed_for = failure(f"cannot open {self.path}", error)
                    raise self._closed_for from error
                except JournalError as error:
                    self._closed_for = error
                    raise
                self._db, self._closed_for = db, None
                self._count_uncompacted(db)
            return self._db

    def _count_uncompacted(self, db: Any) -> None:
        """Take note of what was deleted and not compacted before LevelDB was closed: nobody else knows."""
        trimmed, due = _records.item_key(self.state.trimmed), self._first_delayed_key
        size = sum(db.approximate_sizes((_records.item_key(0), trimmed), (b"d", due)))
        if size >= IDLE_COMPACT_BYTES:
            self._compact_from = 0
            self._trimmed_bytes = max(self._trimmed_bytes, size)

    def _open_with_room(self) -> Any:
        try:
            return self._open()
        except (leveldb.Error, OSError, JournalError) as error:
            if not is_full(error):
                raise
        self._writes.make_room()
        with self._writes.lend_room(0):
            return self._open()

    def _open(self) -> Any:
        with contextlib.suppress(OSError):
            (self.path / PROBE_NAME).unlink()
        begins = is_new(self.path)
        if begins:
            if self._must_exist:
                raise self._vanished()
            self._make_directory()
            sync_name(self.path)  # LevelDB sees only to what is inside
        elif harm := leveldb_log.damage(self.path):
            raise DamagedError(f"{harm}. Nothing in it was touched")
        try:
            return self._open_leveldb(create=begins)
        except leveldb.Error as error:
            if not leveldb.is_damage(error):
                raise
            # It may be that the last write to LevelDB's log was cut off, which is no damage: what it had is
            # in ours. Whether all is there that had to be is seen then.
            self._open_leveldb(create=False, paranoid=False).close()
            return self._open_leveldb(create=False)

    def _open_leveldb(self, *, create: bool, paranoid: bool = True) -> Any:
        return leveldb.DB(
            os.fsencode(self.path),
            create_if_missing=create,
            write_buffer_size=self._writes.write_buffer_bytes,
            lru_cache_size=BLOCK_CACHE_BYTES,
            max_open_files=MAX_OPEN_FILES,
            max_file_size=MAX_FILE_BYTES,
            compression=None,
            # else a compaction passes damage on as sound, or ends the process
            paranoid_checks=paranoid,
        )

    def _recognize(self, db: Any) -> None:
        """Raises JournalError if LevelDB is not the one it was, or ends before what was written to it."""
        stored = stored_state(db)
        if stored is None and not self._must_exist:
            return
        change = 0
        if stored is not None:
            self._state_key, record = stored
            state = _records.decode_state(record)
            change = state.change
            if state.life != self.state.life:
                raise MisplacedError(f"{self.path} is another journal than it was")
        if change < self.stored_change:
            raise _TooOldError(
                f"{self.path} is damaged: LevelDB ends at change {change}, and had all up to "
                f"{self.stored_change}"
            )
        if self._has_state and change > self.stored_change:
            raise DamagedError(
                f"{self.path} is damaged: LevelDB ends at change {change}, and its file {STATE_NAME} is older"
            )

    def _look(self) -> tuple[int, int]:
        """Return by what the directory is known again: LevelDB has a new CURRENT only when it is opened.
        Raises JournalError if there is none."""
        try:
            status = (self.path / "CURRENT").stat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._vanished() from None
        return status.st_dev, status.st_ino

    def _has_moved(self) -> bool:
        """Whether the directory is not the one that LevelDB has open. JournalError if there is none."""
        try:
            return self._look() != self._place
        except JournalError:
            if self._must_exist:
                raise
            return True

    def _vanished(self) -> JournalError:
        return VanishedError(f"{self.path} has vanished: put it back as it was, or delete the queue")

    def _shut(self) -> None:
        with self._compacting, self._using:
            if self._db is not None:
                self._db.close()
                self._db = self._write = None

    # What a start must know. `restore` takes what `snapshot` gives, and nothing else of it is kept anywhere.

    def snapshot(self) -> Snapshot:
        """Return all that must be known of it at start, as LevelDB has it once all is written."""
        return Snapshot(
            self.state,
            sorted(self.kept),
            self._has_kept,
            sorted(self.begun.union(blob for blob, _ in self.obsolete_blobs)),
            self.expiring,
            dict(self.cursors),
            self.delayed_items,
            self.delayed_bytes,
            self._live_from,
            list(self._due_from.values()),
            list(self.next_due.values()),
        )

    def restore(self, found: Snapshot) -> None:
        """Be as a journal that gave this snapshot."""
        self.state = found.state
        self.kept = set(found.kept)
        self._has_kept = found.has_kept
        self.obsolete_blobs = [(blob, 0) for blob in found.blobs]
        self.expiring = found.expiring
        self.cursors = dict(found.cursors)
        self.delayed_items, self.delayed_bytes = found.delayed_items, found.delayed_bytes
        self._live_from = found.live_from
        # if something is missed, it is looked for
        self._due_from = {run_of(due_ms): due_ms for due_ms in found.due_from or [0]}
        firsts = found.next_due or ([0] if self.delayed_items else [])
        self.next_due = {run_of(due_ms): due_ms for due_ms in firsts}

    def _load(self) -> None:
        """Take what `close` left, or else what LevelDB has."""
        try:
            found = snapshot.read(self.path / STATE_NAME)
            self._has_state = found is not None
        except NewerFormatError as error:
            raise failure(f"cannot read {self.path / STATE_NAME}", error) from error
        except (OSError, ValueError):  # of a power cut
            found, self._has_state = None, True
        if found is None:
            found = self._stored()
        if found is not None:
            self._exists = self._must_exist = True
            self.restore(found)
            self._stored_state = _records.encode_state(found.state)

    def _stored(self) -> Snapshot | None:
        """What LevelDB has to say at a start, None if it is empty."""
        check_owner(self.path)
        db = self._opened(known=False)
        try:
            stored = stored_state(db)
            if stored is None:
                check_empty(db)
                return None
            self._exists = True
            self._state_key, record = stored
            found = Snapshot(_records.decode_state(record))
            if kept := db.get(KEPT_KEY):
                found.has_kept = True
                found.kept = [
                    id
                    for id in _records.decode_ids(kept)
                    if id < found.state.floor and db.get(_records.item_key(id)) is not None
                ]
            for key in db.iterator(start=b"u", stop=b"v", include_value=False):
                if is_known_key(key):
                    found.blobs.append(int.from_bytes(key[1:], "big"))
            found.expiring = db.get(EXPIRING_KEY) is not None
            for key, place in db.iterator(start=CURSOR_PREFIX, stop=CURSORS_END):
                found.cursors[key[1:]] = decode_place(place)
            if delayed := db.get(DELAYED_KEY):
                counts = decode_counts(delayed)
                found.delayed_items, found.delayed_bytes, due_from, found.live_from = counts
                found.due_from, found.next_due = find_runs(db, due_from)
        except (leveldb.Error, OSError, ValueError, JournalError) as error:
            raise failure(f"cannot read {self.path}", error) from error
        return found

    def _check_mark(self) -> None:
        """Raises JournalError if LevelDB and the log end before what LevelDB has had on the disk."""
        if self.log is None or self._has_state:
            return
        life, change = read_mark(self.path)
        self._has_mark = change > 0
        state = self.state
        if change and not state.deleted and (life != state.life or change > state.change):
            end = state.change if life == state.life else 0
            raise DamagedError(
                f"{self.path} is damaged: LevelDB and the log end at change {end}, and LevelDB had all up to "
                f"{change}"
            )

    def _catch_up(self, lives: Sequence[Life]) -> None:
        """Make the changes that the log knows and LevelDB does not."""
        assert self.log is not None
        last, state = lives[-1], self.state
        is_over = state.life in {life.number for life in lives[:-1]} if self._exists else last.retired
        if is_over:
            # what is logged from now on is of another life: this one's changes were not made again
            state.deleted = True
            self.log.pin_found(self)
            return
        if not self._exists:
            state.life = last.number
        elif state.life != last.number and last.retired:
            return  # this one began after that
        # no batch is to be sealed or marked before all is done
        self.dirty = self.writing = True
        change = state.change
        try:
            self._replay(last)
        except (leveldb.Error, ValueError, JournalError) as error:
            self._shut()
            raise failure(f"cannot bring {self.path} up to date", error) from error
        self._look_for_blobs()
        self.dirty = self.writing = self.is_backlogged = False
        if state.change != change:
            self.log.pin_found(self)
            self._mark()

    def _replay(self, life: Life) -> None:
        state = self.state
        for change, kind, payload in life.changes:
            if state.life != life.number:
                raise MisplacedError("it is not the directory that the log was written for")
            if change > state.change + 1:
                raise DamagedError(
                    f"the log goes on at change {change}, the directory ends at change {state.change}"
                )
            if change > state.change:
                state.change = change
                self._redo(kind, payload)

    def _look_for_blobs(self) -> None:
        """Forget the items that the log has, but whose blobs are not whole: neither was promised to outlast
        the machine, and the log alone did. And do not delete the blobs of the others."""
        for item in list(self.batch.puts.values()):
            if item.blob and not (self._is_whole(item) or self._link_again(item)):
                self._remove(item.id, item.size, item.blob)
                self.lost += 1
        for key, item in list(self.batch.delayed.items()):
            if item.blob and not (self._is_whole(item) or self._link_again(item)):
                self._end_delay(key, item)
                self._discount(item)
                self._doom(item.blob)
                self.lost += 1
        live = {item.blob for item in self._staged_items()}
        self.obsolete_blobs = [entry for entry in self.obsolete_blobs if entry[0] not in live]
        self.begun.clear()
        self._origins.clear()

    def _is_whole(self, item: Item) -> bool:
        try:
            return self.blob_path(item.blob).stat().st_size == file_bytes(item)
        except OSError:
            return False

    def _link_again(self, item: Item) -> bool:
        """Have the blob of an item that came from another queue, or went to several, linked to where it came
        from: its own name was lost with the machine. Returns whether it is whole then."""
        path, origin = self.blob_path(item.blob), self._origins.get(item.blob)
        if origin is None:
            return False
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            link_or_copy(origin, path)
        except (OSError, ValueError):
            return False
        self._writes.note_link(path)
        return self._is_whole(item)

    def _redo(self, kind: int, payload: bytes) -> None:
        numbers = _numbers(kind, payload)
        if kind in (Change.PUT, Change.REWRITE):
            self._redo_item(kind, _records.decode_item(b"i" + payload[:8], payload[8:]))
        elif kind == Change.DROP:
            id, size, blob = numbers
            self._check_given_out(id)
            if blob:  # another queue may have it, and miss its link: this file stays until it does not
                self.bind()
            self._remove(id, size, blob)
        elif kind == Change.DISCARD:
            stay = dict(zip(numbers[::2], numbers[1::2], strict=True))
            for id in stay:
                self._check_given_out(id)
            self._flush(stay)
        elif kind == Change.BLOB:
            blob = numbers[0]
            if len(payload) > BLOB_ID_BYTES:
                self._origins[blob] = self._home / os.fsdecode(payload[BLOB_ID_BYTES:])
            self._begin_blob(blob)
            self.obsolete_blobs.append((blob, self.state.change))
        elif kind == Change.RETIRE:
            self._retire()
        elif kind == Change.REVIVE:
            (created_ms,) = numbers
            self._revive(created_ms)
        else:
            self._redo_aside(kind, payload, numbers)

    def _redo_item(self, kind: int, item: Item) -> None:
        if kind == Change.REWRITE:
            self._check_given_out(item.id)
            self._note_attempts(item.id, item.attempts)
        elif item.id == self.state.next_id:
            if item.expires_ms:
                self.note_expiring(expiring=True)
            self._put(item)
        else:
            raise ValueError(f"item {item.id} follows {self.state.next_id - 1} in the log")

    def _redo_aside(self, kind: int, payload: bytes, numbers: list[int]) -> None:
        """As `_redo`, of what is not among the items."""
        if kind == Change.DELAY:
            item = _records.decode_item(b"i" + payload[8:16], payload[16:])
            if item.expires_ms:
                self.note_expiring(expiring=True)
            self._delay(b"d" + payload[:16], item)
        elif kind == Change.JOIN:
            key = b"d" + payload[:16]
            delayed = self._find_delayed(key)
            if delayed is None:
                raise ValueError(f"delayed item {numbers[1]} is in the log, and nowhere else")
            self._join(key, delayed, numbers[2])
        elif kind == Change.LOST:
            first, stop, items, size = numbers
            if not first <= stop <= self.state.next_id:
                raise ValueError(f"the log has items up to {stop}, and the next one is {self.state.next_id}")
            self._lost(first, stop, items, size)
        elif kind == Change.LOST_DELAYED:
            _, _, items, size = numbers
            self._lost_delayed(b"d" + payload[:16], items, size)
        elif kind == Change.ATTEMPTS:
            id, attempts = numbers
            self._check_given_out(id)
            self._note_attempts(id, min(attempts, MAX_ATTEMPTS))
        elif kind == Change.CURSOR:
            self._keep_cursor(payload[1 : 1 + payload[0]], numbers)
        else:
            raise NewerFormatError(f"the log has a change of kind {kind}, which this darner does not know")

    def _check_given_out(self, id: int) -> None:
        if not 0 < id < self.state.next_id:
            raise ValueError(f"the log has item {id}, and the next one is {self.state.next_id}")

    def resting_state(self) -> bytes:
        """Return the snapshot for `close`, or b"" if LevelDB does not have all yet, or something is to be
        compacted, which is for who has it open. Of one that is deleted ends of blobs are not written any
        more."""
        is_tidy = not (self.to_be_compacted or self.state.deleted)
        is_stored = self._exists and self.stored_change == self.state.change and not self.dirty
        return self.snapshot().encode() if is_tidy and is_stored and self.failing is None else b""

    def close(self, state: bytes = b"") -> None:
        """Close the directory, from any thread; nothing may be being written. `state` was its
        `resting_state`, and spares the next start opening it."""
        self._shut()
        if state:
            with contextlib.suppress(OSError):  # then the next start opens it
                (self.path / STATE_NAME).write_bytes(state)
                self._has_state = True
                if self._has_mark:
                    (self.path / MARK_NAME).unlink(missing_ok=True)
                    self._has_mark = False

    def set_aside(self, fault: JournalError) -> None:
        """Have nothing more done with it until the next start, which finds what the log and LevelDB have:
        whoever asks for a change gets `fault`."""
        self.fault = self.failing = fault
        fence = _Fence(fault)
        self._segment, self.log = fence.segment, fence
        self.go_on()

    # Logging

    def _enter(self) -> None:
        """Have a number in the segment that is being written."""
        log = self.log
        assert log is not None
        payload = self.state.life.to_bytes(8, "big") + self.name
        for _ in range(SEGMENTS_TRIED):
            if self._segment.append(Change.ENTER, log.entered + 1, 0, payload):
                break
            log.roll()
        else:
            raise JournalError("the log cannot be written")
        self._number = log.enter(self.state.life)
        self._entered = self._segment.number
        if self.dirty:  # otherwise once it is
            log.pin(self)

    def announce(self) -> None:
        """Have the log say that it has begun, for that may have an end of an earlier one of its name. Raises
        JournalError if nothing is taken in."""
        self.check()
        self._enter()

    def _log(self, kind: int, payload: bytes) -> None:
        """Log a change that is about to be made."""
        if self.log is not None:
            if self._entered != self._segment.number:
                self._enter()
            change = self.state.change + 1
            if not self._segment.append(kind, self._number, change, payload):
                for _ in self._new_segments():
                    if self._segment.append(kind, self._number, change, payload):
                        break
                    if len(payload) + FRAME_BYTES > self._segment.room_bytes:
                        raise JournalError(f"too many reserved items to log: {len(payload)} bytes")
        self.state.change += 1

    def _new_segments(self) -> Iterator[None]:
        """Go on in a new segment, for there is no room in this one, or it cannot be written; and in another
        one
        if that cannot be written either. Raises JournalError if there is none."""
        assert self.log is not None
        for _ in range(SEGMENTS_TRIED):
            self.log.roll()
            self._enter()
            yield
        raise JournalError("the log cannot be written")

    def _mark(self) -> None:
        self.dirty = True
        if self.log is not None:
            self.log.pin(self)
        self._writes.add(self)

    # Changes. What is named with an underscore is done without a log, as it is when the log is read back.

    def put(self, item: Item) -> None:
        """Put a new item, as the last; gives it its id."""
        log = self.log
        state = self.state
        item.id = state.next_id
        if log is not None:
            if self.failing is not None:
                raise self.failing.with_traceback(None)
            if self._segment.refusal is not None:
                raise self._segment.refusal.with_traceback(None)
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.put(_PUT, self._number, state.change + 1, item):
                for _ in self._new_segments():
                    if self._segment.put(_PUT, self._number, state.change + 1, item):
                        break
        state.change += 1
        self._put(item)

    def _put(self, item: Item) -> None:
        batch = self.batch
        self.state.add(item)
        batch.puts[item.id] = item
        if self._segment.in_group:
            batch.is_bound = True
        if item.blob:
            self.begun.discard(item.blob)
            batch.ops.append((_records.marker_key(item.blob), None))
        batch.room -= item.memory_bytes
        if not self.dirty:
            self._mark()
        if batch.room < 0:
            self._fill()

    def _fill(self) -> None:
        if not self.writing:
            self._writes.checkpoint(self)
        elif self.batch.room < (0 if self._writes.space_is_scarce else -AHEAD_BYTES):
            self.is_backlogged = True

    def note_attempts(self, item: Item) -> None:
        """Put down how often a live item has come back."""
        if self.log is not None and self._segment.refusal is not None:  # what room there is is for removals
            raise self._segment.refusal.with_traceback(None)
        self._log(Change.ATTEMPTS, b"".join(number.to_bytes(8, "big") for number in (item.id, item.attempts)))
        self._note_attempts(item.id, item.attempts)

    def _note_attempts(self, id: int, attempts: int) -> None:
        batch = self.batch
        if id not in batch.attempts:
            batch.room -= ATTEMPTS_BYTES
        batch.attempts[id] = attempts
        self._has_attempts = True
        if not self.dirty:
            self._mark()
        if batch.room < 0:
            self._fill()

    def remove(self, item: Item) -> None:
        """Remove a live item."""
        log = self.log
        state = self.state
        if state.items == 0 or state.bytes < item.size:
            raise self._miscounted()
        if log is not None:
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.drop(self._number, state.change + 1, item.id, item.size, item.blob):
                for _ in self._new_segments():
                    if self._segment.drop(self._number, state.change + 1, item.id, item.size, item.blob):
                        break
        state.change += 1
        self._remove(item.id, item.size, item.blob)

    def _remove(self, id: int, size: int, blob: int) -> None:
        batch = self.batch
        state = self.state
        if batch.attempts and batch.attempts.pop(id, None) is not None:
            batch.room += ATTEMPTS_BYTES
        staged: Item | None = batch.puts.pop(id, None)
        was_oldest = state.drop(id, size)
        if staged is not None:
            batch.room += staged.memory_bytes
        else:
            self._dead_bytes += size
            # A blob goes with its item, so that `_trim` has only flushed ones to look for.
            if not was_oldest or blob:
                self._delete(id)
        if blob:
            self._doom(blob)
        if not was_oldest:
            self._part_with(id, size, is_staged=staged is not None)
        elif self.gone:
            self._advance()
        if not self.dirty:
            self._mark()

    def bind(self) -> None:
        """What is removed next has come to be in another journal. If the log were lost with the machine, and
        LevelDB had the removal, it would be in neither: have the log on the disk first."""
        self.batch.is_bound = True

    def _part_with(self, id: int, size: int, *, is_staged: bool) -> None:
        """An item was removed out of its turn."""
        if id < self.state.floor:
            self.kept.discard(id)
        elif id < self.reads:
            self.gone.add(id)
            if len(self.gone) > MAX_GONE:
                self._checkpoint()
        elif not is_staged:
            self.batch.expunged.add(id)
            self._expunged_to = max(self._expunged_to, id + 1)
            self._trimmed_records += 1
            self._trimmed_bytes += size

    def _delete(self, id: int) -> None:
        if self.log is not None:
            self.batch.ops.append((_records.item_key(id), None))
            if self._has_attempts is not False:
                self.batch.ops.append((attempts_key(id), None))

    def _advance(self) -> None:
        floor = self.state.floor
        while floor in self.gone:
            self.gone.remove(floor)
            floor += 1
        self.state.floor = floor

    def _checkpoint(self) -> None:
        """Move the floor past the gone ids and keep what lives below it, so that neither memory nor
        the next start pays for an item that stays reserved while all behind it go."""
        top = max(self.gone) + 1
        self.kept.update(id for id in range(self.state.floor, top) if id not in self.gone)
        self._keep(top)

    def _keep(self, floor: int) -> None:
        self.state.floor = floor
        self.gone.clear()
        # Its key is behind those of items: a table that has it overlaps with those of all later ones.
        if self.log is not None and (self.kept or self._has_kept):
            self._has_kept = bool(self.kept)
            ids = _records.encode_ids(sorted(self.kept)) if self.kept else None
            self.batch.ops.append((KEPT_KEY, ids))
            if not self.dirty:  # a read has come to this, maybe
                self._mark()

    def flush(self, keep: Collection[Item]) -> None:
        """Remove all items but `keep`, in a time that does not grow with the queue."""
        stay = {item.id: item.size for item in keep}
        numbers = array.array("Q", itertools.chain.from_iterable(stay.items()))
        if sys.byteorder == "little":
            numbers.byteswap()
        self._log(Change.DISCARD, numbers.tobytes())
        self._flush(stay)

    def _flush(self, stay: dict[int, int]) -> None:
        batch, state = self.batch, self.state
        passed, self.kept = self.kept, set(stay)
        self.unsound.clear()
        for id in passed - self.kept:
            self._discard(id)
        if self.log is None:
            # all that was put is in there
            gone = batch.puts
            batch.puts = {id: gone[id] for id in stay if id in gone}
            batch.room = ROOMY_BYTES
            self._writes.free(gone)
        for id in [id for id in batch.puts if id not in stay]:
            item = batch.puts.pop(id)
            batch.room += item.memory_bytes
            if item.blob:
                self._doom(item.blob)
        batch.attempts = {id: attempts for id, attempts in batch.attempts.items() if id in stay}
        self._dead_bytes += state.bytes
        self._blobs_to = state.next_id
        state.items = len(stay)
        state.bytes = sum(stay.values())
        self._keep(state.next_id)
        self.reads = state.next_id
        if self.delayed_items:
            self._flush_delayed()
        if not self.dirty:
            self._mark()

    def _discard(self, id: int) -> None:
        """Delete a kept item, which `_trim` may have passed by."""
        with contextlib.suppress(JournalError, leveldb.Error, ValueError, DamagedRecordError):  # but dead
            item = self._find(id)
            if item is not None and item.blob:
                self._doom(item.blob)
        self._delete(id)

    def retire(self) -> None:
        """All items go, and with them the journal: it is deleted at the next start if it was not before.
        Blobs that were begun are lost."""
        self._log(Change.RETIRE, b"")
        if self.log is not None:
            self.log.pin_end_of(self.state.life)
        self._retire()
        # should it have vanished
        self._must_exist = False

    def _retire(self) -> None:
        self._flush({})
        for label in list(self.cursors):
            self._keep_cursor(label, [])
        self.note_expiring(expiring=False)
        self.state.deleted = True
        self.generation += 1

    def revive(self, created_ms: int) -> None:
        """Begin anew in a retired journal: empty, ids going on."""
        self._log(Change.REVIVE, created_ms.to_bytes(8, "big"))
        self._revive(created_ms)

    def _revive(self, created_ms: int) -> None:
        self.state.deleted = False
        self.state.created_ms = created_ms
        if not self.dirty:
            self._mark()

    def note_expiring(self, *, expiring: bool) -> None:
        """Take note of whether an item may have an expiry of its own: if not, nobody need look for one. That
        one has is in the log with the item."""
        if expiring != self.expiring:
            self.expiring = expiring
            if self.log is not None:
                self.batch.ops.append((EXPIRING_KEY, b"" if expiring else None))
                if not self.dirty:
                    self._mark()

    # Delayed items. Their ids are out of those of blobs, so that none is missing among the others'.

    def check(self) -> None:
        """Raises JournalError if nothing is taken in."""
        if self.failing is not None:
            raise self.failing.with_traceback(None)
        if self._segment.refusal is not None:
            raise self._segment.refusal.with_traceback(None)

    def delay(self, item: Item, due_ms: int) -> None:
        """Take in a new item that is out of sight until it is due, and then is to `join` the others; gives it
        an id."""
        self.check()
        item.id = self.state.next_blob
        key = delayed_key(due_ms, item.id)
        self._log(Change.DELAY, b"" if self.log is None else key[1:] + _records.encode_item(item))
        self._delay(key, item)

    def _delay(self, key: bytes, item: Item) -> None:
        batch = self.batch
        self.state.next_blob = item.id + 1
        batch.delayed[key] = item
        if self._segment.in_group:
            batch.is_bound = True
        insort(batch.due, key)
        if item.blob:
            self.begun.discard(item.blob)
            batch.ops.append((_records.marker_key(item.blob), None))
        due_ms = due_ms_of(key)
        run = run_of(due_ms)
        self.next_due[run] = min(self.next_due.get(run, due_ms), due_ms)
        self._due_from[run] = min(self._due_from.get(run, due_ms), due_ms)
        self.delayed_items += 1
        self.delayed_bytes += item.size
        batch.recount = True
        batch.room -= item.memory_bytes
        if not self.dirty:
            self._mark()
        if batch.room < 0:
            self._fill()

    def due(
        self, now_ms: int, max_items: int, max_bytes: int, date_ms: Callable[[int], int] = int
    ) -> list[tuple[bytes, Item]]:
        """Return delayed items that are due, in the order of their times, each with the key that `join`
        takes; sets `next_due` to when the first of the others are. `date_ms` makes times of different runs
        comparable."""
        found: list[tuple[bytes, Item]] = []
        flushed: list[tuple[bytes, Item]] = []
        damaged: list[DamagedRecordError] = []
        size = 0
        until_ms = date_ms(now_ms)
        # whoever asks again is told again
        self.next_due = {run_of(now_ms): now_ms}
        try:
            with self._using:
                runs = {run: self._delayed(run, damaged) for run in self._due_from}
                firsts = {run: first for run, items in runs.items() if (first := next(items, None))}
                while firsts:
                    due_ms, _, run = min(
                        (date_ms(due_ms_of(key)), item.id, run) for run, (key, item) in firsts.items()
                    )
                    if due_ms > until_ms or len(found) + len(flushed) >= max_items or size >= max_bytes:
                        break
                    key, item = firsts.pop(run)
                    (found if item.id >= self._live_from else flushed).append((key, item))
                    size += item.memory_bytes
                    if following := next(runs[run], None):
                        firsts[run] = following
                runs.clear()  # while LevelDB is sure to be open
        except (leveldb.Error, ValueError) as error:
            raise self._unreadable("delayed items", error, self._first_delayed_key) from error
        self.next_due = {run: due_ms_of(key) for run, (key, _) in firsts.items()}
        for record in damaged:
            self._give_up_delayed(record)
        if not self.next_due and self.delayed_items != len(found):
            self._look_over(self._first_delayed_key)
            missing = self.delayed_items - len(found)
            self._lose_delayed(delayed_key(0, 0), missing, sum(item.size for _, item in found))
            is_one = missing == 1
            text = f"{missing} delayed {'item is' if is_one else 'items are'} missing"
            self._tell_quarantine("not known", text, None)
        self._end_flushed(flushed, found)
        return found

    @property
    def _first_delayed_key(self) -> bytes:
        """No delayed item lies before this."""
        return delayed_key(min(self._due_from.values(), default=0), 0)

    def _end_flushed(self, flushed: list[tuple[bytes, Item]], found: list[tuple[bytes, Item]]) -> None:
        """Be rid of delayed items that were flushed, as far as they come before those that were found."""
        for key, item in flushed:
            self._end_delay(key, item)
            if item.blob:
                self._doom(item.blob)
        for key, _ in flushed + found[::-1]:
            self._due_from[run_of(due_ms_of(key))] = due_ms_of(key)
        # of runs that have no more, only the last key tells where there is nothing any more
        for run in (
            self._due_from.keys() - self.next_due.keys() - {run_of(due_ms_of(key)) for key, _ in found}
        ):
            if run < max(self._due_from):
                del self._due_from[run]

    def join(self, key: bytes, item: Item, now_ms: int) -> Item:
        """Put a delayed item, which `due` gave, as the last, as if it were new now; returns it as such. Not
        refused while nothing is taken in: that a reader finds it is what lets it go."""
        if self.delayed_items < 1 or self.delayed_bytes < item.size:
            raise self._miscounted()
        self._log(Change.JOIN, key[1:] + now_ms.to_bytes(8, "big"))
        return self._join(key, item, now_ms)

    def _join(self, key: bytes, item: Item, now_ms: int) -> Item:
        self._end_delay(key, item)
        self._due_from[run_of(due_ms_of(key))] = due_ms_of(key)
        self._discount(item)
        joined = Item(
            self.state.next_id,
            item.flags,
            item.expires_ms,
            now_ms,
            item.data,
            item.blob,
            item.size,
            item.chunk_bytes,
        )
        _records.encode_item(joined)
        if joined.expires_ms:
            self.note_expiring(expiring=True)
        self._put(joined)
        return joined

    def _end_delay(self, key: bytes, item: Item) -> None:
        batch = self.batch
        if batch.delayed.pop(key, None) is not None:
            del batch.due[bisect_left(batch.due, key)]
            batch.room += item.memory_bytes
        else:
            batch.ended.add(key)
            batch.ops.append((key, None))
            self._trimmed_records += 1
            self._trimmed_bytes += item.memory_bytes
        batch.recount = True
        if not self.dirty:
            self._mark()

    def _discount(self, item: Item) -> None:
        if self.delayed_items < 1 or self.delayed_bytes < item.size:
            raise ValueError(f"delayed item {item.id} is one more than are counted")
        self.delayed_items -= 1
        self.delayed_bytes -= item.size

    def _flush_delayed(self) -> None:
        """Forget what is delayed; records in LevelDB go when it would have been due."""
        batch = self.batch
        for item in batch.delayed.values():
            batch.room += item.memory_bytes
            if item.blob:
                self._doom(item.blob)
        batch.delayed.clear()
        batch.due.clear()
        self.delayed_items = self.delayed_bytes = 0
        self._live_from = self.state.next_blob
        batch.recount = True

    def _delayed(
        self, run: int = 0, damaged: list[DamagedRecordError] | None = None
    ) -> Iterator[tuple[bytes, Item]]:
        """The delayed items of a run, in the order in which they are due, flushed ones among them. Which are
        damaged is put into that list; ValueError if there is none."""
        batches = [self.batch] if self.sealed is None else [self.sealed, self.batch]
        ended = set().union(*(batch.ended for batch in batches))
        stored = self._sound_delayed(run, ended, damaged)
        staged = [batch.in_order(run) for batch in batches]
        last = b""
        for key, item in heapq.merge(stored, *staged, key=lambda entry: entry[0]):
            # what is being written may be in LevelDB, too
            if key != last and key not in ended:
                yield key, item
            last = key

    def _sound_delayed(
        self, run: int, ended: set[bytes], damaged: list[DamagedRecordError] | None
    ) -> Iterator[tuple[bytes, Item]]:
        for key, record in self._stored_delayed(run):
            try:
                yield key, _records.decode_item(b"i" + key[9:], record)
            except NewerFormatError:
                raise
            except ValueError as error:
                if damaged is None:
                    raise
                if key not in ended:
                    damaged.append(DamagedRecordError(key, record, str(error)))

    def _stored_delayed(self, run: int) -> Iterator[tuple[bytes, bytes]]:
        if self._exists:
            start = delayed_key(self._due_from.get(run, start_of(run)), 0)
            stop = delayed_key(end_of(run), 0)
            db = self._opened_to_read()
            with db.iterator(start=start, stop=stop, fill_cache=False) as records:
                yield from records

    def _find_delayed(self, key: bytes) -> Item | None:
        """As it is found when the log is read back."""
        staged = self.batch.delayed.get(key)
        if staged is not None or not self._exists:
            return staged
        record = self._opened().get(key, fill_cache=False)
        return None if record is None else _records.decode_item(b"i" + key[9:], record)

    # Cursors

    def keep_cursor(self, label: bytes, place: list[int]) -> None:
        """Keep the place of a cursor, ids; none at all is the end of it."""
        ids = b"".join(id.to_bytes(8, "big") for id in place)
        self._log(Change.CURSOR, bytes([len(label)]) + label + ids)
        self._keep_cursor(label, place)

    def _keep_cursor(self, label: bytes, place: list[int]) -> None:
        if place:
            self.cursors[label] = place
        else:
            self.cursors.pop(label, None)
        if self.log is not None:
            self.batch.cursors.add(label)
            if not self.dirty:
                self._mark()

    # Blobs

    def begin_blob(self, origin: Path | None = None) -> int:
        """Begin a blob, which belongs to no item yet, and is to be a link to `origin`; returns its id."""
        self.check()
        blob = self.state.next_blob
        place = b"" if origin is None else os.fsencode(os.path.relpath(origin, self.path))
        self._log(Change.BLOB, blob.to_bytes(BLOB_ID_BYTES, "big") + place)
        self._begin_blob(blob)
        return blob

    def _begin_blob(self, blob: int) -> None:
        self.state.next_blob = blob + 1
        self.begun.add(blob)
        self.batch.ops.append((_records.marker_key(blob), b""))
        if not self.dirty:
            self._mark()

    def link_blob(self, file: Path, copies: list[tuple[Path, Path]] | None = None) -> int:
        """Begin a blob with the bytes of another one, in `file`; returns its id.

        If `file` cannot be linked, being on another file system, it is copied; or put into `copies`, if
        given, with where it is to be copied to. Raises JournalError if that cannot be: then `file` is as it
        was.
        """
        blob = self.begin_blob(file)
        path = self.blob_path(blob)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                path.hardlink_to(file)
            except OSError as error:
                if error.errno not in UNLINKABLE:
                    raise
                if copies is None:
                    shutil.copyfile(file, path)
                else:
                    copies.append((file, path))
        except OSError as error:
            self.abandon_blob(blob)
            raise failure(f"cannot link {path} to {file}", error) from error
        self._writes.note_link(path)
        return blob

    def write_blob(self, data: bytes) -> int:
        """Begin a blob with these bytes; returns its id. Raises JournalError if that cannot be."""
        blob = self.begin_blob()
        try:
            write_whole(self.blob_path(blob), data)
        except JournalError:
            self.abandon_blob(blob)
            raise
        self._writes.note_link(self.blob_path(blob))
        return blob

    def blob_path(self, blob: int) -> Path:
        """Return the file of a blob."""
        return self.path / BLOBS_NAME / str(blob)

    def abandon_blob(self, blob: int) -> None:
        """A blob that was begun will not be finished."""
        self.begun.discard(blob)
        self.obsolete_blobs.append((blob, self.state.change))
        if not self.state.deleted:
            self._writes.add(self)

    def _doom(self, blob: int) -> None:
        self.batch.ops.append((_records.marker_key(blob), b""))
        self.obsolete_blobs.append((blob, self.state.change))

    def take_obsolete_blobs(self) -> list[int]:
        """Return the blobs that are due now: `delete_blobs` them, in a thread, and then `forget` them."""
        ripe = [blob for blob, change in self.obsolete_blobs if change <= self.stored_change]
        if ripe:
            self.obsolete_blobs = [entry for entry in self.obsolete_blobs if entry[1] > self.stored_change]
        return ripe

    def take_back_obsolete_blobs(self, blobs: Iterable[int]) -> None:
        """What `take_obsolete_blobs` gave could not be deleted: it is to be tried again."""
        self.obsolete_blobs += [(blob, 0) for blob in blobs]

    def delete_blobs(self, blobs: Iterable[int]) -> None:
        """Delete the files of blobs, so that none comes back with a power cut; OSError if that fails for one,
        with the others deleted."""
        failed = None
        for blob in blobs:
            try:
                self.blob_path(blob).unlink(missing_ok=True)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed
        with contextlib.suppress(FileNotFoundError):
            sync_directory(self.path / BLOBS_NAME)

    def forget(self, blobs: Iterable[int]) -> None:
        """Stage the end of blobs whose files are deleted. It need not be logged: what is done again after
        a crash does no harm."""
        self.batch.ops.extend((_records.marker_key(blob), None) for blob in blobs)
        if not (self.dirty or self.state.deleted):
            self._mark()

    def _delete_unknown_blobs(self) -> None:
        """Delete the files of blobs that were begun in a change that was lost with the machine: for good, for
        a later start may not know them from others."""
        known = {blob for blob, _ in self.obsolete_blobs} | {item.blob for item in self._staged_items()}
        with contextlib.suppress(OSError):  # then after the next start
            is_any = False
            for file in (self.path / BLOBS_NAME).iterdir():
                blob = int(file.name) if file.name.isdecimal() else 0
                if blob >= self.state.next_blob or not (self._exists or blob in known):
                    is_any = True
                    file.unlink()
            if is_any:
                sync_directory(self.path / BLOBS_NAME)

    def _staged_items(self) -> list[Item]:
        return [*self.batch.puts.values(), *self.batch.delayed.values()]

    # Reading

    def read(self, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
        """Return items from id `start` on, and the id to read on from.

        Stops behind the item that reaches `max_items` or `max_bytes`, and where something is damaged: the
        next one then gets past that. `start` must be where the last read ended, or the floor: ids found
        missing on the way are gone.
        """
        items: list[Item] = []
        size = 0
        if self.unsound:
            item = self.find(self.unsound[-1])
            self.unsound.pop()
            return ([] if item is None else [item]), start
        start = max(start, self.state.floor)
        try:
            with self._using:
                for item in self._from(start):
                    if item.id != start:
                        self._pass(start, item.id)
                    start = item.id + 1
                    if item.id in self.gone or item.id < self.state.floor:
                        continue  # its record goes with the next batch
                    items.append(item)
                    size += item.memory_bytes
                    if len(items) >= max_items or size >= max_bytes:
                        return items, start
            self._pass(start, self.state.next_id)
        except (leveldb.Error, ValueError, MendingError, DamagedRecordError) as error:
            if items:  # the next one meets it
                return items, start
            if isinstance(error, MendingError):
                raise
            if not isinstance(error, DamagedRecordError):
                raise self._unreadable(f"items from {start} on", error, _records.item_key(start)) from error
            return items, self._get_past(start, error)
        return items, self.state.next_id

    def _get_past(self, start: int, damaged: DamagedRecordError) -> int:
        """A `read` from `start` on has met that first; returns where to go on."""
        self._look_over(_records.item_key(start))
        if damaged.id > start:
            self._pass(start, damaged.id)
            return damaged.id
        self._give_up(damaged)
        self._skip(start, start + 1)
        return start + 1

    def _from(self, start: int) -> Iterator[Item]:
        expunged = self._expunged()
        if start < self.stored_id:
            stop = _records.item_key(self.stored_id)
            db = self._opened_to_read()
            stored = self._stored_attempts(db, start)
            counted = next(stored, None)
            with db.iterator(start=_records.item_key(start), stop=stop, fill_cache=False) as records:
                for key, record in records:
                    if is_state_key(key):
                        continue
                    item = self._decoded(key, record, expunged)
                    if item is None or item.id in expunged:
                        continue
                    while counted is not None and counted[0] < item.id:
                        counted = next(stored, None)
                    if counted is not None and counted[0] == item.id:
                        item.attempts = counted[1]
                    yield self._with_attempts(item)
            start = self.stored_id
        for id in range(start, self.state.next_id):
            staged = self._staged(id)
            if staged is not None and id not in expunged:
                yield staged

    def _stored_attempts(self, db: Any, start: int) -> Iterator[tuple[int, int]]:
        """The ids, from `start` on, of items that have come back, and how often, as LevelDB has it."""
        if not self._may_have_attempts(db):
            return
        span = attempts_key(start), attempts_key(self.stored_id)
        with db.iterator(start=span[0], stop=span[1], fill_cache=False) as records:
            for key, record in records:
                with contextlib.suppress(ValueError):  # only a count is lost
                    yield int.from_bytes(key[1:], "big"), decode_attempts(record)

    def _may_have_attempts(self, db: Any) -> bool:
        if self._has_attempts is None:
            keys = db.iterator(start=ATTEMPTS_PREFIX, stop=ATTEMPTS_END, include_value=False)
            self._has_attempts = next(iter(keys), None) is not None
        return self._has_attempts

    def _with_attempts(self, item: Item) -> Item:
        """An item, or another one that knows how often it has come back, if that is staged."""
        attempts = self.batch.attempts.get(item.id)
        if attempts is None and self.sealed is not None:
            attempts = self.sealed.attempts.get(item.id)
        if attempts is not None and attempts != item.attempts:
            item = item.another()
            item.attempts = attempts
        return item

    def _decoded(self, key: bytes, record: bytes, expunged: set[int]) -> Item | None:
        """The item in a record; None if it is damaged, and dead."""
        try:
            return _records.decode_item(key, record)
        except ValueError as error:
            damaged = DamagedRecordError(key, record, str(error))
            if isinstance(error, NewerFormatError):
                raise
            if damaged.id in expunged or damaged.id in self.gone:
                return None
            raise damaged from error

    def _expunged(self) -> set[int]:
        """The ids of what was removed and may still be found."""
        expunged = self.batch.expunged
        return expunged if self.sealed is None else expunged | self.sealed.expunged

    def _staged(self, id: int) -> Item | None:
        found = self.batch.puts.get(id)
        if found is None and self.sealed is not None:
            found = self.sealed.puts.get(id)
        return None if found is None else self._with_attempts(found)

    def _pass(self, start: int, stop: int) -> None:
        """There are no records of these ids. Raises MendingError if some are missing, and there is something
        that may bring them back."""
        state = self.state
        # all that are not read yet, and how many of these were removed out of turn
        unread = int(state.next_id) - start
        gone = sum(id < start for id in self.gone)
        removed = unread + len(self.kept) + start - int(state.floor) - gone - int(state.items)
        missing = stop - start - removed
        if missing > 0:
            self._look_over(_records.item_key(start))
            self._lose(start, stop, missing, self._missing_bytes(start, stop, missing))
            self._tell_missing(start, stop, missing)
        self._skip(start, stop)

    def _missing_bytes(self, start: int, stop: int, missing: int) -> int:
        """How many bytes the missing ones of these items had: of some that is known, of the others guessed,
        which is put right in the end."""
        rejected, state = self._quarantine.rejected, self.state
        ids = range(start, stop) if stop - start < len(rejected) else rejected
        known = [rejected[id].size for id in ids if id in rejected and start <= id < stop]
        return sum(known) + int(state.bytes) * max(0, missing - len(known)) // int(state.items)

    def _tell_missing(self, start: int, stop: int, missing: int) -> None:
        where = self.path / DAMAGED_NAME
        if stop - start > 1:
            ids = f"{start} to {stop - 1}"
            self._tell_quarantine(ids, f"{missing} records of these are damaged or missing", where)
        else:
            record = where / f"{start}.record"
            self._tell_quarantine(
                str(start), "its record is damaged or missing", record if record.exists() else where
            )

    def _skip(self, start: int, stop: int) -> None:
        start = max(start, self.state.floor)
        if start >= stop:
            return
        # not one by one: a sweep may have left a wide gap
        if start == self.state.floor:
            self.state.floor = stop
            self.gone = {id for id in self.gone if id >= stop}
        elif stop - start > MAX_GONE:
            self.kept.update(id for id in range(self.state.floor, start) if id not in self.gone)
            self._keep(stop)
        else:
            self.gone.update(range(start, stop))
        self._advance()
        if len(self.gone) > MAX_GONE:
            self._checkpoint()

    def check_whole(self) -> None:
        """Raises JournalError if all items have been read and they are not as many as are counted: what is
        damaged is not to be taken for empty."""
        state = self.state
        if self.reads >= state.next_id:
            found = state.next_id - state.floor - len(self.gone) + len(self.kept)
            if found != state.items:
                raise self._miscounted()

    def _miscounted(self) -> JournalError:
        failure = DamagedError(f"{self.path} is damaged: there are not as many items as are counted")
        self._tell(failure)
        return failure

    def scan(self, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
        """As `read`, but from any id on that `read` has not come to yet, and nothing is taken note of."""
        items: list[Item] = []
        size = 0
        start = max(start, self.state.floor)
        try:
            with self._using:
                for item in self._from(start):
                    items.append(item)
                    size += item.memory_bytes
                    start = item.id + 1
                    if len(items) >= max_items or size >= max_bytes:
                        return items, start
        except (leveldb.Error, ValueError, DamagedRecordError) as error:
            if items:
                return items, start
            if not isinstance(error, DamagedRecordError):
                raise self._unreadable(f"items from {start} on", error, _records.item_key(start)) from error
            self._give_up(error)
            return items, error.id + 1
        return items, self.state.next_id

    def live(self, id: int) -> Item | None:
        """Return the item with this id if it is live."""
        if id in self.gone or (id < self.state.floor and id not in self.kept) or id in self._expunged():
            return None
        return self.find(id)

    def is_live(self, id: int) -> bool:
        """Whether the item with this id is live, as far as that can be told without reading."""
        return id in self.kept or (self.state.floor <= id < self.state.next_id and id not in self.gone)

    def count_live(self, start: int) -> int:
        """Return how many items from id `start` on are live, as far as that can be told without reading."""
        floor = self.state.floor
        if start <= floor:
            return self.state.items - sum(id < start for id in self.kept)
        if start <= self.reads:  # what is gone before it is known
            before = start - floor - sum(id < start for id in self.gone)
            return self.state.items - len(self.kept) - before
        return max(0, self.state.next_id - start) - sum(id >= start for id in self.gone)

    def next_live(self, start: int) -> Item | None:
        """Return the first live item from id `start` on."""
        if start < self.state.floor:
            for id in sorted(id for id in self.kept if id >= start):
                if (item := self.live(id)) is not None:
                    return item
        start = max(start, self.state.floor)
        for _ in range(MAX_STRIKES):
            try:
                with self._using:
                    return next((item for item in self._from(start) if item.id not in self.gone), None)
            except (leveldb.Error, ValueError) as error:
                raise self._unreadable(f"items from {start} on", error, _records.item_key(start)) from error
            except DamagedRecordError as error:
                self._give_up(error)
                start = error.id + 1
        raise self.pause()

    def kept_items(self) -> list[Item]:
        """Return the live items below the floor, oldest first. What is damaged of them is left to `read`."""
        items = []
        for id in sorted(self.kept):
            try:
                item = self._find(id)
            except (leveldb.Error, ValueError, DamagedRecordError):
                self.unsound.append(id)
            else:
                if item is not None:
                    items.append(item)
        return items

    def reload(self, item: Item) -> Item | None:
        """Return a live item whose bytes are not in memory, with them; None if they are damaged or missing,
        and it is counted out."""
        found = self.find(item.id)
        if found is None:
            if self.is_live(item.id):
                self._look_over(_records.item_key(item.id))
                self._lose(item.id, item.id + 1, 1, item.size)
                self._tell_missing(item.id, item.id + 1, 1)
            return None
        found = found.another()
        found.attempts = item.attempts
        return found

    def find(self, id: int) -> Item | None:
        """Return the live item with this id, or None if its record is missing, or was damaged."""
        try:
            return self._find(id)
        except (leveldb.Error, ValueError) as error:
            raise self._unreadable(f"item {id}", error, _records.item_key(id)) from error
        except DamagedRecordError as error:
            self._give_up(error)
            return None

    def _find(self, id: int) -> Item | None:
        staged = self._staged(id)
        if staged is not None or id >= self.stored_id:
            return staged
        key = _records.item_key(id)
        with self._using:
            db = self._opened_to_read()
            record = db.get(key, fill_cache=False)
            counted = db.get(attempts_key(id), fill_cache=False) if self._may_have_attempts(db) else None
        try:
            item = None if record is None else _records.decode_item(key, record)
        except NewerFormatError:
            raise
        except ValueError as error:
            raise DamagedRecordError(key, record, str(error)) from error
        if item is None:
            return None
        if counted is not None:
            with contextlib.suppress(ValueError):  # only a count is lost
                item.attempts = decode_attempts(counted)
        return self._with_attempts(item)

    def open_blob(self, item: Item) -> BlobReader:
        """Return the bytes of a large item, which takes a descriptor. Raises JournalError if they cannot be
        read; DamagedItemError if they are not there or have another size."""
        try:
            return BlobReader(self.blob_path(item.blob), item, self.offload)
        except DamagedItemError:
            # not if they are away with all the rest
            if self._exists or not self.path.exists():
                self._look()
            raise
        except JournalError as error:
            self._tell(failure(f"item {item.id}", error))
            raise

    def check_blob(self, item: Item) -> None:
        """Raise what `open_blob` would."""
        self.open_blob(item).close()

    def _opened_to_read(self) -> Any:
        if self._db is not None:
            return self._db
        try:
            db = self._opened()
            self._writes.note_open(self)
            return db
        except JournalError as error:
            if self._may_be_mended(error) and self._writes.mend(self, b""):
                raise self.hold_readers() from error
            if self.failing is None:
                self._writes.suspend(self, error)
            raise

    def _may_be_mended(self, error: JournalError) -> bool:
        """Whether that for which LevelDB could not be opened may be the damage of a table."""
        cause = error.__cause__
        is_damage = (
            leveldb.is_damage(cause)
            or isinstance(error, _TooOldError)
            or (isinstance(cause, ValueError) and not isinstance(cause, NewerFormatError))
        )
        return is_damage and self._exists and not self._is_beyond and any(self.path.glob("*.ldb"))

    def _unreadable(self, what: str, error: Exception, key: bytes) -> JournalError:
        """Return the error that says why `what`, which begins at `key`, cannot be read. If LevelDB is damaged
        there, that is being mended."""
        if leveldb.is_damage(error) and self._writes.mend(self, key):
            return self.hold_readers()
        unreadable = failure(f"cannot read {what} in {self.path}", error)
        self._tell(unreadable)
        return unreadable

    def _tell(self, error: JournalError) -> None:
        """Have the operator told, once: the client is each time. That the process, or the system, has no
        descriptor left is no damage, and passes."""
        text = str(error)
        if any(reason in text for reason in OUT_OF_DESCRIPTORS):
            return
        if text not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(text)
            self._writes.on_damage(self, error)

    # Damage. What is damaged is counted out, and what is left of it put into a directory of its own.

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """Remove a live item whose file is damaged, and put that aside. Raises JournalError if that cannot
        be: then nothing is removed."""
        name = str(item.id)
        # first: if it is met again after a kill, it is removed then
        kept = self._put_aside(f"{name}.record", _records.encode_item(item))
        with self._putting_aside(name), contextlib.suppress(FileNotFoundError):  # that was the damage
            kept = self._quarantine.move(self.blob_path(item.blob), name)
        self.remove(item)
        self.damaged_items += 1
        self._tell_quarantine(name, str(damage), kept)

    def recount(self, items: int, size: int) -> None:
        """So many items, of so many bytes, are there in truth: some were lost unseen."""
        lost = int(self.state.items) - items
        if lost:
            self._look_over(_records.item_key(self.state.floor))
            self._tell_quarantine("not known", f"{lost} items are missing", None)
        self._lose(0, 0, lost, int(self.state.bytes) - size)

    def pause(self) -> MendingError:
        """Return the error for whoever has met much that is damaged, or has expired: others have their turn
        before more of it is met."""
        self.offload(lambda: None, lambda _: self.resume())
        return self.hold_readers()

    def hold_readers(self) -> MendingError:
        """Return the error for whoever would read on before `resume`."""
        self._has_paused = True
        return MendingError(f"{self.path} is being rid of what is damaged or has expired: try again", self)

    def resume(self) -> None:
        """Let those go on who have met a pause, or wait for room."""
        if self._has_paused:
            self._has_paused = False
            self._writes.on_resume(self)
        held_back, self.held_back = self.held_back, []
        for client in held_back:
            client.release()

    def _look_over(self, key: bytes) -> None:
        """What is at `key`, or the first record behind it, is not as it should be: raises MendingError unless
        LevelDB's tables are as sound there as they can be."""
        first, last = self._quarantine.span
        if not first <= key <= last and self._writes.mend(self, key):
            raise self.hold_readers()

    def _give_up(self, damaged: DamagedRecordError) -> None:
        """Count an item out whose record is damaged, and put that aside."""
        self._look_over(damaged.key)
        id, name = damaged.id, str(damaged.id)
        kept = self._put_record_aside(name, damaged)
        self._lose(id, id + 1, 1, damaged.size)
        self._tell_quarantine(name, str(damaged), kept)

    def _lose(self, first: int, stop: int, items: int, size: int) -> None:
        """Count out so many of the items with these ids."""
        state = self.state
        left = max(0, int(state.items) - items), max(0, int(state.bytes) - size)
        self._log(Change.LOST, b"".join(number.to_bytes(8, "big") for number in (first, stop, *left)))
        self._lost(first, stop, *left)
        self.damaged_items += max(0, items)

    def _lost(self, first: int, stop: int, items: int, size: int) -> None:
        state = self.state
        state.items, state.bytes = items, size
        if first == state.floor:
            state.floor = max(state.floor, stop)
            self.gone = {id for id in self.gone if id >= state.floor}
            self._advance()
        elif stop - first <= MAX_GONE:  # should they come back
            for id in range(first, stop):
                self._delete(id)
                self._part_with(id, 0, is_staged=False)
        if not self.dirty:
            self._mark()

    def _give_up_delayed(self, damaged: DamagedRecordError) -> None:
        self._look_over(damaged.key)
        key = damaged.key
        if damaged.id < self._live_from:  # it was flushed
            self.batch.ended.add(key)
            self.batch.ops.append((key, None))
            return
        name = f"delayed-{damaged.id}"
        kept = self._put_record_aside(name, damaged)
        self._lose_delayed(key, 1, max(0, self.delayed_bytes - damaged.size))
        self._tell_quarantine(name, str(damaged), kept)

    def _lose_delayed(self, key: bytes, items: int, left_bytes: int) -> None:
        left = max(0, self.delayed_items - items)
        self._log(Change.LOST_DELAYED, key[1:] + left.to_bytes(8, "big") + left_bytes.to_bytes(8, "big"))
        self._lost_delayed(key, left, left_bytes)
        self.damaged_items += max(0, items)

    def _lost_delayed(self, key: bytes, items: int, size: int) -> None:
        self.batch.ended.add(key)
        self.batch.ops.append((key, None))
        self.batch.recount = True
        self.delayed_items, self.delayed_bytes = items, size
        if not self.dirty:
            self._mark()

    def _put_record_aside(self, name: str, damaged: DamagedRecordError) -> Path:
        """Put a damaged record aside, with the blob that it names; returns where the record is."""
        kept = self._put_aside(f"{name}.record", damaged.record)
        if damaged.blob:  # if the number is right: it may be another's
            self._quarantine.link(self.blob_path(damaged.blob), name)
        return kept

    def _put_aside(self, name: str, content: bytes) -> Path:
        """Write that to a file among what is damaged, which is returned."""
        with self._putting_aside(name):
            return self._quarantine.put(name, content)

    @contextlib.contextmanager
    def _putting_aside(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            refusal = failure(f"cannot put {name} aside, which is damaged, in {self.path}", error)
            self._tell(refusal)
            raise refusal from error

    def _tell_quarantine(self, ids: str, reason: str, where: Path | None) -> None:
        """Have the operator told, of so many items that it can be read."""
        self._told_quarantined += 1
        if self._told_quarantined == MAX_QUARANTINED_TOLD:
            reason = f"{reason}; further ones are not logged, but counted as damaged_items"
        if where is not None and not where.exists():
            where = None
        if self._told_quarantined <= MAX_QUARANTINED_TOLD:
            self._writes.on_quarantine(self, ids, reason, where)

    def mend(self, key: bytes) -> bool:
        """Have LevelDB's tables in which the first record from `key` on may be as sound as they can be, all
        if it is b"": what is damaged is put aside, and a table with what is sound of it takes its place.
        Returns whether one was damaged. In a thread; JournalError if that cannot be done."""
        try:
            with self._using:
                tables = self._tables()
            floor, next_id = int(self.state.floor), int(self.state.next_id)
            sound = self._quarantine.look_over(tables, key, floor, next_id)
            if sound:
                with self._compacting, self._using:
                    if self._db is not None:
                        self._db.close()
                        self._db = self._write = None
                    self._quarantine.replace(sound)
                    db = self._open()
                    try:
                        self._put_stored_state(db)
                    finally:
                        db.close()
                    self._opened(again=True)
        except (leveldb.Error, OSError) as error:
            raise failure(f"cannot mend {self.path}", error) from error
        self._is_beyond = not (key or sound)
        return bool(sound)

    def end_mend(self, error: JournalError | None) -> None:
        """The thread that mended it is done, or has failed."""
        if error is not None:
            self._tell(error)
        self.go_on()

    def _tables(self) -> bytes:
        """LevelDB's own list of its tables. That it is the one that it was may not be found out before it is
        mended."""
        if self._db is not None:
            return bytes(self._db.get_property(b"leveldb.sstables"))
        with contextlib.closing(self._open()) as db:
            return bytes(db.get_property(b"leveldb.sstables"))

    def _put_stored_state(self, db: Any) -> None:
        """Have LevelDB have the state that it had, should that have been damaged."""
        if not self._stored_state:
            return
        state = _records.decode_state(self._stored_state)
        found = stored_state(db)
        change = -1
        if found is not None:
            with contextlib.suppress(ValueError):
                change = _records.decode_state(found[1]).change
        if change < state.change:
            db.put(state_key(state.next_id), self._stored_state, sync=True)

    def _stage_anew(self) -> None:
        """What there is besides items may have been damaged: have all of it written again."""
        batch = self.batch
        batch.cursors.update(self.cursors)
        batch.recount |= self.delayed_items > 0
        if self.kept or self._has_kept:
            self._has_kept = bool(self.kept)
            ids = _records.encode_ids(sorted(self.kept)) if self.kept else None
            batch.ops.append((KEPT_KEY, ids))
        if self.expiring:
            batch.ops.append((EXPIRING_KEY, b""))
        if not self.dirty:
            self._mark()

    @property
    def disk_bytes(self) -> int:
        """How many bytes its files take, as far as that can be told now."""
        total = 0
        for directory in (self.path, self.path / BLOBS_NAME):
            with contextlib.suppress(OSError), os.scandir(directory) as entries:  # or no descriptor is left
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # files go as we look
                        total += entry.stat().st_size if entry.is_file() else 0
        return total

    # Writing: called by commit.py, `write` and `compact` in a thread

    def seal(self, *, tidy: bool = False) -> None:
        """Begin a new batch; what was staged is to be written by `write`, and dead records deleted if they
        are many, or nothing else is to be done, or `tidy`."""
        assert self.log is not None
        if self.sealed is not None:
            self._take_back(self.sealed)
        batch, self.batch = self.batch, Batch()
        batch.state = self.state.copy()
        batch.kept = frozenset(self.kept)
        batch.segment = self.log.segment.number
        self._untrimmed_puts += len(batch.puts)
        batch.trims = tidy or not self.dirty or (self.overdue and self._may_trim(batch))
        if batch.trims:
            self._untrimmed_puts = 0
        batch.dead_bytes = self._dead_bytes
        batch.proves = self._compacted
        for label in batch.cursors:
            place = self.cursors.get(label)
            batch.ops.append((CURSOR_PREFIX + label, None if place is None else _records.encode_ids(place)))
        if batch.recount:
            due_from = min(self._due_from.values())
            counts = [self.delayed_items, self.delayed_bytes, due_from, self._live_from]
            batch.ops.append((DELAYED_KEY, _records.encode_ids(counts)))
        self.sealed = batch
        self.writing = True
        self.dirty = False

    def _may_trim(self, batch: Batch) -> bool:
        """Whether so much was put since the last time that deleting as much as is done at once is but a part
        of the work. All at once, for a table with what is deleted and what is new overlaps all between."""
        dead = min(TRIM_RECORDS, self.state.floor - self.state.trimmed)
        return not batch.puts or self._untrimmed_puts * TRIM_RECORDS_PER_PUT >= dead

    def _take_back(self, sealed: Batch) -> None:
        """Stage what could not be written again, before what was staged since, but for the items that are
        behind the floor by now."""
        puts = {}
        for id, item in sealed.puts.items():
            if id >= self.state.floor or id in self.kept:
                puts[id] = item
            elif item.blob:
                self._doom(item.blob)
        batch = self.batch
        batch.room -= sum(item.memory_bytes for item in puts.values())
        puts.update(batch.puts)
        batch.puts = puts
        for id, attempts in sealed.attempts.items():
            if id not in batch.attempts and self.is_live(id):
                batch.attempts[id] = attempts
                batch.room -= ATTEMPTS_BYTES
        batch.ops = sealed.ops + batch.ops
        # if it was written after all, their records are gone already
        batch.obsolete_blobs += sealed.obsolete_blobs
        batch.expunged |= sealed.expunged
        batch.is_bound |= sealed.is_bound
        for key, item in sealed.delayed.items():
            if key not in batch.ended:
                batch.delayed[key] = item
                batch.room -= item.memory_bytes
        batch.due = sorted(batch.delayed)
        batch.ended |= sealed.ended

    def write(self) -> None:
        """Write what was sealed, and have it on the disk. JournalError if that failed.

        After one failed write LevelDB goes on to accept writes that it will lose, so before the next it is
        closed, and all is written again: what was written after all may be written twice.
        """
        batch = self.sealed
        assert batch is not None
        trimmed = batch.state.trimmed
        try:
            try:
                self._write_sealed(batch)
            except (leveldb.Error, JournalError) as error:
                # A compaction has met damage, which LevelDB says to whoever writes next. Or it was opened.
                if isinstance(error, JournalError):
                    may_be = self._may_be_mended(error)
                else:
                    may_be = leveldb.is_damage(error)
                if not (may_be and self.mend(b"")):
                    raise
                batch.state.trimmed = trimmed
                batch.trimmed_records = batch.trimmed_bytes = 0
                batch.obsolete_blobs.clear()
                self._write_sealed(batch)
        except JournalError:
            self._doubtful = True
            raise
        except (leveldb.Error, OSError, RuntimeError, ValueError) as error:
            self._doubtful = True
            if is_full(error):
                self._writes.make_room()
            raise failure(f"cannot write {self.path}", error) from error

    def _put_mark(self, state: State) -> None:
        # Without a sync: it outlives the process, and after a power cut an older one does no harm.
        with contextlib.suppress(OSError):
            (self.path / MARK_NAME).write_bytes(snapshot.encode_mark(state))
            self._has_mark = True

    def _write_sealed(self, batch: Batch) -> None:
        if self._db is not None and self._has_moved():
            self._shut()
        self._reopen(batch)
        fresh = self._db is None
        db = self._opened(again=True)
        if self._has_state:
            (self.path / STATE_NAME).unlink(missing_ok=True)
            sync_directory(self.path)
            self._has_state = False
        self._sync_blobs(batch)
        self._quarantine.sync()
        write = self._put_together(db, batch)
        if batch.trims:
            self._trim(db, write, batch)
        key = state_key(batch.state.next_id)
        if self._state_key and self._state_key < min(key, _records.item_key(batch.state.trimmed)):
            write.delete(self._state_key)  # trimming has passed it by
        record = _records.encode_state(batch.state)
        write.put(key, record)
        write.write()
        self._state_key, self._stored_state = key, record
        self._look()  # else it is written to files that are deleted
        self._exists = self._must_exist = True
        self._is_beyond = False
        if fresh:  # LevelDB does not see to the name of its CURRENT
            sync_directory(self.path)
        self._put_mark(batch.state)

    def _put_together(self, db: Any, batch: Batch) -> Any:
        write = self._write
        if write is None:
            # used again and again: growing to its size costs more than filling it
            write = self._write = db.write_batch(sync=True)
        write.clear()
        for id, item in batch.puts.items():
            write.put(_records.item_key(id), item.record or _records.encode_item(item))
        for id, attempts in batch.attempts.items():
            write.put(attempts_key(id), _records.encode_ids([attempts]))
        for key, item in batch.delayed.items():
            write.put(key, item.record or _records.encode_item(item))
        for key, value in batch.ops:
            if value is None:
                write.delete(key)
            else:
                write.put(key, value)
        return write

    def _reopen(self, batch: Batch) -> None:
        """Close LevelDB after a failed write, if there is room for it to be opened again, and `batch` to be
        written: until there is, what it has can still be read. OSError if there is none."""
        if self._doubtful and self._db is not None:
            self._open_anew(self._opening_bytes + batch.staged_bytes)
        self._doubtful = False

    def _open_anew(self, size: int) -> None:
        """Close LevelDB and open it again, with that much room for it. OSError if there is less."""
        with self._compacting, self._using, self._writes.lend_room(size):
            self._db.close()
            self._db = self._write = None
            self._opened(again=True)

    @property
    def _opening_bytes(self) -> int:
        """What room it takes to open LevelDB anew: its logs become tables before they go, and its manifest is
        written once more. What a failed compaction has left goes only then."""
        with os.scandir(self.path) as entries:
            return OPENING_BYTES + sum(
                entry.stat().st_size
                for entry in entries
                if entry.name.endswith(".log") or entry.name.startswith("MANIFEST-")
            )

    def _has_garbage(self) -> bool:
        """Whether the open LevelDB has left files that are none of its any more, and go when it is opened."""
        live: int = self._db.get_property(b"leveldb.sstables").count(b"[")
        return sum(file.suffix == ".ldb" for file in self.path.iterdir()) > live

    def _sync_blobs(self, batch: Batch) -> None:
        """Have the blobs of new items on the disk before the items are."""
        blobs = [item.blob for item in (*batch.puts.values(), *batch.delayed.values()) if item.blob]
        for blob in blobs:
            with contextlib.suppress(FileNotFoundError):  # found out when it is read
                sync_file(self.blob_path(blob))
        if blobs:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self.path / BLOBS_NAME)
            sync_directory(self.path)

    def _trim(self, db: Any, write: Any, batch: Batch) -> None:
        """Delete some records that are dead."""
        state = batch.state
        trimmed = state.trimmed
        left, each = TRIM_RECORDS, batch.dead_bytes // max(1, state.floor - state.trimmed)
        start, stop = _records.item_key(state.trimmed), _records.item_key(state.floor)
        with_records = state.trimmed < self._blobs_to
        with db.iterator(start=start, stop=stop, fill_cache=False, include_value=with_records) as found:
            for entry in itertools.islice(found, left):
                key, record = entry if with_records else (entry, b"")
                left -= 1
                if is_state_key(key):
                    write.delete(key)
                    continue
                id = int.from_bytes(key[1:], "big")
                state.trimmed = id + 1
                if id in batch.kept:
                    continue
                if with_records:
                    with contextlib.suppress(ValueError):  # damaged, but dead
                        if blob := _records.blob_of(key, record):
                            write.put(_records.marker_key(blob), b"")
                            batch.obsolete_blobs.append(blob)
                write.delete(key)
                batch.trimmed_records += 1
                batch.trimmed_bytes += len(record) or each
        if left:
            state.trimmed = state.floor
        if self._has_attempts is not False:
            stop = attempts_key(state.trimmed)
            with db.iterator(start=attempts_key(trimmed), stop=stop, include_value=False) as keys:
                for key in keys:
                    if int.from_bytes(key[1:], "big") not in batch.kept:
                        write.delete(key)

    def settle(self, error: JournalError | None) -> None:
        """What was sealed is written, or was not for the reason given."""
        self.failing = error
        if error is not None:
            self.fail_compaction()
        else:
            written, self.sealed = self.sealed, None
            assert written is not None
            self.state.trimmed = written.state.trimmed
            self.stored_id = written.state.next_id
            self.stored_change = written.state.change
            if written.proves and self._compacting_for is not None:
                if self._stirred:
                    self._compact_from = min(self._compact_from, self._compacting_for[0])
                    self._trimmed_bytes += self._left_bytes
                self._compacting_for, self._compacted = None, False
            self.obsolete_blobs += [(blob, 0) for blob in written.obsolete_blobs]
            self._trimmed_records += written.trimmed_records
            self._trimmed_bytes += written.trimmed_bytes
            self._dead_bytes = max(0, self._dead_bytes - written.trimmed_bytes) if self.untidy else 0
            assert self.log is not None
            self.log.unpin(self, written.segment if self.dirty else written.segment + 1)
        self.go_on()

    def go_on(self) -> None:
        """The thread that had the directory is done with it."""
        self.writing = False
        self.is_backlogged = False
        mended = self._quarantine.take_mended()
        for path in mended:
            self._tell_quarantine("not known", "a table of LevelDB is damaged", path)
        if mended:
            self._stage_anew()
        self.resume()

    def close_for_rest(self, state: bytes) -> None:
        """As `close`, but leave nothing that takes up room, which there is little of."""
        with contextlib.suppress(OSError, JournalError):  # said by whoever needs it
            if self._db is not None and self._has_garbage():
                self._open_anew(self._opening_bytes)
        self.close(state)

    # Tidying

    @property
    def untidy(self) -> bool:
        """Whether there are dead records to delete."""
        return self.state.trimmed < self.state.floor

    @property
    def overdue(self) -> bool:
        """Whether they are so many that they should be deleted, whatever else is to be done."""
        dead = self.state.floor - self.state.trimmed
        return self._outweighs(dead, self._dead_bytes, DEAD_RECORDS, DEAD_BYTES)

    def _outweighs(self, records: int, size: int, most_records: int, most_bytes: int) -> bool:
        """Whether that is more than what is alive, within bounds: so a small queue has a small directory, and
        what is alive is not written again and again for the sake of less."""
        state = self.state
        return records > min(most_records, max(LEAST_RECORDS, state.items)) or size > min(
            most_bytes, max(LEAST_BYTES, state.bytes)
        )

    def compactable(self) -> bool:
        """Whether so much was deleted that the room should be taken back; less will do if nothing has
        happened since this was asked last, or if room is short."""
        idle = self._last_looked_at == self.state.change
        self._last_looked_at = self.state.change
        if self._compacting_for is not None or self.failing is not None:
            return False
        if (idle or self._writes.space_is_short) and self._trimmed_bytes >= IDLE_COMPACT_BYTES:
            return True
        return self._outweighs(self._trimmed_records, self._trimmed_bytes, COMPACT_RECORDS, COMPACT_BYTES)

    @property
    def to_be_compacted(self) -> bool:
        """Whether it will be compactable, if only once nothing happens, or is being compacted."""
        return self._trimmed_bytes >= IDLE_COMPACT_BYTES or self._compacting_for is not None

    def begin_compaction(self) -> tuple[int, int]:
        """Return what `compact` takes: the ids between which records were trimmed or expunged since the
        last time. Not more, for a compaction rewrites what is alive in its range."""
        span = self._compact_from, max(self.state.trimmed, self._expunged_to)
        self._compacting_for = (
            self._compact_from, self._expunged_to, self._trimmed_records, self._trimmed_bytes
        )  # fmt: skip
        self._compacted = False
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = self._expunged_to = 0
        return span

    def compact(self, span: tuple[int, int]) -> None:
        """Have LevelDB give back the room of deleted records; takes its time, so in a thread. JournalError if
        it is not open."""
        with self._compacting:
            db = self._db
            if db is None:
                raise JournalError("LevelDB was closed meanwhile")
            start, stop = map(_records.item_key, span)
            db.compact_range(start=start, stop=stop)
            if self._has_attempts is not False:
                db.compact_range(start=attempts_key(span[0]), stop=attempts_key(span[1]))
            at = b"d"
            for due_ms in sorted(self._due_from.values()):
                db.compact_range(start=at, stop=delayed_key(due_ms, 0))
                at = delayed_key(end_of(run_of(due_ms)), 0)
            self._left_bytes = sum(db.approximate_sizes((start, stop), (b"d", self._first_delayed_key)))

    def end_compaction(self) -> None:
        """`compact` has returned. If that failed, for want of room or whatever, LevelDB does not say so
        there, but to the next who writes: so something is to be written."""
        if self._compacting_for is None:
            return
        self._compacted = True
        self._stirred = not self._stirred and self._left_bytes >= IDLE_COMPACT_BYTES
        if self._stirred:
            # LevelDB keeps what was put and deleted before it was written out, for that is one table. It goes
            # when a deletion from another one comes to it: of a key that nobody has, at each end.
            first, last = _records.item_key(self._compacting_for[0]), _records.item_key(self._compact_from)
            ends = (first, last, delayed_key(0, 0), self._first_delayed_key)
            self.batch.ops += [(key + b"\0", None) for key in ends]
        if not self.dirty:
            self._mark()

    def fail_compaction(self) -> None:
        """What was to be compacted may be there yet: it is to be compacted once more."""
        if self._compacting_for is not None:
            start, expunged_to, records, size = self._compacting_for
            self._compact_from = min(self._compact_from, start)
            self._expunged_to = max(self._expunged_to, expunged_to)
            self._trimmed_records += records
            self._trimmed_bytes += size
            self._compacting_for, self._compacted = None, False

    @property
    def is_open(self) -> bool:
        """Whether its LevelDB is open."""
        return self._db is not None

    @property
    def busy(self) -> bool:
        """Whether something still needs the directory: a write or a compaction."""
        return self.writing or (self._compacting_for is not None and not self._compacted)

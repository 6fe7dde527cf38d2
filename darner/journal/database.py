"""The LevelDB behind a journal: open it, make sure whose it is, write to it, close it.

LevelDB goes on to write to files that were deleted or moved away, and after one failed write accepts writes
that it will lose. So each opening checks that it is the LevelDB of this journal and has all that was written
to it; each write checks that the directory is still in its place; and after a failed write LevelDB is closed
and opened anew before the next.
"""

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Protocol

from darner import _records
from darner._records import State
from darner.errors import DamagedError, JournalError, MisplacedError, NewerFormatError, VanishedError
from darner.journal import leveldb, leveldb_log, snapshot
from darner.journal.disk_reserve import is_full
from darner.journal.files import sync_directory, sync_file, sync_name
from darner.journal.layout import (
    DELETED_NAME,
    MARK_NAME,
    PROBE_NAME,
    SETTLED_NAME,
    STATE_NAME,
    state_key,
    stored_state,
)
from darner.journal.leveldb import failure
from darner.journal.recognition import is_new
from darner.journal.snapshot import Snapshot, read_mark

# LevelDB's options. Sizes are chosen for resident memory: LevelDB maps the tables it has open, and pages it
# touched count; twice the write buffer is in memory while one is written out.
WRITE_BUFFER_BYTES = 2 << 20
MAX_FILE_BYTES = 1 << 20
# LevelDB's least: 64 tables and 10 other files.
MAX_OPEN_FILES = 74
# Items are read once and in order: a cache of blocks would hold what nobody asks for again.
BLOCK_CACHE_BYTES = 64 << 10
# What LevelDB may write when it is opened, besides what is in its logs and its manifest: names, and the ends
# of blocks.
OPENING_BYTES = 256 << 10
# How often it is tried to make the directory of a long name.
MKDIR_TRIES = 100


class Room(Protocol):
    """Free space on the disk, for a database to be opened on a full one."""

    # how many bytes LevelDB keeps in memory before it writes them out
    write_buffer_bytes: int

    def make_room(self) -> bool:
        """Give up the reserve, for the disk is full; return whether there is more room now. From any
        thread."""

    def lend_room(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Give the block the whole reserve, `size` bytes at least. OSError if there is less. From any
        thread."""


class TooOldError(DamagedError):
    """LevelDB ends before what was written to it: at least, the last record of its state is not there."""


class Database:
    """The LevelDB in a journal's directory, and the files that say how far it has come.

    Methods may be called from any thread. Whoever must not find it closed meanwhile holds `in_use`.
    """

    __slots__ = (
        "_handle", "_has_mark_file", "_may_be_settled", "_opening_error", "_place", "_room", "_state_key",
        "_write_batch", "compacting", "exists", "has_failed", "has_state_file", "in_use", "life",
        "must_exist", "on_open", "path", "state_record", "stored_change",
    )  # fmt: skip

    def __init__(self, path: Path, room: Room) -> None:
        self.path = path
        self._room = room
        # the life and the last change that LevelDB is known to have
        self.life = 0
        self.stored_change = 0
        # called with the handle when it was opened
        self.on_open: Callable[[Any], None] = lambda _: None
        self.in_use = RLock()
        # held by a compaction, which may take long, in place of `in_use`
        self.compacting = Lock()
        self._handle: Any = None
        self._write_batch: Any = None
        # the device and inode by which the open LevelDB's directory is known again
        self._place = (0, 0)
        # why it could not be opened
        self._opening_error: JournalError | None = None
        # whether a write has failed since it was opened
        self.has_failed = False
        # whether LevelDB may have anything of this journal; and whether it is an error if it is not there
        self.exists = False
        self.must_exist = False
        # whether the files STATE_NAME and MARK_NAME are there
        self.has_state_file = False
        self._has_mark_file = False
        # whether the file SETTLED_NAME may be there, of this process or an earlier one
        self._may_be_settled = True
        # the state in LevelDB: its key, and its record
        self._state_key = b""
        self.state_record = b""

    # Opening

    @property
    def is_open(self) -> bool:
        """Whether LevelDB is open."""
        return self._handle is not None

    @property
    def handle(self) -> Any:
        """The open LevelDB, or None."""
        return self._handle

    def open(self, *, again: bool = False, recognize: bool = True) -> Any:
        """Return the open LevelDB. If it could not be opened before, it is tried only `again`. Raises
        JournalError if it cannot be opened; or, with `recognize`, is not the one it was."""
        with self.in_use:
            if self._handle is None:
                if self._opening_error is not None and not again:
                    raise self._opening_error.with_traceback(None)
                try:
                    handle = self._open_with_room()
                    try:
                        if recognize:
                            self._recognize(handle)
                        self._place = self._find_place()
                    except BaseException:
                        handle.close()
                        raise
                except (leveldb.Error, OSError, ValueError) as error:
                    self._opening_error = failure(f"cannot open {self.path}", error)
                    raise self._opening_error from error
                except JournalError as error:
                    self._opening_error = error
                    raise
                self._handle, self._opening_error = handle, None
                self.on_open(handle)
            return self._handle

    def _open_with_room(self) -> Any:
        try:
            return self._open_checked()
        except (leveldb.Error, OSError, JournalError) as error:
            if not is_full(error):
                raise
        self._room.make_room()
        with self._room.lend_room(0):
            return self._open_checked()

    def _open_checked(self) -> Any:
        with contextlib.suppress(OSError):
            (self.path / PROBE_NAME).unlink()
        begins = is_new(self.path)
        if begins:
            if self.must_exist:
                raise self._vanished()
            self.make_directory()
            sync_name(self.path)  # LevelDB syncs only what is inside
        elif harm := leveldb_log.damage(self.path):
            raise DamagedError(f"{harm}. Nothing in it was touched")
        try:
            return self._open_leveldb(create=begins)
        except leveldb.Error as error:
            if not leveldb.is_damage(error):
                raise
            # It may be that the last write to LevelDB's log was cut off, which is no damage: our log has that
            # write. Whether LevelDB has all that it must have is checked next.
            self._open_leveldb(create=False, paranoid=False).close()
            return self._open_leveldb(create=False)

    def _open_leveldb(self, *, create: bool, paranoid: bool = True) -> Any:
        return leveldb.DB(
            os.fsencode(self.path),
            create_if_missing=create,
            write_buffer_size=self._room.write_buffer_bytes,
            lru_cache_size=BLOCK_CACHE_BYTES,
            max_open_files=MAX_OPEN_FILES,
            max_file_size=MAX_FILE_BYTES,
            compression=None,
            # else a compaction passes damage on as sound, or ends the process
            paranoid_checks=paranoid,
        )

    def make_directory(self) -> None:
        """Make the directory, with those that a long name has above it. Raises JournalError."""
        # not the data directory: if that has vanished, it is to be put back
        pieces = itertools.takewhile(lambda parent: parent.name.endswith("%"), self.path.parents)
        directories = [*reversed(list(pieces)), self.path]
        for left in reversed(range(MKDIR_TRIES)):
            try:
                for directory in directories:
                    directory.mkdir(mode=0o700, exist_ok=True)
                (self.path / DELETED_NAME).unlink(missing_ok=True)
            except (FileNotFoundError, FileExistsError) as error:
                # the deletion of another queue may have removed one of these directories meanwhile
                if not left:
                    raise failure(f"cannot make {self.path}", error) from error
            except OSError as error:
                raise failure(f"cannot make {self.path}", error) from error
            else:
                return

    def open_anew(self, size: int) -> None:
        """Close LevelDB and open it again, with `size` bytes of room for that. Raises OSError, and leaves it
        open, if there is less, or if nothing can be written there."""
        with self.compacting, self.in_use, self._room.lend_room(size):
            self._check_writable()
            self._close_handle()
            self.open(again=True)

    def _check_writable(self) -> None:
        probe = self.path / PROBE_NAME
        try:
            probe.touch()
            sync_file(probe)
        finally:
            probe.unlink(missing_ok=True)

    # Whose it is

    def _recognize(self, handle: Any) -> None:
        """Raise JournalError if LevelDB is not the one it was, or ends before what was written to it."""
        stored = stored_state(handle)
        if stored is None and not self.must_exist:
            return
        change = 0
        if stored is not None:
            self._state_key, record = stored
            state = _records.decode_state(record)
            change = state.change
            if state.life != self.life:
                raise MisplacedError(f"{self.path} is another journal than it was")
        if change < self.stored_change:
            raise TooOldError(
                f"{self.path} is damaged: LevelDB ends at change {change}, and had all up to "
                f"{self.stored_change}"
            )
        if self.has_state_file and change > self.stored_change:
            raise DamagedError(
                f"{self.path} is damaged: LevelDB ends at change {change}, and its file {STATE_NAME} is older"
            )

    def _find_place(self) -> tuple[int, int]:
        """Return what identifies the directory: LevelDB has a new CURRENT only when it is opened. Raises
        JournalError if there is none."""
        try:
            status = (self.path / "CURRENT").stat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._vanished() from None
        return status.st_dev, status.st_ino

    def check_place(self) -> None:
        """Raise JournalError if the directory is not there."""
        self._find_place()

    def _has_moved(self) -> bool:
        """Whether the directory is not the one that LevelDB has open. JournalError if there is none."""
        try:
            return self._find_place() != self._place
        except JournalError:
            if self.must_exist:
                raise
            return True

    def _vanished(self) -> JournalError:
        return VanishedError(f"{self.path} has vanished: put it back as it was, or delete the queue")

    # Writing

    def open_to_write(self, staged_bytes: int) -> tuple[Any, bool]:
        """Return LevelDB, sure to take a batch of that size, and whether it was opened for it. JournalError
        or OSError if it cannot be opened, or if there is no room for that."""
        if self._handle is not None and self._has_moved():
            self.close()
        if self.has_failed and self._handle is not None:
            # what LevelDB has can be read as long as it cannot be opened anew
            self.open_anew(self._opening_bytes + staged_bytes)
        self.has_failed = False
        was_opened = self._handle is None
        handle = self.open(again=True)
        self._unsettle()
        if self.has_state_file:
            (self.path / STATE_NAME).unlink(missing_ok=True)
            sync_directory(self.path)
            self.has_state_file = False
        return handle, was_opened

    def settle(self, content: bytes) -> None:
        """Leave the file SETTLED_NAME for a start after a kill; nothing may be being written."""
        with self.in_use:
            self._may_be_settled = True
            with contextlib.suppress(OSError):  # then the next start opens LevelDB
                (self.path / SETTLED_NAME).write_bytes(content)

    def _unsettle(self) -> None:
        """Delete the file SETTLED_NAME, for it is about to be wrong. Raises OSError."""
        if self._may_be_settled:
            (self.path / SETTLED_NAME).unlink(missing_ok=True)
            self._may_be_settled = False

    def empty_write_batch(self) -> Any:
        """Return an empty write batch, for `commit`. The same each time: to grow one to its size costs more
        than to fill it."""
        if self._write_batch is None:
            self._write_batch = self._handle.write_batch(sync=True)
        self._write_batch.clear()
        return self._write_batch

    def commit(self, write: Any, state: State, *, was_opened: bool) -> None:
        """Write a batch with the state that goes with it, and have both on the disk. Raises leveldb.Error,
        OSError or JournalError."""
        key = state_key(state.next_id)
        if self._state_key and self._state_key < min(key, _records.item_key(state.trimmed)):
            write.delete(self._state_key)  # trimming has passed it by
        record = _records.encode_state(state)
        write.put(key, record)
        write.write()
        self._state_key, self.state_record = key, record
        self.check_place()  # else it went to files that are deleted
        self.exists = self.must_exist = True
        if was_opened:  # LevelDB does not sync the name of its CURRENT
            sync_directory(self.path)
        # Not synced: it outlives the process, and after a power cut an older one does no harm.
        with contextlib.suppress(OSError):
            (self.path / MARK_NAME).write_bytes(snapshot.encode_mark(state))
            self._has_mark_file = True

    @property
    def _opening_bytes(self) -> int:
        """How much room it takes to open LevelDB anew: its logs become tables before they go, and its
        manifest is written once more. What a failed compaction has left goes only then."""
        with os.scandir(self.path) as entries:
            return OPENING_BYTES + sum(
                entry.stat().st_size
                for entry in entries
                if entry.name.endswith(".log") or entry.name.startswith("MANIFEST-")
            )

    # Mending

    def list_tables(self) -> bytes:
        """Return LevelDB's own list of its tables. Whose they are may be known only once they are mended, so
        that is not asked."""
        with self.in_use:
            if self._handle is not None:
                return bytes(self._handle.get_property(b"leveldb.sstables"))
            with contextlib.closing(self._open_checked()) as handle:
                return bytes(handle.get_property(b"leveldb.sstables"))

    def replace_tables(self, replace: Callable[[], None]) -> None:
        """Close LevelDB, call `replace`, which mends its tables, and open it again. Its state is put back
        should that have been damaged."""
        with self.compacting, self.in_use:
            self._close_handle()
            self._unsettle()
            replace()
            handle = self._open_checked()
            try:
                self._restore_state(handle)
            finally:
                handle.close()
            self.open(again=True)

    def _restore_state(self, handle: Any) -> None:
        if not self.state_record:
            return
        state = _records.decode_state(self.state_record)
        found = stored_state(handle)
        change = -1
        if found is not None:
            with contextlib.suppress(ValueError):
                change = _records.decode_state(found[1]).change
        if change < state.change:
            handle.put(state_key(state.next_id), self.state_record, sync=True)

    def may_be_mended(self, error: JournalError) -> bool:
        """Whether the reason why LevelDB could not be opened may be a damaged table."""
        cause = error.__cause__
        is_damage = (
            leveldb.is_damage(cause)
            or isinstance(error, TooOldError)
            or (isinstance(cause, ValueError) and not isinstance(cause, NewerFormatError))
        )
        return is_damage and self.exists and any(self.path.glob("*.ldb"))

    # Start and end

    def read_snapshot(self, boot: int) -> Snapshot | None:
        """Return what the last `close` left, or `settle` on this `boot` of the machine, 0 if that is not
        known; None if neither left anything, or nothing whole."""
        try:
            found = snapshot.read(self.path / STATE_NAME)
            self.has_state_file = found is not None
        except NewerFormatError as error:
            raise failure(f"cannot read {self.path / STATE_NAME}", error) from error
        except (OSError, ValueError):  # of a power cut
            found, self.has_state_file = None, True
        if boot and not self.has_state_file:
            found = snapshot.read_settled(self.path, boot)
        return found

    def read_state(self, handle: Any) -> State | None:
        """Return the state in LevelDB, which was opened without being recognized; None if there is none.
        ValueError if its record is damaged."""
        stored = stored_state(handle)
        if stored is None:
            return None
        self.exists = True
        self._state_key, record = stored
        return _records.decode_state(record)

    def take_as_known(self, state: State) -> None:
        """Expect LevelDB to have this state from now on."""
        self.exists = self.must_exist = True
        self.state_record = _records.encode_state(state)

    def read_mark(self) -> tuple[int, int]:
        """Return the life and the change that LevelDB has reached, at least, as the file `written` says it;
        (0, 0) if it says nothing."""
        life, change = read_mark(self.path)
        self._has_mark_file = change > 0
        return life, change

    def close(self, state: bytes = b"") -> None:
        """Close LevelDB; nothing may be being written. `state`, an encoded snapshot, spares the next start
        opening it."""
        with self.compacting, self.in_use:
            self._close_handle()
        if state:
            with contextlib.suppress(OSError):  # then the next start opens it
                self._unsettle()
                (self.path / STATE_NAME).write_bytes(state)
                self.has_state_file = True
                if self._has_mark_file:
                    (self.path / MARK_NAME).unlink(missing_ok=True)
                    self._has_mark_file = False

    def close_small(self, state: bytes) -> None:
        """Close as `close` does, after removing files that LevelDB has left and does not use."""
        with contextlib.suppress(OSError, JournalError):  # whoever needs it next meets that, too
            if self._handle is not None and self._has_garbage():
                self.open_anew(self._opening_bytes)
        self.close(state)

    def _has_garbage(self) -> bool:
        """Whether the open LevelDB has left tables that it does not use; they go when it is opened."""
        live: int = self._handle.get_property(b"leveldb.sstables").count(b"[")
        return sum(file.suffix == ".ldb" for file in self.path.iterdir()) > live

    def _close_handle(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = self._write_batch = None

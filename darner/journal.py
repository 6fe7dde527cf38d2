# cython: language_level=3, annotation_typing=False
"""One queue's journal: what is live of it, in the log and in its LevelDB directory.

Nothing here decides what a queue does. A change is logged (wal.py) and staged in a `Batch` before the method
that makes it returns. Batches are written to LevelDB later, many changes as one: what was put and removed
meanwhile is never written. Until then `read` finds items in memory. Records in LevelDB, by key:

    s            the state: counts, ids to give out, where the live items begin (`State`)
    i<id>        an item, with its bytes or with the blob that holds them
    k            the kept ids: items below the floor that live on
    u<blob>      the marker of a blob that belongs to no item: half sent, or about to be deleted

A blob, the bytes of a large item, is a file in the directory `blobs` inside: see blob.py.

An item is live if its record is there and its id is at or above the floor, or kept. So taking the
oldest item writes no deletion, only the floor with the state; its record is deleted later, many at
once (`_trim`). An item taken out of turn is deleted with the next batch. Nothing ever seeks from the start of
the keys, where the deleted ones lie: LevelDB would walk over each (0.4 us apiece).
"""

import contextlib
import itertools
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Protocol

from darner import _proto, leveldb
from darner._proto import Change, Item, Segment, State
from darner.blob import Offload, file_bytes, sync_directory, sync_file, sync_name
from darner.errors import JournalError
from darner.wal import Client, Life, Log

STATE_KEY = b"s"
KEPT_KEY = b"k"

# Sizes chosen for resident memory: LevelDB maps the tables it has open, and pages it touched count;
# twice the write buffer is in memory while one is written out.
WRITE_BUFFER_BYTES = 2 << 20
MAX_FILE_BYTES = 1 << 20
BLOBS_NAME = "blobs"
# LevelDB's least: 64 tables and 10 other files.
MAX_OPEN_FILES = 74
# Items are read once and in order: a cache of blocks would hold what nobody asks for again.
BLOCK_CACHE_BYTES = 64 << 10

# How much may be staged before it is written to LevelDB.
STAGED_BYTES = 1 << 20
# How many ids above the floor may be known as gone before the floor is moved past them.
MAX_GONE = 4096
# How many dead records one batch deletes on the side, at least: a few ms of work.
TRIM_RECORDS = 4096
# What LevelDB may write when it is opened: both its write buffers as tables, and some more.
OPENING_BYTES = 3 * WRITE_BUFFER_BYTES
PROBE_NAME = "room"
# How much must have been deleted before a compaction of it is worth its reading and writing.
COMPACT_RECORDS = 200_000
COMPACT_BYTES = 32 << 20
# And in a journal that nothing happens to: there it delays nobody.
IDLE_COMPACT_BYTES = 1 << 20

_PUT = int(Change.PUT)
_REWRITE = int(Change.REWRITE)


def _is_unborn(file: Path) -> bool:
    """Whether such a file may be there before CURRENT, so that LevelDB has nothing in there yet."""
    unborn = ("LOCK", "LOG", "LOG.old", "MANIFEST-000001", BLOBS_NAME, PROBE_NAME)
    return file.name in unborn or file.suffix == ".dbtmp"


class Batch:
    """Changes to one journal that will be written to LevelDB as one."""

    __slots__ = (
        "doomed", "kept", "ops", "puts", "removed", "rewrites", "room", "segment", "state",
        "trimmed_bytes", "trimmed_records",
    )  # fmt: skip

    def __init__(self) -> None:
        self.puts: dict[int, Item] = {}
        # of items that were put in an earlier batch
        self.rewrites: dict[int, Item] = {}
        # other records: key and value, or key and None to delete
        self.ops: list[tuple[bytes, bytes | None]] = []
        # how many items that were put in an earlier batch were removed
        self.removed = 0
        # how many bytes of memory the items in `puts` may take yet
        self.room = STAGED_BYTES
        # Once sealed: how the journal stood, and the segment of the log that was written then.
        self.state: State
        self.kept: frozenset[int]
        self.segment: int
        # Once written: what was trimmed with it, and the blobs that belonged to that.
        self.trimmed_records = 0
        self.trimmed_bytes = 0
        self.doomed: list[int] = []


class Writes(Protocol):
    """Who has the journals' batches written: a `Committer`."""

    offload: Offload

    def add(self, journal: "Journal") -> None:
        """`journal` has something to be written, or to be tidied."""

    def checkpoint(self, journal: "Journal") -> None:
        """Have what `journal` has staged written now."""


class Journal:
    """One queue's journal. Raises JournalError, and only that, for what the disk or the log refuses: then
    the change was not made.

    Without a log it lives in memory alone.
    """

    __slots__ = (
        "_compact_from", "_compacting", "_db", "_doubtful", "_entered", "_exists", "_last_looked_at",
        "_number", "_segment", "_trimmed_bytes", "_trimmed_records", "_using", "_writes", "batch", "crowded",
        "crowding", "dirty", "doomed", "failing", "generation", "gone", "kept", "log", "lost", "name", "offload",
        "path", "sealed", "state", "stored_change", "stored_id", "writing",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        path: Path,
        writes: Writes,
        log: Log | None,
        created_ms: int,
        lives: Sequence[Life] = (),
    ) -> None:
        """Open the journal in `path`, and bring it up to what the log says of the lives of this name; or
        begin one, if `path` is absent or empty, whose directory is made when its first batch is written.

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
        # whether items come faster than they are written: who sets waits
        self.crowded = False
        self.crowding: list[Client] = []
        # counts the deletions: a blob begun before one is lost
        self.generation = 0
        # ids above the floor that are not live, and ids below it that are
        self.gone: set[int] = set()
        self.kept: set[int] = set()
        # blobs to delete, each once the change of that number is in LevelDB
        self.doomed: list[tuple[int, int]] = []
        # how many items were in the log whose blobs were lost with the machine
        self.lost = 0
        self._compacting = Lock()
        # held by whoever must not find LevelDB closed meanwhile; but a compaction has its own
        self._using = RLock()
        self._db: Any = None
        # whether a write has failed since it was opened
        self._doubtful = False
        # whether LevelDB has anything of it
        self._exists = False
        self.state = State(created_ms, secrets.randbits(63))
        # others than before if the queue was deleted and is made anew: a writer that comes late must
        # not delete another's blob
        self.state.next_blob = secrets.randbits(40) << 20
        if log is not None and not self._is_new():
            self._load()
        # the first id and the last change of which LevelDB may not know
        self.stored_id = self.state.next_id
        self.stored_change = self.state.change
        # since the last compaction
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = 0
        # the change that was the last one when `compactable` was asked last
        self._last_looked_at = -1
        if lives:
            self._catch_up(lives)
        self._delete_unknown_blobs()
        if self.untidy or self.doomed:
            writes.add(self)

    # LevelDB

    def _is_new(self) -> bool:
        # With create_if_missing LevelDB takes a directory without CURRENT for a new one and deletes the
        # tables in it (seen in 1.22 and 1.23): only an absent or empty one is new, or one whose making
        # was cut off, by a full disk or a kill.
        try:
            is_new = not self.path.exists() or all(map(_is_unborn, self.path.iterdir()))
        except OSError as error:
            raise JournalError(f"cannot open {self.path}: {error}") from error
        if not is_new and not (self.path / "CURRENT").exists():
            raise JournalError(
                f"{self.path} holds files but no CURRENT: it is damaged or no journal. "
                "Nothing in it was touched; move it away, or repair a copy of it"
            )
        return is_new

    def _opened(self) -> Any:
        """Return the open LevelDB; from any thread. Raises JournalError."""
        with self._using:
            if self._db is None:
                is_new = self._is_new()
                if is_new and self._exists:
                    raise JournalError(f"{self.path} has vanished")
                try:
                    if is_new:
                        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                        sync_name(self.path)  # LevelDB sees only to what is inside
                    self._db = leveldb.DB(
                        str(self.path),
                        create_if_missing=is_new,
                        write_buffer_size=WRITE_BUFFER_BYTES,
                        lru_cache_size=BLOCK_CACHE_BYTES,
                        max_open_files=MAX_OPEN_FILES,
                        max_file_size=MAX_FILE_BYTES,
                        compression=None,
                    )
                except (leveldb.Error, OSError) as error:
                    raise JournalError(f"cannot open {self.path}: {error}") from error
            return self._db

    def _shut(self) -> None:
        with self._compacting, self._using:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _load(self) -> None:
        db = self._opened()
        try:
            record = db.get(STATE_KEY)
            if record is None:
                if next(iter(db.iterator(include_value=False)), None) is not None:
                    raise ValueError("it has records but no state: it is damaged or no journal of darner")
                return
            self.state = _proto.decode_state(record)
            self._exists = True
            if kept := db.get(KEPT_KEY):
                self.kept = {
                    id
                    for id in _proto.decode_ids(kept)
                    if id < self.state.floor and db.get(_proto.item_key(id)) is not None
                }
            for key in db.iterator(start=b"u", stop=b"v", include_value=False):
                self.doomed.append((int.from_bytes(key[1:], "big"), 0))
        except (leveldb.Error, OSError, ValueError) as error:
            self._shut()
            raise JournalError(f"cannot read {self.path}: {error}") from error

    def _catch_up(self, lives: Sequence[Life]) -> None:
        """Make the changes that the log knows and LevelDB does not."""
        last, state = lives[-1], self.state
        if not self._exists:
            state.life = last.number
        elif state.life in {life.number for life in lives[:-1]}:
            state.deleted = True  # for another has begun
            return
        elif state.life != last.number and last.retired:
            return  # this one began after that
        # no batch is to be sealed or marked before all is done
        self.dirty = self.writing = True
        change = state.change
        try:
            self._replay(last)
        except ValueError as error:
            self._shut()
            raise JournalError(f"cannot bring {self.path} up to date: {error}") from error
        self._look_for_blobs()
        self.dirty = self.writing = self.crowded = False
        if state.change != change:
            assert self.log is not None
            self.log.keep_found(self)
            self._mark()

    def _replay(self, life: Life) -> None:
        state = self.state
        for change, kind, payload in life.changes:
            if state.life != life.number or change > state.change + 1:
                raise ValueError(
                    f"the log goes on at change {change} of life {life.number}, the directory ends at "
                    f"{state.change} of {state.life}: it is not the one the log was written for; put that "
                    "back, or move this one away and delete the queue"
                )
            if change > state.change:
                state.change = change
                self._redo(kind, payload)

    def _look_for_blobs(self) -> None:
        """Forget the items that the log has, but whose blobs are not whole: neither was promised to outlast
        the machine, and the log alone did. And do not delete the blobs of the others."""
        items = [item for item in self.batch.puts.values() if item.blob]
        for item in items:
            if not self._is_whole(item):
                self._remove(item.id, item.size, item.blob)
                self.lost += 1
        live = {item.blob for item in self.batch.puts.values() if item.blob}
        self.doomed = [entry for entry in self.doomed if entry[0] not in live]

    def _is_whole(self, item: Item) -> bool:
        try:
            return self.blob_path(item.blob).stat().st_size == file_bytes(item)
        except OSError:
            return False

    def _redo(self, kind: int, payload: bytes) -> None:
        numbers = [int.from_bytes(payload[at : at + 8], "big") for at in range(0, min(len(payload), 24), 8)]
        if kind in (Change.PUT, Change.REWRITE):
            item = _proto.decode_item(b"i" + payload[:8], payload[8:])
            if kind == Change.REWRITE:
                self._rewrite(item)
            elif item.id == self.state.next_id:
                self._put(item)
            else:
                raise ValueError(f"item {item.id} follows {self.state.next_id - 1} in the log")
        elif kind == Change.DROP:
            id, size, blob = numbers
            self._remove(id, size, blob)
        elif kind == Change.DISCARD:
            ends = range(0, len(payload), 16)
            self._flush(
                {
                    int.from_bytes(payload[at : at + 8], "big"): int.from_bytes(
                        payload[at + 8 : at + 16], "big"
                    )
                    for at in ends
                }
            )
        elif kind == Change.BLOB:
            (blob,) = numbers
            self._begin_blob(blob)
            self.doomed.append((blob, self.state.change))
        elif kind == Change.RETIRE:
            self._retire()
        elif kind == Change.REVIVE:
            (created_ms,) = numbers
            self._revive(created_ms)
        else:
            raise ValueError(f"the log has a change of kind {kind}, which this darner does not know")

    def close(self) -> None:
        """Close the directory; nothing may be staged or being written."""
        self._shut()

    # Logging

    def _enter(self) -> None:
        """Have a number in the segment that is being written."""
        log = self.log
        assert log is not None
        payload = self.state.life.to_bytes(8, "big") + self.name
        while not self._segment.append(Change.ENTER, log.entered + 1, 0, payload):
            log.roll()
        self._number = log.enter(self, self.state.life)
        self._entered = self._segment.number

    def _log(self, kind: int, payload: bytes) -> None:
        """Log a change that is about to be made."""
        if self.log is not None:
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.append(kind, self._number, self.state.change + 1, payload):
                self.log.roll()
                self._enter()
                if not self._segment.append(kind, self._number, self.state.change + 1, payload):
                    raise JournalError(f"too many reserved items to log: {len(payload)} bytes")
        self.state.change += 1

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
                raise self.failing
            if self._segment.refusal is not None:
                raise self._segment.refusal
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.put(_PUT, self._number, state.change + 1, item):
                log.roll()
                self._enter()
                self._segment.put(_PUT, self._number, state.change + 1, item)
        state.change += 1
        self._put(item)

    def _put(self, item: Item) -> None:
        batch = self.batch
        self.state.add(item)
        batch.puts[item.id] = item
        if item.blob:
            batch.ops.append((_proto.marker_key(item.blob), None))
        batch.room -= item.memory_bytes
        if not self.dirty:
            self._mark()
        if batch.room < 0:
            if self.writing:
                self.crowded = True
            else:
                self._writes.checkpoint(self)

    def rewrite(self, item: Item) -> None:
        """Put down a change to a live item."""
        if self.log is not None:
            if self._segment.refusal is not None:  # what room there is is for what must be logged
                raise self._segment.refusal
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.put(_REWRITE, self._number, self.state.change + 1, item):
                self.log.roll()
                self._enter()
                self._segment.put(_REWRITE, self._number, self.state.change + 1, item)
        self.state.change += 1
        self._rewrite(item)

    def _rewrite(self, item: Item) -> None:
        puts = self.batch.puts if item.id in self.batch.puts else self.batch.rewrites
        puts[item.id] = item
        if not self.dirty:
            self._mark()

    def remove(self, item: Item) -> None:
        """Remove a live item."""
        log = self.log
        state = self.state
        if log is not None:
            if self._entered != self._segment.number:
                self._enter()
            if not self._segment.drop(self._number, state.change + 1, item.id, item.size, item.blob):
                log.roll()
                self._enter()
                self._segment.drop(self._number, state.change + 1, item.id, item.size, item.blob)
        state.change += 1
        self._remove(item.id, item.size, item.blob)

    def _remove(self, id: int, size: int, blob: int) -> None:
        batch = self.batch
        state = self.state
        staged: Item | None = batch.puts.pop(id, None)
        was_oldest = state.drop(id, size)
        if staged is not None:
            batch.room += staged.memory_bytes
        else:
            batch.removed += 1
            if batch.rewrites:
                batch.rewrites.pop(id, None)
            # A blob goes with its item, so that `_trim` has only flushed ones to look for.
            if not was_oldest or blob:
                batch.ops.append((_proto.item_key(id), None))
        if blob:
            self._doom(blob)
        if was_oldest:
            if self.gone:
                self._advance()
        elif id < state.floor:
            self.kept.discard(id)
        else:
            self.gone.add(id)
            if len(self.gone) > MAX_GONE:
                self._checkpoint()
        if not self.dirty:
            self._mark()

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
        self.batch.ops.append((KEPT_KEY, _proto.encode_ids(sorted(self.kept))))

    def flush(self, keep: Collection[Item]) -> None:
        """Remove all items but `keep`, in a time that does not grow with the queue."""
        stay = {item.id: item.size for item in keep}
        self._log(
            Change.DISCARD,
            b"".join(id.to_bytes(8, "big") + size.to_bytes(8, "big") for id, size in stay.items()),
        )
        self._flush(stay)

    def _flush(self, stay: dict[int, int]) -> None:
        batch, state = self.batch, self.state
        passed, self.kept = self.kept, set(stay)
        for id in passed - self.kept:
            self._discard(id)
        for id in [id for id in batch.puts if id not in stay]:
            item = batch.puts.pop(id)
            batch.room += item.memory_bytes
            if item.blob:
                self._doom(item.blob)
        batch.rewrites = {id: item for id, item in batch.rewrites.items() if id in stay}
        state.items = len(stay)
        state.bytes = sum(stay.values())
        self._keep(state.next_id)
        if not self.dirty:
            self._mark()

    def _discard(self, id: int) -> None:
        """Delete a kept item, which `_trim` may have passed by."""
        with contextlib.suppress(JournalError):  # damaged, but dead
            item = self.find(id)
            if item is not None and item.blob:
                self._doom(item.blob)
        self.batch.ops.append((_proto.item_key(id), None))

    def retire(self) -> None:
        """All items go, and with them the journal: it is deleted at the next start if it was not before.
        Blobs that were begun are lost."""
        self._log(Change.RETIRE, b"")
        if self.log is not None:
            self.log.outlast(self.state.life)
        self._retire()

    def _retire(self) -> None:
        self._flush({})
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

    # Blobs

    def begin_blob(self) -> int:
        """Begin a blob, which belongs to no item yet; returns its id."""
        refusal = self.failing or self._segment.refusal
        if refusal is not None:
            raise refusal
        blob = self.state.next_blob
        self._log(Change.BLOB, blob.to_bytes(8, "big"))
        self._begin_blob(blob)
        return blob

    def _begin_blob(self, blob: int) -> None:
        self.state.next_blob = blob + 1
        self.batch.ops.append((_proto.marker_key(blob), b""))
        if not self.dirty:
            self._mark()

    def blob_path(self, blob: int) -> Path:
        """Return the file of a blob."""
        return self.path / BLOBS_NAME / str(blob)

    def abandon_blob(self, blob: int) -> None:
        """A blob that was begun will not be finished."""
        self.doomed.append((blob, self.state.change))
        self._writes.add(self)

    def _doom(self, blob: int) -> None:
        self.batch.ops.append((_proto.marker_key(blob), b""))
        self.doomed.append((blob, self.state.change))

    def take_doomed(self) -> list[int]:
        """Return the blobs that are due now: `delete_blobs` them, in a thread, and then `forget` them."""
        ripe = [blob for blob, change in self.doomed if change <= self.stored_change]
        if ripe:
            self.doomed = [entry for entry in self.doomed if entry[1] > self.stored_change]
        return ripe

    def delete_blobs(self, blobs: Iterable[int]) -> None:
        """Delete the files of blobs; OSError if that fails."""
        for blob in blobs:
            self.blob_path(blob).unlink(missing_ok=True)

    def forget(self, blobs: Iterable[int]) -> None:
        """Stage the end of blobs whose files are deleted. It need not be logged: what is done again after
        a crash does no harm."""
        if not self.state.deleted:
            self.batch.ops.extend((_proto.marker_key(blob), None) for blob in blobs)
            if not self.dirty:
                self._mark()

    def _delete_unknown_blobs(self) -> None:
        """Delete the files of blobs that were begun in a change that was lost with the machine."""
        known = {item.blob for item in self.batch.puts.values()} | {blob for blob, _ in self.doomed}
        with contextlib.suppress(OSError):  # then after the next start
            for file in (self.path / BLOBS_NAME).iterdir():
                blob = int(file.name) if file.name.isdecimal() else 0
                if blob >= self.state.next_blob or not (self._exists or blob in known):
                    file.unlink()

    # Reading

    def read(self, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
        """Return items from id `start` on, and the id to read on from.

        Stops behind the item that reaches `max_items` or `max_bytes`. `start` must be where the last
        read ended, or the floor: ids found missing on the way are gone.
        """
        items: list[Item] = []
        size = 0
        start = max(start, self.state.floor)
        try:
            with self._using:
                for item in self._from(start):
                    if item.id != start:
                        self._skip(start, item.id)
                    start = item.id + 1
                    if item.id in self.gone:
                        continue  # its record goes with the next batch
                    items.append(item)
                    size += item.memory_bytes
                    if len(items) >= max_items or size >= max_bytes:
                        return items, start
        except (leveldb.Error, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error
        self._skip(start, self.state.next_id)
        return items, self.state.next_id

    def _from(self, start: int) -> Iterator[Item]:
        if start < self.stored_id:
            stop = _proto.item_key(self.stored_id)
            rewrites = self.batch.rewrites
            if self.sealed is not None:
                rewrites = {**self.sealed.rewrites, **rewrites}
            with self._opened().iterator(
                start=_proto.item_key(start), stop=stop, fill_cache=False
            ) as records:
                for key, record in records:
                    item = _proto.decode_item(key, record)
                    yield rewrites.get(item.id, item) if rewrites else item
            start = self.stored_id
        for id in range(start, self.state.next_id):
            staged = self._staged(id)
            if staged is not None:
                yield staged

    def _staged(self, id: int) -> Item | None:
        batch, sealed = self.batch, self.sealed
        found = batch.puts.get(id) or batch.rewrites.get(id)
        if found is None and sealed is not None:
            found = sealed.puts.get(id) or sealed.rewrites.get(id)
        return found

    def _skip(self, start: int, stop: int) -> None:
        start = max(start, self.state.floor)
        if start < stop:
            self.gone.update(range(start, stop))
            self._advance()

    def kept_items(self) -> list[Item]:
        """Return the live items below the floor, oldest first."""
        return [item for id in sorted(self.kept) if (item := self.find(id)) is not None]

    def find(self, id: int) -> Item | None:
        """Return the live item with this id, or None if its record is missing."""
        staged = self._staged(id)
        if staged is not None or id >= self.stored_id:
            return staged
        key = _proto.item_key(id)
        try:
            with self._using:
                record = self._opened().get(key, fill_cache=False)
            return None if record is None else _proto.decode_item(key, record)
        except (leveldb.Error, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error

    @property
    def disk_bytes(self) -> int:
        """How many bytes its files take."""
        total = 0
        for directory in (self.path, self.path / BLOBS_NAME):
            with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # files go as we look
                        total += entry.stat().st_size if entry.is_file() else 0
        return total

    # Writing: called by commit.py, `write` and `compact` in a thread

    def seal(self) -> None:
        """Begin a new batch; what was staged is to be written by `write`."""
        assert self.log is not None
        if self.sealed is not None:
            self._take_back(self.sealed)
        batch, self.batch = self.batch, Batch()
        batch.state = _proto.decode_state(_proto.encode_state(self.state))
        batch.kept = frozenset(self.kept)
        batch.segment = self.log.segment.number
        self.sealed = batch
        self.writing = True
        self.dirty = False

    def _take_back(self, sealed: Batch) -> None:
        """Stage what could not be written again, before what was staged since, but for the items that are
        behind the floor by now."""
        puts, rewrites = {}, sealed.rewrites
        for id, item in sealed.puts.items():
            if id >= self.state.floor or id in self.kept:
                puts[id] = item
            elif item.blob:
                self._doom(item.blob)
        batch = self.batch
        puts.update(batch.puts)
        for id, item in batch.rewrites.items():
            (puts if id in puts else rewrites)[id] = item
        batch.puts, batch.rewrites = puts, rewrites
        batch.ops = sealed.ops + batch.ops
        batch.removed += sealed.removed

    def write(self) -> None:
        """Write what was sealed, and have it on the disk. JournalError if that failed.

        After one failed write LevelDB goes on to accept writes that it will lose, so before the next it is
        closed, and all is written again: what was written after all may be written twice.
        """
        batch = self.sealed
        assert batch is not None
        try:
            self._reopen()
            fresh = self._db is None
            db = self._opened()
            if fresh:
                record = db.get(STATE_KEY)
                known = record is not None or self._exists
                if known and _proto.decode_state(record or b"").life != batch.state.life:
                    raise JournalError("it is another journal than it was")
            self._sync_blobs(batch)
            write = db.write_batch(sync=True)
            for items in (batch.puts, batch.rewrites):
                for id, item in items.items():
                    write.put(_proto.item_key(id), item.record or _proto.encode_item(item))
            for key, value in batch.ops:
                if value is None:
                    write.delete(key)
                else:
                    write.put(key, value)
            self._trim(db, write, batch)
            write.put(STATE_KEY, _proto.encode_state(batch.state))
            write.write()
            self._exists = True
            if fresh:  # LevelDB does not see to the name of its CURRENT
                sync_directory(self.path)
        except (leveldb.Error, OSError, RuntimeError, ValueError, JournalError) as error:
            self._doubtful = True
            raise JournalError(f"cannot write {self.path}: {error}") from error

    def _reopen(self) -> None:
        """Close LevelDB after a failed write, if there is room for it to be opened again: until there is,
        what it has can still be read. OSError if there is none."""
        if self._doubtful and self._db is not None:
            probe = self.path / PROBE_NAME
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, OPENING_BYTES)
            finally:
                os.close(descriptor)
                probe.unlink()
            self._shut()
        self._doubtful = False

    def _sync_blobs(self, batch: Batch) -> None:
        """Have the blobs of new items on the disk before the items are."""
        blobs = [item.blob for item in batch.puts.values() if item.blob]
        for blob in blobs:
            with contextlib.suppress(FileNotFoundError):  # found out when it is read
                sync_file(self.blob_path(blob))
        if blobs:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self.path / BLOBS_NAME)
            sync_directory(self.path)

    def _trim(self, db: Any, write: Any, batch: Batch) -> None:
        """Delete some records that are dead, faster than items go, so that they never pile up."""
        state = batch.state
        limit = max(TRIM_RECORDS, 2 * batch.removed)
        start, stop = _proto.item_key(state.trimmed), _proto.item_key(state.floor)
        with db.iterator(start=start, stop=stop, fill_cache=False) as records:
            for key, record in itertools.islice(records, limit):
                id = int.from_bytes(key[1:], "big")
                state.trimmed = id + 1
                limit -= 1
                if id in batch.kept:
                    continue
                with contextlib.suppress(ValueError):  # damaged, but dead
                    if blob := _proto.blob_of(key, record):
                        write.put(_proto.marker_key(blob), b"")
                        batch.doomed.append(blob)
                write.delete(key)
                batch.trimmed_records += 1
                batch.trimmed_bytes += len(record)
        if limit:
            state.trimmed = state.floor

    def settle(self, error: JournalError | None) -> None:
        """What was sealed is written, or was not for the reason given."""
        self.writing = False
        self.failing = error
        if error is None:
            written, self.sealed = self.sealed, None
            assert written is not None
            self.state.trimmed = written.state.trimmed
            self.stored_id = written.state.next_id
            self.stored_change = written.state.change
            self.doomed += [(blob, 0) for blob in written.doomed]
            self._trimmed_records += written.trimmed_records
            self._trimmed_bytes += written.trimmed_bytes
            assert self.log is not None
            self.log.unpin(self, written.segment if self.dirty else written.segment + 1)
        self.crowded = False
        crowding, self.crowding = self.crowding, []
        for client in crowding:
            client.release()

    # Tidying

    @property
    def untidy(self) -> bool:
        """Whether there are dead records to delete."""
        return self.state.trimmed < self.state.floor

    def compactable(self) -> bool:
        """Whether so much was deleted that the room should be taken back; less will do if nothing has
        happened since this was asked last."""
        idle = self._last_looked_at == self.state.change
        self._last_looked_at = self.state.change
        return self._trimmed_records >= COMPACT_RECORDS or self._trimmed_bytes >= (
            IDLE_COMPACT_BYTES if idle else COMPACT_BYTES
        )

    @property
    def to_be_compacted(self) -> bool:
        """Whether it will be compactable, if only once nothing happens."""
        return self._trimmed_bytes >= IDLE_COMPACT_BYTES

    def begin_compaction(self) -> tuple[int, int]:
        """Return what `compact` takes: the ids between which records were trimmed since the last time.
        Not more, for a compaction rewrites what is alive in its range."""
        span = self._compact_from, self.state.trimmed
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = 0
        return span

    def compact(self, span: tuple[int, int]) -> None:
        """Have LevelDB give back the room of deleted records; takes its time, so in a thread."""
        with self._compacting:
            db = self._db
            if db is not None:
                start, stop = map(_proto.item_key, span)
                db.compact_range(start=start, stop=stop)

    @property
    def busy(self) -> bool:
        """Whether something still needs the directory: a write or a compaction."""
        return self.writing or self._compacting.locked()

"""One queue's journal: a LevelDB directory, what lies in it, and how it is read and written.

Nothing here decides what a queue does. Changes are staged in a `Batch`, and are on disk once
commit.py has had that batch written; until then `read` finds them in memory. Records, by key:

    s            the state: counts, ids to give out, where the live items begin (`State`)
    i<id>        an item, with its bytes or with the blob that holds them
    k            the kept ids: items below the floor that live on
    u<blob>      the marker of a blob that belongs to no item: half sent, or about to be deleted
    x            there if an item may have an expiry of its own
    d<due><id>   a delayed item: as an item, but out of sight and not among those counted in the state
    r<cursor>    the place of a cursor: the id it reads next, and the ids before that it has still to read
    c            how many delayed items there are, and where their records begin

A blob, the bytes of a large item, is a file in the directory `blobs` inside: see blob.py.

An item is live if its record is there and its id is at or above the floor, or kept. So taking the
oldest item writes no deletion, only the floor with the state; its record is deleted later, many at
once (`trim`). An item taken out of turn is deleted at once. Nothing ever seeks from the start of the
keys, where the deleted ones lie: LevelDB would walk over each (0.4 us apiece).
"""

import contextlib
import itertools
import math
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from darner import _proto, leveldb
from darner._proto import Item, State
from darner.blob import Offload, sync_directory
from darner.errors import JournalError

STATE_KEY = b"s"
KEPT_KEY = b"k"
CURSOR_PREFIX = b"r"
EXPIRING_KEY = b"x"
DELAYED_KEY = b"c"

# Sizes chosen for resident memory: LevelDB maps the tables it has open, and pages it touched count;
# twice the write buffer is in memory while one is written out.
WRITE_BUFFER_BYTES = 2 << 20
MAX_FILE_BYTES = 1 << 20
BLOBS_NAME = "blobs"
# LevelDB's least: 64 tables and 10 other files.
MAX_OPEN_FILES = 74
# Items are read once and in order: a cache of blocks would hold what nobody asks for again.
BLOCK_CACHE_BYTES = 64 << 10

# How many ids above the floor may be known as gone before the floor is moved past them.
MAX_GONE = 4096
# How many dead records one batch deletes on the side, at least: about 1 ms of work.
TRIM_RECORDS = 512
# How much must have been deleted before a compaction of it is worth its reading and writing.
COMPACT_RECORDS = 200_000
COMPACT_BYTES = 32 << 20
# And in a journal that nothing happens to: there it delays nobody.
IDLE_COMPACT_BYTES = 1 << 20


def _is_unborn(file: Path) -> bool:
    """Whether LevelDB makes such a file before CURRENT, so that nothing is in it yet."""
    return file.name in ("LOCK", "LOG", "LOG.old", "MANIFEST-000001") or file.suffix == ".dbtmp"


def _delayed_key(due_ms: int, id: int) -> bytes:
    return b"d" + due_ms.to_bytes(8, "big") + id.to_bytes(8, "big")


class Client(Protocol):
    """Who waits for a batch: commit.py calls these."""

    def hold(self) -> None:
        """Send nothing until as many `release` calls came."""

    def release(self) -> None:
        """What was held for this once is settled."""

    def fail(self, slot: int, error: JournalError) -> None:
        """What reply `slot` says did not happen."""


class Batch:
    """Changes to one journal that will be written as one."""

    __slots__ = (
        "acks",
        "bytes",
        "due_ms",
        "expunged",
        "held",
        "number",
        "ops",
        "puts",
        "removed",
        "restated",
        "sync",
    )

    def __init__(self, *, held: bool) -> None:
        self.puts: dict[int, Item] = {}
        # other records: key and value, or key and None to delete
        self.ops: list[tuple[bytes, bytes | None]] = []
        # the items beyond the read ones, and the keys of the delayed ones, whose records it deletes
        self.expunged: set[int | bytes] = set()
        # when the first of the delayed items it puts is due
        self.due_ms = math.inf
        # how many items that are on disk were removed
        self.removed = 0
        # whether the state changed in another way
        self.restated = False
        self.sync = False
        # of the items to put, which are what makes a batch large
        self.bytes = 0
        # whose replies wait for this batch
        self.acks: list[tuple[Client, int]] = []
        # whether those clients were told to hold, since a thread is writing this batch or the one before
        self.held = held
        # counts the batches of a journal from 1; the state on disk names the last one written
        self.number = -1

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.puts or self.ops or self.removed or self.restated)


class Writes(Protocol):
    """Who writes what a journal has staged: a `Committer`."""

    offload: Offload

    def add(self, journal: "Journal") -> None:
        """`journal` has a batch to be written."""


class Journal:
    """One queue's LevelDB directory. Raises JournalError, and only that, for what LevelDB refuses."""

    __slots__ = (
        "_compact_from",
        "_compacting",
        "_db",
        "_due_from_ms",
        "_expunged_to",
        "_last_looked_at",
        "_live_from",
        "_must_place",
        "_placed",
        "_trimmed_bytes",
        "_trimmed_records",
        "_writes",
        "batch",
        "committed_id",
        "delayed_bytes",
        "delayed_items",
        "dirty",
        "doomed",
        "expiring",
        "failed",
        "generation",
        "gone",
        "kept",
        "next_due_ms",
        "offload",
        "on_reopen",
        "path",
        "state",
        "writing",
    )

    def __init__(self, path: Path, writes: Writes, created_ms: int) -> None:
        """Open the journal in `path`, or make it there if `path` is absent or empty.

        Raises JournalError if it cannot be opened, or holds something else than a journal.
        """
        self.path = path
        self._writes = writes
        self.offload = writes.offload
        self.batch = Batch(held=False)
        self.writing: Batch | None = None
        self.dirty = False
        # the error that took the journal out of service, until `reopen` succeeds
        self.failed: JournalError | None = None
        # counts the reopenings: a blob begun before one is lost
        self.generation = 0
        self.on_reopen: Any = None
        self._compacting = Lock()
        # whether the directory's name was synced, and whether the batch sealed last needs that
        self._placed = self._must_place = False
        self._open(created_ms)

    def _open(self, created_ms: int) -> None:
        # With create_if_missing LevelDB takes a directory without CURRENT for a new one and deletes the
        # tables in it (seen in 1.22 and 1.23): only an absent or empty one is new, or one whose making
        # was cut off, by a full disk or a kill.
        try:
            is_new = not self.path.exists() or all(map(_is_unborn, self.path.iterdir()))
            if not is_new and not (self.path / "CURRENT").exists():
                raise JournalError(
                    f"{self.path} holds files but no CURRENT: it is damaged or no journal. "
                    "Nothing in it was touched; move it away, or repair a copy of it"
                )
            if is_new:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        try:
            self._load(created_ms, is_new=is_new)
        except (leveldb.Error, OSError, ValueError) as error:
            self._db.close()
            raise JournalError(f"cannot read {self.path}: {error}") from error

    def _load(self, created_ms: int, *, is_new: bool) -> None:
        self.gone: set[int] = set()
        self.kept: set[int] = set()
        # blobs to delete, each once the batch of that number is written
        self.doomed: list[tuple[int, int]] = []
        record = self._db.get(STATE_KEY)
        if record is None:
            if not is_new and next(iter(self._db.iterator(include_value=False)), None) is not None:
                raise ValueError("it has records but no state: it is damaged or no journal of darner")
            self.state = State(created_ms)
            # others than before if the queue was deleted and is made anew: a writer that comes late must
            # not delete another's blob
            self.state.next_blob = secrets.randbits(40) << 20
            self._db.put(STATE_KEY, _proto.encode_state(self.state))
        else:
            self.state = _proto.decode_state(record)
        if kept := self._db.get(KEPT_KEY):
            self.kept = {
                id
                for id in _proto.decode_ids(kept)
                if id < self.state.floor and self._db.get(_proto.item_key(id)) is not None
            }
        for key in self._db.iterator(start=b"u", stop=b"v", include_value=False):
            self.doomed.append((int.from_bytes(key[1:], "big"), 0))
        self._delete_unknown_blobs()
        # what is delayed; when the first one is due; and the id below which they were flushed
        self.delayed_items = self.delayed_bytes = self._due_from_ms = self._live_from = 0
        self.next_due_ms = math.inf
        if delayed := self._db.get(DELAYED_KEY):
            (self.delayed_items, self.delayed_bytes, self._due_from_ms, self._live_from) = _proto.decode_ids(
                delayed
            )
            first = next(self._delayed(include_value=False), None)
            if first is not None:
                self.next_due_ms = int.from_bytes(first[1:9], "big")
        # whether an item may have an expiry of its own
        self.expiring = self._db.get(EXPIRING_KEY) is not None
        # the first id that may not be on disk yet
        self.committed_id = self.state.next_id
        # since the last compaction
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = 0
        # behind the last item expunged since then
        self._expunged_to = 0
        # the batch that was the last one when `compactable` was asked last
        self._last_looked_at = -1

    def reopen(self) -> None:
        """Close and open again after a failed write; what was staged is dropped.

        After one failed write LevelDB goes on to accept writes that it will lose: only a new handle
        can be trusted, and only what it reads is so.
        """
        with self._compacting:
            self._db.close()
        self.batch = Batch(held=False)
        self.dirty = False
        self.generation += 1
        next_blob = self.state.next_blob
        try:
            self._open(self.state.created_ms)
            # Their markers are lost, and late writers may still make their files. Not marked dirty: that
            # goes with the next change, or a full disk would have us here again and again.
            for blob in range(self.state.next_blob, next_blob):
                self._doom(blob)
            self.state.next_blob = max(self.state.next_blob, next_blob)
        except JournalError as error:
            self.failed = error
            raise
        self.failed = None

    def close(self) -> None:
        """Close the directory; nothing may be staged or being written."""
        with self._compacting:
            self._db.close()

    # Staging

    def _mark(self) -> None:
        if not self.dirty:
            self.dirty = True
            self._writes.add(self)

    def acknowledge(self, client: Client, slot: int) -> None:
        """Have `client` hear about what is staged now: reply `slot` depends on it."""
        batch = self.batch
        batch.acks.append((client, slot))
        if batch.held:
            client.hold()

    @property
    def settled(self) -> bool:
        """Whether all that happened is on disk."""
        return not self.dirty and self.writing is None

    def put(self, item: Item) -> None:
        """Stage a new item, as the last; gives it its id."""
        batch = self.batch
        batch.puts[self.state.add(item)] = item
        if item.blob:
            batch.ops.append((_proto.marker_key(item.blob), None))
        else:
            batch.bytes += item.size
        if not self.dirty:
            self._mark()

    def sync(self) -> None:
        """Stage a sync of all that was written before."""
        self.batch.sync = self.batch.restated = True
        self._mark()

    def rewrite(self, item: Item) -> None:
        """Stage the record of a live item anew, after a change to it."""
        if item.id in self.batch.puts:
            self.batch.puts[item.id] = item
        else:
            self.batch.ops.append((_proto.item_key(item.id), _proto.encode_item(item)))
            self._mark()

    def remove(self, item: Item) -> None:
        """Stage the removal of a live item."""
        batch, state, id = self.batch, self.state, item.id
        was_staged = batch.puts.pop(id, None) is not None
        was_oldest = state.drop(item)
        if was_staged:
            batch.bytes -= item.memory_bytes
        else:
            batch.removed += 1
            # A blob goes with its item, so that `trim` has only flushed ones to look for.
            if not was_oldest or item.blob:
                batch.ops.append((_proto.item_key(id), None))
        if item.blob:
            self._doom(item.blob)
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

    def expunge(self, item: Item) -> None:
        """Stage the removal of a live item that no `read` has come to yet: the next one finds it missing."""
        batch, state = self.batch, self.state
        state.items -= 1
        state.bytes -= item.size
        if batch.puts.pop(item.id, None) is not None:
            batch.bytes -= item.memory_bytes
        else:
            batch.removed += 1
            batch.expunged.add(item.id)
            batch.ops.append((_proto.item_key(item.id), None))
            self._trimmed_records += 1
            self._trimmed_bytes += item.memory_bytes
            self._expunged_to = max(self._expunged_to, item.id + 1)
        if item.blob:
            self._doom(item.blob)
        self._mark()

    def note_expiring(self, *, expiring: bool) -> None:
        """Stage whether an item may have an expiry of its own: if not, nobody need look for one."""
        self.expiring = expiring
        self.batch.ops.append((EXPIRING_KEY, b"" if expiring else None))
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
        """Stage the removal of all items but `keep`, in a time that does not grow with the queue."""
        batch, state = self.batch, self.state
        passed, self.kept = self.kept, {item.id for item in keep}
        for id in passed - self.kept:
            if id < state.trimmed:
                self._discard(id)
        for id in [id for id in batch.puts if id not in self.kept]:
            if blob := batch.puts.pop(id).blob:
                self._doom(blob)
        state.items = len(keep)
        state.bytes = sum(item.size for item in keep)
        self._keep(state.next_id)
        if self.next_due_ms < math.inf:
            # their records go when they would have been due
            self.delayed_items = self.delayed_bytes = 0
            self._live_from = state.next_blob
            self._count_delayed()
        self._mark()

    def _discard(self, id: int) -> None:
        """Stage the deletion of a kept item that `trim` has passed by."""
        with contextlib.suppress(JournalError):  # damaged, but dead
            item = self.writing.puts.get(id) if self.writing is not None else None
            item = item or self.find(id)
            if item is not None and item.blob:
                self._doom(item.blob)
        self.batch.ops.append((_proto.item_key(id), None))

    # Delayed items. Their ids are out of those of blobs, so that none is missing among the others'.

    def delay(self, item: Item, due_ms: int) -> None:
        """Stage a new item that is out of sight until `take_due` returns it."""
        batch, state = self.batch, self.state
        item.id = state.next_blob
        state.next_blob += 1
        batch.ops.append((_delayed_key(due_ms, item.id), _proto.encode_item(item)))
        if item.blob:
            batch.ops.append((_proto.marker_key(item.blob), None))
        batch.bytes += item.memory_bytes
        batch.due_ms = min(batch.due_ms, due_ms)
        self.next_due_ms = min(self.next_due_ms, due_ms)
        self._due_from_ms = min(self._due_from_ms, due_ms)
        self.delayed_items += 1
        self.delayed_bytes += item.size
        self._count_delayed()

    def take_due(self, now_ms: int, max_items: int, max_bytes: int) -> list[Item]:
        """Stage the end of delayed items that are due, in the order of their times; returns them. They have
        to be `put` as new items before the next commit.

        Those come first that are on disk: one that is still being written has to wait.
        """
        taken: list[tuple[bytes, Item]] = []
        size = 0
        hidden = self._hidden()
        next_due_ms = math.inf
        try:
            for key, record in self._delayed():
                if key in hidden:
                    continue
                due_ms = int.from_bytes(key[1:9], "big")
                if due_ms > now_ms or len(taken) >= max_items or size >= max_bytes:
                    next_due_ms = due_ms
                    break
                item = _proto.decode_item(b"i" + key[9:], record)
                taken.append((key, item))
                size += item.memory_bytes
        except (leveldb.Error, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error
        self.next_due_ms = min(next_due_ms, self._staged_due_ms)
        return self._end_delay(taken)

    @property
    def _staged_due_ms(self) -> float:
        writing_ms = math.inf if self.writing is None else self.writing.due_ms
        return min(self.batch.due_ms, writing_ms)

    def _end_delay(self, taken: list[tuple[bytes, Item]]) -> list[Item]:
        items = []
        for key, item in taken:
            self.batch.ops.append((key, None))
            self.batch.expunged.add(key)
            self._trimmed_records += 1
            self._trimmed_bytes += item.memory_bytes
            if item.id >= self._live_from:
                self.delayed_items -= 1
                self.delayed_bytes -= item.size
                items.append(item)
            elif item.blob:
                self._doom(item.blob)
        if taken:
            # one that is still being written may be due before those that are on disk
            last_ms = int.from_bytes(taken[-1][0][1:9], "big")
            self._due_from_ms = int(min(last_ms, self._staged_due_ms))
            self._count_delayed()
        return items

    def _delayed(self, **options: bool) -> Iterator[Any]:
        start = _delayed_key(self._due_from_ms, 0)
        with self._db.iterator(start=start, stop=b"e", fill_cache=False, **options) as records:
            yield from records

    def _count_delayed(self) -> None:
        counts = [self.delayed_items, self.delayed_bytes, self._due_from_ms, self._live_from]
        self.batch.ops.append((DELAYED_KEY, _proto.encode_ids(counts)))
        self._mark()

    # Blobs

    def begin_blob(self) -> int:
        """Stage a blob that belongs to no item yet; returns its id."""
        blob = self.state.next_blob
        self.state.next_blob = blob + 1
        self.batch.ops.append((_proto.marker_key(blob), b""))
        self._mark()
        return blob

    def link_blob(self, file: Path) -> int:
        """Stage a blob with the bytes of another one, in `file`; returns its id.

        Raises JournalError if that cannot be: then `file` is as it was.
        """
        blob = self.begin_blob()
        path = self.blob_path(blob)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.hardlink_to(file)
        except OSError as error:
            self.abandon_blob(blob)
            raise JournalError(f"cannot link {path} to {file}: {error}") from error
        return blob

    def blob_path(self, blob: int) -> Path:
        """Return the file of a blob."""
        return self.path / BLOBS_NAME / str(blob)

    def abandon_blob(self, blob: int) -> None:
        """A blob that was begun will not be finished."""
        self.doomed.append((blob, self.state.batch + (not self.batch.empty)))

    def _doom(self, blob: int) -> None:
        self.batch.ops.append((_proto.marker_key(blob), b""))
        self.doomed.append((blob, self.state.batch + 1))

    def take_doomed(self) -> list[int]:
        """Return the blobs that are due now: `delete_blobs` them, in a thread, and then `forget` them."""
        if not self.doomed or self.writing is not None:
            return []
        ripe = [blob for blob, batch in self.doomed if batch <= self.state.batch]
        self.doomed = [entry for entry in self.doomed if entry[1] > self.state.batch]
        return ripe

    def delete_blobs(self, blobs: Iterable[int]) -> None:
        """Delete the files of blobs; OSError if that fails."""
        for blob in blobs:
            self.blob_path(blob).unlink(missing_ok=True)

    def forget(self, blobs: Iterable[int]) -> None:
        """Stage the end of blobs whose files are deleted."""
        if self._db.closed:  # out of service, or deleted meanwhile
            return
        self.batch.ops.extend((_proto.marker_key(blob), None) for blob in blobs)
        self._mark()

    def _delete_unknown_blobs(self) -> None:
        """Delete the files of blobs that were begun in a batch that was not written."""
        directory = self.path / BLOBS_NAME
        if directory.exists():
            for file in directory.iterdir():
                if file.name.isdecimal() and int(file.name) >= self.state.next_blob:
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
        expunged = self._hidden()
        if start < self.committed_id:
            stop = _proto.item_key(self.committed_id)
            with self._db.iterator(start=_proto.item_key(start), stop=stop, fill_cache=False) as records:
                for key, record in records:
                    item = _proto.decode_item(key, record)
                    if item.id not in expunged:
                        yield item
        for batch in (self.writing, self.batch):
            if batch is not None:
                for item in batch.puts.values():
                    if item.id >= start and item.id not in expunged:
                        yield item

    def _hidden(self) -> set[int | bytes]:
        """What is on disk, but will be deleted."""
        hidden = self.batch.expunged
        return hidden if self.writing is None else hidden | self.writing.expunged

    def _skip(self, start: int, stop: int) -> None:
        start = max(start, self.state.floor)
        if start >= stop:
            return
        if start == self.state.floor:
            # not one by one: a sweep may have left a wide gap
            self.state.floor = stop
            self.gone = {id for id in self.gone if id >= stop}
        else:
            self.gone.update(range(start, stop))
        self._advance()
        if len(self.gone) > MAX_GONE:
            self._checkpoint()

    def scan(self, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
        """As `read`, but from any id on that `read` has not come to yet, and nothing is taken note of."""
        items: list[Item] = []
        size = 0
        try:
            for item in self._from(max(start, self.state.floor)):
                items.append(item)
                size += item.memory_bytes
                if len(items) >= max_items or size >= max_bytes:
                    return items, item.id + 1
        except (leveldb.Error, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error
        return items, self.state.next_id

    def live(self, id: int) -> Item | None:
        """Return the item with this id if it is live."""
        if id in self.gone or (id < self.state.floor and id not in self.kept):
            return None
        for batch in (self.batch, self.writing):
            if batch is not None and id in batch.puts:
                return batch.puts[id]
        return None if id in self._hidden() else self.find(id)

    def next_live(self, start: int) -> Item | None:
        """Return the first live item from id `start` on."""
        for id in sorted(self.kept):
            if id >= start and (item := self.live(id)) is not None:
                return item
        try:
            live = (item for item in self._from(max(start, self.state.floor)) if item.id not in self.gone)
            return next(live, None)
        except (leveldb.Error, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error

    def cursor(self, label: bytes) -> list[int]:
        """Return the place of a cursor as it is on disk; an empty list if there is none."""
        try:
            record = self._db.get(CURSOR_PREFIX + label)
            return [] if record is None else _proto.decode_ids(record)
        except (leveldb.Error, RuntimeError, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error

    def keep_cursor(self, label: bytes, place: list[int] | None) -> None:
        """Stage the place of a cursor; None is the end of it."""
        self.batch.ops.append((CURSOR_PREFIX + label, None if place is None else _proto.encode_ids(place)))
        self._mark()

    def kept_items(self) -> list[Item]:
        """Return the live items below the floor, oldest first."""
        return [item for id in sorted(self.kept) if (item := self.find(id)) is not None]

    def find(self, id: int) -> Item | None:
        """Return the item with this id as it is on disk, or None if there is none."""
        key = _proto.item_key(id)
        try:
            record = self._db.get(key, fill_cache=False)
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

    # Writing: called by commit.py, `write` and `compact` in a thread if need be

    def seal(self, *, held: bool) -> Any:
        """Begin a new batch, `held` or not; returns what the sealed one has to write, or None."""
        batch, state = self.batch, self.state
        self.dirty = False
        if batch.empty:
            self.batch = Batch(held=held)
            return None
        try:
            if state.floor - state.trimmed >= TRIM_RECORDS:
                # faster than items go, so that what is dead never piles up
                self._trim(max(TRIM_RECORDS, 2 * batch.removed))
            self.batch = Batch(held=held)
            batch.number = state.batch = state.batch + 1
            self._must_place = batch.sync and not self._placed
            write = self._db.write_batch(sync=batch.sync)
            put = write.put
            for id, item in batch.puts.items():
                put(_proto.item_key(id), _proto.encode_item(item))
            for key, value in batch.ops:
                if value is None:
                    write.delete(key)
                else:
                    put(key, value)
            put(STATE_KEY, _proto.encode_state(state))
        except (leveldb.Error, RuntimeError) as error:
            raise JournalError(f"cannot write {self.path}: {error}") from error
        return write

    def write(self, write: Any) -> None:
        """Write what `seal` returned. JournalError if that failed: then only `reopen` helps."""
        try:
            if self._must_place:
                self._place()
            write.write()
        except (leveldb.Error, OSError, RuntimeError) as error:
            raise JournalError(f"cannot write {self.path}: {error}") from error

    def _place(self) -> None:
        """Have the name of the directory on the disk: LevelDB sees only to what is inside."""
        for parent in self.path.parents:
            sync_directory(parent)
            if not parent.name.endswith("%"):  # that goes on in a directory inside
                break
        self._placed = True

    # Tidying

    @property
    def untidy(self) -> bool:
        """Whether there is something to trim."""
        return self.state.trimmed < self.state.floor

    def trim(self) -> None:
        """Stage the deletion of some records that are dead."""
        if not self.untidy or self.writing is not None or self.failed is not None:
            return
        try:
            self._trim(TRIM_RECORDS)
        except leveldb.Error as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error
        self._mark()

    def _trim(self, limit: int) -> None:
        # An item that is being written now might come to lie below `trimmed` behind our back.
        if self.writing is not None:
            return
        state, ops = self.state, self.batch.ops
        start, stop = _proto.item_key(state.trimmed), _proto.item_key(state.floor)
        with self._db.iterator(start=start, stop=stop, fill_cache=False) as records:
            for key, record in itertools.islice(records, limit):
                id = int.from_bytes(key[1:], "big")
                state.trimmed = id + 1
                limit -= 1
                if id in self.kept:
                    continue
                with contextlib.suppress(ValueError):  # damaged, but dead
                    if blob := _proto.blob_of(key, record):
                        self._doom(blob)
                ops.append((key, None))
                self._trimmed_records += 1
                self._trimmed_bytes += len(record)
        if limit:
            state.trimmed = state.floor

    def compactable(self) -> bool:
        """Whether so much was deleted that the room should be taken back; less will do if nothing was
        written since this was asked last."""
        idle = self._last_looked_at == self.state.batch and self.settled
        self._last_looked_at = self.state.batch
        return self._trimmed_records >= COMPACT_RECORDS or self._trimmed_bytes >= (
            IDLE_COMPACT_BYTES if idle else COMPACT_BYTES
        )

    def begin_compaction(self) -> tuple[int, int]:
        """Return what `compact` takes: the ids between which records were trimmed or expunged since the
        last time. Not more, for a compaction rewrites what is alive in its range."""
        span = self._compact_from, max(self.state.trimmed, self._expunged_to)
        self._compact_from = self.state.trimmed
        self._trimmed_records = self._trimmed_bytes = self._expunged_to = 0
        return span

    def compact(self, span: tuple[int, int]) -> None:
        """Have LevelDB give back the room of deleted records; takes its time, so in a thread."""
        with self._compacting:
            if not self._db.closed:
                start, stop = map(_proto.item_key, span)
                self._db.compact_range(start=start, stop=stop)
                if self._due_from_ms:
                    self._db.compact_range(start=b"d", stop=_delayed_key(self._due_from_ms, 0))

    @property
    def busy(self) -> bool:
        """Whether something still needs the directory: a write or a compaction."""
        return self.dirty or self.writing is not None or self._compacting.locked()

    def retire(self) -> None:
        """Stage the end of the journal: all its items are gone, and it is deleted at the next start
        if it was not before. Blobs that were begun are lost."""
        self.flush(())
        with contextlib.suppress(leveldb.Error):  # then they go with the directory
            for key in self._db.iterator(prefix=CURSOR_PREFIX, include_value=False):
                self.batch.ops.append((key, None))
        self.state.deleted = True
        self.generation += 1

    def revive(self, created_ms: int) -> None:
        """Begin anew in a retired journal: empty, ids going on."""
        self.state.deleted = False
        self.state.created_ms = created_ms
        self.batch.restated = True
        self._mark()

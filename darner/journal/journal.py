# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One queue's journal: every change to what it holds, in memory and in the log.

Nothing here decides what a queue does. Each change is a method that logs it (wal.py), and then applies it by
the method with `apply_` before its name, which changes the counts and stages records in a batch. So a change
is safe when its method returns. A start makes the changes that LevelDB lacks once more, by the same `apply_`
methods (recovery.py). Batches are sealed and written to LevelDB later (writing.py), many changes as one.

Items are read by reading.py and lookup.py, which also find damage. The parts that stand below: records.py
(what is staged, and LevelDB's records), live_ids.py (which ids are live), delayed_items.py, blob_directory.py
(files of large items), tidying.py (trimming and compaction), damage.py, database.py (the LevelDB).

Records in LevelDB, by key:

    i<id>        an item, with its bytes or with the blob that holds them
    a<id>        how often that item has come back, if it has; in earlier versions the item itself said so
    i<id>s       the state: counts, ids to give out, the floor (`State`). The last one counts
    k            the kept ids, if there are any: live items below the floor
    u<blob>      the marker of a blob that belongs to no item: not whole yet, or about to be deleted
    x            there if an item may have an expiry of its own
    d<due><id>   a delayed item: as an item, but not among those counted in the state
    c            how many delayed items there are, and where their records begin
    r<cursor>    the place of a cursor: the id it reads next, and the ids before that it has still to read
    s            the settings that were made at run time, if there are any
    n<generation><hash>   when a set with this id came
    n            the generations of these ids

An item is live if its record is there and its id is at or above the floor, or kept. Taking the oldest item
writes no deletion, only the floor with the state. An item taken out of turn is deleted with the next batch,
unless the floor has passed it by then. Nothing ever seeks from the start of the keys, where the deleted ones
lie: LevelDB would walk over each.
"""

import array
import contextlib
import itertools
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from darner import _records
from darner._records import Change, Item, Segment, pack_numbers
from darner.errors import DamagedError, JournalError, NotReadyError
from darner.journal import leveldb
from darner.journal.background_writer import BackgroundWriter
from darner.journal.batch import ATTEMPTS_BYTES, UNLIMITED_BYTES
from darner.journal.blob_directory import BlobDirectory
from darner.journal.damage import Damage
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.database import Database
from darner.journal.dedup_ids import DedupIds, Once
from darner.journal.delayed_items import Delayed
from darner.journal.files import bytes_in
from darner.journal.first_item import FirstItem
from darner.journal.layout import BLOBS_NAME, EXPIRING_KEY, attempts_key, delayed_key
from darner.journal.live_ids import LiveIds
from darner.journal.records import Records
from darner.journal.segment_file import FRAME_BYTES
from darner.journal.snapshot import Snapshot
from darner.journal.tidying import Compaction, Trimming
from darner.journal.wal import Log
from darner.journal.wal_sync import Client

# How many bytes may be staged while a batch is being written, before sets wait: a disk may be slow for
# as long as that takes.
AHEAD_BYTES = 3 << 20
# How many new segments a change is tried in: one may turn out not to be writable.
SEGMENTS_TRIED = 3
BLOB_ID_BYTES = 8

_PUT = int(Change.PUT)
_CURSOR = int(Change.CURSOR)


def _another(item: Item, id: int, enqueued_ms: int) -> Item:
    """Return a copy of an item under another id, with a record of its own: that of `item` may be being
    written."""
    return Item(
        id,
        item.flags,
        item.expires_ms,
        enqueued_ms,
        item.data,
        item.blob,
        item.size,
        item.chunk_bytes,
        item.attempts,
    )


class Journal:
    """One queue's journal. Changes raise JournalError, and only that, for what the disk or the log refuses:
    then the change was not made.

    Without a log it lives in memory alone. recovery.py opens one.
    """

    __slots__ = (
        "_entered", "_has_paused", "_number", "_segment", "blobs", "compaction", "cursors",
        "damage", "damaged_items", "damaged_kept", "database", "dedup_ids", "delayed", "dirty", "expiring",
        "failing", "fault", "first", "generation", "held_back", "is_backlogged", "live", "log", "lost_items",
        "name", "next_unread", "offload", "path", "records", "settings", "state", "trimming", "writer",
        "writing",
    )  # fmt: skip

    def __init__(
        self, name: bytes, writer: BackgroundWriter, log: Log | None, database: Database, found: Snapshot
    ) -> None:
        """Take up a journal where `found` leaves off, which is what `database` has, if it has anything."""
        self.name = name
        self.path = database.path
        self.writer = writer
        self.offload = writer.offload
        self.log = log
        self._segment = Segment() if log is None else log.segment
        # the segment in which this journal has a number, and that number
        self._entered = 0
        self._number = 0
        self.state = found.state
        self.live = LiveIds(found.state, found.kept, has_kept_record=found.has_kept)
        # the first id that was not read yet; the queue sets it, which may hold an item that it has put
        self.next_unread = found.state.floor
        # the first item that was not read yet, as far as it is known
        self.first = FirstItem(found.state.floor, found.first_id, found.first_ms)
        # whether an item may have an expiry of its own
        self.expiring = found.expiring
        # the places of the cursors, by label
        self.cursors: dict[bytes, list[int]] = dict(found.cursors)
        # what was set for the queue at run time; what it says is nothing to a journal
        self.settings = found.settings
        self.delayed = Delayed(found)
        self.dedup_ids = DedupIds(found)
        self.blobs = BlobDirectory(self.path, found.blobs)
        self.records = Records()
        if log is None:
            self.records.batch.room_bytes = UNLIMITED_BYTES
        self.records.stored_id = found.state.next_id
        self.database = database
        database.life, database.stored_change = found.state.life, found.state.change
        self.trimming = Trimming(found.state, self.dedup_ids)
        self.compaction = Compaction(found.state, self.delayed, self.dedup_ids)
        database.on_open = self.compaction.measure
        self.damage = Damage(self.path, writer)
        # how many items were damaged, and are counted out; and the kept ones that were found damaged at start
        self.damaged_items = 0
        self.damaged_kept: list[int] = []
        # how many large items in the log lacked their files, which were lost with the machine
        self.lost_items = 0
        # whether changes are staged; and whether a thread has the directory, to write or to mend it
        self.dirty = False
        self.writing = False
        # why the last batch could not be written; nothing is taken in then
        self.failing: JournalError | None = None
        # why nothing more is done with it until the next start: see `set_aside`
        self.fault: JournalError | None = None
        # Backpressure: whether items come faster than they are written; and the clients that wait until a
        # batch is written, or until `resume`.
        self.is_backlogged = False
        self.held_back: list[Client] = []
        self._has_paused = False
        # counts the deletions of the queue: a blob begun before one is lost
        self.generation = 0

    # Logging

    def check(self) -> None:
        """Raise JournalError if no new item is taken in."""
        if self.failing is not None:
            raise self.failing.with_traceback(None)
        if self._segment.refusal is not None:
            raise self._segment.refusal.with_traceback(None)

    def announce(self) -> None:
        """Log that this journal has begun, for the log may have the end of an earlier one of its name. Raises
        JournalError if nothing is taken in."""
        self.check()
        self._enter()

    def _enter(self) -> None:
        """Get a number in the segment that is being written."""
        log = self.log
        assert log is not None
        payload = pack_numbers([self.state.life]) + self.name
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

    def _log(self, kind: int, payload: bytes) -> None:
        """Log a change that is about to be applied."""
        if self.log is not None:
            if self._entered != self._segment.number:
                self._enter()
            tried = 0
            while not self._segment.append(kind, self._number, self.state.change + 1, payload):
                if tried and len(payload) + FRAME_BYTES > self._segment.room_bytes:
                    raise JournalError(f"too many reserved items to log: {len(payload)} bytes")
                tried = self._begin_segment(tried)
        self.state.change += 1

    def _begin_segment(self, tried: int) -> int:
        """Begin a new segment, for there is no room in this one, or it cannot be written; return how many
        were begun for the change, given that `tried` were. Raises JournalError if those are too many."""
        if tried == SEGMENTS_TRIED:
            raise JournalError("the log cannot be written")
        assert self.log is not None
        self.log.roll()
        self._enter()
        return tried + 1

    def mark_dirty(self) -> None:
        """Note that changes are staged: the log keeps them until they are written."""
        self.dirty = True
        if self.log is not None:
            self.log.pin(self)
        self.writer.add(self)

    def require_synced_log(self) -> None:
        """Have the log synced before the next change is written to LevelDB: it removes what was put in
        another journal. If the log was lost with the machine, the item would be in neither."""
        self.records.batch.needs_synced_log = True

    # Items

    def put(self, item: Item) -> None:
        """Put a new item behind all others, and give it its id."""
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
            tried = 0
            while not self._segment.put(_PUT, self._number, state.change + 1, item):
                tried = self._begin_segment(tried)
        state.change += 1
        self.apply_put(item)

    def apply_put(self, item: Item) -> None:
        """Count and stage a new item."""
        batch = self.records.batch
        self.state.add(item)
        batch.puts[item.id] = item
        if self._segment.in_group:
            batch.needs_synced_log = True
        if item.blob:
            self._claim_blob(item.blob)
        batch.room_bytes -= item.memory_bytes
        if not self.dirty:
            self.mark_dirty()
        if batch.room_bytes < 0:
            self._hold_batch_size()

    def put_once(self, item: Item, once: Once) -> None:
        """Put a new item as `put` does, and remember the id of its set by the same change."""
        self.check()
        item.id = self.state.next_id
        payload = b"" if self.log is None else pack_numbers([item.id]) + _records.encode_item(item)
        self._log(Change.ONCE, once.encode(Change.PUT, payload))
        self.apply_once(once)
        self.apply_put(item)

    def apply_once(self, once: Once) -> None:
        """Stage the id of a set, whose item is put next."""
        self._free_ids(self.dedup_ids.add(self.records.batch, once))

    def forget_ids(self) -> None:
        """Forget the ids of all sets, which are outdated or flushed. By itself that is not logged: whoever
        looks at an id looks at when it came, too."""
        batch = self.records.batch
        self._free_ids(self.dedup_ids.forget(batch))
        if batch.dedup_changed and not self.dirty:
            self.mark_dirty()

    def _free_ids(self, outdated: list[dict[bytes, int]]) -> None:
        """Free staged ids in slices: in memory they may be many."""
        if self.log is None:
            for ids in outdated:
                self.writer.free(ids)

    def _hold_batch_size(self) -> None:
        """Have the full batch written, or sets wait until the one before it is."""
        if not self.writing:
            self.writer.checkpoint(self)
        elif self.records.batch.room_bytes < (0 if self.writer.space_is_scarce else -AHEAD_BYTES):
            self.is_backlogged = True

    def note_attempts(self, item: Item) -> None:
        """Keep how often a live item has come back."""
        if self.log is not None and self._segment.refusal is not None:  # what room there is is for removals
            raise self._segment.refusal.with_traceback(None)
        self._log(Change.ATTEMPTS, pack_numbers([item.id, item.attempts]))
        self.apply_attempts(item.id, item.attempts)

    def apply_attempts(self, id: int, attempts: int) -> None:
        """Stage how often an item has come back."""
        batch = self.records.batch
        if id not in batch.attempts:
            batch.room_bytes -= ATTEMPTS_BYTES
        batch.attempts[id] = attempts
        self.records.has_attempts = True
        if not self.dirty:
            self.mark_dirty()
        if batch.room_bytes < 0:
            self._hold_batch_size()

    def remove(self, item: Item) -> None:
        """Remove a live item."""
        log = self.log
        state = self.state
        if state.items == 0 or state.bytes < item.size:
            raise self.miscounted()
        if log is not None:
            if self._entered != self._segment.number:
                self._enter()
            tried = 0
            while not self._segment.drop(self._number, state.change + 1, item.id, item.size, item.blob):
                tried = self._begin_segment(tried)
        state.change += 1
        self.apply_remove(item.id, item.size, item.blob)

    def apply_remove(self, id: int, size: int, blob: int) -> None:
        """Count an item out, and take it from what is staged, or stage its deletion; and that of its file."""
        self._take_out(id, size, blob)
        if blob:
            self.release_blob(blob)

    def _take_out(self, id: int, size: int, blob: int) -> None:
        """As `apply_remove`, but the file stays."""
        records = self.records
        batch = records.batch
        if batch.attempts and batch.attempts.pop(id, None) is not None:
            batch.room_bytes += ATTEMPTS_BYTES
        staged: Item | None = batch.puts.pop(id, None)
        was_oldest = self.state.drop(id, size)
        if staged is not None:
            batch.room_bytes += staged.memory_bytes
        else:
            records.dead_bytes += size
            # A large item's record goes with it, so trimming has only flushed ones to look into for blobs.
            if blob:
                self.stage_deletion(id)
        if not was_oldest:
            self._remove_out_of_turn(id, size, is_staged=staged is not None)
        elif self.live.removed:
            self.live.advance()
        if not self.dirty:
            self.mark_dirty()

    def _remove_out_of_turn(self, id: int, size: int, *, is_staged: bool) -> None:
        if self.state.floor <= id < self.next_unread:
            self.live.remove(id)
            if not is_staged:
                self.records.batch.removed.append(id)
            return
        if id < self.state.floor:
            self.live.kept.discard(id)
        else:
            self.first.forget(id)
            if not is_staged:
                self.records.batch.removed_unread.add(id)
                self.compaction.note_removed(id, size)
        if not is_staged:
            self.stage_deletion(id)

    def stage_deletion(self, id: int) -> None:
        """Stage that an item has no record any more."""
        if self.log is not None:
            ops = self.records.batch.ops
            ops.append((_records.item_key(id), None))
            if self.records.has_attempts is not False:
                ops.append((attempts_key(id), None))

    def lose(self, first: int, stop: int, items: int, size: int) -> None:
        """Count out damaged or missing items, of `size` bytes, with ids from `first` up to `stop`."""
        state = self.state
        left = max(0, int(state.items) - items), max(0, int(state.bytes) - size)
        self._log(Change.LOST, pack_numbers([first, stop, *left]))
        self.apply_lose(first, stop, *left)
        self.damaged_items += max(0, items)

    def apply_lose(self, first: int, stop: int, items: int, size: int) -> None:
        """Count so many items, of so many bytes: none from id `first` up to `stop` is live any more."""
        state = self.state
        state.items, state.bytes = items, size
        if first <= self.first.id < stop:
            self.first.forget(self.first.id)
        if first == state.floor:
            state.floor = max(state.floor, stop)
            self.live.forget_below_floor()
            self.live.advance()
        elif self.live.can_list(first, stop):  # should they come back
            for id in range(first, stop):
                self._remove_out_of_turn(id, 0, is_staged=False)
        if not self.dirty:
            self.mark_dirty()

    def miscounted(self) -> JournalError:
        """Return the error that there are not as many items as are counted, and tell the operator."""
        error = DamagedError(f"{self.path} is damaged: there are not as many items as are counted")
        self.damage.tell(self, error)
        return error

    def check_whole(self) -> None:
        """Raise JournalError if all items were read, and they are not as many as are counted: damage must not
        be taken for the end of the queue."""
        if self.next_unread >= self.state.next_id and not self.live.is_whole():
            raise self.miscounted()

    def note_expiring(self, *, expiring: bool) -> None:
        """Stage whether an item may have an expiry of its own: if not, nobody need look for one. It is not
        logged, for the item with the expiry is."""
        if expiring != self.expiring:
            self.expiring = expiring
            if self.log is not None:
                self.records.batch.ops.append((EXPIRING_KEY, b"" if expiring else None))
                if not self.dirty:
                    self.mark_dirty()

    # All items at once

    def flush(self, keep: Collection[Item]) -> None:
        """Remove all items but `keep`, in a time that does not grow with the queue."""
        sizes = {item.id: item.size for item in keep}
        numbers = array.array("Q", itertools.chain.from_iterable(sizes.items()))
        if sys.byteorder == "little":
            numbers.byteswap()
        self._log(Change.DISCARD, numbers.tobytes())
        self.apply_flush(sizes)

    def apply_flush(self, sizes: dict[int, int]) -> None:
        """Remove all items but those with these ids and sizes."""
        records, live, state = self.records, self.live, self.state
        batch = records.batch
        kept_before, live.kept = live.kept, set(sizes)
        self.damaged_kept.clear()
        for id in kept_before - live.kept:
            self._delete_kept(id)
        if self.log is None:
            # all that was put is in there
            puts = batch.puts
            batch.puts = {id: puts[id] for id in sizes if id in puts}
            batch.room_bytes = UNLIMITED_BYTES
            self.writer.free(puts)
        for id in [id for id in batch.puts if id not in sizes]:
            item = batch.puts.pop(id)
            batch.room_bytes += item.memory_bytes
            if item.blob:
                self.release_blob(item.blob)
        batch.attempts = {id: attempts for id, attempts in batch.attempts.items() if id in sizes}
        records.dead_bytes += state.bytes
        self.trimming.note_flush()
        state.items = len(sizes)
        state.bytes = sum(sizes.values())
        live.set_floor(state.next_id)
        self.next_unread = state.next_id
        self.forget_ids()
        if self.delayed.items:
            for item in self.delayed.flush(batch, state.next_blob):
                if item.blob:
                    self.release_blob(item.blob)
        if not self.dirty:
            self.mark_dirty()

    def _delete_kept(self, id: int) -> None:
        """Delete a kept item, which trimming may have passed by."""
        with contextlib.suppress(JournalError, leveldb.Error, ValueError, DamagedRecordError):  # but dead
            item = self.lookup(id)
            if item is not None and item.blob:
                self.release_blob(item.blob)
        self.stage_deletion(id)

    def retire(self) -> None:
        """Remove all items, and have the journal deleted, at the next start if it was not before. Blobs that
        were begun are lost."""
        self._log(Change.RETIRE, b"")
        if self.log is not None:
            self.log.pin_end_of(self.state.life)
        self.apply_retire()
        # its directory may have vanished
        self.database.must_exist = False

    def apply_retire(self) -> None:
        """Remove all items, and mark the journal as deleted."""
        self.apply_flush({})
        for label in list(self.cursors):
            self.apply_cursor(label, [])
        if self.settings:
            self.apply_settings(b"")
        self.note_expiring(expiring=False)
        self.state.deleted = True
        self.generation += 1

    def revive(self, created_ms: int) -> None:
        """Begin anew in a retired journal: empty, with ids that go on."""
        self._log(Change.REVIVE, pack_numbers([created_ms]))
        self.apply_revive(created_ms)

    def apply_revive(self, created_ms: int) -> None:
        """Mark a retired journal as one in use, made at this time."""
        self.state.deleted = False
        self.state.created_ms = created_ms
        if not self.dirty:
            self.mark_dirty()

    # Delayed items

    def delay(self, item: Item, due_ms: int, once: Once | None = None) -> None:
        """Put a new item that is to `join` the others when it is due, and give it an id. With `once`,
        remember the id of its set by the same change."""
        self.check()
        item.id = self.state.next_blob
        key = delayed_key(due_ms, item.id)
        payload = b"" if self.log is None else key[1:] + _records.encode_item(item)
        if once is None:
            self._log(Change.DELAY, payload)
        else:
            self._log(Change.ONCE, once.encode(Change.DELAY, payload))
            self.apply_once(once)
        self.apply_delay(key, item)

    def apply_delay(self, key: bytes, item: Item) -> None:
        """Count and stage a new delayed item."""
        batch = self.records.batch
        self.state.next_blob = item.id + 1
        if self._segment.in_group:
            batch.needs_synced_log = True
        if item.blob:
            self._claim_blob(item.blob)
        self.delayed.add(batch, key, item)
        if not self.dirty:
            self.mark_dirty()
        if batch.room_bytes < 0:
            self._hold_batch_size()

    def defer(self, item: Item, due_ms: int) -> None:
        """Make a live item, given with its bytes, a delayed one with an id of such. A large one keeps its
        file. Raises JournalError while sets are refused, too: the item is written once more."""
        self.check()
        if self.log is not None and self.writer.space_is_short:
            raise JournalError("refused: there is too little space on the disk")
        if self.state.items == 0 or self.state.bytes < item.size:
            raise self.miscounted()
        deferred = _another(item, self.state.next_blob, item.enqueued_ms)
        key = delayed_key(due_ms, deferred.id)
        payload = (
            b"" if self.log is None else pack_numbers([item.id], key[1:]) + _records.encode_item(deferred)
        )
        self._log(Change.DEFER, payload)
        self.apply_defer(key, deferred, item.id)

    def apply_defer(self, key: bytes, item: Item, id: int) -> None:
        """Count the live item with this `id` out, and count and stage it as a delayed one."""
        self._take_out(id, item.size, item.blob)
        self.apply_delay(key, item)

    def join(self, key: bytes, item: Item, now_ms: int) -> Item:
        """Put a delayed item that is due behind all others, as if it were new now, and return it as such.
        `key` is its key. Not refused while nothing is taken in, for a reader that finds it lets it go."""
        if not self.delayed.can_count_out(item):
            raise self.miscounted()
        self._log(Change.JOIN, pack_numbers([now_ms], key[1:]))
        return self.apply_join(key, item, now_ms)

    def apply_join(self, key: bytes, item: Item, now_ms: int) -> Item:
        """Remove a delayed item, and put it as a new one, which is returned."""
        self.remove_delayed(key, item)
        self.delayed.note_reached(key)
        self.delayed.count_out(item)
        joined = _another(item, self.state.next_id, now_ms)
        _records.encode_item(joined)
        if joined.expires_ms:
            self.note_expiring(expiring=True)
        self.apply_put(joined)
        return joined

    def remove_delayed(self, key: bytes, item: Item) -> None:
        """Take a delayed item from what is staged, or stage the deletion of its record."""
        if self.delayed.remove(self.records.batch, key, item):
            self.compaction.note_deleted(1, item.memory_bytes)
        if not self.dirty:
            self.mark_dirty()

    def remove_flushed_delayed(self, key: bytes, item: Item) -> None:
        """Stage the deletion of a delayed item that was flushed, and of its blob."""
        self.remove_delayed(key, item)
        if item.blob:
            self.release_blob(item.blob)

    def lose_delayed(self, key: bytes, items: int, left_bytes: int) -> None:
        """Count out damaged or missing delayed items, the one at `key` among them if there is one; the others
        have `left_bytes`."""
        left = max(0, self.delayed.items - items)
        self._log(Change.LOST_DELAYED, pack_numbers([left, left_bytes], key[1:]))
        self.apply_lose_delayed(key, left, left_bytes)
        self.damaged_items += max(0, items)

    def apply_lose_delayed(self, key: bytes, items: int, size: int) -> None:
        """Count so many delayed items, of so many bytes, without the one at `key`."""
        self.delayed.set_counts(self.records.batch, key, items, size)
        if not self.dirty:
            self.mark_dirty()

    # Cursors

    def keep_cursor(self, label: bytes, place: list[int]) -> None:
        """Keep the place of a cursor, which are ids; without any the cursor ends."""
        self._log(_CURSOR, pack_numbers(place, bytes([len(label)]) + label))
        self.apply_cursor(label, place)

    def apply_cursor(self, label: bytes, place: list[int]) -> None:
        """Stage the place of a cursor."""
        if place:
            self.cursors[label] = place
        else:
            self.cursors.pop(label, None)
        if self.log is not None:
            self.records.batch.cursors.add(label)
            if not self.dirty:
                self.mark_dirty()

    # Settings

    def keep_settings(self, settings: bytes) -> None:
        """Keep what is set for the queue at run time, in place of what was; b"" is nothing."""
        self.check()
        self._log(Change.CONFIGURE, settings)
        self.apply_settings(settings)

    def apply_settings(self, settings: bytes) -> None:
        """Stage what is set for the queue at run time."""
        self.settings = settings
        if self.log is not None:
            self.records.batch.settings_changed = True
            if not self.dirty:
                self.mark_dirty()

    # Blobs

    def begin_blob(self, origin: Path | None = None) -> int:
        """Begin a blob, which belongs to no item yet, and is to be a link to `origin`; return its id."""
        self.check()
        blob = int(self.state.next_blob)
        place = b"" if origin is None else os.fsencode(os.path.relpath(origin, self.path))
        self._log(Change.BLOB, blob.to_bytes(BLOB_ID_BYTES, "big") + place)
        self.apply_begin_blob(blob)
        return blob

    def apply_begin_blob(self, blob: int) -> None:
        """Stage the marker of a blob that is begun."""
        self.state.next_blob = blob + 1
        self.blobs.begun.add(blob)
        self.records.batch.ops.append((_records.marker_key(blob), b""))
        if not self.dirty:
            self.mark_dirty()

    def abandon_blob(self, blob: int) -> None:
        """Have a blob deleted that was begun and will not be finished."""
        self.blobs.begun.discard(blob)
        self.blobs.obsolete.append((blob, self.state.change))
        if not self.state.deleted:
            self.writer.add(self)

    def _claim_blob(self, blob: int) -> None:
        """Stage that a blob belongs to an item now."""
        self.blobs.begun.discard(blob)
        self.records.batch.ops.append((_records.marker_key(blob), None))

    def release_blob(self, blob: int) -> None:
        """Stage that a blob belongs to no item any more; its file is deleted once LevelDB has that."""
        self.records.batch.ops.append((_records.marker_key(blob), b""))
        self.blobs.obsolete.append((blob, self.state.change))

    def forget_blobs(self, blobs: Collection[int]) -> None:
        """Stage that the files of blobs are deleted. It need not be logged: to delete them once more after a
        crash does no harm."""
        self.blobs.forget(blobs)
        self.records.batch.ops.extend([(_records.marker_key(blob), None) for blob in blobs])
        if not (self.dirty or self.state.deleted):
            self.mark_dirty()

    # Records, for reading.py and lookup.py

    @property
    def staged_large(self) -> list[Item]:
        """The large items that LevelDB has not got yet."""
        records = self.records
        batches = (records.batch, records.sealed)
        return [item for batch in batches if batch is not None for item in batch.items if item.blob]

    def items_from(self, start: int, stop: int = 0) -> Iterator[Item]:
        """Return the items with a record from id `start` on. LevelDB must not be closed meanwhile. With
        `stop` end before that one. Raises as `Records.items_from`, or JournalError."""
        records = self.records
        db = self.open_to_read() if start < records.stored_id else None
        return records.items_from(db, start, stop or self.state.next_id, self.live.removed)

    def staged_from(self, start: int) -> Item | None:
        """Return the first live item from id `start` on, if it is staged and that can be told at once."""
        state = self.state
        if start < state.floor:
            if self.live.kept:
                return None
            start = state.floor
        records = self.records
        if self.live.is_live(start) and not records.is_removed_unread(start):
            return records.staged(start)
        return None

    def lookup(self, id: int) -> Item | None:
        """Return the item that has this id's record, or None if there is no record. Raises as
        `Records.find_stored`, or JournalError."""
        records = self.records
        staged = records.staged(id)
        if staged is not None or id >= records.stored_id:
            return staged
        with self.database.in_use:
            return records.find_stored(self.open_to_read(), id)

    def open_to_read(self) -> Any:
        """Return LevelDB, opened. If that cannot be done, it is mended, or the journal takes in nothing until
        it can. Raises JournalError; NotReadyError if it is being mended."""
        if self.database.is_open:
            return self.database.handle
        try:
            db = self.database.open()
            self.writer.note_open(self)
            return db
        except JournalError as error:
            if self.may_be_mended(error) and self.writer.mend(self, b""):
                raise self.hold_readers() from error
            if self.failing is None:
                self.writer.suspend(self, error)
            raise

    def may_be_mended(self, error: JournalError) -> bool:
        """Whether LevelDB could not be opened for damage that mending its tables may help against."""
        return not self.damage.is_beyond_mending and self.database.may_be_mended(error)

    def hold_readers(self) -> NotReadyError:
        """Return the error for whoever would read on before `resume`."""
        self._has_paused = True
        return NotReadyError(f"{self.path} is being rid of what is damaged or has expired: try again", self)

    def resume(self) -> None:
        """Let clients go on that were paused, or held back until a batch was written."""
        if self._has_paused:
            self._has_paused = False
            self.writer.on_resume(self)
        held_back, self.held_back = self.held_back, []
        for client in held_back:
            client.release()

    @property
    def is_busy(self) -> bool:
        """Whether a thread needs the directory: to write, to mend or to compact it."""
        return self.writing or self.compaction.is_running

    # The end

    def close(self, state: bytes = b"") -> None:
        """Close LevelDB, from any thread; nothing may be being written. `state` is its `resting_state`, and
        spares the next start opening it."""
        self.database.close(state)

    def change_log(self, log: Log) -> None:
        """Log in another log from now on."""
        self._segment, self.log = log.segment, log

    @property
    def disk_bytes(self) -> int:
        """How many bytes its files take, as far as that can be told now."""
        return bytes_in(self.path, self.path / BLOBS_NAME)

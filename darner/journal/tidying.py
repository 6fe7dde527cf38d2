"""What removed items leave in LevelDB, and how its room is given back: trimming, then compaction.

Taking the oldest item writes no deletion, it moves the floor: the record below is dead. Trimming deletes dead
records along with a batch, many at once, when they outweigh what is alive or nothing else is to be written.
Deleted records take room until LevelDB has compacted the range that they are in. It is asked to do so, in a
thread, once that is worth the reading and writing.
"""

import contextlib
import itertools
from typing import Any

from darner import _records
from darner._records import State
from darner.environment.timeline import end_of, run_of
from darner.journal.batch import Batch
from darner.journal.dedup_ids import DedupIds
from darner.journal.delayed_items import Delayed
from darner.journal.layout import DEDUP_KEY, STATE_KEY_BYTES, attempts_key, delayed_key, id_of

# How much may be dead, if so much is alive, before it is deleted while other things are to be written: a
# table with both new records and deletions overlaps all tables between them.
DEAD_RECORDS = 200_000
DEAD_BYTES = 16 << 20
# How many dead records one batch deletes; and how many for each item that was put since the last time: who
# sets waits for both.
TRIM_RECORDS = 65_536
TRIM_RECORDS_PER_PUT = 2
# How much must have been deleted, if so much is alive, before a compaction is worth its reading and writing.
COMPACT_RECORDS = 200_000
COMPACT_BYTES = 8 << 20
# Where less is alive, dead or deleted records may be so many.
LEAST_RECORDS = 20_000
LEAST_BYTES = 2 << 20
# What is worth a compaction in a journal without changes: there it delays nobody.
IDLE_COMPACT_BYTES = 1 << 20


def _outweighs(state: State, records: int, size: int, most_records: int, most_bytes: int) -> bool:
    """Whether dead records are more than those alive, within bounds: so a small queue has a small directory,
    and what is alive is not written again and again for the sake of less."""
    return records > min(most_records, max(LEAST_RECORDS, state.items)) or size > min(
        most_bytes, max(LEAST_BYTES, state.bytes)
    )


class Trimming:
    """Deletes the dead records of one journal: those below its floor, from `trimmed` in its state on."""

    __slots__ = ("_blobs_below", "_dedup_ids", "_puts", "_state")

    def __init__(self, state: State, dedup_ids: DedupIds) -> None:
        self._state = state
        self._dedup_ids = dedup_ids
        # The id below which a dead record may name a blob that still exists: it was flushed, or removed
        # before this start. Other blobs go with their items.
        self._blobs_below = state.floor
        # how many items were put since the last trimming
        self._puts = 0

    def note_flush(self) -> None:
        """Note that all items were flushed, whose blobs trimming will come to."""
        self._blobs_below = self._state.next_id

    @property
    def has_dead(self) -> bool:
        """Whether there are dead records, of items or of the ids of sets."""
        return self._state.trimmed < self._state.floor or self._dedup_ids.has_dead

    def is_due(self, dead_bytes: int) -> bool:
        """Whether dead records are so many that some should be deleted, whatever else is to be written."""
        dead = self._state.floor - self._state.trimmed
        return _outweighs(self._state, dead, dead_bytes, DEAD_RECORDS, DEAD_BYTES)

    def plan(self, batch: Batch, *, at_once: bool, dead_bytes: int) -> None:
        """Say in a batch that is being sealed whether dead records are deleted with it."""
        self._puts += len(batch.puts)
        batch.dead_bytes = dead_bytes
        batch.trims = at_once or (self.is_due(dead_bytes) and self._is_worthwhile(batch))
        if batch.trims:
            self._puts = 0

    def _is_worthwhile(self, batch: Batch) -> bool:
        """Whether so much was put since the last time that as many deletions as are made at once are only a
        part of the work."""
        dead = min(TRIM_RECORDS, self._state.floor - self._state.trimmed)
        return not batch.puts or self._puts * TRIM_RECORDS_PER_PUT >= dead

    def trim(self, db: Any, write: Any, batch: Batch, *, has_attempts: bool) -> None:
        """Add to a write batch of LevelDB the deletion of some dead records, with the sealed `batch`. In a
        thread. Raises leveldb.Error."""
        state = batch.state
        trimmed, kept = state.trimmed, batch.kept
        each = batch.dead_bytes // max(1, state.floor - state.trimmed)
        start, stop = _records.item_key(state.trimmed), _records.item_key(state.floor)
        with_records = state.trimmed < self._blobs_below
        # whoever removed those that the batch deletes by itself has seen to their blobs
        deleted = {key for key, value in batch.ops if value is None} if with_records else ()
        with db.iterator(start=start, stop=stop, fill_cache=False, include_value=with_records) as found:
            # few steps for each record: its get waits for what they take of the processor
            key, count, records, size = b"", 0, 0, 0
            for entry in itertools.islice(found, TRIM_RECORDS):
                key, record = entry if with_records else (entry, b"")
                count += 1
                if len(key) != STATE_KEY_BYTES:
                    if kept and id_of(key) in kept:
                        continue
                    if with_records and key not in deleted:
                        with contextlib.suppress(ValueError):  # damaged, but dead
                            if blob := _records.blob_of(key, record):
                                write.put(_records.marker_key(blob), b"")
                                batch.obsolete_blobs.append(blob)
                    records += 1
                    size += len(record)
                write.delete(key)
        batch.trimmed_records += records
        batch.trimmed_bytes += size if with_records else records * each
        state.trimmed = id_of(key) + 1 if count == TRIM_RECORDS else state.floor
        if has_attempts:
            stop = attempts_key(state.trimmed)
            with db.iterator(start=attempts_key(trimmed), stop=stop, include_value=False) as keys:
                for key in keys:
                    if id_of(key) not in kept:
                        write.delete(key)


class Compaction:
    """Has LevelDB give back the room of deleted records.

    LevelDB does not say that a compaction failed, except to whoever writes next. So one is over when it has
    returned, and counts as successful when a batch was written after that. Else it is done once more.
    """

    __slots__ = (
        "_dedup_ids", "_delayed", "_from_id", "_last_change", "_left_bytes", "_records", "_removed_to",
        "_repeats", "_running", "_size", "_state", "is_over",
    )  # fmt: skip

    def __init__(self, state: State, delayed: Delayed, dedup_ids: DedupIds) -> None:
        self._state = state
        self._delayed = delayed
        self._dedup_ids = dedup_ids
        # what was deleted since the last compaction: from which id on, how many records and bytes; and the id
        # behind the last one that was removed out of turn
        self._from_id = state.trimmed
        self._removed_to = 0
        self._records = self._size = 0
        # the change that was the last one when `is_due` was asked last
        self._last_change = -1
        # the same four numbers, of a compaction that is not known to have succeeded
        self._running: tuple[int, int, int, int] | None = None
        # whether it has returned
        self.is_over = False
        # how many bytes are left in its range, and whether it is the second one there for that reason
        self._left_bytes = 0
        self._repeats = False

    def measure(self, db: Any) -> None:
        """Take note of what was deleted and not compacted before LevelDB was opened: nobody else knows."""
        trimmed, due = _records.item_key(self._state.trimmed), self._delayed.first_key
        ids = (DEDUP_KEY, self._dedup_ids.first_key)
        size = sum(db.approximate_sizes((_records.item_key(0), trimmed), (b"d", due), ids))
        if size >= IDLE_COMPACT_BYTES:
            self._from_id = 0
            self._size = max(self._size, size)

    def note_deleted(self, records: int, size: int) -> None:
        """Count deleted records, of `size` bytes in all."""
        self._records += records
        self._size += size

    def note_removed(self, id: int, size: int) -> None:
        """Count the record of an item that was removed out of turn, before it was read."""
        self._removed_to = max(self._removed_to, id + 1)
        self.note_deleted(1, size)

    @property
    def is_running(self) -> bool:
        """Whether LevelDB is compacting."""
        return self._running is not None and not self.is_over

    @property
    def is_wanted(self) -> bool:
        """Whether there is something to compact, if only once nothing else happens; or it is being done."""
        return self._size >= IDLE_COMPACT_BYTES or self._running is not None

    def is_due(self, *, is_short: bool) -> bool:
        """Whether so much was deleted that the room should be taken back; less will do if nothing was changed
        since this was asked last, or if free space is short."""
        is_idle = self._last_change == self._state.change
        self._last_change = self._state.change
        if self._running is not None:
            return False
        if (is_idle or is_short) and self._size >= IDLE_COMPACT_BYTES:
            return True
        return _outweighs(self._state, self._records, self._size, COMPACT_RECORDS, COMPACT_BYTES)

    def begin(self) -> tuple[int, int]:
        """Return what `run` takes: the ids between which records were deleted since the last time. No more,
        for a compaction rewrites what is alive in its range."""
        span = self._from_id, max(self._state.trimmed, self._removed_to)
        self._running = (self._from_id, self._removed_to, self._records, self._size)
        self.is_over = False
        self._from_id = self._state.trimmed
        self._records = self._size = self._removed_to = 0
        return span

    def run(self, db: Any, span: tuple[int, int], *, has_attempts: bool) -> None:
        """Have LevelDB compact a range of ids, which may take long. In a thread. Raises leveldb.Error."""
        start, stop = map(_records.item_key, span)
        db.compact_range(start=start, stop=stop)
        if has_attempts:
            db.compact_range(start=attempts_key(span[0]), stop=attempts_key(span[1]))
        at = b"d"
        for due_ms in sorted(self._delayed.records_from.values()):
            db.compact_range(start=at, stop=delayed_key(due_ms, 0))
            at = delayed_key(end_of(run_of(due_ms)), 0)
        ids = (DEDUP_KEY, self._dedup_ids.first_key)
        if self._dedup_ids.numbers:
            db.compact_range(start=ids[0], stop=ids[1])
        self._left_bytes = sum(db.approximate_sizes((start, stop), (b"d", self._delayed.first_key), ids))

    def end(self, batch: Batch) -> bool:
        """Note that `run` has returned; return whether `batch` is to be written for it, which gets what that
        takes."""
        if self._running is None:
            return False
        self.is_over = True
        self._repeats = not self._repeats and self._left_bytes >= IDLE_COMPACT_BYTES
        if self._repeats:
            # LevelDB keeps what was put and deleted before it was written out, for that is one table. It goes
            # when a deletion from another one comes to it: of a key that nobody has, at each end.
            first, last = _records.item_key(self._running[0]), _records.item_key(self._from_id)
            ends = [first, last, delayed_key(0, 0), self._delayed.first_key]
            if self._dedup_ids.numbers:
                ends += [DEDUP_KEY, self._dedup_ids.first_key]
            batch.ops += [(key + b"\0", None) for key in ends]
        return True

    def confirm(self) -> None:
        """Note that a batch was written after the compaction, so it has succeeded."""
        if self._running is not None:
            if self._repeats:
                self._from_id = min(self._from_id, self._running[0])
                self._size += self._left_bytes
            self._running, self.is_over = None, False

    def fail(self) -> None:
        """Note that what was to be compacted may still be there: it is to be compacted once more."""
        if self._running is not None:
            from_id, removed_to, records, size = self._running
            self._from_id = min(self._from_id, from_id)
            self._removed_to = max(self._removed_to, removed_to)
            self.note_deleted(records, size)
            self._running, self.is_over = None, False

"""The delayed items of one journal: counted, staged by when they are due, and found again when they are.

Their keys begin with the stamp they are due at, and so with the run of the clock that this stamp is of: those
of a run lie together, in order. Times of different runs are compared by date. Their ids are out of those of
blobs, so that none is missing among the ids of other items.
"""

import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from darner import _records
from darner._records import Item
from darner.environment.timeline import NEVER, end_of, run_of, start_of
from darner.errors import NewerFormatError
from darner.journal import leveldb
from darner.journal.batch import Batch
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.layout import delayed_key, due_ms_of
from darner.journal.records import Records
from darner.journal.snapshot import Snapshot

# Gives LevelDB, opened.
OpenDatabase = Callable[[], Any]


@dataclass
class Due:
    """What a look for due items has found: items by key, in order; those of them that were flushed; and the
    damaged records met on the way."""

    items: list[tuple[bytes, Item]] = field(default_factory=list)
    flushed: list[tuple[bytes, Item]] = field(default_factory=list)
    damaged: list[DamagedRecordError] = field(default_factory=list)


class Delayed:
    """How many delayed items there are, and where. Changes are staged in the batch that is handed in."""

    __slots__ = ("bytes", "flushed_below", "items", "next_due", "records_from")

    def __init__(self, found: Snapshot) -> None:
        self.items = found.delayed_items
        self.bytes = found.delayed_bytes
        # those with an id below this were flushed
        self.flushed_below = found.live_from
        # by run, the stamp from which on there may be records, and when the first item is due
        self.records_from = {run_of(due_ms): due_ms for due_ms in found.due_from}
        self.next_due = {run_of(due_ms): due_ms for due_ms in found.next_due}

    @property
    def first_key(self) -> bytes:
        """The key before which no delayed item lies."""
        return delayed_key(min(self.records_from.values(), default=0), 0)

    @property
    def counts(self) -> list[int]:
        """The numbers of the record that counts them."""
        return [self.items, self.bytes, min(self.records_from.values()), self.flushed_below]

    def add(self, batch: Batch, key: bytes, item: Item) -> None:
        """Count and stage a new item."""
        batch.delayed[key] = item
        insort(batch.delayed_keys, key)
        batch.delayed_changed = True
        batch.room_bytes -= item.memory_bytes
        due_ms = due_ms_of(key)
        run = run_of(due_ms)
        self.next_due[run] = min(self.next_due.get(run, due_ms), due_ms)
        self.records_from[run] = min(self.records_from.get(run, due_ms), due_ms)
        self.items += 1
        self.bytes += item.size

    def count_out(self, item: Item) -> None:
        """Count an item out. ValueError if there is none left to count out."""
        if not self.can_count_out(item):
            raise ValueError(f"delayed item {item.id} is one more than are counted")
        self.items -= 1
        self.bytes -= item.size

    def can_count_out(self, item: Item) -> bool:
        """Whether an item may be among those counted."""
        return self.items >= 1 and self.bytes >= item.size

    def remove(self, batch: Batch, key: bytes, item: Item) -> bool:
        """Stage the end of an item's record; return whether LevelDB may have it."""
        batch.delayed_changed = True
        if batch.delayed.pop(key, None) is not None:
            del batch.delayed_keys[bisect_left(batch.delayed_keys, key)]
            batch.room_bytes += item.memory_bytes
            return False
        batch.removed_delayed.add(key)
        batch.ops.append((key, None))
        return True

    def note_reached(self, key: bytes) -> None:
        """Note that no record lies before `key` in its run."""
        due_ms = due_ms_of(key)
        self.records_from[run_of(due_ms)] = due_ms

    def set_counts(self, batch: Batch, key: bytes, items: int, size: int) -> None:
        """Count so many items, of so many bytes, for the one at `key` is damaged or missing."""
        batch.removed_delayed.add(key)
        batch.ops.append((key, None))
        batch.delayed_changed = True
        self.items, self.bytes = items, size

    def flush(self, batch: Batch, next_id: int) -> list[Item]:
        """Forget all items, whose ids are below `next_id`, and return the staged ones. Records in LevelDB go
        when the items would have been due."""
        staged = list(batch.delayed.values())
        batch.room_bytes += sum(item.memory_bytes for item in staged)
        batch.delayed.clear()
        batch.delayed_keys.clear()
        self.items = self.bytes = 0
        self.flushed_below = next_id
        batch.delayed_changed = True
        return staged

    # Reading

    def find(self, batch: Batch, key: bytes, open_database: OpenDatabase | None) -> Item | None:
        """Return the item at `key`, staged or in LevelDB, if there is one. ValueError if it is damaged."""
        staged = batch.delayed.get(key)
        if staged is not None or open_database is None:
            return staged
        record = open_database().get(key, fill_cache=False)
        return None if record is None else _records.decode_item(b"i" + key[9:], record)

    def look_for_due(
        self,
        records: Records,
        open_database: OpenDatabase | None,
        now_ms: int,
        max_items: int,
        max_bytes: int,
        date_ms: Callable[[int], int],
    ) -> Due:
        """Return what is due, in order, and set `next_due` to when the first of the others are.

        `open_database` is None if LevelDB has nothing yet. It must not be closed meanwhile. `date_ms` makes
        stamps of different runs comparable. Raises leveldb.Error, ValueError or JournalError.
        """
        due = Due()
        size = 0
        until_ms = date_ms(now_ms)
        # if this fails, it is due to be looked for again
        self.next_due = {run_of(now_ms): now_ms}
        runs = {run: self._in_order(records, open_database, run, due.damaged) for run in self.records_from}
        firsts = {run: first for run, items in runs.items() if (first := next(items, None))}
        while firsts:
            first_ms, _, run = min(
                (date_ms(due_ms_of(key)), item.id, run) for run, (key, item) in firsts.items()
            )
            if first_ms > until_ms or len(due.items) + len(due.flushed) >= max_items or size >= max_bytes:
                break
            key, item = firsts.pop(run)
            (due.items if item.id >= self.flushed_below else due.flushed).append((key, item))
            size += item.memory_bytes
            if following := next(runs[run], None):
                firsts[run] = following
        for items in runs.values():
            items.close()  # while LevelDB is sure to be open
        self.next_due = {run: due_ms_of(key) for run, (key, _) in firsts.items()}
        return due

    def forget_before(self, due: Due) -> None:
        """Note where records begin, given that those of flushed items before the due ones are removed."""
        for key, _ in due.flushed + due.items[::-1]:
            self.note_reached(key)
        # of runs that have no more, only the last key tells where there is nothing any more
        with_items = self.next_due.keys() | {run_of(due_ms_of(key)) for key, _ in due.items}
        for run in self.records_from.keys() - with_items:
            if run < max(self.records_from):
                del self.records_from[run]

    def _in_order(
        self,
        records: Records,
        open_database: OpenDatabase | None,
        run: int,
        damaged: list[DamagedRecordError],
    ) -> Generator[tuple[bytes, Item], None, None]:
        """Yield the items of a run in the order they are due, flushed ones among them. Damaged records are
        put into that list."""
        batches = [records.batch] if records.sealed is None else [records.sealed, records.batch]
        removed = set().union(*(batch.removed_delayed for batch in batches))
        staged = [_staged(batch, run) for batch in batches]
        stored = self._stored(open_database, run, removed, damaged)
        last = b""
        for key, item in heapq.merge(stored, *staged, key=lambda entry: entry[0]):
            # what is being written may be in LevelDB, too
            if key != last and key not in removed:
                yield key, item
            last = key

    def _stored(
        self,
        open_database: OpenDatabase | None,
        run: int,
        removed: set[bytes],
        damaged: list[DamagedRecordError],
    ) -> Iterator[tuple[bytes, Item]]:
        if open_database is None:
            return
        start = delayed_key(self.records_from.get(run, start_of(run)), 0)
        with open_database().iterator(
            start=start, stop=delayed_key(end_of(run), 0), fill_cache=False
        ) as found:
            for key, record in found:
                try:
                    item = _records.decode_item(b"i" + key[9:], record)
                except NewerFormatError:
                    raise
                except ValueError as error:
                    if key not in removed:
                        damaged.append(DamagedRecordError(key, record, str(error)))
                else:
                    yield key, item


def _staged(batch: Batch, run: int) -> Iterator[tuple[bytes, Item]]:
    """Yield the staged items of a run with their keys, in the order they are due."""
    keys = batch.delayed_keys
    start, stop = (bisect_left(keys, delayed_key(stamp, 0)) for stamp in (start_of(run), end_of(run)))
    for key in itertools.islice(keys, start, stop):
        yield key, batch.delayed[key]


def find_runs(db: Any, due_from: int) -> tuple[list[int], list[int]]:
    """Return the stamp from which on each run of the clock may have delayed items in a LevelDB, and when the
    first of each are due. None is due before `due_from`."""
    froms, firsts = {run_of(due_from): due_from}, []
    while due_from < NEVER:
        start = delayed_key(due_from, 0)
        try:
            first = next(iter(db.iterator(start=start, stop=b"e", include_value=False)), None)
        except leveldb.Error as error:
            if not leveldb.is_damage(error):
                raise
            firsts.append(due_from)  # whoever looks then finds what is damaged
            break
        due_ms = NEVER if first is None else due_ms_of(first)
        if due_ms < NEVER:
            froms[run_of(due_ms)] = due_ms
            firsts.append(due_ms)
        due_from = end_of(run_of(due_ms))
    return list(froms.values()), firsts

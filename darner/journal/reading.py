# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""Reads the items of a journal, and does about damage what can be done.

Functions over a journal, for queues and cursors. A record may be damaged, or missing without having been
removed: then LevelDB's tables are mended in a thread, and whoever reads is told to try again (MendingError).
What cannot be mended is put aside and counted out by a change in the log, and reading goes on behind it.
"""

import contextlib
from collections.abc import Callable

from darner import _records
from darner._records import Item
from darner.errors import DamagedItemError, JournalError, MendingError
from darner.journal import leveldb
from darner.journal.blob import BlobReader
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.journal import Journal
from darner.journal.layout import delayed_key
from darner.journal.leveldb import failure

# How many damaged items may be met before others have their turn.
MAX_STRIKES = 64


def read(journal: Journal, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
    """Return the live items from id `start` on, and the id to read on from.

    Ends behind the item that reaches `max_items` or `max_bytes`, and before damage: the next call gets past
    that. `start` must be where the last call ended, or the floor, for ids found missing on the way count as
    removed. Raises JournalError.
    """
    live = journal.live
    items: list[Item] = []
    size = 0
    if journal.damaged_kept:
        item = find(journal, journal.damaged_kept[-1])
        journal.damaged_kept.pop()
        return ([] if item is None else [item]), start
    start = max(start, journal.state.floor)
    try:
        with journal.database.in_use:
            for item in journal.items_from(start):
                if item.id != start:
                    _pass_over(journal, start, item.id)
                start = item.id + 1
                if item.id in live.removed or item.id < journal.state.floor:
                    continue  # its record goes with the next batch
                items.append(item)
                size += item.memory_bytes
                if len(items) >= max_items or size >= max_bytes:
                    return items, start
        _pass_over(journal, start, journal.state.next_id)
    except (leveldb.Error, ValueError, MendingError, DamagedRecordError) as error:
        if items:  # the next call meets it
            return items, start
        if isinstance(error, MendingError):
            raise
        if not isinstance(error, DamagedRecordError):
            raise _unreadable(journal, f"items from {start} on", error, _records.item_key(start)) from error
        return items, _get_past(journal, start, error)
    return items, journal.state.next_id


def scan(journal: Journal, start: int, max_items: int, max_bytes: int) -> tuple[list[Item], int]:
    """Return items as `read` does, but from any id on that `read` has not come to yet. Nothing found missing
    is taken note of."""
    items: list[Item] = []
    size = 0
    start = max(start, journal.state.floor)
    try:
        with journal.database.in_use:
            for item in journal.items_from(start):
                items.append(item)
                size += item.memory_bytes
                start = item.id + 1
                if len(items) >= max_items or size >= max_bytes:
                    return items, start
    except (leveldb.Error, ValueError, DamagedRecordError) as error:
        if items:
            return items, start
        if not isinstance(error, DamagedRecordError):
            raise _unreadable(journal, f"items from {start} on", error, _records.item_key(start)) from error
        _count_out(journal, error)
        return items, error.id + 1
    return items, journal.state.next_id


def find(journal: Journal, id: int) -> Item | None:
    """Return the live item with this id, or None if its record is missing, or was damaged. Raises
    JournalError."""
    try:
        return journal.lookup(id)
    except (leveldb.Error, ValueError) as error:
        raise _unreadable(journal, f"item {id}", error, _records.item_key(id)) from error
    except DamagedRecordError as error:
        _count_out(journal, error)
        return None


def find_live(journal: Journal, id: int) -> Item | None:
    """Return the item with this id if it is live. Raises JournalError."""
    if not journal.live.is_live(id) or id in journal.records.removed_unread():
        return None
    return find(journal, id)


def next_live(journal: Journal, start: int) -> Item | None:
    """Return the first live item from id `start` on. Raises JournalError."""
    live = journal.live
    if start < journal.state.floor:
        for id in sorted(id for id in live.kept if id >= start):
            if (found := find_live(journal, id)) is not None:
                return found
    start = max(start, journal.state.floor)
    for _ in range(MAX_STRIKES):
        try:
            with journal.database.in_use:
                for item in journal.items_from(start):
                    if item.id not in live.removed:
                        return item
                return None
        except (leveldb.Error, ValueError) as error:
            raise _unreadable(journal, f"items from {start} on", error, _records.item_key(start)) from error
        except DamagedRecordError as error:
            _count_out(journal, error)
            start = error.id + 1
    raise journal.pause()


def kept_items(journal: Journal) -> list[Item]:
    """Return the live items below the floor, oldest first. Damaged ones are left to `read`."""
    items = []
    for id in sorted(journal.live.kept):
        try:
            item = journal.lookup(id)
        except (leveldb.Error, ValueError, DamagedRecordError):
            journal.damaged_kept.append(id)
        else:
            if item is not None:
                items.append(item)
    return items


def reload(journal: Journal, item: Item) -> Item | None:
    """Return a live item with its bytes, which are not in memory; None if they are damaged or missing, and it
    is counted out. Raises JournalError."""
    found = find(journal, item.id)
    if found is None:
        if journal.live.is_live(item.id):
            _look_over(journal, _records.item_key(item.id))
            journal.lose(item.id, item.id + 1, 1, item.size)
            journal.damage.tell_missing(journal, item.id, item.id + 1, 1)
        return None
    found = found.another()
    found.attempts = item.attempts
    return found


def open_blob(journal: Journal, item: Item) -> BlobReader:
    """Return a reader of a large item's bytes, which takes a descriptor. Raises JournalError if they cannot
    be read; DamagedItemError if they are not there, or have another size."""
    try:
        return BlobReader(journal.blobs.path_of(item.blob), item, journal.offload)
    except DamagedItemError:
        # not if the whole directory is missing
        if journal.database.exists or not journal.path.exists():
            journal.database.check_place()
        raise
    except JournalError as error:
        journal.damage.tell(journal, failure(f"item {item.id}", error))
        raise


def check_blob(journal: Journal, item: Item) -> None:
    """Raise what `open_blob` would raise."""
    open_blob(journal, item).close()


def due(
    journal: Journal, now_ms: int, max_items: int, max_bytes: int, date_ms: Callable[[int], int] = int
) -> list[tuple[bytes, Item]]:
    """Return delayed items that are due, in the order of their times, each with the key that `Journal.join`
    takes; when the first of the others is due is in `delayed.next_due` then. `date_ms` makes stamps of
    different runs of the clock comparable. Raises JournalError."""
    delayed, database = journal.delayed, journal.database
    open_database = journal.open_to_read if database.exists else None
    try:
        with database.in_use:
            found = delayed.look_for_due(
                journal.records, open_database, now_ms, max_items, max_bytes, date_ms
            )
    except (leveldb.Error, ValueError) as error:
        raise _unreadable(journal, "delayed items", error, delayed.first_key) from error
    for damaged in found.damaged:
        _count_out_delayed(journal, damaged)
    if not delayed.next_due and delayed.items != len(found.items):
        _look_over(journal, delayed.first_key)
        missing = delayed.items - len(found.items)
        journal.lose_delayed(delayed_key(0, 0), missing, sum(item.size for _, item in found.items))
        are_missing = "item is" if missing == 1 else "items are"
        text = f"{missing} delayed {are_missing} missing"
        journal.damage.tell_quarantined(journal, "not known", text, None)
    for key, item in found.flushed:
        journal.remove_flushed_delayed(key, item)
    delayed.forget_before(found)
    return found.items


# Damage


def quarantine(journal: Journal, item: Item, damage: JournalError) -> None:
    """Remove a live item whose file is damaged, and put that aside. Raises JournalError if that cannot be
    done: then nothing is removed."""
    name = str(item.id)
    aside = journal.damage
    # first: if it is met again after a kill, it is removed then
    kept = aside.put_record_aside(journal, name, _records.encode_item(item))
    with aside.putting_aside(journal, name), contextlib.suppress(FileNotFoundError):  # that was the damage
        kept = aside.quarantine.move(journal.blobs.path_of(item.blob), name)
    journal.remove(item)
    journal.damaged_items += 1
    aside.tell_quarantined(journal, name, str(damage), kept)


def recount(journal: Journal, items: int, size: int) -> None:
    """Count so many items, of so many bytes: these were found, and others were lost unseen. Raises
    JournalError."""
    lost = int(journal.state.items) - items
    if lost:
        _look_over(journal, _records.item_key(journal.state.floor))
        journal.damage.tell_quarantined(journal, "not known", f"{lost} items are missing", None)
    journal.lose(0, 0, lost, int(journal.state.bytes) - size)


def _unreadable(journal: Journal, what: str, error: Exception, key: bytes) -> JournalError:
    """Return the error that says why `what`, which begins at `key`, cannot be read. If LevelDB is damaged
    there, that is being mended."""
    if leveldb.is_damage(error) and journal.writer.mend(journal, key):
        return journal.hold_readers()
    unreadable = failure(f"cannot read {what} in {journal.path}", error)
    journal.damage.tell(journal, unreadable)
    return unreadable


def _look_over(journal: Journal, key: bytes) -> None:
    """Raise MendingError if LevelDB's tables at `key`, where something is damaged or missing, may be mended;
    return if they are as sound as they can be."""
    first, last = journal.damage.quarantine.span
    if not first <= key <= last and journal.writer.mend(journal, key):
        raise journal.hold_readers()


def _get_past(journal: Journal, start: int, damaged: DamagedRecordError) -> int:
    """Deal with a damaged record that `read` from `start` on has met first; return where to read on."""
    _look_over(journal, _records.item_key(start))
    if damaged.id > start:
        _pass_over(journal, start, damaged.id)
        return damaged.id
    _count_out(journal, damaged)
    _skip(journal, start, start + 1)
    return start + 1


def _pass_over(journal: Journal, start: int, stop: int) -> None:
    """Take note that ids have no records, from `start`, where the last read ended, up to `stop`. Raises
    MendingError if some are missing that a mended table may bring back."""
    missing = journal.live.missing_between(start, stop)
    if missing > 0:
        _look_over(journal, _records.item_key(start))
        journal.lose(start, stop, missing, _missing_bytes(journal, start, stop, missing))
        journal.damage.tell_missing(journal, start, stop, missing)
    _skip(journal, start, stop)


def _skip(journal: Journal, start: int, stop: int) -> None:
    journal.live.skip(start, stop)
    if journal.live.is_kept_unstaged and not journal.dirty:
        journal.mark_dirty()


def _missing_bytes(journal: Journal, start: int, stop: int, missing: int) -> int:
    """Return how many bytes missing items had: of rejected records it is known, of the others guessed, which
    is put right when the end of the queue is reached."""
    rejected, state = journal.damage.quarantine.rejected, journal.state
    ids = range(start, stop) if stop - start < len(rejected) else rejected
    known = [rejected[id].size for id in ids if id in rejected and start <= id < stop]
    return sum(known) + int(state.bytes) * max(0, missing - len(known)) // int(state.items)


def _count_out(journal: Journal, damaged: DamagedRecordError) -> None:
    """Count an item out whose record is damaged, and put that aside. Raises JournalError."""
    _look_over(journal, damaged.key)
    id, name = damaged.id, str(damaged.id)
    kept = journal.damage.put_aside(journal, name, damaged, journal.blobs.path_of(damaged.blob))
    journal.lose(id, id + 1, 1, damaged.size)
    journal.damage.tell_quarantined(journal, name, str(damaged), kept)


def _count_out_delayed(journal: Journal, damaged: DamagedRecordError) -> None:
    """Count a delayed item out whose record is damaged, and put that aside; if it was flushed, only delete
    its record. Raises JournalError."""
    _look_over(journal, damaged.key)
    if damaged.id < journal.delayed.flushed_below:
        journal.records.batch.removed_delayed.add(damaged.key)
        journal.records.batch.ops.append((damaged.key, None))
        return
    name = f"delayed-{damaged.id}"
    kept = journal.damage.put_aside(journal, name, damaged, journal.blobs.path_of(damaged.blob))
    journal.lose_delayed(damaged.key, 1, max(0, journal.delayed.bytes - damaged.size))
    journal.damage.tell_quarantined(journal, name, str(damaged), kept)

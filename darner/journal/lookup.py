"""Looks up items of a journal out of turn: by id, the kept ones, those that are due; and opens large ones.

Functions over a journal. Whatever is damaged or missing on the way goes to losses.py.
"""

from collections.abc import Callable

from darner import _records
from darner._records import Item
from darner.errors import DamagedItemError, JournalError
from darner.journal import leveldb, losses
from darner.journal.blob import BlobReader
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.journal import Journal
from darner.journal.layout import decode_stamp, dedup_key, delayed_key
from darner.journal.leveldb import failure

# How many damaged items may be met before others have their turn.
MAX_STRIKES = 64


def find(journal: Journal, id: int) -> Item | None:
    """Return the live item with this id, or None if its record is missing, or was damaged. Raises
    JournalError."""
    try:
        return journal.lookup(id)
    except (leveldb.Error, ValueError) as error:
        raise losses.unreadable(journal, f"item {id}", error, _records.item_key(id)) from error
    except DamagedRecordError as error:
        losses.count_out(journal, error)
        return None


def find_live(journal: Journal, id: int) -> Item | None:
    """Return the item with this id if it is live. Raises JournalError."""
    if not journal.live.is_live(id) or journal.records.is_removed_unread(id):
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
    # mostly the very first is there: to look it up takes less than to begin reading from it
    if (found := find_live(journal, start)) is not None:
        return found
    # it may be damaged, and counted out
    start = max(start, journal.state.floor)
    for _ in range(MAX_STRIKES):
        try:
            with journal.database.in_use:
                for item in journal.items_from(start):
                    if item.id not in live.removed:
                        return item
                return None
        except (leveldb.Error, ValueError) as error:
            raise losses.unreadable(
                journal, f"items from {start} on", error, _records.item_key(start)
            ) from error
        except DamagedRecordError as error:
            losses.count_out(journal, error)
            start = error.id + 1
    raise losses.pause(journal)


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
            losses.look_over(journal, _records.item_key(item.id))
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


def when_set(journal: Journal, digest: bytes) -> int:
    """Return when a set came whose id has this hash, a stamp; 0 if it is not remembered. Raises
    JournalError."""
    for generation in journal.dedup_ids.generations(digest):
        stamp = journal.dedup_ids.staged(journal.records, generation, digest)
        if not stamp and journal.database.exists:
            stamp = _stored_stamp(journal, dedup_key(generation, digest))
        if stamp:
            return stamp
    return 0


def _stored_stamp(journal: Journal, key: bytes) -> int:
    try:
        with journal.database.in_use:
            record = journal.open_to_read().get(key, fill_cache=False)
    except leveldb.Error as error:
        raise losses.unreadable(journal, "the ids of sets", error, key) from error
    try:
        return 0 if record is None else decode_stamp(record)
    except ValueError:  # then it may be stored twice, rather than never
        losses.look_over(journal, key)
        return 0


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
        raise losses.unreadable(journal, "delayed items", error, delayed.first_key) from error
    for damaged in found.damaged:
        losses.count_out_delayed(journal, damaged)
    if not delayed.next_due and delayed.items != len(found.items):
        losses.look_over(journal, delayed.first_key)
        missing = delayed.items - len(found.items)
        journal.lose_delayed(delayed_key(0, 0), missing, sum(item.size for _, item in found.items))
        are_missing = "item is" if missing == 1 else "items are"
        text = f"{missing} delayed {are_missing} missing"
        journal.damage.tell_quarantined(journal, "not known", text, None)
    for key, item in found.flushed:
        journal.remove_flushed_delayed(key, item)
    delayed.forget_before(found)
    return found.items

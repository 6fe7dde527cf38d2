# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""Reads the items of a journal in order, for queues and sweeps. lookup.py finds single ones.

Functions over a journal. Whatever is damaged or missing on the way goes to losses.py.
"""

from darner import _records
from darner._records import Item
from darner.errors import NotReadyError
from darner.journal import leveldb, losses
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.journal import Journal
from darner.journal.lookup import find


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
                    losses.pass_over(journal, start, item.id)
                start = item.id + 1
                if item.id < journal.state.floor or (live.removed and item.id in live.removed):
                    continue  # its record goes later
                items.append(item)
                size += item.memory_bytes
                if len(items) >= max_items or size >= max_bytes:
                    return items, start
        losses.pass_over(journal, start, journal.state.next_id)
    except (leveldb.Error, ValueError, NotReadyError, DamagedRecordError) as error:
        if items:  # the next call meets it
            return items, start
        if isinstance(error, NotReadyError):
            raise
        if not isinstance(error, DamagedRecordError):
            raise losses.unreadable(
                journal, f"items from {start} on", error, _records.item_key(start)
            ) from error
        return items, losses.get_past(journal, start, error)
    return items, journal.state.next_id


def scan(
    journal: Journal, start: int, max_items: int, max_bytes: int, stop: int = 0
) -> tuple[list[Item], int]:
    """Return items as `read` does, but from any id on that `read` has not come to yet, and with `stop` those
    before that one. Nothing found missing is taken note of."""
    items: list[Item] = []
    size = 0
    start = max(start, journal.state.floor)
    try:
        with journal.database.in_use:
            for item in journal.items_from(start, stop):
                items.append(item)
                size += item.memory_bytes
                start = item.id + 1
                if len(items) >= max_items or size >= max_bytes:
                    return items, start
    except (leveldb.Error, ValueError, DamagedRecordError) as error:
        if items:
            return items, start
        if not isinstance(error, DamagedRecordError):
            raise losses.unreadable(
                journal, f"items from {start} on", error, _records.item_key(start)
            ) from error
        losses.count_out(journal, error)
        return items, error.id + 1
    return items, stop or journal.state.next_id

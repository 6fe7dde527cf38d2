"""A look at the waiting items of a queue from any id on, which leaves the queue as it is: for clients that
page through it.

It goes by the ids, so that a page begins where the one before it has ended, whatever was fetched or came back
meanwhile. It finds its place at once: items in memory are searched by halves, the others by LevelDB's index.
"""

from typing import Protocol

from darner._records import Item
from darner.environment.timeline import Timeline
from darner.errors import DamagedItemError, JournalError, NotReadyError
from darner.journal import lookup, losses, reading
from darner.journal.journal import Journal
from darner.queues.item_window import READ_BYTES, READ_ITEMS, Window

# How many expired items one look gets past before other clients have their turn.
PASSED_AT_ONCE = 512

# Over how many ids a look goes without finding an item, before others have their turn, where each is looked
# at: those that are not in LevelDB, and those in it while items that were just removed are.
IDS_AT_ONCE = 4096


class Browsed(Protocol):
    """The queue that is looked at."""

    journal: Journal
    window: Window
    times: Timeline

    def has_expired(self, item: Item, now: int) -> bool:
        """Return whether an item has expired."""

    def quarantine(self, item: Item, damage: JournalError) -> None:
        """Put aside an item whose file is damaged."""


def first_from(queue: Browsed, id: int) -> Item | None:
    """Return the waiting item with the least id from `id` on; None if there is none. Raises JournalError;
    NotReadyError with the id to go on from, if more is in between than one turn is for."""
    journal, now = queue.journal, queue.times.now()
    passed, count = 0, 1
    while passed < PASSED_AT_ONCE:
        items, id = _next_items(queue, id, count)
        if not id:
            return None
        if not items:
            break
        for item in items:
            if not queue.has_expired(item, now):
                found = whole(queue, item)
                if found is not None:
                    return found
                raise pause(journal, item.id + 1)
        passed += len(items)
        count = READ_ITEMS
    raise pause(journal, id)


def _next_items(queue: Browsed, id: int, count: int) -> tuple[list[Item], int]:
    """Return up to `count` of the waiting items from `id` on, at least one unless others are to have their
    turn first; and the id to go on from, which is 0 at the end."""
    journal = queue.journal
    if id < journal.next_unread:
        item = queue.window.first_from(id)
        if item is not None:
            return [item], item.id + 1
        id = journal.next_unread
    next_id = journal.state.next_id
    if id >= next_id:
        return [], 0
    records = journal.records
    walked_from = id if records.has_removed_unread else max(id, records.stored_id)
    return reading.scan(journal, id, count, READ_BYTES, min(next_id, walked_from + IDS_AT_ONCE))


def whole(queue: Browsed, item: Item) -> Item | None:
    """Return an item that is looked at, with its bytes unless they are in a file; None if they are damaged:
    then it is put aside. JournalError if they cannot be read."""
    if item.blob:
        try:
            lookup.check_blob(queue.journal, item)
        except DamagedItemError as damage:
            queue.quarantine(item, damage)
            return None
        return item
    if item.record is not None:
        return item
    found = lookup.reload(queue.journal, item)
    if found is None:
        queue.window.remove({item.id})
    return found


def pause(journal: Journal, id: int) -> NotReadyError:
    """Return the error for a look that goes on from `id` once others had their turn."""
    error = losses.pause(journal)
    error.next_id = id
    return error

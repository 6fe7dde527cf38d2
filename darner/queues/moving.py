"""An item that goes to the end of other queues: one that has expired, or that came back too often."""

from collections import deque
from collections.abc import Sequence

from darner._records import CHUNK_BYTES, Item
from darner.errors import DarnerError, InternalError, JournalError
from darner.journal import lookup
from darner.journal.blob import read_whole
from darner.journal.journal import Journal
from darner.journal.whole_blobs import link_blob, write_blob
from darner.queues.group import all_or_none
from darner.queues.queue import Queue


def move(item: Item, home: Journal, targets: Sequence[Queue]) -> None:
    """Put an item of the queue whose journal is `home` at the end of each of `targets`, as if it were set
    now, never to expire by itself. It is not refused for its size, but may take a queue over its limits.
    Clients that wait are not served.

    Raises JournalError if one of them cannot take it, DamagedItemError if its file is damaged: then it is
    in none.
    """
    ready: deque[tuple[Queue, Item]] = deque()
    try:
        for target in targets:
            target.journal.check()
        if item.blob and targets:
            lookup.check_blob(home, item)
        for target in targets:
            ready.append((target, _copy_to(target, item, home)))
        with all_or_none(targets, 0 if item.blob else item.size):
            while ready:
                target, copy = ready[0]
                target.put(copy)
                ready.popleft()
    except JournalError:
        for target, copy in ready:
            if copy.blob:
                target.journal.abandon_blob(copy.blob)
        raise
    for target in targets:
        target.limits.discard_excess(target, item.size)


def _copy_to(target: Queue, item: Item, home: Journal) -> Item:
    """As `copy_to`; an unexpected error is one of the target, not of the queue that the item leaves."""
    try:
        return copy_to(target, item, home)
    except DarnerError:
        raise
    except Exception as error:
        target.on_fault(target, error)
        raise InternalError(error) from error


def copy_to(target: Queue, item: Item, home: Journal) -> Item:
    """Return what `target.put` takes of an item whose journal is `home`, with the bytes where `target` keeps
    such: in a file or in memory. JournalError if they cannot be put there."""
    blob, data = 0, None
    if item.blob:
        file = home.blobs.path_of(item.blob)
        if target.is_durable:
            blob = link_blob(target.journal, file)
        else:
            data = read_whole(file, item.size)
    elif target.is_durable and item.size > CHUNK_BYTES:
        blob = write_blob(target.journal, item.data or b"")
    else:
        data = item.data
    return Item(0, item.flags, 0, target.times.now(), data, blob, item.size, CHUNK_BYTES if blob else 0)

"""Items that leave a queue without being fetched: they are dropped, or moved to another queue.

An item that expired goes to `expire_to_queue`, one that came back too often to `dead_letter_queue`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from darner._records import Item
from darner.config.settings import QueueSettings
from darner.errors import DamagedItemError, JournalError
from darner.journal import lookup, losses
from darner.journal.journal import Journal
from darner.queues.counts import Counts
from darner.queues.item_window import Window
from darner.queues.reservations import Reserved


class Target(Protocol):
    """A queue that an item was moved to."""

    def serve(self) -> None:
        """Give the items that wait to the clients that wait."""


class Disposing(Protocol):
    """The queue that an item leaves."""

    journal: Journal
    window: Window
    reserved: Reserved
    counts: Counts
    on_upkeep_due: Callable[[Any], None]

    @property
    def on_move(self) -> Callable[[Any, Item, bytes], Sequence[Target] | None]:
        """Put an item into the queues of a name, and return these."""

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""


class Disposal:
    """Where items go that leave a queue without being fetched."""

    __slots__ = ("_dead_letters_to", "_expired_to", "_moved")

    def __init__(self) -> None:
        self._expired_to: bytes | None = None
        self._dead_letters_to: bytes | None = None
        # items that were moved, and whose removal the journal has refused: they count as reserved until then
        self._moved: list[Item] = []

    def configure(self, name: bytes, settings: QueueSettings) -> None:
        """Take over the settings of the queue `name`."""

        def other(target: str | None) -> bytes | None:
            # a queue that moves its items to itself would never get rid of them
            return None if target is None or target.encode() == name else target.encode()

        self._expired_to = other(settings.expire_to_queue)
        self._dead_letters_to = other(settings.dead_letter_queue)

    @property
    def needs_upkeep(self) -> bool:
        """Whether an item that was moved has still to be removed."""
        return bool(self._moved)

    def expire(self, queue: Disposing, item: Item) -> None:
        """Move or drop an item that has expired and is no longer in the window. JournalError if it has to
        stay."""
        self._dispose(queue, item, self._expired_to)
        queue.counts.expired_items += 1

    def give_up(self, queue: Disposing, item: Item) -> bool:
        """Move or drop an item that came back too often, and is no longer reserved. Returns whether that was
        possible."""
        try:
            self._dispose(queue, item, self._dead_letters_to)
        except JournalError:
            return False
        if self._dead_letters_to is None:
            queue.counts.discarded += 1
        return True

    def remove_moved(self, queue: Disposing) -> None:
        """Remove the items that were moved and could not be removed then."""
        while self._moved:
            queue.journal.require_synced_log()
            queue.close(self._moved[-1])
            self._moved.pop()

    def _dispose(self, queue: Disposing, item: Item, to: bytes | None) -> None:
        """Drop an item, or move it to the queue `to`. It is put there before it is removed here, so after a
        crash in between it is in both."""
        journal, window = queue.journal, queue.window
        # other items may be leaving already: what is served on the way may come back to this queue
        had_item_leaving, window.has_item_leaving = window.has_item_leaving, True
        try:
            if to is not None and item.record is None and not item.blob:
                whole = lookup.reload(journal, item)
                if whole is None:
                    return
                item = whole
            targets = None if to is None else queue.on_move(queue, item, to)
        except DamagedItemError as damage:
            losses.quarantine(journal, item, damage)
            return
        finally:
            window.has_item_leaving = had_item_leaving
        try:
            journal.remove(item)
        except JournalError:
            if to is None:
                raise
            # it must not be moved once more: it is there
            queue.reserved.add(item)
            self._moved.append(item)
            queue.on_upkeep_due(queue)
        for target in targets or ():
            target.serve()

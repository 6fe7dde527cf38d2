"""The data directory that is written: by the queues of a server, without one."""

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

from darner._records import CHUNK_BYTES, Item
from darner.environment.environment import Environment
from darner.environment.offload import at_once
from darner.errors import MigrationError
from darner.journal.blob import read_whole
from darner.journal.files import sync_blobs
from darner.journal.whole_blobs import write_blob
from darner.migrate.source import Place, SourceItem
from darner.printable import shown
from darner.queues.broker import Broker
from darner.queues.queue import Queue

# Larger items are a file each: a server receives them chunk by chunk.
INLINE_BYTES = CHUNK_BYTES
# After so many bytes, each item counting for some, what a server does a few times a second is done.
_BYTES_PER_TICK = 4 << 20
_BYTES_PER_ITEM = 1 << 10


class Target:
    """The queues of a data directory. A context, which takes the directory and closes it.

    An item that was put is there after a kill. No items are removed here, not even those that expire.
    """

    def __init__(self, data: Path) -> None:
        self._broker = Broker(data, Environment(lambda: int(time.time() * 1000), at_once))
        self._until_tick = _BYTES_PER_TICK

    def __enter__(self) -> Self:
        """Open all queues. Raises StartError if the directory cannot be used, or another process has it;
        MigrationError if a queue cannot be opened."""
        self._broker.open(for_migration=True)
        for name, error in self._broker.out_of_service.items():
            self._broker.close()
            raise MigrationError(f"the queue {shown(name)} cannot be opened: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.close()

    @property
    def names(self) -> list[bytes]:
        """The names of all queues."""
        return list(self._broker.queues)

    def queue(self, name: bytes) -> Queue:
        """Return a queue, made if it is not there. Raises JournalError."""
        return self._broker.queue(name)

    def items(self, queue: Queue) -> Generator[SourceItem]:
        """Yield the items that a queue has; nothing may be put meanwhile. Raises MigrationError if they
        cannot be read back."""
        journal = queue.journal
        try:
            with journal.database.in_use:
                for item in journal.items_from(1):
                    data = item.data
                    if data is None:
                        data = read_whole(journal.blobs.path_of(item.blob), item.size)
                    yield SourceItem(data, item.expires_ms, item.enqueued_ms)
        except Exception as error:
            raise MigrationError(f"the queue {shown(queue.name)} cannot be read back: {error}") from error

    def put(self, queue: Queue, item: SourceItem) -> None:
        """Put an item at the end of a queue. Raises JournalError."""
        data, expires_ms, enqueued_ms = item
        if len(data) <= INLINE_BYTES:
            queue.put(Item(0, 0, expires_ms, enqueued_ms, data))
        else:
            blob = write_blob(queue.journal, data)
            # the log may get to the disk before the file does
            sync_blobs([queue.journal.blobs.path_of(blob)])
            queue.put(Item(0, 0, expires_ms, enqueued_ms, None, blob, len(data), CHUNK_BYTES))
        self._until_tick -= len(data) + _BYTES_PER_ITEM
        if self._until_tick <= 0:
            self._until_tick = _BYTES_PER_TICK
            self._broker.storage.log.tick()
            self._broker.storage.committer.tick()

    def place_cursors(self, queue: Queue, places: Sequence[Place]) -> None:
        """Give a queue's cursors their places. Raises JournalError."""
        for label, ids in self._places(queue, places).items():
            queue.journal.keep_cursor(label, ids)

    def check_cursors(self, queue: Queue, places: Sequence[Place]) -> None:
        """Raise MigrationError unless a queue has just these cursors."""
        if queue.journal.cursors != self._places(queue, places):
            raise MigrationError(f"the cursors of the queue {shown(queue.name)} are not where they should be")

    def _places(self, queue: Queue, places: Sequence[Place]) -> dict[bytes, list[int]]:
        # ids go on by one, and nothing was removed
        first = queue.journal.state.next_id - queue.journal.state.items
        return {
            place.label: [first + place.passed, *(first + before for before in place.again)]
            for place in places
        }

"""What a client is told of its set, and when."""

from collections.abc import Collection, Sequence

from darner.journal.wal_sync import Client
from darner.queues.queue import Queue


class Receipt:
    """A set that is in the log."""

    __slots__ = ("_queues", "_stored", "_sync", "id")

    def __init__(self, queues: Sequence[Queue], stored: Collection[Queue], *, sync: bool) -> None:
        """Each of `queues` has had the item: those in `stored` have got it now, and the others before. `sync`
        is whether the set has asked for a sync."""
        self._sync = sync
        self._queues = queues
        self._stored = stored
        # what the first queue gave the item, which has no delay; 0 if it had it before
        first = next(iter(queues), None)
        self.id = first.journal.state.next_id - 1 if first is not None and first in stored else 0

    def hold(self, client: Client, slot: int) -> None:
        """Hold reply `slot` of the client until the item is synced, if the set or the settings ask for that,
        and all replies while LevelDB is slower than the sets."""
        queues = self._queues
        if queues:
            repeated = [queue for queue in queues if queue not in self._stored]
            queues[0].on_sync(queues, client, slot, asked=self._sync, repeated=repeated)
        for queue in queues:
            if queue.journal.is_backlogged:
                queue.journal.held_back.append(client)
                client.hold()

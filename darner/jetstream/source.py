"""One fetch of a queue of the cluster: a `Source` for one request."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from darner._records import Item
from darner.errors import JournalError
from darner.jetstream.delivery import Delivery
from darner.jetstream.operation import Operation, Settled
from darner.jetstream.queue import ClusterQueue, now_date_ms
from darner.journal.blob import BlobReader
from darner.queues.counts import Counts
from darner.queues.waiters import Waiter


class Fetch:
    """What one request fetches from. The first call of `take`, `reserve`, `peek` or `peek_from` asks the
    cluster and raises NotReadyError; the next one has the answer."""

    __slots__ = (
        "_asked", "_has_disconnected", "_offered", "_prepare", "_queue", "name", "takes",
    )  # fmt: skip

    def __init__(
        self,
        queue: ClusterQueue,
        *,
        takes: bool,
        has_disconnected: Callable[[], bool],
        prepare: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """`prepare` makes the queue of a client that subscribes."""
        self._queue = queue
        self._prepare = prepare
        self.name = queue.name
        self.takes = takes
        self._has_disconnected = has_disconnected
        # what the cluster was asked for
        self._asked: Operation[Item | None] | None = None
        # an item that has come for a client that waits
        self._offered: Delivery | None = None

    @property
    def counts(self) -> Counts:
        """What has happened to the queue, as far as through this darner."""
        return self._queue.counts

    # Fetching

    def _answer(self, ask: Callable[[], Coroutine[Any, Any, Item | None]]) -> Item | None:
        if self._asked is None:
            self._asked = Operation(ask())
        asked = self._asked
        if asked.is_done:
            self._asked = None
        return asked.result()

    def take(self) -> Item | None:
        """Return the oldest item, which the cluster has removed for good; None if there is none."""
        return self._answer(self._take)

    async def _take(self) -> Item | None:
        delivery = await self._next()
        return None if delivery is None else await self._queue.take(delivery)

    def reserve(self) -> Item | None:
        """Return the oldest item, which is held until `close` or `abort`; None if there is none."""
        if self._offered is not None:
            delivery, self._offered = self._offered, None
            return self._queue.reserve(delivery)
        item = self._answer(self._reserve)
        if item is not None:
            self._queue.hand_over(item)
        return item

    async def _reserve(self) -> Item | None:
        delivery = await self._next()
        if delivery is None:
            return None
        delivery.is_abandoned = self._has_disconnected
        return self._queue.reserve(delivery)

    async def _next(self) -> Delivery | None:
        """Return the next item that a client is to get."""
        if self._offered is not None:
            delivery, self._offered = self._offered, None
            return delivery
        if self._prepare is not None:
            await self._prepare()
        while True:
            found = await self._queue.next()
            if found is None:
                return None
            if self._has_disconnected():
                self._queue.give_back(found)
                return None
            if await self._queue.admit(found):
                return found

    def peek(self) -> Item | None:
        """Return the oldest item and leave it there; None if there is none."""
        if self._offered is not None:
            delivery, self._offered = self._offered, None
            return delivery.copy()
        return self._answer(self._queue.peek)

    def peek_from(self, id: int) -> Item | None:
        """Return the oldest item from an id on and leave it there; None if there is none."""
        return self._answer(lambda: self._queue.peek(id))

    # What becomes of an item

    def is_reserved(self, item: Item) -> bool:
        """Return whether the client still holds an item."""
        return self._queue.is_reserved(item)

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""
        self._queue.close(item)

    def abort(self, item: Item) -> Operation[None] | None:
        """Put a reserved item back at the head; returns what moves it if it has come back too often."""
        return self._queue.abort(item)

    def give_back(self, item: Item) -> None:
        """Put a reserved item back, of which nothing was sent."""
        self._queue.abort(item)

    def defer(self, item: Item, delay_ms: int) -> Operation[None] | Settled:
        """Put a reserved item back so that nobody gets it for `delay_ms`; returns what moves it if it has
        come back too often."""
        return self._queue.defer(item, delay_ms)

    def begin_return(self) -> Settled:
        """Do nothing: items go back in their order, whatever that of the calls is."""
        return Settled()

    def end_return(self) -> None:
        """Do nothing."""

    def open_blob(self, item: Item) -> BlobReader:
        """Raise JournalError: no item is in a file here."""
        raise JournalError(f"item {item.id} has no file")

    def quarantine(self, item: Item, damage: JournalError) -> None:  # noqa: ARG002
        """Raise JournalError: the cluster sees to damage."""
        raise damage

    def left_ms(self, item: Item) -> int | None:
        """Return in how many ms an item expires by itself; None if it does not."""
        return max(0, item.expires_ms - now_date_ms()) if item.expires_ms else None

    def waited_ms(self, item: Item) -> int:
        """Return how many ms ago an item was set."""
        return max(0, now_date_ms() - item.enqueued_ms)

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have a client served when there is an item."""
        waiter.sources[self] = None
        self._queue.line.join(waiter, self)

    def leave(self, waiter: Waiter) -> None:
        """Have a client wait no longer."""
        waiter.sources.pop(self, None)
        self._queue.line.leave(waiter)

    def serve(self) -> None:
        """Do nothing: the cluster is asked for each client that waits."""

    def offer(self, delivery: Delivery) -> None:
        """Have the next fetch return this item, which has come for a client that waits."""
        self._offered = delivery

"""Reserved items of the async client, and the connections that hold them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from darner.client.async_connection import AsyncConnection, time_in
from darner.client.async_pool import AsyncPool
from darner.client.codecs import Codec
from darner.client.errors import ClientError, ConnectionLostError
from darner.client.protocol import Value
from darner.client.reservation import (
    Held,
    Outcomes,
    Reserved,
    aborting_all,
    closing_all,
    in_parts,
    outcomes_of,
    raise_first,
)


class AsyncHold(Held):
    """What is reserved on one connection, which goes back to its pool when all of it has ended.

    Items may be ended by several tasks.
    """

    def __init__(self, pool: AsyncPool, connection: AsyncConnection, timeout: float) -> None:
        super().__init__()
        self.pool = pool
        self._connection = connection
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def end(self, requests: Sequence[bytes]) -> Outcomes:
        """Send the requests that end so many items; return for each None or its error."""
        outcomes: list[ClientError | None] = []
        try:
            async with self._lock:
                for part in in_parts(requests):
                    outcomes += outcomes_of(await self._connection.ask_many(part, time_in(self._timeout)))
        except ConnectionLostError as error:
            outcomes += [error] * (len(requests) - len(outcomes))
        finally:
            # What has no outcome, as the task was cancelled, goes back at the latest when the connection is
            # closed.
            if self.ended(len(requests), outcomes):
                self._release()
        return outcomes

    def _release(self) -> None:
        if self.is_sound:
            self.pool.give(self._connection)
        else:
            self.pool.discard(self._connection)


class AsyncReservation(Reserved):
    """An item that is reserved for this client until it is closed, aborted or retried: as Reservation."""

    __slots__ = ("hold",)

    def __init__(self, value: Value, queue: bytes, hold: AsyncHold, codec: Codec | None) -> None:
        super().__init__(value, queue, str(hold.pool.address), codec)
        self.hold = hold
        hold.count += 1

    async def close(self) -> None:
        """Remove the item: it is done. Errors as for `Reservation.close`."""
        raise_first(await self.hold.end([self.closing()]))

    async def abort(self) -> None:
        """Put the item back at the head of its queue; errors as for `close`, though it has gone back then."""
        raise_first(await self.hold.end([self.aborting()]))

    async def retry(self, delay: float = 0) -> None:
        """Put the item back: it is out of sight for `delay` seconds, then joins the end of its queue."""
        raise_first(await self.hold.end([self.aborting(delay)]))


class AsyncReservingMany:
    """The context of `AsyncClient.reserve_many`: fetches when it is entered, ends items when it is left."""

    __slots__ = ("_fetch", "_items")

    def __init__(self, fetch: Callable[[], Awaitable[list[AsyncReservation]]]) -> None:
        self._fetch = fetch
        self._items: list[AsyncReservation] = []

    async def __aenter__(self) -> list[AsyncReservation]:
        """Fetch, and return the reservations; none if nothing came in time."""
        self._items = await self._fetch()
        return self._items

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the items that have not ended, or put them back after an exception or a cancellation.

        To put them back never fails: if the server does not do it, or the task is cancelled once more, the
        connection is closed, and that does.
        """
        requests = closing_all(self._items) if kind is None else aborting_all(self._items)
        if requests:
            outcomes = await self._items[0].hold.end(requests)
            if kind is None:
                raise_first(outcomes)


class AsyncReserving:
    """The context of `AsyncClient.reserve`: as AsyncReservingMany, of one item."""

    __slots__ = ("_many",)

    def __init__(self, fetch: Callable[[], Awaitable[list[AsyncReservation]]]) -> None:
        self._many = AsyncReservingMany(fetch)

    async def __aenter__(self) -> AsyncReservation | None:
        """Fetch, and return the reservation; None if nothing came in time."""
        items = await self._many.__aenter__()
        return items[0] if items else None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the item if it has not ended, or put it back after an exception or a cancellation."""
        await self._many.__aexit__(kind, error, trace)

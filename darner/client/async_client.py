"""The async client: the sync one with `await`, on asyncio or uvloop."""

import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from darner.client import async_fetching, async_storing, codecs, protocol, stats, url
from darner.client.async_connection import time_in
from darner.client.async_pool import AsyncPool
from darner.client.async_reserving import AsyncHold, AsyncReservation, AsyncReserving, AsyncReservingMany
from darner.client.async_servers import AsyncServers
from darner.client.codecs import Codec
from darner.client.errors import BadRequestError, PutManyError
from darner.client.gets import OPEN, PEEK, Pages
from darner.client.item import Item
from darner.client.protocol import DELETED, END, OK, STORED, Reply, Setting
from darner.client.puts import put_request, put_requests
from darner.client.stats import QueueStats, ServerStats

Queue = str | bytes
Queues = str | bytes | Sequence[str | bytes]


class AsyncClient:
    """A client of one darner server, or of a fleet of them, for asyncio::

        async with AsyncClient("darner://127.0.0.1:22133") as client:
            await client.put("work", b"hello")
            async with client.reserve("work", timeout=5) as item:
                if item is not None:
                    print(item.value)

    Arguments, methods, errors, and what is asked again, are those of `Client`. Besides:

    **Tasks** may share a client, on one event loop; in a child after a fork, on one of its own. If all
    `pool_size` connections are in use, tasks get one in the order in which they came.

    **Cancellation**, by `asyncio.timeout` or otherwise, of a call that waits for a reply closes its
    connection, and what became of the request is unknown, as after ConnectionLostError. A `reserve` that is
    cancelled holds nothing; a `get` that is cancelled may lose an item.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "darner://127.0.0.1",
        *,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        codec: Codec | str | None = None,
        pool_size: int = 32,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """All as for `Client`. Need not be called on an event loop."""
        self._codec = codecs.find(codec)
        self._servers = AsyncServers(
            AsyncPool,
            url.parse_all(servers),
            timeout=timeout,
            connect_timeout=connect_timeout,
            pool_size=pool_size,
            tls=tls,
        )

    async def put(
        self,
        queue: Queue,
        value: Any,
        *,
        delay: float = 0,
        expire: float = 0,
        id: str | bytes | None = None,
        sync: bool = False,
    ) -> None:
        """Put a value on a queue, as `Client.put`.

        Asked again if the connection is lost: only with an `id`.
        """
        request = put_request(self._codec, queue, value, delay=delay, expire=expire, id=id, sync=sync)
        if id is None:
            reply = await self._servers.ask_one(request)
        else:
            reply = await self._servers.ask_again(self._servers.home(protocol.item_id(id)), request)
        protocol.check(reply, STORED)

    async def put_many(
        self,
        queue: Queue,
        values: Iterable[Any],
        *,
        delay: float = 0,
        expire: float = 0,
        ids: Iterable[str | bytes] | None = None,
        sync: bool = False,
    ) -> None:
        """Put many values on a queue, in order, in a pipeline, as `Client.put_many`.

        PutManyError if not all are stored for sure. Asked again if the connection is lost: only with `ids`.
        """
        requests, names = put_requests(
            self._codec, queue, values, delay=delay, expire=expire, ids=ids, sync=sync
        )
        if names is None:
            outcomes = await async_storing.put_anywhere(self._servers, requests)
        else:
            outcomes = await async_storing.put_at_home(self._servers, requests, names)
        if any(outcomes):
            raise PutManyError(outcomes)

    async def get(self, queue: Queues, timeout: float = 0) -> Any:  # noqa: ASYNC109  # as of Client
        """Take the next item off a queue, or off the first of several that has one, as `Client.get`.

        Returns its value; None if there is none for `timeout` seconds. At most once: the item is lost if this
        process dies, the task is cancelled, or the connection is lost; so it is not asked again.
        """
        found = await async_fetching.fetch(self._servers, protocol.source_keys(queue), b"", timeout)
        if found is None:
            return None
        found.pool.give(found.connection)
        return codecs.decode(self._codec, found.value.data, found.value.flags)

    async def peek(self, queue: Queues) -> Item | None:
        """Return the item at the head of a queue, as `Client.peek`. Asked again if the connection is lost."""
        keys = protocol.source_keys(queue)
        request = protocol.get_line(keys, PEEK)
        tour = self._servers.tour(is_harmless=True)
        for pool in tour:
            with tour:
                reply = protocol.check(await self._servers.ask_again(pool, request), END)
                if reply.values:
                    value = reply.values[0]
                    return Item(value, protocol.queue_of(value, keys), str(pool.address), self._codec)
        tour.check()
        return None

    async def browse(self, queue: Queue, start: int = 1, page: int = 100) -> AsyncIterator[Item]:
        """Give the items that wait in a queue, in order, from the id `start` on, as `Client.browse`.

        Asked again if the connection is lost.
        """
        key = protocol.source_key(queue)
        for pool in self._servers.pools:
            async for value in async_fetching.browse(self._servers, pool, Pages(key, start, page)):
                yield Item(value, key, str(pool.address), self._codec)

    def reserve(self, queue: Queues, timeout: float = 0) -> AsyncReserving:
        """Reserve the next item of a queue, or of several, in an `async with` statement: `Client.reserve`.

        The statement gives the reservation, or None if nothing came within `timeout` seconds. At its end the
        item is closed; after an exception or a cancellation it is aborted, and is back when that goes on.
        """
        return AsyncReserving(partial(self._reserve, queue, 1, timeout))

    def reserve_many(self, queue: Queues, count: int, timeout: float = 0) -> AsyncReservingMany:
        """Reserve up to `count` items, in an `async with` statement, as `Client.reserve_many`."""
        if count < 1:
            raise BadRequestError("count is at least 1")
        return AsyncReservingMany(partial(self._reserve, queue, count, timeout))

    async def queues(self) -> dict[str, QueueStats]:
        """Return the figures of each queue by name; of a fleet, added up. Asked again as `stats`."""
        replies = await self._figures(protocol.QUEUE_STATS)
        return stats.merged_queues([stats.queue_stats(reply.stats) for reply in replies])

    async def stats(self) -> ServerStats:
        """Return the figures of the server; of a fleet, added up. Asked again if the connection is lost."""
        replies = await self._figures(protocol.STATS)
        return stats.merged_servers([stats.server_stats(reply.stats) for reply in replies])

    async def figures(self) -> tuple[ServerStats, dict[str, QueueStats]]:
        """Return what `stats` and `queues` do, at one request where the server lists its queues in `stats`.

        Asked again as `stats`.
        """
        found = [stats.both(reply.stats) for reply in await self._figures(protocol.STATS)]
        servers, queues = zip(*found, strict=True)
        if all(queues):
            return stats.merged_servers(servers), stats.merged_queues(queues)
        return stats.merged_servers(servers), await self.queues()

    async def version(self) -> str:
        """Return the version of the server; of a fleet, the lowest. Asked again as `stats`."""
        servers = self._servers
        replies = await servers.ask_all(lambda pool: servers.ask_again(pool, protocol.VERSION))
        return min(map(protocol.version_of, replies))

    async def flush(self, queue: Queue) -> None:
        """Discard what waits in a queue, on all servers. Not asked again: what came since could go, too."""
        await self._ask_all(protocol.flush_line(protocol.source_key(queue)), END)

    async def delete(self, queue: Queue) -> None:
        """Drop a queue, or `<queue>/cursor=<name>`, on all servers. Not asked again, as `flush`."""
        await self._ask_all(protocol.delete_line(protocol.source_key(queue)), DELETED)

    async def configure(self, queue: Queue, **settings: Setting) -> None:
        """Change settings of a queue at run time, on all servers, as `Client.configure`."""
        request = protocol.configure_line(protocol.queue_key(queue), settings)

        async def ask(pool: AsyncPool) -> Reply:
            return protocol.check(await self._servers.ask_again(pool, request), OK)

        await self._servers.ask_all(ask)

    async def status(self, status: str | None = None) -> str:
        """Set or ask for the status of all servers, and return it, as `Client.status`."""
        if status is not None:
            await self._ask_all(protocol.status_line(status), END)
            return status
        replies = await self._ask_all(protocol.status_line(None), *protocol.STATUS_REPLIES)
        return protocol.least_status(replies)

    async def close(self) -> None:
        """Close all connections. Those that hold reservations are closed when these end."""
        self._servers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _reserve(self, queue: Queues, count: int, wait: float) -> list[AsyncReservation]:
        keys = protocol.source_keys(queue)
        first = await async_fetching.fetch(self._servers, keys, OPEN, wait)
        if first is None:
            return []
        try:
            values = await async_fetching.fetch_more(self._servers, first, keys, count)
            hold = AsyncHold(first.pool, first.connection, self._servers.timeout)
            return [
                AsyncReservation(value, protocol.queue_of(value, keys), hold, self._codec) for value in values
            ]
        except BaseException:
            first.pool.discard(first.connection)
            raise

    async def _figures(self, request: bytes) -> list[Reply]:
        async def ask(pool: AsyncPool) -> Reply:
            return protocol.check(await self._servers.ask_again(pool, request), END)

        return await self._servers.ask_all(ask)

    async def _ask_all(self, request: bytes, *expected: bytes) -> list[Reply]:
        async def ask(pool: AsyncPool) -> Reply:
            return protocol.check(await pool.ask(request, time_in(self._servers.timeout)), *expected)

        return await self._servers.ask_all(ask)

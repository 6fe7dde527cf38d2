"""Fetching an item from one server or a fleet, by `get` or `get/open`, in the async client."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from darner.client import protocol
from darner.client.async_connection import AsyncConnection, time_in
from darner.client.async_pool import AsyncPool
from darner.client.async_servers import AsyncServers
from darner.client.async_waiting import wait_at
from darner.client.gets import OPEN, ROUND_S, More, Pages
from darner.client.protocol import Value


@dataclass(slots=True)
class AsyncFetched:
    """An item, and the connection that gave it, which is to be given back."""

    value: Value
    pool: AsyncPool
    connection: AsyncConnection


async def fetch(
    servers: AsyncServers, keys: Sequence[bytes], options: bytes, wait: float
) -> AsyncFetched | None:
    """Fetch an item from the first of the queues that has one, or wait `wait` seconds for one.

    Of a fleet, and of lost connections, the same holds as for `fetching.fetch`.
    """
    if servers.only is not None:
        return await _fetch_from(servers.only, keys, options, time_in(servers.timeout), wait)
    until = time.monotonic() + wait
    while True:
        found, asked = await _ask_each(servers, keys, options)
        left = until - time.monotonic()
        if found is not None or left <= 0:
            return found
        await wait_at(servers, asked, keys, min(left, ROUND_S))


async def _fetch_from(
    pool: AsyncPool, keys: Sequence[bytes], options: bytes, deadline: float, wait: float = 0
) -> AsyncFetched | None:
    """Fetch an item from one server; None if there is none."""
    request = protocol.get_line(keys, options, protocol.milliseconds(wait))
    reply, connection = await pool.ask_and_keep(request, deadline, wait)
    if reply.values:
        return AsyncFetched(reply.values[0], pool, connection)
    pool.give(connection)
    protocol.check(reply, protocol.END)
    return None


async def _ask_each(
    servers: AsyncServers, keys: Sequence[bytes], options: bytes
) -> tuple[AsyncFetched | None, list[AsyncPool]]:
    """Fetch from the first server that has an item; also returns the servers that have none."""
    asked: list[AsyncPool] = []
    deadline = time_in(servers.timeout)
    tour = servers.tour(is_harmless=options == OPEN)
    for pool in tour:
        with tour:
            found = await _fetch_from(pool, keys, options, deadline)
            if found is not None:
                return found, asked
            asked.append(pool)
    tour.check()
    return None, asked


async def fetch_more(
    servers: AsyncServers, first: AsyncFetched, keys: Sequence[bytes], count: int
) -> list[Value]:
    """Reserve up to `count` items, the first among them, on its connection, as More says.

    If the connection is lost, all of them go back, and ConnectionLostError is raised.
    """
    more = More(keys, first.value, count)
    while requests := more.requests():
        more.took(await first.connection.ask_many(requests, time_in(servers.timeout)))
    return more.values


async def browse(servers: AsyncServers, pool: AsyncPool, pages: Pages) -> AsyncIterator[Value]:
    """Give the items of one server's pages. A page is asked for again if its connection is lost."""
    while not pages.is_over:
        for value in pages.took(await servers.ask_many_again(pool, pages.requests())):
            yield value

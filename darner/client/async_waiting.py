"""Waiting for an item at several servers at once, in the async client."""

import asyncio
from collections.abc import Sequence

from darner.client import protocol
from darner.client.async_connection import time_in
from darner.client.async_pool import AsyncPool
from darner.client.async_servers import AsyncServers
from darner.client.errors import ConnectionFailedError, ConnectionLostError, NoFreeConnectionError
from darner.client.gets import PEEK


async def wait_at(
    servers: AsyncServers, pools: Sequence[AsyncPool], keys: Sequence[bytes], wait: float
) -> None:
    """Wait until one of these servers has an item in one of the queues, or for `wait` seconds.

    Nothing is taken, for each is asked to peek. So whoever fetches then may find that another was faster.
    """
    request = protocol.get_line(keys, PEEK, protocol.milliseconds(wait))
    waiting = {asyncio.create_task(_has_item(servers, pool, request, wait)) for pool in pools}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            found = [task.result() for task in done]
            if any(found):
                return
    finally:
        # A peek cannot be called off: to cancel one closes its connection.
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _has_item(servers: AsyncServers, pool: AsyncPool, request: bytes, wait: float) -> bool:
    """Return whether a server has an item in time; False, too, if it cannot be asked."""
    deadline = time_in(servers.timeout)
    try:
        connection = await pool.take(deadline)
        try:
            await connection.send([request], 1, deadline)
            reply = await connection.read_if_short(deadline + wait)
        finally:
            # closes it if it has still to reply
            pool.give(connection)
    except NoFreeConnectionError:
        raise
    except (ConnectionFailedError, ConnectionLostError):
        servers.failed(pool)
        return False
    # a part of a reply is one of an item, of which the rest is not wanted
    return reply is None or bool(reply.values)

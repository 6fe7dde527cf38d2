"""Waiting for an item at several servers at once, in the sync client."""

import selectors
import time
from collections.abc import Sequence

from darner.client import protocol
from darner.client.connection import Connection
from darner.client.errors import ConnectionFailedError, ConnectionLostError, NoFreeConnectionError
from darner.client.gets import PEEK
from darner.client.pool import Pool
from darner.client.servers import Servers


def wait_at(servers: Servers, pools: Sequence[Pool], keys: Sequence[bytes], wait: float) -> None:
    """Wait until one of these servers has an item in one of the queues, or for `wait` seconds.

    Nothing is taken, for each is asked to peek. So whoever fetches then may find that another was faster.
    """
    deadline = time.monotonic() + wait + servers.timeout
    request = protocol.get_line(keys, PEEK, protocol.milliseconds(wait))
    waiting: dict[Connection, Pool] = {}
    try:
        with selectors.DefaultSelector() as selector:
            for pool in pools:
                connection = _ask(servers, pool, request, deadline)
                if connection is not None:
                    waiting[connection] = pool
                    selector.register(connection, selectors.EVENT_READ, connection)
            while waiting:
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    for pool in waiting.values():
                        servers.failed(pool)
                    return
                for key, _ in ready:
                    if _has_item(servers, waiting, key.data):
                        return
                    if key.data not in waiting:
                        selector.unregister(key.data)
    finally:
        # These servers have still to reply, and a peek cannot be called off: the reply would be taken for
        # that to the next request.
        for connection, pool in waiting.items():
            pool.discard(connection)


def _ask(servers: Servers, pool: Pool, request: bytes, deadline: float) -> Connection | None:
    """Send a request, and return the connection that waits for the reply; None if there is no server."""
    try:
        connection = pool.take(deadline)
    except NoFreeConnectionError:
        raise
    except ConnectionFailedError:
        servers.failed(pool)
        return None
    try:
        connection.send([request], deadline)
    except ConnectionLostError:
        pool.discard(connection)
        servers.failed(pool)
        return None
    return connection


def _has_item(servers: Servers, waiting: dict[Connection, Pool], connection: Connection) -> bool:
    """Receive from a connection, which waits no longer if its reply is whole; return if there is an item."""
    pool = waiting[connection]
    try:
        reply, has_begun = connection.receive()
    except ConnectionLostError:
        del waiting[connection]
        pool.discard(connection)
        servers.failed(pool)
        return False
    if reply is None:
        return has_begun  # a part of an item, of which the rest is not wanted
    del waiting[connection]
    pool.give(connection)
    return bool(reply.values)

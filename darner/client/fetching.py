"""Fetching an item from one server or a fleet, by `get` or `get/open`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from darner.client import protocol
from darner.client.connection import Connection
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    NoFreeConnectionError,
    ServerFailedError,
)
from darner.client.pool import Pool
from darner.client.protocol import Reply, Value
from darner.client.servers import Servers
from darner.client.waiting import wait_at
from darner.client.windows import GetWindow

OPEN = b"/open"
PEEK = b"/peek"
# A wait at a fleet is made of rounds of so many seconds: after each, servers that are back are asked, too.
_ROUND_S = 5.0


@dataclass(slots=True)
class Fetched:
    """An item, and the connection that gave it, which is to be given back."""

    value: Value
    pool: Pool
    connection: Connection


def fetch(servers: Servers, keys: Sequence[bytes], options: bytes, wait: float) -> Fetched | None:
    """Fetch an item from the first of the queues that has one, or wait `wait` seconds for one.

    Of a fleet each server is asked, another one first each time, then all are waited for at once. Raises the
    error of the last server only if no server could be asked. A connection that is lost during a plain `get`
    is always an error: an item may be lost with it.
    """
    if servers.only is not None:
        return fetch_from(servers.only, keys, options, servers.timeout, wait)
    until = time.monotonic() + wait
    while True:
        found, asked = _ask_each(servers, keys, options)
        left = until - time.monotonic()
        if found is not None or left <= 0:
            return found
        wait_at(servers, asked, keys, min(left, _ROUND_S))


def fetch_from(
    pool: Pool, keys: Sequence[bytes], options: bytes, timeout: float, wait: float = 0
) -> Fetched | None:
    """Fetch an item from one server; None if there is none."""
    request = protocol.get_line(keys, options, protocol.milliseconds(wait) if wait else 0)
    reply, connection = pool.ask_and_keep(request, timeout, wait)
    if reply.values:
        return Fetched(reply.values[0], pool, connection)
    pool.give(connection)
    protocol.check(reply, protocol.END)
    return None


def _ask_each(servers: Servers, keys: Sequence[bytes], options: bytes) -> tuple[Fetched | None, list[Pool]]:
    """Fetch from the first server that has an item; also returns the servers that have none."""
    asked: list[Pool] = []
    failure: ClientError | None = None
    deadline = time.monotonic() + servers.timeout
    for pool in servers.in_turn():
        try:
            found = fetch_from(pool, keys, options, deadline - time.monotonic())
        except (NoFreeConnectionError, ServerFailedError) as error:
            failure = error  # another server may do better
            continue
        except ConnectionFailedError as error:
            servers.failed(pool)
            failure = error
            continue
        except ConnectionLostError as error:
            servers.failed(pool)
            if options != OPEN:
                raise
            failure = error  # what it had reserved goes back
            continue
        servers.reached(pool)
        if found is not None:
            return found, asked
        asked.append(pool)
    if not asked and failure is not None:
        raise failure
    return None, asked


def fetch_more(first: Fetched, keys: Sequence[bytes], count: int, timeout: float) -> list[Value]:
    """Reserve up to `count` items, the first among them, on its connection; fewer if there are no more.

    `max_open_reads` of the queue bounds them, too, and so do 64 MiB of data. If the connection is lost, all
    of them go back, and ConnectionLostError is raised.
    """
    request = protocol.get_line(keys, OPEN)
    values = [first.value]
    window = GetWindow(len(request))
    window.took(values)
    while len(values) < count and window.has_room:
        asked = window.size(count - len(values))
        replies = first.connection.ask_many([request] * asked, timeout)
        found = [value for reply in replies for value in reply.values]
        values += found
        window.took(found)
        # there are no more, no more may be reserved, or the server fails: what there is can be worked on
        if len(found) < asked:
            break
    return values


def browse(servers: Servers, pool: Pool, key: bytes, start: int, page: int) -> Iterator[Value]:
    """Give the items that wait in a queue of one server, in order, from the id `start` on; none is taken.

    A page is asked for at once, and again if its connection is lost. The ids of its items are guessed, as
    those next to each other; where many are missing, pages become small.
    """
    guessed = 1
    while True:
        lines = [protocol.browse_line(key, id) for id in range(start, start + guessed)]
        window = GetWindow(len(lines[-1]))
        replies = servers.again(partial(_page, pool, lines))
        values = []
        for reply in replies:
            protocol.check(reply, protocol.END)
            values += [value for value in reply.values if protocol.item_number(value.token) >= start]
            if values:
                start = protocol.item_number(values[-1].token) + 1
        yield from values
        if not replies[-1].values:
            return
        window.took(values)
        # twice as many where at least half of the guesses were right
        guessed = min(window.size(guessed * 2 if 2 * len(values) > guessed else guessed // 2 or 1), page)


def _page(pool: Pool, lines: Sequence[bytes], left: float) -> list[Reply]:
    return pool.ask_many(lines, left)

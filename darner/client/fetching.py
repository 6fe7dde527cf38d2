"""Fetching an item from one server or a fleet, by `get` or `get/open`, in the sync client."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from darner.client import protocol
from darner.client.connection import Connection
from darner.client.gets import OPEN, ROUND_S, More, Pages
from darner.client.pool import Pool
from darner.client.protocol import Value
from darner.client.servers import Servers
from darner.client.waiting import wait_at


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
    is always an error: an item may be lost with it. What was reserved on it goes back.
    """
    if servers.only is not None:
        return fetch_from(servers.only, keys, options, servers.timeout, wait)
    until = time.monotonic() + wait
    while True:
        found, asked = _ask_each(servers, keys, options)
        left = until - time.monotonic()
        if found is not None or left <= 0:
            return found
        wait_at(servers, asked, keys, min(left, ROUND_S))


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


def take(pool: Pool, request: bytes, timeout: float) -> Value | None:
    """Take an item from one server by this `get`; None if there is none."""
    reply = pool.ask(request, timeout)
    if reply.values:
        return reply.values[0]
    protocol.check(reply, protocol.END)
    return None


def _ask_each(servers: Servers, keys: Sequence[bytes], options: bytes) -> tuple[Fetched | None, list[Pool]]:
    """Fetch from the first server that has an item; also returns the servers that have none."""
    asked: list[Pool] = []
    deadline = time.monotonic() + servers.timeout
    tour = servers.tour(is_harmless=options == OPEN)
    for pool in tour:
        with tour:
            found = fetch_from(pool, keys, options, deadline - time.monotonic())
            if found is not None:
                return found, asked
            asked.append(pool)
    tour.check()
    return None, asked


def fetch_more(first: Fetched, keys: Sequence[bytes], count: int, timeout: float) -> list[Value]:
    """Reserve up to `count` items, the first among them, on its connection, as More says.

    If the connection is lost, all of them go back, and ConnectionLostError is raised.
    """
    more = More(keys, first.value, count)
    while requests := more.requests():
        more.took(first.connection.ask_many(requests, timeout))
    return more.values


def browse(servers: Servers, pool: Pool, pages: Pages) -> Iterator[Value]:
    """Give the items of one server's pages. A page is asked for again if its connection is lost."""
    while not pages.is_over:
        requests = pages.requests()
        yield from pages.took(servers.ask_many_again(pool, requests))

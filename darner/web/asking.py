"""What the page asks of one server, over the wire like any client."""

import re
import ssl
from dataclasses import dataclass

from darner.client import protocol
from darner.client.async_client import AsyncClient
from darner.client.async_connection import time_in
from darner.client.async_pool import AsyncPool
from darner.client.async_servers import AsyncServers
from darner.client.errors import ProtocolError
from darner.client.protocol import END, Reply
from darner.client.url import parse

TIMEOUT_S = 5.0
CONNECT_S = 3.0
# At most so many looks at a server at a time, polls included: more wait in line.
CONNECTIONS = 4
# Items up to here are shown in the list of a queue with how they begin, and on a page of their own in full.
PREVIEW_BYTES = 1 << 14
WHOLE_BYTES = 1 << 18

_FIGURES = re.compile(rb"HD s(\d+) f(\d+) t(-?\d+) c(\d+) l(\d+)")


@dataclass(slots=True, kw_only=True)
class Waiting:
    """An item that waits in a queue. Times are in seconds; `expires` is None if it never does."""

    id: int
    attempts: int
    size: int
    flags: int
    age: int
    expires: int | None
    # None if it is larger than was asked for, or is gone meanwhile
    data: bytes | None = None


class Asking:
    """Requests to one server."""

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        """`url` is as for a client; BadRequestError if it is none."""
        self.address = parse(url)
        self.name = str(self.address)
        self._servers = AsyncServers(
            AsyncPool,
            (self.address,),
            timeout=TIMEOUT_S,
            connect_timeout=CONNECT_S,
            pool_size=CONNECTIONS,
            tls=tls if self.address.is_tls else None,
        )
        self._pool = self._servers.pools[0]
        # for what changes something
        self.client = AsyncClient(
            url, timeout=TIMEOUT_S, connect_timeout=CONNECT_S, pool_size=CONNECTIONS, tls=tls
        )

    async def settings(self, queue: bytes) -> list[tuple[str, str]]:
        """Return the settings in force of a queue."""
        connection = await self._pool.take(time_in(TIMEOUT_S))
        try:
            deadline = time_in(TIMEOUT_S)
            await connection.send((b"dump_config %b\r\n" % queue,), 1, deadline)
            found = []
            while (line := (await connection.read(deadline)).line) != END:
                if error := protocol.error_of(line):
                    raise error
                name, is_setting, value = line.decode(errors="replace").strip().partition("=")
                if is_setting and not name.startswith("queue '"):
                    found.append((name, value))
            return found
        finally:
            # its count of replies knows none of several lines
            self._pool.discard(connection)

    async def items(self, queue: bytes, start: int, count: int) -> list[Waiting]:
        """Return the items that wait from the id `start` on, as many at most, small ones with their bytes."""
        found: list[Waiting] = []
        is_over = False
        while len(found) < count and not is_over:
            # ids are guessed, as those next to each other; each round finds one at least
            lines = [_look(queue, start + more) for more in range(count - len(found))]
            for reply in await self._servers.ask_many_again(self._pool, lines):
                waiting = _waiting(reply)
                is_over = waiting is None
                if waiting is not None and waiting.id >= start:
                    found.append(waiting)
                    start = waiting.id + 1
        small = [waiting for waiting in found if waiting.size <= PREVIEW_BYTES]
        lines = [protocol.browse_line(queue, waiting.id) for waiting in small]
        for waiting, reply in zip(small, await self._ask_many(lines), strict=True):
            waiting.data = _data(reply, waiting.id)
        return found

    async def item(self, queue: bytes, id: int) -> Waiting | None:
        """Return the item with this id, with its bytes unless they are too many; None if it waits no more."""
        waiting = _waiting(await self._servers.ask_again(self._pool, _look(queue, id)))
        if waiting is None or waiting.id != id:
            return None
        if waiting.size <= WHOLE_BYTES:
            waiting.data = _data((await self._ask_many([protocol.browse_line(queue, id)]))[0], id)
        return waiting

    async def ask(self, request: bytes) -> Reply:
        """Ask for what does no harm if it is asked for twice."""
        return await self._servers.ask_again(self._pool, request)

    async def close(self) -> None:
        """Close all connections."""
        self._servers.close()
        await self.client.close()

    async def _ask_many(self, lines: list[bytes]) -> list[Reply]:
        return await self._servers.ask_many_again(self._pool, lines) if lines else []


def _look(queue: bytes, start: int) -> bytes:
    """Return the request for all but the data of the first item whose id is at least `start`."""
    return b"mg %b/peek/from=%d s f t c l\r\n" % (queue, start)


def _waiting(reply: Reply) -> Waiting | None:
    if reply.line == b"EN":
        return None
    figures = _FIGURES.fullmatch(reply.line)
    if figures is None:
        raise protocol.error_of(reply.line) or ProtocolError(f"this is no item: {reply.line[:60]!r}")
    size, flags, left, token, age = map(int, figures.groups())
    return Waiting(
        id=protocol.item_number(token),
        attempts=protocol.attempts(token),
        size=size,
        flags=flags,
        age=age,
        expires=None if left < 0 else left,
    )


def _data(reply: Reply, id: int) -> bytes | None:
    protocol.check(reply, END)
    return next((value.data for value in reply.values if protocol.item_number(value.token) == id), None)

"""What the page asks of one server, over the wire like any client."""

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from darner.client import protocol
from darner.client.async_client import AsyncClient
from darner.client.async_pool import AsyncPool
from darner.client.async_servers import AsyncServers
from darner.client.client import Client
from darner.client.protocol import Reply
from darner.client.url import parse
from darner.errors import DarnerError, ToolError
from darner.tools import waiting_items
from darner.tools.emptying import Emptied
from darner.tools.moving import Move
from darner.tools.queue_settings import settings_in_force
from darner.tools.waiting_items import Waiting

TIMEOUT_S = 5.0
CONNECT_S = 3.0
# At most so many looks at a server at a time, polls included: more wait in line.
CONNECTIONS = 4
# Items up to here are shown in the list of a queue with how they begin, and on a page of their own in full.
PREVIEW_BYTES = 1 << 14
WHOLE_BYTES = 1 << 18

# How long a move may take, while its browser waits: the rest is for another one.
MOVE_S = 20.0


class DryRun(NamedTuple):
    """What a move would do now: how many items and bytes of data would go, and what might go wrong."""

    items: int
    bytes: int
    warnings: Sequence[str]


class Asking:
    """Requests to one server."""

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        """`url` is as for a client; BadRequestError if it is none."""
        address = parse(url)
        self.name = str(address)
        tls = tls if address.is_tls else None
        self._servers = AsyncServers(
            AsyncPool,
            (address,),
            timeout=TIMEOUT_S,
            connect_timeout=CONNECT_S,
            pool_size=CONNECTIONS,
            tls=tls,
        )
        self._pool = self._servers.pools[0]
        # for what changes something
        self.client = AsyncClient(
            url, timeout=TIMEOUT_S, connect_timeout=CONNECT_S, pool_size=CONNECTIONS, tls=tls
        )
        # for the tools, in threads
        self._blocking = Client(url, timeout=TIMEOUT_S, connect_timeout=CONNECT_S, tls=tls)
        self._move_lock = asyncio.Lock()

    async def settings(self, queue: bytes) -> Mapping[str, str]:
        """Return the settings in force of a queue; none if this user may not ask for them."""
        pool = self._blocking.servers.pools[0]
        return await asyncio.to_thread(settings_in_force, pool, queue, TIMEOUT_S) or {}

    async def dry_run(self, source: str, target: str, most: int) -> DryRun:
        """Return what a move of so many items at most would do now. Errors are those of Move."""
        async with self._move_lock:
            return await asyncio.to_thread(self._dry_run, source, target, most)

    async def move(self, source: str, target: str, most: int) -> Emptied:
        """Move so many items at most, for MOVE_S seconds at most. Errors are those of Move; ToolError tells
        how many were moved before."""
        async with self._move_lock:
            return await asyncio.to_thread(self._move, source, target, most)

    async def items(self, queue: bytes, start: int, count: int) -> list[Waiting]:
        """Return the items that wait from the id `start` on, as many at most, small ones with their bytes."""
        found: list[Waiting] = []
        is_over = False
        while len(found) < count and not is_over:
            # ids are guessed, as those next to each other; each round finds one at least
            lines = [waiting_items.look_line(queue, start + more) for more in range(count - len(found))]
            for reply in await self._servers.ask_many_again(self._pool, lines):
                waiting = waiting_items.waiting_in(reply)
                is_over = waiting is None
                if waiting is not None and waiting.id >= start:
                    found.append(waiting)
                    start = waiting.id + 1
        small = [waiting for waiting in found if waiting.size <= PREVIEW_BYTES]
        lines = [protocol.browse_line(queue, waiting.id) for waiting in small]
        for waiting, reply in zip(small, await self._ask_many(lines), strict=True):
            waiting.data = waiting_items.data_in(reply, waiting.id)
        return found

    async def item(self, queue: bytes, id: int) -> Waiting | None:
        """Return the item with this id, with its bytes unless they are too many; None if it waits no more."""
        waiting = waiting_items.waiting_in(
            await self._servers.ask_again(self._pool, waiting_items.look_line(queue, id))
        )
        if waiting is None or waiting.id != id:
            return None
        if waiting.size <= WHOLE_BYTES:
            waiting.data = waiting_items.data_in(
                (await self._ask_many([protocol.browse_line(queue, id)]))[0], id
            )
        return waiting

    def _dry_run(self, source: str, target: str, most: int) -> DryRun:
        move = Move(self._blocking, source, target, most)
        return DryRun(*move.emptying.count(), move.warnings)

    def _move(self, source: str, target: str, most: int) -> Emptied:
        until = time.monotonic() + MOVE_S
        emptying = Move(self._blocking, source, target, most).emptying
        done = emptying.done
        try:
            emptying.run(lambda: None, lambda: time.monotonic() > until)
        except DarnerError as error:
            text = f"{error}. Moved before that: {done.items}"
            if done.unsettled:
                text += f"; perhaps in both queues: {done.unsettled}, until the same move is done once more"
            raise ToolError(text) from error
        return done

    async def ask(self, request: bytes) -> Reply:
        """Ask for what does no harm if it is asked for twice."""
        return await self._servers.ask_again(self._pool, request)

    async def close(self) -> None:
        """Close all connections."""
        self._servers.close()
        await self.client.close()
        self._blocking.close()

    async def _ask_many(self, lines: list[bytes]) -> list[Reply]:
        return await self._servers.ask_many_again(self._pool, lines) if lines else []

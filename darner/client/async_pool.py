"""The connections of the async client to one server, shared by tasks: each is used by one task at a time.

The one that was used last is taken first, so that few are in use and those are warm. Tasks that wait for one
get it in the order in which they came. What holds a reserved item is not given back before the item has
ended. After a fork the child lets go of its copies of all of them, for two processes on one connection would
take each other's replies.
"""

import asyncio
import os
import ssl
import weakref
from collections.abc import Sequence

from darner.client.async_connection import AsyncConnection, connect, time_in
from darner.client.errors import BadRequestError, NoFreeConnectionError
from darner.client.protocol import Reply
from darner.client.url import Address


class AsyncPool:
    """At most `size` connections to one server, opened when they are needed, all on one event loop."""

    def __init__(
        self, address: Address, size: int, connect_timeout: float, tls: ssl.SSLContext | None
    ) -> None:
        self.address = address
        self._size = size
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._is_closed = False
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # one for each connection that may be taken; tasks wait in line for them
        self._places = asyncio.Semaphore(self._size)
        # the connection used last is the last
        self._idle: list[AsyncConnection] = []
        self._open: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()

    async def ask(self, request: bytes | Sequence[bytes], deadline: float) -> Reply:
        """Send a request on any connection, and return its reply.

        Errors are those of `take`, of `AsyncConnection.ask`, and LoginError.
        """
        reply, connection = await self.ask_and_keep(request, deadline)
        self.give(connection)
        return reply

    async def ask_and_keep(
        self, request: bytes | Sequence[bytes], deadline: float, wait: float = 0
    ) -> tuple[Reply, AsyncConnection]:
        """Do as `ask`, and return the connection, too; `wait` is how long the server may take besides."""
        connection = await self.take(deadline)
        try:
            return await connection.ask(request, deadline + wait), connection
        except BaseException:
            self.discard(connection)
            raise

    async def ask_many(self, requests: Sequence[bytes], deadline: float) -> list[Reply]:
        """Send requests in one go on any connection; errors as for `ask`."""
        connection = await self.take(deadline)
        try:
            return await connection.ask_many(requests, deadline)
        finally:
            self.give(connection)

    async def take(self, deadline: float) -> AsyncConnection:
        """Return a connection that nobody else uses: `give` or `discard` it.

        One that the server has closed meanwhile is noticed, and another is opened. ConnectionFailedError if
        the server cannot be reached within `connect_timeout` or until `deadline`, NoFreeConnectionError if
        all are in use until then.
        """
        self._check_loop()
        await self._take_place(deadline)
        try:
            if self._is_closed:
                raise BadRequestError("this client is closed")
            while self._idle:
                connection = self._idle.pop()
                if connection.is_usable():
                    return connection
                connection.close()
            connect_by = min(deadline, time_in(self._connect_timeout))
            connection = await connect(self.address, connect_by, self._tls)
        except BaseException:
            self._places.release()
            raise
        self._open.add(connection)
        return connection

    def give(self, connection: AsyncConnection) -> None:
        """Take back a connection on which nothing is reserved; one that is not idle is closed."""
        if connection.is_idle and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        self._places.release()

    def discard(self, connection: AsyncConnection) -> None:
        """Close a connection instead of giving it back."""
        connection.close()
        self._places.release()

    def close(self) -> None:
        """Close all connections that are not in use, and those in use when they are given back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()
        # the first task in line learns of it, and lets the next one know
        self._places.release()

    def forget(self) -> None:
        """Let go of the child's copies of its parent's connections, and of the parent's event loop."""
        for connection in list(self._open):
            connection.leave_to_parent()
        self._begin()

    async def _take_place(self, deadline: float) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise NoFreeConnectionError(
                f"all {self._size} connections to {self.address} are in use: raise pool_size"
            ) from None

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise BadRequestError("this client was used on another event loop: make one for each")


_pools: weakref.WeakSet[AsyncPool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)

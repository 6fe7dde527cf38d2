"""The connections of the async client to one server, shared by tasks: each is used by one task at a time.

The one that was used last is taken first, so that few are in use and those are warm. Tasks that wait for one get it in
the order in which they came. What holds a reserved item is not given back before the item has ended. After a fork
the child drops its copies of all of them, for what they hold goes back only when the last copy is closed.
"""

import asyncio
import os
import ssl
import weakref
from collections import deque
from collections.abc import Sequence

from darner.client.async_connection import AsyncConnection, connect
from darner.client.errors import BadRequestError, ConnectionFailedError, NoFreeConnectionError
from darner.client.protocol import Reply
from darner.client.url import Address

# A connection; None for a place to open one in, which is counted already.
_Turn = AsyncConnection | None


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
        # the connection used last is the last
        self._idle: list[AsyncConnection] = []
        # how many are open or being opened
        self._count = 0
        # The tasks that wait, in the order in which they came. While there is one, nothing is idle and no place is
        # free: what comes back is handed to it at once.
        self._line: deque[asyncio.Future[_Turn]] = deque()

    async def ask(self, request: bytes | Sequence[bytes], deadline: float) -> Reply:
        """Send a request on any connection, and return its reply; errors as for `AsyncConnection.ask` and `take`."""
        while True:
            connection = await self.take(deadline)
            try:
                return await connection.ask(request, deadline)
            except ConnectionFailedError:
                # nothing was sent: the server had closed it a moment ago, and the next one may be sound
                continue
            finally:
                self.give(connection)

    async def take(self, deadline: float) -> AsyncConnection:
        """Return a connection that nobody else uses; `give` it back, or `discard` it.

        One that the server has closed meanwhile is noticed, and another is taken. Raises ConnectionFailedError if the
        server cannot be reached within `connect_timeout` or until `deadline`, NoFreeConnectionError if no connection
        is free until then.
        """
        while True:
            if self._is_closed:
                raise _closed()
            if self._idle:
                connection: _Turn = self._idle.pop()
            elif self._count < self._size:
                self._count += 1
                connection = None
            else:
                connection = await self._stand_in_line(deadline)
            if connection is None:
                return await self._open(deadline)
            if connection.is_usable():
                return connection
            self.discard(connection)

    def give(self, connection: AsyncConnection) -> None:
        """Take back a connection on which nothing is reserved; one that failed, or still owes a reply, is closed."""
        if connection.is_idle and not self._is_closed:
            self._pass_on(connection)
        else:
            self.discard(connection)

    def discard(self, connection: AsyncConnection) -> None:
        """Close a connection instead of giving it back."""
        connection.close()
        self._pass_on(None)

    def close(self) -> None:
        """Close all connections that are not in use, and those in use when they are given back."""
        self._is_closed = True
        while self._idle:
            self.discard(self._idle.pop())
        for turn in self._line:
            if not turn.done():
                turn.set_exception(_closed())

    async def _open(self, deadline: float) -> AsyncConnection:
        """Open a connection in a place that is counted already."""
        connect_by = min(deadline, asyncio.get_running_loop().time() + self._connect_timeout)
        try:
            connection = await connect(self.address, connect_by, self._tls)
        except BaseException:
            self._pass_on(None)
            raise
        _opened.add(connection)
        return connection

    async def _stand_in_line(self, deadline: float) -> _Turn:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[_Turn] = loop.create_future()
        self._line.append(turn)
        timer = loop.call_at(deadline, self._send_away, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            # it may have been its turn already: then it is the next one's
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on(turn.result())
            raise
        finally:
            timer.cancel()

    def _send_away(self, turn: asyncio.Future[_Turn]) -> None:
        if not turn.done():
            turn.set_exception(
                NoFreeConnectionError(
                    f"all {self._size} connections to {self.address} are in use: end reservations, or raise pool_size"
                )
            )

    def _pass_on(self, connection: _Turn) -> None:
        """Let the task that waits longest have this; if none waits, keep it."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._count -= 1
        else:
            self._idle.append(connection)


def _closed() -> BadRequestError:
    return BadRequestError("this client is closed")


_opened: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()


def _drop_copies() -> None:
    """Let go of the parent's connections. Descriptors stay in use, since transports may still close them."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in list(_opened):
        if connection.fileno() >= 0:
            os.dup2(nothing, connection.fileno(), inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_drop_copies)

"""One connection of the async client: requests go out and replies come in, on the event loop.

Whatever goes wrong while a request is under way, a cancellation included, closes the connection: a reply that
comes late must never be taken for the next one's, and what is reserved on it goes back.
"""

import asyncio
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import cast

from darner.client import protocol
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    RequestTimeoutError,
)
from darner.client.protocol import Replies, Reply
from darner.client.url import Address


class AsyncConnection(asyncio.Protocol):
    """A connection to one server. One task at a time may use it. Deadlines are times of the event loop."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._replies = Replies()
        # replies that came and were not read yet, and how many are still to be read
        self._arrived: deque[Reply] = deque()
        self._outstanding = 0
        # what the task waits for: that more comes, or that the peer takes more of what is sent
        self._change: asyncio.Future[None] | None = None
        self._is_writable = True
        # why this connection is of no more use
        self._error: ClientError | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended, as far as the event loop knows."""
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open, will stay so, and nothing is under way on it."""
        return self.is_open and not (self._outstanding or self._arrived or self._replies.is_over)

    def is_usable(self) -> bool:
        """Return whether an idle connection was not closed by the server meanwhile, as far as is known."""
        if not self.is_idle:
            return False
        # Between requests nothing can come but the end, which the event loop may not have read yet.
        comes = select.poll()
        comes.register(self.fileno(), select.POLLIN)
        return not comes.poll(0)

    async def ask(self, request: bytes | Sequence[bytes], deadline: float) -> Reply:
        """Send a request, which is large if it comes in parts, and return its reply.

        Raises ConnectionLostError, RequestTimeoutError or ProtocolError if what became of it is unknown; then
        the connection is closed, and after a cancellation, too.
        """
        await self.send((request,) if isinstance(request, bytes) else request, 1, deadline)
        return await self.read(deadline)

    async def ask_many(self, requests: Sequence[bytes], deadline: float) -> list[Reply]:
        """Send requests in one go, and return their replies; errors as for `ask`."""
        await self.send([b"".join(requests)], len(requests), deadline)
        return [await self.read(deadline) for _ in requests]

    async def send(self, parts: Sequence[bytes], count: int, deadline: float) -> None:
        """Send so many requests, in any parts; `read` gives the reply to each. Errors as for `ask`.

        Waits while the peer does not take what is sent, so that little of it is in memory twice.
        """
        self._outstanding += count
        for part in parts:
            if self._transport is None or not self.is_open:
                self.close()
                raise self._lost()
            self._transport.write(part)
            while not self._is_writable:
                await self._wait(deadline)

    async def read(self, deadline: float) -> Reply:
        """Return the next reply; errors as for `ask`."""
        while not self._arrived:
            await self._wait(deadline)
        self._outstanding -= 1
        return self._arrived.popleft()

    async def read_if_short(self, deadline: float) -> Reply | None:
        """Wait until a reply begins; return it if it has come as a whole, else None; errors as for `ask`."""
        while not self._arrived and self._replies.is_between:
            await self._wait(deadline)
        return await self.read(deadline) if self._arrived else None

    def close(self) -> None:
        """Close the connection at once: what is reserved on it goes back. May be called again."""
        self._fail(ConnectionLostError(f"the connection to {self.address} was closed"))

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 if it is closed."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return sock.fileno() if sock is not None else -1

    def leave_to_parent(self) -> None:
        """Let go of the socket in a child after a fork; the parent's copy, and its event loop, go on.

        The child shares the parent's epoll: to close the transport would take the socket out of that. So its
        descriptor is made one of nothing.
        """
        self._error = ConnectionLostError("the connection is the parent's, as this process was forked")
        if self.fileno() >= 0:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, self.fileno(), inheritable=False)
            os.close(nothing)

    async def _wait(self, deadline: float) -> None:
        """Wait until something has changed. If nothing does in time, or on a cancellation, close."""
        if self._error is not None:
            raise self._lost()
        self._change = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._time_out)
        try:
            await self._change
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()
            self._change = None

    def _lost(self) -> ClientError:
        assert self._error is not None
        return self._error

    def _time_out(self) -> None:
        self._fail(RequestTimeoutError(f"{self.address} has not replied in time"))

    def _fail(self, error: ClientError) -> None:
        """Close the connection, and let the task that waits know why."""
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # those of uvloop only look like one
        if not self.address.path:
            # a peer that is gone is noticed while a `get` waits
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Read replies out of what came."""
        try:
            self._replies.feed(data)
            while (reply := self._replies.next()) is not None:
                self._arrived.append(reply)
        except ClientError as error:
            self._fail(error)
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that the connection has ended, here or there."""
        reason = f": {error}" if error is not None else " has ended the connection before its reply"
        self._fail(ConnectionLostError(f"{self.address}{reason}"))

    def pause_writing(self) -> None:
        """Take note that the peer does not take what is sent."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """Take note that the peer takes more."""
        self._is_writable = True
        self._wake()


def time_in(seconds: float) -> float:
    """Return the time of the event loop in so many seconds."""
    return asyncio.get_running_loop().time() + seconds


async def dial(
    address: Address, connection: asyncio.BaseProtocol, deadline: float, tls: ssl.SSLContext | None
) -> None:
    """Connect this end to a server before `deadline`; with a TLS context, over TLS.

    Raises ConnectionFailedError if there is no server.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(deadline):
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=tls)
    except OSError as error:
        reason = "no connection in time" if isinstance(error, TimeoutError) else error
        raise ConnectionFailedError(f"{address}: {reason}") from error


async def connect(address: Address, deadline: float, tls: ssl.SSLContext | None) -> AsyncConnection:
    """Return a connection, logged in, that was made before `deadline`; with a TLS context, over TLS.

    Raises ConnectionFailedError if there is no server, LoginError if it does not take user and password.
    """
    connection = AsyncConnection(address, asyncio.get_running_loop())
    await dial(address, connection, deadline, tls)
    if address.user:
        await _log_in(connection, deadline)
    if not connection.is_open:
        raise ConnectionFailedError(f"{address} has ended the connection at once")
    return connection


async def _log_in(connection: AsyncConnection, deadline: float) -> None:
    address = connection.address
    request = protocol.login_request(address.user, address.password)
    try:
        protocol.check(await connection.ask(request, deadline), protocol.STORED)
    except ConnectionLostError as error:
        # nothing of the caller's was sent
        raise ConnectionFailedError(f"no login: {error}") from error
    except ClientError:
        connection.close()
        raise

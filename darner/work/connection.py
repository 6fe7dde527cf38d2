"""One connection to a server, and what it holds: requests go out at once, and their replies come in order."""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import cast

from darner.client import protocol
from darner.client.async_connection import dial, time_in
from darner.client.codecs import Codec
from darner.client.errors import (
    ClientError,
    ConnectionLostError,
    ProtocolError,
    RequestTimeoutError,
    ServerFailedError,
)
from darner.client.item import Item
from darner.client.protocol import Reply
from darner.client.url import Address

# How long connecting may take, with TLS and login, and how long any reply, not counted a wait that was asked
# for.
CONNECT_S = 10.0
REPLY_S = 10.0


class Delivery:
    """An item that a connection holds, until it is closed or aborted over this connection, or that ends."""

    __slots__ = ("_connection", "_key", "item")

    def __init__(self, connection: "Connection", key: bytes, item: Item) -> None:
        self._connection = connection
        self._key = key
        self.item = item

    def close(self) -> Awaitable[None]:
        """Remove the item. The request is sent at once, and what is returned waits for the reply; it raises
        ReservationLostError if the item went back meanwhile."""
        return self._end(protocol.close_line(self._key, self.item.token))

    def abort(self, delay_s: float) -> Awaitable[None]:
        """Put the item back, out of sight for so long. Otherwise as `close`."""
        return self._end(protocol.abort_line(self._key, self.item.token, delay_s))

    def _end(self, line: bytes) -> Awaitable[None]:
        return self._connection.end(self, line)


class Connection(asyncio.Protocol):
    """A connection that has been made."""

    def __init__(self, address: Address, keys: Sequence[bytes], codec: Codec | None) -> None:
        """`keys` are the queues to take from, the most urgent first."""
        self.held: set[Delivery] = set()
        # whether its only request under way is a wait
        self.is_waiting = False
        self.is_closed = False
        # reservations that were asked for and not answered yet
        self._asked = 0
        self._address = address
        self._keys = keys
        self._codec = codec
        self._replies = protocol.Replies()
        # what came of a reply of several lines, while one is expected
        self._lines: list[bytes] | None = None
        self._expected: deque[asyncio.Future[Reply]] = deque()

    @property
    def load(self) -> int:
        """How many items it holds, or may hold once the server has answered."""
        return len(self.held) + self._asked

    async def log_in(self) -> None:
        """Log in, if the address has a user. Raises LoginError."""
        if self._address.user:
            request = protocol.login_request(self._address.user, self._address.password)
            protocol.check(await self._reply(self._ask(request)), protocol.STORED)

    async def reserve(self, wait_ms: int) -> Delivery | None:
        """Reserve the next item; wait for one so long."""
        self._asked += 1
        try:
            reply = await self._get(b"/open", wait_ms)
        finally:
            self._asked -= 1
        for value in reply.values:
            key = protocol.queue_of(value, self._keys)
            delivery = Delivery(self, key, Item(value, key, str(self._address), self._codec))
            self.held.add(delivery)
            return delivery
        return None

    async def look(self, wait_ms: int) -> None:
        """Wait for an item so long, and leave it where it is."""
        await self._get(b"/peek", wait_ms)

    async def dump_config(self) -> list[bytes]:
        """Return the lines that say which settings are in force for the queues; only users who may see them
        get them. Nothing else may be under way."""
        self._lines = []
        try:
            names = b" ".join(key.partition(b"/")[0] for key in self._keys)
            protocol.check(await self._reply(self._ask(b"dump_config %b\r\n" % names)), protocol.END)
            return self._lines
        finally:
            self._lines = None

    def end(self, delivery: Delivery, line: bytes) -> Awaitable[None]:
        """Send the request that ends a reservation; return what waits for the reply."""
        self.held.discard(delivery)
        return self._ended(delivery, self._ask(line))

    def close(self) -> None:
        """Close the connection: what it holds goes back, once what was sent has been served."""
        self.is_closed = True
        self._transport.close()

    async def _get(self, options: bytes, wait_ms: int) -> Reply:
        """Ask for an item. If the wait for one is cancelled the connection closes: one that may be on its way
        goes back."""
        self.is_waiting = wait_ms > 0
        try:
            reply = await self._reply(self._ask(protocol.get_line(self._keys, options, wait_ms)), wait_ms)
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self.is_waiting = False
        return protocol.check(reply, protocol.END)

    async def _ended(self, delivery: Delivery, expected: asyncio.Future[Reply]) -> None:
        try:
            protocol.check(await self._reply(expected), protocol.END)
        except ServerFailedError:
            self.held.add(delivery)
            raise

    def _ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a request at once; return its reply to come."""
        expected: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self.is_closed:
            expected.set_exception(ConnectionLostError(f"the connection to {self._address} was lost"))
        else:
            self._expected.append(expected)
            self._transport.write(request)
        return expected

    async def _reply(self, expected: asyncio.Future[Reply], wait_ms: int = 0) -> Reply:
        try:
            async with asyncio.timeout(wait_ms / 1000 + REPLY_S):
                return await expected
        except TimeoutError:
            error = RequestTimeoutError(f"{self._address} did not answer within {REPLY_S:g} s")
            self._lose(error)
            raise error from None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to who waits for it."""
        self._replies.feed(data)
        try:
            while (reply := self._replies.next()) is not None:
                if (
                    self._lines is not None
                    and reply.line != protocol.END
                    and not protocol.error_of(reply.line)
                ):
                    self._lines.append(reply.line)
                    continue
                if not self._expected:
                    raise protocol.error_of(reply.line) or ProtocolError("a reply came that nobody asked for")
                expected = self._expected.popleft()
                if not expected.done():
                    expected.set_result(reply)
        except ClientError as error:
            self._lose(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        self._lose(exc or ConnectionLostError(f"{self._address} closed the connection"))

    def _lose(self, cause: Exception) -> None:
        """Give the connection up, and have all requests under way fail."""
        self.is_closed = True
        self._transport.abort()
        error = cause if isinstance(cause, ClientError) else ConnectionLostError(f"{self._address}: {cause}")
        while self._expected:
            expected = self._expected.popleft()
            if not expected.done():
                expected.set_exception(error.with_traceback(None))


async def connect(
    address: Address, keys: Sequence[bytes], codec: Codec | None, tls: ssl.SSLContext | None
) -> Connection:
    """Connect and log in. Raises ConnectionFailedError if nobody is there, LoginError if it is the wrong
    user."""
    connection = Connection(address, keys, codec)
    if address.is_tls and tls is None:
        tls = ssl.create_default_context()
    await dial(address, connection, time_in(CONNECT_S), tls if address.is_tls else None)
    try:
        await connection.log_in()
    except BaseException:
        connection.close()
        raise
    return connection

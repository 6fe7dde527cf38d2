"""A connection that messages come over: requests go out at once, replies are read when they have come."""

import contextlib
import ssl
from collections import deque
from time import monotonic
from typing import Any

from darner.client import protocol
from darner.client.connection import connected_socket
from darner.client.errors import ClientError, ConnectionFailedError, ConnectionLostError, ProtocolError
from darner.client.protocol import Reply
from darner.client.url import Address
from darner.kombu.forks import close_in_child

_KEEP_ALIVE = b"version\r\n"
_RECEIVE_BYTES = 1 << 18
# What a socket says that has nothing to give, or has no room.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Delivery:
    """A message that a link holds, until it is closed or put back over this link, or that ends."""

    __slots__ = ("data", "key", "link", "token")

    def __init__(self, link: "Link", key: bytes, token: int, data: bytes) -> None:
        self.link = link
        self.key = key
        self.token = token
        self.data = data


class Ask:
    """A request for a message. `wait_ms`: how long it may take for one to come; `takes`: or is it to be
    looked at."""

    __slots__ = ("takes", "wait_ms")

    def __init__(self, wait_ms: int = 0, *, takes: bool = True) -> None:
        self.wait_ms = wait_ms
        self.takes = takes


class Link:
    """A connection that is logged in. The caller sees to it that one thread at a time uses it."""

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, connect_timeout: float, reply_timeout: float
    ) -> None:
        """Connect. Raises ConnectionFailedError or LoginError."""
        self.held: set[Delivery] = set()
        # messages that were asked for, and not answered yet
        self.asked = 0
        self.is_waiting = False
        self.is_closed = False
        self._address = address
        self._reply_timeout = reply_timeout
        # None for a reply that says only that the server is there
        self._expected: deque[Ask | Delivery | None] = deque()
        self._replies = protocol.Replies()
        self._unsent = b""
        # when the server is taken for dead, if no reply comes
        self._deadline = 0.0
        self._socket = connected_socket(address, monotonic() + connect_timeout, tls)
        close_in_child(self)
        try:
            if address.user:
                self._log_in(connect_timeout)
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    @property
    def load(self) -> int:
        """How many messages it holds, or may hold once the server has answered."""
        return len(self.held) + self.asked

    @property
    def is_idle(self) -> bool:
        """Whether no reply is to come but that of a wait."""
        return not self._expected or (len(self._expected) == 1 and self.is_waiting)

    def fileno(self) -> int:
        """Return the descriptor, -1 once it is closed."""
        return self._socket.fileno()

    def ask(self, request: bytes, ask: Ask, times: int = 1) -> None:
        """Ask for a message, `times` times in one go. Raises ConnectionLostError."""
        self.check()
        self.is_waiting = ask.wait_ms > 0
        if ask.takes:
            self.asked += times
        self._send(request * times, [ask] * times)

    def end(self, delivery: Delivery, request: bytes) -> None:
        """Close a reservation, or put its item back. Raises ConnectionLostError: then it went back."""
        self.check()
        self.held.discard(delivery)
        self._send(request, [delivery])

    def receive(self, timeout: float = 0) -> list[tuple[Ask | Delivery, Reply]]:
        """Return the replies that have come, each with what it is about; wait so many seconds for the first.

        Raises ConnectionLostError if the connection has ended.
        """
        self.check()
        try:
            if timeout:
                self._socket.settimeout(timeout)
            self._receive()
        except _NOT_NOW:
            pass
        except TimeoutError:
            pass
        except OSError as error:
            raise self._lose(str(error)) from error
        finally:
            if timeout and not self.is_closed:
                self._socket.setblocking(False)
        return self._parsed()

    def check(self) -> None:
        """Send what could not be sent, and a word if messages are held and nothing was sent for long: to the
        server the link is not idle. Raises ConnectionLostError if the connection has ended, or a reply is
        long overdue."""
        if self.is_closed:
            raise self._lost("the connection was lost, and what it held went back")
        if self._unsent:
            self._flush()
        if monotonic() > self._deadline:
            if self._expected:
                raise self._lose(f"no reply within {self._reply_timeout:g} s")
            if self.held:
                self._send(_KEEP_ALIVE, [None])

    def close(self) -> None:
        """Close the connection: what it holds goes back."""
        self.is_closed = True
        self._socket.close()

    def _log_in(self, timeout: float) -> None:
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(protocol.login_request(self._address.user, self._address.password))
            while (reply := self._replies.next()) is None:
                self._receive()
        except (OSError, ConnectionLostError) as error:
            raise ConnectionFailedError(f"{self._address}: no login: {error}") from error
        protocol.check(reply, protocol.STORED)

    def _send(self, request: bytes, expected: list[Any]) -> None:
        wait_ms = expected[0].wait_ms if isinstance(expected[0], Ask) else 0
        self._deadline = monotonic() + self._reply_timeout + wait_ms / 1000
        self._expected += expected
        self._unsent += request
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except _NOT_NOW:
            pass
        except OSError as error:
            raise self._lose(str(error)) from error

    def _receive(self) -> None:
        while True:
            room = self._replies.room()
            if room is None:
                data = self._socket.recv(_RECEIVE_BYTES)
                count = len(data)
                self._replies.feed(data)
            else:
                with room:
                    count = self._socket.recv_into(room)
                self._replies.received(count)
            if not count:
                raise self._lose("the server has ended the connection")
            # TLS may have more that no poll would tell of
            if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                return

    def _parsed(self) -> list[tuple[Ask | Delivery, Reply]]:
        found = []
        try:
            while (reply := self._replies.next()) is not None:
                if not self._expected:
                    raise protocol.error_of(reply.line) or ProtocolError("a reply came that nobody asked for")
                what = self._expected.popleft()
                if what is None:
                    continue
                if isinstance(what, Ask):
                    self.is_waiting = False
                    self.asked -= what.takes
                found.append((what, reply))
        except ClientError as error:
            raise self._lose(str(error)) from error
        return found

    def _lose(self, reason: str) -> ConnectionLostError:
        # the socket stays open until nobody polls it
        self.is_closed = True
        return self._lost(reason)

    def _lost(self, reason: str) -> ConnectionLostError:
        return ConnectionLostError(f"{self._address}: {reason}")


def finish(links: list[Link], seconds: float) -> None:
    """Close links once what was sent over them has been served, or after so long."""
    deadline = monotonic() + seconds
    for link in links:
        with contextlib.suppress(ConnectionLostError):
            while not link.is_closed and not link.is_idle and monotonic() < deadline:
                link.check()
                link.receive(max(deadline - monotonic(), 0.001))
        link.close()

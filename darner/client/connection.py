"""One connection of the sync client: a blocking socket, on which requests go out and replies come in.

Whatever goes wrong while a request is under way, Ctrl-C included, closes the connection: a reply that comes
late must never be taken for the next one's.
"""

import contextlib
import math
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from time import monotonic
from typing import Any, NoReturn, TypeVar

from darner.client import protocol
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    RequestTimeoutError,
)
from darner.client.protocol import Replies, Reply
from darner.client.url import Address

Received = TypeVar("Received", bytes, int)

_RECEIVE_BYTES = 1 << 16
# The reply to one request is short, as a rule, and a larger buffer would make it dearer.
_RECEIVE_FIRST_BYTES = 1 << 12
_SEND_BYTES = 1 << 18
# For so long after a request a connection is taken to be alive: a server that has ended since is not back
# yet.
_FRESH_S = 0.01
# A timeout of 0 would mean none.
_SHORTEST_S = 0.001


class Connection:
    """A connection to one server, logged in. One thread at a time may use it."""

    __slots__ = (
        "__weakref__",
        "_asked_at",
        "_is_tls",
        "_receive",
        "_replies",
        "_send",
        "_socket",
        "_timeout",
        "address",
    )

    def __init__(self, address: Address, deadline: float, tls: ssl.SSLContext | None) -> None:
        """Connect and log in until the time `deadline`; with a TLS context, over TLS.

        Raises ConnectionFailedError if there is no server, LoginError if it does not take user and password.
        """
        self.address = address
        self._replies = Replies()
        # never: what has just been opened is taken to be alive
        self._asked_at = math.inf
        self._is_tls = tls is not None
        self._socket = connected_socket(address, deadline, tls)
        if not self._is_tls:
            # The system bounds each call: see _limit.
            self._socket.settimeout(None)
        # bound once: they are called for each request
        self._send, self._receive = self._socket.send, self._socket.recv
        self._timeout = -1.0
        if address.user:
            self._log_in(deadline)

    def _log_in(self, deadline: float) -> None:
        request = protocol.login_request(self.address.user, self.address.password)
        try:
            protocol.check(self.ask(request, max(deadline - monotonic(), _SHORTEST_S)), protocol.STORED)
        except ConnectionLostError as error:
            # nothing of the caller's was sent
            raise ConnectionFailedError(f"no login: {error}") from error
        except ClientError:
            self.close()
            raise

    def ask(self, request: bytes | Sequence[bytes], timeout: float) -> Reply:
        """Send a request, which is large if it comes in parts, and return its reply.

        Raises ConnectionFailedError if nothing was sent, as the server has ended the connection before;
        ConnectionLostError, RequestTimeoutError or ProtocolError if what became of it is unknown. In all
        these cases the connection is closed. `timeout` is in seconds.
        """
        now = monotonic()
        try:
            if (now - self._asked_at > _FRESH_S and self._has_ended()) or self._replies.is_over:
                raise ConnectionFailedError(f"{self.address} has ended the connection")
            self._asked_at = now
            if timeout != self._timeout:
                self._limit(timeout)
            if isinstance(request, bytes):
                self._send_whole(request, now + timeout)
            else:
                self._send_parts(request, now + timeout)
            data = self._receive(_RECEIVE_FIRST_BYTES) or self._received(b"")
            return self._replies.take(data) or self._read(now + timeout)
        except BaseException as error:
            self._fail(error)

    def ask_many(self, requests: Sequence[bytes], timeout: float) -> list[Reply]:
        """Send requests in one go, and return their replies; errors and timeout as for `ask`.

        The replies must fit into the buffers on the way, for none is read before all requests are sent.
        """
        if len(requests) == 1:
            return [self.ask(requests[0], timeout)]
        deadline = monotonic() + timeout
        self.send([b"".join(requests)], deadline)
        replies: list[Reply] = []
        while len(replies) < len(requests):
            replies += self.read(len(requests) - len(replies), deadline)
        return replies

    def send(self, parts: Sequence[bytes], deadline: float) -> None:
        """Send one or more requests in one go; `read` gives the reply to each. Errors as for `ask`."""
        self._asked_at = monotonic()
        try:
            self._limit(deadline - self._asked_at)
            self._send_parts(parts, deadline)
        except BaseException as error:
            self._fail(error)

    def read(self, most: int, deadline: float) -> list[Reply]:
        """Return the next replies, at least one, `most` at most; errors as for `ask`."""
        try:
            return self._replies.several(most) or [self._read(deadline)]
        except BaseException as error:
            self._fail(error)

    def receive(self) -> tuple[Reply | None, bool]:
        """Return the next reply if it has come as a whole, and whether any of it has come; do not wait.

        Errors as for `ask`.
        """
        replies = self._replies
        try:
            self._limit(0)
            # TLS may have come that has nothing for us
            with contextlib.suppress(TimeoutError, BlockingIOError):
                replies.feed(self._received(self._receive(_RECEIVE_BYTES)))
            reply = replies.next()
            return reply, reply is not None or not replies.is_between
        except BaseException as error:
            self._fail(error)

    def is_usable(self) -> bool:
        """Return whether the server has not closed the connection meanwhile, as far as that is known."""
        is_fresh = monotonic() - self._asked_at <= _FRESH_S
        return not self._replies.is_over and (is_fresh or not self._has_ended())

    def _has_ended(self) -> bool:
        # Between requests nothing can come but the end.
        comes = select.poll()
        comes.register(self._socket, select.POLLIN)
        return bool(comes.poll(0))

    def close(self) -> None:
        """Close the connection: what is reserved on it goes back. May be called again."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def _send_whole(self, request: bytes, deadline: float) -> None:
        try:
            count = self._send(request)
        except (BrokenPipeError, ConnectionResetError) as error:
            # the system refused the first byte
            raise ConnectionFailedError(f"{self.address} has ended the connection") from error
        if count < len(request):
            self._send_parts([request[count:]], deadline)

    def _send_parts(self, parts: Sequence[bytes], deadline: float) -> None:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[self._send(left[:_SEND_BYTES]) :]
                if left:
                    self._limit(deadline - monotonic())

    def _read(self, deadline: float) -> Reply:
        """Receive until a reply is whole."""
        replies = self._replies
        reply = None
        while reply is None:
            self._limit(deadline - monotonic())
            room = replies.room()
            if room is None:
                replies.feed(self._received(self._receive(_RECEIVE_BYTES)))
            else:
                with room:
                    count = self._received(self._socket.recv_into(room))
                replies.received(count)
            reply = replies.next()
        return reply

    def _received(self, what: Received) -> Received:
        """Return bytes, or how many, if there are any; if none are, the connection has ended."""
        if not what:
            raise ConnectionLostError(f"{self.address} has ended the connection before its reply")
        return what

    def _limit(self, seconds: float) -> None:
        """Let each further call of the socket take so long at most."""
        self._timeout = max(seconds, _SHORTEST_S)
        if self._is_tls:
            self._socket.settimeout(self._timeout)
            return
        # With the timeout of Python's socket there would be a `poll` before each call.
        whole, part = divmod(self._timeout, 1)
        timeval = struct.pack("ll", int(whole), int(part * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def _fail(self, error: BaseException) -> NoReturn:
        """Close the connection, and raise the error: one of the socket in the client's words."""
        self.close()
        if isinstance(error, TimeoutError | BlockingIOError):
            raise RequestTimeoutError(f"{self.address} has not replied in time") from error
        if isinstance(error, OSError):
            raise ConnectionLostError(f"{self.address}: {error}") from error
        raise error


def connected_socket(address: Address, deadline: float, tls: ssl.SSLContext | None) -> socket.socket:
    """Return a socket that is connected before `deadline`; ConnectionFailedError if none can be."""
    failed: OSError | None = None
    try:
        if address.path:
            return _connect_to(socket.AF_UNIX, address.path, deadline, address, tls)
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        failed, found = error, []
    for family, _, _, _, where in found:
        try:
            return _connect_to(family, where, deadline, address, tls)
        except OSError as error:
            failed = error
    reason = "no connection in time" if isinstance(failed, TimeoutError) else failed
    raise ConnectionFailedError(f"{address}: {reason}") from failed


def _connect_to(
    family: socket.AddressFamily, where: Any, deadline: float, address: Address, tls: ssl.SSLContext | None
) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(max(deadline - monotonic(), _SHORTEST_S))
        connection.connect(where)
        if family != socket.AF_UNIX:
            # small requests go out at once; and a peer that is gone is noticed while a `get` waits
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return tls.wrap_socket(connection, server_hostname=address.host) if tls is not None else connection
    except BaseException:
        connection.close()
        raise

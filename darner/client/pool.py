"""The connections to one server, shared by threads: each is used by one thread at a time.

The one that was used last is taken first, so that few are in use and those are warm. What holds a reserved
item is not given back before the item has ended. After a fork the child closes its copies of all of them, for
two processes on one connection would take each other's replies.
"""

import os
import ssl
import threading
import time
import weakref
from collections.abc import Sequence

from darner.client.connection import Connection
from darner.client.errors import BadRequestError, ConnectionFailedError, NoFreeConnectionError
from darner.client.protocol import Reply
from darner.client.url import Address

# A thread that waits for a connection looks again so often: one that was lost without a word frees its place,
# too.
_LOOK_AGAIN_S = 1.0


class Pool:
    """At most `size` connections to one server, opened when they are needed."""

    def __init__(
        self, address: Address, size: int, connect_timeout: float, tls: ssl.SSLContext | None
    ) -> None:
        self.address = address
        self.name = str(address)
        self._size = size
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._is_closed = False
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        # the connection used last is the last
        self._idle: list[Connection] = []
        # The open ones. Weakly: a reservation that nobody ended and nobody has any more frees its place.
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        # how many are being opened, and how many threads wait for one
        self._opening = 0
        self._waiting = 0
        self._changed = threading.Condition()

    def ask(self, request: bytes | Sequence[bytes], timeout: float) -> Reply:
        """Send a request on any connection, and return its reply within `timeout` seconds.

        Errors are those of `take`, of `Connection.ask`, and LoginError.
        """
        reply, connection = self.ask_and_keep(request, timeout)
        self.give(connection)
        return reply

    def ask_and_keep(
        self, request: bytes | Sequence[bytes], timeout: float, wait: float = 0
    ) -> tuple[Reply, Connection]:
        """Do as `ask`, and return the connection, too; `wait` is how long the server may take besides."""
        deadline = None
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                if deadline is None:
                    deadline = time.monotonic() + timeout
                connection = self.take(deadline)
                timeout = deadline - time.monotonic()
            try:
                return connection.ask(request, timeout + wait), connection
            except ConnectionFailedError:
                # nothing was sent: the server has closed it, and the next connection may be sound
                self.discard(connection)
                if deadline is not None:
                    raise
            except BaseException:
                self.discard(connection)
                raise

    def ask_many(self, requests: Sequence[bytes], timeout: float) -> list[Reply]:
        """Send requests in one go on any connection; errors as for `ask`, bound as for the connection."""
        deadline = time.monotonic() + timeout
        connection = self.take(deadline)
        try:
            replies = connection.ask_many(requests, deadline - time.monotonic())
        except BaseException:
            self.discard(connection)
            raise
        self.give(connection)
        return replies

    def take(self, deadline: float) -> Connection:
        """Return a connection that nobody else uses: `give` or `discard` it.

        One that the server has closed meanwhile is noticed, and another is taken. ConnectionFailedError if
        the server cannot be reached within `connect_timeout` or until `deadline`, NoFreeConnectionError if
        all are in use until then.
        """
        while True:
            connection = self._take_idle() or self._open_or_wait(deadline)
            if connection is not None:
                return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread has it
                return None
            if connection.is_usable():
                return connection
            self.discard(connection)
        return None

    def give(self, connection: Connection) -> None:
        """Take back a connection on which all is answered and nothing is reserved."""
        self._idle.append(connection)
        if self._is_closed:
            self._close_idle()
        # A waiting thread counts itself before it looks for an idle one, so either it or this line sees the
        # other.
        elif self._waiting:
            with self._changed:
                self._changed.notify()

    def discard(self, connection: Connection) -> None:
        """Close a connection instead of giving it back."""
        connection.close()
        with self._changed:
            self._open.discard(connection)
            self._changed.notify()

    def close(self) -> None:
        """Close all connections that are not in use, and those in use when they are given back."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self.discard(self._idle.pop())

    def _open_or_wait(self, deadline: float) -> Connection | None:
        """Open a connection if there may be one more; if not, wait for a change, and return None."""
        with self._changed:
            self._waiting += 1
            try:
                self._check_open()
                if self._idle:
                    return None
                if len(self._open) + self._opening >= self._size:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise NoFreeConnectionError(
                            f"all {self._size} connections to {self.address} are in use: raise pool_size"
                        )
                    self._changed.wait(min(left, _LOOK_AGAIN_S))
                    return None
                self._opening += 1
            finally:
                self._waiting -= 1
        connection = None
        try:
            connect_by = min(deadline, time.monotonic() + self._connect_timeout)
            connection = Connection(self.address, connect_by, self._tls)
        finally:
            with self._changed:
                self._opening -= 1
                if connection is not None:
                    self._open.add(connection)
                else:
                    self._changed.notify()
        return connection

    def _check_open(self) -> None:
        if self._is_closed:
            raise BadRequestError("this client is closed")

    def forget(self) -> None:
        """Close the child's copies of its parent's connections. The parent goes on with its own."""
        for connection in list(self._open):
            connection.close()
        self._begin()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)

"""The server as a transport asks it: requests that are answered at once, over one connection."""

import contextlib
import ssl
import threading
from collections.abc import Iterator, Sequence
from time import monotonic

from darner.client import protocol
from darner.client.connection import Connection
from darner.client.errors import ClientError, ConnectionLostError, NotPermittedError, RequestTimeoutError
from darner.client.protocol import Reply
from darner.client.stats import queue_stats
from darner.client.url import Address
from darner.kombu.forks import close_in_child

_FIGURES = (b"items", b"waiters", b"open_transactions")


class Server:
    """One server. Threads may share it; a child process has a connection of its own."""

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, connect_timeout: float, reply_timeout: float
    ) -> None:
        self.address = address
        self.tls = tls
        self.connect_timeout = connect_timeout
        self.reply_timeout = reply_timeout
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def connect(self) -> None:
        """Connect, unless that is done. Raises ConnectionFailedError or LoginError."""
        with self._lock:
            self._connected()

    def ask(self, requests: Sequence[bytes], timeout: float | None = None) -> list[Reply]:
        """Send requests in one go, and return their replies. Raises ConnectionFailedError if nothing was
        sent; ConnectionLostError if it is not known what became of them. The timeout is in seconds."""
        with self._lock, self._losing():
            return self._connected().ask_many(requests, timeout or self.reply_timeout)

    def stats(self, queues: Sequence[bytes]) -> list[dict[str, int]]:
        """Return `items`, `waiters` and `open_transactions` of each of these queues; nothing of one that is
        not there. Raises as `ask`."""
        found: list[dict[str, int]] = []
        try:
            for line in self._lines(b"dump_stats %b\r\n" % b" ".join(queues)):
                name, _, figure = line.strip().partition(b"=")
                if line.startswith(b"queue "):
                    found.append({})
                elif name in _FIGURES:
                    found[-1][name.decode()] = int(figure)
        except NotPermittedError:
            return self._listed_stats(queues)
        return found

    def _listed_stats(self, queues: Sequence[bytes]) -> list[dict[str, int]]:
        """Do the same for a user who may list all queues alone, for he is no admin."""
        listed = queue_stats(self.ask([protocol.QUEUE_STATS])[0].stats)
        names = [queue.decode(errors="surrogateescape") for queue in queues]
        return [
            {figure.decode(): getattr(listed[name], figure.decode()) for figure in _FIGURES}
            if name in listed
            else {}
            for name in names
        ]

    def _lines(self, request: bytes) -> list[bytes]:
        """Return the lines of a reply that goes up to END."""
        lines = []
        with self._lock, self._losing():
            deadline = monotonic() + self.reply_timeout
            connection = self._connected()
            connection.send([request], deadline)
            while (line := connection.read(1, deadline)[0].line) != protocol.END:
                if (error := protocol.error_of(line)) is not None:
                    raise error
                lines.append(line)
        return lines

    def close(self) -> None:
        """Close the connection; the next request makes another one."""
        with self._lock:
            self._drop()

    def _connected(self) -> Connection:
        connection = self._connection
        # in a child process it was closed
        if connection is not None and (connection.fileno() < 0 or not connection.is_usable()):
            self._drop()
        if self._connection is None:
            self._connection = Connection(self.address, monotonic() + self.connect_timeout, self.tls)
            close_in_child(self._connection)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Give the connection up if it fails."""
        try:
            yield
        except ClientError as error:
            if isinstance(error, ConnectionLostError):
                self._drop()
            if isinstance(error, RequestTimeoutError):
                # it is a TimeoutError, too, and kombu's callers take that for a queue without messages
                raise ConnectionLostError(str(error)) from error
            raise
        except BaseException:
            self._drop()
            raise

"""The HTTP server of metrics and probes: a few connections at a time, and none of them for long."""

import contextlib
import itertools
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog

from darner.access.descriptors import METRICS_CONNECTIONS

log = structlog.get_logger()

# How long, in seconds, a connection may take to send its request, and to read the answer; and after how long
# it may have to make room for another one before it has read all.
REQUEST_S = 5.0
ANSWER_S = 60.0
PATIENCE_S = 10.0
# After how many seconds a connection that could not be accepted, for want of a descriptor, is tried again.
RETRY_S = 0.2
# How long, in seconds, a connection waits for the threads of others, which were cut, to end.
THREADS_S = 0.5
# How many connections are accepted a second, and how many at once after a quiet time: each takes some 0.3 ms
# of the processor that serves the queues.
ACCEPTED_PER_S = 100
ACCEPTED_AT_ONCE = 50


class _Handler(WSGIRequestHandler):
    """One request, which is one scrape or one probe."""

    server: "HttpServer"

    def parse_request(self) -> bool:
        """Read the request, and note that it has come."""
        is_right = super().parse_request()
        if is_right:
            self.server.note_request(self.connection)
        return is_right

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: strangers could fill the log."""


@dataclass(slots=True)
class _Connection:
    """What is known of a connection."""

    host: str
    # since when it is there, or has asked, and until when it may last
    since: float
    until: float
    has_asked: bool = False


class HttpServer(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection.

    Connections are few and limited in time and pace: strangers take no descriptors from the queues and no
    time from the event loop, and nobody keeps a scrape out by being silent or slow.
    """

    daemon_threads = True
    # how many connections the system keeps until they are accepted: about what is accepted in a second
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        # the connections, oldest first, and those that were cut and whose threads have not ended
        self._open: dict[socket.socket, _Connection] = {}
        self._cut_off: set[socket.socket] = set()
        self._lock = Lock()
        # when the next connection may be accepted
        self._accepts_from = 0.0
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name."""
        TCPServer.server_bind(self)
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, in its time; one that cannot be accepted is tried again after a while."""
        now = time.monotonic()
        time.sleep(max(0.0, self._accepts_from - now))
        earliest = now - ACCEPTED_AT_ONCE / ACCEPTED_PER_S
        self._accepts_from = max(self._accepts_from, earliest) + 1 / ACCEPTED_PER_S
        try:
            return super().get_request()
        except OSError:
            time.sleep(RETRY_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection; if there are too many, in the place of one that has had its time."""
        host = str(client_address[0]) if client_address else ""
        self._wait_for_threads()
        with self._lock:
            if len(self._open) >= METRICS_CONNECTIONS:
                self._make_room(host)
            has_room = len(self._open) < METRICS_CONNECTIONS and self._has_threads
            if has_room:
                now = time.monotonic()
                self._open[request] = _Connection(host, now, now + REQUEST_S)
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    @property
    def _has_threads(self) -> bool:
        """Whether there may be one more thread: those of cut connections take a moment to end."""
        return len(self._open) + len(self._cut_off) < 2 * METRICS_CONNECTIONS

    def _wait_for_threads(self) -> None:
        """Wait until there may be one more thread, but not for long."""
        until = time.monotonic() + THREADS_S
        while not self._has_threads and time.monotonic() < until:
            time.sleep(THREADS_S / 100)

    def _make_room(self, host: str) -> None:
        """Cut the oldest connection that has not asked yet; or, of a host that has more than `host` would
        have, the oldest; or one that had some time to read its answer."""
        hosts = Counter(each.host for each in self._open.values())
        most, count = hosts.most_common(1)[0]
        patient = time.monotonic() - PATIENCE_S
        there = self._open.items()
        silent = (request for request, each in there if not each.has_asked)
        crowding = (request for request, each in there if each.host == most and count > hosts[host] + 1)
        slow = (request for request, each in there if each.since < patient)
        request = next(itertools.chain(silent, crowding, slow), None)
        if request is not None:
            self._cut(request)

    def note_request(self, request: socket.socket) -> None:
        """Take note that a connection has sent its request, and give it time to read the answer."""
        with self._lock:
            if request in self._open:
                connection = self._open[request]
                connection.has_asked = True
                connection.since = time.monotonic()
                connection.until = connection.since + ANSWER_S

    def service_actions(self) -> None:
        """End connections whose time is over; called twice a second."""
        now = time.monotonic()
        with self._lock:
            for request in [request for request, each in self._open.items() if each.until < now]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Shut a connection down, by which its thread ends."""
        del self._open[request]
        self._cut_off.add(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and forget it."""
        with self._lock:
            self._open.pop(request, None)
            self._cut_off.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log that a connection ended by an error, most likely of the client."""
        log.debug("a connection to the metrics ended by an error", exc_info=sys.exc_info())

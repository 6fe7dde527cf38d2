"""The HTTP server of the metrics: a few connections at a time, and none of them for long."""

import contextlib
import socket
import sys
import time
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog

from darner.access.descriptors import METRICS_CONNECTIONS

log = structlog.get_logger()

# How long, in seconds, a connection may take to send its request, and to read the answer.
REQUEST_S = 5.0
ANSWER_S = 60.0
# After how many seconds a connection that could not be accepted, for want of a descriptor, is tried again.
RETRY_S = 0.2


class _Handler(WSGIRequestHandler):
    """One request, which is one scrape."""

    server: "HttpServer"

    def parse_request(self) -> bool:
        """Read the request, and note that it has come."""
        is_right = super().parse_request()
        if is_right:
            self.server.note_request(self.connection)
        return is_right

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: strangers could fill the log."""


class HttpServer(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection.

    Connections are few and limited in time: strangers take no descriptors from the queues, and nobody keeps a
    scrape out by being silent.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        # the connections, oldest first, and until when each may last
        self._until: dict[socket.socket, float] = {}
        # those whose request has come
        self._requesting: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name."""
        TCPServer.server_bind(self)
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; one that cannot be accepted is tried again after a while."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(RETRY_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection; if there are too many, in the place of the oldest without a request."""
        with self._lock:
            if len(self._until) >= METRICS_CONNECTIONS:
                idle = next((each for each in self._until if each not in self._requesting), None)
                if idle is not None:
                    self._cut(idle)
            has_room = len(self._until) < METRICS_CONNECTIONS
            if has_room:
                self._until[request] = time.monotonic() + REQUEST_S
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def note_request(self, request: socket.socket) -> None:
        """Take note that a connection has sent its request, and give it time to read the answer."""
        with self._lock:
            if request in self._until:
                self._requesting.add(request)
                self._until[request] = time.monotonic() + ANSWER_S

    def service_actions(self) -> None:
        """End connections whose time is over; called twice a second."""
        now = time.monotonic()
        with self._lock:
            for request in [each for each, until in self._until.items() if until < now]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Shut a connection down, by which its thread ends."""
        del self._until[request]
        self._requesting.discard(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and forget it."""
        with self._lock:
            self._until.pop(request, None)
            self._requesting.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log that a connection ended by an error, most likely of the client."""
        log.debug("a connection to the metrics ended by an error", exc_info=sys.exc_info())

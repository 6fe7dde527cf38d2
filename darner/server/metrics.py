"""The figures of `stats` for Prometheus, over HTTP.

Each scrape is made by prometheus_client, the extra `metrics`, in a thread. What is told belongs to the event
loop: it is read there, some queues at a time, and made into text in the thread, which lets the loop in every
so often. So a scrape holds up no client for long, however many queues there are.
"""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Thread
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import InfoMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.samples import Sample

from darner._version import __version__
from darner.access.admission import METRICS_CONNECTIONS
from darner.printable import shown
from darner.queues.cursor import cursor_lags
from darner.server.listeners import bind, unusable
from darner.wire.clients import Clients
from darner.wire.figures import CURSOR_LAG, QUEUE_FIGURES, SERVER_FIGURES, Figure

log = structlog.get_logger()

# How many queues are read in one turn of the event loop, and samples made into text without a pause: each is
# about half a millisecond's work.
QUEUES_PER_TURN = 50
SAMPLES_PER_PAUSE = 100
# After which a turn of the event loop ends, whatever was read.
TURN_S = 0.002
# Long enough for the loop to wake up and take the interpreter's lock.
PAUSE_S = 0.0005

# How long a connection may take to ask, and to read what it asked for.
REQUEST_S = 5.0
ANSWER_S = 60.0
# When one that could not be accepted, for want of a descriptor, is tried again.
RETRY_S = 0.2

SERVER_METRICS = tuple(figure for figure in SERVER_FIGURES if figure.metric)
QUEUE_METRICS = tuple(figure for figure in QUEUE_FIGURES if figure.metric)


class Metrics:
    """A port on which the figures of one server can be had."""

    def __init__(self, clients: Clients, host: str, port: int) -> None:
        """Serve; port 0 lets the system choose. Raises StartError if it cannot listen there."""
        registry = CollectorRegistry()
        registry.register(_Figures(clients))
        ProcessCollector(registry=registry)
        for sock in bind([host], port, "metrics_host", "metrics_port"):
            sock.close()
        try:
            self._http = _Http(host, port)
        except OSError as error:
            raise unusable(host, port, error, "metrics_host", "metrics_port") from error
        self._http.set_app(make_wsgi_app(registry))
        self._thread = Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.port = self._http.server_port
        log.info("serving metrics", host=host, port=self.port)

    def close(self) -> None:
        """Serve no more. It takes up to half a second."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(WSGIRequestHandler):
    """One scrape."""

    server: "_Http"

    def parse_request(self) -> bool:
        """Take in the request, and note that it is there."""
        is_right = super().parse_request()
        if is_right:
            self.server.note_request(self.connection)
        return is_right

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of strangers."""


class _Http(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection, of which there are a few, and not for ever: strangers take
    no descriptors from the queues, and nobody keeps a scrape out by being silent."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        # the connections, the oldest first, and until when each may last
        self._until: dict[socket.socket, float] = {}
        self._asking: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind, and do not look for the host's name."""
        TCPServer.server_bind(self)
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. One that waits and cannot be accepted is tried again in a while."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(RETRY_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in the place of the oldest that has asked for nothing if there are too many."""
        with self._lock:
            if len(self._until) >= METRICS_CONNECTIONS:
                idle = next((each for each in self._until if each not in self._asking), None)
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
        """A connection has asked for something, and may take its time to read it."""
        with self._lock:
            if request in self._until:
                self._asking.add(request)
                self._until[request] = time.monotonic() + ANSWER_S

    def service_actions(self) -> None:
        """Twice a second: end what lasts too long."""
        now = time.monotonic()
        with self._lock:
            for request in [each for each, until in self._until.items() if until < now]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Let the thread of a connection meet its end."""
        del self._until[request]
        self._asking.discard(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        with self._lock:
            self._until.pop(request, None)
            self._asking.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection ended by an error: the client's, most likely."""
        log.debug("a connection to the metrics ended by an error", exc_info=sys.exc_info())


class _Figures:
    """What prometheus_client asks for metrics, in one of its threads."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        """Everything there is to tell at this moment."""
        server, queues, lags = asyncio.run_coroutine_threadsafe(self._read(), self._clients.loop).result()
        yield InfoMetricFamily("darner", "The server.", {"version": __version__, "pid": str(os.getpid())})
        for figure, value in zip(SERVER_METRICS, server, strict=True):
            yield _metric(figure, [({}, value)])
        for at, of_queue in enumerate(QUEUE_METRICS):
            yield _metric(of_queue, (({"queue": name}, values[at]) for name, values in queues))
        yield _metric(CURSOR_LAG, lags)

    async def _read(
        self,
    ) -> tuple[list[int | str], list[tuple[str, tuple[int | str, ...]]], list[tuple[dict[str, str], int]]]:
        clients = self._clients
        server = []
        for figure in SERVER_METRICS:
            server.append(figure.read(clients))
            await asyncio.sleep(0)  # some are sums over all queues
        queues = []
        lags = []
        left = 0
        until = 0.0
        for name, queue in list(clients.broker.visible.items()):
            # the first look at the head of a queue, after a start, opens that
            if not left or time.monotonic() > until:
                await asyncio.sleep(0)
                left, until = QUEUES_PER_TURN, time.monotonic() + TURN_S
            left -= 1
            values = tuple(of_queue.read(queue) for of_queue in QUEUE_METRICS)
            queues.append((shown(name), values))
            for label, lag in cursor_lags(queue):
                lags.append(({"queue": shown(name), "cursor": shown(label)}, lag))
        return server, queues, lags


def _metric(figure: Figure[Any], readings: Iterable[tuple[dict[str, str], int | str]]) -> Metric:
    is_counter = figure.metric.endswith("_total")
    metric = Metric(figure.metric.removesuffix("_total"), figure.help, "counter" if is_counter else "gauge")
    # made as they are written: a list of them would be made without a pause
    metric.samples = cast("list[Sample]", _samples(figure, readings))
    return metric


def _samples(figure: Figure[Any], readings: Iterable[tuple[dict[str, str], int | str]]) -> Iterator[Sample]:
    for number, (labels, value) in enumerate(readings):
        if number % SAMPLES_PER_PAUSE == 0:
            time.sleep(PAUSE_S)
        yield Sample(figure.metric, labels, float(value) * figure.scale)

"""The figures of `stats` for Prometheus, over HTTP.

prometheus_client, the extra `metrics`, answers each scrape in a thread. The figures belong to the event loop:
they are read there, some queues at a time, and made into text in the thread, which pauses every so often. So
a scrape holds up no client for long, however many queues there are.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from threading import Thread
from typing import Any, cast

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import InfoMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.samples import Sample

from darner._version import __version__
from darner.printable import shown
from darner.queues.cursor import cursor_lags
from darner.server.metrics_http import HttpServer
from darner.server.tcp import bind, unusable
from darner.wire.clients import Clients
from darner.wire.figures import CURSOR_LAG, QUEUE_FIGURES, SERVER_FIGURES, Figure

log = structlog.get_logger()

# How many queues are read in one turn of the event loop, and how many samples are made into text without a
# pause: each takes about half a millisecond.
QUEUES_PER_TURN = 50
SAMPLES_PER_PAUSE = 100
# After how many seconds a turn of the event loop ends, whatever was read.
TURN_S = 0.002
# How long a pause is, in seconds: enough for the event loop to wake up and take the interpreter's lock.
PAUSE_S = 0.0005

SERVER_METRICS = tuple(figure for figure in SERVER_FIGURES if figure.metric)
QUEUE_METRICS = tuple(figure for figure in QUEUE_FIGURES if figure.metric)


class Metrics:
    """The port on which Prometheus reads the figures of one server."""

    def __init__(self, clients: Clients, host: str, port: int) -> None:
        """Listen and serve; port 0 lets the system choose. Raises StartError if it cannot listen there."""
        registry = CollectorRegistry()
        registry.register(_Collector(clients))
        ProcessCollector(registry=registry)
        for sock in bind([host], port, "metrics_host", "metrics_port"):
            sock.close()
        try:
            self._http = HttpServer(host, port)
        except OSError as error:
            raise unusable(host, port, error, "metrics_host", "metrics_port") from error
        self._http.set_app(make_wsgi_app(registry))
        self._thread = Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.port = self._http.server_port
        log.info("serving metrics", host=host, port=self.port)

    def close(self) -> None:
        """Stop serving. Takes up to half a second."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Collector:
    """The source of metrics that prometheus_client asks, in one of its threads."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, with their values at this moment."""
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
        """Read, on the event loop, the values of the server, of each queue, and the lag of each cursor."""
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
            # a look at the head of a queue may open its LevelDB, so time counts, too
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
    # a generator: a list of samples would be made without a pause
    metric.samples = cast("list[Sample]", _samples(figure, readings))
    return metric


def _samples(figure: Figure[Any], readings: Iterable[tuple[dict[str, str], int | str]]) -> Iterator[Sample]:
    for number, (labels, value) in enumerate(readings):
        if number % SAMPLES_PER_PAUSE == 0:
            time.sleep(PAUSE_S)
        yield Sample(figure.metric, labels, float(value) * figure.scale)

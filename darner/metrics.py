"""The figures of `stats` for Prometheus, over HTTP.

prometheus_client, the extra `metrics`, serves each scrape in a thread. What is told belongs to the event
loop: it is read there, some queues at a time, and made into text in the thread, which lets the loop in every
so often. So a scrape holds up no client for long, however many queues there are.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import InfoMetricFamily
from prometheus_client.samples import Sample

from darner._version import __version__
from darner.connection import Clients
from darner.figures import QUEUE_FIGURES, SERVER_FIGURES, Figure
from darner.listeners import check_usable, unusable

log = structlog.get_logger()

# How many queues are read in one turn of the event loop, and samples made into text without a pause: each is
# about half a millisecond's work.
QUEUES_PER_TURN = 50
SAMPLES_PER_PAUSE = 100
# Long enough for the loop to wake up and take the interpreter's lock.
PAUSE_S = 0.0005

SERVER_METRICS = tuple(figure for figure in SERVER_FIGURES if figure.metric)
QUEUE_METRICS = tuple(figure for figure in QUEUE_FIGURES if figure.metric)


class Metrics:
    """A port on which the figures of one server can be had."""

    def __init__(self, clients: Clients, host: str, port: int) -> None:
        """Serve; port 0 lets the system choose. Raises StartError if it cannot listen there."""
        registry = CollectorRegistry()
        registry.register(_Figures(clients))
        ProcessCollector(registry=registry)
        try:
            check_usable(host, port)
            self._http, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise unusable(host, port, error, "metrics_host", "metrics_port") from error
        self.port = self._http.server_port
        log.info("serving metrics", host=host, port=self.port)

    def close(self) -> None:
        """Serve no more. It takes up to half a second."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Figures:
    """What prometheus_client asks for metrics, in one of its threads."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        """Everything there is to tell at this moment."""
        server, queues = asyncio.run_coroutine_threadsafe(self._read(), self._clients.loop).result()
        yield InfoMetricFamily("darner", "The server.", {"version": __version__, "pid": str(os.getpid())})
        for figure, value in zip(SERVER_METRICS, server, strict=True):
            yield _metric(figure, [({}, value)])
        for at, of_queue in enumerate(QUEUE_METRICS):
            yield _metric(of_queue, (({"queue": name}, values[at]) for name, values in queues))

    async def _read(self) -> tuple[list[int | str], list[tuple[str, tuple[int | str, ...]]]]:
        clients = self._clients
        server = []
        for figure in SERVER_METRICS:
            server.append(figure.read(clients))
            await asyncio.sleep(0)  # some are sums over all queues
        queues = []
        for number, (name, queue) in enumerate(list(clients.broker.shown.items())):
            if number % QUEUES_PER_TURN == 0:
                await asyncio.sleep(0)
            values = tuple(of_queue.read(queue) for of_queue in QUEUE_METRICS)
            queues.append((name.decode(errors="backslashreplace"), values))
        return server, queues


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

"""The figures of `stats` for Prometheus, over HTTP, and the probes beside them.

prometheus_client, the extra `metrics`, answers each scrape in a thread. The figures belong to the event loop:
they are read there, some queues at a time, and made into text in the thread, which pauses every so often. So
a scrape holds up no client for long, however many queues there are. One is made at a time.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from threading import Lock, Thread
from typing import Any, NamedTuple, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from darner._records import HISTOGRAM_BOUNDS_S, Histogram
from darner._version import __version__
from darner.printable import shown
from darner.server.metrics_http import ANSWER_S, HttpServer
from darner.server.pages import Answer, Pages
from darner.server.probes import Probes
from darner.server.tcp import bind, unusable
from darner.wire.clients import Clients
from darner.wire.figure import Figure
from darner.wire.figures import CURSOR_LAG, DURATIONS, SERVER_FIGURES, STATE_FIGURES
from darner.wire.unattended import done

log = structlog.get_logger()

# How many queues are read in one turn of the event loop, and how many samples are made into text without a
# pause: each takes about half a millisecond.
QUEUES_PER_TURN = 50
SAMPLES_PER_PAUSE = 100
# After how many seconds a turn of the event loop ends, whatever was read.
TURN_S = 0.002
# How long a pause is, in seconds: enough for the event loop to wake up and take the interpreter's lock.
PAUSE_S = 0.0005

# How many times as long as a scrape no other one is made.
PAUSES = 3
# How many of the queues that are out of service are named.
NAMED = 100

SERVER_METRICS = tuple(figure for figure in (*SERVER_FIGURES, *STATE_FIGURES) if figure.metric)
OUT_OF_SERVICE: Figure[int] = Figure(
    "",
    lambda is_so: is_so,
    "darner_queue_out_of_service",
    "1 for a queue that is out of service; 100 are named.",
)


class Metrics:
    """The port on which Prometheus reads the figures of one server, and others ask how it is."""

    def __init__(self, clients: Clients, host: str, port: int) -> None:
        """Listen and serve; port 0 lets the system choose. Raises StartError if it cannot listen there."""
        registry = CollectorRegistry()
        collector = _Collector(clients)
        registry.register(collector)
        ProcessCollector(registry=registry)
        for sock in bind([host], port, "metrics_host", "metrics_port"):
            sock.close()
        try:
            self._http = HttpServer(host, port)
        except OSError as error:
            raise unusable(host, port, error, "metrics_host", "metrics_port") from error
        self.probes = Probes(clients)
        self._http.set_app(
            Pages(
                {
                    "/metrics": _Scrapes(make_wsgi_app(registry)).page,
                    "/healthz": self.probes.healthz,
                    "/readyz": self.probes.readyz,
                }
            )
        )
        self._thread = Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.port = self._http.server_port
        clients.reply_times = Histogram()
        self._logged = collector.logged
        logging.getLogger().addHandler(self._logged)
        log.info("serving metrics", host=host, port=self.port)

    def close(self) -> None:
        """Stop serving. Takes up to half a second."""
        logging.getLogger().removeHandler(self._logged)
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Scrapes:
    """The page /metrics. One scrape is made at a time, and then none for PAUSES times as long as it took;
    those who have asked meanwhile in the same way share the next one. So however many ask, most of the time
    is free."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        # held by who makes a scrape
        self._lock = Lock()
        # how many were begun, and from when on the next may be
        self._begun = 0
        self._from = 0.0
        # what was asked for last, which scrape that was, and the answer
        self._last: tuple[tuple[object, ...], int, Answer] | None = None

    def page(self, environ: WSGIEnvironment) -> Answer:
        """Return the figures as they are at a moment after this was called. Raises TimeoutError."""
        asked_for = tuple(map(environ.get, ("HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")))
        begun = self._begun
        if not self._lock.acquire(timeout=ANSWER_S):
            raise TimeoutError
        try:
            if self._last is None or self._last[0] != asked_for or self._last[1] <= begun:
                self._last = self._scrape(environ, asked_for)
            return self._last[2]
        finally:
            self._lock.release()

    def _scrape(
        self, environ: WSGIEnvironment, asked_for: tuple[object, ...]
    ) -> tuple[tuple[object, ...], int, Answer]:
        time.sleep(max(0.0, self._from - time.monotonic()))
        self._begun += 1
        begun_at = time.monotonic()
        heads: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> object:
            heads.append((status, headers))
            return None

        try:
            body = b"".join(
                self._app(
                    {**environ, "REQUEST_METHOD": "GET", "QUERY_STRING": ""},
                    cast("StartResponse", start_response),
                )
            )
        finally:
            now = time.monotonic()
            self._from = now + PAUSES * (now - begun_at)
        ((status, headers),) = heads
        return asked_for, self._begun, Answer(status, body, tuple(headers))


class _Collector:
    """The source of metrics that prometheus_client asks, in one of its threads."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._of_queue = [figure for figure in clients.figures.queue if figure.metric]
        self.logged = _Logged()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, with their values at this moment."""
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._clients.loop)
        try:
            found = reading.result(ANSWER_S)
        finally:
            reading.cancel()
        yield InfoMetricFamily("darner", "The server.", {"version": __version__, "pid": str(os.getpid())})
        figures = self._clients.figures
        for figure, value in zip((*SERVER_METRICS, *figures.state), found.server, strict=True):
            yield _metric(figure, [({}, value)])
        yield self.logged.metric()
        for (name, text, _), durations in zip((*DURATIONS, *figures.durations), found.durations, strict=True):
            yield _histogram(name, text, *durations)
        out_of_service = [({"queue": name}, 1) for name in found.out_of_service]
        yield _metric(OUT_OF_SERVICE, out_of_service)
        for at, of_queue in enumerate(self._of_queue):
            yield _metric(of_queue, (({"queue": name}, values[at]) for name, values in found.queues))
        yield _metric(CURSOR_LAG, found.lags)

    async def _read(self) -> "_Readings":
        """Read, on the event loop, the values of the server, of each queue, and the lag of each cursor."""
        clients, figures = self._clients, self._clients.figures
        for pending in clients.broker.steps_to_look(()):
            if pending is not None:
                await done(pending)
        server = []
        for figure in SERVER_METRICS:
            server.append(figure.read(clients))
            await asyncio.sleep(0)  # some are sums over all queues
        server += [figure.read(clients.broker) for figure in figures.state]
        histograms = [
            *(read(clients) for _, _, read in DURATIONS),
            *(read(clients.broker) for _, _, read in figures.durations),
        ]
        durations = [(times.counts, times.total_ns) for times in histograms]
        out_of_service = [shown(name) for name in itertools.islice(clients.broker.out_of_service, NAMED)]
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
            values = tuple(of_queue.read(queue) for of_queue in self._of_queue)
            queues.append((shown(name), values))
            for label, lag in figures.cursor_lags(queue):
                lags.append(({"queue": shown(name), "cursor": shown(label)}, lag))
        return _Readings(server, durations, out_of_service, queues, lags)


class _Readings(NamedTuple):
    """What a scrape has read on the event loop."""

    # of SERVER_METRICS, and of what the store has besides
    server: list[int | str]
    # of DURATIONS and those of the store: counts and ns in all
    durations: list[tuple[list[int], int]]
    # names of queues
    out_of_service: list[str]
    # by name
    queues: list[tuple[str, tuple[int | str, ...]]]
    lags: list[tuple[dict[str, str], int]]


class _Logged(logging.Handler):
    """A handler that counts what is logged, by level."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts = {"warning": 0, "error": 0}

    def emit(self, record: logging.LogRecord) -> None:
        """Count one; logging sees to it that there is one at a time."""
        self._counts["error" if record.levelno >= logging.ERROR else "warning"] += 1

    def metric(self) -> Metric:
        """Return the counts so far."""
        metric = CounterMetricFamily(
            "darner_logged_events", "Warnings and errors that the server has logged.", labels=["level"]
        )
        for level, count in self._counts.items():
            metric.add_metric([level], count)
        return metric


def _histogram(name: str, text: str, counts: list[int], total_ns: int) -> Metric:
    """Return how often something took how long; `counts` is that of a `Histogram`."""
    bounds = [*map(floatToGoString, HISTOGRAM_BOUNDS_S), "+Inf"]
    buckets = zip(bounds, itertools.accumulate(counts), strict=True)
    return HistogramMetricFamily(name, text, list(buckets), total_ns / 1e9)


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

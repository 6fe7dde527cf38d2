"""The life of the process: open the queues, listen, serve, drain, close."""

import asyncio
import contextlib
import math
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from darner._records import guard_memory, monotonic_ns, now_ms, share_heap, since_boot_ms
from darner._version import __version__
from darner.access import descriptors, exposure, guard
from darner.access.admission import Admission
from darner.access.credentials import read_tls, read_users
from darner.access.descriptors import METRICS_CONNECTIONS
from darner.config.settings import Settings
from darner.environment.budget import Budget
from darner.environment.environment import Environment
from darner.errors import StartError
from darner.journal.disk_reserve import size_for
from darner.server import garbage, systemd
from darner.server.background import keep_running
from darner.server.listeners import Listeners
from darner.server.optional_metrics import metrics_class
from darner.server.reload import Reload
from darner.server.signals import SignalWatch
from darner.server.stats_settings import stats_settings
from darner.server.stores import make_store
from darner.server.threads import Threads
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS

if TYPE_CHECKING:
    from darner.server.metrics import Metrics

log = structlog.get_logger()

# How long, in seconds, clients have at the end to send the rest of a request and to read their replies.
DRAIN_S = 5.0
# How often, in seconds, the queues' upkeep gets a slice of time.
TICK_S = 0.25
TICK_NS = int(TICK_S * 1e9)
# How often, in seconds, idle connections are looked for.
SWEEP_S = 1.0
# Where Linux has a number for its start.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# How many threads each lane has: they wait for the disk, not for a processor.
THREADS = 4


class Server:
    """One server: a data directory, the sockets it listens on, and its connections."""

    def __init__(
        self, settings: Settings, read_settings: Callable[[], Settings], signals: SignalWatch
    ) -> None:
        """`read_settings` reads the configuration again, and raises ConfigError if it is wrong."""
        self._settings = settings
        self._signals = signals
        self._data = Path(settings.data).resolve()
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(self._loop, THREADS)
        kept = make_store(settings, self._environment())
        self._store = kept.store
        self._clients = Clients(
            self._loop,
            self._store,
            COMMANDS,
            figures=kept.figures,
            dialect=settings.dialect,
            keepalive=settings.keepalive,
        )
        idle_ms = settings.idle_timeout_ms
        self._admission = Admission(
            self._clients,
            self._threads.offload,
            max_connections=settings.max_connections,
            idle_timeout_s=None if idle_ms is None else math.ceil(idle_ms / 1000),
            denied=guard.denied_verbs(settings.deny),
            other_connections=0 if settings.metrics_port is None else METRICS_CONNECTIONS,
        )
        self._listeners = Listeners(self._admission, lambda: self._admission.accepted)
        self._reload = Reload(
            settings, read_settings, self._loop, self._clients, self._admission, self._listeners
        )
        self._metrics: Metrics | None = None
        self._stop = asyncio.Event()
        self._configure_clients()

    def _configure_clients(self) -> None:
        """Give clients the commands that are the server's."""
        clients, settings = self._clients, self._settings
        clients.reload = self._reload.steps
        clients.describe_settings = lambda: stats_settings(
            settings, self._listeners, self._admission.capacity.max_connections
        )
        clients.lists_queues = settings.queue_stats == "always"
        if settings.allow_shutdown:
            clients.shutdown = self._shut_down

    def _environment(self) -> Environment:
        return Environment(
            now_ms,
            self._threads.offload,
            defer=self._threads.defer,
            monotonic=since_boot_ms,
            boot=boot_number(),
            call_later=self._call_later,
            free_bytes=lambda: shutil.disk_usage(self._data).free,
            reserve_bytes=lambda: size_for(shutil.disk_usage(self._data).total),
            budget=Budget(lambda: time.monotonic() * 1000),
            stopwatch_ns=monotonic_ns,
        )

    def _call_later(self, delay_ms: int, work: Callable[[], None]) -> None:
        self._loop.call_later(max(0, delay_ms) / 1000, work)

    async def run(self) -> None:
        """Serve until a signal or a client says stop. Raises StartError or ConfigError if the server cannot
        start."""
        await self._start()
        self._tell_probes(None)
        self._log_start()
        systemd.notify("READY=1")
        tasks = [
            asyncio.create_task(keep_running(task))
            for task in (self._upkeep, self._sweep, self._listeners.keep_accepting)
        ]
        await self._stop.wait()
        systemd.notify("STOPPING=1")
        self._tell_probes("the server is closing")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            self._listeners.close()
            self._admission.close()
            await self._drain()
        except Exception:  # a fault of ours: the queues are closed all the same
            log.exception("not all clients are told that the server closes")
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await self._threads.end()
        await self._finish(self._store.close())
        # the event loop is about to end
        self._signals.set_handlers(lambda _: None, lambda: None)
        log.info("closed")

    async def _start(self) -> None:
        """Open the queues and listen. No client is served before this returns."""
        settings = self._settings
        given = systemd.sockets()
        if settings.metrics_port is not None:
            self._metrics = metrics_class()(self._clients, settings.metrics_host, settings.metrics_port)
        tls = read_tls(
            settings, self._admission.note_failed_handshake, self._admission.capacity.may_begin_handshake
        )
        self._admission.change_users(read_users(settings))
        await self._finish(self._store.open())
        try:
            await self._listeners.open(tls, given, settings.host, settings.port, settings.socket)
        except StartError:
            self._listeners.close()
            await self._threads.end()
            await self._finish(self._store.close())
            raise
        self._signals.set_handlers(
            lambda name: self._loop.call_soon_threadsafe(self._stop_by_signal, name),
            lambda: self._loop.call_soon_threadsafe(self._reload.by_signal),
        )

    @staticmethod
    async def _finish(work: Awaitable[None] | None) -> None:
        """Return when a store is open, or closed."""
        if work is not None:
            await work

    def _tell_probes(self, refusal: str | None) -> None:
        if self._metrics is not None:
            self._metrics.probes.refusal = refusal

    def _log_start(self) -> None:
        settings = self._settings
        queues, items, _ = self._store.totals.waiting()
        log.info("darner is up", version=__version__, pid=os.getpid())
        tls = {} if settings.tls_cert is None else {"tls": "on"}
        for host, port in self._listeners.addresses:
            log.info("listening", host=host, port=port, **tls)
        exposure.warn_if_exposed([host for host, _ in self._listeners.addresses], settings)
        for path in self._listeners.paths:
            log.info("listening", socket=path)
        if settings.store is None:
            log.info("data", directory=str(self._data), queues=queues, items=items)
        else:
            log.info("data in a cluster", durability=settings.durability, queues=queues, items=items)

    def _stop_by_signal(self, name: str) -> None:
        log.info("closing", signal=name, connections=len(self._clients.connections))
        self._stop.set()

    def _shut_down(self) -> None:
        self._signals.note_stopping()
        log.info("closing", cause="the command shutdown", connections=len(self._clients.connections))
        self._stop.set()

    async def _upkeep(self) -> None:
        while True:
            begun_ns = monotonic_ns()
            await asyncio.sleep(TICK_S)
            self._clients.loop_lags.observe(max(0, monotonic_ns() - begun_ns - TICK_NS))
            self._store.tick()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._admission.sweep()

    async def _drain(self) -> None:
        """Let clients send the rest of a request and read their replies, then close their connections."""
        for connection in list(self._clients.connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._clients.wait_until_empty(), DRAIN_S)
        for connection in list(self._clients.connections):
            connection.abort()
        await self._clients.wait_until_empty()


def boot_number() -> int:
    """Return a number of 60 bits, another one for each start of the machine; 0 if the system has none."""
    try:
        return int(BOOT_ID.read_text().replace("-", "")[:15], 16)
    except (OSError, ValueError):
        return 0


def serve(settings: Settings, read_settings: Callable[[], Settings], signals: SignalWatch) -> None:
    """Run a server until it is told to stop. `read_settings` reads its configuration again, for a reload.
    Raises StartError or ConfigError if the server cannot start."""

    async def main() -> None:
        await Server(settings, read_settings, signals).run()

    os.umask(0o077)
    descriptors.raise_limit()
    share_heap()
    guard_memory()
    garbage.limit_pauses()
    uvloop.run(main())

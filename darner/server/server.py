"""The life of the process: open the queues, listen, serve, drain, close."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import resource
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from darner._records import guard_memory, share_heap, since_boot_ms
from darner._version import __version__
from darner.access import auth, exposure, tls
from darner.access.admission import (
    CONNECTIONS_SHARE,
    FILES_SHARE,
    LINGERING_SHARE,
    METRICS_CONNECTIONS,
    Admission,
)
from darner.config.settings import Settings, needs_restart
from darner.environment.budget import Budget
from darner.environment.environment import Environment
from darner.errors import ConfigError, DarnerError, StartError
from darner.journal.commit import MAX_OPEN
from darner.journal.reserve import size_for
from darner.printable import shown
from darner.queues import data_directory, events, names, space
from darner.queues.broker import Broker
from darner.server import collector, listeners, systemd
from darner.server.listeners import BACKLOG, UNIX_MODE, Listeners, SocketInUseError
from darner.server.signals import Watch
from darner.server.threads import Threads
from darner.wire.clients import Clients
from darner.wire.connection import now_ms

if TYPE_CHECKING:
    from darner.server.metrics import Metrics

log = structlog.get_logger()

# How long clients have to send the rest of what they began, and to read what is theirs.
DRAIN_S = 5.0
# How often the work that waits for nobody gets a slice.
TICK_S = 0.25
# How often idle connections are looked for.
SWEEP_S = 1.0
# How long after an error such work is begun again.
REPEAT_S = 1.0
# What an open LevelDB takes of the descriptors, or nearly: LOCK, LOG, MANIFEST, its log and tables. And what
# the process has besides those, connections and large items: the log, the listeners, the event loop.
DESCRIPTORS_PER_OPEN = 8
OTHER_DESCRIPTORS = 40
# Where Linux has a number for its start.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# For each lane: they wait for the disk, not for a processor.
THREADS = 4


def read_access(settings: Settings, admission: Admission) -> tuple[ssl.SSLContext | None, auth.Users | None]:
    """The certificates and the users that the settings name, as they are now. `admission` is asked for room
    before each TLS handshake, and told of those that fail. Raises ConfigError."""
    return _read_tls(settings, admission.note_handshake, admission.may_shake_hands), _read_users(settings)


def _read_tls(
    settings: Settings,
    failed: Callable[[str], None] = lambda _: None,
    may_begin: Callable[[], bool] = lambda: True,
) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = None if settings.tls_ca is None else Path(settings.tls_ca)
    return tls.context(Path(settings.tls_cert), Path(settings.tls_key), ca, failed, may_begin)


def _read_users(settings: Settings) -> auth.Users | None:
    return None if settings.auth_file is None else auth.load(Path(settings.auth_file))


def _metrics_class() -> "type[Metrics]":
    """What serves metrics. Raises StartError if it is not installed."""
    try:
        # not at the top: it is an extra, and takes its time and memory
        from darner.server.metrics import Metrics  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise StartError("metrics_port needs prometheus_client: pip install darner[metrics]") from error
    return Metrics


def check_start(settings: Settings) -> Iterator[DarnerError]:
    """Return what would keep a server with these settings from starting, as far as that can be told without
    starting one. What it would say in its log at the start is logged."""
    data = Path(settings.data).resolve()
    for look in (
        lambda: _read_tls(settings),
        lambda: _read_users(settings),
        lambda: None if settings.metrics_port is None else _metrics_class(),
        lambda: data_directory.check_usable(data),
    ):
        try:
            look()
        except DarnerError as error:
            yield error
    is_served = data_directory.is_served(data)
    unusable = list(_check_addresses(settings, is_served=is_served))
    yield from unusable
    if not unusable:
        exposure.say_open(settings.host, settings)
    if settings.socket is not None:
        yield from _check_socket(settings.socket, is_served=is_served)
    with contextlib.suppress(OSError):  # said already
        free_bytes = shutil.disk_usage(data_directory.nearest_existing(data)).free
        if free_bytes < settings.min_free_space:
            space.log_full(free_bytes=free_bytes, min_free_bytes=settings.min_free_space)
        for directory in names.queue_directories(data):
            name = names.name_of(directory)
            if not settings.queue(name).durable:
                events.log_in_memory(name)


def _check_addresses(settings: Settings, *, is_served: bool) -> Iterator[StartError]:
    hosts: list[tuple[Sequence[str], int, str, str]] = [(settings.host, settings.port, "--host", "--port")]
    if settings.metrics_port is not None:
        hosts.append(([settings.metrics_host], settings.metrics_port, "metrics_host", "metrics_port"))
    for host, port, host_key, port_key in hosts:
        try:
            for sock in listeners.bind(host, port, host_key, port_key):
                sock.close()
        except StartError as refusal:
            cause = refusal.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
                yield refusal
            elif not is_served:  # else it is the server's that has this configuration
                log.warning("port in use", reason=str(refusal))


def _check_socket(path: str, *, is_served: bool) -> Iterator[StartError]:
    try:
        listeners.check_unix(path)
    except SocketInUseError as refusal:
        if not is_served:
            log.warning("socket in use", reason=str(refusal))
    except StartError as refusal:
        yield refusal


class Server:
    """One server: a data directory, a port, and the connections to it."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], watch: Watch) -> None:
        """`reread` reads the configuration again; ConfigError if it is wrong. `watch` has the signals."""
        self._settings = settings
        self._reread = reread
        self._watch = watch
        self._data = Path(settings.data).resolve()
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(self._loop, THREADS)
        self._broker = Broker(
            self._data,
            self._environment(),
            settings.queue,
            settings.aliases,
            settings.status_change_grace_period_ms,
            settings.min_free_space,
            _most_open(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        )
        self._clients = Clients(
            self._loop, self._broker, dialect=settings.dialect, keepalive=settings.keepalive
        )
        self._clients.reload = self._reload
        self._clients.describe_settings = self._describe_settings
        self._clients.lists_queues = settings.queue_stats == "always"
        if settings.allow_shutdown:
            self._clients.shutdown = self._shut_down
        idle_ms = settings.idle_timeout_ms
        self._admission = Admission(
            self._clients,
            self._threads.offload,
            max_connections=settings.max_connections,
            idle_timeout_s=None if idle_ms is None else math.ceil(idle_ms / 1000),
            denied=auth.denied_verbs(settings.deny),
            other_connections=0 if settings.metrics_port is None else METRICS_CONNECTIONS,
        )
        self._listeners = Listeners(self._admission, lambda: self._admission.accepted)
        self._stop = asyncio.Event()

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
        )

    def _call_later(self, delay_ms: int, work: Callable[[], None]) -> None:
        self._loop.call_later(max(0, delay_ms) / 1000, work)

    async def run(self) -> None:
        """Serve until a signal says stop. Raises StartError or ConfigError if the server cannot start."""
        settings = self._settings
        given = systemd.sockets()
        metrics = self._serve_metrics()
        context, self._admission.users = read_access(self._settings, self._admission)
        self._broker.open()
        try:
            await self._listeners.open(context, given, settings.host, settings.port, settings.socket)
        except StartError:
            self._listeners.close()
            await self._threads.end()
            self._broker.close()
            raise
        # no client has been served before that
        self._watch.hand_over(
            lambda name: self._loop.call_soon_threadsafe(self._signalled, name),
            lambda: self._loop.call_soon_threadsafe(self._hung_up),
        )
        queues, items, _ = self._broker.totals.waiting()
        log.info("darner is up", version=__version__, pid=os.getpid())
        for host, port in self._listeners.addresses:
            log.info("listening", host=host, port=port, **({"tls": "on"} if context else {}))
        exposure.say_open([host for host, _ in self._listeners.addresses], settings)
        for path in self._listeners.paths:
            log.info("listening", socket=path)
        log.info("data", directory=str(self._data), queues=queues, items=items)
        systemd.notify("READY=1")
        chores = (self._upkeep, self._sweep, self._listeners.keep)
        upkeep = [asyncio.create_task(_go_on(chore)) for chore in chores]
        await self._stop.wait()
        systemd.notify("STOPPING=1")
        for task in upkeep:
            task.cancel()
        await asyncio.wait(upkeep)
        try:
            self._listeners.close()
            self._admission.close()
            await self._drain()
        except Exception:  # a fault of ours: it must not keep the queues from being closed
            log.exception("not all clients are told that the server closes")
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
        await self._threads.end()
        self._broker.close()
        # the loop is about to be no more
        self._watch.hand_over(lambda _: None, lambda: None)
        log.info("closed")

    def _describe_settings(self) -> Iterable[tuple[str, object]]:
        """What `stats settings` says: by memcached's names, and ours that it has not."""
        settings = self._settings
        limits = settings.queue_defaults
        addresses = self._listeners.addresses
        paths = self._listeners.paths
        idle_ms = settings.idle_timeout_ms
        switches = {False: "no", True: "yes"}
        return (
            ("maxbytes", 0),
            ("maxconns", self._admission.room),
            ("tcpport", addresses[0][1] if addresses else 0),
            ("udpport", 0),
            ("inter", ",".join(dict.fromkeys(host for host, _ in addresses))),
            ("verbosity", {logging.WARNING: 0, logging.INFO: 1}.get(logging.getLogger().level, 2)),
            ("evictions", "on" if limits.discard_old_when_full else "off"),
            ("domain_socket", shown(os.fsencode(paths[0])) if paths else "NULL"),
            ("umask", f"{UNIX_MODE:o}"),
            ("num_threads", 1),
            ("cas_enabled", "no"),
            ("tcp_backlog", BACKLOG),
            ("binding_protocol", "ascii"),
            ("auth_enabled_sasl", "no"),
            ("auth_enabled_ascii", switches[settings.auth_file is not None]),
            ("item_size_max", limits.max_item_size or 0),
            ("idle_timeout", 0 if idle_ms is None else math.ceil(idle_ms / 1000)),
            ("flush_enabled", "yes"),
            ("lru_crawler", "no"),
            ("ssl_enabled", switches[settings.tls_cert is not None]),
            ("dialect", settings.dialect),
            ("queue_stats", settings.queue_stats),
            ("keepalive", settings.keepalive),
        )

    def _serve_metrics(self) -> "Metrics | None":
        settings = self._settings
        if settings.metrics_port is None:
            return None
        return _metrics_class()(self._clients, settings.metrics_host, settings.metrics_port)

    def _signalled(self, name: str) -> None:
        log.info("closing", signal=name, connections=len(self._clients.connections))
        self._stop.set()

    def _shut_down(self) -> None:
        self._watch.note_stopping()
        log.info("closing", cause="the command shutdown", connections=len(self._clients.connections))
        self._stop.set()

    def _hung_up(self) -> None:
        self._clients.do(self._reload_by_signal())

    def _reload_by_signal(self) -> Iterator[None]:
        with contextlib.suppress(ConfigError):  # said in the log
            yield from self._reload()

    def _reload(self) -> Iterator[None]:
        """Read the configuration, the certificates and the users again, and take what is for queues and for
        those who connect from now on; users that are gone or changed are disconnected. ConfigError if
        something of it is wrong; then nothing has changed."""
        try:
            settings = self._reread()
            context, users = read_access(self._settings, self._admission)
        except ConfigError as error:
            log.error("nothing reloaded, everything stays as it was", reason=str(error))
            raise
        self._admission.change_users(users)
        if context is not None:
            self._listeners.change_tls(context)
        steps = self._reconfigure(settings)
        try:
            for _ in steps:  # and not from them: they go on without this
                yield
        except GeneratorExit:  # whoever has asked for it has gone
            self._loop.call_soon(self._clients.do, steps)
            raise

    def _reconfigure(self, settings: Settings) -> Iterator[None]:
        changed: list[bytes] = []
        yield from self._broker.reconfigure(settings.queue, settings.aliases, changed)
        lists = {
            "changed": " ".join(sorted(map(shown, changed))),
            "needs_restart": " ".join(needs_restart(self._settings, settings)),
        }
        log.info("configuration reloaded", **{key: text for key, text in lists.items() if text})

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._broker.tick()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._admission.sweep()

    async def _drain(self) -> None:
        for connection in list(self._clients.connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._clients.emptied(), DRAIN_S)
        for connection in list(self._clients.connections):
            connection.abort()
        await self._clients.emptied()


def _most_open(descriptors: int) -> int:
    """How many LevelDBs may be open at once: what fits into the descriptors that no stranger can take."""
    left = descriptors * (1 - CONNECTIONS_SHARE - LINGERING_SHARE - FILES_SHARE) - OTHER_DESCRIPTORS
    return max(2, min(MAX_OPEN, int(left / DESCRIPTORS_PER_OPEN)))


def boot_number() -> int:
    """Return a number of 60 bits, another one for each start of the machine; 0 if the system has none."""
    try:
        return int(BOOT_ID.read_text().replace("-", "")[:15], 16)
    except (OSError, ValueError):
        return 0


async def _go_on(chore: Callable[[], Awaitable[None]]) -> None:
    """Do a chore that all depend on until cancelled: one that ends by an error of ours is begun again. The
    same error is said once."""
    said = ""
    while True:
        try:
            await chore()
        except Exception as error:
            if repr(error) != said:
                said = repr(error)
                log.exception(
                    "internal error in what the server does by itself; begun again", chore=chore.__name__
                )
        await asyncio.sleep(REPEAT_S)


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system lets us: each connection needs one, each queue four."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(settings: Settings, reread: Callable[[], Settings], watch: Watch) -> None:
    """Run a server until a signal says stop, of which `watch` tells; `reread` reads its configuration again
    when a client or SIGHUP asks for it. Raises StartError if it cannot start."""

    async def main() -> None:
        await Server(settings, reread, watch).run()

    os.umask(0o077)
    raise_descriptor_limit()
    share_heap()
    guard_memory()
    collector.start()
    uvloop.run(main())

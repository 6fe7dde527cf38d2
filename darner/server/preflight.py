"""What would keep a server from starting, checked without starting one."""

import contextlib
import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from darner.access import credentials, exposure
from darner.config.settings import Settings
from darner.errors import DarnerError, StartError
from darner.queues import data_directory, events, names, space
from darner.server import tcp, unix
from darner.server.optional_metrics import metrics_class
from darner.server.stores import check_cluster

log = structlog.get_logger()


def check_start(settings: Settings) -> Iterator[DarnerError]:
    """Yield what would keep a server with these settings from starting, as far as that can be told without
    starting one. Logs the warnings that the server would log when it starts."""
    data = Path(settings.data).resolve() if settings.store is None else None
    yield from _check_files(settings, data)
    is_served = data is not None and data_directory.is_served(data)
    unusable = list(_check_addresses(settings, is_served=is_served))
    yield from unusable
    if not unusable:
        exposure.warn_if_exposed(settings.host, settings)
    if settings.socket is not None:
        yield from _check_socket(settings.socket, is_served=is_served)
    if data is not None:
        with contextlib.suppress(OSError):  # `_check_files` has said so
            _warn_of_data(settings, data)


def _check_files(settings: Settings, data: Path | None) -> Iterator[DarnerError]:
    """Yield what is wrong with certificates, users, the package for metrics, and the data directory; without
    one, with the package for a cluster and the files that it is reached with. No cluster is asked."""
    for check in (
        lambda: credentials.read_tls(settings),
        lambda: credentials.read_users(settings),
        lambda: None if settings.metrics_port is None else metrics_class(),
        lambda: check_cluster(settings) if data is None else data_directory.check_usable(data),
    ):
        try:
            check()
        except DarnerError as error:
            yield error


def _check_addresses(settings: Settings, *, is_served: bool) -> Iterator[StartError]:
    listened: list[tuple[Sequence[str], int, str, str]] = [(settings.host, settings.port, "--host", "--port")]
    if settings.metrics_port is not None:
        listened.append(([settings.metrics_host], settings.metrics_port, "metrics_host", "metrics_port"))
    for hosts, port, host_key, port_key in listened:
        try:
            for sock in tcp.bind(hosts, port, host_key, port_key):
                sock.close()
        except StartError as refusal:
            cause = refusal.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
                yield refusal
            elif not is_served:  # else the port is that of the server with this configuration
                log.warning("port in use", reason=str(refusal))


def _check_socket(path: str, *, is_served: bool) -> Iterator[StartError]:
    try:
        unix.check_unix(path)
    except unix.SocketInUseError as refusal:
        if not is_served:
            log.warning("socket in use", reason=str(refusal))
    except StartError as refusal:
        yield refusal


def _warn_of_data(settings: Settings, data: Path) -> None:
    """Log if the disk is full, and which queues on the disk are to be in memory. Raises OSError."""
    free_bytes = shutil.disk_usage(data_directory.nearest_existing(data)).free
    if free_bytes < settings.min_free_space:
        space.log_full(free_bytes=free_bytes, min_free_bytes=settings.min_free_space)
    for directory in names.queue_directories(data):
        name = names.name_of(directory)
        if not settings.queue(name).durable:
            events.log_in_memory(name)

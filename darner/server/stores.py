"""What keeps the queues: a data directory, or a cluster."""

import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from darner.access import descriptors
from darner.config.settings import Settings
from darner.environment.environment import Environment
from darner.errors import StartError
from darner.queues.broker import Broker
from darner.wire.figure import StoreFigures
from darner.wire.figures import LEVELDB_FIGURES
from darner.wire.store import Store


class LivingStore(Store, Protocol):
    """A store, with its life."""

    def open(self) -> Awaitable[None] | None:
        """Open the queues. Raises StartError."""

    def tick(self) -> None:
        """Do what time brings; to be called a few times a second."""

    def close(self) -> Awaitable[None] | None:
        """Close the queues."""


class Kept(NamedTuple):
    """A store, and the figures that it has."""

    store: LivingStore
    figures: StoreFigures


def make_store(settings: Settings, environment: Environment) -> Kept:
    """Return what is to keep the queues. Raises StartError if a package for it is missing, or settings are
    not served by it."""
    if settings.store is None:
        broker = Broker(
            Path(settings.data).resolve(),
            environment,
            settings.queue,
            settings.aliases,
            settings.status_change_grace_period_ms,
            settings.min_free_space,
            descriptors.shares().databases,
        )
        return Kept(broker, LEVELDB_FIGURES)
    return _make_cluster_store(settings, environment, settings.store)


def check_cluster(settings: Settings) -> None:
    """Raise StartError if the package for a cluster is missing, or a file to connect to it cannot be used."""
    try:
        import nats  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise StartError("store needs the package nats-py: pip install 'darner[nats]'") from error
    for urls in (settings.store, settings.store_system):
        if urls is not None:
            _options(settings, urls)
    credentials = settings.store_credentials
    if credentials is not None:
        try:
            Path(credentials).read_bytes()
        except OSError as error:
            raise StartError(f"cannot use store_credentials: {error}") from error


def _make_cluster_store(settings: Settings, environment: Environment, urls: str) -> Kept:
    check_cluster(settings)
    # they need nats-py, the extra `nats`
    from darner.jetstream.conditions import SYNCED  # noqa: PLC0415
    from darner.jetstream.figures import CLUSTER_FIGURES  # noqa: PLC0415
    from darner.jetstream.link import Link  # noqa: PLC0415
    from darner.jetstream.store import ClusterStore  # noqa: PLC0415

    system = settings.store_system
    store = ClusterStore(
        Link(**_options(settings, urls)),
        None if system is None or settings.durability != SYNCED else Link(**_options(settings, system)),
        environment,
        settings.queue,
        replicas=settings.replicas,
        durability=settings.durability,
        ack_wait_ms=settings.ack_wait_ms,
        grace_ms=settings.status_change_grace_period_ms,
    )
    return Kept(store, CLUSTER_FIGURES)


def _options(settings: Settings, urls: str) -> dict[str, Any]:
    """Return how to connect to the cluster, for nats-py. Raises StartError if a file cannot be read."""
    scheme, _, rest = urls.partition("://")
    login, at, hosts = rest.rpartition("@")
    options: dict[str, Any] = {
        "servers": [host if "://" in host else f"{scheme}://{host}" for host in hosts.split(",")]
    }
    if at:
        # a URL's login is for that node alone, and the cluster tells of nodes that have none
        user, colon, password = login.partition(":")
        options |= (
            {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
        )
    if settings.store_credentials is not None:
        options["user_credentials"] = settings.store_credentials
    if settings.store_ca is not None or settings.store_cert is not None:
        try:
            context = ssl.create_default_context(cafile=settings.store_ca)
            if settings.store_cert is not None:
                context.load_cert_chain(settings.store_cert, settings.store_key)
        except OSError as error:
            raise StartError(f"cannot use store_ca, store_cert or store_key: {error}") from error
        options["tls"] = context
    return options

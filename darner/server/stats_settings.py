"""The settings of a running server, as `stats settings` tells them."""

import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

from darner.config.settings import Settings
from darner.printable import shown
from darner.server.listeners import BACKLOG, Listeners
from darner.server.unix import UNIX_MODE


def stats_settings(
    settings: Settings, listeners: Listeners, max_connections: int
) -> Iterable[tuple[str, object]]:
    """Return names and values: memcached's, and behind them those that only darner has."""
    limits = settings.queue_defaults
    addresses = listeners.addresses
    paths = listeners.paths
    idle_ms = settings.idle_timeout_ms
    yes_no = {False: "no", True: "yes"}
    return (
        ("maxbytes", 0),
        ("maxconns", max_connections),
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
        ("auth_enabled_ascii", yes_no[settings.auth_file is not None]),
        ("item_size_max", limits.max_item_size or 0),
        ("idle_timeout", 0 if idle_ms is None else math.ceil(idle_ms / 1000)),
        ("flush_enabled", "yes"),
        ("lru_crawler", "no"),
        ("ssl_enabled", yes_no[settings.tls_cert is not None]),
        ("dialect", settings.dialect),
        ("queue_stats", settings.queue_stats),
        ("keepalive", settings.keepalive),
        *_where_queues_are(settings),
    )


def _where_queues_are(settings: Settings) -> tuple[tuple[str, str], ...]:
    if settings.store is None:
        return (("data", shown(os.fsencode(Path(settings.data).absolute()))),)
    return ("store", settings.store_nodes), ("durability", settings.durability)

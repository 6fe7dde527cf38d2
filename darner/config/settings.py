"""The settings, and which of them hold for a queue.

docs/darner.toml tells operators what each setting is for; kinds.py has what may be written for it.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from darner.config.kinds import (
    AckWaitMs,
    Attempts,
    Commands,
    Count,
    Dialect,
    Durability,
    Flag,
    Host,
    Hosts,
    KeepaliveS,
    LogFormat,
    OptionalCount,
    OptionalName,
    OptionalPort,
    OptionalSize,
    OptionalStore,
    OptionalText,
    OptionalTimeMs,
    Port,
    QueueStats,
    Replicas,
    Size,
    SyncMs,
    Text,
    TimeMs,
)


def _key(field: str) -> str:
    """Return the key of a field: the file has units in the values, not in the keys."""
    return field.removesuffix("_ms")


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, rename=_key):
    """The settings of one queue, in bytes and milliseconds; None is no limit."""

    # how many items may wait, and how many bytes these may have together
    max_items: OptionalCount = None
    max_bytes: OptionalSize = None
    # how many bytes one item may have
    max_item_size: OptionalSize = None
    # whether a set on a full queue drops the oldest items, rather than being refused
    discard_old_when_full: Flag = False
    # how long an item lives at most, even if its own expiry is later
    max_age_ms: OptionalTimeMs = None
    # the queue that expired items are moved to, in place of being dropped
    expire_to_queue: OptionalName = None
    # how many items a sweep for expired ones looks at before others have their turn
    max_expire_sweep: Count = 1000
    # whether a set stores items in the children of the queue alone
    fanout_only: Flag = False
    # how long a queue may be empty and without readers before it is deleted
    max_queue_age_ms: OptionalTimeMs = None
    # whether the items are on disk, or in memory alone
    durable: Flag = True
    # how often sets are synced to the disk: 0 is with each set, None is never
    sync_ms: SyncMs = None
    # how long an item may be reserved before it returns to the queue
    open_timeout_ms: OptionalTimeMs = None
    # how many items of the queue one connection may have reserved
    max_open_reads: Count = 1
    # how often an item may return to the queue before it is moved to `dead_letter_queue`, or dropped
    max_attempts: Attempts = None
    dead_letter_queue: OptionalName = None
    # how long the id of a set is remembered, so that it is not stored again; 0 is not at all
    dedup_window_ms: TimeMs = 300_000


# What was set for queues at run time: by name, the values by field.
Configured = Mapping[bytes, dict[str, Any]]
NOTHING_CONFIGURED: Configured = {}


class Pattern(msgspec.Struct, frozen=True):
    """A table of settings for every queue whose name matches; each `*` stands for any run of bytes."""

    name: str
    regex: re.Pattern[str]
    values: dict[str, Any]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=_key):
    """All settings of a server and of its queues."""

    # the addresses to listen on
    host: Hosts = ("127.0.0.1",)
    # the TCP port to listen on; 0 lets the system choose
    port: Port = 22133
    # the directory of the queues, made if missing
    data: Text = "data"
    # the cluster that keeps the queues in place of `data`: nats://host:port, several with commas between them
    store: OptionalStore = None
    # whether a set to the cluster is acknowledged once a majority of its nodes has it on disk, or in memory
    durability: Durability = "synced"
    # on how many nodes of the cluster each queue is kept
    replicas: Replicas = 3
    # after how long without a word from a darner the cluster gives the items it holds to another one
    ack_wait_ms: AckWaitMs = 30_000
    # the system account of the cluster, which is asked whether its nodes sync
    store_system: OptionalStore = None
    # for TLS and login to the cluster: an authority, a certificate and its key, a file of credentials
    store_ca: OptionalText = None
    store_cert: OptionalText = None
    store_key: OptionalText = None
    store_credentials: OptionalText = None
    # the Unix socket to listen on as well
    socket: OptionalText = None
    # whether to log debug messages
    debug: Flag = False
    # the form of the log: columns, key=value, or (auto) columns at a terminal and key=value elsewhere
    log_format: LogFormat = "auto"
    # whose replies clients get where they differ: memcached's, or those of Kestrel and the original darner
    dialect: Dialect = "memcached"
    # whether `stats` lists the queues, or only `stats queues` does
    queue_stats: QueueStats = "always"
    # after how many seconds of silence a peer is probed, and its connection closed if it does not answer
    keepalive: KeepaliveS = 60
    # how many connections there may be
    max_connections: OptionalCount = None
    # how long a client may send no request before its connection is closed
    idle_timeout_ms: OptionalTimeMs = None
    # how many bytes of the disk must stay free for sets to be served
    min_free_space: Size = 0
    # the commands that are refused to all but admins
    deny: Commands = ()
    # whether clients may shut the server down
    allow_shutdown: Flag = False
    # how long after a change to a stricter status requests that it forbids are still served
    status_change_grace_period_ms: TimeMs = 0
    # the certificate and its key, and the authority whose certificates clients must show
    tls_cert: OptionalText = None
    tls_key: OptionalText = None
    tls_ca: OptionalText = None
    # the file of users who may connect, and their passwords
    auth_file: OptionalText = None
    # where metrics are served over HTTP
    metrics_host: Host = "127.0.0.1"
    metrics_port: OptionalPort = None

    # `[queue_defaults]`
    queue_defaults: QueueSettings = QueueSettings()
    # `[queues."name"]`: tables by name; and those whose name has a `*`, the least specific first
    queues: dict[bytes, dict[str, Any]] = {}
    patterns: tuple[Pattern, ...] = ()
    # `[aliases]`: the queues that each alias stands for
    aliases: dict[bytes, tuple[bytes, ...]] = {}

    def queue(self, name: bytes, configured: Configured = NOTHING_CONFIGURED) -> QueueSettings:
        """Return the settings of the queue of this name.

        The defaults come first, then each pattern that matches, then what was configured for the queue at run
        time, then its own table; the later one counts. A child, such as `parent+child`, inherits the settings
        of its parent but for `fanout_only`; tables that match the child and not the parent come behind those.
        A queue that would inherit to move items to itself does not move them.
        """
        tables = self._tables(name, configured)
        parent, plus, _ = name.partition(b"+")
        if plus and parent:
            inherited = self._tables(parent, configured)
            tables = inherited + [table for table in tables if not any(table is other for other in inherited)]
        values: dict[str, Any] = {}
        for table in tables:
            values |= table
        if plus and parent:
            values["fanout_only"] = False
        text = name.decode(errors="surrogateescape")
        for field in MOVES:
            if values.get(field, getattr(self.queue_defaults, field)) == text:
                values[field] = None
        return msgspec.structs.replace(self.queue_defaults, **values)

    @property
    def store_nodes(self) -> str:
        """The nodes of the cluster as the file names them, without a login; "" if there is no cluster."""
        scheme, _, rest = (self.store or "").partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if rest else ""

    def summary(self) -> str:
        """Return in one line what an operator recognizes the configuration by."""
        tables = len(self.queues) + len(self.patterns)
        kept = f"data in {self.data}" if self.store is None else f"queues in the cluster {self.store_nodes}"
        where = f"listens on {' '.join(self.host)} port {self.port}, {kept}"
        return f"{where}, tables for queues: {tables}, aliases: {len(self.aliases)}"

    def _tables(self, name: bytes, configured: Configured) -> list[dict[str, Any]]:
        text = name.decode(errors="surrogateescape")
        tables = [pattern.values for pattern in self.patterns if pattern.regex.match(text)]
        return tables + [own[name] for own in (configured, self.queues) if name in own]


# The settings that a running server takes over when it reloads: as in Kestrel, those of queues.
RELOADABLE = ("queue_defaults", "queues", "patterns", "aliases")
# The settings that name another queue, to which items of this one are moved.
MOVES = ("expire_to_queue", "dead_letter_queue")


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """Return the keys of settings that differ, of those that a server takes over only when it starts."""
    return [
        field.encode_name
        for field in msgspec.structs.fields(Settings)
        if field.name not in RELOADABLE and getattr(old, field.name) != getattr(new, field.name)
    ]

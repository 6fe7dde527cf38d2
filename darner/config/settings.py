"""The settings: one TOML file under the command line.

Text in, frozen structs out: what is wrong with the text is a ConfigError, and to read it again has no other
effect. docs/darner.toml tells operators what each setting is for.
"""

import difflib
import fnmatch
import ipaddress
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from darner.config.kinds import (
    NAME,
    NAME_RULE,
    NAMES,
    Attempts,
    Commands,
    Count,
    Dialect,
    Flag,
    Host,
    Hosts,
    KeepaliveS,
    Kind,
    LogFormat,
    OptionalCount,
    OptionalName,
    OptionalPort,
    OptionalSize,
    OptionalText,
    OptionalTimeMs,
    Port,
    QueueStats,
    Size,
    SyncMs,
    Text,
    TimeMs,
    kind_of,
)
from darner.errors import ConfigError


def _key(field: str) -> str:
    """A field says its unit, a key in the file need not."""
    return field.removesuffix("_ms")


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, rename=_key):
    """What can be set for one queue, in bytes and milliseconds; None is no limit."""

    # how many items may wait, and how many bytes they may have
    max_items: OptionalCount = None
    max_bytes: OptionalSize = None
    # how large one item may be
    max_item_size: OptionalSize = None
    # whether a set on a full queue drops the oldest items, rather than being refused
    discard_old_when_full: Flag = False
    # how long an item lives at most, whatever its own expiry says
    max_age_ms: OptionalTimeMs = None
    # the queue that expired items are moved to, in place of being dropped
    expire_to_queue: OptionalName = None
    # how many items one slice of the sweep for expired ones looks at
    max_expire_sweep: Count = 1000
    # whether a set goes to the queue's children alone
    fanout_only: Flag = False
    # how long a queue may be empty and without readers before it is deleted
    max_queue_age_ms: OptionalTimeMs = None
    # whether the items are on disk, or in memory alone
    durable: Flag = True
    # how often what was set is synced to the disk: 0 with each set, None never
    sync_ms: SyncMs = None
    # how long an item may be reserved before it is taken back
    open_timeout_ms: OptionalTimeMs = None
    # how many items of the queue one connection may hold
    max_open_reads: Count = 1
    # how often an item comes back until it is moved to `dead_letter_queue`, or dropped
    max_attempts: Attempts = None
    dead_letter_queue: OptionalName = None


class Pattern(msgspec.Struct, frozen=True):
    """A table for every queue whose name matches, each `*` for any run of bytes."""

    name: str
    regex: re.Pattern[str]
    values: dict[str, Any]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=_key):
    """Everything that can be set."""

    # the addresses to listen on
    host: Hosts = ("127.0.0.1",)
    # the TCP port to listen on; 0 lets the system choose
    port: Port = 22133
    # the directory of the queues, made if missing
    data: Text = "data"
    # the Unix socket to listen on, besides
    socket: OptionalText = None
    # whether to log debug messages
    debug: Flag = False
    # how the log is written: in columns at a terminal, else as key=value; or always the one or the other
    log_format: LogFormat = "auto"
    # which replies clients get where they differ: today's memcache clients, or the original darner's
    dialect: Dialect = "memcached"
    # whether `stats` lists the queues, or `stats queues` alone
    queue_stats: QueueStats = "always"
    # seconds of silence after which a peer is probed, and taken for dead when it does not answer
    keepalive: KeepaliveS = 60
    # how many connections there may be
    max_connections: OptionalCount = None
    # how long a connection may be silent before it is closed
    idle_timeout_ms: OptionalTimeMs = None
    # how many bytes of the disk sets leave free
    min_free_space: Size = 0
    # the commands that are refused to whoever is no admin
    deny: Commands = ()
    # whether clients may shut the server down
    allow_shutdown: Flag = False
    # how long after a change to a stricter status what it forbids is still served
    status_change_grace_period_ms: TimeMs = 0
    # the certificate and its key, and the authority whose certificates clients must have
    tls_cert: OptionalText = None
    tls_key: OptionalText = None
    tls_ca: OptionalText = None
    # the users who may connect, and their passwords
    auth_file: OptionalText = None
    # where metrics are served over HTTP
    metrics_host: Host = "127.0.0.1"
    metrics_port: OptionalPort = None

    # `[queue_defaults]`
    queue_defaults: QueueSettings = QueueSettings()
    # `[queues."name"]`: by name, and those with a `*`, the least specific first
    queues: dict[bytes, dict[str, Any]] = {}
    patterns: tuple[Pattern, ...] = ()
    # `[aliases]`: the queues behind each name that is one
    aliases: dict[bytes, tuple[bytes, ...]] = {}

    def queue(self, name: bytes) -> QueueSettings:
        """Return what is set for the queue of this name.

        That is the defaults, then each pattern that matches, then the queue's own table. A child, such as
        `parent+child`, has what its parent has, but for `fanout_only`; then what those tables say that are
        not for the parent too. A queue that would inherit to move items to itself does not move them.
        """
        tables = self._tables(name)
        parent, plus, _ = name.partition(b"+")
        if plus and parent:
            inherited = self._tables(parent)
            tables = inherited + [table for table in tables if not any(table is other for other in inherited)]
        values: dict[str, Any] = {}
        for table in tables:
            values |= table
        if plus and parent:
            values["fanout_only"] = False
        text = _text(name)
        for field in MOVES:
            if values.get(field, getattr(self.queue_defaults, field)) == text:
                values[field] = None
        return msgspec.structs.replace(self.queue_defaults, **values)

    def summary(self) -> str:
        """Return what an operator knows the configuration by."""
        tables = len(self.queues) + len(self.patterns)
        where = f"listens on {' '.join(self.host)} port {self.port}, data in {self.data}"
        return f"{where}, tables for queues: {tables}, aliases: {len(self.aliases)}"

    def _tables(self, name: bytes) -> list[dict[str, Any]]:
        text = _text(name)
        tables = [pattern.values for pattern in self.patterns if pattern.regex.match(text)]
        return [*tables, self.queues[name]] if name in self.queues else tables


# What a running server takes over when it reads the configuration again: as in Kestrel, what is for queues.
RELOADABLE = ("queue_defaults", "queues", "patterns", "aliases")
# The settings that name another queue, which gets items of this one.
MOVES = ("expire_to_queue", "dead_letter_queue")


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """Return the keys of the settings that differ and that a server takes over only when it starts."""
    return [
        field.encode_name
        for field in msgspec.structs.fields(Settings)
        if field.name not in RELOADABLE and getattr(old, field.name) != getattr(new, field.name)
    ]


def load(path: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the file at `path`, if one is given, and put `overrides`, by their keys, over it.

    Raises ConfigError: one line that names the file, the line and the key, what was found and what may be.
    """
    if path is None:
        return parse("", overrides, "")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML, which is UTF-8: {error.reason} at byte {error.start}"
        ) from error
    return parse(text, overrides, str(path))


def parse(text: str, overrides: dict[str, Any], source: str) -> Settings:
    """As `load`, of the text of a file that errors call `source`."""
    try:
        found = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    try:
        given = _values(overrides, _OF_SERVER, ())
    except _WrongError as wrong:
        raise ConfigError(f"command line: {wrong}") from None
    try:
        return _settings(found, given)
    except _WrongError as wrong:
        line = _line(text, wrong.path)
        raise ConfigError(f"{source}:{line}: {wrong}" if line else f"command line: {wrong}") from None


class _WrongError(Exception):
    """What is at `path` is wrong; the text says why."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{_dotted(path)} {why}")
        self.path = path


def _dotted(path: tuple[str, ...]) -> str:
    """The key as the file may have it: a queue's name in quotes, and what needs them."""
    bare = re.compile(r"[A-Za-z0-9_-]+")
    named = path[0] in ("queues", "aliases")
    return ".".join(
        part if bare.fullmatch(part) and not (named and place == 1) else _shown(part)
        for place, part in enumerate(path)
    )


def _shown(value: Any) -> str:
    """What was found, on one line that is not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _fields(struct: type[msgspec.Struct]) -> dict[str, tuple[str, Kind]]:
    """The keys of a table, each with its field and what may be written for it."""
    return {
        field.encode_name: (field.name, kind)
        for field in msgspec.structs.fields(struct)
        if (kind := kind_of(field.type))
    }


_TABLES = ("queue_defaults", "queues", "aliases")
_OF_SERVER = _fields(Settings)
_OF_QUEUE = _fields(QueueSettings)


def _read(value: Any, kind: Kind, path: tuple[str, ...]) -> Any:
    try:
        return kind.read(value)
    except ValueError:
        raise _WrongError(path, f"is {_shown(value)}, and must be {kind.allowed}") from None


def _values(table: Any, known: dict[str, tuple[str, Kind]], path: tuple[str, ...]) -> dict[str, Any]:
    """What a table sets, by field."""
    values = {}
    for key, value in _table(table, path).items():
        if key not in known:
            raise _WrongError((*path, key), _unknown(key, value, known if path else [*known, *_TABLES]))
        field, kind = known[key]
        values[field] = _read(value, kind, (*path, key))
    return values


def _table(value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(path, f"is {_shown(value)}, and must be a table: [{_dotted(path)}]")
    return value


def _unknown(key: str, value: Any, known: Iterable[str]) -> str:
    if key in _OF_QUEUE:
        return 'is set for queues: it belongs into [queue_defaults] or [queues."name"]'
    if key in _OF_SERVER:
        return "is set for the server: it belongs above all tables"
    if isinstance(value, dict) and known is _OF_QUEUE:
        return 'is no setting; the name of a queue is put in quotes: [queues."a.b"]'
    near = difflib.get_close_matches(key.lower(), known, cutoff=0.5)
    if near:
        return f"is no setting; did you mean {' or '.join(near)}?"
    return f"is no setting; there are {' '.join(known)}"


def _settings(found: dict[str, Any], overrides: dict[str, Any]) -> Settings:
    tables = {name: _table(found.pop(name, {}), (name,)) for name in _TABLES}
    values = _values(found, _OF_SERVER, ()) | overrides
    defaults = _values(tables["queue_defaults"], _OF_QUEUE, ("queue_defaults",))
    queues = {name: _values(table, _OF_QUEUE, ("queues", name)) for name, table in tables["queues"].items()}
    aliases = {name: _read(names, NAMES, ("aliases", name)) for name, names in tables["aliases"].items()}
    patterns = [_pattern(name, table) for name, table in queues.items() if "*" in name]
    settings = Settings(
        **values,
        queue_defaults=QueueSettings(**defaults),
        queues={name.encode(): table for name, table in queues.items() if "*" not in name},
        patterns=tuple(sorted(patterns, key=lambda pattern: len(pattern.name.encode().replace(b"*", b"")))),
        aliases={name.encode(): names for name, names in aliases.items()},
    )
    _check_tls(settings)
    _check_ports(settings)
    _check_aliases(settings)
    _check_moves(settings, ("queue_defaults",), defaults)
    for name, table in queues.items():
        _check_queue(settings, name, table)
    return settings


def _pattern(name: str, values: dict[str, Any]) -> Pattern:
    # what else fnmatch takes for special is meant as it stands
    escaped = re.sub(r"[?\[]", r"[\g<0>]", name)
    return Pattern(name, re.compile(fnmatch.translate(escaped)), values)


def _check_tls(settings: Settings) -> None:
    for key, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_ca", "tls_cert")):
        if getattr(settings, key) is not None and getattr(settings, needed) is None:
            raise _WrongError((key,), f"is of no use without {needed}")


def _check_ports(settings: Settings) -> None:
    port = settings.metrics_port
    if port and port == settings.port and any(_meet(host, settings.metrics_host) for host in settings.host):
        raise _WrongError(("metrics_port",), f"is {port}, where clients are served; give another")


def _meet(one: str, other: str) -> bool:
    """Whether two hosts are, or may be, the same address."""
    ours, theirs = _addresses(one), _addresses(other)
    # the former answers for IPv4, too
    if "::" in ours | theirs:
        return True
    if "0.0.0.0" in ours | theirs:  # noqa: S104  # nobody listens there for that
        return all(any(":" not in address for address in addresses) for addresses in (ours, theirs))
    return not ours.isdisjoint(theirs)


def _addresses(host: str) -> set[str]:
    if host == "*":
        return {"::", "0.0.0.0"}  # noqa: S104
    if host.lower() == "localhost":
        return {"127.0.0.1", "::1"}
    try:
        return {str(ipaddress.ip_address(host))}
    except ValueError:
        return {host.lower()}


def _check_aliases(settings: Settings) -> None:
    for alias, names in settings.aliases.items():
        path = ("aliases", _text(alias))
        _check_name(path)
        for name in names:
            if name in settings.aliases:
                whose = "itself" if name == alias else f"{_shown(_text(name))}, which is an alias too"
                raise _WrongError(path, f"names {whose}; name queues")


def _check_name(path: tuple[str, str]) -> None:
    if not NAME.fullmatch(path[1].encode()):
        raise _WrongError(path, f"is no name of a queue: that has {NAME_RULE}")


def _check_queue(settings: Settings, name: str, table: dict[str, Any]) -> None:
    path = ("queues", name)
    _check_name(path)
    if name.encode() in settings.aliases:
        raise _WrongError(path, "is an alias; set something for the queues it names")
    parent, plus, _ = name.partition("+")
    if parent and plus and table.get("fanout_only"):
        raise _WrongError(
            (*path, "fanout_only"), "is true, and must be false: a child stores what is set on it"
        )
    _check_moves(settings, path, table)


def _check_moves(settings: Settings, path: tuple[str, ...], table: dict[str, Any]) -> None:
    for field in MOVES:
        name = table.get(field)
        if name is not None and path == ("queues", name):
            raise _WrongError((*path, field), "names the queue itself; name another")
        if name is not None and name.encode() in settings.aliases:
            raise _WrongError((*path, field), f"is {_shown(name)}, which is an alias; name a queue")


def _line(text: str, path: tuple[str, ...]) -> int:
    """The line on which the value at `path` begins; 0 if it is not in the text.

    TOML that is cut off between two statements is TOML too, so the place is found by halving.
    """
    lines = text.split("\n")
    low, high = 0, len(lines) + 1
    while low + 1 < high:
        middle = (low + high) // 2
        for cut in range(middle, high):
            has = _has("\n".join(lines[:cut]), path)
            if has is not None:
                break
        if has is False:
            low = cut
        else:
            high = middle
    return low + 1 if low < len(lines) else 0


def _has(text: str, path: tuple[str, ...]) -> bool | None:
    """Whether there is a value at `path`; None if the text is cut off within one."""
    try:
        found: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True

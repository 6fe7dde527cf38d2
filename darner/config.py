"""The settings: one TOML file under the command line."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from darner.errors import ConfigError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=32767)]


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be set for one queue, in bytes and milliseconds; None is no limit."""

    # how many items may wait, and how many bytes they may have
    max_items: int | None = None
    max_bytes: int | None = None
    # how large one item may be
    max_item_size: int | None = None
    # whether a set on a full queue drops the oldest items, rather than being refused
    discard_old_when_full: bool = False
    # how long an item lives at most, whatever its own expiry says
    max_age_ms: int | None = None
    # the queue that expired items are moved to, in place of being dropped
    expire_to_queue: str | None = None
    # how many items one pass of the sweep for expired ones looks at
    max_expire_sweep: int = 1000
    # whether a set goes to the queue's children alone
    fanout_only: bool = False
    # how old an empty queue without readers becomes before it is deleted
    max_queue_age_ms: int | None = None
    # whether the items are on disk, or in memory alone
    durable: bool = True
    # how often what was set is synced to the disk: 0 with each set, None never
    sync_ms: int | None = None
    # how long an item may be reserved before it is taken back
    open_timeout_ms: int | None = None
    # how many items of the queue one connection may hold
    max_open_reads: int = 1
    # how often an item may come back before it is moved to `dead_letter_queue`, or dropped
    max_attempts: int | None = None
    dead_letter_queue: str | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set."""

    # the address to listen on
    host: str = "127.0.0.1"
    # the TCP port to listen on; 0 lets the system choose
    port: Port = 22133
    # the directory of the queues, made if missing
    data: str = "data"
    # whether to log debug messages
    debug: bool = False
    # which replies clients get where they differ: today's memcache clients, or the original darner's
    dialect: Literal["memcached", "kestrel"] = "memcached"
    # seconds of silence after which a peer is probed, and taken for dead when it does not answer
    keepalive: Seconds = 60


def load(path: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the file at `path`, if one is given, and put `overrides` over it.

    Raises ConfigError, which names the file, the key, what was found and what is allowed.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return msgspec.convert(settings | overrides, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'command line'}: {error}") from error


def describe(settings: QueueSettings) -> Iterator[tuple[str, str]]:
    """The settings of a queue by the names they have in the file, as an operator reads them."""
    for name, value in msgspec.structs.asdict(settings).items():
        if name == "sync_ms":
            yield "sync", "never" if value is None else f"{value}ms" if value else "always"
        elif value is None:
            yield name.removesuffix("_ms"), "none"
        elif isinstance(value, bool):
            yield name, str(value).lower()
        else:
            yield name.removesuffix("_ms"), f"{value}ms" if name.endswith("_ms") else str(value)

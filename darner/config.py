"""The settings: one TOML file under the command line."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from darner.errors import ConfigError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=32767)]


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

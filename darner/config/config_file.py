"""The configuration file: TOML text, and the options of the command line, to `Settings`.

An error says the file, the line, the key, the value found and the values allowed. Reading has no other
effect, so a running server may read the file again. docs/darner.toml tells operators what each setting is
for.
"""

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from darner.config.consistency import check
from darner.config.kinds import NAMES, Kind, kind_of
from darner.config.settings import Pattern, QueueSettings, Settings
from darner.config.toml_lines import line_of
from darner.config.wrong_value import WrongValueError, dotted, quoted
from darner.errors import ConfigError


def load(path: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the file at `path`, if one is given, and let `overrides`, by their keys, take precedence.

    Raises ConfigError, whose text is one line.
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
    """Return the settings in the text of a file, which errors call `source`; else as `load`."""
    try:
        found = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    try:
        given = _values(overrides, _OF_SERVER, ())
    except WrongValueError as wrong:
        raise ConfigError(f"command line: {wrong}") from None
    try:
        return _settings(found, given)
    except WrongValueError as wrong:
        line = line_of(text, wrong.path)
        raise ConfigError(f"{source}:{line}: {wrong}" if line else f"command line: {wrong}") from None


def _fields(struct: type[msgspec.Struct]) -> dict[str, tuple[str, Kind]]:
    """Return the keys of a table, each with its field and the kind of value it takes."""
    return {
        field.encode_name: (field.name, kind)
        for field in msgspec.structs.fields(struct)
        if (kind := kind_of(field.type))
    }


_TABLES = ("queue_defaults", "queues", "aliases")
_OF_SERVER = _fields(Settings)
_OF_QUEUE = _fields(QueueSettings)


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
    check(settings, defaults, queues)
    return settings


def queue_values(table: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a table of settings of a queue, by field. Raises WrongValueError."""
    return _values(table, _OF_QUEUE, ())


def queue_field(key: str) -> str:
    """Return the field of a setting of a queue. Raises WrongValueError if there is no such setting."""
    if key not in _OF_QUEUE:
        raise WrongValueError((key,), _unknown(key, "", _OF_QUEUE))
    return _OF_QUEUE[key][0]


def _values(table: Any, known: dict[str, tuple[str, Kind]], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the values that a table sets, by field."""
    values = {}
    for key, value in _table(table, path).items():
        if key not in known:
            raise WrongValueError(
                (*path, key), _unknown(key, value, known if known is _OF_QUEUE else [*known, *_TABLES])
            )
        field, kind = known[key]
        values[field] = _read(value, kind, (*path, key))
    return values


def _read(value: Any, kind: Kind, path: tuple[str, ...]) -> Any:
    try:
        return kind.read(value)
    except ValueError:
        raise WrongValueError(path, f"is {quoted(value)}, and must be {kind.allowed}") from None


def _table(value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongValueError(path, f"is {quoted(value)}, and must be a table: [{dotted(path)}]")
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


def _pattern(name: str, values: dict[str, Any]) -> Pattern:
    # only * is special here: the other wildcards of fnmatch stand for themselves
    escaped = re.sub(r"[?\[]", r"[\g<0>]", name)
    return Pattern(name, re.compile(fnmatch.translate(escaped)), values)

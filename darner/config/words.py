"""The settings of a queue as words such as `max_age=5000ms`: `dump_config` shows, `configure` takes them.

What may be written for a setting is what the configuration file takes, without its quotes.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from darner.config.config_file import queue_field, queue_values
from darner.config.consistency import check_queue
from darner.config.wrong_value import WrongValueError
from darner.errors import ConfigError


def words(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the settings with these values, by field, each as its key and a word."""
    for field, value in values.items():
        key = field.removesuffix("_ms")
        if key == "sync" and not value:
            yield key, "never" if value is None else "always"
        elif value is None:
            yield key, "none"
        elif isinstance(value, bool):
            yield key, str(value).lower()
        elif isinstance(value, str):
            yield key, value
        else:
            yield key, f"{value}ms" if key != field else str(value)


def encode(values: Mapping[str, Any]) -> bytes:
    """Return the settings as they are kept in a journal."""
    return b" ".join(f"{key}={word}".encode() for key, word in words(values))


def decode(kept: bytes, on_wrong: Callable[[str], None]) -> dict[str, Any]:
    """Return the settings that a journal has kept, by field. `on_wrong` is told of each that is not known to
    this darner: that one is left out."""
    values: dict[str, Any] = {}
    for word in kept.split():
        try:
            values = changed(values, [word])
        except ConfigError as error:
            on_wrong(str(error))
    return values


def changed(values: Mapping[str, Any], arguments: Sequence[bytes]) -> dict[str, Any]:
    """Return these values once `arguments`, each `<setting>=<value>`, or `<setting>=` to forget it, have
    changed them. Raises ConfigError, whose text is one line."""
    result = dict(values)
    seen: set[str] = set()
    try:
        for argument in arguments:
            key, equals, text = argument.decode(errors="surrogateescape").partition("=")
            if not equals:
                raise WrongValueError(
                    (key,), "has no value: give <setting>=<value>, or <setting>= to forget it"
                )
            if key in seen:
                raise WrongValueError((key,), "is given twice")
            seen.add(key)
            field = queue_field(key)
            if key == "durable":
                raise WrongValueError(
                    (key,), "cannot be changed at run time: set it in the configuration file"
                )
            if text:
                result[field] = _read(key, text)[field]
            else:
                result.pop(field, None)
    except WrongValueError as wrong:
        raise ConfigError(str(wrong)) from None
    return result


def check(aliases: Container[bytes], name: bytes, values: dict[str, Any]) -> None:
    """Raise ConfigError if what is set for the queue `name` contradicts itself, or one of the aliases."""
    try:
        check_queue(aliases, name.decode(errors="surrogateescape"), values)
    except WrongValueError as wrong:
        raise ConfigError(str(WrongValueError(wrong.path[-1:], wrong.why))) from None


def _read(key: str, text: str) -> dict[str, Any]:
    """Return the value of a setting, by its field. Raises WrongValueError."""
    typed: Any = {"true": True, "false": False}.get(text, text)
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        typed = int(text)
    try:
        return queue_values({key: text})
    except WrongValueError:
        return queue_values({key: typed})

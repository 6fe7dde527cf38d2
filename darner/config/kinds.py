"""The kinds of values that a setting takes: a size, a time, the name of a queue, and so on.

A kind says in words what it allows, and converts a value of the TOML file to the program's. No setting is
named in here.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

# The largest number: a journal's have 64 bits, and the sum of two must fit, too.
LARGEST = 2**62
# The longest time, a hundred years: added to the clock, it still fits into a journal's numbers.
LONGEST_MS = 36_525 * 86_400_000
# The name of a queue, by the rule of the protocol, which is that of `_proto.valid_name`.
NAME = re.compile(rb"[^\x00-\x20\x7f/]{1,250}")
NAME_RULE = "1 to 250 bytes without space, control character or /"

# The nodes of a cluster, with a user if each takes the same.
STORE = re.compile(r"(nats|tls)://([^\s,/@]+@)?[^\s,/@]+(,((nats|tls)://)?[^\s,/@]+)*")

SIZES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
SIZES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
TIMES_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
TIMES_S = {"s": 1, "m": 60, "h": 3600}

# The names of all commands that `deny` may name; in capitals, each is a `_proto.Verb`.
COMMANDS = (
    "get", "gets", "set", "monitor", "confirm", "delete", "flush", "flush_all", "flush_expired",
    "flush_all_expired", "stats", "dump_stats", "dump_config", "status", "reload", "shutdown", "verbosity",
    "version", "quit", "configure",
)  # fmt: skip


class Kind(msgspec.Struct, frozen=True):
    """A kind of values: `allowed` says in words which it has; `read` converts one, or raises ValueError."""

    allowed: str
    read: Callable[[Any], Any]

    def or_word(self, word: str, meaning: int | None) -> "Kind":
        """Return a kind that allows `word`, too, which means `meaning`."""

        def read(value: Any) -> Any:
            return meaning if value == word else self.read(value)

        return Kind(f'{self.allowed}, or "{word}"', read)

    def or_none(self) -> "Kind":
        """Return a kind that allows "none", too, for no limit: TOML has no null."""
        return self.or_word("none", None)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _host(value: Any) -> str:
    text = _text(value)
    if text.startswith("["):
        # an IPv6 address in brackets, as in a URL
        bracketed = re.fullmatch(r"\[([^]]+)]", text)
        if not bracketed:
            raise ValueError
        text = bracketed[1]
        ipaddress.IPv6Address(text)
    # a port behind the host, or an unpaired bracket
    if text.count(":") == 1 or set(text) & set("[]"):
        raise ValueError
    return text


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = value if isinstance(value, list | tuple) else [value]
    if not hosts:
        raise ValueError
    return tuple(dict.fromkeys(map(_host, hosts)))


def _name(value: Any) -> str:
    text = _text(value)
    if not NAME.fullmatch(text.encode()):
        raise ValueError
    return text


def _names(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    names = tuple(_name(name).encode() for name in value)
    if len(set(names)) < len(names):
        raise ValueError
    return names


def _commands(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError
    words = tuple(word.lower() for word in value)
    if not set(words) <= set(COMMANDS) or len(set(words)) < len(words):
        raise ValueError
    return words


def _word(*words: str) -> Kind:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind(" or ".join(f'"{word}"' for word in words), read)


def _number(allowed: str, low: int, high: int, units: Mapping[str, int] | None = None) -> Kind:
    def read(value: Any) -> int:
        if units and isinstance(value, str):
            amount = re.fullmatch(r"([0-9]{1,20}) ?([A-Za-z]+)", value)
            if not amount or amount[2] not in units:
                raise ValueError
            value = int(amount[1]) * units[amount[2]]
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    if units:
        allowed += f" ({' '.join(units)})"
    return Kind(allowed, read)


def _replicas(value: Any) -> int:
    if type(value) is not int or value not in (1, 3, 5):
        raise ValueError
    return value


def _store(value: Any) -> str:
    text = _text(value)
    if not STORE.fullmatch(text):
        raise ValueError
    return text


def _size(low: int) -> Kind:
    return _number(f'a size from {low}: a number of bytes, or such as "16 MiB"', low, LARGEST, SIZES)


def _time(low: int) -> Kind:
    allowed = f'a time from {low} ms to 100 years: a number of milliseconds, or such as "5m"'
    return _number(allowed, low, LONGEST_MS, TIMES_MS)


TEXT = Kind("text in quotes", _text)
HOST = 'an address or the name of a host, without a port, such as "::1" or "localhost"'
PORT = _number("a whole number from 0 to 65535", 0, 65535)
COUNT = _number("a whole number from 1", 1, LARGEST)
NAMES = Kind(f'a list of different queues, such as ["orders", "audit"], each a name of {NAME_RULE}', _names)

Flag = Annotated[bool, Kind("true or false", _flag)]
Text = Annotated[str, TEXT]
OptionalText = Annotated[str | None, TEXT.or_none()]
OptionalName = Annotated[str | None, Kind(f"the name of a queue: {NAME_RULE}", _name).or_none()]
Host = Annotated[str, Kind(HOST, _host)]
Hosts = Annotated[tuple[str, ...], Kind(f"{HOST}, or a list of such", _hosts)]
Port = Annotated[int, PORT]
OptionalPort = Annotated[int | None, PORT.or_none()]
Count = Annotated[int, COUNT]
OptionalCount = Annotated[int | None, COUNT.or_none()]
Size = Annotated[int, _size(0)]
OptionalSize = Annotated[int | None, _size(1).or_none()]
TimeMs = Annotated[int, _time(0)]
OptionalTimeMs = Annotated[int | None, _time(1).or_none()]
SyncMs = Annotated[int | None, _time(1).or_word("always", 0).or_word("never", None)]
# records of items have 16 bits for it
Attempts = Annotated[int | None, _number("a whole number from 1 to 65535", 1, 65535).or_none()]
# the most that Linux takes for TCP_KEEPIDLE
KeepaliveS = Annotated[
    int,
    _number('a time from 1 to 32767 seconds: a number of seconds, or such as "5m"', 1, 32767, TIMES_S),
]
Commands = Annotated[
    tuple[str, ...],
    Kind(
        f'a list of different commands, such as ["flush_all", "delete"], of these: {" ".join(COMMANDS)}',
        _commands,
    ),
]
Dialect = Annotated[Literal["memcached", "kestrel"], _word("memcached", "kestrel")]
LogFormat = Annotated[
    Literal["auto", "logfmt", "console", "json"], _word("auto", "logfmt", "console", "json")
]
OptionalStore = Annotated[
    str | None,
    Kind("nats://host:port, or several hosts with commas between them; tls:// for TLS", _store).or_none(),
]
Durability = Annotated[Literal["synced", "replicated"], _word("synced", "replicated")]
Replicas = Annotated[int, Kind("1, 3 or 5", _replicas)]
AckWaitMs = Annotated[int, _time(1000)]
QueueStats = Annotated[Literal["always", "asked"], _word("always", "asked")]


def kind_of(annotation: Any) -> Kind | None:
    """Return the kind that a field's type is annotated with; None for a field that is no key of the file."""
    kinds = getattr(annotation, "__metadata__", ())
    return next((kind for kind in kinds if isinstance(kind, Kind)), None)

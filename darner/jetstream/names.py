"""What a queue is called in the cluster.

A queue and its children are one family: they share a stream, so that a set to all of them can be in all or in
none. Each is a subject of that stream, with a consumer of its own.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from darner.queues.fanout import parent_of

PREFIX = "darner"
# Where darners tell each other that the queues of a family have changed.
EVENTS = f"{PREFIX}.events"
# Under which key a stream and a consumer keep the name of their queue, in hexadecimal.
NAME_KEY = "darner.queue"

# A token of a subject, and a name of a stream, may have other characters, but not all servers like them.
_ESCAPED = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")
# A stream's name has 255 characters at most; the rest is for the prefix.
_MAX_TOKEN = 200


def token(name: bytes) -> str:
    """Return a name as a part of a subject: no two names have the same."""
    found = _ESCAPED.sub(lambda match: b"=%02X" % match[0][0], name).decode()
    return found if len(found) <= _MAX_TOKEN else "==" + hashlib.sha256(name).hexdigest()


def name_of(found: str, known: Iterable[bytes] = ()) -> bytes | None:
    """Return the name that has this token; None if it was too long to be told from it, and is none of the
    `known` ones."""
    if found.startswith("=="):
        return next((name for name in known if token(name) == found), None)
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), found.encode())


class Address(NamedTuple):
    """The names of one queue in the cluster."""

    family: bytes
    stream: str
    subject: str
    consumer: str


def family_of(name: bytes) -> bytes:
    """Return the name of the queue whose family the queue `name` belongs to: its parent, or itself."""
    return parent_of(name) or name


def stream_of(family: bytes) -> str:
    """Return the stream of a family."""
    return f"{PREFIX}_{token(family)}"


def family_in(stream: str, known: Iterable[bytes] = ()) -> bytes | None:
    """Return the family that has this stream; None if it is nobody's, or if its name was too long to be told
    from it, and is none of the `known` ones."""
    prefix, _, found = stream.partition("_")
    return name_of(found, known) if prefix == PREFIX else None


def delay_subject(family: bytes, unique: str) -> str:
    """Return a subject for one delayed item: two on one subject would be one."""
    return f"{PREFIX}.d.{token(family)}.{unique}"


def address(name: bytes) -> Address:
    """Return the names of a queue."""
    family = family_of(name)
    return Address(family, stream_of(family), f"{PREFIX}.q.{token(family)}.{token(name)}", token(name))

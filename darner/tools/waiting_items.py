"""Items that wait in a queue, looked at without their bytes first, for these may be many.

No I/O: requests are made as bytes, and replies are read.
"""

from dataclasses import dataclass

from darner.client import protocol
from darner.client.protocol import END, Reply

_WANTED = b"s f t c l"


@dataclass(slots=True, kw_only=True)
class Waiting:
    """An item that waits in a queue. Times are in seconds; `expires` is None if it never does."""

    id: int
    attempts: int
    size: int
    flags: int
    age: int
    expires: int | None
    # None if it is larger than was asked for, or is gone meanwhile
    data: bytes | None = None


def look_line(queue: bytes, start: int) -> bytes:
    """Return the request for all but the data of the first item whose id is at least `start`."""
    return protocol.look_line(queue, start, _WANTED)


def waiting_in(reply: Reply) -> Waiting | None:
    """Return what a reply to such a request tells; None if there is no such item."""
    if reply.line == b"EN":
        return None
    told = protocol.figures(reply.line)
    if not (reply.line.startswith(b"HD ") and told.keys() >= set("sftcl")):
        raise protocol.error_in(reply)
    return Waiting(
        id=protocol.item_number(told["c"]),
        attempts=protocol.attempts(told["c"]),
        size=told["s"],
        flags=told["f"],
        age=told["l"],
        expires=None if told["t"] < 0 else told["t"],
    )


def data_in(reply: Reply, id: int) -> bytes | None:
    """Return the bytes of the item with this id from the reply to `browse_line`; None if it is gone."""
    protocol.check(reply, END)
    return next((value.data for value in reply.values if protocol.item_number(value.token) == id), None)

"""Items that a tool has reserved at one server, with all that belongs to them, on as many connections as it
takes.

A connection may hold `max_open_reads` items of a queue, one by default. So several connections hold a window
of items together: then a sync of the disk, or a way over the network, is for all of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from darner.client import protocol
from darner.client.connection import Connection
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
)
from darner.client.pool import Pool
from darner.client.protocol import Reply
from darner.tools.looking import WHOLE, Waiting, waiting

# How many connections a tool takes at most, which must be fewer than a pool has, and how many items it holds.
_CONNECTIONS = 16
WINDOW = 128
_HOLDS_TOO_MANY = b"CLIENT_ERROR close current item first"


@dataclass(slots=True)
class Held:
    """A reserved item, and the connection that holds it."""

    item: Waiting
    token: int
    connection: Connection

    @classmethod
    def of(cls, reply: Reply, connection: Connection) -> Self:
        """Return the item of a reply that has one."""
        item = waiting(reply)
        assert item is not None
        return cls(item, reply.values[0].token, connection)


class Holder:
    """Reserves items of one queue of one server, closes them, or puts them back.

    ConnectionLostError of any method means that all that was held may have gone back: `drop` makes sure. A
    context, which drops all at its end.
    """

    def __init__(self, pool: Pool, key: bytes, timeout: float) -> None:
        """`timeout` is in seconds, and for each round of requests."""
        self._pool = pool
        self._key = key
        self._timeout = timeout
        self._connections: list[Connection] = []
        self._most_connections = _CONNECTIONS
        # how many items one connection may hold, once that is known
        self._each: int | None = None

    def reserve(self, count: int) -> list[Held]:
        """Reserve up to `count` items, and return them in the order of their ids; fewer if there are no more,
        or no more may be held. Nothing may be held yet. Raises the error that a reply stands for only if
        nothing could be reserved."""
        line = protocol.reserve_line(self._key, WHOLE)
        first = self._enough(1)[0]
        replies = self._ask([(first, [line] * min(count, self._each or count))])[0]
        held = [Held.of(reply, first) for reply in replies if reply.values]
        if not held:
            waiting(replies[0])  # raises its error
            return []
        if any(reply.line == _HOLDS_TOO_MANY for reply in replies):
            self._each = len(held)
        if self._each is not None:
            left = count - len(held)
            plan = []
            for connection in self._enough(1 + -(-left // self._each))[1:]:
                plan.append((connection, [line] * min(self._each, left)))
                left -= len(plan[-1][1])
            for (connection, _), more in zip(plan, self._ask(plan), strict=True):
                held += [Held.of(reply, connection) for reply in more if reply.values]
        return sorted(held, key=lambda each: each.item.id)

    def close(self, held: Sequence[Held]) -> list[ClientError | None]:
        """Remove items; return for each None, or its error if it had gone back before (ReservationLostError),
        or the server could not do it."""
        replies = self._end(held, [protocol.close_line(self._key, each.token) for each in held])
        return [None if reply.line == protocol.END else protocol.error_in(reply) for reply in replies]

    def abort(self, held: Sequence[Held]) -> None:
        """Put items back at the head, in their order. Never fails: what the server does not do, the end of
        the connection does."""
        try:
            for each in reversed(held):
                self._end([each], [protocol.abort_line(self._key, each.token)])
        except ClientError:
            self.drop()

    def drop(self) -> None:
        """Close all connections: what is held goes back."""
        for connection in self._connections:
            self._pool.discard(connection)
        self._connections = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def _enough(self, count: int) -> list[Connection]:
        """Return so many connections, or as many as there may be; at least one."""
        while len(self._connections) < min(count, self._most_connections):
            try:
                self._connections.append(self._pool.take(time.monotonic() + self._timeout))
            except ClientError:
                if not self._connections:
                    raise
                self._most_connections = len(self._connections)  # the server has no more for us
        return self._connections[:count]

    def _end(self, held: Sequence[Held], requests: Sequence[bytes]) -> list[Reply]:
        """Send a request for each item on its connection; return the replies in the same order."""
        places: dict[Connection, list[int]] = {}
        for place, each in enumerate(held):
            places.setdefault(each.connection, []).append(place)
        plan = [(connection, [requests[at] for at in some]) for connection, some in places.items()]
        replies: list[Reply] = [Reply(b"")] * len(held)
        for some, came in zip(places.values(), self._ask(plan), strict=True):
            for place, reply in zip(some, came, strict=True):
                replies[place] = reply
        return replies

    def _ask(self, plan: Sequence[tuple[Connection, Sequence[bytes]]]) -> list[list[Reply]]:
        """Send requests on several connections, all before the first reply is read."""
        deadline = time.monotonic() + self._timeout
        replies: list[list[Reply]] = []
        try:
            for connection, requests in plan:
                connection.send([b"".join(requests)], deadline)
            for connection, requests in plan:
                came: list[Reply] = []
                while len(came) < len(requests):
                    came += connection.read(len(requests) - len(came), deadline)
                replies.append(came)
        except ConnectionFailedError as error:
            # what was held has gone back as the connection ended
            raise ConnectionLostError(str(error)) from error
        return replies

"""Looks at the items that wait in a queue of one server, which leave them there.

What waits is found by the ids: a later item has a greater one. So a tool that has noted the last id when it
began knows what was there then, whatever comes and goes meanwhile.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from darner.client import protocol
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    ProtocolError,
)
from darner.client.pool import Pool
from darner.client.protocol import Reply
from darner.client.repetition import Repetition
from darner.client.servers import Servers

# What an `mg` is to tell of an item: its data, flags, token, and the seconds until it expires.
WHOLE = b"v f c t"
_NOTHING = b"EN"
_SHORT = b"c s"
# How many looks go out at once.
_AT_ONCE = 128


class Look(NamedTuple):
    """What a look tells of an item: its id, how often it has come back, and the bytes of its data."""

    id: int
    attempts: int
    size: int


class Waiting(NamedTuple):
    """An item with all that belongs to it. `left_s`: in how many seconds it expires; -1 is never."""

    id: int
    attempts: int
    flags: int
    left_s: int
    data: bytes


def waiting(reply: Reply) -> Waiting | None:
    """Return the item that a reply to `mg` has; None if there was none. Raises its error."""
    if reply.line == _NOTHING:
        return None
    if not reply.values:
        raise protocol.error_in(reply)
    value = reply.values[0]
    left_s = protocol.figures(reply.line).get("t", -1)
    return Waiting(
        protocol.item_number(value.token), protocol.attempts(value.token), value.flags, left_s, value.data
    )


def _look(reply: Reply) -> Look | None:
    if reply.line == _NOTHING:
        return None
    told = protocol.figures(reply.line)
    if not (reply.line.startswith(b"HD ") and "c" in told):
        raise protocol.error_in(reply)
    return Look(protocol.item_number(told["c"]), protocol.attempts(told["c"]), told.get("s", 0))


def last_id(servers: Servers, pool: Pool, key: bytes) -> int:
    """Return the id of the last item that waits; 0 if none does. Asked again if the connection is lost.

    It is found by halves, from some 40 looks in a queue of a million.
    """

    def first_from(id: int) -> int:
        found = _look(servers.ask_again(pool, protocol.look_line(key, id, b"c")))
        return 0 if found is None else found.id

    last = first_from(1)
    if not last:
        return 0
    step = 1
    while found := first_from(last + step):
        last = found
        step *= 2
    end = last + step  # from here on nothing waits
    while end - last > 1:
        middle = (last + end) // 2
        found = first_from(middle)
        last, end = (found, max(end, found + 1)) if found else (last, middle)
    return last


def looks(servers: Servers, pool: Pool, key: bytes, start: int, last: int, most: int) -> list[Look]:
    """Return what waits from the id `start` to the id `last`, in order, `most` items at most.

    Their ids are guessed as next to each other; where many are missing it takes more requests. Asked again if
    the connection is lost.
    """
    found: list[Look] = []
    guessed = 1
    while start <= last and len(found) < most:
        asked = min(guessed, most - len(found), last - start + 1)
        requests = [protocol.look_line(key, start + more, _SHORT) for more in range(asked)]
        replies = servers.ask_many_again(pool, requests)
        page = _in_order([_look(reply) for reply in replies], start, last)
        found += page
        end = _look(replies[-1])
        if end is None or end.id > last:
            break
        if not page:
            raise ProtocolError("the server gave an item from before the id that was asked for")
        start = page[-1].id + 1
        guessed = min(guessed * 2, _AT_ONCE) if 2 * len(page) > asked else max(guessed // 2, 1)
    return found


def _in_order(found: Iterable[Look | None], start: int, last: int) -> list[Look]:
    page: list[Look] = []
    for look in found:
        if look is not None and start <= look.id <= last:
            page.append(look)
            start = look.id + 1
    return page


def as_lost(error: ClientError, *, has_worked: bool) -> ClientError:
    """Return the error for Repetition: a server that has worked before, and cannot be reached, is away for a
    while."""
    return (
        ConnectionLostError(str(error)) if has_worked and isinstance(error, ConnectionFailedError) else error
    )


class Reading:
    """Reads the items that wait in a queue of one server from the id `start` to the id `last`, and leaves
    them there. Each is given as it comes: memory is bounded by the largest, whatever the number that is asked
    for at once.
    """

    def __init__(self, servers: Servers, pool: Pool, key: bytes, start: int, last: int) -> None:
        self._servers = servers
        self._pool = pool
        self._key = key
        self._start = start
        self._last = last
        # ids are guessed as next to each other, as for `looks`
        self._guessed = 1
        self._is_over = start > last
        self._has_worked = False

    def items(self) -> Iterator[Waiting]:
        """Give the items. Asked again if the connection is lost, for as long as the client's `timeout`."""
        repetition: Repetition | None = None
        while not self._is_over:
            try:
                yield from self._page()
                repetition = None
            except (ConnectionLostError, ConnectionFailedError) as error:
                repetition = repetition or Repetition(self._servers.timeout)
                time.sleep(repetition.pause_after(as_lost(error, has_worked=self._has_worked)))

    def _page(self) -> Iterator[Waiting]:
        timeout = self._servers.timeout
        asked = min(self._guessed, _AT_ONCE, self._last - self._start + 1)
        requests = [protocol.look_line(self._key, self._start + more, WHOLE) for more in range(asked)]
        connection = self._pool.take(time.monotonic() + timeout)
        found = 0
        try:
            connection.send([b"".join(requests)], time.monotonic() + timeout)
            for _ in requests:
                item = waiting(connection.read(1, time.monotonic() + timeout)[0])
                self._is_over = item is None or item.id >= self._last
                if item is not None and self._start <= item.id <= self._last:
                    self._start = item.id + 1
                    found += 1
                    self._has_worked = True
                    yield item
        except BaseException:
            self._pool.discard(connection)
            raise
        self._pool.give(connection)
        self._guessed = min(self._guessed * 2, _AT_ONCE) if 2 * found > asked else max(self._guessed // 2, 1)


def window_of(found: Sequence[Look], most: int, most_bytes: int) -> int:
    """Return how many of these items, from the first on, are at most so many and so many bytes; at least
    one."""
    size = 0
    for count, look in enumerate(found[:most]):
        size += look.size
        if count and size > most_bytes:
            return count
    return min(len(found), most)

"""Puts without I/O: the requests for them, and what is sent next and what became of each in a `put_many`."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self

from darner.client import codecs, protocol
from darner.client.codecs import Codec
from darner.client.errors import (
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    RefusedError,
)
from darner.client.protocol import CRLF, LARGE_BYTES, STORED, Reply
from darner.client.reservation import raise_first
from darner.client.roster import AnyPool, Roster
from darner.client.windows import SETS, Request, window_of_sets

# For each request None if the value is stored, or what became of it.
Outcomes = list[ClientError | None]


def put_request(
    codec: Codec | None,
    queue: str | bytes,
    value: Any,
    *,
    delay: float,
    expire: float,
    id: str | bytes | None,
    sync: bool,
) -> Request:
    """Return the request that stores a value; BadRequestError or CodecError if it makes no sense."""
    if (
        type(value) is bytes
        and codec is None
        and not (delay or expire or sync or id is not None)
        and len(value) < LARGE_BYTES
    ):
        # most are such
        return b"%b%d\r\n%b\r\n" % (protocol.plain_put(queue), len(value), value)
    data, flags = codecs.encode(codec, value)
    line = protocol.put_line(
        protocol.queue_key(queue), len(data), flags, delay=delay, expire=expire, id=id, sync=sync
    )
    # large data is not copied
    return line + data + CRLF if len(data) < LARGE_BYTES else (line, data, CRLF)


def put_requests(
    codec: Codec | None,
    queue: str | bytes,
    values: Iterable[Any],
    *,
    delay: float,
    expire: float,
    ids: Iterable[str | bytes] | None,
    sync: bool,
) -> tuple[list[Request], list[bytes] | None]:
    """Return the requests that store many values, and their ids; errors as for `put_request`."""
    values = list(values)
    names = None if ids is None else [protocol.item_id(id) for id in ids]
    if names is not None and len(names) != len(values):
        raise BadRequestError(f"{len(names)} ids for {len(values)} values")
    each_id: Sequence[bytes | None] = names or [None] * len(values)
    requests = [
        put_request(codec, queue, value, delay=delay, expire=expire, id=id, sync=sync)
        for value, id in zip(values, each_id, strict=True)
    ]
    return requests, names


class Run:
    """Sets that go over one connection in a pipeline. Once one has failed, no more is sent."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._sent = 0
        self._is_failed = False
        self._outcomes: Outcomes = []

    def window(self) -> tuple[int, list[bytes]] | None:
        """Return how many sets to send now, and their parts; None if a reply is to be read first."""
        if self._sent == len(self._requests) or self._is_failed or self.unread > SETS:
            return None
        # the next window is on its way before all replies to the last one are read
        count, parts = window_of_sets(self._requests, self._sent)
        self._sent += count
        return count, parts

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be sent or read any more."""
        return not self.unread and (self._is_failed or self._sent == len(self._requests))

    @property
    def unread(self) -> int:
        """How many replies are to come to what was sent."""
        return self._sent - len(self._outcomes)

    def took(self, *replies: Reply) -> None:
        """Take note of the next replies."""
        outcomes = [None if reply.line == STORED else protocol.error_in(reply) for reply in replies]
        self._outcomes += outcomes
        self._is_failed = self._is_failed or any(outcomes)

    def lost(self, error: ClientError) -> None:
        """Take note that no more replies come."""
        self._outcomes += [error] * self.unread
        self._is_failed = True

    def outcomes(self) -> Outcomes:
        """Return what became of each, when all is over."""
        not_sent = ConnectionFailedError("not sent, for one before it failed")
        return self._outcomes + [not_sent] * (len(self._requests) - len(self._outcomes))


def check_refused(outcomes: Outcomes) -> Outcomes:
    """Return the outcomes unless the server refuses to store anything; then raise RefusedError."""
    if outcomes and all(isinstance(outcome, RefusedError | ConnectionFailedError) for outcome in outcomes):
        raise_first(outcomes)
    return outcomes


class AtHome(Generic[AnyPool]):
    """The sets of a `put_many` with ids that go to one server, `pool`, and again while connections are lost.

    As a context it takes errors for the outcomes of the sets that are left.
    """

    def __init__(self, pool: AnyPool, requests: Sequence[Request], outcomes: Outcomes) -> None:
        """`outcomes` gets what became of those requests that are this server's: see `add`."""
        self.pool = pool
        self._requests = requests
        self._outcomes = outcomes
        self._left: list[int] = []

    def add(self, number: int) -> None:
        """Add the request of this number."""
        self._left.append(number)

    def left(self) -> list[Request]:
        """Return the requests that are to be made, or made again."""
        return [self._requests[number] for number in self._left]

    def took(self, outcomes: Outcomes) -> None:
        """Take note of what became of those that were left.

        Raises ConnectionLostError if of some that is unknown: they are left, and so are those not sent.
        """
        lost = None
        for number, outcome in zip(self._left, outcomes, strict=True):
            self._outcomes[number] = outcome
            if lost is None and isinstance(outcome, ConnectionLostError):
                lost = outcome
        if lost is not None:
            again = (ConnectionLostError, ConnectionFailedError)
            self._left = [number for number in self._left if isinstance(self._outcomes[number], again)]
            raise lost

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, ConnectionFailedError):
            for number in self._left:
                self._outcomes[number] = error
        # one that was lost is among the outcomes already
        return isinstance(error, ConnectionFailedError | ConnectionLostError)


def by_home(
    servers: Roster[AnyPool], requests: Sequence[Request], ids: Sequence[bytes], outcomes: Outcomes
) -> Iterator[AtHome[AnyPool]]:
    """Give the sets of each server, by their ids."""
    homes: dict[AnyPool, AtHome[AnyPool]] = {}
    for number, id in enumerate(ids):
        pool = servers.home(id)
        if pool not in homes:
            homes[pool] = AtHome(pool, requests, outcomes)
        homes[pool].add(number)
    yield from homes.values()

"""`put_many`: many sets in a pipeline, of each of which it is known what became of it."""

import time
from collections.abc import Sequence
from functools import partial

from darner.client import protocol
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    NoFreeConnectionError,
)
from darner.client.pool import Pool
from darner.client.servers import Servers
from darner.client.windows import SETS, Request, window_of_sets

Outcomes = list[ClientError | None]


def put_anywhere(servers: Servers, requests: Sequence[Request]) -> Outcomes:
    """Store on the next server that can be reached; return for each request None, or what became of it."""
    error: ClientError | None = None
    for pool in servers.in_turn():
        try:
            outcomes = put_on(pool, requests, servers.timeout)
        except NoFreeConnectionError as full:
            error = error or full
        except ConnectionFailedError as failure:
            servers.failed(pool)
            error = failure
        else:
            servers.reached(pool)
            return outcomes
    return [error] * len(requests)


def put_at_home(servers: Servers, requests: Sequence[Request], ids: Sequence[bytes]) -> Outcomes:
    """Store each on the server of its id, again while connections are lost; return as `put_anywhere`."""
    outcomes: Outcomes = [None] * len(requests)
    homes: dict[Pool, list[int]] = {}
    for number, id in enumerate(ids):
        homes.setdefault(servers.home(id), []).append(number)
    for pool, numbers in homes.items():
        _AtHome(pool, requests, numbers, outcomes).put(servers)
    return outcomes


class _AtHome:
    """Sets with ids, all on one server; `outcomes` has what became of those that were tried."""

    def __init__(
        self, pool: Pool, requests: Sequence[Request], numbers: Sequence[int], outcomes: Outcomes
    ) -> None:
        self._pool = pool
        self._requests = requests
        self._left = numbers
        self._outcomes = outcomes

    def put(self, servers: Servers) -> None:
        try:
            servers.again(partial(self._put, servers.timeout))
        except ConnectionFailedError as error:
            for number in self._left:
                self._outcomes[number] = error
        except ConnectionLostError:
            pass  # it is among the outcomes

    def _put(self, timeout: float, _: float) -> None:
        """Put those that are left; ConnectionLostError if of some it is unknown whether they are stored."""
        outcomes = put_on(self._pool, [self._requests[number] for number in self._left], timeout)
        lost = None
        for number, outcome in zip(self._left, outcomes, strict=True):
            self._outcomes[number] = outcome
            if lost is None and isinstance(outcome, ConnectionLostError):
                lost = outcome
        if lost is not None:
            again = (ConnectionLostError, ConnectionFailedError)
            self._left = [number for number in self._left if isinstance(self._outcomes[number], again)]
            raise lost


def put_on(pool: Pool, requests: Sequence[Request], timeout: float) -> Outcomes:
    """Store on one server; return for each request None, or what became of it.

    Once one has failed, no more is sent. `timeout` is for each window. ConnectionFailedError if the server
    cannot be reached.
    """
    connection = pool.take(time.monotonic() + timeout)
    outcomes: Outcomes = []
    sent, deadline, failed = 0, 0.0, False
    try:
        while True:
            unread = sent - len(outcomes)
            # the next window is on its way before all replies to the last one are read
            if sent < len(requests) and unread <= SETS and not failed:
                count, parts = window_of_sets(requests, sent)
                deadline = time.monotonic() + timeout
                sent += count
                connection.send(parts, deadline)
            elif unread:
                reply = connection.read(deadline)
                outcomes.append(None if reply.line == protocol.STORED else protocol.error_in(reply))
                failed = failed or outcomes[-1] is not None
            else:
                break
    except ConnectionLostError as error:
        pool.discard(connection)
        outcomes += [error] * (sent - len(outcomes))
    except BaseException:
        pool.discard(connection)
        raise
    else:
        pool.give(connection)
    not_sent = ConnectionFailedError("not sent, for one before it failed")
    return outcomes + [not_sent] * (len(requests) - len(outcomes))

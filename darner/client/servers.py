"""The servers of one client, each with its pool: which of them is asked, and whether it is asked again."""

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from darner.client.errors import (
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    NoFreeConnectionError,
    ProtocolError,
    RequestTimeoutError,
)
from darner.client.fleet import Fleet
from darner.client.pool import Pool
from darner.client.protocol import Reply
from darner.client.url import Address

Answer = TypeVar("Answer")

# A request that may be repeated is made again at once, then after this pause, then after twice as long each
# time.
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0


class Servers:
    """One server or a fleet. `timeout` is how long a request may take, in seconds."""

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        timeout: float,
        connect_timeout: float,
        pool_size: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`tls` is for addresses that are darners://, all or none; by default it verifies the server."""
        if not (timeout > 0 and connect_timeout > 0 and pool_size > 0):
            raise BadRequestError("timeout, connect_timeout and pool_size are greater than 0")
        if tls is not None and not all(address.is_tls for address in addresses):
            raise BadRequestError("tls= is for darners://, and this address is another one")
        if tls is None and any(address.is_tls for address in addresses):
            tls = ssl.create_default_context()
        self.timeout = timeout
        self.pools = [
            Pool(address, pool_size, connect_timeout, tls if address.is_tls else None)
            for address in addresses
        ]
        self._fleet = Fleet([str(address) for address in addresses])
        # the pool of a lone server
        self.only = self.pools[0] if len(self.pools) == 1 else None

    def in_turn(self) -> Iterator[Pool]:
        """Give the servers to try, those that are down left out; then tell `reached` or `failed`."""
        return (self.pools[number] for number in self._fleet.order(time.monotonic()))

    def home(self, id: bytes) -> Pool:
        """Return the server of an id."""
        return self.pools[self._fleet.home(id)]

    def reached(self, pool: Pool) -> None:
        """Take note that a server answers."""
        self._fleet.reached(self.pools.index(pool))

    def failed(self, pool: Pool) -> None:
        """Take note that a server does not answer: it is left out for a while."""
        self._fleet.failed(self.pools.index(pool), time.monotonic())

    def ask_one(self, request: bytes | Sequence[bytes]) -> Reply:
        """Ask the next server that can be reached: another one only while nothing was sent."""
        if self.only is not None:
            return self.only.ask(request, self.timeout)
        deadline = time.monotonic() + self.timeout
        error: ClientError | None = None
        for pool in self.in_turn():
            try:
                reply = pool.ask(request, deadline - time.monotonic())
            except NoFreeConnectionError as full:
                error = error or full
            except ConnectionFailedError as failure:
                self.failed(pool)
                error = failure
            else:
                self.reached(pool)
                return reply
        assert error is not None
        raise error

    def again(self, ask: Callable[[float], Answer]) -> Answer:
        """Ask for what does no harm if it is done twice: again, if the connection is lost before the reply.

        `ask` is called with the seconds left. That goes on for as long as `timeout` lasts, also while the
        server is away. If it cannot be reached the first time, ConnectionFailedError is raised at once.
        """
        deadline = time.monotonic() + self.timeout
        pause_s = 0.0
        lost: ConnectionLostError | None = None
        while True:
            try:
                return ask(deadline - time.monotonic())
            except (RequestTimeoutError, ProtocolError):
                raise
            except ConnectionLostError as error:
                lost = error
            except ConnectionFailedError:
                if lost is None:
                    raise
            if time.monotonic() + pause_s >= deadline:
                raise lost
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S) or _FIRST_PAUSE_S

    def ask_again(self, pool: Pool, request: bytes | Sequence[bytes]) -> Reply:
        """Make a request on this server that does no harm if it is made twice: see `again`."""
        return self.again(lambda left: pool.ask(request, left))

    def ask_each_again(self, request: bytes) -> Iterator[tuple[Pool, Reply]]:
        """Make a request, which may be repeated, on one server after the other; those that are down are left
        out.

        The error of the last one is raised if none could be reached.
        """
        failure: ConnectionFailedError | None = None
        is_reached = False
        for pool in self.in_turn():
            try:
                reply = self.ask_again(pool, request)
            except ConnectionFailedError as error:
                if not isinstance(error, NoFreeConnectionError):
                    self.failed(pool)
                failure = error
                continue
            self.reached(pool)
            is_reached = True
            yield pool, reply
        if failure is not None and not is_reached:
            raise failure

    def ask_all(self, ask: Callable[[Pool], Reply]) -> list[Reply]:
        """Ask every server; if some fail, the others are asked all the same; raises the first error."""
        replies: list[Reply] = []
        failure: ClientError | None = None
        for pool in self.pools:
            try:
                replies.append(ask(pool))
            except ClientError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return replies

    def close(self) -> None:
        """Close all connections."""
        for pool in self.pools:
            pool.close()

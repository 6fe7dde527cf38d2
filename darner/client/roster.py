"""The servers of one client, each with its pool, and the tour of a request that one of them has to answer.

No I/O: the sync and the async client ask the servers in their own ways. The clock is read here, for pauses.
"""

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from darner.client.errors import (
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    NoFreeConnectionError,
    ServerFailedError,
)
from darner.client.fleet import Fleet
from darner.client.url import Address

AnyPool = TypeVar("AnyPool")


class Roster(Generic[AnyPool]):
    """One server or a fleet. `timeout` is how long a request may take, in seconds."""

    def __init__(
        self,
        make_pool: Callable[[Address, int, float, ssl.SSLContext | None], AnyPool],
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
            make_pool(address, pool_size, connect_timeout, tls if address.is_tls else None)
            for address in addresses
        ]
        self._fleet = Fleet([str(address) for address in addresses])
        # the pool of a lone server
        self.only = self.pools[0] if len(self.pools) == 1 else None

    def tour(self, *, is_harmless: bool = False) -> "Tour[AnyPool]":
        """Return a tour of the servers, for a request that may be made on any; see there."""
        return Tour(self, is_harmless)

    def in_turn(self) -> Iterator[AnyPool]:
        """Give the servers to try, those that are down left out; then tell `reached` or `failed`."""
        return (self.pools[number] for number in self._fleet.order(time.monotonic()))

    def home(self, id: bytes) -> AnyPool:
        """Return the server of an id."""
        return self.pools[self._fleet.home(id)]

    def reached(self, pool: AnyPool) -> None:
        """Take note that a server answers."""
        self._fleet.reached(self.pools.index(pool))

    def failed(self, pool: AnyPool) -> None:
        """Take note that a server does not answer: it is left out for a while."""
        self._fleet.failed(self.pools.index(pool), time.monotonic())


class Tour(Generic[AnyPool]):
    """The servers that a request is made on, one after the other, until one gives what was asked for.

        for pool in tour:
            with tour:
                return pool.ask(request, timeout)
        raise tour.error

    The `with` statement passes a server over that cannot be reached, or cannot do it (SERVER_ERROR), and
    takes note of those that are down. A connection that is lost before the reply ends the tour with its
    error, unless the request is harmless: it may be made again elsewhere.
    """

    def __init__(self, servers: Roster[AnyPool], is_harmless: bool) -> None:
        self._servers = servers
        self._is_harmless = is_harmless
        self._current: AnyPool | None = None
        self._is_answered = False
        # that of the last server which gave nothing
        self._error: ClientError | None = None

    def __iter__(self) -> Iterator[AnyPool]:
        for pool in self._servers.in_turn():
            self._current = pool
            yield pool

    @property
    def error(self) -> ClientError:
        """The error of the last server, when none has answered."""
        assert self._error is not None
        return self._error

    def check(self) -> None:
        """Raise the last error if no server has answered."""
        if not self._is_answered:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        pool = self._current
        assert pool is not None
        if error is None:
            self._servers.reached(pool)
            self._is_answered = True
            return False
        if isinstance(error, NoFreeConnectionError | ServerFailedError):
            self._error = error  # another server may do better
            return True
        if isinstance(error, ConnectionFailedError | ConnectionLostError):
            self._servers.failed(pool)
            self._error = error
            return self._is_harmless or isinstance(error, ConnectionFailedError)
        return False

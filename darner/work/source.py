"""One server that items come from: the connections to it, and which of them is asked for the next item.

Replies come back in order, so a `get` that waits holds back the acks behind it on its connection. Hence the
law of this room: **a connection waits only while it holds nothing.** While it holds something, it is asked
for more without a wait, up to `max_open_reads`, and its acks go out at once. So with a `max_open_reads` of
at least the concurrency a busy worker has one connection, and another that waits once there is nothing more
to get over the first. With the default of 1, each item in progress has a connection of its own.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog
from structlog.typing import FilteringBoundLogger

from darner.client.errors import BadRequestError, ClientError
from darner.work.backoff import pause_s
from darner.work.connection import Connection, Delivery
from darner.work.errors import WorkerError

log: FilteringBoundLogger = structlog.get_logger()

# How long one wait is. A server that does not answer soon after is taken for dead.
WAIT_MS = 20_000
# The pause before a server that is down, or that cannot serve, is asked again.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
# What the server says to a connection that holds as many items of a queue as it may.
HOLDS_ENOUGH = "close current item first"


class Source:
    """One server."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[Connection]],
        most_held: int,
        log: FilteringBoundLogger = log,
    ) -> None:
        """Begin without a connection. `name` is the server's in the log; `most_held` how many items a
        connection may hold, unless the server says less."""
        self._name = name
        self._log = log
        self._connect = connect
        self._most_held = most_held
        self._connections: list[Connection] = []
        self._failures = 0
        # the time of the loop before which the server is not asked
        self._rests_until = 0.0

    async def take(self) -> Delivery | None:
        """Reserve the next item, if there is one, over a connection that may hold one more."""
        fit = [each for each in self._open() if not each.is_waiting and each.load < self._most_held]
        if not fit or self._rest_s > 0:
            return None
        # where most is held already, which leaves others free to wait
        connection = max(fit, key=lambda each: each.load)
        load = connection.load
        try:
            return await connection.reserve(0)
        except ClientError as error:
            if load and HOLDS_ENOUGH in str(error):
                self._note_limit(load)
            else:
                self._note_failure(error)
        return None

    async def wait(self, *, takes: bool) -> Delivery | None:
        """Wait for an item: with `takes` reserve it, else leave it where it is and return None. None also if
        none has come in time, or the server does not serve. Raises WorkerError if it refuses."""
        await asyncio.sleep(self._rest_s)
        try:
            connection = next((each for each in self._open() if not each.load), None)
            if connection is None:
                connection = await self._connect()
                self._connections.append(connection)
            found = await (connection.reserve(WAIT_MS) if takes else connection.look(WAIT_MS))
        except ClientError as error:
            self._note_failure(error)
            return None
        if self._failures:
            self._failures = 0
            self._log.info("the server serves again", server=self._name)
        return found

    def close(self) -> None:
        """Close all connections: what they hold goes back."""
        for each in self._connections:
            each.close()

    @property
    def _rest_s(self) -> float:
        return max(0.0, self._rests_until - asyncio.get_running_loop().time())

    def _open(self) -> list[Connection]:
        self._connections = [each for each in self._connections if not each.is_closed]
        return self._connections

    def _note_limit(self, load: int) -> None:
        """Take note that a connection which held so many items, at most, may not hold another."""
        if load < self._most_held:
            self._log.info(
                "max_open_reads is less than the concurrency: more connections are used",
                server=self._name,
                max_open_reads=load,
            )
            self._most_held = load

    def _note_failure(self, error: ClientError) -> None:
        """Have the server rest. Several requests that fail together are one failure. Raises WorkerError if
        it is ours."""
        if isinstance(error, BadRequestError) and HOLDS_ENOUGH not in str(error):
            raise WorkerError(f"{self._name}: {error}") from error
        if self._rest_s > 0:
            return
        pause = pause_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S, random.random)
        self._rests_until = asyncio.get_running_loop().time() + pause
        if not self._failures:
            self._log.warning(
                "the server does not serve: it is asked again", server=self._name, error=str(error)
            )
        self._failures += 1

"""The servers of the async client: which of them is asked, and whether it is asked again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from darner.client import protocol
from darner.client.async_connection import time_in
from darner.client.async_pool import AsyncPool
from darner.client.errors import ClientError
from darner.client.protocol import Reply
from darner.client.repetition import Repetition
from darner.client.roster import Roster
from darner.client.windows import Request

Answer = TypeVar("Answer")


class AsyncServers(Roster[AsyncPool]):
    """One server or a fleet; arguments and `timeout` as for Roster."""

    async def ask_one(self, request: Request) -> Reply:
        """Ask the next server that can be reached; another one only if it was not sent, or is refused."""
        deadline = time_in(self.timeout)
        tour = self.tour()
        for pool in tour:
            with tour:
                return protocol.check_refused(await pool.ask(request, deadline))
        raise tour.error

    async def again(self, ask: Callable[[float], Awaitable[Answer]]) -> Answer:
        """Ask for what does no harm if it is done twice, as Repetition says; with the seconds left."""
        repetition = Repetition(self.timeout)
        while True:
            try:
                return await ask(repetition.left)
            except ClientError as error:
                await asyncio.sleep(repetition.pause_after(error))

    async def ask_again(self, pool: AsyncPool, request: Request) -> Reply:
        """Make a request on this server that does no harm if it is made twice: see `again`."""
        return await self.again(lambda left: pool.ask(request, time_in(left)))

    async def ask_many_again(self, pool: AsyncPool, requests: Sequence[bytes]) -> list[Reply]:
        """Make requests in one go that do no harm if they are made twice: see `again`."""
        return await self.again(lambda left: pool.ask_many(requests, time_in(left)))

    async def ask_all(self, ask: Callable[[AsyncPool], Awaitable[Reply]]) -> list[Reply]:
        """Ask every server; if some fail, the others are asked all the same; raises the first error."""
        replies: list[Reply] = []
        failure: ClientError | None = None
        for pool in self.pools:
            try:
                replies.append(await ask(pool))
            except ClientError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return replies

    def close(self) -> None:
        """Close all connections."""
        for pool in self.pools:
            pool.close()

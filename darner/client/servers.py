"""The servers of the sync client: which of them is asked, and whether it is asked again."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from darner.client import protocol
from darner.client.errors import ClientError
from darner.client.pool import Pool
from darner.client.protocol import Reply
from darner.client.repetition import Repetition
from darner.client.roster import Roster
from darner.client.windows import Request

Answer = TypeVar("Answer")


class Servers(Roster[Pool]):
    """One server or a fleet; arguments and `timeout` as for Roster."""

    def ask_one(self, request: Request) -> Reply:
        """Ask the next server that can be reached; another one only if it was not sent, or is refused."""
        if self.only is not None:
            return self.only.ask(request, self.timeout)
        deadline = time.monotonic() + self.timeout
        tour = self.tour()
        for pool in tour:
            with tour:
                return protocol.check_refused(pool.ask(request, deadline - time.monotonic()))
        raise tour.error

    def again(self, ask: Callable[[float], Answer]) -> Answer:
        """Ask for what does no harm if it is done twice, as Repetition says; with the seconds left."""
        repetition = Repetition(self.timeout)
        while True:
            try:
                return ask(repetition.left)
            except ClientError as error:
                time.sleep(repetition.pause_after(error))

    def ask_again(self, pool: Pool, request: Request) -> Reply:
        """Make a request on this server that does no harm if it is made twice: see `again`."""
        return self.again(lambda left: pool.ask(request, left))

    def ask_many_again(self, pool: Pool, requests: Sequence[bytes]) -> list[Reply]:
        """Make requests in one go that do no harm if they are made twice: see `again`."""
        return self.again(lambda left: pool.ask_many(requests, left))

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

"""Putting back what a client held when its connection closed."""

from collections.abc import Iterator

import structlog

from darner.errors import JournalError
from darner.journal.journal import Journal
from darner.wire.clients import Client, Clients

log = structlog.get_logger()


class ReturningHolds:
    """The items that a client held reserved when it disconnected, on their way back to their queues.

    They go back in slices. A journal in which too much is staged holds them up as it would a client.
    """

    __slots__ = ("_client", "_clients", "_steps", "_window")

    def __init__(self, clients: Clients, client: Client, steps: Iterator[Journal | None]) -> None:
        """`steps` are those of `Holds.release`. The client is one of the `clients` until they are done."""
        self._clients = clients
        self._client = client
        self._steps = steps
        # what the budget knows it by
        self._window = 0

    def advance(self) -> None:
        """Put back as many as fit into one turn."""
        budget = self._clients.budget
        self._window = budget.begin_turn(self._window)
        try:
            for journal in self._steps:
                if journal is not None:
                    journal.held_back.append(self)
                    return
                if budget.is_spent():
                    self._clients.loop.call_soon(self.advance)
                    return
        except Exception:
            # a fault of ours: those that did not go back do so at the next start
            log.exception("items stay reserved by an internal error", peer=self._client.address)
        self._clients.remove(self._client)

    def hold(self) -> None:
        """Do nothing: there is no reply to hold back."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Do nothing: no reply has promised anything."""

    def release(self) -> None:
        """Go on, for enough of what was staged is written."""
        self._clients.loop.call_soon(self.advance)

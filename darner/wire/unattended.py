"""Steps that no client waits for."""

import asyncio
from collections.abc import Iterator

from darner.environment.budget import Budget
from darner.errors import JournalError
from darner.queues.pending import Pending


class UnattendedSteps:
    """Steps under way. Others have their turn in between, and what a step gives is waited for."""

    __slots__ = ("_budget", "_loop", "_steps", "_window")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, budget: Budget, steps: Iterator[Pending | None]
    ) -> None:
        self._loop = loop
        self._budget = budget
        self._steps = steps
        # what the budget knows them by
        self._window = 0

    def advance(self) -> None:
        """Take as many as fit into one turn."""
        self._window = self._budget.begin_turn(self._window)
        for pending in self._steps:
            if pending is not None:
                pending.held_back.append(self)
                return
            if self._budget.is_spent():
                self._loop.call_soon(self.advance)
                return

    def hold(self) -> None:
        """Do nothing: there is no reply to hold back."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Do nothing: no reply has promised anything."""

    def release(self) -> None:
        """Go on, for what was waited for is done."""
        self._loop.call_soon(self.advance)


async def done(pending: Pending) -> None:
    """Return when what is pending is done."""
    event = asyncio.Event()
    pending.held_back.append(_Wakening(event))
    await event.wait()


class _Wakening:
    """Wakes up a coroutine."""

    __slots__ = ("release",)

    def __init__(self, event: asyncio.Event) -> None:
        self.release = event.set

    def hold(self) -> None:
        """Do nothing: there is no reply to hold back."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Do nothing: no reply has promised anything."""

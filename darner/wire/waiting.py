"""Waiting for an item, on behalf of one connection."""

import asyncio
from collections.abc import Callable

from darner.queues.waiters import Waiter


class Wait:
    """A command that waits for an item, until one comes or its time is up."""

    __slots__ = ("_time_out", "_timer", "_waiter")

    def __init__(self, waiter: Waiter, time_out: Callable[[], None]) -> None:
        """`waiter` is in line already; `time_out` takes it out, and replies that there is no item."""
        self._waiter = waiter
        self._time_out = time_out
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, timeout_ms: int) -> None:
        """Call `expire` in so many ms."""
        self._timer = loop.call_later(timeout_ms / 1000, self._time_out)

    def expire(self) -> None:
        """Reply that there is no item, as if the time were up."""
        self._time_out()

    def cancel(self) -> None:
        """Wait no longer, and reply nothing."""
        self._waiter.cancel()
        self.end()

    def end(self) -> None:
        """Take note that the reply is there."""
        if self._timer is not None:
            self._timer.cancel()

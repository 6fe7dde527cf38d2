"""Threads for work that waits for the disk; its outcome is told on the event loop."""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from darner.environment.offload import at_once

# Called with the exception that the work raised, or None.
Done = Callable[[Exception | None], None]


class Lane:
    """Some threads that share a queue of work."""

    def __init__(self, count: int) -> None:
        """Begin `count` threads."""
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # daemons: a start that fails does not wait for them
        self._threads = [Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Have a thread do `work`, which must raise nothing."""
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # or what it refers to would live until the next comes

    def end(self) -> None:
        """Wait until all work is done, and end the threads."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()


class Threads:
    """The threads beside an event loop, in two lanes, so that urgent work is not behind work that can wait.

    concurrent.futures would do, but has more locks at which the loop and a thread meet: 5 % of the processor
    time of a set with `/sync`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Begin `count` threads for each lane."""
        self._loop = loop
        self._urgent, self._deferred = Lane(count), Lane(count)
        # how much work is under way, or its outcome not told yet
        self._left = 0
        self._told = asyncio.Event()
        self._have_ended = False

    def offload(self, work: Callable[[], None], done: Done) -> None:
        """Do `work` in a thread, for somebody who waits; then call `done` on the event loop. Once the threads
        have ended, both are done at once."""
        self._put(self._urgent, work, done)

    def defer(self, work: Callable[[], None], done: Done) -> None:
        """Do work that nobody waits for, or that takes long; else as `offload`."""
        self._put(self._deferred, work, done)

    def _put(self, lane: Lane, work: Callable[[], None], done: Done) -> None:
        if self._have_ended:
            at_once(work, done)
            return

        def tell(error: Exception | None) -> None:
            self._left -= 1
            self._told.set()
            done(error)

        def finish(error: Exception | None) -> None:
            self._loop.call_soon_threadsafe(tell, error)

        def run() -> None:
            try:
                at_once(work, finish)
            except BaseException as error:  # the thread must go on, and `done` must be called
                finish(RuntimeError(repr(error)))

        self._left += 1
        lane.put(run)

    async def end(self) -> None:
        """Wait until all work is done and its outcome told, then end the threads."""
        while self._left:
            self._told.clear()
            await self._told.wait()
        self._have_ended = True
        self._urgent.end()
        self._deferred.end()

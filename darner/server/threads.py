"""What waits for the disk is done in threads; what comes of it is told on the event loop."""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from darner.environment.offload import at_once

Done = Callable[[Exception | None], None]


class Lane:
    """Some threads that do one piece of work after the other."""

    def __init__(self, count: int) -> None:
        """Begin `count` threads."""
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A start that fails is not to wait for them.
        self._threads = [Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Have `work` done, which raises nothing."""
        self._work.put(work)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what it knows of is not to live until the next comes

    def end(self) -> None:
        """Wait until all is done that was put, and end the threads."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()


class Threads:
    """Threads beside an event loop, in two lanes: what somebody waits for is not behind what can wait.

    concurrent.futures would do, but has more locks at which the loop and a thread meet: 5 % of the processor
    time of a set with `/sync`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Begin `count` threads for each lane."""
        self._loop = loop
        self._urgent, self._other = Lane(count), Lane(count)
        # how much is being done, or its outcome not told yet
        self._left = 0
        self._told = asyncio.Event()
        self._have_ended = False

    def offload(self, work: Callable[[], None], done: Done) -> None:
        """Have `work` done in a thread, and then `done` called on the loop with the exception that it raised,
        or None. Once the threads have ended, it is done at once."""
        self._put(self._urgent, work, done)

    def defer(self, work: Callable[[], None], done: Done) -> None:
        """As `offload`, of what nobody waits for, or what takes its time."""
        self._put(self._other, work, done)

    def _put(self, lane: Lane, work: Callable[[], None], done: Done) -> None:
        if self._have_ended:
            at_once(work, done)
            return

        def tell(error: Exception | None) -> None:
            self._left -= 1
            self._told.set()
            done(error)

        def settle(error: Exception | None) -> None:
            self._loop.call_soon_threadsafe(tell, error)

        def do() -> None:
            try:
                at_once(work, settle)
            except BaseException as error:  # the thread is to live, and whoever is to be told is told
                settle(RuntimeError(repr(error)))

        self._left += 1
        lane.put(do)

    async def end(self) -> None:
        """Wait until all is done, and what came of it, too; then end the threads."""
        while self._left:
            self._told.clear()
            await self._told.wait()
        self._have_ended = True
        self._urgent.end()
        self._other.end()

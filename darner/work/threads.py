"""Threads that run jobs for the event loop."""

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from darner.client.item import Item
from darner.work.jobs import Outcome


class JobThread:
    """A thread that runs one job at a time.

    It is a daemon: a job that never ends keeps no process from ending.
    """

    def __init__(self, function: Callable[[Item], object]) -> None:
        self._function = function
        self._jobs: SimpleQueue[tuple[Item, asyncio.Future[Outcome]] | None] = SimpleQueue()
        Thread(target=self._run, name="job", daemon=True).start()

    async def __call__(self, item: Item) -> Outcome:
        """Run the function in the thread; return what it raised, or None."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._jobs.put((item, outcome))
        return await outcome

    def end(self) -> None:
        """End the thread once its job is done."""
        self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            item, outcome = job
            error = self._call(item)
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                outcome.get_loop().call_soon_threadsafe(_set, outcome, error)
            del job, item, error  # while it waits for the next, it keeps none alive

    def _call(self, item: Item) -> Outcome:
        try:
            self._function(item)
        except BaseException as error:
            return error
        return None


def _set(outcome: asyncio.Future[Outcome], error: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(error)

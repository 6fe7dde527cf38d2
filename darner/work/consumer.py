"""What one process of a worker does: it takes items, has jobs run, and answers the server for them."""

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from darner.client.item import Item
from darner.work.backoff import pause_s
from darner.work.confirming import confirm
from darner.work.connection import Delivery
from darner.work.fleet import Fleet
from darner.work.jobs import Outcome, Retry
from darner.work.observer import Observer
from darner.work.settings import Settings

log = structlog.get_logger()

# How long an async job has for clearing up when it is cancelled.
CANCELLED_S = 1.0

# Runs one job at a time; returns what the function raised, or None.
Runner = Callable[[Item], Awaitable[Outcome]]


class Consumer:
    """The jobs of one process, as many at a time as there are runners."""

    def __init__(
        self, settings: Settings, runners: Sequence[Runner], fleet: Fleet, observer: Observer
    ) -> None:
        self._settings = settings
        self._runners = runners
        self._fleet = fleet
        self._observer = observer
        self._stopped = asyncio.Event()
        self._in_progress: set[Item] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._taken = 0

    async def run(self) -> bool:
        """Work until `stop`, then finish what is in progress within the grace; return whether all of it was.
        The rest goes back. Raises WorkerError if a server refuses."""
        stopped = asyncio.create_task(self._stopped.wait())
        places = {asyncio.create_task(self._work(runner)) for runner in self._runners}
        await asyncio.wait({stopped, *places}, return_when=asyncio.FIRST_COMPLETED)
        self.stop()
        log.info("nothing more is taken", in_progress=len(self._in_progress))
        ended, unfinished = await asyncio.wait(places, timeout=self._settings.grace)
        for item in self._in_progress:
            log.warning("not finished in time: it goes back", **_fields(item))
        self._fleet.close()
        for place in unfinished:
            place.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=CANCELLED_S)
        for place in ended:
            place.result()
        return not unfinished

    def stop(self) -> None:
        """Take nothing more."""
        self._stopped.set()
        self._fleet.stop()

    async def _work(self, runner: Runner) -> None:
        """Run one job after the other."""
        while (delivery := await self._fleet.next()) is not None:
            self._taken += 1
            if self._taken == self._settings.max_jobs:
                self.stop()
            item = delivery.item
            self._in_progress.add(item)
            self._observer.note_start(item.queue)
            began = time.monotonic()
            error = await runner(item)
            seconds = time.monotonic() - began
            self._in_progress.discard(item)
            # sent before the next item is asked for; the reply is awaited besides
            self._answer(delivery, error, seconds)
        if self._answers:
            await asyncio.wait(self._answers)

    def _answer(self, delivery: Delivery, error: Outcome, seconds: float) -> None:
        """Tell the server how a job has ended."""
        item = delivery.item
        if error is None:
            outcome, send = "handled", delivery.close
            log.debug("done", **_fields(item), seconds=round(seconds, 3))
        elif isinstance(error, Retry):
            outcome, send = "retried", functools.partial(delivery.abort, error.delay)
            log.info("to be retried", **_fields(item), retry_in_s=error.delay)
        else:
            first, longest = self._settings.first_pause, self._settings.longest_pause
            pause = round(pause_s(item.attempts, first, longest, random.random), 3)
            outcome, send = "failed", functools.partial(delivery.abort, pause)
            log.error(
                "the job failed", **_fields(item), seconds=round(seconds, 3), retry_in_s=pause, exc_info=error
            )
        answer = asyncio.create_task(self._confirm(item, send, send(), outcome, seconds))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    async def _confirm(
        self,
        item: Item,
        send: Callable[[], Awaitable[None]],
        reply: Awaitable[None],
        outcome: str,
        seconds: float,
    ) -> None:
        """Wait for the server's reply to an answer."""
        if not await confirm(reply, send, lambda: log.bind(**_fields(item))):
            outcome = "lost"
        self._observer.note_end(item.queue, outcome, seconds)


def _fields(item: Item) -> dict[str, object]:
    return {"queue": item.queue, "id": item.id, "attempts": item.attempts}

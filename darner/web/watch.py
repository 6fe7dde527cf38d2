"""The watch over one server: what it said last, and the history of its queues.

A server is asked often only while somebody looks, and never takes more than a small part of its time for it.
"""

import asyncio
import contextlib
import itertools
import time

import structlog

from darner.client import protocol, stats
from darner.client.errors import ClientError
from darner.tools.overview import Overview, QueueView, Sample
from darner.web.asking import Asking
from darner.web.history import STEP_S, Histories

log = structlog.get_logger()

# Between two polls in seconds, while somebody looks. Else a poll is made for each point of the histories.
PAUSE_S = 2.0
# Somebody looks if a page was asked for within so many seconds.
LOOKING_S = 15.0
# A pause is at least so many times as long as the poll before it, up to STEP_S: where there are very many
# queues, or the network is slow, polls are fewer.
SHARE = 10

# of all servers: a number for each poll
_numbers = itertools.count(1)


class Watch:
    """What is known of one server."""

    def __init__(self, asking: Asking, histories: Histories) -> None:
        self.asking = asking
        self.overview = Overview(asking.name, "it was not asked yet")
        # of the last poll
        self.number = 0
        self._histories = histories
        self._before: Sample | None = None
        self._looked_at = -LOOKING_S
        self._is_looked_at = asyncio.Event()

    def look(self) -> None:
        """Take note that somebody looks: polls are frequent for a while."""
        self._looked_at = time.monotonic()
        self._is_looked_at.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.poll()
            except Exception:
                # the other servers, and what this one said before, are shown all the same
                log.exception("a poll failed by a fault of the page", server=self.asking.name)
            took = time.monotonic() - began
            await asyncio.sleep(max(PAUSE_S, min(took * SHARE, STEP_S)))
            self._is_looked_at.clear()
            if time.monotonic() > self._looked_at + LOOKING_S:
                with contextlib.suppress(TimeoutError):
                    # one poll in each step of the histories
                    async with asyncio.timeout(STEP_S - time.monotonic() % STEP_S):
                        await self._is_looked_at.wait()

    async def poll(self) -> None:
        """Ask the server, and keep what it says."""
        try:
            reply = protocol.check(await self.asking.ask(protocol.STATS), protocol.END)
            server, queues = stats.both(reply.stats)
            if not queues:  # with queue_stats = "asked" they are not in it
                asked = protocol.check(await self.asking.ask(protocol.QUEUE_STATS), protocol.END)
                queues = stats.queue_stats(asked.stats)
        except ClientError as error:
            self.overview = Overview(
                self.overview.server, str(error), self.overview.stats, self.overview.queues
            )
        else:
            now = Sample(time.monotonic(), server, queues)
            self.overview = Overview.of(self.overview.server, now, self._before)
            self._before = now
            self._remember(now.time_s)
        self.number = next(_numbers)

    def _remember(self, now: float) -> None:
        server, views = self.overview.server, self.overview.queues
        self._histories.keep(server, views)
        for name, view in views.items():
            if (history := self._histories.begin(server, name)) is not None:
                history.add(now, _points(view))


def _points(view: QueueView) -> tuple[float, ...]:
    """Return the figures of a queue in the order of SERIES."""
    return (
        view.stats.items,
        view.rate_in if view.rate_in is not None else 0,
        view.rate_out if view.rate_out is not None else 0,
        view.stats.head_age,
        view.stats.waiters,
        view.reserved,
    )

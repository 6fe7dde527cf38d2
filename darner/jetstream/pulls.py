"""Pulls of one queue: what asks the cluster for its next items.

Fetches of one turn that do not wait share a pull. Each fetch that waits has a subscription of its own: with
its end the cluster forgets the pull, and so sends no item that nobody wants.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from darner.errors import UnavailableError
from darner.jetstream.api import NO_RESPONDERS, no_answer
from darner.jetstream.delivery import Delivery
from darner.jetstream.link import Link, status_of
from darner.jetstream.names import Address

# How long a pull waits at the cluster for an item, as a part of ack_wait: when an item was sent is not known,
# only that its pull went before it, and what is left must be enough to confirm it.
WAIT_PART = 1 / 3
# How long, in seconds, a pull that does not wait may be without an answer.
ANSWER_S = 2.5

HEARTBEAT = 100
NO_MESSAGES = 404
TIMED_OUT = 408
GONE = 409

Found = asyncio.Future[Delivery | None]


class Pull:
    """One request for some items, of fetches that do not wait."""

    __slots__ = ("generation", "left", "reply", "sent_at", "wants")

    def __init__(self, now: float, wants: deque[Found], generation: int) -> None:
        self.sent_at = now
        # the fetches it is for, first come, first served; and how many items may still come
        self.wants = wants
        self.left = len(wants)
        self.reply = ""
        # that of the link's subscription for items
        self.generation = generation


class Pulls:
    """All pulls of one queue."""

    __slots__ = (
        "_ack_wait_s", "_link", "_loop", "_on_missing", "_on_orphan", "_place", "_pulls", "_subject",
        "_wants", "is_missing",
    )  # fmt: skip

    def __init__(
        self,
        link: Link,
        place: Address,
        ack_wait_s: float,
        on_orphan: Callable[[Delivery], None],
        on_missing: Callable[[], None],
    ) -> None:
        """`on_orphan` is called with an item that nobody waits for any more, `on_missing` if nobody answers:
        the queue may have been deleted."""
        self._link = link
        self._place = place
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{place.stream}.{place.consumer}"
        self._ack_wait_s = ack_wait_s
        self._on_orphan = on_orphan
        self._on_missing = on_missing
        self._loop = asyncio.get_running_loop()
        # fetches of this turn, and the pulls under way in their order
        self._wants: list[Found] = []
        self._pulls: list[Pull] = []
        # whether the last pull that waited was told that there is no such queue, or that it has no leader
        self.is_missing = False

    # Fetches that do not wait

    async def now(self) -> Delivery | None:
        """Return the next item; None if the cluster says that there is none. Raises UnavailableError if it
        does not answer."""
        found: Found = self._loop.create_future()
        if not self._wants:
            self._loop.call_soon(self._pull)
        self._wants.append(found)
        return await found

    def _pull(self) -> None:
        """Ask for as many items as fetches of this turn want."""
        wants, self._wants = deque(self._wants), []
        pull = Pull(self._loop.time(), wants, self._link.generation)
        pull.reply = self._link.listen_for_items(
            self._place.subject, self._arrived, lambda message: self._answered(pull, status_of(message))
        )
        self._pulls.append(pull)
        self._link.send(self._subject, msgspec.json.encode({"batch": pull.left, "no_wait": True}), pull.reply)
        self._loop.call_later(ANSWER_S, self._give_up, pull)

    def _arrived(self, message: Msg) -> None:
        """Give an item to the first pull: the cluster serves them in their order."""
        if not self._pulls:
            return  # it was given up, and the item comes back by itself
        pull = self._pulls[0]
        pull.left -= 1
        delivery = Delivery(message, pull.sent_at, self._ack_wait_s)
        found = pull.wants.popleft()
        if found.done():
            self._on_orphan(delivery)
        else:
            found.set_result(delivery)
        if not pull.left:
            self._end(pull, None)

    def _answered(self, pull: Pull, status: int) -> None:
        if status != HEARTBEAT:
            self._end(pull, None if status in (NO_MESSAGES, TIMED_OUT) else no_answer())

    def _give_up(self, pull: Pull) -> None:
        if pull in self._pulls:
            self._end(pull, no_answer())
            if pull.generation == self._link.generation:
                # a late item must not be taken for one of a later pull: somebody else may have it
                self._link.renew_items()

    def _end(self, pull: Pull, error: UnavailableError | None) -> None:
        """Tell the fetches of a pull that no more comes."""
        self._pulls.remove(pull)
        self._link.forget(pull.reply)
        if not self._pulls:
            self._link.forget_items(self._place.subject)
        for found in pull.wants:
            if not found.done():
                if error is None:
                    found.set_result(None)
                else:
                    found.set_exception(error)

    # Fetches that wait

    async def wait(self, wait_s: float | None = None) -> Delivery | None:
        """Return the next item once there is one; None if there is none in that time and the queue is there.
        Raises UnavailableError if the cluster does not answer. One that is cancelled ends when nothing more
        comes for it."""
        inbox = await self._link.subscribe_for_one()
        sent_at = self._loop.time()
        most_s = self._ack_wait_s * WAIT_PART
        wait_s = most_s if wait_s is None else min(wait_s, most_s)
        body = msgspec.json.encode({"batch": 1, "expires": int(wait_s * 1e9)})
        self._link.send(self._subject, body, inbox.subject)
        came_late = functools.partial(self._came_late, sent_at)
        try:
            message = await inbox.next(wait_s + ANSWER_S)
        except asyncio.CancelledError:
            await inbox.close(came_late)
            raise
        inbox.close(came_late)
        if message is None:
            raise no_answer()
        status = status_of(message)
        self.is_missing = status in (GONE, NO_RESPONDERS)
        if not status:
            return Delivery(message, sent_at, self._ack_wait_s)
        if self.is_missing:
            self._on_missing()
        return None

    def _came_late(self, sent_at: float, message: Msg) -> None:
        if not status_of(message):
            self._on_orphan(Delivery(message, sent_at, self._ack_wait_s))

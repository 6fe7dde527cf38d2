"""The clients that wait at one queue, first come, first served.

For each that takes an item there is a pull at the cluster. What comes to any of these is for the client that
is first in line: so it keeps its place though pulls end and others begin. A line at a queue that does not
exist is parked: it has no pulls, and asks for the queue when that may have been made.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import structlog
from nats.aio.msg import Msg

from darner.errors import InternalError, JournalError, NotReadyError, UnavailableError
from darner.jetstream.api import (
    GIVE_UP_S,
    NO_CONSUMER,
    NO_RESPONDERS,
    NO_STREAM,
    PAUSE_S,
    call_all,
)
from darner.jetstream.delivery import Delivery
from darner.jetstream.link import Link, status_of
from darner.jetstream.names import PREFIX, Address
from darner.queues.waiters import Source, Waiter
from darner.wire.unattended import done

log = structlog.get_logger()

# How long, in seconds, between two looks of a client that waits for an item and leaves it there.
LOOK_S = 0.25
# How long, in seconds, fetches wait for the end of what may bring something to a client that has gone.
LEAVE_S = 2.0
# How often, in seconds, it is looked whether queues have been made that somebody waits for, should the word
# of the darner that made them be lost.
MISSING_S = 2.0


class Place(Source, Protocol):
    """Where a client waits: what it fetches its item from."""

    takes: bool

    def offer(self, delivery: Delivery) -> None:
        """Have the next fetch return this item, which has come."""


class Line:
    """The clients that wait at one queue."""

    __slots__ = (
        "_address", "_admit", "_fetch", "_give_back", "_handing", "_leaving", "_link", "_looking", "_on_left",
        "_parking", "_places", "_pulling", "_question", "_takers", "has_dead_pulls", "is_there",
    )  # fmt: skip

    def __init__(
        self,
        link: Link,
        address: Address,
        parking: "Parking",
        fetch: Callable[[], Awaitable[Delivery | None]],
        admit: Callable[[Delivery], Awaitable[bool]],
        give_back: Callable[[Delivery], None],
        on_left: Callable[[], None],
    ) -> None:
        """`fetch` returns an item that comes; None if it is to be called again. `admit` returns whether an
        item is to be given to a client, and `give_back` gives it back. `on_left` is called when a client has
        gone before an item came for it."""
        self._link = link
        self._address = address
        self._parking = parking
        self._fetch = fetch
        self._admit = admit
        self._give_back = give_back
        self._on_left = on_left
        # in the order in which they came, with where each waits; and how many of them take an item
        self._places: OrderedDict[Waiter, Place] = OrderedDict()
        self._takers = 0
        # the pulls, the oldest first, and for how many items that have come it is found out who gets them
        self._pulling: dict[asyncio.Task[None], None] = {}
        self._handing = 0
        # of clients that only look
        self._looking: dict[Waiter, asyncio.Task[None]] = {}
        # pulls of clients that have gone, to which something may come yet
        self._leaving: set[asyncio.Task[None]] = set()
        # whether the cluster may still have pulls of such
        self.has_dead_pulls = False
        # whether there is such a queue, as far as it is known
        self.is_there = False
        # where the answer is to come to whether there is
        self._question = ""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def has_takers(self) -> bool:
        """Whether a client waits that takes an item."""
        return self._takers > 0

    @property
    def stream(self) -> str:
        """The stream that the queue is in, or would be."""
        return self._address.stream

    def join(self, waiter: Waiter, place: Place) -> None:
        """Have a client served when there is an item."""
        self._places[waiter] = place
        self._takers += place.takes
        if self.is_there:
            self._begin(waiter)
        else:
            self._parking.add(self)
            if len(self._places) == 1:
                self.ask()

    def leave(self, waiter: Waiter) -> None:
        """Have a client wait no longer."""
        place = self._places.pop(waiter, None)
        if place is None:
            return
        if place.takes:
            self._takers -= 1
            self._match()
        else:
            looking = self._looking.pop(waiter, None)
            if looking is not None and looking is not asyncio.current_task():
                looking.cancel()
        if not self._places:
            self._parking.discard(self)

    async def left(self) -> None:
        """Return when nothing comes any more for clients that have gone by now."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=LEAVE_S)

    # Whether there is a queue

    def note_there(self) -> None:
        """Take note that the queue exists."""
        if not self.is_there:
            self.is_there = True
            self._parking.discard(self)
            for waiter in list(self._places):
                if waiter.has_disconnected():
                    # a pull that ends as an item comes may lose it until ack_wait is over
                    waiter.cancel()
                else:
                    self._begin(waiter)

    def note_missing(self) -> None:
        """Take note that the queue does not exist, or that it has no leader."""
        self.is_there = False
        if self._places and self._parking.add(self):
            asyncio.get_running_loop().call_later(PAUSE_S, self.ask)

    def ask(self) -> None:
        """Ask whether the queue that is waited for has been made."""
        self._link.forget(self._question)
        if self._places and not self.is_there:
            self._question = self._link.listen(self._answered)
            name = f"CONSUMER.INFO.{self._address.stream}.{self._address.consumer}"
            self._link.send(f"$JS.API.{name}", b"", self._question)

    def _answered(self, message: Msg) -> None:
        self._link.forget(self._question)
        if status_of(message) != NO_RESPONDERS:
            error = msgspec.json.decode(message.data).get("error")
            if error is None:
                self.note_there()
                return
            if error.get("err_code") in (NO_CONSUMER, NO_STREAM):
                return
        # it has no leader
        asyncio.get_running_loop().call_later(PAUSE_S, self.ask)

    # Items that come

    def _begin(self, waiter: Waiter) -> None:
        place = self._places[waiter]
        if place.takes:
            self._match()
        elif waiter not in self._looking:
            self._looking[waiter] = asyncio.create_task(self._look(waiter, place))

    def _match(self) -> None:
        """Have as many pulls as clients that take an item."""
        spare = len(self._pulling) + self._handing - self._takers
        while spare > 0 and self._pulling:
            pull, _ = self._pulling.popitem()
            pull.cancel()
            self._leaving.add(pull)
            pull.add_done_callback(self._leaving.discard)
            self.has_dead_pulls = True
            self._on_left()
            spare -= 1
        while spare < 0 and self.is_there:
            self._pulling[asyncio.create_task(self._pull())] = None
            spare += 1

    async def _pull(self) -> None:
        """Fetch an item for the client that is first in line when it comes."""
        pull = asyncio.current_task()
        assert pull is not None
        try:
            try:
                delivery = await self._next(pull)
            finally:
                self._pulling.pop(pull, None)  # it is not cancelled any more
            if delivery is not None:
                await self._hand_out(delivery)
        except JournalError as error:
            self._fail_first(error)
        except UnavailableError as error:
            self._fail_first(JournalError(str(error)))
        except Exception as error:  # a fault of ours: the client is told
            log.exception("a wait ended by an internal error")
            self._fail_first(InternalError(error))
        self._match()

    async def _next(self, pull: asyncio.Task[None]) -> Delivery | None:
        """Return an item that comes; None once there is no such queue. Raises UnavailableError."""
        heard_at = time.monotonic()
        delivery = None
        # before CPython 3.12 an answer that comes in the same instant swallows a cancellation
        while delivery is None and self.is_there and pull in self._pulling:
            try:
                delivery = await self._fetch()
            except UnavailableError:
                # a new leader is elected in less
                if time.monotonic() - heard_at > GIVE_UP_S:
                    raise
            else:
                heard_at = time.monotonic()
        return delivery

    async def _hand_out(self, delivery: Delivery) -> None:
        """Give an item to the first client that takes one, and show it to those before it that only look."""
        self._handing += 1
        try:
            is_admitted = await self._admit(delivery)
        finally:
            self._handing -= 1
        while is_admitted and self._places:
            waiter, place = next(iter(self._places.items()))
            # its time cannot be up any more: the cluster is about to remove the item
            has_disconnected = waiter.has_disconnected()
            waiter.cancel()
            if has_disconnected:
                continue
            place.offer(delivery)
            await self._deliver(waiter, place)
            if place.takes:
                return
        if is_admitted:
            self._give_back(delivery)

    async def _deliver(self, waiter: Waiter, place: Place) -> None:
        """Give a client the item that has come for it."""
        while True:
            try:
                item = waiter.fetch_from(place)
            except NotReadyError as error:
                await done(error.journal)
                continue
            except JournalError as error:
                waiter.fail(error)
                return
            waiter.deliver(place, item)
            return

    async def _look(self, waiter: Waiter, place: Place) -> None:
        """Show a client an item, and leave it there."""
        try:
            while self.is_there:
                try:
                    item = waiter.fetch_from(place)
                except NotReadyError as error:
                    await done(error.journal)
                    continue
                if item is not None:
                    waiter.cancel()
                    waiter.deliver(place, item)
                    return
                await asyncio.sleep(LOOK_S)
        except JournalError as error:
            self._fail(waiter, error)
        except Exception as error:  # a fault of ours: the client is told
            log.exception("a wait ended by an internal error")
            self._fail(waiter, InternalError(error))
        finally:
            self._looking.pop(waiter, None)

    def _fail_first(self, error: JournalError) -> None:
        for waiter, place in self._places.items():
            if place.takes:
                self._fail(waiter, error)
                return

    def _fail(self, waiter: Waiter, error: JournalError) -> None:
        """Have a client wait here no longer; it is told why if it does not wait elsewhere, too."""
        self._places[waiter].leave(waiter)
        if not waiter.sources:
            waiter.cancel()
            waiter.fail(error)


class Parking:
    """The lines at queues that do not exist, by the streams that these would be in."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lines: dict[str, set[Line]] = {}
        self._looked_at = 0.0

    def add(self, line: Line) -> bool:
        """Have a line ask when its queue may have been made; returns whether it is new here."""
        lines = self._lines.setdefault(line.stream, set())
        is_new = line not in lines
        lines.add(line)
        return is_new

    def discard(self, line: Line) -> None:
        """Forget a line."""
        lines = self._lines.get(line.stream)
        if lines is not None:
            lines.discard(line)
            if not lines:
                del self._lines[line.stream]

    def ask(self, stream: str) -> None:
        """Have the lines at a stream ask: it may have changed."""
        for line in self._lines.get(stream, ()):
            line.ask()

    @property
    def is_due(self) -> bool:
        """Whether it is time to `look`."""
        return bool(self._lines) and time.monotonic() - self._looked_at > MISSING_S

    async def look(self) -> None:
        """Have the lines ask whose streams exist by now. Raises UnavailableError."""
        self._looked_at = math.inf  # none is due before the end of this one
        try:
            streams = await call_all(self._link, "STREAM.NAMES", "streams", {"subject": f"{PREFIX}.>"})
        finally:
            self._looked_at = time.monotonic()
        for stream in streams:
            self.ask(stream)

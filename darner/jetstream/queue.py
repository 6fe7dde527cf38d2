"""One queue of the cluster, as this darner knows it."""

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any

import structlog
from nats.aio.msg import Msg

from darner._records import Item
from darner.config.settings import QueueSettings
from darner.errors import DarnerError, UnavailableError
from darner.jetstream.api import (
    GIVE_UP_S,
    NO_CONSUMER,
    NO_MESSAGE,
    NO_RESPONDERS,
    NO_STREAM,
    PAUSE_S,
    ApiError,
    call,
)
from darner.jetstream.delivery import ACK, EXPIRES, FLAGS, IN_PROGRESS, NAK, Delivery, confirm, confirm_or_not
from darner.jetstream.line import Line, Parking
from darner.jetstream.link import Link, status_of
from darner.jetstream.names import address
from darner.jetstream.operation import Operation, Settled
from darner.jetstream.pulls import Pulls
from darner.printable import shown
from darner.queues.counts import Counts

log = structlog.get_logger()

# How long, in seconds, a new item may take from its stream to its consumer: 0.27 was seen.
ARRIVAL_S = 0.5
# How long, in seconds, fetches wait for the cluster to confirm that it has an item back.
RETURN_S = 2.0
# How long, in seconds, after a client has gone it is looked whether an item was sent to nobody.
MISSED_S = 0.5
# Of how many items that have come back it is known that they wait.
MAX_RETURNED = 10_000


class Figures:
    """What the cluster says of a queue, as of the last look."""

    __slots__ = ("bytes", "created_ms", "delayed", "head_ms", "in_flight", "items")

    def __init__(self) -> None:
        self.items = self.bytes = self.delayed = self.in_flight = 0
        # when the oldest waiting item was set; 0 if none waits
        self.head_ms = 0
        self.created_ms = 0


class ClusterQueue:
    """The items that this darner has of a queue, and what is asked of the others.

    Methods that give items up raise NotReadyError until the cluster has confirmed that.
    """

    __slots__ = (
        "__weakref__", "_ack_wait_s", "_all_returned", "_closing", "_give_up", "_look_later", "_loop",
        "_make", "_return_later", "_returned", "_returning", "_returns", "_unconfirmed", "address", "counts",
        "deliveries", "figures", "line", "link", "name", "pulls", "settings", "taken_enqueued_ms", "taken_ms",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        settings: QueueSettings,
        link: Link,
        parking: Parking,
        ack_wait_s: float,
        on_missing: Callable[[], None],
        make: Callable[[], Awaitable[None]],
        give_up: "Callable[[ClusterQueue, Delivery, str | None], Awaitable[None]]",
    ) -> None:
        """`on_missing` is called if the queue seems to be deleted, and `make` makes it. `give_up` moves an
        item to the queue of a name, or drops it."""
        self.name = name
        self.settings = settings
        self.address = address(name)
        self.counts = Counts()
        self.figures = Figures()
        self.link = link
        self._ack_wait_s = ack_wait_s
        self._make = make
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self.pulls = Pulls(link, self.address, ack_wait_s, self.give_back, on_missing)
        # the clients that wait
        self.line = Line(link, self.address, parking, self._wait, self.admit, self.give_back, self._note_left)
        # what was delivered here and is neither removed nor given back, by id
        self.deliveries: dict[int, Delivery] = {}
        # the closes under way; the ids of a queue that is made again are those of other items
        self._closing: dict[Item, Operation[None]] = {}
        # what goes back at the end of this turn, in the order of the items
        self._returning: list[Delivery] = []
        # how many items went back so far
        self._returns = 0
        # what the cluster has not confirmed of that, and what is set once there is nothing of either
        self._unconfirmed: set[str] = set()
        self._all_returned: asyncio.Event | None = None
        # the ids of what went back and was not delivered here again, the newest of them
        self._returned: dict[int, None] = {}
        self._return_later: asyncio.Task[None] | None = None
        self._look_later: asyncio.TimerHandle | None = None
        self.taken_ms = self.taken_enqueued_ms = 0

    # In

    async def next(self) -> Delivery | None:
        """Return the next item to fetch, which is in flight from now on; None if there is none.

        The cluster may be asked for an item a moment before its consumer knows of it, though the set is
        acknowledged. So if the stream has items, it is asked again. Raises UnavailableError."""
        await self._wait_for_returns()
        end = self._loop.time() + GIVE_UP_S
        returns = self._returns
        while True:
            try:
                delivery = await self.pulls.now()
                self.line.note_there()
                break
            except UnavailableError:
                if not await self._exists():
                    self.line.note_missing()
                    return None
                if self._loop.time() > end:
                    raise
                await asyncio.sleep(PAUSE_S)
        # an item that was for a client which waited, and has gone, may go back meanwhile
        if delivery is None and (await self._has_undelivered() or returns != self._returns):
            await self._wait_for_returns()
            return await self.pulls.wait(ARRIVAL_S)
        return delivery

    async def _has_undelivered(self) -> bool:
        """Return whether the stream has items that its consumer knows nothing of, neither as in flight."""
        count = await self.count()
        # what was sent to a client that has gone counts as in flight until the cluster has seen that
        if not count or self.line.has_dead_pulls:
            return count > 0
        info = await self._consumer()
        return info is not None and count > int(info["num_ack_pending"])

    async def _consumer(self, deadline: float | None = None) -> dict[str, Any] | None:
        """Return what CONSUMER.INFO says; None if the queue is gone."""
        name = f"CONSUMER.INFO.{self.address.stream}.{self.address.consumer}"
        try:
            info = await call(self.link, name, None, deadline)
        except ApiError as error:
            if error.code in (NO_CONSUMER, NO_STREAM):
                self.line.note_missing()
                return None
            raise
        self.line.note_there()
        return info

    async def _exists(self) -> bool:
        """Return whether the queue has a consumer; if only its items are there, it is made."""
        try:
            await call(self.link, f"CONSUMER.INFO.{self.address.stream}.{self.address.consumer}")
        except ApiError as error:
            if error.code == NO_CONSUMER and await self.count():
                await self._make()
                return True
            if error.code in (NO_CONSUMER, NO_STREAM):
                return False
            raise
        return True

    async def _wait(self) -> Delivery | None:
        """Return an item that comes while this waits; None if it is to be called again, or if there is no
        such queue. Raises UnavailableError."""
        await self._wait_for_returns()
        delivery = await self.pulls.wait()
        if self.pulls.is_missing:
            self.line.note_missing()
        return delivery

    async def count(self) -> int:
        """Return how many items the stream has of this queue, those in flight among them."""
        try:
            info = await call(
                self.link, f"STREAM.INFO.{self.address.stream}", {"subjects_filter": self.address.subject}
            )
        except ApiError as error:
            if error.code == NO_STREAM:
                return 0
            raise
        subjects = info["state"].get("subjects") or {}
        return int(subjects.get(self.address.subject, 0))

    async def admit(self, delivery: Delivery) -> bool:
        """Return whether an item that came is to be given to a client: it may have expired, or have come back
        too often, and is then moved or dropped."""
        item = delivery.item
        self._returned.pop(item.id, None)
        if item.expires_ms and item.expires_ms <= now_date_ms():
            self.counts.expired_items += 1
            await confirm(self.link, delivery, ACK)
            return False
        most = self.settings.max_attempts
        if most and item.attempts >= most:
            await self._give_up(self, delivery, self.settings.dead_letter_queue)
            return False
        self.deliveries[item.id] = delivery
        return True

    def note_taken(self, item: Item) -> None:
        """Note that an item has left the queue for a client."""
        self.taken_ms, self.taken_enqueued_ms = now_date_ms(), item.enqueued_ms

    async def take(self, delivery: Delivery) -> Item:
        """Remove an item for good, and return it. Raises UnavailableError if it is not certain that nobody
        else gets it."""
        try:
            if delivery.item.attempts or not await confirm_or_not(self.link, delivery, ACK):
                await self._win(delivery.item)
        finally:
            self.deliveries.pop(delivery.item.id, None)
        self.note_taken(delivery.item)
        return delivery.item

    async def _win(self, item: Item) -> None:
        """Remove an item that somebody else may have, too. Raises UnavailableError if it is not certain that
        this is what has removed it.

        An acknowledgement that comes late is confirmed as one in time, and an item that is given back late
        goes to a third, though a second has it. A deletion succeeds once."""
        name = f"STREAM.MSG.DELETE.{self.address.stream}"
        try:
            await call(self.link, name, {"seq": item.id, "no_erase": True})
        except ApiError as error:
            raise UnavailableError(f"the item is removed, perhaps by another get ({error.code})") from error

    def reserve(self, delivery: Delivery) -> Item:
        """Have a client hold an item, and return it."""
        delivery.is_reserved = True
        timeout_ms = self.settings.open_timeout_ms
        if timeout_ms:
            delivery.held_until = self._loop.time() + timeout_ms / 1000
        self.note_taken(delivery.item)
        return delivery.item

    def hand_over(self, item: Item) -> None:
        """Note that the client that holds an item knows of it: with its connection the item goes back."""
        delivery = self.deliveries.get(item.id)
        if delivery is not None:
            delivery.is_abandoned = None

    # What becomes of reserved items

    def _held(self, item: Item) -> Delivery | None:
        delivery = self.deliveries.get(item.id)
        if delivery is None or delivery.item is not item:
            return None
        return delivery if self._loop.time() < delivery.deadline else None

    def is_reserved(self, item: Item) -> bool:
        """Return whether a client still holds an item."""
        return self._held(item) is not None

    def close(self, item: Item) -> None:
        """Remove a reserved item for good."""
        delivery = self._held(item)
        closing = self._closing.get(item)
        if closing is None:
            if delivery is None:
                return
            closing = self._closing[item] = Operation(self._close(delivery))
        if closing.is_done:
            del self._closing[item]
        closing.result()
        self.deliveries.pop(item.id, None)

    async def _close(self, delivery: Delivery) -> None:
        if not await confirm(self.link, delivery, ACK):
            # it is gone with its queue, and so is not held any more
            self._closing.pop(delivery.item, None)
        if delivery.item not in self._closing:
            self.forget_deliveries([delivery])

    def forget_deliveries(self, deliveries: Iterable[Delivery]) -> None:
        """Take note that these items are gone with a queue of this name that was deleted."""
        for delivery in deliveries:
            id = delivery.item.id
            if self.deliveries.get(id) is delivery:
                del self.deliveries[id]

    def abort(self, item: Item) -> Operation[None] | None:
        """Have the cluster give a reserved item to whoever asks next. If it has come back too often, it goes
        to the dead-letter queue: returns what is done once it is there."""
        closing = self._closing.pop(item, None)
        delivery = self._held(item)
        if delivery is None:
            return None
        if closing is not None:
            # its client has gone before it heard that it is closed
            if closing.is_done:
                self.forget_deliveries([delivery])
            return None
        self.counts.canceled_transactions += 1
        if self._has_come_too_often(item):
            return self._move(delivery)
        self._return(delivery)
        return None

    def _has_come_too_often(self, item: Item) -> bool:
        most = self.settings.max_attempts
        return most is not None and item.attempts + 1 >= most

    def give_back(self, delivery: Delivery) -> None:
        """Give an item back that no client has got. The cluster counts that as an attempt, too."""
        self._return(delivery)

    def _return(self, delivery: Delivery) -> None:
        self.deliveries.pop(delivery.item.id, None)
        if not self._returning:
            self._loop.call_soon(self._begin_return)
        self._returning.append(delivery)
        self._returns += 1
        self._all_returned = self._all_returned or asyncio.Event()

    def _begin_return(self) -> None:
        if self.line.has_dead_pulls:
            self._return_later = asyncio.create_task(self._return_when_left())
        else:
            self.return_all()

    async def _return_when_left(self) -> None:
        """Give back what is to go back, once the cluster keeps no pull of a client that has gone: it would
        take the first item for that, and put it behind the others."""
        self.line.has_dead_pulls = False
        await self.line.left()
        # to tell how many pulls wait, the cluster drops those whose client has gone
        with contextlib.suppress(UnavailableError):
            await self._consumer(self._loop.time() + RETURN_S)
        self.return_all()

    def _note_left(self) -> None:
        """Take note that a client waits no longer."""
        if self._look_later is None:
            self._look_later = self._loop.call_later(MISSED_S, self._look_for_missed)

    def _look_for_missed(self) -> None:
        self._look_later = None
        if not self.line.has_takers:  # else one of them gets it
            Operation(self._return_missed())

    async def _return_missed(self) -> None:
        """Give back an item that the cluster has sent in the very moment in which its client has gone. It has
        it for whoever asks next, but counts it as reserved until then, and shows it to nobody."""
        await self.line.left()
        with contextlib.suppress(UnavailableError):
            info = await self._consumer(self._loop.time() + RETURN_S)
            if info is None or info["num_pending"] or self.count_reserved(info) <= len(self.deliveries):
                return
            delivery = await self.pulls.now()
            if delivery is not None:
                self.give_back(delivery)

    def return_all(self) -> None:
        """Give back what has been aborted so far, the oldest first: the cluster keeps that order."""
        returning, self._returning = self._returning, []
        now = self._loop.time()
        for delivery in sorted(returning, key=lambda delivery: delivery.item.id):
            if now < delivery.deadline:  # else somebody else may have it, from whom this would take it
                self._give_up_hold(delivery)
        self._note_returned()

    def _give_up_hold(self, delivery: Delivery) -> None:
        """Tell the cluster that an item goes back. What is fetched behind this, here, comes after it."""

        def confirmed(_: object = None) -> None:
            self.link.forget(reply)
            self._unconfirmed.discard(reply)
            self._note_returned()

        reply = self.link.listen(confirmed)
        self._unconfirmed.add(reply)
        self.link.send(delivery.reply, NAK, reply)
        self._returned[delivery.item.id] = None
        if len(self._returned) > MAX_RETURNED:
            del self._returned[next(iter(self._returned))]
        self._loop.call_later(RETURN_S, confirmed)

    def _note_returned(self) -> None:
        if self._all_returned is not None and not (self._returning or self._unconfirmed):
            self._all_returned.set()
            self._all_returned = None

    async def _wait_for_returns(self) -> None:
        """Return when the cluster has back what went back so far: it is to be fetched first."""
        await self.line.left()
        if self._all_returned is not None:
            await self._all_returned.wait()

    def defer(self, item: Item, delay_ms: int) -> Operation[None] | Settled:
        """Give a reserved item back so that nobody gets it for `delay_ms`. If it has come back too often, it
        goes to the dead-letter queue: returns what is done once it is there."""
        delivery = self._held(item)
        self.counts.canceled_transactions += 1
        if delivery is not None:
            if self._has_come_too_often(item):
                return self._move(delivery)
            if delay_ms:
                self.deliveries.pop(item.id, None)
                self.link.send(delivery.reply, NAK + b' {"delay": %d}' % (delay_ms * 1_000_000))
            else:
                self._return(delivery)
        return Settled()

    def _move(self, delivery: Delivery) -> Operation[None]:
        """Move an item that has come back too often to the dead-letter queue."""
        self.deliveries.pop(delivery.item.id, None)
        return Operation(self._moved(delivery))

    async def _moved(self, delivery: Delivery) -> None:
        try:
            await self._give_up(self, delivery, self.settings.dead_letter_queue)
        except DarnerError as error:
            # it comes back by itself, and is then given up again
            log.error("item stays in its queue", queue=shown(self.name), reason=str(error))

    async def data(self, item: Item) -> bytes:
        """Return the bytes of an item in flight, whether they are still in memory or not."""
        data = item.data
        if data is not None:
            return data
        answer = await call(self.link, f"STREAM.MSG.GET.{self.address.stream}", {"seq": item.id})
        return base64.b64decode(answer["message"].get("data", ""))

    # Looking

    def count_reserved(self, info: dict[str, Any]) -> int:
        """Return how many items clients hold, of what CONSUMER.INFO has said: the cluster counts what has
        come back, too, until it is fetched again."""
        floor = info["ack_floor"]["stream_seq"]
        for id in [id for id in self._returned if id <= floor]:
            del self._returned[id]
        return max(0, int(info["num_ack_pending"]) - len(self._returned))

    async def peek(self, from_id: int = 0) -> Item | None:
        """Return the oldest item from an id on that was not delivered yet; None if there is none."""
        info = await self._consumer()
        return None if info is None else await self.oldest(info, from_id)

    async def head(self, info: dict[str, Any], deadline: float) -> Item | None:
        """Return the oldest item that waits, with what CONSUMER.INFO has said: one that came back through
        this darner, if there is one; None if none waits."""
        name = f"STREAM.MSG.GET.{self.address.stream}"
        for id in sorted(self._returned):
            try:
                answer = await call(self.link, name, {"seq": id}, deadline)
            except ApiError as error:
                if error.code == NO_MESSAGE:
                    self._returned.pop(id, None)
                    continue
                raise
            return stored_item(answer["message"])
        return await self.oldest(info, deadline=deadline)

    async def oldest(
        self, info: dict[str, Any], from_id: int = 0, deadline: float | None = None
    ) -> Item | None:
        """Do as `peek`, with what CONSUMER.INFO has said."""
        first = info["delivered"]["stream_seq"] + 1 if info["num_ack_pending"] else 1
        id = max(first, from_id, 1)
        while True:
            try:
                answer = await call(
                    self.link,
                    f"STREAM.MSG.GET.{self.address.stream}",
                    {"seq": id, "next_by_subj": self.address.subject},
                    deadline,
                )
            except ApiError as error:
                if error.code == NO_MESSAGE:
                    return None
                raise
            item = stored_item(answer["message"])
            # the cluster drops what has expired a second late at most
            if not item.expires_ms or item.expires_ms > now_date_ms():
                return item
            id = item.id + 1

    # What time brings

    def tick(self) -> None:
        """Have the cluster leave reserved items here, and take back those that are held for too long."""
        now = self._loop.time()
        for delivery in list(self.deliveries.values()):
            if now >= delivery.deadline:
                self.deliveries.pop(delivery.item.id, None)
            elif delivery.is_abandoned is not None and delivery.is_abandoned():
                self.give_back(delivery)
            elif delivery.held_until is not None and now >= delivery.held_until:
                if delivery.item not in self._closing:
                    self.abort(delivery.item)
            elif delivery.is_reserved and delivery.deadline - now < self._ack_wait_s * 2 / 3:
                self._prolong(delivery, now)

    def _prolong(self, delivery: Delivery, now: float) -> None:
        def heard(message: Msg) -> None:
            self.link.forget(reply)
            if status_of(message) != NO_RESPONDERS and self._loop.time() < delivery.deadline:
                delivery.deadline = max(delivery.deadline, now + self._ack_wait_s)

        reply = self.link.listen(heard)
        self._loop.call_later(self._ack_wait_s, self.link.forget, reply)
        self.link.send(delivery.reply, IN_PROGRESS, reply)


def stored_item(message: dict[str, Any]) -> Item:
    """Return an item as STREAM.MSG.GET describes it."""
    headers = parse_headers(base64.b64decode(message.get("hdrs", "")))
    return Item(
        message["seq"],
        int(headers.get(FLAGS, 0)),
        int(headers.get(EXPIRES, 0)),
        date_ms(message["time"]),
        base64.b64decode(message.get("data", "")),
    )


def parse_headers(encoded: bytes) -> dict[str, str]:
    """Return the headers of a message, which stand behind one line that names their form."""
    lines = encoded.decode().split("\r\n")[1:]
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines if line)}


def date_ms(text: str) -> int:
    """Return a date of the API as ms of the Unix epoch."""
    seconds, _, rest = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 1000 + int((rest + "000")[:3])


def now_date_ms() -> int:
    """Return the wall clock in ms of the Unix epoch."""
    return time.time_ns() // 1_000_000

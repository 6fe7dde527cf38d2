"""Items that the cluster has delivered to this darner, and what the cluster is told of them.

The cluster gives an item to somebody else once it has heard nothing of it for `ack_wait`. Its clock starts
when it sends the item, which is after it was asked for it. So until `deadline`, which counts from the asking,
nobody else can have it; after that this darner takes no notice of it any more.
"""

import asyncio
from collections.abc import Callable

import structlog
from nats.aio.msg import Msg

from darner._records import Item
from darner.errors import UnavailableError
from darner.jetstream.api import NO_CONSUMER, NO_RESPONDERS, NO_STREAM, PAUSE_S, TRY_S, ApiError, call
from darner.jetstream.link import Link, status_of

log = structlog.get_logger()

ACK = b"+ACK"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"

# How long, in seconds, a confirmation may take before it is asked for again.
CONFIRM_S = 2.0

FLAGS = "Darner-Flags"
EXPIRES = "Darner-Expires"

# How many parts the subject of an acknowledgement has, by where its figures begin (ADR-15).
_OLD_PARTS = 9


class Delivery:
    """One item that was delivered, and is not acknowledged yet."""

    __slots__ = ("consumer", "deadline", "held_until", "is_abandoned", "is_reserved", "item", "reply")

    def __init__(self, message: Msg, asked_at: float, ack_wait_s: float) -> None:
        """`asked_at` is when the cluster was asked for it, by the loop's clock."""
        self.reply = message.reply
        parts = message.reply.split(".")
        if len(parts) != _OLD_PARTS:
            del parts[2:4]  # the domain and the account
        stream, consumer, delivered, sequence, _, stamp_ns = parts[2:8]
        # whose it is, as the API names that
        self.consumer = f"{stream}.{consumer}"
        headers = message.headers or {}
        self.item = Item(
            int(sequence),
            int(headers.get(FLAGS, 0)),
            int(headers.get(EXPIRES, 0)),
            int(stamp_ns) // 1_000_000,
            message.data,
            attempts=min(int(delivered) - 1, 0xFFFF),
        )
        # until when nobody else can have it, and until when its client may hold it; by the loop's clock
        self.deadline = asked_at + ack_wait_s
        self.held_until: float | None = None
        # whether a client holds it; and, until the client has been told so, whether it has gone meanwhile
        self.is_reserved = False
        self.is_abandoned: Callable[[], bool] | None = None

    def copy(self) -> Item:
        """Return its item for somebody who only looks at it."""
        item = self.item
        return Item(item.id, item.flags, item.expires_ms, item.enqueued_ms, item.data, attempts=item.attempts)


async def confirm(link: Link, delivery: Delivery, answer: bytes) -> bool:
    """Tell the cluster what becomes of an item, and return True when it is certain that it has heard that
    before anybody else could get the item; False if the item is gone with its queue. Raises UnavailableError
    if that is not certain."""
    while not await confirm_or_not(link, delivery, answer):
        if await _is_gone(link, delivery):
            return False
        await asyncio.sleep(PAUSE_S)
    return True


async def _is_gone(link: Link, delivery: Delivery) -> bool:
    """Return whether the cluster knows that the queue of an item was deleted."""
    deadline = min(delivery.deadline, asyncio.get_running_loop().time() + TRY_S)
    try:
        await call(link, f"CONSUMER.INFO.{delivery.consumer}", None, deadline)
    except ApiError as error:
        return error.code in (NO_CONSUMER, NO_STREAM)
    except UnavailableError:
        pass
    return False


async def confirm_or_not(link: Link, delivery: Delivery, answer: bytes) -> bool:
    """Do as `confirm`, but return False if it is certain that nobody has heard it, for there is no leader."""
    loop = asyncio.get_running_loop()
    is_first = True
    while (left_s := delivery.deadline - loop.time()) > 0:
        message = await link.ask(delivery.reply, answer, min(CONFIRM_S, left_s))
        if message is None:
            is_first = False
        elif status_of(message) == NO_RESPONDERS:
            if is_first:
                return False
            await asyncio.sleep(PAUSE_S)
        elif loop.time() < delivery.deadline:
            return True
    raise UnavailableError("the cluster has not confirmed in time that the item is removed: it may come back")

"""The connection to the cluster: what is sent goes out in order, and answers find who has asked.

nats-py keeps the connection, and connects again by itself. Its futures and tasks for each request are not
used: thousands of requests are on their way at once.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import OutboundBufferLimitError

from darner.errors import StartError

log = structlog.get_logger()

# How long, in seconds, the first connection may take, and between two tries to connect again.
CONNECT_S = 5.0
RECONNECT_S = 0.25
# How long, in seconds, the nodes are tried at a start.
START_S = 10.0
# How often, in seconds, the node is pinged, and how many pings it may leave unanswered: one that is paused,
# or whose machine is gone, leaves its connections open, and sets are given up after 20 s.
PING_S = 1
UNANSWERED_PINGS = 3
# How many bytes may wait to be sent while there is no connection, or while the node reads nothing: in the
# outbox, in nats-py and in its transport so many each. Who has asked sends what is more than that again.
PENDING_BYTES = 32 << 20
# How many bytes a message is counted as, beside its data: its subjects and headers.
MESSAGE_BYTES = 512

Handler = Callable[[Msg], None]


class Link:
    """A connection to one node of the cluster, or to another one once that is gone."""

    def __init__(self, servers: Sequence[str], **options: object) -> None:
        """`servers` are URLs of nodes, `options` those of `nats.connect`: TLS and credentials."""
        self._servers = list(servers)
        self._options = options
        self._client = Client()
        self._inbox = ""
        self._is_closing = False
        # why the last try to connect has failed
        self._reason = ""
        # by the last part of the subject of an answer
        self._handlers: dict[str, Handler] = {}
        # by the subject of an item: it comes as it was stored, and does not say who has asked
        self._item_handlers: dict[str, Handler] = {}
        # how often the subscription for items was made anew
        self.generation = 0
        self._items: Subscription | None = None
        self._count = 0
        # messages, and None where the subscription for items is to be made anew
        self._outbox: deque[tuple[str, bytes, str, dict[str, str] | None] | None] = deque()
        self._outbox_bytes = 0
        self._has_more = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        # called when there is a connection again
        self.on_reconnect: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Connect. Raises StartError if no node of the cluster can be reached."""
        connecting = self._client.connect(
            servers=self._servers,
            name="darner",
            connect_timeout=int(CONNECT_S),
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]
            pending_size=PENDING_BYTES,
            allow_reconnect=True,
            ping_interval=PING_S,
            max_outstanding_pings=UNANSWERED_PINGS,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            error_cb=self._failed,
            **self._options,  # type: ignore[arg-type]
        )
        try:
            await asyncio.wait_for(connecting, START_S)
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            reason = self._reason or str(error) or type(error).__name__
            raise StartError(f"cannot reach the cluster at {' '.join(self._servers)}: {reason}") from error
        self._reason = ""
        self._inbox = self._client.new_inbox()
        await self._subscribe_all(f"{self._inbox}.*", self._answered)
        self._items = await self._subscribe_for_items()
        self._writer = asyncio.create_task(self._write())

    async def _subscribe_all(self, subject: str, called: Callable[[Msg], Awaitable[None]]) -> Subscription:
        return await self._client.subscribe(subject, cb=called, pending_msgs_limit=0, pending_bytes_limit=0)

    async def _subscribe_for_items(self) -> Subscription:
        generation = self.generation

        async def came(message: Msg) -> None:
            if generation == self.generation:
                await self._item_came(message)

        return await self._subscribe_all(f"{self._inbox}.items{generation}.*", came)

    def renew_items(self) -> None:
        """Take no notice of items that were asked for up to now: they come back by themselves."""
        self.generation += 1
        self._outbox.append(None)
        self._has_more.set()

    async def close(self) -> None:
        """Send what is to be sent, and disconnect."""
        self._is_closing = True
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        if self._client.is_connected:
            await self._send_all()
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await asyncio.wait_for(self._client.flush(), CONNECT_S)
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await self._client.close()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client.is_connected

    @property
    def max_payload(self) -> int:
        """How many bytes one message may have, its headers among them."""
        return int(self._client.max_payload)

    @property
    def version(self) -> str:
        """The version of the node that this is connected to."""
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Have `handler` called with each message that is published on `subject`."""

        async def received(message: Msg) -> None:
            handler(message)

        await self._client.subscribe(subject, cb=received)

    def listen(self, handler: Handler) -> str:
        """Return a subject for answers, with which `handler` is called until `forget`."""
        key = self._new_key(handler)
        return f"{self._inbox}.{key}"

    def _new_key(self, handler: Handler) -> str:
        self._count += 1
        key = f"{self._count:x}"
        self._handlers[key] = handler
        return key

    def forget(self, reply: str) -> None:
        """Take no more answers at `reply`."""
        self._handlers.pop(reply.rpartition(".")[2], None)

    def listen_for_items(self, subject: str, item_came: Handler, answered: Handler) -> str:
        """Return a subject to have items of `subject` sent to, until `forget`; what is no item is an answer.
        There is one `item_came` a subject, until `forget_items`."""
        self._item_handlers[subject] = item_came
        return f"{self._inbox}.items{self.generation}.{self._new_key(answered)}"

    def forget_items(self, subject: str) -> None:
        """Take no more items of this subject."""
        self._item_handlers.pop(subject, None)

    async def subscribe_for_one(self) -> "Inbox":
        """Return a subscription of its own, for one who waits: the cluster knows when he has gone."""
        inbox = Inbox(self._client)
        await inbox.open()
        return inbox

    def send(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message soon, behind those sent before; or not at all, if too much waits to be sent."""
        size = len(payload) + MESSAGE_BYTES
        if self._outbox_bytes + size > PENDING_BYTES:
            return  # who has asked gets no answer, and asks again
        self._outbox_bytes += size
        self._outbox.append((subject, payload, reply, headers))
        self._has_more.set()

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Msg | None:
        """Return the answer to a message; None if there is none in time."""
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        reply = self.listen(lambda message: None if answer.done() else answer.set_result(message))
        self.send(subject, payload, reply)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return None
        finally:
            self.forget(reply)

    async def ask_all(self, subject: str, payload: bytes, timeout_s: float) -> list[Msg]:
        """Return all answers that come in that time."""
        answers: list[Msg] = []
        reply = self.listen(answers.append)
        self.send(subject, payload, reply)
        await asyncio.sleep(timeout_s)
        self.forget(reply)
        return answers

    async def _write(self) -> None:
        while True:
            await self._has_more.wait()
            self._has_more.clear()
            await self._send_all()

    async def _send_all(self) -> None:
        publish = self._client.publish
        while self._outbox:
            message = self._outbox.popleft()
            try:
                if message is None:
                    last, self._items = self._items, await self._subscribe_for_items()
                    if last is not None:
                        await last.unsubscribe()
                else:
                    self._outbox_bytes -= len(message[1]) + MESSAGE_BYTES
                    await publish(*message)
            except OutboundBufferLimitError:
                pass  # who has asked gets no answer, and asks again
            except NatsError as error:
                log.error("cannot send to the cluster", reason=str(error))

    async def _answered(self, message: Msg) -> None:
        handler = self._handlers.get(message.subject.rpartition(".")[2])
        if handler is not None:
            handler(message)

    async def _item_came(self, message: Msg) -> None:
        handler = self._item_handlers.get(message.subject)
        if handler is not None:
            handler(message)
        else:
            await self._answered(message)

    async def _disconnected(self) -> None:
        if not self._is_closing:
            log.warning("disconnected from the cluster, connecting again")

    async def _reconnected(self) -> None:
        url = self._client.connected_url
        log.info("connected to the cluster again", node=url.netloc if url is not None else "")
        self._reason = ""
        self.on_reconnect()

    async def _failed(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if (
            reason != self._reason and self._inbox
        ):  # each try fails alike, and the first are told by StartError
            log.warning("the connection to the cluster failed", reason=reason)
        self._reason = reason


class Inbox:
    """A subscription for the answers to one who waits. No answer is lost, whenever he goes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._messages: deque[Msg] = deque()
        self._has_more = asyncio.Event()
        self._on_late: Handler | None = None
        self._subscription: Subscription
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Subscribe."""
        self._subscription = await self._client.subscribe(self._client.new_inbox(), cb=self._received)

    async def _received(self, message: Msg) -> None:
        if self._on_late is not None:
            self._on_late(message)
        else:
            self._messages.append(message)
            self._has_more.set()

    @property
    def subject(self) -> str:
        """Where answers are to be sent."""
        return self._subscription.subject

    async def next(self, timeout_s: float) -> Msg | None:
        """Return the next answer; None if there is none in time."""
        if not self._messages:
            self._has_more.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_more.wait(), timeout_s)
        return self._messages.popleft() if self._messages else None

    def close(self, on_late: Handler) -> asyncio.Task[None]:
        """End it, and call `on_late` with what nobody has asked for, or what is still on its way. Returns
        what is done once nothing more comes."""
        self._on_late = on_late
        while self._messages:
            on_late(self._messages.popleft())
        self._closing = asyncio.create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        try:
            # nats-py has the ping of a drain overtake its UNSUB: what came in between would be nobody's
            await self._client._send_unsubscribe(self._subscription._id)
            await self._client._flush_pending(force_flush=True)
            await self._subscription.drain()  # type: ignore[no-untyped-call]
        except (NatsError, TimeoutError):
            # disconnected meanwhile: nats-py would subscribe to it once more
            self._client._remove_sub(self._subscription._id)


def status_of(message: Msg) -> int:
    """Return the status that the server has put in place of an answer; 0 if it is an answer."""
    headers = message.headers
    return int(headers.get("Status", 0)) if headers else 0

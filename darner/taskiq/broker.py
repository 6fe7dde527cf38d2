"""TaskIQ's broker: it puts tasks on a queue, and takes them off for a worker."""

import asyncio
import functools
import logging
import ssl
import uuid
from collections.abc import AsyncGenerator, Iterable

import structlog
from taskiq import AckableMessage, AsyncBroker, BrokerMessage

from darner.client import AsyncClient, protocol, url
from darner.client.errors import ClientError
from darner.client.priorities import level, levels
from darner.work.confirming import confirm
from darner.work.connection import Delivery, connect
from darner.work.fleet import Fleet
from darner.work.source import Source

# TaskIQ's workers set up logging, which they use themselves.
log = structlog.wrap_logger(
    logging.getLogger(__name__), [structlog.processors.LogfmtRenderer(key_order=["event"])]
)

# TaskIQ's worker bounds what it takes; of that, one connection may hold all.
MOST_HELD = 10_000


class DarnerBroker(AsyncBroker):
    """A broker of TaskIQ on a darner server, or on a fleet of them.

        broker = DarnerBroker("darner://127.0.0.1:22133")

    The label `delay` of a task is in seconds. The label `priority` is from 0, the default, to `max_priority`,
    the most urgent; each has a queue of its own, `<queue>#<priority>`.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "darner://127.0.0.1",
        *,
        queue: str = "taskiq",
        max_priority: int = 9,
        sync: bool = False,
        configure: bool = True,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`servers`, `timeout` in seconds and `tls` are as for the client. With `sync` a task is on the disk
        when it has been sent. With `configure` a worker sets `max_open_reads` of the queues, so that its
        tasks share connections. BadRequestError if an argument makes no sense."""
        super().__init__()
        servers = [servers] if isinstance(servers, str) else list(servers)
        self._addresses = url.parse_all(servers)
        self._queue = queue
        self._max_priority = max_priority
        self._keys = protocol.source_keys(levels(queue, max_priority))
        self._sync = sync
        self._configures = configure
        self._tls = tls
        self._client = AsyncClient(servers, timeout=timeout, tls=tls)
        self._fleets: list[Fleet] = []

    async def kick(self, message: BrokerMessage) -> None:
        """Put a task on the queue. It is stored when this returns, and survives the death of the server."""
        await self._client.put(
            level(self._queue, float(message.labels.get("priority", 0)), self._max_priority),
            message.message,
            delay=float(message.labels.get("delay", 0)),
            # so that it is sent again if the connection is lost; in a fleet it would have one server
            id=uuid.uuid4().hex if len(self._addresses) == 1 else None,
            sync=self._sync,
        )

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Give tasks as they come. One that is not acknowledged goes back when the broker shuts down, or its
        process ends. Raises WorkerError if a server refuses."""
        if self._configures:
            await self._configure()
        fleet = Fleet(
            [
                Source(
                    str(address),
                    functools.partial(connect, address, self._keys, None, self._tls),
                    MOST_HELD,
                    log,
                )
                for address in self._addresses
            ]
        )
        self._fleets.append(fleet)
        try:
            while (delivery := await _next(fleet)) is not None:
                yield AckableMessage(data=delivery.item.data, ack=functools.partial(_acknowledge, delivery))
        finally:
            fleet.stop()

    async def _configure(self) -> None:
        try:
            for queue in levels(self._queue, self._max_priority):
                await self._client.configure(queue, max_open_reads=MOST_HELD)
        except ClientError as error:
            log.info("max_open_reads stays as it is", error=str(error))

    async def shutdown(self) -> None:
        """Close all connections: what was not acknowledged goes back."""
        await super().shutdown()
        for fleet in self._fleets:
            fleet.close()
        await self._client.close()


async def _next(fleet: Fleet) -> Delivery | None:
    """Wait for the next task. One that has come when the wait is cancelled is returned all the same."""
    taking = asyncio.ensure_future(fleet.next())
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        fleet.stop()
        delivery = await taking
        if delivery is None:
            raise
        return delivery


async def _acknowledge(delivery: Delivery) -> None:
    await confirm(delivery.close(), delivery.close, lambda: log)

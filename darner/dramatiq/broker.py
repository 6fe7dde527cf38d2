"""Dramatiq's broker: it puts messages on queues, and makes the consumers of a worker."""

import ssl
import time
import uuid
import weakref
from collections.abc import Iterable
from typing import Any

from dramatiq import Broker, Message, Middleware, QueueJoinTimeout, QueueNotFound
from dramatiq.common import xq_name

from darner.client import Client
from darner.client.errors import ClientError
from darner.client.priorities import level, levels
from darner.dramatiq.consumer import DarnerConsumer, DarnerMessage, connection_error

# The worker bounds how many messages it has. Each may hold a connection, or one connection all of them.
MOST_HELD = 10_000


class DarnerBroker(Broker):
    """A broker of Dramatiq on a darner server, or on a fleet of them.

        dramatiq.set_broker(DarnerBroker("darner://127.0.0.1:22133"))

    A message that is delayed waits in the server, so there are no delay queues. One that has failed for good
    goes to the queue `<queue>.XQ`, and stays there. With a `max_priority`, the option `broker_priority` of a
    message is from 0, the default, to that, the most urgent; each has a queue of its own,
    `<queue>#<priority>`.
    """

    queues: set[str]

    def __init__(
        self,
        servers: str | Iterable[str] = "darner://127.0.0.1",
        *,
        middleware: list[Middleware] | None = None,
        max_priority: int = 0,
        sync: bool = False,
        configure: bool = True,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`servers`, `timeout` in seconds and `tls` are as for the client. With `sync` a message is on the
        disk when it has been sent. With `configure` a worker sets `max_open_reads` of its queues, so that
        messages which it prefetches together share a connection. BadRequestError if an argument makes no
        sense."""
        super().__init__(middleware)
        self.queues = set()
        self._client = Client(servers, timeout=timeout, tls=tls, pool_size=MOST_HELD)
        self._max_priority = max_priority
        self._sync = sync
        self._configures = configure
        # what workers of this process have, by its message_id
        self._in_hand: weakref.WeakValueDictionary[str, DarnerMessage] = weakref.WeakValueDictionary()

    def close(self) -> None:
        """Close the connections. What they hold goes back once it has ended."""
        self._client.close()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> DarnerConsumer:
        """Return a consumer of a queue; `timeout` in ms. Raises QueueNotFound if it was not declared."""
        self._check(queue_name)
        queues = levels(queue_name, self._max_priority)
        if self._configures:
            self._configure(queues)
        return DarnerConsumer(self._client, queues, xq_name(queue_name), prefetch, timeout, self._in_hand)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue. The server makes it when the first message comes."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        """Return the names of the queues that were declared."""
        return self.queues.copy()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Put a message on its queue, out of sight for `delay` ms. It is stored when this returns, and
        survives the death of the server.

        Raises QueueNotFound if the queue was not declared, ConnectionFailed or ConnectionClosed if the server
        cannot be reached, and the client's errors if it refuses the message, such as QueueFullError.
        """
        self._check(message.queue_name)
        priority = message.options.get("broker_priority") or 0
        self.emit_before("enqueue", message, delay)
        try:
            self._client.put(
                level(message.queue_name, priority, self._max_priority),
                message.encode(),
                delay=(delay or 0) / 1000,
                # so that it is sent again if the connection is lost; in a fleet it would have one server
                id=uuid.uuid4().hex if self._client.servers.only else None,
                sync=self._sync,
            )
        except ClientError as error:
            # The middleware Retries only logs this, and then the message would be acknowledged and be gone.
            if (in_hand := self._in_hand.get(message.message_id)) is not None:
                in_hand.is_unsent = True
            raise connection_error(error) or error from None
        self.emit_after("enqueue", message, delay)
        return message

    def flush(self, queue_name: str) -> None:
        """Drop what waits in a queue, delayed or not, and its dead letters."""
        self._check(queue_name)
        for name in (*levels(queue_name, self._max_priority), xq_name(queue_name)):
            self._client.flush(name)

    def flush_all(self) -> None:
        """Drop what waits in all queues that were declared, and their dead letters."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until no message of a queue waits, is delayed, or is worked on by anybody; for tests.

        Looks each `interval` ms. Raises QueueJoinTimeout after `timeout` ms, QueueNotFound as `consume`.
        """
        self._check(queue_name)
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while self._unfinished(queue_name):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(f"not all of {queue_name} was done within {timeout} ms")
            time.sleep(interval / 1000)

    def _check(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)

    def _configure(self, queues: Iterable[str]) -> None:
        try:
            for queue in queues:
                self._client.configure(queue, max_open_reads=MOST_HELD)
        except ClientError as error:
            self.logger.info("max_open_reads stays as it is: %s", error)

    def _unfinished(self, queue_name: str) -> int:
        stats = self._client.queues()
        found = (stats[name] for name in levels(queue_name, self._max_priority) if name in stats)
        return sum(each.items + each.delayed_items + each.open_transactions for each in found)

"""A channel of kombu: queues, exchanges and messages, and who is told of them."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.message import Message as BaseMessage
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.uuid import uuid

from darner.client import protocol
from darner.client.errors import ConnectionLostError
from darner.client.protocol import Reply
from darner.kombu import messages, names
from darner.kombu.bindings import Binding
from darner.kombu.link import Delivery, Link
from darner.kombu.qos import QoS
from darner.kombu.reader import Reader
from darner.kombu.settings import MOST_HELD

# How long a channel that is closed waits for the server to have its acknowledgements.
_FINISH_S = 2.0


class _Consumer(NamedTuple):
    queue: str
    no_ack: bool
    callback: Callable[[BaseMessage], Any]


class Channel(virtual.Channel):
    """A channel. Its messages are acknowledged over the connections that they came over."""

    Message = BaseMessage
    closed: bool
    supports_fanout = True
    from_transport_options = ("deadletter_queue",)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._by_tag: dict[str, _Consumer] = {}
        self._queue_of: dict[bytes, str] = {}
        self.reader = Reader(
            connection.connect_link, lambda link: connection.poller.add(self, link), connection.poller.remove
        )
        self._qos = QoS(self.reader)

    @property
    def state(self) -> Any:
        """What kombu remembers of exchanges and bindings. Raises as `_live`."""
        return self._live.state

    @property
    def _live(self) -> Any:
        """The connection. Raises ConnectionLostError if the channel is closed: kombu publishes over one that
        it has closed, when a declaration before had to connect again, and tries again upon such an error."""
        if self.connection is None:
            raise ConnectionLostError("the channel is closed")
        return self.connection

    # Consuming

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[BaseMessage], Any],
        consumer_tag: str,
        **kwargs: Any,
    ) -> None:
        """Have `callback` called with each message of a queue."""
        self._by_tag[consumer_tag] = _Consumer(queue, no_ack, callback)
        self._read_sources()

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer. What it holds stays its own."""
        if self._by_tag.pop(consumer_tag, None) is not None:
            self._read_sources()

    def pump(self) -> None:
        """Ask for messages, as many as the prefetch has room for. Raises a connection error."""
        if self._by_tag:
            # a message that needs no acknowledgement is gone once it has come: no more than one is on its way
            if all(consumer.no_ack for consumer in self._by_tag.values()):
                prefetch = self.reader.held + 1
            else:
                prefetch = self.qos.prefetch_count or MOST_HELD
            self.reader.pump(prefetch)

    def receive(self, link: Link) -> int:
        """Hand the messages that have come over a link to their consumers; return how many. Raises a
        connection error."""
        return self._deliver_all(self.reader.receive(link))

    def _deliver_all(self, deliveries: Iterable[Delivery]) -> int:
        left = deque(deliveries)
        count = len(left)
        try:
            while left:
                self._deliver(left.popleft())
        finally:
            # a callback has failed: the others are nobody's
            for delivery in left:
                with contextlib.suppress(ConnectionLostError):
                    self.reader.put_back(delivery)
        return count

    def _deliver(self, delivery: Delivery) -> None:
        queue = self._queue_of.get(delivery.key)
        consumer = next((each for each in self._by_tag.values() if each.queue == queue), None)
        if consumer is None:
            self.reader.put_back(delivery)
        else:
            consumer.callback(self._received(delivery, no_ack=consumer.no_ack))

    def _received(self, delivery: Delivery, *, no_ack: bool) -> BaseMessage:
        tag = 0
        if no_ack:
            self.reader.close_item(delivery)
        else:
            tag = self.qos.hold(delivery)
        return messages.decode(delivery.data, self, tag, protocol.attempts(delivery.token))

    def _read_sources(self) -> None:
        queues = dict.fromkeys(consumer.queue for consumer in self._by_tag.values())
        sources = [self._keys(queue) for queue in queues]
        self._queue_of = {key: queue for queue, keys in zip(queues, sources, strict=True) for key in keys}
        self.reader.read_from(sources)

    def _keys(self, queue: str) -> list[bytes]:
        """Return the names of all that a queue consists of, the most urgent first."""
        declared = self._live.declared
        exchanges = dict.fromkeys(exchange for exchange, _, _ in self.state.queue_bindings(queue))
        fanouts = [exchange for exchange in exchanges if self._is_fanout(exchange)]
        has_inbox = declared.ends_by_itself(queue) and len(fanouts) < len(exchanges)
        keys = []
        for priority in declared.priorities(queue):
            keys.append(names.priority_queue(queue, priority))
            if has_inbox:
                keys.append(names.inbox_child(queue, priority))
        return keys + [names.fanout_child(exchange, queue) for exchange in fanouts]

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> BaseMessage | None:
        """Return the next message of a queue, or None if there is none. Raises a connection error."""
        found, others = self.reader.get(self._keys(queue), self._live.options.reply_timeout)
        self._deliver_all(others)
        return None if found is None else self._received(found, no_ack=no_ack)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message, without waiting for the reply. Raises a connection error if it went back
        meanwhile."""
        self.qos.ack(delivery_tag, multiple=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Drop a message, or put it back: then it is the next one. Raises as `basic_ack`."""
        if requeue:
            self.qos.put_back(delivery_tag)
        else:
            self.qos.ack(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> None:
        """Put back all messages that are not acknowledged."""
        if not requeue:
            super().basic_recover(requeue)
        self.qos.put_all_back()

    def close(self) -> None:
        """Close the channel: what it holds goes back."""
        if self.closed:
            return
        self.closed = True
        self._by_tag.clear()
        self.reader.close(_FINISH_S)
        self.connection.close_channel(self)

    # Publishing

    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str,
        routing_key: str,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Publish a message; return once the server has it for sure. Raises a connection error if it may not
        have it, and a channel error if it refused it."""
        message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        options = self._live.options
        data = messages.encode(message)
        requests = []
        for queue in self._targets(exchange, routing_key, self._get_message_priority(message)):
            line = protocol.put_line(
                queue,
                len(data),
                delay=messages.delay_s(message, options.eta_as_delay),
                expire=messages.expiry_s(message),
                id=messages.id_of(message, data) if options.dedup else None,
                sync=options.sync,
            )
            requests.append(b"%b%b\r\n" % (line, data))
        if requests:
            for reply in self._live.server.ask(requests, timeout):
                protocol.check(reply, protocol.STORED)

    def _targets(self, exchange: str, routing_key: str, priority: int) -> list[bytes]:
        priority_in = self._live.declared.priority
        if not exchange:
            return [names.priority_queue(routing_key, priority_in(routing_key, priority))]
        if self._is_fanout(exchange):
            return [names.fanout(exchange)]
        bound = self._live.bindings.of(exchange)
        temporary = {binding.queue for binding in bound if binding.is_temporary}
        queues = self.typeof(exchange).lookup(self._table(exchange, bound), exchange, routing_key, None)
        if not queues and self.deadletter_queue:
            queues = [self.deadletter_queue]
        return [
            (names.inbox if queue in temporary else names.priority_queue)(queue, priority_in(queue, priority))
            for queue in queues
        ]

    # Exchanges and queues

    def exchange_declare(self, exchange: str | None = None, type: str = "direct", **kwargs: Any) -> None:
        """Make an exchange. Raises ChannelError if it is passive and there is none, or another one."""
        super().exchange_declare(exchange, type, **kwargs)
        if type == "fanout" and exchange and not kwargs.get("passive"):
            self._live.declared.declare_exchange(exchange)

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> queue_declare_ok_t:
        """Make a queue, or with `passive` see whether it is there. Raises ChannelError if it is not."""
        queue = queue or f"amq.gen-{uuid()}"
        declared = self._live.declared
        if not passive:
            declared.declare(queue, arguments or {}, is_temporary=exclusive or auto_delete)
        figures = [found for _, found in self._figures(queue)]
        if passive and not (figures or queue in declared):
            raise ChannelError(f"NOT_FOUND - no queue {queue!r}", (50, 10), "Channel.queue_declare", "404")
        return queue_declare_ok_t(queue, _items(figures), 0)

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        """Return the arguments of a queue as RabbitMQ names them."""
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        """Have an exchange give messages to a queue."""
        super().queue_bind(queue, exchange or "amq.direct", routing_key or "", arguments, **kwargs)
        if any(consumer.queue == queue for consumer in self._by_tag.values()):
            self._read_sources()

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        declared = self._live.declared
        if self._is_fanout(exchange):
            declared.declare_fanout(exchange, queue)
            return
        is_temporary = declared.ends_by_itself(queue)
        if is_temporary:
            declared.declare_inbox(queue)
        self._live.bindings.add(exchange, Binding(queue, routing_key, is_temporary))

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        """Have an exchange give no more messages to a queue."""
        exchange = exchange or "amq.direct"
        self._unbind(queue, exchange, routing_key or "")
        self.state.binding_delete(queue, exchange, routing_key or "")

    def _unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        if self._is_fanout(exchange):
            self._live.server.ask([protocol.delete_line(names.fanout_child(exchange, queue))])
            return
        for is_temporary in (False, True):
            self._live.bindings.remove(exchange, Binding(queue, routing_key, is_temporary))

    def get_table(self, exchange: str) -> list[Any]:
        """Return what is bound to an exchange, as its type looks it up: routing key, pattern and queue of
        each."""
        return self._table(exchange, self._live.bindings.of(exchange))

    def _table(self, exchange: str, bound: Iterable[Binding]) -> list[Any]:
        prepare = self.typeof(exchange).prepare_bind
        return [prepare(binding.queue, exchange, binding.routing_key, None) for binding in bound]

    def queue_purge(self, queue: str, **kwargs: Any) -> int:
        """Remove all messages that wait in a queue; return how many."""
        found = self._figures(queue)
        self._ask_each(protocol.flush_line, [part for part, _ in found], protocol.END)
        return _items(figures for _, figures in found)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue, with its messages and bindings; not if it is used, or not empty, and that
        matters."""
        found = self._figures(queue)
        if (if_empty and _items(figures for _, figures in found)) or (
            if_unused and any(figures["waiters"] or figures["open_transactions"] for _, figures in found)
        ):
            return
        for exchange, routing_key, _ in list(self.state.queue_bindings(queue)):
            self._unbind(queue, exchange, routing_key)
        parts = [part for part, _ in found]
        if self._live.declared.ends_by_itself(queue):
            parts += [names.inbox(queue, priority) for priority in self._live.declared.priorities(queue)]
        self._ask_each(protocol.delete_line, parts, protocol.DELETED)
        self.state.queue_bindings_delete(queue)
        self._live.declared.forget(queue)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; the queues stay."""
        if self._is_fanout(exchange):
            for queue, bound, routing_key in list(self.state.bindings):
                if bound == exchange:
                    self._unbind(queue, exchange, routing_key)
        else:
            for binding in self._live.bindings.of(exchange):
                self._live.bindings.remove(exchange, binding)
        for queue, bound, routing_key in list(self.state.bindings):
            if bound == exchange:
                self.state.binding_delete(queue, exchange, routing_key)
        self.state.exchanges.pop(exchange, None)

    def _is_fanout(self, exchange: str) -> bool:
        return bool(self.typeof(exchange).type == "fanout")

    def _size(self, queue: str) -> int:
        return _items(figures for _, figures in self._figures(queue))

    def _figures(self, queue: str) -> list[tuple[bytes, dict[str, int]]]:
        """Return the parts of a queue that are there, and the figures of each."""
        of_each = [names.priority_queue(queue, priority) for priority in range(names.MOST_URGENT, -1, -1)]
        parts = list(dict.fromkeys([*of_each, *self._keys(queue)]))
        figures = self._live.server.stats(parts)
        return [(part, found) for part, found in zip(parts, figures, strict=True) if found]

    def _ask_each(
        self, request: Callable[[bytes], bytes], queues: list[bytes], expected: bytes
    ) -> list[Reply]:
        replies: list[Reply] = self._live.server.ask([request(queue) for queue in queues]) if queues else []
        return [protocol.check(reply, expected) for reply in replies]


def _items(figures: Iterable[dict[str, int]]) -> int:
    return sum(each["items"] for each in figures)

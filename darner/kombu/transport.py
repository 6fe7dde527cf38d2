"""The transport: what a connection of kombu is made of."""

from time import monotonic
from typing import Any

from amqp import RecoverableConnectionError
from kombu.transport import virtual

from darner._version import __version__
from darner.client.errors import (
    BadRequestError,
    ConnectionFailedError,
    ConnectionLostError,
    ItemTooLargeError,
    LoginError,
    QueueFullError,
    ServerFailedError,
)
from darner.client.url import PORT
from darner.kombu.bindings import Bindings
from darner.kombu.channel import Channel
from darner.kombu.declaring import Declared
from darner.kombu.link import Link
from darner.kombu.options import Options, address_of, tls_of
from darner.kombu.poller import Poller
from darner.kombu.server import Server

# How many messages one `drain_events` hands on, at most.
_MOST_AT_ONCE = 100
# The longest that is waited for a link at once: what has to be done meanwhile, such as a retry, is done then.
_LONGEST_WAIT_S = 1.0


class Transport(virtual.Transport):
    """Darner as a broker: `broker_transport = "darner.kombu:Transport"` with `broker_url = "darner://…"`.

    Options, in `broker_transport_options`: see `darner.kombu.options.Options` and docs/celery.md.
    """

    Channel = Channel
    # the scheme says whether it is TLS, and kombu keeps it only in the whole URL
    can_parse_url = True
    default_port = PORT
    polling_interval = None
    # what Celery knows by this name: exchanges that route, consumers that are pushed to, mingle and gossip
    driver_type = "amqp"
    driver_name = "darner"

    # the last one is raised by kombu itself, over a channel that was closed
    connection_errors = (ConnectionFailedError, ConnectionLostError, LoginError, RecoverableConnectionError)
    channel_errors = (ServerFailedError, QueueFullError, ItemTooLargeError, BadRequestError)
    recoverable_connection_errors = (ConnectionFailedError, ConnectionLostError, RecoverableConnectionError)
    recoverable_channel_errors = (ServerFailedError, QueueFullError)

    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"]), heartbeats=False
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.options = Options.of(client.transport_options or {})
        self.poller = Poller()
        self._loop: Any = None

    def driver_version(self) -> str:
        """Return darner's version."""
        return __version__

    def establish_connection(self) -> "Transport":
        """Connect. Raises a connection error."""
        address = address_of(self.client)
        tls = tls_of(self.client, address)
        connect_timeout = self.client.connect_timeout or self.options.reply_timeout
        self.server = Server(address, tls, connect_timeout, self.options.reply_timeout)
        self.server.connect()
        self.declared = Declared(self.server, configures=self.options.configure)
        self.bindings = Bindings(self.server)
        super().establish_connection()
        return self

    def close_connection(self, connection: Any) -> None:
        """Close all channels: what they hold goes back."""
        if self._loop is not None:
            self.unregister_from_event_loop(connection, self._loop)
        super().close_connection(connection)
        self.server.close()
        self.poller.close()

    def connect_link(self) -> Link:
        """Return a new connection for messages. Raises a connection error."""
        server = self.server
        return Link(server.address, server.tls, server.connect_timeout, server.reply_timeout)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Hand messages to their consumers: all that are here, once there is one. Raises TimeoutError if none
        comes within so many seconds, or a connection error."""
        deadline = None if timeout is None else monotonic() + timeout
        count = 0
        while True:
            self._pump()
            if count and not any(channel.reader.is_asking for channel in self.channels):
                return
            left = (
                _LONGEST_WAIT_S if deadline is None else min(_LONGEST_WAIT_S, max(deadline - monotonic(), 0))
            )
            if count:
                # the replies that are still to come are not waited for by anybody else
                left = self.options.reply_timeout
            got = self.poller.drain(left)
            count += got
            if count >= _MOST_AT_ONCE:
                return
            if not count and deadline is not None and monotonic() >= deadline:
                raise TimeoutError("timed out")

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have kombu's hub poll, instead of `drain_events`."""
        self._loop = loop
        self.poller.use_hub(loop)
        loop.on_tick.add(self._pump)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the hub poll no more."""
        loop.on_tick.discard(self._pump)
        self.poller.use_hub(None)

    def _pump(self) -> None:
        for channel in list(self.channels):
            channel.pump()


class NamedTransport(Transport):
    """The same by its aliases: then kombu takes the URL apart, and the name says whether it is TLS."""

    can_parse_url = False

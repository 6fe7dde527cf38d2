"""A connection that is pending: not admitted yet, and not refused."""

import asyncio
from collections.abc import Callable
from typing import cast

from darner._proto import Parser, Verb
from darner.access.authentication import Authentication, address_of
from darner.access.capacity import Capacity
from darner.access.guard import Guard
from darner.access.throttled_warning import ThrottledWarning
from darner.wire.clients import OTHER_PROTOCOLS, Clients
from darner.wire.connection import Connection
from darner.wire.sending import LINGER_S

# How long a client may take to log in, and for the TLS handshake before that.
LOGIN_S = 10.0
# How many bytes it may send for that, pipelined requests behind the login included.
LOGIN_BYTES = 8 << 10

TOO_MANY = b"SERVER_ERROR too many connections\r\n"
FAILED = b"CLIENT_ERROR authentication failure\r\n"
BUSY = b"SERVER_ERROR too many logins at once: the password was not checked, try again\r\n"
STORED = b"STORED\r\n"


class PendingConnection(asyncio.Protocol):
    """The protocol of a connection's transport until the client is admitted, after its login if there are
    users."""

    __slots__ = (
        "__weakref__", "_authentication", "_capacity", "_clients", "_has_ended", "_is_connected", "_parser",
        "_received", "_timer", "_transport", "_withdraw",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, clients: Clients, capacity: Capacity, authentication: Authentication) -> None:
        self._clients = clients
        self._capacity = capacity
        self._authentication = authentication
        # reads the login; None before and after that
        self._parser: Parser | None = None
        # what has come and is not parsed yet
        self._received = b""
        # whether the client has closed its side
        self._has_ended = False
        # whether there is a transport: with TLS, not before the end of the handshake
        self._is_connected = False
        self._timer: asyncio.TimerHandle | None = None
        # takes back the check of the password
        self._withdraw: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client, wait for its login, or refuse it."""
        self._transport = cast("asyncio.Transport", transport)
        self._is_connected = True
        if self._capacity.is_closed:
            self.abort()
        elif not self._capacity.has_room():
            self._refuse(TOO_MANY)
        elif self._authentication.users is None:
            self._admit(self._authentication.guard_without_login)
        else:
            self._parser = Parser()
            self._timer = self._clients.loop.call_later(LOGIN_S, self._fail, "took too long")

    def data_received(self, data: bytes) -> None:
        """Read the login."""
        if self._parser is None:
            if self in self._capacity.pending:
                # the password is being checked
                self._received += data
                if len(self._received) > LOGIN_BYTES:
                    self._transport.pause_reading()
            return
        self._received += data
        self._parser.feed(data)
        request = next(self._parser, None)
        if request is None:
            if len(self._received) > LOGIN_BYTES:
                self._fail("login too long")
            return
        if request.verb in OTHER_PROTOCOLS:
            self._fail(OTHER_PROTOCOLS[Verb(request.verb)][0], reply=b"")
            return
        user, found, password = request.data.partition(b" ") if request.verb == Verb.SET else (b"", b"", b"")
        if not found:
            self._fail("no login", reply=b"" if request.noreply or request.verb == Verb.QUIT else FAILED)
            return
        # pipelined requests behind the login are for the connection
        self._received = self._received[len(self._received) - self._parser.unparsed_bytes :]
        self._parser = None
        self._check(user.decode(errors="replace"), password, noreply=request.noreply)

    def _check(self, name: str, password: bytes, *, noreply: bool) -> None:
        """Have the password checked, and admit or refuse the client by the outcome."""
        authentication = self._authentication
        user = (authentication.users or {}).get(name)

        def done(is_right: bool | None) -> None:
            if is_right is None:
                self._refuse_login(name, authentication.overloads, BUSY, "too many wait", noreply=noreply)
            elif user is None or not is_right:
                self._refuse_login(
                    name, authentication.failures, FAILED, "wrong user or password", noreply=noreply
                )
            elif authentication.users is None or authentication.users.get(name) == user:
                self._transport.resume_reading()
                self._clients.counters.auth_cmds += 1
                self._admit(authentication.guard(name, user), reply=b"" if noreply else STORED)
            else:  # the users were changed meanwhile
                self._check(name, password, noreply=noreply)

        def give_up() -> None:
            # the client was in time: what is late is the check
            self._refuse_login(name, authentication.overloads, BUSY, "took too long", noreply=noreply)

        self._stop_waiting()
        self._timer = self._clients.loop.call_later(LOGIN_S, give_up)
        withdraw = authentication.checks.check(address_of(self._transport), user, password, done)
        if self in self._capacity.pending:
            self._withdraw = withdraw

    def _refuse_login(
        self, name: str, warning: ThrottledWarning, reply: bytes, reason: str, *, noreply: bool
    ) -> None:
        """Refuse a login, after a delay if too many of its address have failed."""
        self._stop_waiting()

        def fail() -> None:
            self._fail(reason, reply=b"" if noreply else reply, warning=warning, user=name[:64])

        delay_s = self._authentication.count_failure(address_of(self._transport))
        if delay_s:
            self._timer = self._clients.loop.call_later(delay_s, fail)
        else:
            fail()

    def _admit(self, guard: Guard | None, *, reply: bytes | None = None) -> None:
        """Hand the transport over to a `Connection`, with what has come behind the login."""
        self._leave()
        connection = Connection(self._clients)
        connection.guard = guard
        self._transport.set_protocol(cast("asyncio.Protocol", connection))
        connection.connection_made(self._transport)
        if reply is not None:
            # through the connection, which may write to the socket without the transport
            connection.sender.replies.append(reply)
            connection.data_received(self._received)
        if self._has_ended:
            connection.eof_received()

    def _fail(
        self, reason: str, *, reply: bytes = FAILED, warning: ThrottledWarning | None = None, **fields: object
    ) -> None:
        """Count and log that there was no login, and refuse the client."""
        authentication = self._authentication
        counters = self._clients.counters
        counters.auth_cmds += 1
        counters.auth_errors += warning is not authentication.overloads
        address = self._transport.get_extra_info("peername")
        warning = warning or authentication.failures
        warning.log(reason=reason, peer=address[0] if address else "gone", **fields)
        self._refuse(reply)

    def _refuse(self, reply: bytes) -> None:
        """Send a last reply, and close once the client has had time to read it."""
        self._leave()
        self._parser = None
        self._received = b""
        self._transport.write(reply)
        if not self._capacity.may_linger():
            self._transport.close()
            return
        # to close at once, with bytes of the client unread, would have TCP discard the reply
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._capacity.refused.add(self)
        self._timer = self._clients.loop.call_later(LINGER_S, self._transport.close)

    def _leave(self) -> None:
        self._capacity.pending.discard(self)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        """Wait neither for the client nor for the check of its password."""
        if self._timer is not None:
            self._timer.cancel()
        if self._withdraw is not None:
            self._withdraw()
            self._withdraw = None

    def eof_received(self) -> bool:
        """Keep the transport open for replies, for the client has only closed its sending side."""
        self._has_ended = True
        return self in self._capacity.pending and self._transport.can_write_eof()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        self._capacity.refused.discard(self)

    def abort(self) -> None:
        """Close at once; during a TLS handshake, once that has ended."""
        self._leave()
        if self._is_connected:
            self._transport.abort()

"""Who gets in: how many connections there may be, the login before the first command, and the end of
those who ask for nothing.

A connection begins as an `Arrival`. Once it may come in, a `Connection` takes over its transport and
knows nothing of all this but its user's permissions. What is rationed here, so that strangers cannot
take it from clients: descriptors, memory and the log before a login, and the processors' time for hashes.
"""

import asyncio
import resource
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import cast

import structlog

from darner import auth
from darner._proto import Parser, Verb
from darner.blob import Offload
from darner.connection import LINGER_S, STRANGERS, Clients, Connection

log = structlog.get_logger()

# How long a client may take to log in, and for the TLS handshake before that.
LOGIN_S = 10.0
# What it may send for that, and in the same breath behind it.
LOGIN_BYTES = 8 << 10
# How many passwords are checked at once: each takes a thread, 16 MiB and some 30 ms of a processor.
CHECKS = 2
# The parts of the descriptors that connections may take, and those that are turned away and linger to read
# why (more are closed at once). The rest is for the queues' files.
CONNECTIONS_SHARE = 3 / 4
LINGERING_SHARE = 1 / 16
# How often, in seconds, the log may repeat itself about strangers.
REPEAT_S = 60.0

TOO_MANY = b"SERVER_ERROR too many connections\r\n"
FAILED = b"CLIENT_ERROR authentication failure\r\n"
STORED = b"STORED\r\n"


class Complaint:
    """A log line about strangers: at most one a minute, with how often there was cause for it since."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._times = 0
        self._next = 0.0

    def log(self, **what: object) -> None:
        """There is cause for it."""
        self._times += 1
        now = time.monotonic()
        if now >= self._next:
            log.warning(self._event, times=self._times, **what)
            self._times = 0
            self._next = now + REPEAT_S


class Admission:
    """What all connections have to pass."""

    def __init__(
        self,
        clients: Clients,
        offload: Offload,
        *,
        users: auth.Users | None = None,
        max_connections: int | None = None,
        idle_timeout_s: int | None = None,
    ) -> None:
        self.clients = clients
        self.users = users
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # how many may be in at a time
        self.room = int(descriptors * CONNECTIONS_SHARE)
        if max_connections is not None:
            self.room = min(self.room, max_connections)
        self.linger_room = int(descriptors * LINGERING_SHARE)
        # how long, in whole seconds, a client may ask for nothing; None is for ever
        self.idle_timeout_s = idle_timeout_s
        # how many were ever accepted
        self.accepted = 0
        self.failures = Complaint("authentication failure")
        self._refusals = Complaint("too many connections")
        self._handshakes = Complaint("TLS handshake failed")
        # Those that are neither in nor turned away. Weak: who fails the TLS handshake is only dropped.
        self.arriving: weakref.WeakSet[Arrival] = weakref.WeakSet()
        self.lingering: set[Arrival] = set()
        # whether nobody gets in any more
        self.closed = False
        self._offload = offload
        # passwords to be checked when there is a thread for it
        self._checks: deque[tuple[Arrival, auth.User | None, bytes, Callable[[bool], None]]] = deque()
        self._checking = 0

    def __call__(self) -> "Arrival":
        """Return the protocol for a connection just accepted."""
        self.accepted += 1
        arrival = Arrival(self)
        self.arriving.add(arrival)
        return arrival

    def note_handshake(self, reason: str) -> None:
        """A TLS handshake failed."""
        self._handshakes.log(reason=reason)

    def has_room(self) -> bool:
        """Whether there is room for the connections there are, those that are arriving included."""
        if len(self.clients.connections) + len(self.arriving) <= self.room:
            return True
        self._refusals.log(
            connections=len(self.clients.connections),
            arriving=len(self.arriving),
            action="raise max_connections, or the limit of open files (ulimit -n, LimitNOFILE)",
        )
        return False

    def check(
        self, arrival: "Arrival", user: auth.User | None, password: bytes, done: Callable[[bool], None]
    ) -> None:
        """Check a password in a thread, in its turn, and call `done` with what came of it; not if `arrival`
        has gone by then."""
        self._checks.append((arrival, user, password, done))
        self._check_next()

    def _check_next(self) -> None:
        while self._checks and self._checking < CHECKS:
            arrival, user, password, done = self._checks.popleft()
            if arrival in self.arriving:
                self._checking += 1
                self._check(arrival, user, password, done)

    def _check(
        self, arrival: "Arrival", user: auth.User | None, password: bytes, done: Callable[[bool], None]
    ) -> None:
        is_right = [False]

        def work() -> None:
            is_right[0] = auth.check(user, password)

        def finished(_: Exception | None) -> None:
            self._checking -= 1
            self._check_next()
            if arrival in self.arriving:
                done(is_right[0])

        self._offload(work, finished)

    def change_users(self, users: auth.Users | None) -> None:
        """Go by these users from now on, None letting everybody in. Closes the connections of those that
        are gone or not what they were, so that nothing that was taken from them goes on."""
        self.users = users
        if users is None:
            return
        for connection in list(self.clients.connections):
            guard = connection.guard
            if guard is None or users.get(guard.name) != guard.user:
                connection.abort()

    def sweep(self) -> None:
        """Close who has gone unnoticed, or has asked for nothing for too long; to be called once a second."""
        timeout_s = self.idle_timeout_s
        closed = 0
        for connection in list(self.clients.connections):
            if connection.waits:
                # nobody would miss it before an item comes
                connection.has_gone()
                connection.idle_sweeps = 0
                continue
            if timeout_s is None:
                continue
            if not connection.idles:
                connection.idle_sweeps = 0
                continue
            connection.idle_sweeps += 1
            # the first sweep may come at once
            if connection.idle_sweeps > timeout_s:
                closed += 1
                connection.abort()
        if closed:
            log.info("closed idle connections", connections=closed, idle_timeout_s=timeout_s)

    def close(self) -> None:
        """Close all that are not in, and those that come yet: their TLS handshakes may be under way."""
        self.closed = True
        self._checks.clear()
        for arrival in [*self.arriving, *self.lingering]:
            arrival.abort()


class Arrival(asyncio.Protocol):
    """A connection that is not in yet: the protocol of its transport until it is."""

    __slots__ = (
        "__weakref__", "_admission", "_ended", "_is_connected", "_parser", "_received", "_timer",
        "_transport",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        # None once nothing more is read
        self._parser: Parser | None = None
        self._received = b""
        self._ended = False
        # whether there is a transport: not before the end of the TLS handshake
        self._is_connected = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, have it log in, or turn it away."""
        self._transport = cast("asyncio.Transport", transport)
        self._is_connected = True
        admission = self._admission
        if admission.closed:
            self.abort()
        elif not admission.has_room():
            self._turn_away(TOO_MANY)
        elif admission.users is None:
            self._let_in(None)
        else:
            self._parser = Parser()
            self._timer = admission.clients.loop.call_later(LOGIN_S, self._fail, "took too long")

    def data_received(self, data: bytes) -> None:
        """Take in the login."""
        if self._parser is None:
            if self in self._admission.arriving:
                # its password is being checked
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
        if request.verb in STRANGERS:
            self._fail(STRANGERS[Verb(request.verb)][0], reply=b"")
            return
        user, found, password = request.data.partition(b" ") if request.verb == Verb.SET else (b"", b"", b"")
        if not found:
            self._fail("no login", reply=b"" if request.noreply or request.verb == Verb.QUIT else FAILED)
            return
        # what came behind it is for the connection
        self._received = self._received[len(self._received) - self._parser.unparsed_bytes :]
        self._parser = None
        self._check(user.decode(errors="replace"), password, noreply=request.noreply)

    def _check(self, name: str, password: bytes, *, noreply: bool) -> None:
        users = self._admission.users or {}
        user = users.get(name)

        def done(is_right: bool) -> None:
            if user is None or not is_right:
                self._fail("wrong user or password", reply=b"" if noreply else FAILED, user=name[:64])
            elif self._admission.users is None or self._admission.users.get(name) == user:
                self._transport.resume_reading()
                self._let_in(auth.Guard(name, user), reply=b"" if noreply else STORED)
            else:
                self._fail("user changed meanwhile")

        self._admission.check(self, user, password, done)

    def _let_in(self, guard: auth.Guard | None, *, reply: bytes = b"") -> None:
        self._leave()
        connection = Connection(self._admission.clients)
        connection.guard = guard
        self._transport.set_protocol(cast("asyncio.Protocol", connection))
        connection.connection_made(self._transport)
        if guard is not None:
            # it may write past the transport, and so sends this too
            connection.out.append(reply)
            connection.data_received(self._received)
        if self._ended:
            connection.eof_received()

    def _fail(self, reason: str, *, reply: bytes = FAILED, **what: object) -> None:
        address = self._transport.get_extra_info("peername")
        self._admission.failures.log(reason=reason, peer=address[0] if address else "gone", **what)
        self._turn_away(reply)

    def _turn_away(self, reply: bytes) -> None:
        self._leave()
        self._parser = None
        self._received = b""
        self._transport.write(reply)
        lingering = self._admission.lingering
        if len(lingering) >= self._admission.linger_room:
            self._transport.close()
            return
        # closing at once would have TCP throw away the error if something unread has come
        if self._transport.can_write_eof():
            self._transport.write_eof()
        lingering.add(self)
        self._timer = self._admission.clients.loop.call_later(LINGER_S, self._transport.close)

    def _leave(self) -> None:
        self._admission.arriving.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def eof_received(self) -> bool:
        """The client sends no more: what it has asked for it may still be told."""
        self._ended = True
        return self in self._admission.arriving and self._transport.can_write_eof()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget it."""
        self._leave()
        self._admission.lingering.discard(self)

    def abort(self) -> None:
        """Close at once; one that is not there yet, when it comes."""
        self._leave()
        if self._is_connected:
            self._transport.abort()

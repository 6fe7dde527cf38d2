"""Who gets in: how many connections there may be, the login before the first command, and the end of
those who ask for nothing.

A connection begins as an `Arrival`. Once it may come in, a `Connection` takes over its transport and
knows nothing of all this but its user's permissions. What is rationed here, so that strangers cannot
take it from clients: descriptors, memory and the log before a login. The processors' time for hashes is
rationed in logins.py.
"""

import asyncio
import ipaddress
import resource
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import cast

import structlog

from darner._proto import Parser, Verb
from darner.access import auth
from darner.access.logins import Logins
from darner.environment.offload import Offload
from darner.wire.clients import STRANGERS, Clients
from darner.wire.connection import LINGER_S, Connection

log = structlog.get_logger()

# How long a client may take to log in, and for the TLS handshake before that.
LOGIN_S = 10.0
# What it may send for that, and in the same breath behind it.
LOGIN_BYTES = 8 << 10
# After so many logins of one address that failed within a second, it has to wait for the answers: else those
# who ask again at once would have the event loop do nothing else.
QUICK_FAILURES = 10
FAILURE_S = 1.0
# For so many seconds at least, and twice as many at most, an address that sent passwords comes behind those
# that sent fewer.
FORGIVE_S = 60
# The parts of the descriptors that connections may take, and those that are turned away and linger to read
# why (more are closed at once). The rest is for the queues' files.
CONNECTIONS_SHARE = 3 / 4
LINGERING_SHARE = 1 / 64
# How many the port for metrics has at once, if there is one: they are none of the clients'.
METRICS_CONNECTIONS = 8
# And that large items may take as they are sent, whatever connections there are; more share with these.
FILES_SHARE = 1 / 32
# How often, in seconds, the log may repeat itself about strangers.
REPEAT_S = 60.0

TOO_MANY = b"SERVER_ERROR too many connections\r\n"
FAILED = b"CLIENT_ERROR authentication failure\r\n"
BUSY = b"SERVER_ERROR too many logins at once: the password was not checked, try again\r\n"
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


def address_of(transport: asyncio.BaseTransport) -> str:
    """Where a connection comes from. Who has one IPv6 address has 2^64 of them, which count as one; all on a
    Unix socket come from the same."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    host = str(peer[0])
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))


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
        denied: frozenset[Verb] = frozenset(),
        other_connections: int = 0,
    ) -> None:
        """`denied` are the verbs that are refused to whoever is no admin. `other_connections` take
        descriptors, too, and are admitted elsewhere."""
        self.clients = clients
        self.users = users
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # how many may be in at a time
        self.room = max(1, int(descriptors * CONNECTIONS_SHARE) - other_connections)
        if max_connections is not None:
            self.room = min(self.room, max_connections)
        self.linger_room = int(descriptors * LINGERING_SHARE)
        clients.descriptors = int(descriptors * CONNECTIONS_SHARE)
        clients.files_granted = int(descriptors * FILES_SHARE)
        clients.on_files_refused = self._refuse_file
        # how long, in whole seconds, a client may ask for nothing; None is for ever
        self.idle_timeout_s = idle_timeout_s
        clients.max_connections = self.room
        # how many were ever accepted
        self.accepted = 0
        self.failures = Complaint("authentication failure")
        self._refusals = Complaint("too many connections")
        self._files_refused = Complaint("too many large items are being sent")
        self._handshakes = Complaint("TLS handshake failed")
        # Those that are neither in nor turned away. Weak: who fails the TLS handshake is only dropped.
        self.arriving: weakref.WeakSet[Arrival] = weakref.WeakSet()
        self.lingering: set[Arrival] = set()
        # whether nobody gets in any more
        self.closed = False
        self.logins = Logins(offload)
        self._sweeps = 0
        self.overloads = Complaint("logins that were not checked, for there were too many")
        # how many logins of an address have failed since the last sweep
        self._failed: Counter[str] = Counter()
        self.denied = denied
        # what those may do who need not log in
        self.guard_of_all = auth.Guard("", None, denied) if denied else None

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
        clients = self.clients
        connections = len(clients.connections) + len(self.arriving)
        if connections <= self.room and connections + clients.files <= clients.descriptors:
            return True
        self._note_refusal()
        return False

    def may_shake_hands(self) -> bool:
        """Whether a TLS handshake may begin, of a connection that counts as arriving. Before its end nobody
        can be told that there is no room: there is some for those who will be."""
        there = len(self.clients.connections) + len(self.arriving) + len(self.lingering)
        if there <= self.room + self.linger_room:
            return True
        self._note_refusal()
        return False

    def _note_refusal(self) -> None:
        self.clients.counters.rejected_connections += 1
        self._refusals.log(
            connections=len(self.clients.connections),
            arriving=len(self.arriving),
            action="raise max_connections, or the limit of open files (ulimit -n, LimitNOFILE)",
        )

    def _refuse_file(self) -> None:
        self._files_refused.log(
            files=self.clients.files,
            connections=len(self.clients.connections),
            action="set idle_timeout, or raise the limit of open files (ulimit -n, LimitNOFILE)",
        )

    def failure_s(self, address: str) -> float:
        """A login of this address has failed: returns for how many seconds it is not to be told."""
        self._failed[address] += 1
        return FAILURE_S if self._failed[address] > QUICK_FAILURES else 0

    def change_users(self, users: auth.Users | None) -> None:
        """Go by these users from now on, None letting everybody in. Closes the connections of those that
        are gone or not what they were, so that nothing that was taken from them goes on."""
        self.users = users
        self.logins.forget()
        if users is None:
            return
        for connection in list(self.clients.connections):
            guard = connection.guard
            if guard is None or users.get(guard.name) != guard.user:
                connection.abort()

    def sweep(self) -> None:
        """Close who has gone unnoticed, or has asked for nothing for too long; to be called once a second."""
        self._failed.clear()
        self._sweeps += 1
        if self._sweeps % FORGIVE_S == 0:
            self.logins.forgive()
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
        self.logins.close()
        for arrival in [*self.arriving, *self.lingering]:
            arrival.abort()


class Arrival(asyncio.Protocol):
    """A connection that is not in yet: the protocol of its transport until it is."""

    __slots__ = (
        "__weakref__", "_admission", "_ended", "_is_connected", "_parser", "_received", "_timer",
        "_transport", "_withdraw",
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
        # takes back the check of its password
        self._withdraw: Callable[[], None] | None = None

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
            self._let_in(admission.guard_of_all)
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
        admission = self._admission
        user = (admission.users or {}).get(name)

        def refuse(complaint: Complaint, reply: bytes, reason: str) -> None:
            self._stop_waiting()

            def fail() -> None:
                self._fail(reason, reply=b"" if noreply else reply, complaint=complaint, user=name[:64])

            wait_s = admission.failure_s(address_of(self._transport))
            if wait_s:
                self._timer = admission.clients.loop.call_later(wait_s, fail)
            else:
                fail()

        def done(is_right: bool | None) -> None:
            if is_right is None:
                refuse(admission.overloads, BUSY, "too many wait")
            elif user is None or not is_right:
                refuse(admission.failures, FAILED, "wrong user or password")
            elif admission.users is None or admission.users.get(name) == user:
                self._transport.resume_reading()
                admission.clients.counters.auth_cmds += 1
                reply = b"" if noreply else STORED
                self._let_in(auth.Guard(name, user, admission.denied), reply=reply)
            else:  # changed meanwhile
                self._check(name, password, noreply=noreply)

        # what is late now is the server
        self._stop_waiting()
        self._timer = admission.clients.loop.call_later(
            LOGIN_S, refuse, admission.overloads, BUSY, "took too long"
        )
        withdraw = admission.logins.check(address_of(self._transport), user, password, done)
        if self in admission.arriving:
            self._withdraw = withdraw

    def _let_in(self, guard: auth.Guard | None, *, reply: bytes | None = None) -> None:
        self._leave()
        connection = Connection(self._admission.clients)
        connection.guard = guard
        self._transport.set_protocol(cast("asyncio.Protocol", connection))
        connection.connection_made(self._transport)
        if reply is not None:
            # it may write past the transport, and so sends this too
            connection.out.append(reply)
            connection.data_received(self._received)
        if self._ended:
            connection.eof_received()

    def _fail(
        self, reason: str, *, reply: bytes = FAILED, complaint: Complaint | None = None, **what: object
    ) -> None:
        counters = self._admission.clients.counters
        counters.auth_cmds += 1
        counters.auth_errors += complaint is not self._admission.overloads
        address = self._transport.get_extra_info("peername")
        complaint = complaint or self._admission.failures
        complaint.log(reason=reason, peer=address[0] if address else "gone", **what)
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
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        """Neither for the client nor for what comes of its password."""
        if self._timer is not None:
            self._timer.cancel()
        if self._withdraw is not None:
            self._withdraw()
            self._withdraw = None

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

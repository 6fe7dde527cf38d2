"""What the connections of one event loop share, and what is known of each."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import structlog

from darner._proto import Request, Verb
from darner._records import Histogram
from darner.errors import JournalError, StatusError
from darner.queues.pending import Pending
from darner.wire.counters import Counters
from darner.wire.figure import StoreFigures
from darner.wire.store import Store
from darner.wire.unattended import UnattendedSteps

log = structlog.get_logger()

# Serves one request of a `Connection`, which is its first argument.
Command = Callable[[Any, Request], None]

# Protocols that are not ours: by the parser's verb for each, its name, and what to do about it.
OTHER_PROTOCOLS = {
    Verb.BINARY: ("memcache's binary protocol", "set the client to the text protocol"),
    Verb.TLS: ("TLS", "set tls_cert and tls_key, or have the client speak plainly"),
    Verb.HTTP: (
        "HTTP",
        "see what sends it, for a web page may have a browser do so; metrics are at metrics_port alone",
    ),
}


class Guard(Protocol):
    """The permissions of one connection's user."""

    def refusal(self, request: Request) -> bytes | None:
        """Return the error to reply with, b"" if no reply is due yet, None if the request is allowed."""


class Incoming(Protocol):
    """A large item that the client is sending."""

    def write(self, chunk: bytes) -> None:
        """Store the next chunk."""

    def finish(self, last: Request) -> None:
        """Reply to the item, all of which has come."""

    def abandon(self) -> None:
        """Delete what has come: the client has disconnected."""


class Client(Protocol):
    """A connection, as far as the server and its admission of clients need it."""

    # None allows everything
    guard: Guard | None
    # how many sweeps for idle clients have found nothing asked for since the last request
    idle_sweeps: int

    @property
    def address(self) -> str:
        """The client's address, for the log."""

    @property
    def is_waiting(self) -> bool:
        """Whether a `get` of it waits for an item."""

    @property
    def is_idle(self) -> bool:
        """Whether the server has nothing left to do for it: the client is to ask, to send on, or to read."""

    def has_disconnected(self) -> bool:
        """Return whether the client has disconnected; its connection is closed then."""

    def refuse_wait(self, error: StatusError) -> None:
        """Answer a `get` that waits with this error."""

    def drain(self) -> None:
        """Send what is due, then close."""

    def abort(self) -> None:
        """Close at once."""


class Clients:
    """The connections of one event loop, and what they share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        broker: Store,
        commands: Sequence[Command],
        *,
        figures: StoreFigures,
        dialect: str,
        keepalive: int,
    ) -> None:
        """`commands` has the function that serves each `Verb`, in the order of the verbs. `figures` are those
        of this `broker`. `dialect` is the setting of that name, `keepalive` after how many seconds a silent
        client is probed."""
        self.loop = loop
        self.broker: Store = broker
        self.figures: StoreFigures = figures
        self.commands = list(commands)
        self.budget = broker.environment.budget
        broker.status.on_quiescent = self._refuse_waits
        self.counters: Counters = Counters()
        self.connections: set[Client] = set()
        # whether a value is sent under its queue's name alone, without the options that were asked with
        self.bare_keys = dialect == "kestrel"
        self.keepalive = keepalive
        self._started = time.monotonic()
        # What the commands `reload`, a step at a time, and `shutdown` do, which is the server's. None: it is
        # not allowed.
        self.reload: Callable[[], Iterator[None]] = lambda: iter(())
        self.shutdown: Callable[[], None] | None = None
        # how long replies took, if anybody asks for that, and how late the event loop was
        self.reply_times: Histogram | None = None
        self.loop_lags = Histogram()
        # what `stats settings` replies
        self.describe_settings: Callable[[], Iterable[tuple[str, object]]] = lambda: ()
        # whether `stats` has the figures of each queue
        self.lists_queues: bool = True
        # how many connections there may be
        self.max_connections: int = 0
        self._flush_all: asyncio.TimerHandle | None = None
        # How many files of large items are open that are being sent, how many may always be, and how many
        # may be together with the connections: a client that reads slowly must not take the queues'
        # descriptors.
        self.files = 0
        self.files_granted = self.descriptors = sys.maxsize
        # called when one more is refused
        self.on_files_refused: Callable[[], None] = lambda: None
        self._logged_protocols: set[int] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def flush_all_later(self, delay_s: int | None) -> None:
        """Flush all queues in `delay_s` seconds; None calls that off. The last order counts."""
        if self._flush_all is not None:
            self._flush_all.cancel()
            self._flush_all = None
        if delay_s is not None:
            self._flush_all = self.loop.call_later(delay_s, self._flush_all_now)

    def _flush_all_now(self) -> None:
        self._flush_all = None
        try:
            self.broker.status.check_sets()
        except StatusError as error:
            log.warning("a flush_all that was due is not done", reason=str(error))
            return
        self.run_in_slices(self._flush_steps())

    def _flush_steps(self) -> Iterator[Pending | None]:
        errors: list[JournalError] = []
        yield from self.broker.flush_all(errors)
        if errors:
            log.error("not all queues flushed", failures=len(errors), reason=str(errors[0]))

    def run_in_slices(self, steps: Iterator[Pending | None]) -> None:
        """Take steps that no client waits for, and let others have their turn in between."""
        UnattendedSteps(self.loop, self.budget, steps).advance()

    def _refuse_waits(self, error: StatusError) -> None:
        for connection in self.connections:
            connection.refuse_wait(error)

    def take_file(self) -> None:
        """Count the file of a large item that is about to be opened. JournalError if there are too many."""
        if self.files >= self.files_granted and self.files + len(self.connections) >= self.descriptors:
            self.on_files_refused()
            raise JournalError("too many large items are being sent: try again")
        self.files += 1

    def give_file(self) -> None:
        """Count out a file that is closed."""
        self.files -= 1

    def add(self, connection: Client) -> None:
        """Count in a client that has connected."""
        self.connections.add(connection)
        self.counters.total_connections += 1
        self._is_empty.clear()

    def remove(self, connection: Client) -> None:
        """Count out a client that has disconnected, and holds nothing any more."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    async def wait_until_empty(self) -> None:
        """Wait until no client is left."""
        await self._is_empty.wait()

    def uptime_s(self) -> float:
        """Return for how many seconds the server has been up."""
        return time.monotonic() - self._started

    def log_other_protocol(self, verb: int, address: str) -> None:
        """Log a connection that speaks another protocol, by the parser's verb for that. Only the first one of
        each protocol is logged."""
        if verb not in self._logged_protocols:
            self._logged_protocols.add(verb)
            protocol, action = OTHER_PROTOCOLS[Verb(verb)]
            log.warning(
                "closed a connection that is no client's; further ones of the kind are not logged",
                speaks=protocol,
                peer=address,
                action=action,
            )

"""What the connections of one event loop share."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import structlog

from darner._proto import Verb
from darner.errors import JournalError, StatusError
from darner.queues.broker import Broker
from darner.wire.counters import Counters

if TYPE_CHECKING:
    from darner.wire.connection import Connection

log = structlog.get_logger()

# What is no client, by the verb the parser has for it: what it speaks, and what to do about it.
STRANGERS = {
    Verb.BINARY: ("memcache's binary protocol", "set the client to the text protocol"),
    Verb.TLS: ("TLS", "set tls_cert and tls_key, or have the client speak plainly"),
    Verb.HTTP: (
        "HTTP",
        "see what sends it, for a web page may have a browser do so; metrics are at metrics_port alone",
    ),
}


class Clients:
    """The connections of one event loop, and what they share."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, broker: Broker, *, dialect: str, keepalive: int
    ) -> None:
        self.loop = loop
        self.broker: Broker = broker
        self.budget = broker.environment.budget
        broker.status.on_quiescent = self._end_waits
        self.counters: Counters = Counters()
        self.connections: set[Connection] = set()
        self.bare_keys = dialect == "kestrel"
        self.keepalive = keepalive
        self._started = time.monotonic()
        # what `reload`, a step at a time, and `shutdown` do, which is the server's; None is not allowed
        self.reload: Callable[[], Iterator[None]] = lambda: iter(())
        self.shutdown: Callable[[], None] | None = None
        # what `stats settings` says
        self.describe_settings: Callable[[], Iterable[tuple[str, object]]] = lambda: ()
        # whether `stats` says something of each queue
        self.lists_queues: bool = True
        # how many connections there may be
        self.max_connections: int = 0
        self._flush_all: asyncio.TimerHandle | None = None
        # Of how many large items the files are open that are being sent, how many may always be, and how many
        # may be together with the connections. Who reads slowly must not take the queues' descriptors.
        self.files = 0
        self.files_granted = self.descriptors = sys.maxsize
        # told when one more is refused
        self.on_files_refused: Callable[[], None] = lambda: None
        self._seen: set[int] = set()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def flush_all_later(self, delay_s: int | None) -> None:
        """Flush all queues in `delay_s` seconds, in place of an earlier such order; None takes it back."""
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
        self.do(self._flush_now())

    def _flush_now(self) -> Iterator[None]:
        errors: list[JournalError] = []
        yield from self.broker.flush_all(errors)
        if errors:
            log.error("not all queues flushed", failures=len(errors), reason=str(errors[0]))

    def do(self, steps: Iterator[None]) -> None:
        """Do what no client waits for, in slices."""
        self.budget.begin()
        for _ in steps:
            if self.budget.is_spent():
                self.loop.call_soon(self.do, steps)
                return

    def _end_waits(self, error: StatusError) -> None:
        for connection in self.connections:
            connection.refuse_wait(error)

    def take_file(self) -> None:
        """A large item's file is about to be opened. JournalError if there are too many."""
        if self.files >= self.files_granted and self.files + len(self.connections) >= self.descriptors:
            self.on_files_refused()
            raise JournalError("too many large items are being sent: try again")
        self.files += 1

    def give_file(self) -> None:
        """It is closed."""
        self.files -= 1

    def join(self, connection: "Connection") -> None:
        """A client has come."""
        self.connections.add(connection)
        self.counters.total_connections += 1
        self._emptied.clear()

    def leave(self, connection: "Connection") -> None:
        """A client has gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    async def emptied(self) -> None:
        """Wait until no client is left."""
        await self._emptied.wait()

    def uptime_s(self) -> float:
        """How long the server has been up."""
        return time.monotonic() - self._started

    def log_stranger(self, verb: int, peer: str) -> None:
        """Log the first connection that speaks another protocol, by the parser's verb for it, and no more of
        those."""
        if verb not in self._seen:
            self._seen.add(verb)
            protocol, action = STRANGERS[Verb(verb)]
            log.warning(
                "closed a connection that is no client's; further ones of the kind are not logged",
                speaks=protocol,
                peer=peer,
                action=action,
            )

"""Clients of several darners before one cluster, and the ledger of what they were told.

Producers wait for the answer to each set. Clients connect again when their connection breaks.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cluster_darners import ClusterDarner
from running import ATTEMPT, Wire

# What a client gets if its plain get may have removed an item all the same.
UNCERTAIN = (b"has not confirmed in time", b"perhaps by another get", b"does not answer")
LOST = (OSError, EOFError)


class RefusedError(Exception):
    """The darner has answered SERVER_ERROR."""


@dataclass
class Got:
    """One item as a client got it."""

    name: bytes
    id: int
    attempts: int


@dataclass
class Ledger:
    """What one client, or all of them, were told; by queue."""

    acknowledged: dict[bytes, list[bytes]] = field(default_factory=dict)
    perhaps_set: dict[bytes, list[bytes]] = field(default_factory=dict)
    # in the order in which they came, with a new list after each error
    got: dict[bytes, list[list[Got]]] = field(default_factory=dict)
    # plain gets whose item may have been removed though no client has got it
    cut_off: Counter[bytes] = field(default_factory=Counter)
    # reliable reads: surely closed, and perhaps
    closed: dict[bytes, list[bytes]] = field(default_factory=dict)
    closing: dict[bytes, list[bytes]] = field(default_factory=dict)
    # the longest time that a set took; and what was answered in place of `STORED`, or of an item
    slowest_s: float = 0.0
    refused_sets: Counter[bytes] = field(default_factory=Counter)
    refusals: Counter[bytes] = field(default_factory=Counter)
    reconnects: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def add(self, other: "Ledger") -> None:
        """Take over what another one has."""
        for key, mine in vars(self).items():
            theirs = getattr(other, key)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, dict):
                for queue, entries in theirs.items():
                    mine.setdefault(queue, []).extend(entries)
            elif isinstance(mine, list):
                mine.extend(theirs)
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.reconnects += other.reconnects

    def all_got(self, queue: bytes) -> list[Got]:
        """Return every item that came from a queue."""
        return [got for series in self.got.get(queue, []) for got in series]


def fetch(wire: Wire, request: bytes) -> tuple[int, bytes] | None:
    """Send a `gets`, and return token and data of the item. Raises RefusedError."""
    wire.send(b"gets %s\r\n" % request)
    line = wire.line()
    if line == b"END\r\n":
        return None
    if line.startswith(b"SERVER_ERROR"):
        raise RefusedError(line)
    if not line.endswith(b"\n"):
        raise EOFError
    word, _, _, size, token = line.split()
    assert word == b"VALUE", line
    data = wire.exactly(int(size) + 2)[:-2]
    end = wire.line()
    if end != b"END\r\n":
        raise EOFError
    return int(token), data


class Clients:
    """Clients at work, until `end`."""

    def __init__(self) -> None:
        self._stop_sets = threading.Event()
        self._stop_gets = threading.Event()
        self._ledgers: list[Ledger] = []
        self._producers: list[threading.Thread] = []
        self._consumers: list[threading.Thread] = []

    def produce(self, darner: ClusterDarner, queue: bytes, who: bytes, pause_s: float) -> None:
        """Set items, one after the other, `pause_s` apart."""
        numbers = iter(range(1_000_000))

        def work(wire: Wire, ledger: Ledger) -> None:
            while not self._stop_sets.is_set():
                name = b"%s %06d" % (who, next(numbers))
                before = time.monotonic()
                reply = b""
                try:
                    reply = wire.set(queue, name)
                finally:
                    is_stored = reply == b"STORED\r\n"
                    kept = ledger.acknowledged if is_stored else ledger.perhaps_set
                    kept.setdefault(queue, []).append(name)
                    ledger.slowest_s = max(ledger.slowest_s, time.monotonic() - before)
                if reply.startswith(b"SERVER_ERROR"):
                    ledger.refused_sets[reply] += 1
                elif not is_stored:
                    raise EOFError
                self._stop_sets.wait(pause_s)

        self._begin(darner, work, self._stop_sets, self._producers)

    def take(self, darner: ClusterDarner, queue: bytes) -> None:
        """Get items plainly."""

        def work(wire: Wire, ledger: Ledger) -> None:
            series: list[Got] = []
            ledger.got.setdefault(queue, []).append(series)
            while not self._stop_gets.is_set():
                try:
                    found = fetch(wire, queue + b"/t=200")
                except LOST:
                    ledger.cut_off[queue] += 1
                    raise
                except RefusedError as error:
                    ledger.cut_off[queue] += any(reason in error.args[0] for reason in UNCERTAIN)
                    ledger.refusals[error.args[0]] += 1
                    ledger.got[queue].append(series := [])
                    time.sleep(0.05)
                    continue
                if found is not None:
                    series.append(Got(found[1], found[0] % ATTEMPT, found[0] // ATTEMPT))

        self._begin(darner, work, self._stop_gets, self._consumers)

    def read(self, darner: ClusterDarner, queue: bytes, think_s: float, sure_s: float) -> None:
        """Reserve items, and close each after `think_s`; it is surely closed if all took less than
        `sure_s`."""

        def work(wire: Wire, ledger: Ledger) -> None:
            while not self._stop_gets.is_set():
                before = time.monotonic()
                try:
                    found = fetch(wire, queue + b"/open/t=200")
                except RefusedError as error:
                    ledger.refusals[error.args[0]] += 1
                    time.sleep(0.05)
                    continue
                if found is None:
                    continue
                time.sleep(think_s)
                reply = b""
                try:
                    reply = wire.ask(b"get %s/close\r\n" % queue)
                finally:
                    is_sure = reply == b"END\r\n" and time.monotonic() - before < sure_s
                    kept = ledger.closed if is_sure else ledger.closing
                    kept.setdefault(queue, []).append(found[1])
                if reply.startswith(b"SERVER_ERROR"):
                    ledger.refusals[reply] += 1
                    raise EOFError  # whether the item is still reserved here is not known
                if reply != b"END\r\n":
                    raise EOFError

        self._begin(darner, work, self._stop_gets, self._consumers)

    def _begin(
        self,
        darner: ClusterDarner,
        work: Callable[[Wire, Ledger], None],
        stop: threading.Event,
        threads: list[threading.Thread],
    ) -> None:
        ledger = Ledger()

        def run() -> None:
            try:
                while not stop.is_set():
                    with contextlib.suppress(*LOST):
                        wire = darner.connect()
                        wire.socket.settimeout(45)
                        with contextlib.closing(wire):
                            work(wire, ledger)
                    if not stop.is_set():
                        ledger.reconnects += 1
                        stop.wait(0.1)
            except BaseException as error:
                ledger.errors.append(error)

        self._ledgers.append(ledger)
        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    def counted(self) -> Iterator[int]:
        """Give how many sets each client had acknowledged so far."""
        for ledger in self._ledgers:
            yield sum(map(len, ledger.acknowledged.values()))

    def progress(self) -> int:
        """Return how many items the consumers have got so far."""
        return sum(
            sum(len(series) for each in ledger.got.values() for series in each)
            + sum(map(len, ledger.closed.values()))
            + sum(map(len, ledger.closing.values()))
            for ledger in self._ledgers
        )

    def end_sets(self) -> None:
        """Have the producers end, and wait for that."""
        self._stop_sets.set()
        for thread in self._producers:
            thread.join(50)
            assert not thread.is_alive(), "a set was never answered"

    def end(self, quiet_s: float) -> Ledger:
        """Return the ledger of all, once the consumers have got nothing more for `quiet_s`."""
        self.end_sets()
        last, since = self.progress(), time.monotonic()
        while time.monotonic() - since < quiet_s:
            time.sleep(0.1)
            if (now := self.progress()) != last:
                last, since = now, time.monotonic()
        self._stop_gets.set()
        whole = Ledger()
        for thread in self._consumers:
            thread.join(50)
            assert not thread.is_alive(), "a get was never answered"
        for ledger in self._ledgers:
            whole.add(ledger)
        assert not whole.errors
        return whole

#!/usr/bin/env python3
"""A raw load generator: non-blocking sockets and epoll, requests built beforehand, replies only counted.

It is for rates at which a client made of Python objects is the limit. It is still one Python process on one
core: it measures its own CPU, and reports where it, and not the server, was the limit. Linux only.

Each connection sends `pipeline` requests in one write, a batch, and waits for all their replies. The latency
of a batch lasts from its write until its last reply.

Replies are counted and not parsed: items are lower case letters and queue names have no line end, so a line
with STORED, END or VALUE is never an item's.
"""

import array
import json
import math
import resource
import select
import socket
import string
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options
from load.servers import SHARED_CORES, Server, ServerError, loopback

STORED = b"STORED\r\n"
END = b"END\r\n"
# A read asks for what the replies to a batch can be, within these: Python allocates what is asked for.
READ_BYTES_MIN, READ_BYTES_MAX = 4096, 1 << 18
# Connections read per turn: few enough that the clock is looked at often.
EVENTS = 512
# After the time is up, how long a reply that is still due is waited for.
GRACE_S = 30.0
# A process busier than this part of a core has no more to give.
BUSY = 0.9
MAX_BATCHES_BYTES = 1 << 28
# More requests than any measurement can do in its time.
ENDLESS = 100_000_000
# How a queue is filled before something is measured.
FILL_CONNECTIONS, FILL_PIPELINE, FILL_S = 20, 64, 3600.0
CLIENT_LIMITED = "the client was the limit: busier than 90 % of its core, which the server, if known, was not"
LETTERS = string.ascii_lowercase.encode()


def item_of(size: int) -> bytes:
    """Return an item of so many bytes."""
    return (LETTERS * (size // len(LETTERS) + 1))[:size]


@dataclass(frozen=True)
class Load:
    """What to send: so many `requests` over all connections, for `seconds` at most."""

    connections: int = 10
    requests: int = 100_000
    seconds: float = 60.0
    pipeline: int = 1
    sets: int = 1
    gets: int = 1
    size: int = 64
    queue: str = "raw"
    queues: int = 1
    set_suffix: str = ""
    get_options: str = ""
    # behind these, a get by each of so many cursors
    cursors: int = 0

    def batches(self) -> list[bytes]:
        """Return the batches that are sent in turn, again and again."""
        item = item_of(self.size)
        names = (
            [f"{self.queue}{number}" for number in range(self.queues)] if self.queues > 1 else [self.queue]
        )
        requests = []
        for name in names:
            requests += [
                b"set %s 0 0 %d\r\n%s\r\n" % ((name + self.set_suffix).encode(), self.size, item)
            ] * self.sets
            requests += [f"get {name}{self.get_options}\r\n".encode()] * self.gets
            requests += [f"get {name}/cursor={number}\r\n".encode() for number in range(self.cursors)]
        if self.pipeline == 1:
            return requests
        count = len(requests) // math.gcd(len(requests), self.pipeline)
        if count * self.pipeline * (self.size + 64) > MAX_BATCHES_BYTES:
            raise ServerError("queues, pipeline and size together take too much memory")
        endless = cycle(requests)
        return [b"".join(islice(endless, self.pipeline)) for _ in range(count)]


@dataclass(frozen=True)
class Result:
    """The figures of a load. Latencies are of batches; busy is CPU time by time passed, -1 if not known."""

    rps: float
    requests: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    stored: int
    hits: int
    misses: int
    errors: int
    first_error: str
    client_busy: float
    server_busy: float
    server_cpu_us: float

    @property
    def client_limited(self) -> bool:
        """Return whether the client was the limit, and the server, as far as is known, was not."""
        return self.client_busy >= BUSY > self.server_busy


class Connection:
    """A non-blocking connection, with what is left to send and to receive of its batch."""

    __slots__ = ("carry", "left", "receive", "send", "sent_ns", "socket", "unsent")

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        self.socket = connected
        self.send, self.receive = connected.send, connected.recv
        self.carry = b""
        self.left = self.sent_ns = 0
        self.unsent = memoryview(b"")


class Driver:
    """A load on one server."""

    def __init__(self, server: Server, load: Load) -> None:
        self.server, self.load = server, load
        self.batches = load.batches()
        self.total = max(math.ceil(load.requests / load.pipeline), 1)
        self.latencies_ns = array.array("Q")
        self.stored = self.ends = self.hits = self.errors = 0
        self.first_error = ""
        self.connections: dict[int, Connection] = {}
        self.epoll = select.epoll()

    def run(self) -> Result:
        """Connect, send all requests and count the replies."""
        try:
            self._connect()
            usage, cpu, started = own_cpu_s(), self.server.cpu_s(), time.perf_counter()
            self._drive()
            seconds = time.perf_counter() - started
            return self._result(seconds, own_cpu_s() - usage, self.server.cpu_s() - cpu)
        except OSError as error:
            raise ServerError(f"{self.server.name}: {error}") from error
        finally:
            for connection in self.connections.values():
                connection.socket.close()
            self.epoll.close()

    def _connect(self) -> None:
        raise_open_files()
        connected = []
        try:
            for _ in range(min(self.load.connections, self.total)):
                connected.append(socket.create_connection((self.server.host, self.server.port), GRACE_S))
                connected[-1].sendall(b"version\r\n")
            # Once a connection has answered, the server has accepted it: that is not to be measured.
            for one in connected:
                if not one.recv(READ_BYTES_MIN):
                    raise ConnectionError("closed a connection at once: does it allow so many?")
        finally:
            for one in connected:
                self.connections[one.fileno()] = Connection(one)
                self.epoll.register(one, select.EPOLLIN)

    def _drive(self) -> None:  # noqa: C901 - calls would cost what is measured
        poll, clock, depth, noted = (
            self.epoll.poll,
            time.perf_counter_ns,
            self.load.pipeline,
            self.latencies_ns.append,
        )
        following, connections = cycle(self.batches), self.connections
        read_bytes = min(max(depth * (self.load.size + 64), READ_BYTES_MIN), READ_BYTES_MAX)
        left = self.total - len(connections)
        now = clock()
        end = now + int(self.load.seconds * 1e9)
        for connection in connections.values():
            self._send(connection, next(following), clock())
        live = len(connections)
        while live:
            events = poll(GRACE_S, EVENTS)
            if not events:
                raise TimeoutError(f"no reply for {GRACE_S:.0f} s, {live} connections wait")
            if clock() > end:
                left = 0
            for fd, mask in events:
                connection = connections[fd]
                if connection.unsent and mask & select.EPOLLOUT:
                    self._send_rest(connection)
                    if not mask & ~select.EPOLLOUT:
                        continue
                try:
                    data = connection.receive(read_bytes)
                except BlockingIOError:
                    continue
                if data == STORED:
                    self.stored += 1
                    connection.left -= 1
                elif data:
                    self._count(connection, data)
                else:
                    raise ConnectionError(
                        f"closed by the server after {len(self.latencies_ns) * depth} requests"
                    )
                if connection.left <= 0:
                    now = clock()
                    noted(now - connection.sent_ns)
                    if left > 0:
                        left -= 1
                        batch = next(following)
                        connection.left, connection.sent_ns = depth, now
                        if (sent := connection.send(batch)) != len(batch):
                            self._hold(connection, memoryview(batch)[sent:])
                    else:
                        live -= 1
                        self.epoll.unregister(fd)

    def _count(self, connection: Connection, data: bytes) -> None:
        """Count the replies that are complete, and keep an incomplete line."""
        if connection.carry:
            data = connection.carry + data
        cut = data.rfind(b"\n") + 1
        connection.carry = data[cut:]
        if cut != len(data):
            data = data[:cut]
        stored, ends, hits = data.count(STORED), data.count(END), data.count(b"VALUE ")
        errors = 0
        # An item's last line may come with a later read than its VALUE: lines are fewer then, not more.
        if b"_STORED" in data or b"ERROR" in data:
            for line in data.split(b"\r\n"):
                if line == b"NOT_STORED":
                    stored -= 1
                elif not line.startswith((b"CLIENT_ERROR", b"SERVER_ERROR", b"ERROR")):
                    continue
                errors += 1
                self.first_error = self.first_error or line.decode("ascii", "replace")
        self.stored += stored
        self.ends += ends
        self.hits += hits
        self.errors += errors
        connection.left -= stored + ends + errors

    def _send(self, connection: Connection, batch: bytes, now: int) -> None:
        connection.left, connection.sent_ns = self.load.pipeline, now
        sent = connection.send(batch)
        if sent != len(batch):
            self._hold(connection, memoryview(batch)[sent:])

    def _hold(self, connection: Connection, unsent: memoryview) -> None:
        connection.unsent = unsent
        self.epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, connection: Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.send(connection.unsent) :]
        except BlockingIOError:
            return
        if not connection.unsent:
            self.epoll.modify(connection.socket, select.EPOLLIN)

    def _result(self, seconds: float, client_s: float, server_s: float) -> Result:
        found = result_of(self.latencies_ns, seconds, client_s, server_s, self.server, self.load.pipeline)
        return replace(
            found,
            stored=self.stored,
            hits=self.hits,
            misses=self.ends - self.hits,
            errors=self.errors,
            first_error=self.first_error,
        )


def result_of(
    latencies_ns: Sequence[int],
    seconds: float,
    client_s: float,
    server_s: float,
    server: Server,
    pipeline: int = 1,
) -> Result:
    """Return the figures of batches that took so long each, and in all; nothing is counted of the replies."""
    done = len(latencies_ns) * pipeline
    ordered = sorted(latencies_ns)

    def percentile(part: float) -> float:
        return ordered[int((len(ordered) - 1) * part)] / 1000

    known = server.pid is not None
    return Result(
        rps=done / seconds,
        requests=done,
        seconds=seconds,
        p50_us=percentile(0.5),
        p90_us=percentile(0.9),
        p99_us=percentile(0.99),
        p999_us=percentile(0.999),
        max_us=percentile(1),
        stored=0,
        hits=0,
        misses=0,
        errors=0,
        first_error="",
        client_busy=client_s / seconds,
        server_busy=server_s / seconds if known else -1.0,
        server_cpu_us=server_s * 1e6 / done if known else -1.0,
    )


def raise_open_files() -> None:
    """Allow this process as many open files as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(server: Server, load: Load) -> Result:
    """Run a load against a server."""
    return Driver(server, load).run()


def fill(
    server: Server, queue: str, items: int, size: int, seconds: float = FILL_S, queues: int = 1
) -> Result:
    """Set at least so many items; ServerError if the server does not take them within this time."""
    load = Load(
        FILL_CONNECTIONS, items, seconds, FILL_PIPELINE, gets=0, size=size, queue=queue, queues=queues
    )
    result = run(server, load)
    if result.stored < items:
        raise ServerError(f"only {result.stored} of {items} items: {result.first_error or 'time is up'}")
    return result


def own_cpu_s() -> float:
    """Return the CPU seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ratio(text: str) -> tuple[int, int]:
    """Return the sets and the gets of a ratio such as `1:1`."""
    sets, _, gets = text.partition(":")
    if not (sets.isdecimal() and gets.isdecimal() and int(sets) + int(gets)):
        raise click.BadParameter(f"{text!r} is not a ratio such as 1:1")
    return int(sets), int(gets)


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("-s --server", "127.0.0.1", loopback, metavar="ADDR")
@options.option("-p --port", 22133, options.PORT)
@click.option("--pid", type=click.IntRange(1), help="The server's process, for its CPU.")
@options.connections(10)
@options.requests(100_000, "In all.")
@options.option("--seconds", 60.0, options.SECONDS, "At most.")
@options.pipeline(1)
@options.option("--ratio", "1:1", ratio, metavar="SETS:GETS")
@options.data_size(64)
@options.option("--queue", "raw", str)
@options.option("--queues", 1, options.QUEUES, "If several: queue0, queue1, … in turn.")
@click.option("--set-suffix", default="", help="Behind the queue's name in sets, such as /sync.")
@click.option("--get-options", default="", help="Behind the queue's name in gets, such as /close/open.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of text.")
def main(
    server: str,
    port: int,
    pid: int | None,
    ratio: tuple[int, int],
    data_size: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Run one load and print its figures."""
    sets, gets = ratio
    target = Server("server", server, port, pid)
    result = run(target, Load(sets=sets, gets=gets, size=data_size, **load))
    if as_json:
        click.echo(json.dumps(asdict(result) | {"client_limited": result.client_limited}))
        return
    known = f" server {result.server_busy:.0%}, {result.server_cpu_us:.2f} us CPU/request" if pid else ""
    click.echo(
        f"{result.rps:.0f} requests/s  p50 {result.p50_us:.0f} p90 {result.p90_us:.0f}"
        f" p99 {result.p99_us:.0f} p99.9 {result.p999_us:.0f} max {result.max_us:.0f} us"
        f" stored {result.stored} hits {result.hits}"
        f" misses {result.misses} errors {result.errors}  client {result.client_busy:.0%}{known}"
    )
    if result.client_limited:
        click.echo(f"Mind: {CLIENT_LIMITED}.")
    if result.errors:
        click.echo(f"Mind: the first error is {result.first_error}")
    if target.shares_cores():
        click.echo(f"Mind: {SHARED_CORES}.")


if __name__ == "__main__":
    main()

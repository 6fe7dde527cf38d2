#!/usr/bin/env python3
"""What one client costs the others, command by command: their waits, and the server's memory.

Starts a darner of its own with many queues. One client (or several, `--enemies`) pipelines one command after
the other, and a bystander asks for `version` about each ms. From the bystander's waits the time is taken off
in which it or the server waited for a core, as the kernel counts it. With `--unread` clients pipeline each
command and read no reply, and the growth of the server's memory is reported.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options
from load.servers import MIB, Server, close_with_reset
from single.own_server import own_server

CONFIGURATION = """
[queue_defaults]
max_open_reads = 1000000
[queues.memory]
durable = false
[queues.memory-big]
durable = false
[queues.memory-parent]
durable = false
[queues.limited]
max_items = 1000000
discard_old_when_full = true
[queues.timed]
open_timeout = "1s"
"""
END = b"VERSION "
CHUNK = 1 << 20
PAUSE_S = 0.001
TIMEOUT_S = 300.0
SETTLE_S = 1.5


@dataclass(frozen=True)
class Size:
    """The number of queues, of items in a large queue, and of children and cursors of one queue."""

    queues: int
    items: int
    children: int


@dataclass(frozen=True)
class Case:
    """What is sent before the measurement and during it; `during` is called after that, while it goes on.
    With `leaves` the client disconnects instead of sending."""

    name: str
    prepare: Callable[[Size], Iterator[bytes]]
    request: Callable[[Size], bytes]
    during: Callable[[Server], None] = lambda _: None
    leaves: bool = False


def nothing(_: Size) -> Iterator[bytes]:
    """Prepare nothing."""
    return iter(())


def items(queue: bytes, exptime: int = 0, data: bytes = b"x") -> Callable[[Size], Iterator[bytes]]:
    """Set the items of a large queue."""

    def send(size: Size) -> Iterator[bytes]:
        one = b"set %s 0 %d %d\r\n%s\r\n" % (queue, exptime, len(data), data)
        for _ in range(size.items // 1000):
            yield one * 1000

    return send


def reserved(queue: bytes) -> Callable[[Size], Iterator[bytes]]:
    """Set the items of a large queue and reserve them."""

    def send(size: Size) -> Iterator[bytes]:
        yield from items(queue)(size)
        yield b"monitor %s 600 %d\r\n" % (queue, size.items)

    return send


def children(parent: bytes) -> Callable[[Size], Iterator[bytes]]:
    """Create the children of a queue."""

    def send(size: Size) -> Iterator[bytes]:
        yield b"".join(b"set %s+%d 0 0 1\r\nx\r\n" % (parent, n) for n in range(size.children))

    return send


def each(command: bytes, count: int | None = None) -> Callable[[Size], bytes]:
    """Return the command again and again, with a number from 0 on in place of `%d`."""
    return lambda size: b"".join(command.replace(b"%d", b"%d" % n) for n in range(count or size.queues))


def cursors(size: Size) -> Iterator[bytes]:
    """Create the cursors of a queue, each with a place."""
    yield b"set cursed 0 0 1\r\nx\r\n" * 2
    yield b"".join(b"get cursed/cursor=%d\r\n" % n for n in range(size.children))


def chain(*parts: Callable[[Size], Iterator[bytes]]) -> Callable[[Size], Iterator[bytes]]:
    """Prepare several things, one after the other."""

    def send(size: Size) -> Iterator[bytes]:
        for part in parts:
            yield from part(size)

    return send


def times(request: bytes, count: int) -> Callable[[Size], bytes]:
    """Return the request again and again."""
    return lambda _: request * count


def hang_up(server: Server) -> None:
    """Have the server read its configuration again."""
    assert server.pid
    for _ in range(3):
        os.kill(server.pid, signal.SIGHUP)
        time.sleep(0.3)


def connect_often(server: Server) -> None:
    """Connect and disconnect again and again."""
    for _ in range(30):
        opened = [socket.create_connection((server.host, server.port)) for _ in range(100)]
        for one in opened:
            close_with_reset(one)


def wait(seconds: float) -> Callable[[Server], None]:
    """Give the server time for what it does later."""
    return lambda _: time.sleep(seconds)


KEYS = b"get" + b"".join(b" q%d" % n for n in range(1000)) + b"\r\n"
PEEKS = b"get" + b"".join(b" q%d/peek" % n for n in range(1000)) + b"\r\n"
LARGE = bytes(4 * MIB)
CASES = (
    Case("nothing", nothing, times(b"", 1), wait(3)),
    Case("version", nothing, times(b"version\r\n", 200_000)),
    Case("get", nothing, times(b"get nothing\r\n", 200_000)),
    Case("set", nothing, times(b"set plain 0 0 1\r\nx\r\n", 200_000)),
    Case(
        "set and get of 60 kB", nothing, times(b"set big 0 0 60000\r\n%s\r\nget big\r\n" % bytes(60000), 2000)
    ),
    Case(
        "set and get of 4 MiB",
        nothing,
        times(b"set large 0 0 %d\r\n%s\r\nget large\r\n" % (len(LARGE), LARGE), 30),
    ),
    Case("get of many keys", nothing, times(KEYS, 100)),
    Case("peek at many keys", nothing, times(PEEKS, 100)),
    Case(
        "peek at 60 kB",
        chain(lambda _: iter([b"set big 0 0 60000\r\n%s\r\n" % bytes(60000)])),
        times(b"get" + b" big/peek" * 290 + b"\r\n", 30),
    ),
    Case("stats", nothing, times(b"stats\r\n", 10)),
    Case("stats queues", nothing, times(b"stats queues\r\n", 10)),
    Case("stats settings", nothing, times(b"stats settings\r\n", 5000)),
    Case("stats reset", nothing, times(b"stats reset\r\n", 200)),
    Case("stats something", nothing, times(b"stats something\r\n", 50_000)),
    Case("dump_stats", nothing, times(b"dump_stats\r\n", 10)),
    Case("dump_config", nothing, times(b"dump_config\r\n", 10)),
    Case("dump_stats of one", nothing, times(b"dump_stats q1\r\n", 10_000)),
    Case("status", nothing, times(b"status\r\nstatus readonly\r\nstatus up\r\n", 1000)),
    Case("reload", nothing, times(b"reload\r\n", 20)),
    Case("SIGHUP", nothing, times(b"", 1), hang_up),
    Case("verbosity", nothing, times(b"verbosity 1\r\n", 50_000)),
    Case("connections", nothing, times(b"", 1), connect_often),
    Case("meta", nothing, times(b"mn\r\nmg plain v\r\nms plain 1\r\nx\r\nmd nothing\r\nme x\r\n", 30_000)),
    Case("errors", nothing, times(b"nonsense\r\n", 100_000)),
    Case("creation of queues", nothing, each(b"set new%d 0 0 1\r\nx\r\n")),
    Case("deletion of queues", nothing, each(b"delete new%d\r\n"), wait(3)),
    Case("flush of queues", nothing, each(b"flush q%d\r\n")),
    Case("flush_all", nothing, times(b"flush_all\r\n", 10)),
    Case("flush_all_expired", nothing, times(b"flush_all_expired\r\n", 10)),
    Case("flush of one, disk", items(b"huge"), times(b"flush huge\r\n", 1), wait(3)),
    Case("delete of one, disk", items(b"huge"), times(b"delete huge\r\n", 1), wait(3)),
    Case("flush of one, memory", items(b"memory"), times(b"flush memory\r\n", 1), wait(3)),
    Case("delete of one, memory", items(b"memory"), times(b"delete memory\r\n", 1), wait(3)),
    Case("get of expired, disk", items(b"old", -1), times(b"get old\r\n", 10)),
    Case("get of expired, memory", items(b"memory", -1), times(b"get memory\r\n", 10)),
    Case("peek at expired", items(b"old", -1), times(b"get old/peek\r\n", 10)),
    Case("cursor over expired", items(b"older", -1), times(b"get older/cursor=c\r\n", 10)),
    Case("flush_expired", items(b"oldest", -1), times(b"flush_expired oldest\r\n", 2)),
    Case("sweep of expired", items(b"swept", 3), times(b"", 1), wait(6)),
    Case("monitor", items(b"watched"), lambda size: b"monitor watched 600 %d\r\n" % size.items),
    Case("confirm", reserved(b"confirmed"), lambda size: b"confirm confirmed %d\r\n" % size.items),
    Case("abort", reserved(b"aborted"), lambda size: b"get aborted/abort\r\n" * size.items),
    Case("close", reserved(b"closed"), lambda size: b"get closed/close\r\n" * size.items),
    Case(
        "open and abort",
        items(b"opened"),
        lambda size: b"get opened/open\r\nget opened/abort\r\n" * (size.items // 4),
    ),
    Case("flush beside reserved", chain(reserved(b"kept"), items(b"kept")), times(b"flush kept\r\n", 5)),
    Case("delete of reserved", reserved(b"kept2"), times(b"delete kept2\r\n", 1)),
    Case("leaving, disk", reserved(b"left"), times(b"", 1), wait(5), leaves=True),
    Case("leaving, memory", reserved(b"memory"), times(b"", 1), wait(5), leaves=True),
    Case("open_timeout", reserved(b"timed"), times(b"", 1), wait(5)),
    Case("full queue", items(b"limited"), lambda size: b"set limited 0 0 1\r\nx\r\n" * size.items),
    Case("cursors", nothing, lambda size: b"".join(cursors(size))),
    Case("stats of cursors", nothing, times(b"dump_stats cursed\r\n", 5)),
    Case("set beside cursors", nothing, times(b"set cursed 0 0 1\r\nx\r\n", 5000)),
    Case("delete with cursors", nothing, times(b"delete cursed\r\n", 1)),
    Case("creation of children", nothing, lambda size: b"".join(children(b"parent")(size))),
    Case("set to children", nothing, times(b"set parent 0 0 1\r\nx\r\n", 5)),
    Case("set of 60 kB to children", nothing, times(b"set parent 0 0 6000\r\n%s\r\n" % bytes(6000), 2)),
    Case("delayed set to children", nothing, times(b"set parent/delay=600000 0 0 1\r\nx\r\n", 3)),
    Case(
        "delete of children",
        nothing,
        lambda size: b"".join(b"delete parent+%d\r\n" % n for n in range(size.children)),
    ),
    Case(
        "set to children in memory", children(b"memory-parent"), times(b"set memory-parent 0 0 1\r\nx\r\n", 5)
    ),
    Case(
        "new children",
        nothing,
        each(b"get memory-parent+n%d\r\nset memory-parent 0 0 1\r\nx\r\n", 5),
    ),
)


def waits_ns(server: Server, pipe: Connection) -> None:
    """Ask for `version` until told to end; then send each wait, and the server's CPU time in it, in ns."""
    found: list[tuple[int, int]] = []
    of_server = os.open(f"/proc/{server.pid}/task/{server.pid}/schedstat", os.O_RDONLY)
    of_this = os.open("/proc/self/schedstat", os.O_RDONLY)

    def look() -> tuple[int, int]:
        busy, waited, _ = os.pread(of_server, 100, 0).split()
        return int(busy), int(waited) + int(os.pread(of_this, 100, 0).split()[1])

    with server.connect() as wire:
        pipe.send(None)
        while not pipe.poll():
            begun = time.perf_counter_ns()
            busy, waited = look()
            server.ask(wire, b"version\r\n")
            took = time.perf_counter_ns() - begun
            busy_after, waited_after = look()
            found.append((max(0, took - (waited_after - waited)), busy_after - busy))
            time.sleep(PAUSE_S)
    pipe.send(found)


class Bystander:
    """The client whose waits are measured, in a process of its own."""

    def __init__(self, server: Server) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=waits_ns, args=(server, theirs))
        self._process.start()
        self._pipe.recv()
        time.sleep(0.05)

    def end(self) -> list[tuple[int, int]]:
        """Return each wait, and the server's CPU time in it, in ns."""
        self._pipe.send(None)
        found: list[tuple[int, int]] = self._pipe.recv()
        self._process.join()
        return found


def ask(wire: socket.socket, request: bytes) -> None:
    """Send a request and `version`, and read until `version` is answered."""
    sender = threading.Thread(target=wire.sendall, args=(request + b"version\r\n",))
    sender.start()
    last = b""
    while not (END in last and last.endswith(b"\r\n")):
        data = wire.recv(CHUNK)
        if not data:
            raise click.ClickException(f"closed at {request[:40]!r}")
        last = last[-100:] + data[-100:] if len(data) < 100 else data[-100:]
    sender.join()


def connect(server: Server) -> socket.socket:
    """Return a connection to the server."""
    return socket.create_connection((server.host, server.port), TIMEOUT_S)


def measure(server: Server, case: Case, size: Size, enemies: int) -> str:
    """Return the report of a case."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(connect(server)) for _ in range(enemies)]
        for data in case.prepare(size):
            ask(wires[0], data)
        if case.prepare is not nothing:
            time.sleep(SETTLE_S)
        bystander = Bystander(server)
        begun = time.perf_counter()
        if case.leaves:
            wires[0].shutdown(socket.SHUT_RDWR)  # close would not do: the bystander's process has it, too
        else:
            threads = [threading.Thread(target=ask, args=(wire, case.request(size))) for wire in wires]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        case.during(server)
        took = time.perf_counter() - begun
        found = bystander.end()
    waits, busy = sorted(wait for wait, _ in found), sorted(each for _, each in found)
    at = int(len(found) * 0.999)
    figures = [each / 1e6 for each in (waits[-1], waits[at], busy[-1], busy[at])]
    return f"{case.name:28}{''.join(f' {ms:8.1f}' for ms in figures)} {len(found):8} {took:8.1f}"


def fill(server: Server, size: Size) -> None:
    """Create the queues."""
    with connect(server) as wire:
        for start in range(0, size.queues, 1000):
            ask(wire, b"".join(b"set q%d 0 0 1\r\nx\r\n" % n for n in range(start, start + 1000)))


UNREAD = {
    "version": b"version\r\n" * 200_000,
    "stats": b"stats\r\n" * 1000,
    "stats queues": b"stats queues\r\n" * 1000,
    "stats settings": b"stats settings\r\n" * 20_000,
    "dump_stats": b"dump_stats\r\n" * 1000,
    "dump_stats of one": b"dump_stats q1\r\n" * 100_000,
    "dump_config": b"dump_config\r\n" * 1000,
    "errors": b"nonsense\r\n" * 200_000,
    "get": b"get nothing\r\n" * 200_000,
    "get of many keys": KEYS * 500,
    "peek at many keys": PEEKS * 500,
    "peek at 60 kB": (b"get" + b" big/peek" * 290 + b"\r\n") * 100,
    "peek at 60 kB, one by one": b"get big/peek\r\n" * 10_000,
    "peek at 4 MiB": b"get large/peek\r\n" * 10_000,
    "peek at 4 MiB in memory": b"get memory/peek\r\n" * 10_000,
    "peek at many of 4 MiB in memory": (b"get" + b" memory/peek" * 200 + b"\r\n") * 100,
    "monitor": b"monitor watched 600 100000\r\n",
    "monitor of 60 kB": b"monitor big 600 100000\r\n",
    "monitor of 60 kB in memory": b"monitor memory-big 600 100000\r\n",
    "open": b"get watched/open\r\n" * 100_000,
    "meta": b"mn\r\nmg large v\r\nms plain 1\r\nx\r\nmd nothing\r\nme x\r\n" * 50_000,
    "meta, an opaque": b"mn\r\nmg nothing v k O%s\r\n" % (b"o" * 30) * 100_000,
    "refused sets": b"set toolarge/x 0 0 1\r\nx\r\n" * 100_000,
}


def unread(server: Server, name: str, clients: int) -> str:
    """Return the report of clients that read no reply."""
    with contextlib.ExitStack() as stack:
        waiting: list[tuple[socket.socket, memoryview]] = []
        with connect(server) as wire:
            ask(wire, b"version\r\n")
            for queue, data, count in (
                (b"big", bytes(60000), 1000),
                (b"memory-big", bytes(60000), 1000),
                (b"large", LARGE, 1),
                (b"memory", LARGE, 3),
                (b"watched", b"x", 100_000),
            ):
                if b" " + queue in UNREAD[name]:
                    ask(wire, b"set %s 0 0 %d\r\n%s\r\n" % (queue, len(data), data) * count)
        time.sleep(SETTLE_S)
        before = largest = server.resident_bytes()
        for _ in range(clients):
            wire = stack.enter_context(socket.socket())
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((server.host, server.port))
            wire.setblocking(False)
            waiting.append((wire, memoryview(UNREAD[name])))
        end = time.monotonic() + 6
        while time.monotonic() < end:
            for at, (wire, rest) in enumerate(waiting):
                with contextlib.suppress(BlockingIOError):
                    waiting[at] = wire, rest[wire.send(rest[:65536]) :]
            largest = max(largest, server.resident_bytes())
            time.sleep(0.01)
        for wire, _ in waiting:
            close_with_reset(wire)
    with connect(server) as wire:
        begun = time.monotonic()
        ask(wire, b"version\r\n")
        left = time.monotonic() - begun
        largest_after = 0
        for _ in range(100):
            largest_after = max(largest_after, server.resident_bytes())
            time.sleep(0.02)
        ask(wire, b"delete big\r\ndelete large\r\ndelete memory\r\ndelete watched\r\ndelete memory-big\r\n")
    most, after = ((each - before) / clients / 1024 for each in (largest, largest_after))
    return f"{name:32} {most:8.0f} KiB a client, {after:8.0f} when they leave ({left:.2f} s)"


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("--queues", 10_000, options.QUEUES)
@options.option("--items", 300_000, click.IntRange(1000, 5_000_000), "Of a large queue.")
@options.option("--children", 10_000, options.QUEUES, "Of one queue.")
@options.option("--enemies", 1, click.IntRange(1, 500), "Clients that pipeline each command.")
@click.option(
    "--unread",
    "clients",
    default=0,
    type=click.IntRange(0, 500),
    help="Measure the memory of so many clients that read no reply.",
)
@click.option("--only", multiple=True, help="Cases with this in their name.")
@options.data_in
def main(
    queues: int,
    items: int,
    children: int,
    enemies: int,
    clients: int,
    only: tuple[str, ...],
    data_in: Path | None,
) -> None:
    """Run the bench."""
    size = Size(queues, items, children)
    with own_server(data_in, CONFIGURATION) as darner:
        server = darner.start()
        fill(server, size)
        time.sleep(SETTLE_S)

        def wanted(name: str) -> bool:
            return not only or any(text in name for text in only)

        if clients:
            for name in filter(wanted, UNREAD):
                click.echo(unread(server, name, clients))
            return
        click.echo(
            f"{'':28} {'wait ms':>8} {'99.9 %':>8} {'busy ms':>8} {'99.9 %':>8} {'waits':>8} {'in s':>8}"
        )
        for case in CASES:
            if wanted(case.name):
                click.echo(measure(server, case, size, enemies))


if __name__ == "__main__":
    main()

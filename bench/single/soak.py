#!/usr/bin/env python3
"""Everything at once for an hour, on a darner of its own: is anything lost, does anything grow?

Each client is a process. Some set items in numbered streams; some read them, plainly, reliably (and may
disconnect with an item reserved), by monitor, from fanout queues, after expiry; some have large items, some
connect and disconnect, some create, flush and delete queues. Every few seconds a client is killed and
replaced. Each second a sample is taken of the server's memory, descriptors, threads and disk usage. At the
end the queues are drained, and the items read are compared with each stream. Exits 1 if an acknowledged item
was lost, came twice or out of order, or if memory or descriptors grew from the second quarter of the time to
the last.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import IO, Any

import click
import psutil  # type: ignore[import-untyped,unused-ignore]
from pymemcache.client.base import Client  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

import ledger
from ledger import Account, Readers, Stream
from load import options
from load.options import option
from load.servers import MB, Server, close_with_reset
from single.own_server import own_server
from suite.report import circumstances, now, write
from suite.rounds import progress

RUN, DRAIN, END = range(3)
SAMPLE_S = 1.0
TIMEOUT_S = 60.0
# How long the clients may take to end.
JOIN_S = 30.0
BLOCK_BYTES = 512  # the unit of st_blocks
CONFIGURATION = '[queues."short"]\nexpire_to_queue = "late"\n'
# One in so many holders of an item disconnects with it; one in so many large items is sent in part only.
LEAVES_WITH_IT, IN_PART = 200, 5
MONITORED, TEMPORARY_ITEMS, TEMPORARY_QUEUES, COMERS = 50, 200, 20, 20
LARGE_PER_S = 2.0
FANOUT, RELIABLE = ("fan", "fan+a", "fan+b"), 3
SERIES = {
    "resident_mb": "resident MB",
    "descriptors": "descriptors",
    "threads": "threads",
    "disk_mb": "disk MB",
}
FLAT = ("resident_mb", "descriptors")


class Soak:
    """The server, the streams and the phase, which all clients share."""

    def __init__(self, server: Server, rate: float, backlog: int, seconds: float, large: int) -> None:
        self.server, self.rate, self.backlog, self.large = server, rate, backlog, large
        self._phase = ledger.Number()
        self._parent = os.getpid()
        # A pause is never shorter than asked for: no stream has more.
        capacity = int(rate * seconds * 2) + backlog + 10_000
        names = ("plain", "jobs", "deep", "large", "fan", "short", "watched")
        self.streams = {name: Stream(name, capacity) for name in names}

    @property
    def phase(self) -> int:
        """RUN: all clients work. DRAIN: they only read, and none is killed. END: they end."""
        return self._phase.get() if os.getppid() == self._parent or os.getpid() == self._parent else END

    @phase.setter
    def phase(self, phase: int) -> None:
        self._phase.set(phase)

    def client(self) -> Client:
        """Return a pymemcache client that waits for each reply."""
        address = (self.server.host, self.server.port)
        return Client(address, default_noreply=False, connect_timeout=TIMEOUT_S, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Role:
    """The work of one client, with the account it is for: that of its readers, or its stream."""

    name: str
    work: Callable[[], None]
    readers: Readers | None = None
    stream: Stream | None = None


def produce(soak: Soak, stream: Stream, key: Callable[[int], str], size: int, expire: int = 0) -> None:
    """Set one item after the other, those of the backlog of `deep` without a pause."""
    client = soak.client()
    unpaced = soak.backlog if stream.name == "deep" else 0
    while soak.phase == RUN:
        number, item = stream.begin(size)
        if not client.set(key(number), item, expire):
            raise ledger.LedgerError(f"{stream.name}: item {number} was not stored")
        stream.stored(number)
        if number >= unpaced:
            time.sleep(1 / soak.rate)


def produce_large(soak: Soak, stream: Stream) -> None:
    """Set large items, some of them only in part."""
    client, chance = soak.client(), random.Random()
    while soak.phase == RUN:
        if chance.randrange(IN_PART) == 0:
            with soak.server.connect() as connection:
                connection.sendall(b"set large 0 0 %d\r\n" % soak.large)
                connection.sendall(ledger.NOISE[: soak.large // 2])
        number, item = stream.begin(chance.randrange(1, soak.large))
        client.set("large", item)
        stream.stored(number)
        time.sleep(1 / LARGE_PER_S)


def read(soak: Soak, readers: Readers, queue: str, keep: int = 0, pause_s: float = 0.0) -> None:
    """Get items; while others set, keep a backlog and pause between two gets."""
    client = soak.client()
    while (phase := soak.phase) != END:
        if phase == RUN and keep and readers.behind <= keep:
            time.sleep(1 / soak.rate)
            continue
        if (item := client.get(f"{queue}/t=200")) is not None:
            readers.see(item)
        if phase == RUN:
            time.sleep(pause_s)


def read_reliably(soak: Soak, readers: Readers) -> None:
    """Reserve and close items; now and then disconnect with an item reserved."""
    client, chance, held = soak.client(), random.Random(), None
    while (phase := soak.phase) != END:
        if held is not None:
            if phase == RUN and chance.randrange(LEAVES_WITH_IT) == 0:
                client.close()  # the next request connects again
            else:
                readers.see(held)  # after close is sent nobody else may get it
        held = client.get(f"{readers.queue}/close/open/t=200")
    if held is not None:
        readers.see(held)
        client.get(f"{readers.queue}/close")


def monitor(soak: Soak, readers: Readers) -> None:
    """Reserve items by `monitor`, and confirm them."""
    queue = readers.queue.encode()
    with soak.server.connect() as connection, connection.makefile("rb") as replies:
        while soak.phase != END:
            connection.sendall(b"monitor %s 1 %d\r\n" % (queue, MONITORED))
            items = list(_monitored(replies))
            for item in items:
                readers.see(item)
            if (
                items
                and soak.server.ask(connection, b"confirm %s %d\r\n" % (queue, len(items))) != b"END\r\n"
            ):
                raise ledger.LedgerError(f"{readers.queue}: what was monitored could not be confirmed")


def _monitored(replies: IO[bytes]) -> Iterator[bytes]:
    while (line := replies.readline()) != b"END\r\n":
        if not line.startswith(b"VALUE "):
            raise ledger.LedgerError(f"monitor was answered by {line!r}")
        size = int(line.split()[3])
        yield replies.read(size)
        replies.read(len(b"\r\nEND\r\n"))


def follow(soak: Soak, stream: Stream) -> None:
    """Read a queue through a cursor, whose place must never go back."""
    client, last = soak.client(), -1
    while soak.phase != END:
        item = client.get(f"{stream.name}/cursor=audit/t=200")
        if item is None:
            continue
        number = stream.number(item)
        if stream.states[number] != ledger.CUT:
            if number <= last:
                raise ledger.LedgerError(f"{stream.name}: the cursor went from {last} back to {number}")
            last = number


def come_and_go(soak: Soak) -> None:
    """Connect, send a request or a part of one, and disconnect by a FIN or by a RST."""
    chance = random.Random()
    requests = [
        b"version\r\n",
        b"stats\r\n",
        b"get nothing/t=10000\r\n",
        b"set nothing 0 0 100\r\nhalf",
        b"ge",
        b"",
    ]
    while soak.phase == RUN:
        address = (soak.server.host, soak.server.port)
        guests = [socket.create_connection(address, TIMEOUT_S) for _ in range(chance.randrange(1, COMERS))]
        for guest in guests:
            guest.sendall(chance.choice(requests))
        time.sleep(chance.uniform(0, 0.2))
        for guest in guests:
            if chance.random() < 0.5:
                close_with_reset(guest)
            else:
                guest.close()


def make_and_drop(soak: Soak) -> None:
    """Fill queues, read an item, flush and delete them."""
    client, chance = soak.client(), random.Random()
    while soak.phase == RUN:
        name = f"temporary-{chance.randrange(TEMPORARY_QUEUES)}"
        for _ in range(TEMPORARY_ITEMS):
            client.set(name, b"x" * chance.randrange(2000))
        client.get(name)
        if chance.random() < 0.5:
            client.raw_command(f"flush {name}", "END\r\n")
        client.delete(name)
        time.sleep(0.2)


def roles(soak: Soak) -> tuple[list[Role], list[Readers]]:
    """Return the roles of all clients, and the readers whose accounts are checked."""
    streams = soak.streams
    plain, deep, large, *fan = (
        Readers(streams[stream], queue, once=True, in_order=True)
        for stream, queue in (
            ("plain", "plain"), ("deep", "deep"), ("large", "large"), *(("fan", queue) for queue in FANOUT)
        )
    )  # fmt: skip
    jobs, watched = (Readers(streams[name], name, once=False) for name in ("jobs", "watched"))
    # Those who read in time and those who read expired items: together they see each item once.
    short = Readers(streams["short"], "short", once=True)

    def setter(name: str, key: Callable[[int], str], size: int, expire: int = 0) -> Role:
        stream = streams[name]
        return Role(f"set {name}", partial(produce, soak, stream, key, size, expire), stream=stream)

    def reader(readers: Readers, queue: str = "", keep: int = 0, pause_s: float = 0.0) -> Role:
        queue = queue or readers.queue
        return Role(f"get {queue}", partial(read, soak, readers, queue, keep, pause_s), readers)

    def job(number: int) -> str:
        if number % 50 == 0:
            return "jobs/sync"
        return "jobs/delay=300" if number % 20 == 0 else "jobs"

    return [
        setter("plain", lambda _: "plain", 64),
        reader(plain),
        setter("jobs", job, 200),
        *(Role(f"jobs {n}", partial(read_reliably, soak, jobs), jobs) for n in range(RELIABLE)),
        setter("deep", lambda _: "deep", 1024),
        reader(deep, keep=soak.backlog),
        Role("cursor", partial(follow, soak, streams["deep"])),
        Role("set large", partial(produce_large, soak, streams["large"]), stream=streams["large"]),
        reader(large),
        setter("fan", lambda _: "fan", 100),
        *(reader(readers) for readers in fan),
        setter("short", lambda _: "short", 100, expire=1),
        reader(short, pause_s=0.1),
        reader(short, "late"),
        setter("watched", lambda _: "watched", 100),
        Role("monitor", partial(monitor, soak, watched), watched),
        Role("come and go", partial(come_and_go, soak)),
        Role("make and drop", partial(make_and_drop, soak)),
    ], [plain, deep, large, *fan, jobs, watched, short]


class Clients:
    """The processes of all roles, and their complaints."""

    def __init__(self, soak: Soak, all_roles: list[Role], complaints: Path) -> None:
        self._soak, self._complaints = soak, complaints
        self._fork = multiprocessing.get_context("fork")
        self._processes = [(role, self._begin(role)) for role in all_roles]
        self.kills = 0

    def _begin(self, role: Role) -> BaseProcess:
        process = self._fork.Process(target=self._run, args=(role,), daemon=True)
        process.start()
        return process

    def _run(self, role: Role) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            role.work()
        except Exception as error:
            traceback.print_exc()
            with self._complaints.open("a") as file:
                file.write(f"{role.name}: {type(error).__name__}: {error}\n")
            sys.exit(1)

    def kill(self, chance: random.Random) -> None:
        """Kill a client, note what that may have cost, and start another in its place."""
        place = chance.randrange(len(self._processes))
        role, process = self._processes[place]
        if not process.is_alive():
            return
        process.kill()
        process.join()
        self.kills += 1
        if role.readers:
            role.readers.killed += 1
        if role.stream:
            role.stream.cut()
        self._processes[place] = (role, self._begin(role))

    def complaints(self) -> list[str]:
        """Return the errors that made clients give up."""
        return self._complaints.read_text().splitlines() if self._complaints.exists() else []

    def join(self) -> list[str]:
        """Wait until all have ended; kill those that do not, and return their names."""
        deadline = time.monotonic() + JOIN_S
        for _, process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
        late = [role.name for role, process in self._processes if process.is_alive()]
        for _, process in self._processes:
            process.kill()
        return late


def sample(server: Server, data: Path, seconds: float) -> dict[str, float]:
    """Return the server's memory, descriptors, threads and disk usage."""
    process = psutil.Process(server.pid)
    return {
        "seconds": seconds,
        "resident_mb": server.resident_bytes() / MB,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "disk_mb": disk_bytes(data) / MB,
    }


def disk_bytes(directory: Path) -> int:
    """Return the bytes allocated to the files of a directory, without files that are deleted meanwhile."""
    allocated = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                allocated += (Path(parent) / name).lstat().st_blocks * BLOCK_BYTES
    return allocated


def growth(samples: list[dict[str, float]], key: str) -> tuple[float, float]:
    """Return the medians of the second and the last quarter of the time."""
    quarter = max(len(samples) // 4, 1)
    values = [one[key] for one in samples]
    return median(values[quarter : 2 * quarter] or values), median(values[-quarter:])


def watch(
    soak: Soak, clients: Clients, data: Path, seconds: float, kill_every_s: float, chance: random.Random
) -> list[dict[str, float]]:
    """Take samples and kill clients for so many seconds, or until a client complains."""
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    next_kill_s = chance.expovariate(1 / kill_every_s)
    with progress(int(seconds)) as step:
        try:
            while (passed := time.monotonic() - began) < seconds and not clients.complaints():
                samples.append(sample(soak.server, data, passed))
                if passed >= next_kill_s:
                    clients.kill(chance)
                    next_kill_s = passed + chance.expovariate(1 / kill_every_s)
                step(f"{clients.kills} clients killed", 1)
                time.sleep(SAMPLE_S)
        except KeyboardInterrupt:
            step("interrupted", 0)
    return samples


def drain(soak: Soak, clients: Clients, seconds: float) -> bool:
    """Have the readers drain all queues; return whether these are empty within so many seconds."""
    soak.phase = DRAIN
    client, deadline, empty = soak.client(), time.monotonic() + seconds, False
    while not empty and not clients.complaints() and time.monotonic() < deadline:
        time.sleep(0.2)
        stats = client.stats()
        left = [
            name
            for name, value in stats.items()
            if value and (name == b"curr_items" or name.endswith((b"_open_transactions", b"_delayed_items")))
        ]
        empty = not left
    soak.phase = END
    return empty


def judge(
    accounts: list[Account], samples: list[dict[str, float]], tolerance: float
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return the violations in accounts and samples, and the growth of each figure."""
    wrong = [violation for account in accounts for violation in account.violations]
    grown = {}
    for key in FLAT:
        second, last = growth(samples, key)
        grown[key] = {"second_quarter": second, "last_quarter": last}
        if last > second * (1 + tolerance / 100):
            wrong.append(f"{SERIES[key]} grew: {second:.1f} in the second quarter, {last:.1f} in the last")
    return wrong, grown


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("--minutes", 60.0, click.FloatRange(0.02, 10_000))
@option("--rate", 100.0, click.FloatRange(1, 10_000), "Sets a second and stream.")
@option("--backlog", 50_000, options.BACKLOG_ITEMS, "Items of 1 KB that stay in a queue.")
@option("--large", 2048, click.IntRange(1, 4096), "KiB of a large item, at most.")
@option("--kill-every", 5.0, click.FloatRange(0.1), "Seconds, in the mean.")
@option("--tolerance", 10.0, click.FloatRange(0), "Percent that are no growth.")
@option("--drain-for", 300.0, click.FloatRange(1), "Seconds that reading what is left may take.")
@options.seed("Of the kills.")
@options.data_in
@options.files
def main(
    minutes: float,
    rate: float,
    backlog: int,
    large: int,
    kill_every: float,
    tolerance: float,
    drain_for: float,
    seed: int | None,
    data_in: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Run the soak and report."""
    seed = random.randrange(1 << 32) if seed is None else seed
    started = now()
    with own_server(data_in, CONFIGURATION) as darner, tempfile.TemporaryDirectory() as scratch:
        server = darner.start()
        soak = Soak(server, rate, backlog, minutes * 60, large << 10)
        client = soak.client()
        for queue in FANOUT:
            client.get(queue)  # creates the child: from now on it gets the items of its parent
        all_roles, readers = roles(soak)
        clients = Clients(soak, all_roles, Path(scratch) / "complaints")
        samples = watch(soak, clients, darner.data, minutes * 60, kill_every, random.Random(seed))
        if not darner.running:
            raise click.ClickException(f"the server ended:\n{darner.log()}")
        empty = drain(soak, clients, drain_for)
        late = clients.join()
        accounts = [one.account() for one in readers]
        wrong, grown = judge(accounts, samples, tolerance)
        wrong += [] if empty else ["the queues did not become empty"]
        # Items that a client has not read because it gave up are not lost: its complaint counts.
        wrong = clients.complaints() or wrong + [f"{name} does not end" for name in late]
        darner.stop()
        wrong += [line for line in darner.log().splitlines() if "level=error" in line or "Traceback" in line]
    report = {
        "bench": "soak",
        "about": f"everything at once for {minutes:g} minutes, {clients.kills} clients killed",
        **circumstances(started),
        "seed": seed,
        "kills": clients.kills,
        "series": SERIES,
        "growth": grown,
        "accounts": [asdict(account) for account in accounts],
        "wrong": wrong,
        "samples": samples,
    }
    say(report)
    write(report, json_file, plot_file)
    if wrong:
        sys.exit(1)


def say(report: dict[str, Any]) -> None:
    """Print the report."""
    click.echo(f"soak: {report['about']} (seed {report['seed']})")
    for one in report["accounts"]:
        cut = f" of at most {one['may_be_lost']} that killed readers had" if one["may_be_lost"] else ""
        click.echo(
            f"{one['queue']:<10}{one['stored']:>12,} acknowledged {one['seen']:>12,} seen"
            f" {one['again']:>6,} again {one['lost']:>4} unseen{cut}"
        )
    for key, found in report["growth"].items():
        second, last = found["second_quarter"], found["last_quarter"]
        click.echo(f"{SERIES[key]:<14}{second:.1f} in the second quarter, {last:.1f} in the last")
    for line in report["wrong"] or ["nothing acknowledged was lost; memory and descriptors were flat"]:
        click.echo(f"{'WRONG: ' if report['wrong'] else ''}{line}")


if __name__ == "__main__":
    main()

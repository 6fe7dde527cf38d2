#!/usr/bin/env python3
"""Everything at once for an hour, on a darner of its own: is anything lost, does anything grow?

Each client is a process: those who set items in numbered streams, and those who read them, plainly, reliably
(some die with what they hold), by monitor, from fanout queues, after expiry; some have large items, some come
and go, some make, flush and delete queues. Every few seconds one is killed and replaced. Each second the
server's memory, descriptors, threads and disk usage are noted. In the end all that is left is read, and each
stream is held against what was seen of it. Exits 1 if something acknowledged was lost, came twice or out of
order, or if memory or descriptors grew from the second quarter of the time to the last.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import struct
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
import ledger
import own
import plot
import psutil  # type: ignore[import-untyped,unused-ignore]
import rounds
from ledger import Account, Readers, Stream
from pymemcache.client.base import Client  # type: ignore[import-untyped,unused-ignore]
from servers import Server

RUN, DRAIN, END = range(3)
MB = 1e6
SAMPLE_S = 1.0
TIMEOUT_S = 60.0
# How long the clients may take to end.
JOIN_S = 30.0
BLOCK_BYTES = 512  # the unit of st_blocks
CONFIGURATION = '[queues."short"]\nexpire_to_queue = "late"\n'
# Of those who hold an item, one in so many goes with it; of the large items, one in so many comes in part.
GOES_WITH_IT, IN_PART = 200, 5
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
    """What all clients know."""

    def __init__(self, server: Server, rate: float, backlog: int, seconds: float, large: int) -> None:
        self.server, self.rate, self.backlog, self.large = server, rate, backlog, large
        self._phase = ledger.Number()
        self._parent = os.getpid()
        # Pauses are at least as long as said: no stream has more.
        capacity = int(rate * seconds * 2) + backlog + 10_000
        names = ("plain", "jobs", "deep", "large", "fan", "short", "watched")
        self.streams = {name: Stream(name, capacity) for name in names}

    @property
    def phase(self) -> int:
        """RUN: all do what they do. DRAIN: only reads, and nobody dies. END: all end."""
        return self._phase.get() if os.getppid() == self._parent or os.getpid() == self._parent else END

    @phase.setter
    def phase(self, phase: int) -> None:
        self._phase.set(phase)

    def client(self) -> Client:
        """Return a client that waits for replies."""
        address = (self.server.host, self.server.port)
        return Client(address, default_noreply=False, connect_timeout=TIMEOUT_S, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Role:
    """What one client does; for readers, and for who sets a stream, whose account it is."""

    name: str
    work: Callable[[], None]
    readers: Readers | None = None
    stream: Stream | None = None


def produce(soak: Soak, stream: Stream, key: Callable[[int], str], size: int, expire: int = 0) -> None:
    """Set one item after the other; the first of `deep` without a pause, up to its backlog."""
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
    """Get items; as long as others set, only what is beyond a backlog to keep, and with pauses."""
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
    """Reserve and close; now and then go with what is held."""
    client, chance, held = soak.client(), random.Random(), None
    while (phase := soak.phase) != END:
        if held is not None:
            if phase == RUN and chance.randrange(GOES_WITH_IT) == 0:
                client.close()  # the next request connects anew
            else:
                readers.see(held)  # once close is sent nobody else may get it
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
                raise ledger.LedgerError(f"{readers.queue}: what was monitored was not to be confirmed")


def _monitored(replies: IO[bytes]) -> Iterator[bytes]:
    while (line := replies.readline()) != b"END\r\n":
        if not line.startswith(b"VALUE "):
            raise ledger.LedgerError(f"monitor was answered by {line!r}")
        size = int(line.split()[3])
        yield replies.read(size)
        replies.read(len(b"\r\nEND\r\n"))


def follow(soak: Soak, stream: Stream) -> None:
    """Read a queue through a cursor, which must not go back."""
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
    """Connect, ask for something or for a part of it, and go politely or not."""
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
            if chance.random() < 0.5:  # a reset instead of an end
                guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            guest.close()


def make_and_drop(soak: Soak) -> None:
    """Fill queues, read a little, flush or delete them."""
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
    """Return all that is going on, and whose accounts are to be held."""
    streams = soak.streams
    plain, deep, large, *fan = (
        Readers(streams[stream], queue, once=True, in_order=True)
        for stream, queue in (
            ("plain", "plain"), ("deep", "deep"), ("large", "large"), *(("fan", queue) for queue in FANOUT)
        )
    )  # fmt: skip
    jobs, watched = (Readers(streams[name], name, once=False) for name in ("jobs", "watched"))
    # Who comes in time, and who gets what has expired: together they have each item once.
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
    """The processes of all roles, and what they complained of."""

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
        """Kill one, note what that may have cost, and have another go on."""
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
        """Return what made clients give up."""
        return self._complaints.read_text().splitlines() if self._complaints.exists() else []

    def join(self) -> list[str]:
        """Wait until all have ended; returns the names of those that do not."""
        deadline = time.monotonic() + JOIN_S
        for _, process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
        late = [role.name for role, process in self._processes if process.is_alive()]
        for _, process in self._processes:
            process.kill()
        return late


def sample(server: Server, data: Path, seconds: float) -> dict[str, float]:
    """Return what the server takes now."""
    process = psutil.Process(server.pid)
    return {
        "seconds": seconds,
        "resident_mb": server.resident_bytes() / MB,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "disk_mb": disk_bytes(data) / MB,
    }


def disk_bytes(directory: Path) -> int:
    """Return what is allocated to the files of a directory. Those that go meanwhile do not count."""
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
    """Take samples and kill clients for so long, or until a client complains."""
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    next_kill_s = chance.expovariate(1 / kill_every_s)
    with rounds.progress(int(seconds)) as step:
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
    """Have the readers read all that is left; returns whether they came to the end within so long."""
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
    """Return what is wrong with the accounts and the samples, and the growths."""
    wrong = [violation for account in accounts for violation in account.violations]
    grown = {}
    for key in FLAT:
        second, last = growth(samples, key)
        grown[key] = {"second_quarter": second, "last_quarter": last}
        if last > second * (1 + tolerance / 100):
            wrong.append(f"{SERIES[key]} grew: {second:.1f} in the second quarter, {last:.1f} in the last")
    return wrong, grown


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0.02, 10_000))
@click.option(
    "--rate",
    default=100.0,
    show_default=True,
    type=click.FloatRange(1, 10_000),
    help="Sets a second and stream.",
)
@click.option(
    "--backlog",
    default=50_000,
    show_default=True,
    type=rounds.ITEMS,
    help="Items of 1 KB that stay in a queue.",
)
@click.option(
    "--large",
    default=2048,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="KiB of a large item, at most.",
)
@click.option(
    "--kill-every", default=5.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, in the mean."
)
@click.option(
    "--tolerance",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Percent that are no growth.",
)
@click.option(
    "--drain-for",
    default=300.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds that reading what is left may take.",
)
@click.option("--seed", default=None, type=int, help="Of the kills.  [default: random]")
@own.data_in
@rounds.files
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
    """Run the soak and say what came of it."""
    seed = random.randrange(1 << 32) if seed is None else seed
    started = rounds.now()
    with own.darner(data_in, CONFIGURATION) as darner, tempfile.TemporaryDirectory() as scratch:
        server = darner.start()
        soak = Soak(server, rate, backlog, minutes * 60, large << 10)
        client = soak.client()
        for queue in FANOUT:
            client.get(queue)  # from now on a child gets what its parent gets
        all_roles, readers = roles(soak)
        clients = Clients(soak, all_roles, Path(scratch) / "complaints")
        samples = watch(soak, clients, darner.data, minutes * 60, kill_every, random.Random(seed))
        if not darner.running:
            raise click.ClickException(f"the server ended:\n{darner.log()}")
        empty = drain(soak, clients, drain_for)
        late = clients.join()
        accounts = [one.account() for one in readers]
        wrong, grown = judge(accounts, samples, tolerance)
        wrong += [] if empty else ["the queues did not come to be empty"]
        # What a client that gave up has not read is not lost: its complaint is what counts.
        wrong = clients.complaints() or wrong + [f"{name} does not end" for name in late]
        darner.stop()
        wrong += [line for line in darner.log().splitlines() if "level=error" in line or "Traceback" in line]
    report = {
        "bench": "soak",
        "about": f"everything at once for {minutes:g} minutes, {clients.kills} clients killed",
        **rounds.circumstances(started),
        "seed": seed,
        "kills": clients.kills,
        "series": SERIES,
        "growth": grown,
        "accounts": [asdict(account) for account in accounts],
        "wrong": wrong,
        "samples": samples,
    }
    say(report)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    if plot_file:
        plot.draw(report, plot_file)
    if wrong:
        sys.exit(1)


def say(report: dict[str, Any]) -> None:
    """Print what came of it."""
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

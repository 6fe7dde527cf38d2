#!/usr/bin/env python3
"""Proof by ledger through `darner.client`: nothing is lost, and with an id nothing is stored twice.

Servers and workers are killed at random. Threads put items through one `Client`, one by one and by
`put_many`, with an `id` and without, and put again whatever they got no reply for. Worker processes, of
`darner.work` and with `reserve` and `reserve_many`, note each item they are given and close it. Again and
again one of the servers or workers is killed by SIGKILL and started anew. In the end the workers drain
the queues, and the ledger must add up:

- Each item whose put was acknowledged was handled, unchanged, and the queues are empty.
- An item put with an `id` was stored once. All its deliveries are of one server, and of one number but for
  failures: an item that is put back with a pause gets a new one, and its attempts go on.
- An item put without was stored once more, at most, for each reply to it that was lost.
- An item was delivered again only because its worker failed, was killed, or lost its server: each kill
  excuses as many as the workers may hold.

With `--servers 2` the client has a fleet.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner.client import (
    Client,
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    ProtocolError,
    PutManyError,
)
from load import options
from load.options import option
from load.servers import free_port
from single import ledger_worker
from single.own_server import OwnServer

WITH_ID, WITHOUT = "with-id", "without"
PRODUCERS = 4
BATCH_MAX = 20
OPEN_READS = 8
# How the workers work, one each: with `darner.work`, or in a loop of their own.
WORKERS = ("work", "work", "reserve", "reserve_many")
CONFIGURATION = f"queue_defaults.max_open_reads = {OPEN_READS}\n"
# Sizes of items: some go to a file of their own.
SIZES = (0, 100, 100, 2_000, 2_000, 100_000)
# How often a producer puts items with ids again that were acknowledged.
FORGETS = 0.05
# How many items may be under way, so that the end does not take longer than the rest.
BACKLOG = 2_000
# The time between kills.
PAUSE_S = (0.05, 0.5)
DRAIN_S = 120.0


class ViolationError(Exception):
    """The ledger does not add up."""


@dataclass(frozen=True)
class Delivery:
    """One line of a worker."""

    outcome: str
    queue: str
    server: str
    id: int
    attempts: int
    name: str

    @property
    def copy(self) -> tuple[str, str, int]:
        """Name the stored item that was delivered."""
        return self.queue, self.server, self.id


class Deliveries:
    """What the workers have noted, read as it grows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Delivery] = []
        self.names: set[str] = set()
        self._read: dict[Path, int] = {}

    def read(self) -> None:
        """Read what has come since; the line that a kill cut off does not count."""
        for path in self.directory.iterdir():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(lines) + len(newline)
            for line in lines.decode().splitlines():
                outcome, queue, server, id, attempts, name = line.split(" ")
                self.all.append(Delivery(outcome, queue, server, int(id), int(attempts), name))
                if outcome == ledger_worker.DONE:
                    self.names.add(name)


@dataclass
class Ledger:
    """What the producers have put, by name."""

    acknowledged: set[str] = field(default_factory=set)
    # by name: how many of its puts had no reply
    lost_replies: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    puts: int = 0

    def add(self, other: "Ledger") -> None:
        """Add what another producer has put."""
        self.acknowledged |= other.acknowledged
        self.lost_replies += other.lost_replies
        self.refused += other.refused
        self.puts += other.puts


class Producer:
    """A thread that puts items until it is told to end, each until it is acknowledged."""

    def __init__(self, number: int, client: Client, room: Callable[[], bool], end: threading.Event) -> None:
        self.ledger = Ledger()
        self._number, self._client, self._room, self._end = number, client, room, end
        self._items = 0
        self._chance = random.Random(number)

    def run(self) -> None:
        """Put items of all kinds."""
        while not self._end.is_set():
            if not self._room():
                self._end.wait(0.05)
                continue
            with_id = self._chance.random() < 0.5
            count = self._chance.choice((1, 1, self._chance.randint(2, BATCH_MAX)))
            items = dict(self._item() for _ in range(count))
            # As of a program that was killed before it could note the acknowledgement.
            forgets = with_id and self._chance.random() < FORGETS
            for _ in range(1 + forgets):
                left = items
                while left:
                    left = self._put(left, with_id=with_id)

    def _item(self) -> tuple[str, bytes]:
        self._items += 1
        name = f"{self._number}-{self._items}"
        return name, ledger_worker.item_of(name, os.urandom(self._chance.choice(SIZES)))

    def _put(self, items: dict[str, bytes], *, with_id: bool) -> dict[str, bytes]:
        """Put items; return those that may not be stored. Raise errors that no kill explains."""
        self.ledger.puts += 1
        outcomes: Sequence[ClientError | None] = [None] * len(items)
        try:
            self._put_once(list(items), list(items.values()), with_id=with_id)
        except PutManyError as error:
            outcomes = error.outcomes
        except ClientError as error:
            outcomes = [error] * len(items)
        left = {}
        for name, outcome in zip(items, outcomes, strict=True):
            match outcome:
                case None:
                    self.ledger.acknowledged.add(name)
                    continue
                case ProtocolError():
                    raise outcome
                case ConnectionLostError():
                    self.ledger.lost_replies[name] += 1
                case ConnectionFailedError():
                    self.ledger.refused[name] += 1
                case _:
                    raise outcome
            left[name] = items[name]
        if left:
            time.sleep(0.02)  # the server is being started
        return left

    def _put_once(self, names: list[str], values: list[bytes], *, with_id: bool) -> None:
        if len(names) > 1:
            queue, ids = (WITH_ID, names) if with_id else (WITHOUT, None)
            self._client.put_many(queue, values, ids=ids)
        elif with_id:
            self._client.put(WITH_ID, values[0], id=names[0])
        else:
            self._client.put(WITHOUT, values[0])


class Worker:
    """A worker process in one life after the other."""

    def __init__(self, how: str, servers: list[str], directory: Path) -> None:
        self._command = [sys.executable, "-m", "darner.work", "single.ledger_worker:handle"]
        for queue in (WITH_ID, WITHOUT):
            self._command += ["--queue", queue]
        for server in servers:
            self._command += ["--server", server]
        self._command += ["--concurrency", str(OPEN_READS), "--first-pause", "50ms"]
        if how != "work":
            script = Path(ledger_worker.__file__)
            self._command = [sys.executable, str(script), how, ",".join(servers), WITH_ID, WITHOUT]
        deliveries = directory / "deliveries"
        deliveries.mkdir(exist_ok=True)
        bench = Path(__file__).parents[1]
        self._environment = {**os.environ, ledger_worker.DIRECTORY: str(deliveries), "PYTHONPATH": str(bench)}
        self._log = directory / "workers.log"
        self.start()

    def start(self) -> None:
        """Start the process; it takes items as soon as it is up."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """End the process by SIGKILL; ViolationError if it has ended by itself."""
        if self._process.poll() is not None:
            raise ViolationError(f"a worker ended:\n{self._log.read_text()[-2000:]}")
        self.end()

    def end(self) -> None:
        """End the process if it runs."""
        self._process.kill()
        self._process.wait()


class Run:
    """Servers, workers and producers, all at work; `ends` is closed when they are to end."""

    def __init__(self, directory: Path, servers: int, ends: ExitStack) -> None:
        ports = [free_port() for _ in range(servers)]
        self.servers = [OwnServer(directory / str(port), CONFIGURATION, port=port) for port in ports]
        for server in self.servers:
            ends.callback(server.discard)
            server.start()
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.workers: list[Worker] = []
        for how in WORKERS:
            self.workers.append(Worker(how, self.addresses, directory))
            ends.callback(self.workers[-1].end)
        self.deliveries = Deliveries(directory / "deliveries")
        self._client = ends.enter_context(Client(self.addresses))
        self._end = threading.Event()
        self._producers = [Producer(n, self._client, self._has_room, self._end) for n in range(PRODUCERS)]
        self._pool = ends.enter_context(ThreadPoolExecutor(PRODUCERS))
        ends.callback(self._end.set)
        self._puts = [self._pool.submit(producer.run) for producer in self._producers]
        self.kills: Counter[str] = Counter()
        self.duplicates = 0

    def _has_room(self) -> bool:
        put = sum(len(producer.ledger.acknowledged) for producer in self._producers)
        return put - len(self.deliveries.names) < BACKLOG

    def kill(self, chance: random.Random) -> None:
        """Wait a little, kill a server or a worker, and start it again."""
        time.sleep(chance.uniform(*PAUSE_S))  # the instant of the kill, which depends on nothing
        if chance.random() < 0.5:
            server = chance.choice(self.servers)
            self._count_duplicates(self.addresses[self.servers.index(server)])
            server.kill()
            self.kills["server"] += 1
            time.sleep(chance.choice((0, 0.2)))  # how long it is down
            server.start()
        else:
            worker = chance.choice(self.workers)
            worker.kill()
            self.kills["worker"] += 1
            worker.start()
        self.deliveries.read()
        for puts in self._puts:
            if puts.done():
                puts.result()

    def end_puts(self) -> Ledger:
        """Let the producers end, and return what they have put."""
        self._end.set()
        self._pool.shutdown()
        whole = Ledger()
        for puts, producer in zip(self._puts, self._producers, strict=True):
            puts.result()
            whole.add(producer.ledger)
        return whole

    def drain(self, names: set[str]) -> None:
        """Wait until these items are handled and the queues empty; ViolationError if that takes too long."""
        deadline = time.monotonic() + DRAIN_S
        while missing := names - self.deliveries.names or self._left():
            if time.monotonic() > deadline:
                raise ViolationError(f"still not handled: {str(missing)[:200]}")
            time.sleep(0.1)
            self.deliveries.read()

    def _count_duplicates(self, address: str) -> None:
        """Note how many puts a server has recognized in this life."""
        with Client(address) as client:
            queue = client.queues().get(WITH_ID)
            self.duplicates += queue.duplicates if queue else 0

    def _left(self) -> int:
        """Count the items in the queues: waiting, delayed and reserved ones."""
        left = 0
        for address in self.addresses:
            with Client(address) as client:
                for queue in client.queues().values():
                    left += queue.items + queue.delayed_items + queue.open_transactions
        return left

    def count_duplicates(self) -> None:
        """Note how many puts the servers have recognized in their last lives."""
        for address in self.addresses:
            self._count_duplicates(address)


def stored(deliveries: list[Delivery]) -> int:
    """Return how many times an item was stored, by all its deliveries on one server.

    Those of one number are of one copy. A copy that is put back with a pause gets a new number: so one that
    failed goes on as a later number that was delivered before.
    """
    numbers: defaultdict[int, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        numbers[delivery.id].append(delivery)
    count = 0
    put_back: list[int] = []  # the attempts of each copy that failed and is not found again yet
    for _, found in sorted(numbers.items()):
        first = min(delivery.attempts for delivery in found)
        before = [attempts for attempts in put_back if attempts < first]
        if before:
            put_back.remove(max(before))
        else:
            count += 1
        put_back += [delivery.attempts for delivery in found if delivery.outcome == ledger_worker.FAILED][-1:]
    return count


def account(
    ledger: Ledger, deliveries: list[Delivery], kills: Counter[str]
) -> tuple[dict[str, int], list[str]]:
    """Return what there is to count, and what does not add up."""
    handled = {delivery.name for delivery in deliveries if delivery.outcome == ledger_worker.DONE}
    by_item: defaultdict[tuple[str, str, str], list[Delivery]] = defaultdict(list)
    given: Counter[tuple[str, str, int]] = Counter()
    for delivery in deliveries:
        by_item[delivery.queue, delivery.name, delivery.server].append(delivery)
        given[delivery.copy] += 1
    copies: Counter[tuple[str, str]] = Counter()
    for (queue, name, _), found in by_item.items():
        copies[queue, name] += stored(found)
    failed = Counter(delivery.copy for delivery in deliveries if delivery.outcome == ledger_worker.FAILED)
    again = sum((given - failed).values()) - len(given - failed)
    twice = [name for (queue, name), count in copies.items() if queue == WITH_ID and count > 1]
    extra = {name: count - 1 for (queue, name), count in copies.items() if queue == WITHOUT}
    unexcused = [name for name, count in extra.items() if count > ledger.lost_replies[name]]
    excused = OPEN_READS * len((WITH_ID, WITHOUT)) * (kills["worker"] + kills["server"] * len(WORKERS))
    lost = ledger.acknowledged - handled
    violations = []
    if lost:
        violations.append(f"{len(lost)} acknowledged items are lost: {sorted(lost)[:5]}")
    if strange := {name for _, name in copies} - ledger.acknowledged:
        violations.append(f"{len(strange)} items came that nobody has put: {sorted(strange)[:5]}")
    if twice:
        violations.append(f"{len(twice)} items were put with an id and stored twice")
    if unexcused:
        violations.append(f"{len(unexcused)} items were stored more often than replies were lost")
    violations += [str(delivery) for delivery in deliveries if delivery.name in (twice + unexcused)[:5]]
    if again > excused:
        violations.append(f"{again} items were delivered again, {excused} at most by {kills.total()} kills")
    figures = {
        "kills of a server": kills["server"],
        "kills of a worker": kills["worker"],
        "puts": ledger.puts,
        "items acknowledged": len(ledger.acknowledged),
        "acknowledged and lost": len(lost),
        "items put again: the reply was lost": ledger.lost_replies.total(),
        "items put again: no connection": ledger.refused.total(),
        "stored twice, with an id": len(twice),
        "stored twice, without": sum(extra.values()),
        "deliveries": len(deliveries),
        "delivered again after a failure": failed.total(),
        "delivered again after a kill": again,
    }
    return figures, violations


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("--kills", 20, click.IntRange(0), "How often to kill.")
@option("--servers", 1, click.IntRange(1, 8), "How many servers.")
@options.seed("Of the moments to kill at.")
def main(kills: int, servers: int, seed: int | None) -> None:
    """Run the proof and print the result."""
    seed = random.randrange(1 << 32) if seed is None else seed
    chance = random.Random(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="darner-client-ledger-") as directory, ExitStack() as ends:
        run = Run(Path(directory), servers, ends)
        for _ in range(kills):
            run.kill(chance)
        ledger = run.end_puts()
        run.drain(ledger.acknowledged)
        run.count_duplicates()
        figures, violations = account(ledger, run.deliveries.all, run.kills)
        figures["puts that a server recognized"] = run.duplicates
    click.echo(f"seed {seed}, {servers} servers, {time.monotonic() - started:.1f} s")
    for name, figure in figures.items():
        click.echo(f"{figure:10} {name}")
    for violation in violations:
        click.echo(f"VIOLATION: {violation}")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()

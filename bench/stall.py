#!/usr/bin/env python3
"""The longest wait of a small client under mixed load.

The load lasts some minutes on one server after the other: small sets and gets on several queues; 1 KB items
through a queue with a large backlog, so that LevelDB has to compact; items of 8 MiB; large queues that are
filled, then flushed or deleted. One more client sets and gets small items in these queues and in the one with
the backlog, at a fixed rate. The report is about the waits of this client.

A wait begins when the request was due, so that requests behind a late one count, too. The time that the
client itself waited for a core, as the kernel counts it, is taken off. The load runs at a lower priority.
"""

import array
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from statistics import quantiles

import click

from load import options, raw
from load.servers import MIB, Server, ServerError
from suite import rounds
from suite.report import Cell, Column, Measured, Report, Results, base_of

SMALL_BYTES, BACKLOG_BYTES = 64, 1024
SMALL_QUEUES = 8
NICER = 10
# A load runs in pieces of this length, as its driver keeps every latency in memory.
PIECE_S = 5.0
# A queue that is flushed or deleted is filled with so many items, or for so long.
DROPPED_ITEMS, DROPPED_S = 100_000, 2.0
LATE_S = 60.0
PARTS = 1000


@dataclass
class Loaded:
    """The requests and errors of one kind of load."""

    requests: int = 0
    seconds: float = 0.0
    errors: int = 0
    first_error: str = ""

    def add(self, result: raw.Result) -> None:
        """Add the result of one piece."""
        self.requests += result.requests
        self.seconds += result.seconds
        self.errors += result.errors
        self.first_error = self.first_error or result.first_error


def load(server: Server, what: raw.Load, seconds: float) -> Loaded:
    """Repeat a load for so many seconds."""
    loaded, end = Loaded(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        loaded.add(raw.run(server, replace(what, seconds=max(min(left, PIECE_S), 0.1))))
    return loaded


def drop(server: Server, queue: str, seconds: float) -> Loaded:
    """Fill a queue and flush or delete it, in turn, for so many seconds."""
    loaded, end = Loaded(), time.monotonic() + seconds
    fill = raw.Load(1, DROPPED_ITEMS, pipeline=raw.FILL_PIPELINE, gets=0, size=BACKLOG_BYTES, queue=queue)
    verbs = [b"flush", b"delete"]
    with server.connect() as connection:
        while (left := end - time.monotonic()) > 0:
            loaded.add(raw.run(server, replace(fill, seconds=max(min(left, DROPPED_S), 0.1))))
            server.ask(connection, b"%s %s\r\n" % (verbs[0], queue.encode()))
            verbs.reverse()
    return loaded


@dataclass
class Client:
    """The small client whose waits are measured."""

    server: Server
    queues: list[tuple[str, int]]
    rate: float
    waits_us: list["array.array[float]"] = field(default_factory=list)
    longest_request: list[str] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""

    def requests(self) -> list[tuple[bytes, bytes]]:
        """Return each request, with the end of its reply."""
        found = []
        for queue, size in self.queues:
            name = queue.encode()
            found.append((b"set %s 0 0 %d\r\n%s\r\n" % (name, size, b"x" * size), b"\n"))
            found.append((b"get %s\r\n" % name, b"END\r\n"))
        return found

    def run(self, minutes: float, minute_ended: Callable[[], None]) -> None:
        """Send requests for so many minutes, and keep the waits of each minute."""
        requests, end = cycle(self.requests()), time.perf_counter() + minutes * 60
        with self.server.connect() as connection, Path("/proc/thread-self/schedstat").open("rb", 0) as waited:

            def clock() -> float:
                # It stands while this thread is ready and has no core: the server has no part in that.
                return time.perf_counter() - int(os.pread(waited.fileno(), 100, 0).split()[1]) / 1e9

            due = clock()
            while (now := time.perf_counter()) < end:
                minute_end = min(now + 60, end)
                waits, longest_us, longest = array.array("f"), 0.0, b""
                while time.perf_counter() < minute_end:
                    early = due - clock()
                    if early > 0:
                        time.sleep(early)
                        due = clock()  # a sleep that was too long is none of the server's
                    request, last = next(requests)
                    reply = self.server.ask(connection, request, last)
                    wait_us = (clock() - due) * 1e6
                    due += 1 / self.rate
                    waits.append(wait_us)
                    if wait_us > longest_us:
                        longest_us, longest = wait_us, request.partition(b"\r")[0]
                    if b"ERROR" in reply:
                        self.errors += 1
                        self.first_error = self.first_error or reply.decode("ascii", "replace").strip()
                self.waits_us.append(waits)
                self.longest_request.append(longest.decode())
                minute_ended()


def figures(waits_us: "array.array[float]") -> dict[str, float]:
    """Return the percentiles of waits, in ms."""
    if len(waits_us) < 2:
        raise ServerError("too little was measured: raise --minutes or --rate")
    parts = quantiles(waits_us, n=PARTS, method="inclusive")
    return {
        "max_ms": max(waits_us) / 1000,
        "p999_ms": parts[998] / 1000,
        "p99_ms": parts[989] / 1000,
        "p50_ms": parts[499] / 1000,
        "requests": len(waits_us),
    }


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.targets
@options.option("--minutes", 10.0, click.FloatRange(0.01, 180), "On each server.")
@options.option("--rate", 200.0, click.FloatRange(1, 10_000), "A second.")
@options.option("--backlog", 1_000_000, options.BACKLOG_ITEMS, "Items of 1 KB.")
@options.large_mib()
@options.option("-c --connections", 4, click.IntRange(1, 1000), "Of each small load.")
@options.files
def main(
    servers: tuple[Server, ...],
    base: str | None,
    minutes: float,
    rate: float,
    backlog: int,
    large: int,
    connections: int,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Run the bench."""
    base = base_of(servers, base)
    results = Results()
    results.describe(*servers)
    small, deep, big, dropped = (
        rounds.queue_name(f"stall-{name}") for name in ("small", "deep", "big", "drop")
    )
    mixed = {
        "small": raw.Load(connections, raw.ENDLESS, size=SMALL_BYTES, queue=small, queues=SMALL_QUEUES),
        "backlog": raw.Load(connections, raw.ENDLESS, size=BACKLOG_BYTES, queue=deep),
        "large": raw.Load(2, raw.ENDLESS, size=large * MIB, queue=big),
    }
    smalls = [f"{small}{number}" for number in range(SMALL_QUEUES)]

    def measure(server: Server, minute_ended: Callable[[], None]) -> tuple[Client, dict[str, Loaded]]:
        if backlog:
            raw.fill(server, deep, backlog, BACKLOG_BYTES)
        client = Client(server, [(deep, BACKLOG_BYTES)] + [(name, SMALL_BYTES) for name in smalls], rate)
        own_context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(len(mixed) + 1, own_context, initializer=os.nice, initargs=(NICER,)) as pool:
            futures: dict[str, Future[Loaded]] = {
                name: pool.submit(load, server, what, minutes * 60) for name, what in mixed.items()
            }
            futures["drop"] = pool.submit(drop, server, dropped, minutes * 60)
            client.run(minutes, minute_ended)
            return client, {name: future.result(LATE_S) for name, future in futures.items()}

    notes: list[str] = []
    whole_minutes = -int(-minutes // 1)
    with rounds.progress(len(servers) * whole_minutes) as step:
        for server in servers:
            doing = f"{server.name}: {backlog:,} items, then {minutes:g} minutes"
            step(doing, 0)
            try:
                client, loads = measure(server, lambda doing=doing: step(doing, 1))  # type: ignore[misc]
                pooled: array.array[float] = array.array("f")
                for minute, waits in enumerate(client.waits_us):
                    measured = Measured(figures(waits), error=client.first_error)
                    results.add(0, {"minute": minute + 1}, server, measured)
                    pooled.extend(waits)
                notes += _words(server, figures(pooled), client, loads)
            except ServerError as error:
                results.add(0, {"minute": 1}, server, Measured({}, error=error.message))
            server.delete(deep, big, dropped, *smalls)

    report = Report(
        name="stall",
        about=f"waits of a small client under mixed load beside {backlog:,} items of 1 KB, minute by minute",
        cells=[_minute(number) for number in range(1, whole_minutes + 1)],
        columns=[
            Column("max_ms", "longest ms", 2, compared=True),
            Column("p999_ms", "p99.9 ms", 2),
            Column("p99_ms", "p99 ms", 2),
            Column("p50_ms", "p50 ms", 3),
            Column("requests", "requests"),
        ],
        x="minute",
        drawn={
            "max_ms": "longest wait in a minute, ms",
            "p999_ms": "p99.9 of a wait, ms",
            "p99_ms": "p99 of a wait, ms",
        },
        conclude=lambda _: notes,
        store_note=": no backlog, a yardstick only",
    )
    results.publish(report, base, 1, json_file, plot_file)


def _minute(number: int) -> Cell:
    return {"minute": number}


def _words(server: Server, whole: dict[str, float], client: Client, loads: dict[str, Loaded]) -> list[str]:
    """Return the notes on a server: its waits over all minutes, and the load during them."""
    worst = max(range(len(client.waits_us)), key=lambda minute: max(client.waits_us[minute]))
    where = f"{client.longest_request[worst]}, minute {worst + 1}"
    served = ", ".join(f"{one.requests / one.seconds:,.0f}/s {name}" for name, one in loads.items())
    lines = [
        f"{server.name}: longest {whole['max_ms']:.1f} ms ({where}), of {whole['requests']:,.0f} requests",
        f"{server.name}: p99.9 {whole['p999_ms']:.2f} ms, p99 {whole['p99_ms']:.2f} ms",
        f"{server.name} at the same time served {served}",
    ]
    return lines + [
        f"{server.name}, load {name}: {one.errors} errors, the first: {one.first_error}"
        for name, one in loads.items()
        if one.errors
    ]


if __name__ == "__main__":
    main()

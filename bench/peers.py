#!/usr/bin/env python3
"""Darner and the queue servers that a user would pick instead: items a second, p99, CPU and memory.

It starts all of them itself, on one core, and loads one at a time from another. A server that is not there is
left out with a word. An item is put, got, or got reliably: so that it comes back if the client dies. For that
a client acknowledges the last item in the write that asks for the next, which is what darner's `/close/open`
does. A connection has one request under way; batches and prefetching would raise all rates.

The clients are sessions of each protocol on plain sockets (load/sessions.py), all in Python and of the same
shape. Client libraries were no choice: they cost several times what a server does for an item, and not the
same, so that their order would be that of the libraries. RabbitMQ is asked by `basic.get`: a consumer with a
prefetch of 1 costs it as much.

What a server had on disk when it answered is in a column: a rate counts only beside those that had as much.
Memory is what a server just started gains while so many items wait, scaled to a million.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from load import options, peers, raw, sessions
from load.peers import Peer
from load.servers import MB, Server, ServerError
from suite import rounds
from suite.report import Cell, Column, Measured, Median, label
from suite.rounds import Bench

WORKS = ("put", "get", "reliable")
WAITING = "waiting"
NAMES = tuple(peers.KINDS)
# A queue is filled for so long at most: what syncs each item is slow.
FILL_S = 5.0
FILL_WAITING_S = 120.0
SETTLE_S = 1.0
WARM_ITEMS = 2_000
# A request has to fit into a socket's buffer.
SIZE = click.IntRange(1, 8192)


def cores() -> tuple[int | None, int | None]:
    """Return the core of the servers and that of the client; none if there is but one."""
    several = sorted(os.sched_getaffinity(0))
    return (several[0], several[1]) if len(several) > 1 else (None, None)


def fill(peer: Peer, queue: str, size: int, items: int, seconds: float) -> int:
    """Put so many items, for so many seconds at most, and return how many."""
    with peer.sessions("put", sessions.FILL_CONNECTIONS, queue, raw.item_of(size)) as several:
        return sessions.fill(several, items, seconds)


def has(peer: Peer, work: str) -> bool:
    """Return whether a server can do this work."""
    return getattr(peer.SESSIONS, work) is not None


def do(peer: Peer, cell: Cell, queue: str, requests: int, seconds: float) -> raw.Result:
    """Do the work of a cell once, on a new queue."""
    work, size = str(cell["work"]), int(cell["size"])
    peer.make(queue, work)
    try:
        count = requests if work == "put" else fill(peer, queue, size, requests, FILL_S)
        with peer.sessions(work, int(cell["connections"]), queue, raw.item_of(size)) as several:
            return sessions.drive(peer, several, count, seconds)
    except OSError as error:
        raise ServerError(f"{peer.name}: {error}") from error
    finally:
        peer.delete(queue)


def memory(kind: peers.Kind, name: str, data_in: Path | None, size: int, items: int) -> float:
    """Return the MB that a million items take, by so many in a server of its own."""
    with peers.running({name: kind}, data_in, cores()[0]) as (peer,):
        queue = rounds.queue_name("peers")
        peer.make(queue, "put")
        time.sleep(SETTLE_S)
        before = peer.resident_bytes()
        count = fill(peer, queue, size, items, FILL_WAITING_S)
        time.sleep(SETTLE_S)
        return (peer.resident_bytes() - before) / MB / count * 1e6


def strength(one: Median) -> int:
    """Return how much a server had on disk when it answered: more is a higher number."""
    return peers.ON_DISK.index(one.remark)


def places(medians: list[Median]) -> list[str]:
    """Say where a server was faster than darner and had no less on disk."""
    rows, lines = 0, []
    measured = [one for one in medians if one.cell["work"] in WORKS and "rps" in one.figures]
    for own in (one for one in measured if one.server.startswith("darner")):
        rows += 1
        for one in measured:
            if (
                one.cell == own.cell
                and not one.server.startswith("darner")
                and strength(one) >= strength(own)
                and one.figures["rps"] > own.figures["rps"]
            ):
                times = one.figures["rps"] / own.figures["rps"]
                lines.append(f"{one.server} is {times:.2f} times {own.server}: {label(own.cell)}")
    return [f"in {rows} rows of darner's, ahead and with no less on disk: {len(lines)}", *lines]


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("--servers", ",".join(NAMES), options.words(NAMES), "Any of these.")
@click.option(
    "--original",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The program of the original darner.",
)
@options.option("-c --connections", "1,100", options.numbers(options.CONNECTIONS))
@options.option("--sizes", "64,1024", options.numbers(SIZE), "Bytes of an item.")
@options.requests(100_000)
@options.option("--seconds", 3.0, options.SECONDS, "At most, a measurement.")
@options.option("--waiting", 100_000, options.BACKLOG_ITEMS, "Items whose memory is measured; 0: not at all.")
@rounds.repeated(5)
@options.option("--base", NAMES[0], str, "The server the others are compared to.")
@options.data_in
@options.files
def main(
    servers: list[str],
    original: Path | None,
    connections: list[int],
    sizes: list[int],
    requests: int,
    seconds: float,
    waiting: int,
    data_in: Path | None,
    **common: Any,
) -> None:
    """Measure the servers side by side."""
    # so that it ends the servers when it is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = peers.available(servers, original)
    server_core, client_core = cores()
    if client_core is not None:
        os.sched_setaffinity(0, {client_core})
    queue = rounds.queue_name("peers")
    known: set[tuple[str, int]] = set()

    def begin(server: Server) -> None:
        for work in WORKS:
            if has(peer := _peer(server), work):
                do(peer, {"work": work, "connections": 1, "size": sizes[0]}, queue, WARM_ITEMS, seconds)

    def measure(server: Server, cell: Cell) -> Measured:
        peer, work, size = _peer(server), str(cell["work"]), int(cell["size"])
        if work == WAITING:
            # once, and once for a server that is there twice: in memory both are alike
            if (peer.name, size) in known or peer.name.endswith("-sync"):
                return Measured({})
            known.add((peer.name, size))
            return Measured({"memory_mb": memory(kinds[peer.name], peer.name, data_in, size, waiting)})
        if not has(peer, work):
            return Measured({})
        measured = Measured.of(result := do(peer, cell, queue, requests, seconds))
        in_ms = {"p50_ms": result.p50_us / 1e3, "p99_ms": result.p99_us / 1e3, "max_ms": result.max_us / 1e3}
        return replace(measured, figures=measured.figures | in_ms)

    def on_disk(cell: Cell, name: str) -> str:
        work = str(cell["work"])
        return "" if work == WAITING else kinds[name].peer.ON_DISK[WORKS.index(work)]

    works: list[Cell] = [
        {"work": work, "connections": count, "size": size}
        for work in WORKS
        for count in connections
        for size in sizes
    ]
    waits: list[Cell] = [
        {"work": WAITING, "connections": sessions.FILL_CONNECTIONS, "size": size} for size in sizes
    ]
    with peers.running(kinds, data_in, server_core) as running:
        bench = Bench(
            name="peers",
            about="items put, got, and got reliably"
            + (f"; memory of a million that wait, by {waiting:,}" if waiting else ""),
            cells=works + (waits if waiting else []),
            measure=measure,
            columns=[
                Column("rps", "items/s", compared=True),
                Column("p50_ms", "p50 ms", 2),
                Column("p99_ms", "p99 ms", 2),
                Column("max_ms", "max ms", 1),
                Column("server_cpu_us", "server CPU us/item", 1),
                Column("memory_mb", "MB per million", 0),
                Column("server_busy", "server busy", 2),
                Column("client_busy", "client busy", 2),
            ],
            x="work",
            split="connections",
            split_words={
                str(count): f"{count:,} connection{'' if count == 1 else 's'}" for count in connections
            },
            drawn={
                "rps": f"items of {max(sizes):,} bytes a second, {{}}",
                "p99_ms": "p99 of an item, ms, {}",
            },
            only={"work": list(WORKS), "size": [max(sizes)]},
            remark=("on disk when answered", on_disk),
            begin=begin,
            conclude=places,
        )
        rounds.run(bench, running, warmup=0, **common)


def _peer(server: Server) -> Peer:
    assert isinstance(server, Peer)
    return server


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Resident memory after a queue has grown, and after it has shrunk again.

It needs the pid of each server, freshly started.
"""

import time
from typing import Any

import click

from load import options, raw
from load.servers import MB, Server, ServerError
from suite import rounds
from suite.report import Cell, Column, Measured
from suite.rounds import Bench

CONNECTIONS = 10
PIPELINE = 16


@click.command(help=__doc__)
@rounds.options(rounds=1, seconds=300.0)
@options.option(
    "--items",
    "0,1024,16384,65536,262144,1048576",
    options.numbers(options.BACKLOG_ITEMS),
    "How far the queue grows, rising.",
)
@options.data_size(1024)
@options.option("--settle", 1.0, click.FloatRange(0, 60), "Seconds of rest before memory is read.")
def main(items: list[int], data_size: int, settle: float, seconds: float, **common: Any) -> None:
    """Run the bench."""
    queue = rounds.queue_name("mem-rss")
    for server in common["servers"]:
        if server.pid is None:
            raise click.UsageError(f"{server.name} wants its pid: name=host:port:pid")

    def resident_mb(server: Server) -> float:
        time.sleep(settle)
        return server.resident_bytes() / MB

    def push_or_pull(server: Server, count: int, *, sets: bool) -> raw.Result:
        ratio = (1, 0) if sets else (0, 1)
        load = raw.Load(CONNECTIONS, count, seconds, PIPELINE, *ratio, size=data_size, queue=queue)
        result = raw.run(server, load)
        if result.requests < count:
            raise ServerError(f"only {result.requests} of {count} requests in {seconds} s: raise --seconds")
        return result

    def measure(server: Server, cell: Cell) -> Measured:
        if not (count := int(cell["items"])):
            return Measured({"grown_mb": resident_mb(server), "shrunk_mb": resident_mb(server)})
        sets = push_or_pull(server, count, sets=True)
        grown_mb = resident_mb(server)
        gets = push_or_pull(server, count, sets=False)
        figures = {
            "grown_mb": grown_mb,
            "shrunk_mb": resident_mb(server),
            "sets_rps": sets.rps,
            "gets_rps": gets.rps,
            "misses": gets.misses,
        }
        return Measured(figures, error=sets.first_error or gets.first_error)

    bench = Bench(
        name="mem_rss",
        about=f"resident memory after so many items of {data_size} bytes went in, and out again",
        cells=[{"items": count} for count in sorted(items)],
        measure=measure,
        columns=[
            Column("grown_mb", "grown MB", 1, compared=True),
            Column("shrunk_mb", "shrunk MB", 1, compared=True),
            Column("sets_rps", "sets/s"),
            Column("gets_rps", "gets/s"),
            Column("misses", "misses"),
        ],
        x="items",
        drawn={
            "grown_mb": "memory when the items are in, MB",
            "shrunk_mb": "memory when they are out again, MB",
        },
        queues=lambda: [queue],
        store_note=", and a set replaces what was there: its memory does not grow",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How fast a large backlog is drained from a cold start.

Fills a queue of a darner of its own, ends that server cleanly, drops its files from the page cache, starts it
again and drains the queue. The report has the bytes then read from the disk: with 0 the start was not cold.
"""

import sys
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options, raw
from load.servers import MB, Server
from single.own_server import OwnServer, own_server
from suite import rounds
from suite.report import BUSINESS, LATENCIES, Cell, Column, Measured, Report, Results


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.repeated(3)
@options.option(
    "-n --items",
    "2000000",
    options.numbers(options.REQUESTS),
    "In the backlog; several, such as 100000,2000000, are measured one by one.",
)
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.connections(1)
@options.pipeline(32)
@options.option("--seconds", 600.0, options.SECONDS, "To drain a backlog, at most.")
@options.data_in
@options.files
def main(
    items: list[int],
    data_size: int,
    connections: int,
    pipeline: int,
    seconds: float,
    data_in: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
    **repeated: int,
) -> None:
    """Run the bench."""
    queue = rounds.queue_name("drain")

    def measure(darner: OwnServer, cell: Cell) -> tuple[Server, Measured]:
        darner.discard()
        there = raw.fill(darner.start(), queue, int(cell["items"]), data_size).stored
        darner.stop()
        darner.evict()
        began = time.perf_counter()
        server = darner.start()
        listening_s = time.perf_counter() - began
        with server.connect() as connection:
            began = time.perf_counter()
            first = server.ask(connection, f"get {queue}\r\n".encode(), b"END\r\n")
            first_get_s = time.perf_counter() - began
        load = raw.Load(connections, there - 1, seconds, pipeline, sets=0, size=data_size, queue=queue)
        result = raw.run(server, load)
        measured = Measured.of(result)
        measured.figures.update(
            listening_s=listening_s,
            first_get_ms=first_get_s * 1000,
            disk_mb=server.bytes_from_disk() / MB,
        )
        came = first.count(b"VALUE ") + result.hits
        wrong = result.first_error or (f"{came:,} of {there:,} items came" if came != there else "")
        return server, Measured(measured.figures, measured.client_limited, wrong)

    report = Report(
        name="drain",
        about=f"cold backlog of {data_size}-byte items, {connections} connections, "
        f"{pipeline} gets in a pipeline",
        cells=[{"items": count} for count in items],
        columns=[
            Column("rps", "items/s", compared=True),
            Column("listening_s", "listening s", 3),
            Column("first_get_ms", "first get ms", 2),
            Column("disk_mb", "read from disk MB", 1),
            *LATENCIES,
            *BUSINESS,
        ],
        x="items",
        drawn={
            "rps": "items a second",
            "listening_s": "from the start until it listens, s",
            "first_get_ms": "the first get, ms",
        },
    )
    results = Results()
    with own_server(data_in) as darner, rounds.progress(repeated["rounds"] * len(items)) as step:
        for number in range(repeated["rounds"]):
            for cell in report.cells:
                step(f"round {number + 1}, {cell['items']:,} items", 0)
                server, measured = measure(darner, cell)
                results.add(number, cell, server, measured)
                step(f"round {number + 1}, {cell['items']:,} items", 1)
        results.describe(server)
        results.publish(report, server.name, repeated["rounds"], json_file, plot_file)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How fast a large backlog is drained from a cold start.

Fills a queue of a darner of its own, ends that one cleanly, has the kernel forget its files, starts it again
and drains the queue. How much was then read from the disk is reported: 0 means that the start was not cold.
"""

import time
from pathlib import Path

import click
import own
import raw
import rounds
from rounds import Cell, Column, Measured, Report
from servers import Server, ServerError

FILL_CONNECTIONS = 20
FILL_PIPELINE = 64
FILL_S = 3600.0
MB = 1e6


def fill(server: Server, queue: str, items: int, size: int) -> int:
    """Set so many items, or a few more; returns how many there are."""
    load = raw.Load(FILL_CONNECTIONS, items, FILL_S, FILL_PIPELINE, gets=0, size=size, queue=queue)
    result = raw.run(server, load)
    if result.stored < items:
        raise ServerError(f"only {result.stored} of {items} items: {result.first_error or 'time is up'}")
    return result.stored


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.repeated(3)
@click.option(
    "-n",
    "--items",
    default="2000000",
    show_default=True,
    type=rounds.numbers(raw.REQUESTS),
    help="In the backlog; several, such as 100000,2000000, are measured one by one.",
)
@click.option("-d", "--data-size", "size", default=64, show_default=True, type=click.IntRange(1, 65536))
@click.option("-c", "--connections", default=1, show_default=True, type=raw.CONNECTIONS)
@click.option("--pipeline", default=32, show_default=True, type=raw.PIPELINE)
@click.option(
    "--seconds", default=600.0, show_default=True, type=raw.SECONDS, help="To drain a backlog, at most."
)
@own.data_in
@rounds.files
def main(
    items: list[int],
    size: int,
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

    def measure(darner: own.Darner, cell: Cell) -> tuple[Server, Measured]:
        darner.discard()
        there = fill(darner.start(), queue, int(cell["items"]), size)
        darner.stop()
        darner.evict()
        began = time.perf_counter()
        server = darner.start()
        listening_s = time.perf_counter() - began
        with server.connect() as connection:
            began = time.perf_counter()
            first = server.ask(connection, f"get {queue}\r\n".encode(), b"END\r\n")
            first_get_s = time.perf_counter() - began
        load = raw.Load(connections, there - 1, seconds, pipeline, sets=0, size=size, queue=queue)
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
        about=f"cold backlog of {size}-byte items, {connections} connections, {pipeline} gets in a pipeline",
        cells=[{"items": count} for count in items],
        columns=[
            Column("rps", "items/s", compared=True),
            Column("listening_s", "listening s", 3),
            Column("first_get_ms", "first get ms", 2),
            Column("disk_mb", "read from disk MB", 1),
            *rounds.LATENCIES,
            *rounds.BUSINESS,
        ],
        x="items",
        drawn=["rps", "listening_s", "first_get_ms"],
    )
    started, rows = rounds.now(), []
    with own.darner(data_in) as darner, rounds.progress(repeated["rounds"] * len(items)) as step:
        for number in range(repeated["rounds"]):
            for cell in report.cells:
                step(f"round {number + 1}, {cell['items']:,} items", 0)
                server, measured = measure(darner, cell)
                rows.append(rounds.row(number, cell, server, measured))
                step(f"round {number + 1}, {cell['items']:,} items", 1)
        described = [rounds.describe(server)]
        rounds.publish(
            report, (server,), described, server.name, repeated["rounds"], started, rows, json_file, plot_file
        )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether a queue stays as fast as it grows: 1 KB items, sets and gets apart, at growing backlogs."""

from statistics import median
from typing import Any

import click
import raw
import rounds
from rounds import Bench, Cell, Column, Measured, Median
from servers import Server, ServerError

# How a backlog is grown: as fast as it goes, in pieces, so that one that does not come to an end is seen.
GROW_CONNECTIONS = 10
GROW_PIPELINE = 50
GROW_ITEMS = 100_000


@click.command(help=__doc__)
@rounds.options()
@click.option(
    "--backlogs",
    default="0,1024,16384,65536,262144,1048576,4194304",
    show_default=True,
    type=rounds.numbers(rounds.ITEMS),
    help="Items, rising.",
)
@click.option("-c", "--connections", default=10, show_default=True, type=raw.CONNECTIONS)
@click.option("--pipeline", default=1, show_default=True, type=raw.PIPELINE)
@click.option(
    "-n",
    "--requests",
    default=50_000,
    show_default=True,
    type=raw.REQUESTS,
    help="Sets, then gets.",
)
@click.option("-d", "--data-size", default=1024, show_default=True, type=raw.SIZE)
@click.option(
    "--grow-seconds",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="To grow a backlog, at most.",
)
def main(
    backlogs: list[int],
    connections: int,
    pipeline: int,
    requests: int,
    data_size: int,
    grow_seconds: float,
    seconds: float,
    **common: Any,
) -> None:
    """Run the bench."""
    queue = rounds.queue_name("packing")
    waiting: dict[str, int] = {}

    def begin(server: Server) -> None:
        waiting[server.name] = 0

    def grow(server: Server, items: int) -> None:
        left_s = grow_seconds
        while (missing := items - waiting[server.name]) > 0:
            count = min(missing, GROW_ITEMS)
            load = raw.Load(
                GROW_CONNECTIONS, count, left_s, GROW_PIPELINE, gets=0, size=data_size, queue=queue
            )
            result = raw.run(server, load)
            waiting[server.name] += result.stored
            left_s -= result.seconds
            if left_s <= 0 or result.errors:
                why = result.first_error or "time is up"
                raise ServerError(f"only {waiting[server.name]} items: {why}")

    def measure(server: Server, cell: Cell) -> Measured:
        sets = cell["work"] == "sets"
        if sets:
            grow(server, int(cell["backlog"]))
        load = raw.Load(
            connections, requests, seconds, pipeline, int(sets), int(not sets), size=data_size, queue=queue
        )
        result = raw.run(server, load)
        waiting[server.name] += result.stored - result.hits
        return Measured.of(result)

    def flatness(medians: list[Median]) -> list[str]:
        lines = []
        for name, work in dict.fromkeys((one.server, str(one.cell["work"])) for one in medians):
            rates = {
                one.cell["backlog"]: one.figures["rps"]
                for one in medians
                if (one.server, one.cell["work"]) == (name, work) and "rps" in one.figures
            }
            if rates:
                flat, middle = min(rates.values()) / max(rates.values()), median(rates.values())
                lines.append(f"{name}, {work}: slowest / fastest {flat:.2f}, median {middle:,.0f}/s")
        return lines

    bench = Bench(
        name="packing",
        about=f"sets, then gets, of {data_size} bytes at growing backlogs, {connections} connections",
        cells=[{"backlog": items, "work": work} for items in sorted(backlogs) for work in ("sets", "gets")],
        measure=measure,
        columns=[rounds.RATE, *rounds.LATENCIES, Column("misses", "misses"), *rounds.BUSINESS],
        x="backlog",
        split="work",
        drawn=["rps", "p99_us"],
        queues=lambda: [queue],
        begin=begin,
        conclude=flatness,
        store_note=", and a set replaces what was there: no backlog, a yardstick only",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Sets and gets of 1 KB, apart, at growing backlogs: does a queue slow down as it grows?"""

from statistics import median
from typing import Any

import click

from load import options, raw
from load.servers import Server, ServerError
from suite import rounds
from suite.report import BUSINESS, LATENCIES, RATE, Cell, Column, Measured, Median
from suite.rounds import Bench

# A backlog grows at full speed and in pieces, so that its time can be up between two of them.
GROW_CONNECTIONS = 10
GROW_PIPELINE = 50
GROW_ITEMS = 100_000


@click.command(help=__doc__)
@rounds.options()
@options.option(
    "--backlogs",
    "0,1024,16384,65536,262144,1048576,4194304",
    options.numbers(options.BACKLOG_ITEMS),
    "Items, rising.",
)
@options.connections(10)
@options.pipeline(1)
@options.requests(50_000, "Sets, then gets.")
@options.data_size(1024)
@options.option("--grow-seconds", 600.0, click.FloatRange(1, 3600), "To grow a backlog, at most.")
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
        columns=[RATE, *LATENCIES, Column("misses", "misses"), *BUSINESS],
        x="backlog",
        x_words="items in the queue",
        split="work",
        split_words={"sets": "set", "gets": "get"},
        drawn={"rps": "{}s a second", "p99_us": "p99 of a {}, ms"},
        queues=lambda: [queue],
        begin=begin,
        conclude=flatness,
        store_note=", and a set replaces what was there: no backlog, a yardstick only",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

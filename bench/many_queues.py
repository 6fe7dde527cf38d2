#!/usr/bin/env python3
"""Sets to many queues in turn, against sets to one."""

from typing import Any

import click

from load import options, raw
from load.servers import Server
from suite import rounds
from suite.report import BUSINESS, LATENCIES, RATE, Cell, Column, Measured, Median
from suite.rounds import Bench

CREATE_CONNECTIONS = 10


@click.command(help=__doc__)
@rounds.options()
@options.option("--queues", 1000, click.IntRange(2, 100_000))
@options.connections(100)
@options.pipeline(1)
@options.requests(50_000)
@options.data_size(64)
def main(
    queues: int, connections: int, pipeline: int, requests: int, data_size: int, seconds: float, **common: Any
) -> None:
    """Run the bench."""
    queue = rounds.queue_name("many")

    def measure(server: Server, cell: Cell) -> Measured:
        count = int(cell["queues"])
        first = raw.Load(
            CREATE_CONNECTIONS, count, seconds, gets=0, size=data_size, queue=queue, queues=count
        )
        created = raw.run(server, first)
        load = raw.Load(
            connections, requests, seconds, pipeline, gets=0, size=data_size, queue=queue, queues=count
        )
        measured = Measured.of(raw.run(server, load))
        measured.figures["create_rps"] = created.rps
        return measured

    def share(medians: list[Median]) -> list[str]:
        rates = {(one.server, one.cell["queues"]): one.figures.get("rps", 0) for one in medians}
        return [
            f"{name}: {queues:,} queues reach {rates[name, queues] / rates[name, 1]:.2f} of the rate of one"
            for name in dict.fromkeys(one.server for one in medians)
            if rates[name, 1]
        ]

    bench = Bench(
        name="many_queues",
        about=f"sets of {data_size} bytes to so many queues in turn, {connections} connections",
        cells=[{"queues": 1}, {"queues": queues}],
        measure=measure,
        columns=[RATE, *LATENCIES, Column("create_rps", "first sets/s"), *BUSINESS],
        x="queues",
        drawn={"rps": "sets a second", "p99_us": "p99 of a set, ms"},
        queues=lambda: [queue, *(f"{queue}{number}" for number in range(queues))],
        conclude=share,
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

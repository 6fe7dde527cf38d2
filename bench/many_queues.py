#!/usr/bin/env python3
"""Sets to many queues in turn, against sets to one."""

from typing import Any

import click
import raw
import rounds
from rounds import Bench, Cell, Column, Measured, Median
from servers import Server

CREATE_CONNECTIONS = 10


@click.command(help=__doc__)
@rounds.options()
@click.option("--queues", default=1000, show_default=True, type=click.IntRange(2, 100_000))
@click.option("-c", "--connections", default=100, show_default=True, type=raw.CONNECTIONS)
@click.option("--pipeline", default=1, show_default=True, type=raw.PIPELINE)
@click.option(
    "-n",
    "--requests",
    default=50_000,
    show_default=True,
    type=raw.REQUESTS,
    help="Per measurement.",
)
@click.option("-d", "--data-size", default=64, show_default=True, type=raw.SIZE)
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
        columns=[rounds.RATE, *rounds.LATENCIES, Column("create_rps", "first sets/s"), *rounds.BUSINESS],
        x="queues",
        drawn=["rps", "p99_us"],
        queues=lambda: [queue, *(f"{queue}{number}" for number in range(queues))],
        conclude=share,
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

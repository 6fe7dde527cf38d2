#!/usr/bin/env python3
"""Equal sets and gets on one queue, over concurrencies.

As in the original's bench a few items are put on the queue beforehand, so that a get always finds one.
"""

from typing import Any

import click
import raw
import rounds
from rounds import Bench, Cell, Column, Measured
from servers import Server


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.options()
@click.option(
    "-c",
    "--connections",
    default="1,4,10,50,100,1000,10000",
    show_default=True,
    type=rounds.numbers(raw.CONNECTIONS),
)
@click.option("--pipelines", default="1", show_default=True, type=rounds.numbers(raw.PIPELINE))
@click.option(
    "-n",
    "--requests",
    default=100_000,
    show_default=True,
    type=raw.REQUESTS,
    help="Per measurement.",
)
@click.option("-d", "--data-size", default=64, show_default=True, type=raw.SIZE)
@click.option(
    "--backlog",
    default=512,
    show_default=True,
    type=click.IntRange(0, 1_000_000),
    help="Items put beforehand.",
)
def main(
    connections: list[int],
    pipelines: list[int],
    requests: int,
    data_size: int,
    backlog: int,
    seconds: float,
    **common: Any,
) -> None:
    """Run the bench."""
    queue = rounds.queue_name("flood")

    def begin(server: Server) -> None:
        if backlog:
            raw.run(server, raw.Load(1, backlog, sets=1, gets=0, size=data_size, queue=queue))

    def measure(server: Server, cell: Cell) -> Measured:
        load = raw.Load(
            connections=int(cell["connections"]),
            requests=requests,
            seconds=seconds,
            pipeline=int(cell["pipeline"]),
            size=data_size,
            queue=queue,
        )
        return Measured.of(raw.run(server, load))

    bench = Bench(
        name="flood",
        about=f"equal sets and gets of {data_size} bytes on one queue, {backlog} items in it",
        cells=[{"connections": count, "pipeline": depth} for depth in pipelines for count in connections],
        measure=measure,
        columns=[rounds.RATE, *rounds.LATENCIES, Column("misses", "misses"), *rounds.BUSINESS],
        x="connections",
        split="pipeline",
        drawn=["rps", "p99_us", "server_cpu_us"],
        queues=lambda: [queue],
        begin=begin,
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Equal sets and gets on one queue, by concurrency.

As in the original's bench some items are in the queue beforehand, so that each get finds one.
"""

from typing import Any

import click

from load import options, raw
from load.servers import Server
from suite import rounds
from suite.report import BUSINESS, LATENCIES, RATE, Cell, Column, Measured
from suite.rounds import Bench


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.options()
@options.connections("1,4,10,50,100,1000,10000")
@options.option("--pipelines", "1", options.numbers(options.PIPELINE))
@options.requests(100_000)
@options.data_size(64)
@options.option("--backlog", 512, click.IntRange(0, 1_000_000), "Items put beforehand.")
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
        columns=[RATE, *LATENCIES, Column("misses", "misses"), *BUSINESS],
        x="connections",
        split="pipeline",
        split_words={str(depth): f", {depth} in a pipeline" if depth > 1 else "" for depth in pipelines},
        drawn={
            "rps": "sets and gets a second{}",
            "p99_us": "p99 of a set or a get{}, ms",
            "server_cpu_us": "processor time of the server{}, us",
        },
        queues=lambda: [queue],
        begin=begin,
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

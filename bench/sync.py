#!/usr/bin/env python3
"""Sets that are on the disk before their reply: `set queue/sync`."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from load import options, raw
from load.servers import Server
from suite import rounds
from suite.report import BUSINESS, LATENCIES, RATE, Cell, Measured, Median
from suite.rounds import Bench

FSYNCS = 100


def fsync_us(directory: Path) -> float:
    """Return the median time of an fsync of a few bytes in this directory."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(FSYNCS):
            file.write(b"x" * 100)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return median(times) * 1e6


@click.command(help=__doc__)
@rounds.options()
@options.connections("1,10,100")
@options.requests(20_000)
@options.data_size(64)
@options.option(
    "--fsync-in",
    ".",
    click.Path(exists=True, file_okay=False, path_type=Path),
    "Directory on the servers' disk in which one fsync is timed.",
)
def main(
    connections: list[int], requests: int, data_size: int, fsync_in: Path, seconds: float, **common: Any
) -> None:
    """Run the bench."""
    queue = rounds.queue_name("sync")

    def measure(server: Server, cell: Cell) -> Measured:
        load = raw.Load(
            connections=int(cell["connections"]),
            requests=requests,
            seconds=seconds,
            gets=0,
            size=data_size,
            queue=queue,
            set_suffix="/sync",
        )
        return Measured.of(raw.run(server, load))

    def in_fsyncs(medians: list[Median]) -> list[str]:
        one_us = fsync_us(fsync_in)
        lines = [f"one fsync in {fsync_in.resolve()} takes {one_us:.0f} us"]
        for one in medians:
            if "p99_us" in one.figures:
                fsyncs = one.figures["p99_us"] / one_us
                lines.append(
                    f"{one.server}, connections={one.cell['connections']}: p99 is {fsyncs:.1f} fsyncs"
                )
        return lines

    bench = Bench(
        name="sync",
        about=f"sets of {data_size} bytes with /sync on one queue",
        cells=[{"connections": count} for count in connections],
        measure=measure,
        columns=[RATE, *LATENCIES, *BUSINESS],
        x="connections",
        drawn={"rps": "synced sets a second", "p99_us": "p99 of a synced set, ms"},
        queues=lambda: [queue],
        conclude=in_fsyncs,
        store_note=", and /sync is to it a part of the key: it syncs nothing",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

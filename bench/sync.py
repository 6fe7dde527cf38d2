#!/usr/bin/env python3
"""Sets that are on the disk when they are acknowledged: `set queue/sync`."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import raw
import rounds
from rounds import Bench, Cell, Measured, Median
from servers import Server

FSYNCS = 100


def fsync_us(directory: Path) -> float:
    """Return what an fsync of a few bytes takes there, the median of several."""
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
@click.option(
    "-c", "--connections", default="1,10,100", show_default=True, type=rounds.numbers(raw.CONNECTIONS)
)
@click.option(
    "-n",
    "--requests",
    default=20_000,
    show_default=True,
    type=raw.REQUESTS,
    help="Per measurement.",
)
@click.option("-d", "--data-size", default=64, show_default=True, type=raw.SIZE)
@click.option(
    "--fsync-in",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory on the servers' disk in which one fsync is timed.",
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
        columns=[rounds.RATE, *rounds.LATENCIES, *rounds.BUSINESS],
        x="connections",
        drawn=["rps", "p99_us"],
        queues=lambda: [queue],
        conclude=in_fsyncs,
        store_note=", and /sync is to it a part of the key: it syncs nothing",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

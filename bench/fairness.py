#!/usr/bin/env python3
"""Clients with small items, alone and beside clients with large ones.

Some clients set small items, first alone, then beside as many that set large ones. A process of its own sends
the large ones.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import click

from load import options, raw
from load.servers import MIB, Server
from suite import rounds
from suite.report import Cell, Column, Measured
from suite.rounds import Bench

# The large items begin so long before the small ones, and end so long after them.
LEAD_S = 0.5


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.options()
@options.option("-c --clients", 10, click.IntRange(1, 1000), "Of each kind.")
@options.option("--small", 64, click.IntRange(1, MIB), "Bytes of a small item.")
@options.large_mib()
def main(clients: int, small: int, large: int, seconds: float, **common: Any) -> None:
    """Run the bench."""
    small_queue, large_queue = rounds.queue_name("fairness-small"), rounds.queue_name("fairness-large")

    def alone(server: Server) -> raw.Result:
        return raw.run(server, raw.Load(clients, raw.ENDLESS, seconds, gets=0, size=small, queue=small_queue))

    def beside(pool: ProcessPoolExecutor, server: Server) -> Measured:
        load = raw.Load(
            clients, raw.ENDLESS, seconds + 2 * LEAD_S, gets=0, size=large * MIB, queue=large_queue
        )
        loading = pool.submit(raw.run, server, load)
        time.sleep(LEAD_S)
        measured = Measured.of(alone(server))
        result = loading.result()
        server.delete(large_queue)
        stored_s = result.stored / result.seconds
        measured.figures.update(large_rps=stored_s, large_mib_s=stored_s * large, large_errors=result.errors)
        return Measured(measured.figures, measured.client_limited, measured.error or result.first_error)

    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:

        def measure(server: Server, cell: Cell) -> Measured:
            return Measured.of(alone(server)) if cell["beside"] == "nothing" else beside(pool, server)

        bench = Bench(
            name="fairness",
            about=f"{clients} clients set {small} bytes, alone and beside {clients} that set {large} MiB",
            cells=[{"beside": "nothing"}, {"beside": f"{large} MiB"}],
            measure=measure,
            columns=[
                Column("rps", "small/s", compared=True),
                Column("p50_us", "p50 us"),
                Column("p99_us", "p99 us", compared=True),
                Column("p999_us", "p99.9 us", compared=True),
                Column("max_us", "max us"),
                Column("large_rps", "large/s", 1, compared=True),
                Column("server_cpu_us", "server CPU us/small", 1),
                Column("client_busy", "client busy", 2),
            ],
            x="beside",
            x_words="beside",
            drawn={
                "p50_us": "median of a small set, ms",
                "p99_us": "p99 of a small set, ms",
                "p999_us": "p99.9 of a small set, ms",
                "large_rps": "large sets a second",
            },
            queues=lambda: [small_queue, large_queue],
        )
        rounds.run(bench, **common)


if __name__ == "__main__":
    main()

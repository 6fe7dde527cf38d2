#!/usr/bin/env python3
"""How many items a second `darner.work` takes through a function that does nothing, by kind of pool.

A darner of the bench's own is given a backlog, then a worker with `--concurrency 8` empties it. The time
is that from the moment at which a tenth is done, when the worker is warm, until the queue is empty.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner.client import Client
from load.options import option
from single.own_server import own_server

QUEUE = "work"
POOLS = ("threads", "processes", "asyncio")
BATCH = 1_000
POLL_S = 0.005
TIMEOUT_S = 300.0


def nothing(_: object) -> None:
    """Do nothing."""


async def nothing_async(_: object) -> None:
    """Do nothing, for the pool of coroutines."""


def left(client: Client) -> int:
    """Return how many items are not done."""
    queue = client.queues()[QUEUE]
    return queue.items + queue.open_transactions


def wait_until_left(client: Client, count: int) -> float:
    """Wait until no more than so many items are left; return the time."""
    deadline = time.monotonic() + TIMEOUT_S
    while left(client) > count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"the worker has not done its work in {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic()


def rate(address: str, pool: str, items: int, concurrency: int) -> float:
    """Return the items per second of one worker."""
    function = "nothing_async" if pool == "asyncio" else "nothing"
    words = [sys.executable, "-m", "darner.work", f"single.worker:{function}"]
    words += ["--queue", QUEUE, "--server", address, "--pool", pool, "--concurrency", str(concurrency)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with Client(address) as client:
        for _ in range(items // BATCH):
            client.put_many(QUEUE, [b"x"] * BATCH)
        worker = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        try:
            warm = wait_until_left(client, items - items // 10)
            done = wait_until_left(client, 0)
        finally:
            worker.terminate()
            worker.wait()
    return (items - items // 10) / (done - warm)


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("-n --items", 20_000, click.IntRange(BATCH, 10_000_000), "Per measurement, in thousands.")
@option("-c --concurrency", 8, click.IntRange(1, 1_000))
@option("--rounds", 3, click.IntRange(1, 100))
@option("--open-reads", 8, click.IntRange(1, 10_000), "max_open_reads of the queue.")
def main(items: int, concurrency: int, rounds: int, open_reads: int) -> None:
    """Measure each pool in turn, and print the rates of all rounds."""
    with own_server(None, f"queue_defaults.max_open_reads = {open_reads}\n") as server:
        address = f"127.0.0.1:{server.start().port}"
        rates: dict[str, list[float]] = {pool: [] for pool in POOLS}
        for _ in range(rounds):
            for pool, found in rates.items():
                found.append(rate(address, pool, items, concurrency))
    for pool, found in rates.items():
        click.echo(
            f"{pool:10} {sorted(found)[len(found) // 2]:8.0f} items/s ({min(found):.0f} … {max(found):.0f})"
        )


if __name__ == "__main__":
    main()

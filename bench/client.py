#!/usr/bin/env python3
"""What a Python program gets from darner.client and from pymemcache, side by side, on one connection each.

A server of its own. Within each round the two take turns, and the one that goes first changes from round to
round. Ratios are medians of the rounds' ratios.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
from pymemcache.client.base import Client as Pymemcache  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner.client import Client
from load import options
from load.servers import Server
from single.own_server import own_server

QUEUE = "work"

# Handles so many items, and returns how many it did.
Step = Callable[[int], int]


class Darner:
    """What is measured of darner.client."""

    def __init__(self, server: Server, data_size: int, batch: int) -> None:
        self._value = b"x" * data_size
        self._batch = batch
        self._client = Client(f"{server.host}:{server.port}")

    def put(self, items: int) -> int:
        """Put one after the other."""
        put, value = self._client.put, self._value
        for _ in range(items):
            put(QUEUE, value)
        return items

    def get(self, items: int) -> int:
        """Get one after the other."""
        get = self._client.get
        return sum(get(QUEUE) is not None for _ in range(items))

    def reserve(self, items: int) -> int:
        """Reserve and close one after the other."""
        found = 0
        for _ in range(items):
            with self._client.reserve(QUEUE) as item:
                found += item is not None
        return found

    def put_many(self, items: int) -> int:
        """Put in batches."""
        for at in range(0, items, self._batch):
            self._client.put_many(QUEUE, [self._value] * min(self._batch, items - at))
        return items

    def reserve_many(self, items: int) -> int:
        """Reserve and close in batches."""
        found = 0
        for at in range(0, items, self._batch):
            with self._client.reserve_many(QUEUE, min(self._batch, items - at)) as reserved:
                found += len(reserved)
        return found


class OneByOne:
    """What a program does with pymemcache, which sends one request and waits for its reply."""

    def __init__(self, server: Server, data_size: int) -> None:
        self._value = b"x" * data_size
        self._client = Pymemcache((server.host, server.port), no_delay=True, default_noreply=False)

    def set(self, items: int) -> int:
        """Set one after the other."""
        set_, value = self._client.set, self._value
        return sum(set_(QUEUE, value) for _ in range(items))

    def get(self, items: int) -> int:
        """Get one after the other."""
        get = self._client.get
        return sum(get(QUEUE) is not None for _ in range(items))

    def open_and_close(self, items: int) -> int:
        """Reserve and close one after the other."""
        get = self._client.get
        found = 0
        for _ in range(items):
            found += get(f"{QUEUE}/open") is not None
            get(f"{QUEUE}/close")
        return found


class Pair:
    """The same work, done by both; the rate of each in every round, and its CPU time."""

    def __init__(self, name: str, ours: Step, theirs: Step) -> None:
        self.name = name
        self._steps = (ours, theirs)
        self._rates: tuple[list[float], list[float]] = ([], [])
        self._cpu_us: tuple[list[float], list[float]] = ([], [])

    def measure(self, items: int, round: int) -> None:
        """Let each handle so many items; ClickException if one does not get them."""
        for which in (0, 1) if round % 2 else (1, 0):
            began, cpu = time.perf_counter(), time.process_time()
            found = self._steps[which](items)
            took = time.perf_counter() - began
            self._cpu_us[which].append((time.process_time() - cpu) / items * 1e6)
            self._rates[which].append(items / took)
            if found != items:
                raise click.ClickException(f"{self.name}: {found:,} of {items:,} items")

    def report(self) -> str:
        """Return the medians and their ratio."""
        ratio = median(ours / theirs for ours, theirs in zip(*self._rates, strict=True))
        rates = [f"{median(rates):>10,.0f}" for rates in self._rates]
        cpu = [f"{median(times):>8.1f}" for times in self._cpu_us]
        return f"{self.name:<42}{rates[0]}{rates[1]}{ratio:>8.2f}{cpu[0]}{cpu[1]}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("-n --items", 10_000, options.REQUESTS, "Per measurement.")
@options.option("--rounds", 7, click.IntRange(1, 1000))
@options.option("--batch", 100, click.IntRange(1, 10_000), "Items of one put_many or reserve_many.")
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.data_in
def main(items: int, rounds: int, batch: int, data_size: int, data_in: Path | None) -> None:
    """Measure both clients, and print a table."""
    with own_server(data_in, f"[queue_defaults]\nmax_open_reads = {batch}\n") as darner:
        server = darner.start()
        ours, theirs = Darner(server, data_size, batch), OneByOne(server, data_size)
        # each takes what the one before it has put
        pairs = [
            Pair("put : set", ours.put, theirs.set),
            Pair("get : get", ours.get, theirs.get),
            Pair(f"put_many of {batch} : set", ours.put_many, theirs.set),
            Pair(f"reserve_many of {batch} : get/open, get/close", ours.reserve_many, theirs.open_and_close),
            Pair("put : set, again", ours.put, theirs.set),
            Pair("reserve : get/open, get/close", ours.reserve, theirs.open_and_close),
        ]
        for round in range(rounds):
            for pair in pairs:
                pair.measure(items, round)
    click.echo(f"{rounds} rounds of {items:,} items of {data_size} bytes; darner.client : pymemcache")
    click.echo(f"{'':<42}{'items/s':>10}{'items/s':>10}{'ratio':>8}{'us CPU':>8}{'us CPU':>8}")
    for pair in pairs:
        click.echo(pair.report())


if __name__ == "__main__":
    main()

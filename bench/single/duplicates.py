#!/usr/bin/env python3
"""What it costs to recognize sets that are sent again: how fast such sets are, and what memory the ids take.

A server of its own gets as many sets without an id, with ids, and with the same ids again, before and after a
kill -9. After each step all items are taken. It fails unless there is one for each id.
"""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options
from load.servers import MB, Server
from single.own_server import own_server

STORED = b"STORED\r\n"
GETS_AT_ONCE = 256


class Client:
    """One connection, and the process that it measures."""

    def __init__(
        self, server: Server, connection: socket.socket, pipeline: int, data_size: int, settle: float
    ) -> None:
        self._process = psutil.Process(server.pid)
        self._connection = connection
        self._pipeline = pipeline
        self._settle_s = settle
        self._rest = b" 0 0 %d\r\n%s\r\n" % (data_size, b"x" * data_size)

    def step(self, what: str, keys: Iterator[bytes], items: int, expected: int) -> None:
        """Set an item to each key and take what was stored; print the rate and the memory."""
        began, cpu_s = time.perf_counter(), self._cpu_s()
        self._set_all(keys, items)
        rate, cpu_us = items / (time.perf_counter() - began), (self._cpu_s() - cpu_s) / items * 1e6
        taken = self._take_all()
        time.sleep(self._settle_s)
        memory = self._process.memory_info()
        click.echo(
            f"{what:<26}{rate:>10,.0f} sets/s{cpu_us:>8.1f} us CPU/set{taken:>12,} stored"
            f"{memory.rss / MB:>8.1f} MB resident, {(memory.rss - memory.shared) / MB:.1f} MB of it its own"
        )
        if taken != expected:
            raise click.ClickException(f"{expected:,} items should be there")

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _set_all(self, keys: Iterator[bytes], items: int) -> None:
        for at in range(0, items, self._pipeline):
            count = min(self._pipeline, items - at)
            sets = b"".join([b"set " + next(keys) + self._rest for _ in range(count)])
            reply = self._ask(sets, lambda reply, count=count: len(reply) >= len(STORED) * count)
            if reply != STORED * count:
                raise click.ClickException(f"a set was refused: {reply[:200]!r}")

    def _take_all(self) -> int:
        taken, found = 0, GETS_AT_ONCE
        while found == GETS_AT_ONCE:
            reply = self._ask(
                b"get work\r\n" * GETS_AT_ONCE, lambda reply: reply.count(b"END") == GETS_AT_ONCE
            )
            found = reply.count(b"VALUE")
            taken += found
        return taken

    def _ask(self, request: bytes, is_whole: Callable[[bytes], bool]) -> bytes:
        self._connection.sendall(request)
        reply = b""
        while not is_whole(reply):
            data = self._connection.recv(1 << 16)
            if not data:
                raise click.ClickException("the server has closed the connection")
            reply += data
        return reply


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("-n --items", 1_000_000, options.REQUESTS)
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.pipeline(64)
@options.option("--settle", 3.0, click.FloatRange(0, 60), "Seconds of rest before memory is read.")
@options.data_in
def main(items: int, data_size: int, pipeline: int, settle: float, data_in: Path | None) -> None:
    """Set items without ids, with ids, and with the same ids again, and measure."""

    def plain() -> Iterator[bytes]:
        return iter(lambda: b"work", b"")

    def with_ids(first: int = 0) -> Iterator[bytes]:
        return (b"work/id=order-%d" % number for number in range(first, first + items))

    with own_server(data_in, '[queue_defaults]\ndedup_window = "1d"\n') as darner:
        server = darner.start()
        with server.connect() as connection:
            client = Client(server, connection, pipeline, data_size, settle)
            client.step("without an id", plain(), items, items)
            client.step("with a new id", with_ids(), items, items)
            client.step("with the same id again", with_ids(), items, 0)
            client.step("with another new id", with_ids(items), items, items)
        darner.kill()
        server = darner.start()
        with server.connect() as connection:
            client = Client(server, connection, pipeline, data_size, settle)
            client.step("again after a kill -9", with_ids(), items, 0)
            client.step("with a new id after it", with_ids(2 * items), items, items)
            client.step("without an id", plain(), items, items)


if __name__ == "__main__":
    main()

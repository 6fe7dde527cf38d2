#!/usr/bin/env python3
"""What a page of a large queue costs, by how deep it lies.

Fills a queue on a data directory of its own, and pages through it (`gets <queue>/peek/from=<id>`) at its
head, in its middle and at its end; then again after half of the items were consumed, and after a restart.
What comes back is checked.
"""

import sys
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options, raw
from load.servers import Server
from single.own_server import own_server

QUEUE = "work"
PIPELINE = 500
END = b"END\r\n"


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("-n --items", 1_000_000, options.REQUESTS)
@options.option("--looks", 5000, options.REQUESTS, "At each place.")
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.data_in
def main(items: int, looks: int, data_size: int, data_in: Path | None) -> None:
    """Fill a queue and page through parts of it."""
    looks = min(looks, items // 8)
    with own_server(data_in) as darner:
        server = darner.start()
        stored = raw.fill(server, QUEUE, items, data_size).stored
        click.echo(f"{stored:,} items of {data_size} bytes; {looks:,} looks at each place, microseconds")
        click.echo(f"{'':42}{'p50':>8}{'p99':>8}{'max':>8}")
        measure(server, "head, as filled", 1, looks)
        measure(server, "middle", stored // 2, looks)
        measure(server, "end", stored - looks + 1, looks)
        consume(server, stored // 2)
        first = stored // 2 + 1
        measure(server, "half consumed: before the head", 1, looks, found=first)
        measure(server, "half consumed: head", first, looks)
        measure(server, "half consumed: middle", first + stored // 4, looks)
        measure(server, "half consumed: end", stored - looks + 1, looks)
        darner.stop()
        server = darner.start()
        measure(server, "after a restart: middle", first + stored // 4, looks)


def measure(server: Server, place: str, start: int, looks: int, found: int = 0) -> None:
    """Look at the items from `start` on and print how long that took; each time at the same one if it finds
    `found`."""
    took_us = []
    with server.connect() as connection:
        for id in range(start, start + looks):
            request = f"gets {QUEUE}/peek/from={start if found else id}\r\n".encode()
            began = time.perf_counter()
            reply = server.ask(connection, request, END)
            took_us.append((time.perf_counter() - began) * 1e6)
            if int(reply.partition(b"\r\n")[0].rpartition(b" ")[2]) != (found or id):
                raise click.ClickException(f"{request!r} finds {reply[:60]!r}")
    took_us.sort()
    click.echo(f"{place:42}{took_us[looks // 2]:8.0f}{took_us[looks * 99 // 100]:8.0f}{took_us[-1]:8.0f}")


def consume(server: Server, items: int) -> None:
    """Fetch so many items."""
    with server.connect() as connection:
        for start in range(0, items, PIPELINE):
            count = min(PIPELINE, items - start)
            connection.sendall(f"get {QUEUE}\r\n".encode() * count)
            reply = b""
            while reply.count(END) < count:
                reply += connection.recv(1 << 20)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The server's memory while many clients store and fetch large items at the same time.

Each client sets one item and then gets one, with no pause between; the flags of an item are its checksum.
Prints the server's peak resident memory as the kernel counts it, and exits 1 if that is over the limit or an
item came back changed.
"""

import random
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load.options import option
from load.servers import MB, MIB
from single.own_server import own_server

if TYPE_CHECKING:
    from io import BufferedReader

TIMEOUT_S = 60.0
# Prime, so that no two chunks of an item are the same.
BLOCK_BYTES = 1_000_003
READ_BYTES = 256 << 10


class ChangedError(Exception):
    """An item came back changed."""


def pieces(size: int, seed: int) -> Iterator[bytes]:
    """Yield the bytes of an item, piece by piece."""
    block = random.Random(seed).randbytes(BLOCK_BYTES)
    while size:
        yield block[:size]
        size -= min(size, BLOCK_BYTES)


def store(sock: socket.socket, queue: str, size: int, seed: int) -> None:
    """Set an item of `size` bytes."""
    checksum = 0
    for piece in pieces(size, seed):
        checksum = zlib.crc32(piece, checksum)
    sock.sendall(f"set {queue} {checksum} 0 {size}\r\n".encode())
    for piece in pieces(size, seed):
        sock.sendall(piece)
    sock.sendall(b"\r\n")
    if (reply := sock.recv(100)) != b"STORED\r\n":
        raise ChangedError(f"set was answered by {reply!r}")


def fetch(sock: socket.socket, queue: str, size: int) -> None:
    """Get an item and check it; ChangedError if it is not the one that was set."""
    sock.sendall(f"get {queue}\r\n".encode())
    stream = cast("BufferedReader", sock.makefile("rb", READ_BYTES))
    header = stream.readline().split()
    if header[:2] != [b"VALUE", queue.encode()] or int(header[3]) != size:
        raise ChangedError(f"get was answered by {header}")
    checksum, left = 0, size
    while left:
        piece = stream.read1(min(left, READ_BYTES))
        if not piece:
            raise ChangedError(f"an item ended {left} bytes early")
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
    if stream.read(7) != b"\r\nEND\r\n" or checksum != int(header[2]):
        raise ChangedError("an item came back changed")


def run(port: int, clients: int, queues: int, size: int) -> tuple[float, float]:
    """Have all clients store and fetch at the same time; return the seconds that each of both took."""
    ready = threading.Barrier(clients)

    def client(number: int) -> tuple[float, float]:
        queue = f"large{number % queues}"
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as sock:
            ready.wait(TIMEOUT_S)
            started = time.monotonic()
            store(sock, queue, size, number)
            stored = time.monotonic()
            fetch(sock, queue, size)
            return stored - started, time.monotonic() - stored

    with ThreadPoolExecutor(clients) as pool:
        times = list(pool.map(client, range(clients)))
    return max(store_s for store_s, _ in times), max(fetch_s for _, fetch_s in times)


def peak_resident_bytes(pid: int) -> int:
    """Return the peak resident memory of a process."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("--clients", 10, click.IntRange(1))
@option("--queues", 1, click.IntRange(1), "Shared by the clients.")
@option("--mib", 64, click.IntRange(1), "Size of an item.")
@option("--limit", 150, int, "MB of resident memory that are allowed.")
def main(clients: int, queues: int, mib: int, limit: int) -> None:
    """Measure and print the result."""
    with own_server(None) as darner:
        server = darner.start()
        assert server.pid
        at_start = peak_resident_bytes(server.pid)
        try:
            store_s, fetch_s = run(server.port, clients, queues, mib * MIB)
        except ChangedError as error:
            raise click.ClickException(str(error)) from error
        peak = peak_resident_bytes(server.pid)
    click.echo(f"clients        {clients}\nqueues         {queues}\nitem           {mib} MiB")
    click.echo(f"storing        {store_s:.1f} s\nfetching       {fetch_s:.1f} s")
    click.echo(f"resident       {at_start / MB:.0f} MB at start, {peak / MB:.0f} MB at its peak")
    if peak > limit * MB:
        raise click.ClickException(f"more than {limit} MB")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How much memory the server takes while many clients store and fetch large items at the same time.

Each client sets one item and then gets one, over a plain socket, with no pause between; the checksum of
an item travels in its flags. Prints the server's peak resident memory as the kernel has noted it, and
exits 1 if that is over the limit or an item came out changed.
"""

import random
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import own

if TYPE_CHECKING:
    from io import BufferedReader

MIB = 1 << 20
TIMEOUT_S = 60.0
# Prime, so that no two chunks of an item are the same.
BLOCK_BYTES = 1_000_003
READ_BYTES = 256 << 10


class ChangedError(Exception):
    """Something else came back than was set."""


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
    """Get an item, and see that it is whole."""
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
    """Have all clients store and fetch at the same time; returns how many seconds each took."""
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
    """Return the most memory a process has had since it began."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--clients", default=10, show_default=True, type=click.IntRange(1))
@click.option("--queues", default=1, show_default=True, type=click.IntRange(1), help="Shared by the clients.")
@click.option("--mib", default=64, show_default=True, type=click.IntRange(1), help="Size of an item.")
@click.option("--limit", default=150, show_default=True, help="MB of resident memory that are allowed.")
def main(clients: int, queues: int, mib: int, limit: int) -> None:
    """Run the measurement and print what came of it."""
    with own.darner(None) as darner:
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
    click.echo(f"resident       {at_start / 1e6:.0f} MB at start, {peak / 1e6:.0f} MB at its peak")
    if peak > limit * 1_000_000:
        raise click.ClickException(f"more than {limit} MB")


if __name__ == "__main__":
    main()

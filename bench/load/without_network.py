#!/usr/bin/env python3
"""The cost of a request without the network: CPU time in `Connection.data_received`.

Connections in this process send equal sets and gets of 64 bytes, in turn; their replies are dropped.
"""

import asyncio
import gc
import logging
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner._records import now_ms
from darner.environment.environment import Environment
from darner.queues.broker import Broker
from darner.server.threads import Threads
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS
from darner.wire.connection import Connection
from darner.wire.figures import LEVELDB_FIGURES
from load.options import option

BACKLOG = 512
TURNS = 1000
THREADS = 2


class Nowhere:
    """A transport and its socket, which drop all that is written."""

    def __init__(self) -> None:
        self.fileno = lambda: -1
        self.family = socket.AF_INET
        self.setsockopt = lambda *_: None
        self.write = lambda _: None
        self.get_write_buffer_size = lambda: 0
        self.is_closing = lambda: False
        self.pause_reading = self.resume_reading = lambda: None

    def get_extra_info(self, name: str) -> Any:
        """Return the socket, which is this object itself; there is no other information."""
        return self if name == "socket" else None


async def measure(data: Path, connections: int, pipeline: int, rounds: int, fetch: str) -> list[float]:
    """Return the CPU time of a request in each round, in microseconds."""
    loop = asyncio.get_running_loop()
    threads = Threads(loop, THREADS)
    broker = Broker(data, Environment(now_ms, threads.offload))
    broker.open()
    clients = Clients(loop, broker, COMMANDS, figures=LEVELDB_FIGURES, dialect="memcached", keepalive=60)
    nowhere: Any = Nowhere()
    members = [Connection(clients) for _ in range(connections)]
    for connection in members:
        connection.connection_made(nowhere)
    set_, get = b"set q 0 0 64\r\n" + b"x" * 64 + b"\r\n", b"get q%s\r\n" % fetch.encode()
    for _ in range(BACKLOG):
        members[0].data_received(set_)
    sent = [(set_ + get) * (pipeline // 2)] if pipeline > 1 else [set_, get]
    figures = []
    for _ in range(rounds):
        begun = time.thread_time()
        for turn in range(TURNS):
            for at, connection in enumerate(members):
                connection.data_received(sent[(turn + at) % len(sent)])
            await asyncio.sleep(0)
        figures.append((time.thread_time() - begun) / (TURNS * connections * pipeline) * 1e6)
        broker.tick()
    await threads.end()
    broker.close()
    return figures


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("-c --connections", 100, click.IntRange(1, 10_000))
@option("--pipeline", 1, click.IntRange(1, 512))
@option("--rounds", 5, click.IntRange(1, 100))
@click.option("--options", default="", help="Behind the queue of a get, such as /close/open.")
def main(connections: int, pipeline: int, rounds: int, options: str) -> None:
    """Run the bench."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    with tempfile.TemporaryDirectory() as directory:
        figures = uvloop.run(measure(Path(directory), connections, pipeline, rounds, options))
    low, high = min(figures), max(figures)
    print(f"{statistics.median(figures):.2f} us a request ({low:.2f} … {high:.2f}, {rounds} rounds)")


if __name__ == "__main__":
    main()

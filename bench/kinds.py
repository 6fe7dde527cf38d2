#!/usr/bin/env python3
"""Kinds of work beside the plainest: reliable gets beside gets, cursors and delays beside a flood."""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from load import options, raw, sessions
from load.servers import Server
from suite import rounds
from suite.report import BUSINESS, LATENCIES, RATE, Cell, Column, Measured
from suite.rounds import Bench

ITEM = raw.item_of(64)
BACKLOG = 512
SEVERAL = 10
# Delayed items are set so many at once, so often a second, and are due so many ms later.
AT_ONCE, TIMES, DELAY_MS = 50, 20, 1000


class MemcacheHeld(sessions.MemcacheGet):
    """Reliable gets of a client that holds several items, and closes the first of them by its token."""

    def _open(self) -> None:
        super()._open()
        self.tokens: deque[bytes] = deque()
        for _ in range(SEVERAL):
            self._got(self.ask(b"gets %s/open\r\n" % self.queue, b"END\r\n"))

    def request(self) -> bytes:
        """Return what closes one and opens the next."""
        return b"gets %s/close=%s/open\r\n" % (self.queue, self.tokens.popleft())

    def _got(self, reply: bytes) -> None:
        self.tokens.append(reply.split(b"\r\n", 1)[0].rsplit(b" ", 1)[1])


# How items are got, and what a flood of sets and gets has besides. The first of either is the plainest.
GETS: dict[str, type[sessions.Session]] = {
    "get": sessions.MemcacheGet,
    "get reliably": sessions.MemcacheReliable,
    f"get reliably, {SEVERAL} held, by token": MemcacheHeld,
}
FLOOD = "flood"
DELAYED = f"flood, and {AT_ONCE * TIMES:,} delayed items a second"
CURSORS = f"flood with {SEVERAL} cursors"
CHILDREN = f"sets, which {SEVERAL} children get"
WORKS = [*GETS, FLOOD, DELAYED, CURSORS, CHILDREN]


@contextlib.contextmanager
def delayed_items(server: Server, queue: str) -> Iterator[None]:
    """Have items set all the time in another thread, and begin once as many join their queue."""
    over = threading.Event()
    line = b"set %s/delay=%d 0 0 %d\r\n%s\r\n" % (queue.encode(), DELAY_MS, len(ITEM), ITEM)

    def run(connection: socket.socket) -> None:
        while not over.wait(1 / TIMES):
            connection.sendall(line * AT_ONCE)
            left = AT_ONCE * len(raw.STORED)
            while left > 0:
                left -= len(connection.recv(left))

    with server.connect() as connection:
        thread = threading.Thread(target=run, args=(connection,), daemon=True)
        thread.start()
        over.wait(DELAY_MS / 1000 + 2 / TIMES)
        try:
            yield
        finally:
            over.set()
            thread.join()


class Kinds:
    """Measures one kind of work, and how it compares to the plainest."""

    def __init__(self, requests: int, seconds: float) -> None:
        """Measure so many requests, or for so long."""
        self.queue = rounds.queue_name("kinds")
        self.children = [f"{self.queue}+{number}" for number in range(SEVERAL)]
        self.delayed = f"{self.queue}-delayed"
        self._requests, self._seconds = requests, seconds
        # the rate of the plainest work in this round, by server and connections
        self._plain: dict[tuple[str, int], float] = {}

    def measure(self, server: Server, cell: Cell) -> Measured:
        """Measure a kind of work on new queues."""
        work, connections = str(cell["work"]), int(cell["connections"])
        try:
            measured = Measured.of(
                self._get(server, GETS[work], connections)
                if work in GETS
                else self._flood(server, work, connections)
            )
        finally:
            server.delete(self.queue, self.delayed, *self.children)
        figures = measured.figures
        if work == CHILDREN:
            figures["rps"] *= SEVERAL
        if work in (WORKS[0], FLOOD):
            self._plain[server.name, connections] = figures["rps"]
        if plain := self._plain.get((server.name, connections)):
            figures["share"] = figures["rps"] / plain
        return measured

    def _get(self, server: Server, kind: type[sessions.Session], connections: int) -> raw.Result:
        count = self._requests + connections * SEVERAL
        raw.run(server, raw.Load(requests=count, pipeline=64, gets=0, size=len(ITEM), queue=self.queue))
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(server.connect())
            server.ask(control, f"configure {self.queue} max_open_reads={SEVERAL}\r\n".encode())
            connected = [stack.enter_context(server.connect()) for _ in range(connections)]
            several = [kind(one, self.queue, ITEM) for one in connected]
            return sessions.drive(server, several, self._requests, self._seconds)

    def _flood(self, server: Server, work: str, connections: int) -> raw.Result:
        load = raw.Load(connections, self._requests, self._seconds, size=len(ITEM), queue=self.queue)
        if work == CHILDREN:
            for child in self.children:
                raw.run(server, replace(load, connections=1, requests=1, queue=child))
            return raw.run(server, replace(load, gets=0))
        raw.run(server, replace(load, connections=1, requests=BACKLOG, gets=0))
        if work == CURSORS:
            return raw.run(server, replace(load, cursors=SEVERAL))
        with delayed_items(server, self.delayed) if work == DELAYED else contextlib.nullcontext():
            return raw.run(server, load)


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.options(rounds=5, seconds=1.0)
@options.connections("10,100")
@options.requests(50_000)
def main(connections: list[int], requests: int, seconds: float, **common: Any) -> None:
    """Run the bench."""
    kinds = Kinds(requests, seconds)
    bench = Bench(
        name="kinds",
        about=f"kinds of work with items of {len(ITEM)} bytes; the share is that of the rate of '{WORKS[0]}',"
        f" or '{FLOOD}', in the same round",
        cells=[{"connections": count, "work": work} for count in connections for work in WORKS],
        measure=kinds.measure,
        columns=[RATE, Column("share", "share", 2), *LATENCIES, *BUSINESS],
        x="work",
        split="connections",
        split_words={str(count): f"{count} connections" for count in connections},
        drawn={"rps": "requests a second, or items that children get, {}"},
        queues=lambda: [kinds.queue, kinds.delayed, *kinds.children],
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

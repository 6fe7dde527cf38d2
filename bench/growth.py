#!/usr/bin/env python3
"""How the cost of a request grows: with connections, queues, depth and the like.

One of them grows at a time. A server that does not know cursors, or children, has no figures there.
"""

from dataclasses import replace
from typing import Any

import click

from load import options, raw
from load.servers import Server
from suite import rounds
from suite.report import BUSINESS, RATE, Cell, Column, Measured, Median
from suite.rounds import Bench

# What grows, with the words for that; a depth comes last, for its queue takes long to be gone.
QUEUES, CURSORS, CHILDREN, DEPTH = "queues", "cursors", "children", "depth"
GROWS = {
    "connections": "connections",
    "pipeline": "requests in a pipeline",
    QUEUES: "queues",
    "size": "bytes of an item",
    CURSORS: "cursors",
    CHILDREN: "children",
    DEPTH: "items in the queue",
}
TO = {
    "connections": (1, 10, 100, 1000, 10_000),
    "pipeline": (1, 4, 16, 64),
    QUEUES: (1, 10, 100, 1000, 10_000),
    "size": (16, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26),
    CURSORS: (1, 10, 100),
    CHILDREN: (1, 10, 100),
    DEPTH: (0, 10_000, 100_000, 1_000_000, 4_000_000),
}
# So many items are in a queue beforehand, so that each get finds one; of large ones, what has so many bytes.
BACKLOG, MOST_BACKLOG_BYTES = 512, 1 << 20
# Of large items so many bytes are sent, and at least so many items.
MOST_BYTES, LEAST_REQUESTS = 1 << 29, 20
FEW = 10


def bends(medians: list[Median]) -> list[str]:
    """Say how much dearer the dearest step of each line is than the cheapest."""
    lines = []
    for grows in dict.fromkeys(one.cell["grows"] for one in medians):
        words = []
        for server in dict.fromkeys(one.server for one in medians):
            costs = [
                one.figures["cost_us"]
                for one in medians
                if (one.cell["grows"], one.server) == (grows, server) and "cost_us" in one.figures
            ]
            if len(costs) > 1:
                words.append(f"{server} {max(costs) / min(costs):.2f}")
        lines.append(f"{grows}, dearest / cheapest: {', '.join(words)}")
    return lines


class Growth:
    """Measures one step of what grows, and keeps count of what is in the queue that deepens."""

    def __init__(self, grows: list[str], requests: int, most: int, seconds: float, queues: int) -> None:
        """Leave out the steps to more than `most`, and to more than so many queues."""
        self.name = rounds.queue_name("growth")
        self.steps = {
            one: [value for value in TO[one] if value <= (min(most, queues) if one == QUEUES else most)]
            for one in grows
        }
        self._plain = raw.Load(FEW, requests, seconds)
        self._depths: dict[str, int] = {}
        self._are_queues: dict[str, bool] = {}

    @property
    def cells(self) -> list[Cell]:
        """All steps."""
        return [{"grows": one, "to": value} for one, values in self.steps.items() for value in values]

    def measure(self, server: Server, cell: Cell) -> Measured:
        """Measure a step, in a queue of its own."""
        grows, to = str(cell["grows"]), int(cell["to"])
        if grows in (CURSORS, CHILDREN, DEPTH) and not self._is_queue(server):
            return Measured({})
        load = self._load(grows, to)
        try:
            self._prepare(server, grows, to, load)
            result = raw.run(server, load)
            if not _knows(server, grows, load, result):
                return Measured({})
        finally:
            if grows != DEPTH or to == self.steps[DEPTH][-1]:
                self._depths.pop(server.name, None)
                _delete(server, grows, to, load)
        measured = Measured.of(result)
        if result.server_cpu_us > 0:
            measured.figures["cost_us"] = result.server_cpu_us / (to if grows == CHILDREN else 1)
        return measured

    def _is_queue(self, server: Server) -> bool:
        if server.name not in self._are_queues:
            self._are_queues[server.name] = server.is_queue()
        return self._are_queues[server.name]

    def _load(self, grows: str, to: int) -> raw.Load:
        plain = replace(self._plain, queue=f"{self.name}-{grows}")
        requests = plain.requests
        match grows:
            case "connections":
                return replace(plain, connections=to)
            case "pipeline":
                return replace(plain, pipeline=to)
            case "queues":
                return replace(plain, connections=FEW * FEW, queues=to)
            case "size":
                return replace(plain, size=to, requests=min(requests, max(LEAST_REQUESTS, MOST_BYTES // to)))
            case "cursors":
                return replace(plain, cursors=to)
            case "children":
                return replace(plain, gets=0, requests=max(LEAST_REQUESTS, requests // to))
        return plain

    def _prepare(self, server: Server, grows: str, to: int, load: raw.Load) -> None:
        """Have in the queues what is to be there before the load is sent."""
        load = replace(load, seconds=raw.FILL_S)
        if grows == DEPTH:
            missing = to - self._depths.get(server.name, 0)
            self._depths[server.name] = to
            if missing > 0:
                raw.fill(server, load.queue, missing, load.size)
        elif grows == CHILDREN:
            for child in _children(load.queue, to):
                raw.run(server, replace(load, connections=1, requests=1, queue=child))
        elif grows == QUEUES:
            raw.run(server, replace(load, connections=FEW, requests=to, gets=0))
        else:
            count = max(load.connections, min(BACKLOG, MOST_BACKLOG_BYTES // load.size))
            raw.run(server, replace(load, connections=1, requests=count, pipeline=1, gets=0, cursors=0))


def _children(queue: str, count: int) -> list[str]:
    return [f"{queue}+{number}" for number in range(count)]


def _knows(server: Server, grows: str, load: raw.Load, result: raw.Result) -> bool:
    """Return whether the server has done more than to refuse, or to take a cursor for a part of a name."""
    if grows == CURSORS:
        return result.misses <= result.hits
    if grows == CHILDREN:
        child = replace(load, connections=1, requests=2, sets=0, gets=1, queue=_children(load.queue, 1)[0])
        return raw.run(server, child).hits == child.requests
    return True


def _delete(server: Server, grows: str, to: int, load: raw.Load) -> None:
    names = [load.queue]
    if load.queues > 1:
        names = [f"{load.queue}{number}" for number in range(load.queues)]
    elif grows == CHILDREN:
        names += _children(load.queue, to)
    server.delete(*names)


@click.command(help=(__doc__ or "").partition("\n")[0])
@rounds.options(rounds=3, seconds=1.0)
@options.option("--grows", ",".join(GROWS), options.words(list(GROWS)), "Any of these.")
@options.requests(100_000)
@options.option("--most", 100_000_000, options.BACKLOG_ITEMS, "Leave out what is larger.")
@options.option("--queues", 10_000, options.QUEUES, "At most: the original has four files open for each.")
def main(grows: list[str], requests: int, most: int, queues: int, seconds: float, **common: Any) -> None:
    """Run the bench."""
    growth = Growth(grows, requests, most, seconds, queues)
    bench = Bench(
        name="growth",
        about="what a request, or an item that a child gets, costs while something grows;"
        f" sets and gets of 64 bytes, {FEW} connections, {FEW * FEW} to several queues",
        cells=growth.cells,
        measure=growth.measure,
        columns=[
            Column("cost_us", "server CPU us", 2, compared=True),
            replace(RATE, compared=False),
            Column("p99_us", "p99 us"),
            Column("misses", "misses"),
            *BUSINESS[1:],
        ],
        x="to",
        x_words="so many",
        split="grows",
        split_words=GROWS,
        drawn={"cost_us": "processor time by {}, us"},
        queues=lambda: [f"{growth.name}-{one}" for one in grows],
        conclude=bends,
        store_note=", and a set replaces what was there",
    )
    rounds.run(bench, **common)


if __name__ == "__main__":
    main()

"""The server is killed at random instants; the replies that clients got are compared with what comes back.

Ten kills; with `DARNER_KILLS=200` in the environment 200, ten to each data directory.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from running import ATTEMPT, Server, Wire

from darner.repair.check import check

KILLS = 10
DIRECTORIES = -(-int(os.environ.get("DARNER_KILLS", "10")) // KILLS)
PIPELINE = 16
QUEUES = (b"jobs", b"once")
# the errors of a connection to a killed server
LOST = (OSError, EOFError)


def body(name: bytes) -> bytes:
    """Return the item of this name, from which its size, up to a few chunks, and its bytes follow."""
    chance = random.Random(name)
    size = chance.choice((0, 100, 2_000, 150_000 if chance.random() < 0.1 else 10))
    return name + b"/" + chance.randbytes(size)


def name_of(item: bytes) -> bytes:
    name = item.partition(b"/")[0]
    assert item == body(name), "an item came back changed"
    return name


@dataclass
class Ledger:
    """The items that clients have set, fetched and closed."""

    acknowledged: list[bytes] = field(default_factory=list)
    # set, with no reply before the kill
    perhaps_set: list[bytes] = field(default_factory=list)
    fetched: list[bytes] = field(default_factory=list)
    gets_cut_off: int = 0
    closed: list[bytes] = field(default_factory=list)
    # by id: reserved at the kill, close not sent; and close sent, with no reply
    held: dict[int, bytes] = field(default_factory=dict)
    closing: dict[int, bytes] = field(default_factory=dict)
    opens_cut_off: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def add(self, other: "Ledger") -> None:
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if isinstance(mine, dict):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)


def produce(wire: Wire, ledger: Ledger, queue: bytes, who: bytes, depth: int) -> None:
    option = b"" if depth > 1 else b"/sync"
    count = 0
    while True:
        names = [b"%s %09d" % (who, count + i) for i in range(depth)]
        count += depth
        items = [body(name) for name in names]
        answered = 0
        try:
            wire.send(b"".join(b"set %s%s 0 0 %d\r\n%s\r\n" % (queue, option, len(i), i) for i in items))
            for _ in names:
                reply = wire.line()
                if not reply.endswith(b"\n"):
                    raise EOFError
                assert reply == b"STORED\r\n"
                answered += 1
        finally:
            ledger.acknowledged += names[:answered]
            ledger.perhaps_set += names[answered:]


def consume(wire: Wire, ledger: Ledger, queue: bytes) -> None:
    """Get items plainly."""
    while True:
        ledger.gets_cut_off = 1
        data = wire.get(queue + b"/t=50")
        ledger.gets_cut_off = 0
        if data is not None:
            ledger.fetched.append(name_of(data))


def consume_reliably(wire: Wire, ledger: Ledger, queue: bytes, think_s: float) -> None:
    while True:
        ledger.opens_cut_off = 1
        item = wire.gets(queue + b"/open/t=50")
        ledger.opens_cut_off = 0
        if item is None:
            continue
        token, data = item
        id = token % ATTEMPT
        ledger.held[id] = name_of(data)
        time.sleep(think_s)  # a consumer works on its item
        ledger.closing[id] = ledger.held.pop(id)
        if wire.ask(b"get %s/close\r\n" % queue) != b"END\r\n":
            raise EOFError
        ledger.closed.append(ledger.closing.pop(id))


class Round:
    """Clients at work in one life of the server."""

    def __init__(self, server: Server, tag: bytes) -> None:
        self.ledger = Ledger()
        self._parts: list[Ledger] = []
        self._threads: list[threading.Thread] = []
        for queue in QUEUES:
            for number, depth in enumerate((1, PIPELINE)):
                self._begin(server, produce, queue, b"%s %s %d" % (queue, tag, number), depth)
        self._begin(server, consume, b"once")
        for think_s in (0, 0.001, 0.05):
            self._begin(server, consume_reliably, b"jobs", think_s)

    def _begin(self, server: Server, work, *args) -> None:
        part = Ledger()
        wire = server.connect()

        def run() -> None:
            try:
                with contextlib.suppress(*LOST):
                    work(wire, part, *args)
            except BaseException as error:
                # a line or value that the kill cut off
                if not isinstance(error, ValueError):
                    part.errors.append(error)
            wire.close()

        self._parts.append(part)
        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def end(self) -> Ledger:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for part in self._parts:
            self.ledger.add(part)
        assert not self.ledger.errors
        return self.ledger


def returned_first(server: Server, life: Ledger) -> None:
    """Check that items reserved at the kill are at the head, in their order."""
    uncertain = len(life.closing) + life.opens_cut_off
    wires = [server.connect() for _ in range(len(life.held) + uncertain)]
    heads = [item for wire in wires if (item := wire.gets(b"jobs/open")) is not None]
    ids = [token % ATTEMPT for token, _ in heads]
    assert ids == sorted(ids)
    assert {id: name_of(data) for id, (_, data) in zip(ids, heads, strict=True)}.items() >= life.held.items()
    for wire in reversed(wires):
        assert wire.ask(b"get jobs/abort\r\n") == b"END\r\n"
        wire.close()


def scanned(server: Server) -> dict[str, tuple[int, int]]:
    """Return items and bytes of each queue, by a scan of the disk, which must find no damage."""
    reports = list(check(server.data))
    assert [report.problems for report in reports if report.problems] == []
    return {report.where: (report.items, report.bytes) for report in reports}


def counted(server: Server) -> dict[str, tuple[int, int]]:
    """Return items and bytes of each queue, as `stats` counts them."""
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
    names = [name.decode() for name in QUEUES]
    return {name: (int(stats[f"queue_{name}_items"]), int(stats[f"queue_{name}_bytes"])) for name in names}


@pytest.mark.parametrize("directory", range(DIRECTORIES))
def test_what_was_acknowledged_survives_every_kill(server, directory):
    chance = random.Random()
    whole = Ledger()
    for number in range(KILLS):
        clients = Round(server, b"%02d" % number)
        time.sleep(chance.uniform(0.05, 0.4))  # the instant of the kill, which depends on nothing
        server.kill()
        life = clients.end()
        found = scanned(server)
        server.start()
        assert counted(server) == found
        returned_first(server, life)
        whole.add(life)
    assert whole.closed
    assert whole.held or whole.closing
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        left = {queue: wire.drain(queue) for queue in QUEUES}
        assert wire.stats()["curr_items"] == "0"

    for queue, items in left.items():
        assert int(stats[f"queue_{queue.decode()}_items"]) == len(items)
        assert int(stats[f"queue_{queue.decode()}_bytes"]) == sum(len(data) for _, data in items)
        ids = [id for id, _ in items]
        assert ids == sorted(set(ids))
        names = [name_of(data) for _, data in items]
        assert_each_producer_in_order(names)
    reserved = {name_of(data) for _, data in left[b"jobs"]}
    popped = Counter([name_of(data) for _, data in left[b"once"]] + whole.fetched)

    assert set(popped.values()) == {1}, "a plain get gave an item twice"
    assert max(Counter(whole.closed).values()) == 1, "a closed item came back and was closed again"
    assert not reserved & set(whole.closed), "a closed item came back"
    known = set(whole.acknowledged) | set(whole.perhaps_set)
    assert popped.keys() | reserved | set(whole.closed) <= known, "an item came from nowhere"
    jobs = {name for name in whole.acknowledged if name.startswith(b"jobs")}
    assert jobs <= reserved | set(whole.closed) | set(whole.closing.values()), "an acknowledged item is lost"
    lost = {name for name in whole.acknowledged if name.startswith(b"once")} - popped.keys()
    assert len(lost) <= whole.gets_cut_off, "more is lost than plain gets were cut off"


def assert_each_producer_in_order(names: list[bytes]) -> None:
    last: dict[bytes, bytes] = {}
    for name in names:
        who = name.rpartition(b" ")[0]
        assert last.get(who, b"") < name
        last[who] = name

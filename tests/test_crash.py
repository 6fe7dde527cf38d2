"""The server is killed at random instants; what clients were promised is held against what comes back."""

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from running import Server, Wire, running

from darner import leveldb

KILLS = 10
PIPELINE = 16
REPLAY = Path(__file__).parent.parent / "bench" / "replay.py"
HALF_SENT_BYTES = 10 << 20
# what a connection to a killed server ends with
LOST = (OSError, EOFError)


def body(name: bytes) -> bytes:
    """The item of this name: its size, up to a few chunks, and its bytes follow from the name."""
    chance = random.Random(name)
    size = chance.choice((0, 100, 2_000, 150_000 if chance.random() < 0.1 else 10))
    return name + b"/" + chance.randbytes(size)


def name_of(item: bytes) -> bytes:
    name = item.partition(b"/")[0]
    assert item == body(name), "an item came back changed"
    return name


@dataclass
class Ledger:
    """What the clients know."""

    acknowledged: list[bytes] = field(default_factory=list)
    # set, and the answer cut off
    perhaps_set: list[bytes] = field(default_factory=list)
    fetched: list[bytes] = field(default_factory=list)
    gets_cut_off: int = 0
    closed: list[bytes] = field(default_factory=list)
    # by id: held at the kill, close not sent; and close sent, the answer cut off
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


def gets(wire: Wire, key: bytes) -> tuple[int, bytes] | None:
    """Id and data of the next item."""
    values = wire.values(b"gets " + key)
    return (values[0][2], values[0][3]) if values else None


def drained(wire: Wire, queue: bytes) -> list[tuple[int, bytes]]:
    found = []
    while (item := gets(wire, queue)) is not None:
        found.append(item)
    return found


def produce(wire: Wire, ledger: Ledger, queue: bytes, who: bytes, depth: int) -> None:
    option = b"" if depth > 1 else b"/sync"
    count = 0
    while True:
        names = [b"%s %06d" % (who, count + i) for i in range(depth)]
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
    """Plain gets."""
    while True:
        ledger.gets_cut_off = 1
        data = wire.get(queue + b"/t=50")
        ledger.gets_cut_off = 0
        if data is not None:
            ledger.fetched.append(name_of(data))


def consume_reliably(wire: Wire, ledger: Ledger, queue: bytes, think_s: float) -> None:
    while True:
        ledger.opens_cut_off = 1
        item = gets(wire, queue + b"/open/t=50")
        ledger.opens_cut_off = 0
        if item is None:
            continue
        id, data = item
        ledger.held[id] = name_of(data)
        time.sleep(think_s)  # a consumer works on what it got
        ledger.closing[id] = ledger.held.pop(id)
        if wire.ask(b"get %s/close\r\n" % queue) != b"END\r\n":
            raise EOFError
        ledger.closed.append(ledger.closing.pop(id))


class Round:
    """Clients at work on one life of the server."""

    def __init__(self, server: Server, tag: bytes) -> None:
        self.ledger = Ledger()
        self._parts: list[Ledger] = []
        self._threads: list[threading.Thread] = []
        for queue in (b"jobs", b"once"):
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
                # the line or the value that a kill cut through
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
    """What was reserved at the kill is at the head, in its original order."""
    uncertain = len(life.closing) + life.opens_cut_off
    wires = [server.connect() for _ in range(len(life.held) + uncertain)]
    heads = [item for wire in wires if (item := gets(wire, b"jobs/open")) is not None]
    ids = [id for id, _ in heads]
    assert ids == sorted(ids)
    assert {id: name_of(data) for id, data in heads}.items() >= life.held.items()
    for wire in reversed(wires):
        assert wire.ask(b"get jobs/abort\r\n") == b"END\r\n"
        wire.close()


@pytest.mark.timeout(90)
def test_what_was_acknowledged_survives_every_kill(server):
    chance = random.Random()
    whole = Ledger()
    for number in range(KILLS):
        clients = Round(server, b"%02d" % number)
        time.sleep(chance.uniform(0.05, 0.4))  # the instant of the kill: nothing is waited for
        server.kill()
        life = clients.end()
        server.start()
        returned_first(server, life)
        whole.add(life)
    assert whole.closed
    assert whole.held or whole.closing
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        left = {queue: drained(wire, queue) for queue in (b"jobs", b"once")}
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


def test_counts_and_bytes_after_a_kill_are_those_of_a_full_drain(server, wire):
    chance = random.Random(3)
    holders = [server.connect() for _ in range(20)]
    for i in range(300):
        wire.set(b"jobs", chance.randbytes(chance.choice((0, 10, 5_000, 200_000 if i % 50 == 0 else 1))))
    wire.set(b"flushed", b"gone")
    wire.set(b"flushed", chance.randbytes(100_000))
    taken = [gets(holder, b"jobs/open")[0] for holder in holders]
    closed = chance.sample(range(len(holders)), 10)
    for index in closed:
        assert holders[index].ask(b"get jobs/close\r\n") == b"END\r\n"
    assert wire.ask(b"flush flushed\r\n") == b"END\r\n"
    wire.set(b"flushed", b"kept")
    for _ in range(30):
        wire.get(b"jobs")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        jobs, flushed = drained(wire, b"jobs"), drained(wire, b"flushed")
    assert stats["queue_jobs_items"] == str(len(jobs)) == str(300 - 10 - 30)
    assert stats["queue_jobs_bytes"] == str(sum(len(data) for _, data in jobs))
    assert [id for id, _ in jobs][:10] == [id for i, id in enumerate(taken) if i not in closed]
    assert [data for _, data in flushed] == [b"kept"]
    assert (stats["queue_flushed_items"], stats["queue_flushed_bytes"]) == ("1", "4")
    assert stats["curr_items"] == str(len(jobs) + 1)


def disk_bytes(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # LevelDB deletes files as we look
            total += file.stat().st_blocks * 512
    return total


def wait_until(holds, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def send_half(server: Server, wire: Wire) -> None:
    """Send an item but for its end, and wait until it is on the disk."""
    sent = random.Random(1).randbytes(HALF_SENT_BYTES - 1)
    wire.send(b"set work 0 0 %d\r\n%s" % (HALF_SENT_BYTES, sent))
    wait_until(lambda: disk_bytes(server.data / "work") > HALF_SENT_BYTES * 0.9)


def records(server: Server, queue: str) -> list[bytes]:
    """The keys of a queue's journal; the server must be down."""
    db = leveldb.DB(str(server.data / queue))
    try:
        return list(db.iterator(include_value=False))
    finally:
        db.close()


def assert_nothing_left(server: Server) -> None:
    wait_until(lambda: disk_bytes(server.data / "work") < HALF_SENT_BYTES / 10)
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        assert (stats["queue_work_items"], stats["queue_work_bytes"]) == ("1", "3")
        assert wire.get(b"work/peek") == b"one"
    assert server.stop() == 0
    assert {key[:1] for key in records(server, "work")} == {b"i", b"s"}


def test_a_half_sent_item_leaves_nothing_behind_after_a_kill(server, wire):
    wire.set(b"work", b"one")
    send_half(server, server.connect())
    server.restart()
    assert_nothing_left(server)


def test_a_half_sent_item_leaves_nothing_behind_after_its_client_is_gone(server, wire):
    wire.set(b"work", b"one")
    sender = server.connect()
    send_half(server, sender)
    sender.close()
    assert_nothing_left(server)


@pytest.mark.parametrize(
    "after", [b"get work\r\n", b"flush work\r\n", b"delete work\r\nset work 0 0 1\r\nx\r\n", b""]
)
def test_chunks_of_an_item_gone_in_the_turn_it_came_in_leave_nothing_behind(server, wire, after):
    block = bytes(150_000)
    half = b"" if after else b"set work 0 0 %d\r\n%s" % (len(block), block[:100_000])
    for _ in range(5):
        with contextlib.closing(server.connect()) as other:
            other.send(b"set work 0 0 %d\r\n%s\r\n%s%s" % (len(block), block, after, half))
            other.socket.shutdown(socket.SHUT_WR)
            while other.line():
                pass
    wire.get(b"work")
    wire.ask(b"flush work\r\n")
    for _ in range(2):  # what came too late is seen to at the next start
        assert server.stop() == 0
        server.start()
    assert server.stop() == 0
    assert {key[:1] for key in records(server, "work")} <= {b"i", b"s", b"k"}


def test_a_real_file_comes_out_whole_through_five_kills(tmp_path):
    chance = random.Random(5)
    file = tmp_path / "log"
    file.write_bytes(b"".join(b"%d %s\n" % (i, b"x" * chance.randrange(200)) for i in range(2_000)))
    ended = subprocess.run(
        [sys.executable, REPLAY, file, "--kills", "5", "--output", tmp_path / "drained"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "drained").read_bytes() == file.read_bytes()


def test_a_server_killed_while_it_starts_starts_again(tmp_path):
    with running(tmp_path / "data") as server:
        with contextlib.closing(server.connect()) as wire:
            for i in range(50):
                wire.set(b"queue%d" % (i % 10), b"%d" % i)
        server.kill()
        for _ in range(3):
            process = subprocess.Popen(
                [Path(sys.executable).with_name("darner"), "--data", server.data, "--port", "0"],
                stderr=subprocess.PIPE,
            )
            process.stderr.read(1)  # it begins to say where it listens
            process.kill()
            process.communicate(timeout=10)
        server.start()
        with contextlib.closing(server.connect()) as wire:
            assert wire.stats()["curr_items"] == "50"

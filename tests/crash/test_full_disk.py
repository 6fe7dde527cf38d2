"""Disks that a backlog, or another program, has filled to the last byte, and that never grow: fetches and
flushes free space, and then sets are taken again."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from file_systems import mounted
from running import Server, Wire, running, until

# the least that mkfs.xfs accepts
SIZES_MIB = {"tmpfs": 40, "ext4": 100, "xfs": 300}
REFUSED = b"SERVER_ERROR refused: the disk is full\r\n"
TOO_LITTLE = b"SERVER_ERROR refused: less is free on the disk than min_free_space\r\n"
BATCH = 50


@pytest.fixture
def kind(request) -> str:
    return getattr(request, "param", "tmpfs")


@pytest.fixture
def disk(kind, tmp_path) -> Iterator[Path]:
    with mounted(kind, SIZES_MIB[kind], tmp_path) as path:
        yield path


@pytest.fixture
def server(disk) -> Iterator[Server]:
    with running(disk / "data") as server:
        yield server


on_each = pytest.mark.parametrize(
    "kind", ["tmpfs", "ext4", pytest.param("xfs", marks=pytest.mark.long)], indirect=True
)
on_all_at_length = pytest.mark.parametrize(
    "kind",
    ["tmpfs", pytest.param("ext4", marks=pytest.mark.long), pytest.param("xfs", marks=pytest.mark.long)],
    indirect=True,
)


def item(number: int, size: int) -> bytes:
    return b"%-12d" % number + bytes(size - 12)


class Backlog:
    """The items that were set on some queues, in turn, until the disk was full."""

    def __init__(self, server: Server, queues: int = 1, size: int = 8_000, option: bytes = b"") -> None:
        self.server = server
        self.queues = [b"queue%d" % number for number in range(queues)]
        self.size = size
        self.option = option
        self.stored: dict[bytes, list[int]] = {queue: [] for queue in self.queues}
        self._number = 0

    def connect(self) -> contextlib.AbstractContextManager[Wire]:
        return contextlib.closing(self.server.connect())

    def set(self, wire: Wire, queue: bytes, count: int) -> AbstractSet[bytes]:
        """Set so many items; return the different refusals."""
        numbers = range(self._number, self._number + count)
        self._number += count
        name = queue + self.option
        wire.send(
            b"".join(
                b"set %s 0 0 %d\r\n%s\r\n" % (name, self.size, item(number, self.size)) for number in numbers
            )
        )
        refusals = set()
        for number in numbers:
            reply = wire.line()
            if reply == b"STORED\r\n":
                self.stored[queue].append(number)
            else:
                refusals.add(reply)
        return refusals

    def fill(self, refusal: bytes = REFUSED) -> None:
        """Set items until the disk is full, even after LevelDB has had time to compact."""
        count = max(1, min(BATCH * 10, 400_000 // self.size))
        with self.connect() as wire:
            for _ in range(3):
                before = self._number
                while not self._set_on_each(wire, count):
                    pass
                refusals = self.set(wire, self.queues[0], 1)
                until(lambda: self.server.stat("curr_items") >= 0)
                if before:  # free space is checked now and then
                    assert refusals <= {refusal, REFUSED}
        assert all(self.stored.values())

    def _set_on_each(self, wire: Wire, count: int) -> AbstractSet[bytes]:
        return set().union(*(self.set(wire, queue, count) for queue in self.queues))

    def assert_lets_all_out(self) -> None:
        """Check that every item comes in order, and that no get is refused."""
        with self.connect() as wire:
            for queue, numbers in self.stored.items():
                self.assert_comes(wire, queue, numbers)
                assert wire.get(queue) is None
                numbers.clear()

    def assert_comes(self, wire: Wire, queue: bytes, numbers: list[int]) -> None:
        head = b"VALUE %s 0 %d\r\n" % (queue, self.size)
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            wire.send(b"get %s\r\n" % queue * len(batch))
            for number in batch:
                assert wire.line() == head
                assert wire.exactly(self.size + 7) == item(number, self.size) + b"\r\nEND\r\n"

    def assert_is_taken_again(self, seconds: float = 15.0) -> None:
        with self.connect() as wire:
            for queue in self.queues:
                until(lambda queue=queue: wire.set(queue, b"late") == b"STORED\r\n", seconds)


def one_line_each(log: str) -> None:
    """Check that the log reports in turn that the disk is full and that it has space again, no more."""
    lines = [line for line in log.splitlines() if "level=error" in line or "level=warning" in line]
    for at, line in enumerate(lines):
        assert ("room on the disk again" if at % 2 else "disk too full") in line
    assert len(lines) < 20


@on_each
@pytest.mark.parametrize(
    ("queues", "size"), [(1, 8_000), (5, 8_000), (2, 100_000)], ids=["items", "queues", "large items"]
)
def test_a_disk_that_a_backlog_filled_takes_sets_again_once_it_is_fetched(server, queues, size):
    backlog = Backlog(server, queues, size)
    backlog.fill()
    backlog.assert_lets_all_out()
    backlog.assert_is_taken_again()
    assert server.stop() == 0
    one_line_each(server.log)


@on_each
def test_small_items_are_all_let_out_of_a_full_disk(server):
    backlog = Backlog(server, size=200)
    backlog.fill()
    backlog.assert_lets_all_out()
    backlog.assert_is_taken_again()


@on_all_at_length
@pytest.mark.parametrize("request_", [b"flush queue0\r\n", b"flush_all\r\n"], ids=["flush", "flush_all"])
def test_a_disk_that_a_backlog_filled_takes_sets_again_once_it_is_flushed(server, request_):
    backlog = Backlog(server, 1 if b"queue0" in request_ else 4)
    backlog.fill()
    with backlog.connect() as wire:
        assert wire.ask(request_) in (b"END\r\n", b"OK\r\n")
    backlog.assert_is_taken_again()


@on_all_at_length
def test_a_part_of_a_backlog_that_is_fetched_makes_room_for_more(server):
    backlog = Backlog(server)
    backlog.fill()
    (numbers,) = backlog.stored.values()
    half = len(numbers) // 2
    with backlog.connect() as wire:
        backlog.assert_comes(wire, b"queue0", numbers[:half])
        until(lambda: not backlog.set(wire, b"queue0", 1), 15)
        backlog.assert_comes(wire, b"queue0", numbers[half:])


@on_all_at_length
def test_reserved_items_that_are_closed_make_room(server):
    backlog = Backlog(server)
    backlog.fill()
    (numbers,) = backlog.stored.values()
    with backlog.connect() as wire:
        for number in numbers:
            assert wire.get(b"queue0/close/open").startswith(b"%d " % number)
        wire.get(b"queue0/close")
    backlog.assert_is_taken_again()


@on_all_at_length
def test_an_item_goes_back_with_no_pause_while_the_disk_is_full_and_is_not_lost(disk, server):
    """At the head it would be fetched again at once: so the client is told, and has it still."""
    backlog = Backlog(server)
    backlog.fill()
    fill_to_the_last_byte(disk / "filler")
    (numbers,) = backlog.stored.values()
    with backlog.connect() as wire:
        until(lambda: backlog.set(wire, b"queue0", 1) == {REFUSED})
        assert wire.get(b"queue0/open") == item(numbers[0], backlog.size)
        refusal = wire.ask(b"get queue0/abort/delay=1\r\n")
        assert refusal == b"SERVER_ERROR refused: there is too little space on the disk\r\n"
        assert wire.ask(b"get queue0/open\r\n") == b"CLIENT_ERROR close current item first\r\n"
        assert wire.get(b"queue0/abort") is None
    (disk / "filler").unlink()
    backlog.assert_lets_all_out()
    backlog.assert_is_taken_again()
    with backlog.connect() as wire:
        assert wire.get(b"queue0/open") == b"late"
        assert wire.ask(b"get queue0/abort/delay=1\r\n") == b"END\r\n"
        assert wire.get(b"queue0/t=5000") == b"late"


@on_all_at_length
def test_delayed_items_that_fill_a_disk_come_when_they_are_due_and_make_room(server):
    backlog = Backlog(server, option=b"/delay=1500")
    backlog.fill()
    (numbers,) = backlog.stored.values()
    with backlog.connect() as wire:
        found = []
        until(lambda: found or found.extend(wire.drain(b"queue0")))
        until(lambda: found.extend(wire.drain(b"queue0")) or len(found) == len(numbers))
    assert sorted(int(data.split()[0]) for _, data in found) == numbers
    backlog.assert_is_taken_again()


@on_all_at_length
def test_a_disk_filled_up_to_min_free_space_takes_sets_again(disk, tmp_path):
    config = tmp_path / "darner.toml"
    config.write_text('min_free_space = "10 MiB"')
    with running(disk / "data", "--config", str(config)) as server:
        backlog = Backlog(server)
        backlog.fill(TOO_LITTLE)
        backlog.assert_lets_all_out()
        backlog.assert_is_taken_again()


def fill_to_the_last_byte(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@on_all_at_length
@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("is_filled_up", [False, True], ids=["by the backlog", "to the last byte"])
def test_a_server_started_on_a_full_disk_lets_all_out_and_takes_sets_again(disk, server, end, is_filled_up):
    backlog = Backlog(server, 3)
    backlog.fill()
    if is_filled_up:
        fill_to_the_last_byte(disk / "filler")
    getattr(server, end)()
    server.start()
    backlog.assert_lets_all_out()
    backlog.assert_is_taken_again()


@on_all_at_length
def test_what_somebody_else_filled_to_the_last_byte_lets_all_out_and_takes_sets_again(disk, server):
    backlog = Backlog(server, 2, 1_000)
    with backlog.connect() as wire:
        for _ in range(50):
            for queue in backlog.queues:
                assert not backlog.set(wire, queue, 100)
        fill_to_the_last_byte(disk / "filler")
        while not backlog.set(wire, b"queue0", 100):
            pass
        until(lambda: backlog.set(wire, b"queue1", 1) == {REFUSED})
    backlog.assert_lets_all_out()
    (disk / "filler").unlink()
    backlog.assert_is_taken_again()


@on_all_at_length
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_of_a_disk_whose_very_reserve_somebody_else_has_taken(disk, server, seed):
    """Gets may be refused then, too. The server is killed at any moment, and all items come back once there
    is space."""
    chance = random.Random(seed)
    backlog = Backlog(server, 3, 1_000)
    fetched = dict.fromkeys(backlog.queues, 0)
    for _ in range(3):
        with backlog.connect() as wire:
            for _ in range(30):
                for queue in backlog.queues:
                    backlog.set(wire, queue, chance.randrange(100))
            fill_to_the_last_byte(disk / "filler")
            for _ in range(40):
                queue = chance.choice(backlog.queues)
                backlog.set(wire, queue, chance.randrange(200))
                left = len(backlog.stored[queue]) - fetched[queue]
                for _ in range(min(left, chance.randrange(20))):
                    with contextlib.suppress(AssertionError):  # refused
                        value = wire.get(queue)
                        assert value == item(backlog.stored[queue][fetched[queue]], backlog.size)
                        fetched[queue] += 1
                if chance.random() < 0.2:
                    fill_to_the_last_byte(disk / "filler")
            if chance.random() < 0.7:
                server.kill()
                if chance.random() < 0.5:
                    (disk / "filler").unlink()
                server.start()
        (disk / "filler").unlink(missing_ok=True)
        backlog.assert_is_taken_again()
        with backlog.connect() as wire:
            for queue in backlog.queues:
                numbers = backlog.stored[queue]
                backlog.assert_comes(wire, queue, numbers[fetched[queue] :])
                fetched[queue] = len(numbers)
                assert wire.get(queue) == b"late"


def test_the_reserve_has_its_room_again_when_all_is_well(disk, server):
    reserve = disk / "data" / ".reserve"
    whole = reserve.stat().st_blocks
    assert whole * 512 == pytest.approx(shutil.disk_usage(disk).total / 6, rel=0.05)
    backlog = Backlog(server)
    with backlog.connect() as wire:
        assert not backlog.set(wire, b"queue0", BATCH)
    fill_to_the_last_byte(disk / "filler")
    until(lambda: reserve.stat().st_blocks < whole)
    (disk / "filler").unlink()
    until(lambda: reserve.stat().st_blocks == whole)
    backlog.assert_lets_all_out()
    server.restart()
    assert reserve.stat().st_blocks == whole

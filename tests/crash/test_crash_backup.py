"""Backups of a server under load, against the ledger of its clients."""

import contextlib
import itertools
import shutil
import signal
import time

import pytest
from running import run_darner, running
from test_ledger import (
    Ledger,
    Round,
    assert_each_producer_in_order,
    consume,
    consume_reliably,
    name_of,
    produce,
)

FANOUT = (b"news", b"news+a", b"news+b")


def store(wire, name, body):
    if not (reply := wire.set(name, body)).endswith(b"\n"):
        raise EOFError
    assert reply == b"STORED\r\n"


class Busy(Round):
    """Clients of a ledger, and others that delete and flush queues, set on several at once, and make new
    ones."""

    def __init__(self, server, tag):
        self._parts, self._threads, self.ledger = [], [], Ledger()
        # few, so that a copy is soon drained
        self._begin(server, produce, b"jobs", b"jobs %s" % tag, 1)
        self._begin(server, produce, b"once", b"once %s" % tag, 2)
        self._begin(server, consume, b"once")
        self._begin(server, consume_reliably, b"jobs", 0.005)
        self._begin(server, self._set_on_several)
        self._begin(server, self._delete_and_flush)

    def _set_on_several(self, wire, ledger):
        for name in FANOUT[1:]:
            wire.set(name, b"subscribed")
        for number in itertools.count():
            body = b"%d/" % number + bytes(number % 7 * 20_000)
            store(wire, FANOUT[0], body)
            if number > 20:
                for name in FANOUT:
                    wire.get(name)

    def _delete_and_flush(self, wire, ledger):
        for number in itertools.count():
            name = b"gone%d" % (number % 3)
            for size in (10, 100_000, 10):
                store(wire, name, b"%d/" % number + bytes(size))
            wire.ask((b"delete %s\r\n", b"flush %s\r\n")[number % 2] % name)

    def so_far(self):
        """Return what is in the ledger now."""
        ledger = Ledger()
        for part in self._parts:
            ledger.add(part)
        return ledger


def check_copy(directory, before, clients):
    """Check a copy against what clients had done before it began, and what they have by now."""
    with running(directory) as server, contextlib.closing(server.connect()) as wire:
        left = {queue: wire.drain(queue) for queue in (b"jobs", b"once")}
        several = [wire.take_all(name) for name in FANOUT]
        for name in (b"gone0", b"gone1", b"gone2"):
            assert len({body.partition(b"/")[0] for body in wire.take_all(name)}) <= 1
        server.stop()
    after = clients.so_far()
    names = []
    for items in left.values():
        ids = [id for id, _ in items]
        assert ids == sorted(set(ids))
        names += [name_of(data) for _, data in items]
        assert_each_producer_in_order([name_of(data) for _, data in items])
    assert len(set(names)) == len(names)
    there = set(names)
    gone = {*after.fetched, *after.closed, *after.closing.values()}
    missing = set(before.acknowledged) - there - gone
    # a get whose reply is on its way is not in the ledger yet
    assert len(missing) <= 1, "what was acknowledged before the backup is lost"
    assert not there & {*before.fetched, *before.closed}, "what was taken before the backup is back"
    numbers = [
        [int(body.partition(b"/")[0]) for body in bodies if body != b"subscribed"] for bodies in several
    ]
    assert all(each == list(range(each[0], each[0] + len(each))) for each in numbers if each)
    assert len({each[-1] for each in numbers if each}) <= 1, "a set on several queues is in some of them"


def make_backups(server, directory, number):
    clients = Busy(server, b"%02d" % number)
    for each in range(number):
        time.sleep(0.3)  # the instant depends on nothing
        before = clients.so_far()
        done = run_darner("backup", server.data, directory / str(each))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        # it rests meanwhile, or on a slow machine each copy would be larger than the one before
        server.process.send_signal(signal.SIGSTOP)
        check_copy(directory / str(each), before, clients)
        server.process.send_signal(signal.SIGCONT)
        shutil.rmtree(directory / str(each))
    server.kill()
    clients.end()


def test_a_backup_under_load_has_all_that_was_acknowledged_and_nothing_that_was_taken(server, tmp_path):
    make_backups(server, tmp_path, 2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_backups_under_load_are_whole(server, tmp_path):
    make_backups(server, tmp_path, 50)

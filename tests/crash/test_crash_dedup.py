"""Clients that never learn whether a set was stored send it again, while the server is killed at random."""

import contextlib
import os
import random
import threading
import time
from collections import Counter

import pytest
from running import Server, running

KILLS = int(os.environ.get("DARNER_KILLS", "8"))
CLIENTS = 4
PIPELINE = 24
# how long a server lives, at most
LIFE_S = 0.8
LOST = (OSError, EOFError)


def body(id):
    """Return the data of the item with this id: a large one now and then."""
    chance = random.Random(id)
    return id + b"/" + bytes(chance.choice((0, 30, 3_000, 100_000 if chance.random() < 0.2 else 50)))


class Producer(threading.Thread):
    """A client that sends a set until it gets a reply, and some that were answered once more."""

    def __init__(self, port_of, number):
        super().__init__()
        self._port_of = port_of
        self._chance = random.Random(number)
        self._ids = iter(lambda: b"%d-%d" % (number, next(self._counter)), None)
        self._counter = iter(range(1 << 40))
        self.sent_again = 0
        self.stored = []
        self.error = None
        self.ends = threading.Event()

    def run(self):
        pending = []
        try:
            while pending or not self.ends.is_set():
                if not self.ends.is_set():
                    pending += [next(self._ids) for _ in range(PIPELINE - len(pending))]
                with contextlib.suppress(*LOST):
                    self._send(pending)
        except BaseException as error:
            self.error = error

    def _send(self, pending):
        """Send what has no reply yet, and forget what is answered."""
        wire = self._port_of().connect()
        with contextlib.closing(wire):
            while pending:
                again = self._chance.choices(self.stored, k=2) if self.stored else []
                sent = [*pending, *again]
                self._chance.shuffle(sent)
                option = self._chance.choice((b"", b"", b"/sync", b"/delay=1"))
                wire.send(b"".join(self._request(id, option) for id in sent))
                for id in sent:
                    reply = wire.line()
                    if not reply.endswith(b"\n"):
                        raise EOFError
                    assert reply == b"STORED\r\n", reply
                    if id in pending:
                        pending.remove(id)
                        self.stored.append(id)
                    else:
                        self.sent_again += 1
                if not self.ends.is_set():
                    pending += [next(self._ids) for _ in range(PIPELINE)]

    @staticmethod
    def _request(id, option):
        data = body(id)
        return b"set work/id=%s%s 0 0 %d\r\n%s\r\n" % (id, option, len(data), data)


@pytest.mark.timeout(60 + KILLS * 10)
def test_each_id_is_there_once_however_often_it_is_sent(tmp_path):
    chance = random.Random(7)
    with running(tmp_path / "data") as server:
        # a child gets all, too; what is fetched meanwhile must not come back
        server.connect().get(b"work+child")
        producers = [Producer(lambda: server, number) for number in range(CLIENTS)]
        for producer in producers:
            producer.start()
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.05, LIFE_S))
            server.restart()
        for producer in producers:
            producer.ends.set()
        for producer in producers:
            producer.join()
        assert [producer.error for producer in producers] == [None] * CLIENTS
        stored = [id for producer in producers for id in producer.stored]
        assert len(stored) > KILLS * PIPELINE
        assert sum(producer.sent_again for producer in producers) > KILLS
        for queue in (b"work", b"work+child"):
            found = all_of(server, queue)
            assert Counter(found) == Counter(stored)


def all_of(server: Server, queue):
    """Take all items of a queue; return their ids."""
    wire = server.connect()
    found = []
    while (data := wire.get(queue + b"/t=300")) is not None:
        id = data.partition(b"/")[0]
        assert data == body(id)
        found.append(id)
    return found


def test_a_set_is_stored_once_by_whoever_sends_it_before_and_after_a_kill(tmp_path):
    """The kill comes between a set and its repetition, whether LevelDB has it by then or not."""
    with running(tmp_path / "data") as server:
        for written_s in (0, 1.6):
            wire = server.connect()
            assert wire.ask(b"set work/id=%f 0 0 1\r\nx\r\n" % written_s) == b"STORED\r\n"
            time.sleep(written_s)  # a batch is written when it is a second old
            server.restart()
            assert server.connect().ask(b"set work/id=%f 0 0 1\r\nx\r\n" % written_s) == b"STORED\r\n"
        assert len(all_items(server)) == 2


def all_items(server):
    return server.connect().take_all(b"work")

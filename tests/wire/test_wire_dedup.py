"""`set …/id=<key>`: sent again, on one connection or on several, and after the end of the server."""

import threading

import pytest
from running import configured

from darner._records import CHUNK_BYTES

STORED = b"STORED\r\n"
LARGE = b"large" * CHUNK_BYTES


def set_once(queue, id, data, more=b""):
    return b"set %s/id=%s%s 0 0 %d\r\n%s\r\n" % (queue, id, more, len(data), data)


def duplicates(server, queue):
    return server.stat(f"queue_{queue.decode()}_duplicates")


class TestRepetition:
    def test_in_one_pipeline_is_stored_once_each_by_itself(self, standing, client, queue):
        client.send(set_once(queue, b"a", b"1") * 3 + set_once(queue, b"b", b"2"))
        assert [client.line() for _ in range(4)] == [STORED] * 4
        assert client.take_all(queue) == [b"1", b"2"]
        assert duplicates(standing, queue) == 2

    @pytest.mark.parametrize("end", ["kill", "stop"])
    def test_after_the_end_of_the_server_is_not_stored(self, server, wire, end):
        assert wire.ask(set_once(b"q", b"a", b"1")) == STORED
        getattr(server, end)()
        server.start()
        wire = server.connect()
        assert wire.ask(set_once(b"q", b"a", b"1")) == STORED
        assert wire.ask(set_once(b"q", b"b", b"2")) == STORED
        assert wire.take_all(b"q") == [b"1", b"2"]
        getattr(server, end)()
        server.start()
        wire = server.connect()
        assert wire.ask(set_once(b"q", b"b", b"2")) == STORED
        assert wire.get(b"q") is None

    def test_without_a_reply_is_silent(self, standing, client, queue):
        silent = b"set %s/id=a 0 0 1 noreply\r\n1\r\n" % queue
        client.send(silent + silent + b"version\r\n")
        assert client.line().startswith(b"VERSION ")
        assert client.take_all(queue) == [b"1"]
        assert duplicates(standing, queue) == 1

    def test_of_a_meta_set_says_that_the_items_id_is_not_known(self, client, queue):
        request = b"ms %s/id=a 1 c k\r\n1\r\n" % queue
        assert client.ask(request) == b"HD c1 k%s/id=a\r\n" % queue
        assert client.ask(request) == b"HD c0 k%s/id=a\r\n" % queue
        assert client.take_all(queue) == [b"1"]

    def test_with_a_delay_and_a_sync_is_stored_once(self, client, queue):
        assert client.ask(set_once(queue, b"a", b"1", b"/delay=50/sync")) == STORED
        assert client.ask(set_once(queue, b"a", b"1", b"/sync")) == STORED
        assert client.get(queue + b"/t=5000") == b"1"
        assert client.get(queue) is None

    def test_whose_data_block_is_bad_is_not_remembered(self, standing, client, queue):
        assert client.ask(b"set %s/id=a 0 0 1\r\nxyz" % queue).startswith(b"CLIENT_ERROR bad data chunk")
        client = standing.connect()
        assert client.ask(set_once(queue, b"a", b"1")) == STORED
        assert client.take_all(queue) == [b"1"]

    def test_is_refused_while_sets_are(self, server, wire):
        wire.ask(set_once(b"q", b"a", b"1"))
        assert wire.ask(b"status readonly\r\n") == b"END\r\n"
        assert wire.ask(set_once(b"q", b"a", b"1")).startswith(b"SERVER_ERROR")

    def test_goes_to_the_child_that_came_meanwhile(self, client, queue):
        child = queue + b"+child"
        client.ask(set_once(queue, b"a", b"1"))
        assert client.get(child) is None
        assert client.ask(set_once(queue, b"a", b"1")) == STORED
        assert client.take_all(queue) == client.take_all(child) == [b"1"]

    def test_serves_nobody_who_waits(self, standing, client, other, queue):
        client.ask(set_once(queue, b"a", b"1"))
        client.get(queue)
        other.send(b"get %s/t=10000\r\n" % queue)
        assert client.ask(set_once(queue, b"a", b"1")) == STORED
        assert other.silent()
        client.ask(set_once(queue, b"b", b"2"))
        assert other.line() == b"VALUE %s/t=10000 0 1\r\n" % queue


class TestAtOnce:
    def test_from_many_connections_is_stored_once(self, standing, client, queue):
        replies = []

        def send():
            wire = standing.connect()
            wire.send(b"".join(set_once(queue, b"%d" % number, b"%d" % number) for number in range(200)))
            replies.extend(wire.line() for _ in range(200))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies == [STORED] * 800
        assert sorted(map(int, client.take_all(queue))) == list(range(200))
        assert duplicates(standing, queue) == 600

    def test_of_a_large_item_is_stored_once_whoever_begins(self, client, other, queue):
        request = set_once(queue, b"a", LARGE)
        for wire in (client, other):
            wire.send(request[: len(request) // 2])
        for wire in (other, client):
            wire.send(request[len(request) // 2 :])
        assert [client.line(), other.line()] == [STORED] * 2
        assert client.take_all(queue) == [LARGE]

    @pytest.mark.leveldb("there are no files")
    def test_of_a_large_item_after_a_kill_is_thrown_away(self, server, wire):
        assert wire.ask(set_once(b"q", b"a", LARGE, b"/sync")) == STORED
        server.restart()
        wire = server.connect()
        assert wire.ask(set_once(b"q", b"a", LARGE, b"/sync") + b"version\r\n") == STORED
        assert wire.line().startswith(b"VERSION ")
        assert wire.take_all(b"q") == [LARGE]
        assert len(list((server.data / "q" / "blobs").iterdir())) <= 1


class TestWindow:
    @pytest.mark.leveldb("ids are known for a minute at least")
    def test_is_a_setting_of_the_queue(self, tmp_path):
        with configured(tmp_path, '[queues."short"]\ndedup_window = "50ms"\n') as server:
            wire = server.connect()
            for queue in (b"short", b"long"):
                wire.ask(set_once(queue, b"a", b"1"))
            wire.get(b"nothing/t=60")
            for queue in (b"short", b"long"):
                assert wire.ask(set_once(queue, b"a", b"2")) == STORED
            assert wire.take_all(b"short") == [b"1", b"2"]
            assert wire.take_all(b"long") == [b"1"]

    @pytest.mark.leveldb("a flush forgets no ids")
    def test_ends_with_a_flush_and_a_deletion(self, client, queue):
        for command in (b"flush", b"delete"):
            client.ask(set_once(queue, b"a", b"1"))
            client.ask(b"%s %s\r\n" % (command, queue))
            assert client.ask(set_once(queue, b"a", b"2")) == STORED
            assert client.take_all(queue) == [b"2"]

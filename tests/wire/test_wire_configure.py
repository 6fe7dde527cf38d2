"""`configure`: settings of queues that are made at run time, as clients see them."""

import contextlib

import pytest
from running import Wire, configured, run_darner, until

FILE = """
[queues."fixed"]
max_items = 3
[queues."memory"]
durable = false
[aliases]
both = ["a", "b"]
"""
OK = b"OK\r\n"
NOT_SERVED = pytest.mark.leveldb("configure is refused")


def settings(wire: Wire, queue: bytes) -> dict[bytes, bytes]:
    """Return the settings in force of a queue."""
    wire.send(b"dump_config %s\r\n" % queue)
    return dict(line.strip().split(b"=", 1) for line in iter(wire.line, b"END\r\n") if b"=" in line)


def has(wire: Wire, queue: bytes, **expected: str) -> bool:
    found = settings(wire, queue)
    return all(found[name.encode()] == text.encode() for name, text in expected.items())


class TestConfigure:
    @NOT_SERVED
    def test_is_answered_ok_and_holds_at_once(self, client, queue):
        assert client.ask(b"configure %s max_items=1 max_age=5m\r\n" % queue) == OK
        assert client.set(queue, b"1") == b"STORED\r\n"
        assert client.set(queue, b"2") == b"NOT_STORED\r\n"
        assert has(client, queue, max_items="1", max_age="300000ms")
        assert client.ask(b"CONFIGURE %s max_items=\r\n" % queue) == OK
        assert client.set(queue, b"2") == b"STORED\r\n"

    @NOT_SERVED
    def test_makes_the_queue_and_subscribes_a_child(self, client, queue):
        assert client.ask(b"configure %s+child max_items=5\r\n" % queue) == OK
        assert client.ask(b"configure %s fanout_only=true\r\n" % queue) == OK
        client.set(queue, b"x")
        assert client.get(queue) is None
        assert client.get(queue + b"+child") == b"x"

    @NOT_SERVED
    def test_takes_what_dump_config_shows(self, client, queue):
        assert client.ask(b"configure %s sync=100ms max_attempts=3 dead_letter_queue=d\r\n" % queue) == OK
        shown = settings(client, queue)
        del shown[b"durable"]
        other = queue + b"other"
        words = b" ".join(b"%s=%s" % pair for pair in shown.items())
        assert client.ask(b"configure %s %s\r\n" % (other, words)) == OK
        assert settings(client, other) | {b"durable": b"true"} == settings(client, queue)

    @pytest.mark.parametrize(
        ("words", "reply"),
        [
            (b"", b"CLIENT_ERROR bad command line format\r\n"),
            (b"a/b max_items=1", b"CLIENT_ERROR bad queue name"),
            (b"%s max_items=0", b"CLIENT_ERROR max_items is 0, and must be a whole number from 1"),
            (b"%s max_items=1 colour=red", b"CLIENT_ERROR colour is no setting"),
            (b"%s durable=false", b"CLIENT_ERROR durable cannot be changed at run time"),
            (b"%s dead_letter_queue=\xff\x01", b'CLIENT_ERROR dead_letter_queue is "'),
        ],
    )
    def test_with_wrong_arguments_says_so_and_makes_nothing(self, client, queue, words, reply):
        request = words % queue if b"%" in words else words
        assert client.ask(b"configure " + request + b"\r\n").startswith(reply)
        assert f"queue_{queue.decode()}_items" not in client.stats()

    @NOT_SERVED
    def test_of_a_queue_named_as_an_option_makes_it(self, client):
        assert client.ask(b"configure noreply\r\n") == OK
        assert "queue_noreply_items" in client.stats()

    @NOT_SERVED
    def test_with_noreply_is_not_answered_nor_are_its_errors_which_count(self, client, queue):
        before = int(client.stats()["noreply_errors"])
        client.send(
            b"configure %s max_items=1 noreply\r\nconfigure %s max_items=x noreply\r\n" % (queue, queue)
        )
        assert has(client, queue, max_items="1")
        assert int(client.stats()["noreply_errors"]) == before + 1

    @NOT_SERVED
    def test_lets_a_connection_that_is_there_hold_more(self, client, queue):
        for data in (b"1", b"2"):
            client.set(queue, data)
        assert client.get(queue + b"/open") == b"1"
        assert client.ask(b"get %s/open\r\n" % queue).startswith(b"CLIENT_ERROR")
        assert client.ask(b"configure %s max_open_reads=2\r\n" % queue) == OK
        assert client.get(queue + b"/open") == b"2"

    def test_is_refused_as_a_set_is_by_the_status(self, client, queue):
        assert client.ask(b"status readonly\r\n") == b"END\r\n"
        try:
            assert client.ask(b"configure %s max_items=1\r\n" % queue).startswith(b"SERVER_ERROR refused")
        finally:
            assert client.ask(b"status up\r\n") == b"END\r\n"


@NOT_SERVED
class TestWithAConfigurationFile:
    @pytest.fixture
    def server(self, tmp_path):
        with configured(tmp_path, FILE) as server:
            yield server

    def test_says_what_the_file_decides_and_what_an_alias_is(self, wire):
        said = wire.ask(b"configure fixed max_items=4\r\n")
        assert said == b"CLIENT_ERROR max_items is 3 by the configuration file, which decides\r\n"
        assert wire.ask(b"configure fixed max_items=3\r\n") == OK
        assert wire.ask(b"configure both max_items=3\r\n").startswith(b"CLIENT_ERROR both is an alias")

    def test_is_kept_over_reload_flush_and_in_memory_and_forgotten_with_the_queue(
        self, server, wire, tmp_path
    ):
        for name in (b"work", b"memory", b"fixed"):
            assert wire.ask(b"configure %s max_open_reads=7\r\n" % name) == OK
            wire.set(name, b"x")
            assert wire.ask(b"flush %s\r\n" % name) == b"END\r\n"
        (tmp_path / "darner.toml").write_text(FILE + "[queue_defaults]\nmax_open_reads = 2\n")
        assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"
        for name in (b"work", b"memory", b"fixed"):
            assert has(wire, name, max_open_reads="7")
            assert wire.ask(b"delete %s\r\n" % name) == b"DELETED\r\n"
            assert has(wire, name, max_open_reads="2")
            wire.set(name, b"x")
            assert has(wire, name, max_open_reads="2")


def test_can_be_denied(tmp_path):
    with configured(tmp_path, 'deny = ["configure"]') as server:
        said = server.connect().ask(b"configure work max_items=1\r\n")
    assert said == b"CLIENT_ERROR not permitted to do that: the server denies it (deny)\r\n"


@NOT_SERVED
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_is_there_after_each_end_of_the_server_and_in_a_backup(server, how, tmp_path):
    wire = server.connect()
    assert wire.ask(b"configure orders fanout_only=true max_queue_age=1h\r\n") == OK
    assert wire.ask(b"configure orders+audit max_items=5\r\n") == OK
    assert wire.ask(b"configure gone max_items=5\r\n") == OK
    for round in range(3):
        if round == 1:  # the acknowledged one of many, whatever comes then
            for number in range(100, 200):
                wire.send(b"configure work max_items=%d\r\n" % number)
            assert [wire.line() for _ in range(100)] == [OK] * 100
            assert wire.ask(b"delete gone\r\n") == b"DELETED\r\n"
        server.end(how)
        server.start()
        wire = server.connect()
        assert has(wire, b"orders", fanout_only="true", max_queue_age="3600000ms")
        assert has(wire, b"orders+audit", fanout_only="false", max_queue_age="3600000ms", max_items="5")
        assert has(wire, b"gone", max_items="none" if round else "5")
        assert has(wire, b"work", max_items="199" if round else "none")
    copy = tmp_path / "copy"
    done = run_darner("backup", server.data, copy)
    assert done.returncode == 0, done.stderr
    server.end(how)
    for data in (server.data, copy):
        assert run_darner("check", data).returncode == 0
    server.data = copy
    server.start()
    assert has(server.connect(), b"orders+audit", max_queue_age="3600000ms", max_items="5")


@NOT_SERVED
def test_is_kept_by_a_repair(server):
    wire = server.connect()
    assert wire.ask(b"configure work max_items=7\r\n") == OK
    wire.set(b"work", b"x")
    assert server.stop() == 0
    # LevelDB cannot tell what it has
    (server.data / "work" / "CURRENT").unlink()
    (server.data / "work" / "state").unlink()
    assert run_darner("check", server.data).returncode == 1
    assert run_darner("repair", server.data, "work").returncode == 0
    server.start()
    wire = server.connect()
    assert has(wire, b"work", max_items="7")
    assert wire.get(b"work") == b"x"


@NOT_SERVED
def test_a_child_whose_reader_is_dead_goes_away_while_its_parent_gets_items(server):
    wire, reader = server.connect(), server.connect()
    assert wire.ask(b"configure events fanout_only=true max_queue_age=300ms\r\n") == OK
    assert wire.ask(b"configure events+dead max_items=3 discard_old_when_full=true max_age=1s\r\n") == OK
    assert wire.ask(b"configure events+alive max_items=3 discard_old_when_full=true max_age=1s\r\n") == OK
    wire.set(b"events", b"0")
    assert reader.get(b"events+dead/open") == b"0"
    reader.close()
    with contextlib.closing(server.connect()) as alive:

        def is_gone() -> bool:
            assert wire.set(b"events", b"x") == b"STORED\r\n"
            assert alive.get(b"events+alive") is not None
            return "queue_events+dead_items" not in wire.stats()

        until(is_gone)
        assert "queue_events+alive_items" in wire.stats()
        assert wire.stats()["queue_expires"] == "1"
    # what is set from now on costs nothing for it, after a restart too
    server.restart()
    assert "queue_events+dead_items" not in server.connect().stats()

"""The configuration of queues, aliases and the server, as clients see it; reload and shutdown."""

import signal

import pytest
from running import Server, Wire, until

from darner._records import CHUNK_BYTES

LARGE = b"x" * (3 * CHUNK_BYTES + 5)

CONFIG = """
allow_shutdown = true
status_change_grace_period = "300ms"

[queue_defaults]
max_open_reads = 2

[queues."topic"]
fanout_only = true

[queues."brief"]
max_queue_age = "300ms"

[queues."volatile"]
durable = false

[queues."safe"]
sync = "50ms"

[queues."safest"]
sync = "always"
"""
ALIASES = """
[aliases]
both = ["one", "two"]
"""
NO_ALIASES = pytest.mark.leveldb("aliases are refused")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "darner.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def server(tmp_path, config) -> Server:
    server = Server(tmp_path / "data", "--config", str(config))
    yield server
    if server.process.poll() is None:
        server.stop()
    assert "Traceback" not in server.log


@pytest.fixture
def wire(server) -> Wire:
    wire = server.connect()
    yield wire
    wire.close()


def config_of(wire, queue):
    wire.send(b"dump_config %s\r\n" % queue)
    lines = []
    while (line := wire.line()) != b"END\r\n":
        lines.append(line.strip().decode())
    return dict(line.split("=", 1) for line in lines[1:-1])


class TestQueues:
    def test_are_as_configured(self, server, wire):
        assert wire.set(b"topic", b"0") == b"STORED\r\n"
        wire.get(b"topic+child")
        for data in (b"1", LARGE):
            assert wire.set(b"topic", data) == b"STORED\r\n"
            assert wire.set(b"volatile", data) == b"STORED\r\n"
            assert wire.set(b"safe", data) == b"STORED\r\n"
            assert wire.set(b"safest", data) == b"STORED\r\n"
        assert wire.get(b"topic") is None
        assert wire.get(b"topic+child") == b"1"
        assert wire.get(b"volatile") == b"1"
        assert config_of(wire, b"safe")["sync"] == "50ms"
        assert config_of(wire, b"volatile")["durable"] == "false"
        server.restart()
        wire = server.connect()
        for queue in (b"safe", b"safest"):
            assert [wire.get(queue), wire.get(queue)] == [b"1", LARGE]
        assert wire.get(b"topic+child") == LARGE

    @pytest.mark.leveldb("they are in the memory of the nodes")
    def test_in_memory_end_with_the_server(self, server, wire):
        assert wire.set(b"volatile", b"x") == b"STORED\r\n"
        server.restart()
        assert server.connect().get(b"volatile") is None

    @NO_ALIASES
    def test_of_an_alias_take_what_is_set_on_it_and_it_has_no_items(self, server, wire):
        server.write_config(CONFIG + ALIASES)
        assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"
        for data in (b"1", LARGE):
            assert wire.set(b"both", data) == b"STORED\r\n"
        assert wire.values(b"get both both/open both/peek") == []
        assert wire.get(b"both/t=10000") is None
        assert wire.ask(b"monitor both 60\r\n") == b"END\r\n"
        assert wire.ask(b"delete both\r\n") == b"DELETED\r\n"
        assert wire.ask(b"flush both\r\n") == b"END\r\n"
        server.restart()
        wire = server.connect()
        for queue in (b"one", b"two"):
            assert [wire.get(queue), wire.get(queue)] == [b"1", LARGE]

    @pytest.mark.leveldb("max_queue_age is refused")
    def test_that_stay_empty_and_alone_go(self, server, wire):
        wire.set(b"brief", b"x")
        wire.get(b"brief")
        assert "queue_brief_items" in wire.stats()
        until(lambda: server.stat("queue_expires") == 1)
        assert "queue_brief_items" not in wire.stats()


@pytest.mark.parametrize(
    "request_", [b"get volatile", b"get volatile nobody", b"get volatile/t=5 nobody/t=5"]
)
@pytest.mark.parametrize("size", [CHUNK_BYTES + 1, 4 * CHUNK_BYTES + 1])
def test_what_is_behind_a_large_item_in_memory_is_served_at_once(server, wire, request_, size):
    wire.set(b"volatile", bytes(size))
    wire.send(request_ + b"\r\nversion\r\n")
    assert wire.line().startswith(b"VALUE ")
    assert wire.exactly(size + 7) == bytes(size) + b"\r\nEND\r\n"
    assert wire.line().startswith(b"VERSION ")


class TestStatus:
    def test_gives_clients_time_before_it_bites(self, server, wire):
        assert wire.ask(b"status readonly\r\n") == b"END\r\n"
        assert wire.ask(b"status\r\n") == b"READONLY\r\n"
        assert wire.set(b"work", b"1") == b"STORED\r\n"
        server.wait_for_log("status in force")
        assert wire.set(b"work", b"2").startswith(b"SERVER_ERROR")


class TestReload:
    @pytest.mark.parametrize(
        ("limit", "reply"),
        [
            ("max_item_size", b"SERVER_ERROR object too large for cache\r\n"),
            pytest.param(
                "max_items",
                b"NOT_STORED\r\n",
                marks=pytest.mark.leveldb("a queue that is there gets no max_items"),
            ),
        ],
    )
    def test_takes_over_what_is_for_queues(self, server, wire, limit, reply):
        wire.set(b"work", b"1")
        server.write_config(
            CONFIG.replace("max_open_reads = 2", "max_open_reads = 5") + f"[queues.work]\n{limit} = 1\n"
        )
        assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"
        assert "work" in server.wait_for_log("configuration reloaded")
        assert config_of(wire, b"work")["max_open_reads"] == "5"
        assert wire.set(b"work", b"22") == reply

    @NO_ALIASES
    def test_takes_over_aliases(self, server, wire):
        for queues in ('["one", "two"]', '["three"]'):
            server.write_config(CONFIG + ALIASES.replace('["one", "two"]', queues))
            assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"
            assert "both" in server.wait_for_log("configuration reloaded")
        wire.set(b"both", b"1")
        assert wire.get(b"three") == b"1"
        assert wire.get(b"one") is None

    def test_of_a_bad_file_changes_nothing(self, server, wire):
        wire.set(b"work", b"1")
        server.write_config(CONFIG.replace("max_open_reads = 2", "max_open_reads = 5\nmax_itms = 1"))
        reply = wire.ask(b"reload\r\n")
        assert reply.startswith(b"SERVER_ERROR ")
        assert b"max_itms" in reply
        server.process.send_signal(signal.SIGHUP)
        log = server.wait_for_log("nothing reloaded, everything stays as it was")
        assert "max_itms" in log
        assert config_of(wire, b"work")["max_open_reads"] == "2"

    def test_by_a_hangup_says_what_waits_for_a_restart(self, server, wire):
        server.write_config('dialect = "kestrel"\nallow_shutdown = true\n')
        server.process.send_signal(signal.SIGHUP)
        log = server.wait_for_log("configuration reloaded")
        assert 'needs_restart="dialect status_change_grace_period"' in log
        wire.set(b"work", b"1")
        assert config_of(wire, b"work")["max_open_reads"] == "1"
        assert wire.ask(b"flush_all\r\n") == b"OK\r\n"


class TestShutdown:
    def test_ends_the_server_as_a_signal_does(self, server, wire):
        wire.send(b"set work 0 0 1\r\nx\r\nshutdown\r\n")
        assert wire.line() == b"STORED\r\n"
        assert wire.closed()
        assert server.process.wait(10) == 0
        server.log += server.process.stderr.read().decode()
        server.start()
        assert server.connect().get(b"work") == b"x"

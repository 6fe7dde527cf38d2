"""Statistics: the ages of items, the lags of cursors, and the figures that agents for memcached read."""

import contextlib
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest
from brokers import Data
from running import configured, running

from darner._records import CHUNK_BYTES
from darner.client import Client
from darner.config.settings import QueueSettings
from darner.queues.cursor import cursor_lags
from darner.wire.figures import AGENT_FIGURES, SERVER_FIGURES

# The figures that agents for memcached read: memcached_exporter (to which a missing one was an error once),
# the plugins of telegraf, netdata and collectd, and libmemcached's memstat.
EXPORTER = """
    uptime time version bytes_read bytes_written curr_connections total_connections
    rejected_connections conn_yields listen_disabled_num bytes limit_maxbytes curr_items total_items
    evictions reclaimed lru_crawler_starts direct_reclaims crawler_items_checked crawler_reclaimed
    moves_to_cold moves_to_warm moves_within_lru total_malloced accepting_conns cmd_flush cmd_set
    get_hits get_misses delete_hits delete_misses incr_hits incr_misses decr_hits decr_misses
    cas_hits cas_misses cas_badval touch_hits touch_misses rusage_user rusage_system
"""
TELEGRAF = """
    accepting_conns auth_cmds auth_errors bytes bytes_read bytes_written cas_badval cas_hits
    cas_misses cmd_flush cmd_get cmd_set cmd_touch conn_yields connection_structures
    curr_connections curr_items decr_hits decr_misses delete_hits delete_misses evicted_unfetched
    evictions expired_unfetched get_hits get_misses hash_bytes hash_is_expanding hash_power_level
    incr_hits incr_misses limit_maxbytes listen_disabled_num reclaimed threads total_connections
    total_items touch_hits touch_misses uptime
"""
NETDATA = """
    limit_maxbytes bytes bytes_read bytes_written cas_badval cas_hits cas_misses cmd_get cmd_set
    cmd_touch curr_connections curr_items decr_hits decr_misses delete_hits delete_misses evictions
    get_hits get_misses incr_hits incr_misses reclaimed rejected_connections total_connections
    total_items touch_hits touch_misses
"""
COLLECTD = """
    curr_connections threads rusage_user rusage_system curr_items bytes limit_maxbytes evictions
    bytes_read bytes_written get_hits get_misses listen_disabled_num
"""
MEMSTAT = """
    pid uptime time version pointer_size rusage_user rusage_system curr_items total_items bytes
    curr_connections total_connections connection_structures cmd_get cmd_set get_hits get_misses
    evictions bytes_read bytes_written limit_maxbytes threads
"""
# The size of collectd's buffer: a longer reply is lost as a whole.
COLLECTD_BYTES = 4096

RUSAGE = re.compile(r"\d+\.\d{6}")


@pytest.fixture
def data(data, is_durable):
    data.settings[b"work"] = QueueSettings(durable=is_durable)
    return data


@pytest.fixture
def durable(data):
    data.settings.clear()
    return data


def head_age(data):
    return data.broker.queue(b"work").head_age_ms


@pytest.mark.leveldb("of a queue of LevelDB without a server")
class TestHeadAge:
    def test_is_how_long_the_item_at_the_head_has_waited(self, data):
        assert head_age(data) == 0
        data.set(b"work", b"first")
        data.now += 700
        data.set(b"work", b"second")
        data.now += 50
        assert head_age(data) == 750
        queue = data.broker.queue(b"work")
        item = queue.reserve()
        assert head_age(data) == 50
        queue.abort(item)
        assert head_age(data) == 750
        queue.flush()
        assert head_age(data) == 0

    def test_goes_on_over_a_restart_before_anybody_has_read_the_queue(self, durable):
        durable.set(b"work", b"x")
        durable.now += 500
        durable.restart()
        assert head_age(durable) == 500
        durable.now += 500
        durable.kill()
        assert head_age(durable) == 1000

    def test_of_a_queue_larger_than_its_window_is_that_of_the_next_on_the_disk(self, data, monkeypatch):
        monkeypatch.setattr("darner.queues.item_window.READ_ITEMS", 1)
        for _ in range(3):
            data.set(b"work", b"x" * CHUNK_BYTES)
            data.now += 10
        queue = data.broker.queue(b"work")
        for waited in (30, 20, 10):
            assert queue.head_age_ms == waited
            data.settle()
            assert queue.pop() is not None
        assert queue.head_age_ms == 0

    def test_is_of_the_next_when_the_first_on_the_disk_has_expired(self, durable):
        durable.settings[b"work"] = QueueSettings(max_age_ms=1000)
        durable.set(b"work", b"x")
        durable.now += 900
        durable.set(b"work", b"y")
        durable.restart()
        assert head_age(durable) == 900
        durable.now += 200
        durable.tick(4)
        assert head_age(durable) == 200

    def test_of_a_queue_at_rest_is_told_without_opening_it(self, durable):
        names = [b"work%d" % n for n in range(5)]
        for name in names:
            for _ in range(3):
                durable.set(name, b"x")
                durable.now += 100
            durable.broker.queue(name).pop()
        for _ in range(2):  # at the second start nobody has opened it, so the answer is to last
            durable.restart()
            durable.now += 7
            queues = [durable.broker.queue(name) for name in names]
            assert [queue.head_age_ms % 100 for queue in queues] == [durable.now % 100] * 5
            assert queues[0].head_age_ms > queues[1].head_age_ms
            assert not any(queue.journal.database.is_open for queue in queues)
        first = queues[0].head_age_ms
        queues[0].pop()
        assert queues[0].head_age_ms == first - 100

    @pytest.mark.parametrize("end", ["kill", "restart"])
    def test_of_queues_whose_leveldbs_were_closed_for_others_is_told_without_opening_them(
        self, tmp_path, end
    ):
        data = Data(tmp_path / "many", max_open=2)
        names = [b"queue%d" % n for n in range(6)]
        for name in names:
            data.set(name, b"x")
            data.now += 100
        data.write_out_once()
        getattr(data, end)()
        opened = [name for name in names if data.broker.queue(name).journal.database.is_open]
        for place, name in enumerate(names):
            assert data.broker.queue(name).head_age_ms == 100 * (6 - place)
        assert opened == [name for name in names if data.broker.queue(name).journal.database.is_open]
        data.close()

    def test_is_of_the_next_when_the_first_on_the_disk_was_damaged(self, durable):
        durable.upload(b"work", b"x" * 2 * CHUNK_BYTES)
        durable.now += 300
        durable.set(b"work", b"x")
        durable.restart()
        assert head_age(durable) == 300
        (file,) = durable.path.glob("work/blobs/*")
        file.unlink()
        # a cursor meets it, ahead of the queue's own readers
        assert self.read_through_cursor(durable).data == b"x"
        assert head_age(durable) == 0
        durable.now += 40
        durable.restart()
        assert head_age(durable) == 40

    def read_through_cursor(self, data):
        cursor = data.broker.routes.source(b"work/cursor=billing", takes=True, waits=True)
        return cursor.pop()

    def test_keeps_nothing_of_a_queue_in_memory(self, durable):
        durable.set(b"work", b"x")
        durable.restart()
        durable.now += 5
        assert head_age(durable) == 5
        assert not durable.broker.queue(b"work").window


@pytest.mark.leveldb("of a queue of LevelDB without a server")
class TestCursorLag:
    def lags(self, data):
        return dict(cursor_lags(data.broker.queue(b"work")))

    def cursor(self, data, label=b"billing"):
        return data.broker.routes.source(b"work/cursor=" + label, takes=True, waits=True)

    def test_is_how_many_items_a_cursor_has_still_to_read(self, data):
        assert self.lags(data) == {}
        for n in range(4):
            data.set(b"work", b"%d" % n)
        cursor = self.cursor(data)
        # no client has read through it
        assert self.lags(data) == {}
        cursor.pop()
        assert self.lags(data) == {b"billing": 3}
        item = cursor.reserve()
        assert self.lags(data) == {b"billing": 2}
        cursor.abort(item)
        assert self.lags(data) == {b"billing": 3}
        self.cursor(data, b"audit").pop()
        data.set(b"work", b"4")
        assert self.lags(data) == {b"audit": 4, b"billing": 4}

    def test_leaves_out_what_the_readers_of_the_queue_removed(self, data):
        for n in range(6):
            data.set(b"work", b"%d" % n)
        cursor = self.cursor(data)
        held = [cursor.pop(), cursor.reserve()]
        queue = data.broker.queue(b"work")
        for _ in range(4):
            queue.pop()
        assert self.lags(data) == {b"billing": 2}
        cursor.abort(held[1])
        assert self.lags(data) == {b"billing": 2}
        queue.flush()
        assert self.lags(data) == {b"billing": 0}

    def test_is_right_while_gaps_are_many(self, durable, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 3)
        for n in range(20):
            durable.set(b"work", b"%d" % n)
        queue = durable.broker.queue(b"work")
        queue.reserve()
        for _ in range(9):
            queue.pop()
        cursor = self.cursor(durable)
        for left in range(10, -1, -1):
            cursor.pop()
            assert self.lags(durable) == {b"billing": left}

    def test_leaves_out_what_has_expired_ahead_of_the_queue_s_readers(self, durable, monkeypatch):
        monkeypatch.setattr("darner.queues.item_window.WINDOW_BYTES", 1)
        monkeypatch.setattr("darner.queues.item_window.READ_ITEMS", 1)
        durable.set(b"work", b"first")
        for _ in range(5):
            durable.push(b"work", b"x", exptime=1)
        cursor = self.cursor(durable)
        cursor.pop()
        cursor.pop()
        assert self.lags(durable) == {b"billing": 4}
        durable.now += 1500
        durable.tick(8)
        queue = durable.broker.queue(b"work")
        assert queue.items == len(queue.window) == 1
        assert self.lags(durable) == {b"billing": 0}
        durable.set(b"work", b"last")
        for _ in range(2):
            assert self.lags(durable) == {b"billing": 1}
            queue.pop()
        assert self.lags(durable) == {b"billing": 0}

    def test_is_told_of_a_cursor_that_nobody_has_used_since_the_start(self, durable):
        for n in range(5):
            durable.set(b"work", b"%d" % n)
        cursor = self.cursor(durable)
        cursor.pop()
        cursor.reserve()
        durable.restart()
        # the reserved item is read again
        assert self.lags(durable) == {b"billing": 4}


class TestStats:
    def test_have_what_the_agents_of_memcached_look_for(self, wire):
        stats = wire.stats()
        assert set(f"{EXPORTER} {TELEGRAF} {NETDATA} {COLLECTD} {MEMSTAT}".split()) <= set(stats)
        for name, value in stats.items():
            if name.startswith("rusage_"):
                assert RUSAGE.fullmatch(value)
            elif name not in ("version", "status"):
                assert value.isdigit(), name

    def test_count_what_was_turned_away_deleted_and_flushed(self, tmp_path):
        with (
            configured(tmp_path, "max_connections = 2\n") as server,
            contextlib.closing(server.connect()) as wire,
            contextlib.closing(server.connect()) as other,
        ):
            other.ask(b"version\r\n")
            for _ in range(3):
                assert server.connect().line() == b"SERVER_ERROR too many connections\r\n"
            wire.set(b"work", b"x")
            for request in (b"flush work", b"flush_all", b"delete work", b"delete work", b"delete other"):
                wire.ask(request + b"\r\n")
            stats = wire.stats()
        names = ("rejected_connections", "max_connections", "cmd_flush", "delete_hits", "delete_misses")
        assert [stats[name] for name in names] == ["3", "2", "2", "1", "2"]

    @pytest.mark.leveldb("the cluster counts neither what it discards nor what expires")
    def test_evictions_and_expiries_are_of_all_queues_those_deleted_too(self, tmp_path):
        with (
            configured(tmp_path, "[queue_defaults]\nmax_items = 1\ndiscard_old_when_full = true\n") as server,
            contextlib.closing(server.connect()) as wire,
        ):
            for queue in (b"a", b"b"):
                for _ in range(3):
                    wire.set(queue, b"x")
                wire.get(queue)
                wire.set(queue, b"x", exptime=-1)
                assert wire.get(queue) is None
            wire.ask(b"delete a\r\n")
            stats = wire.stats()
        assert [stats[name] for name in ("evictions", "evicted_unfetched", "expired_unfetched")] == [
            "4",
            "4",
            "2",
        ]

    @pytest.mark.leveldb("there are no files")
    def test_queues_out_of_service_are_counted_and_named_with_the_reason(self, tmp_path):
        with running(tmp_path / "data") as server:
            wire = server.connect()
            wire.set(b"broken", b"x")
            wire.set(b"whole", b"x")
            assert wire.stats()["queues_out_of_service"] == "0"
            assert server.stop() == 0
            for path in (tmp_path / "data" / "broken").iterdir():
                if path.is_file():
                    path.write_bytes(b"?")
            server.log = ""
            server.start()
            stats = server.connect().stats()
            assert stats["queues_out_of_service"] == "1"
            assert stats["queue_whole_items"] == "1"
            assert [name for name in stats if name.startswith("queue_broken")] == [
                "queue_broken_out_of_service"
            ]
            reason = unquote(stats["queue_broken_out_of_service"])
            assert re.search("Corruption: .*darner repair saves", reason)
            assert Client(f"127.0.0.1:{server.port}").queues()["broken"].out_of_service == reason

    @pytest.mark.leveldb("nothing tells how much room the cluster has")
    def test_limit_is_what_there_is_and_what_the_disk_has_free(self, wire, tmp_path):
        wire.set(b"work", b"x" * 10_000)
        stats = wire.stats()
        free = int(stats["limit_maxbytes"]) - int(stats["bytes"])
        assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)

    @pytest.mark.leveldb("cursors are refused")
    def test_age_of_the_head_and_lag_of_cursors_are_told_by_queue(self, wire):
        for _ in range(3):
            wire.set(b"work", b"x")
        assert wire.get(b"work/cursor=billing") == b"x"
        wire.get("work/cursor=prüfung".encode())
        stats = wire.stats()
        assert 0 <= int(stats["queue_work_head_age"]) < 10_000
        assert stats["queue_work_cursor_billing_lag"] == "2"
        assert stats["queue_work_cursor_pr%C3%BCfung_lag"] == "2"
        wire.send(b"dump_stats work\r\n")
        told = list(iter(wire.line, b"END\r\n"))
        assert b"  cursor_billing_lag=2\r\n" in told

    def test_of_queues_are_behind_all_that_agents_look_for_and_can_be_had_alone(self, wire):
        wire.set(b"work", b"x")
        names = list(wire.stats())
        assert names.index("queue_work_items") >= len(SERVER_FIGURES) + len(AGENT_FIGURES)
        wire.send(b"stats queues\r\n")
        alone = wire.stats_reply()
        assert [name for name in names if name.startswith("queue_work_")] == list(alone)

    def test_leave_queues_out_if_they_are_to_be_asked_for(self, tmp_path):
        with configured(tmp_path, 'queue_stats = "asked"\n') as server:
            wire = server.connect()
            for n in range(100):
                wire.set(b"queue-%d" % n, b"x")
            wire.send(b"stats\r\n")
            lines = [*iter(wire.line, b"END\r\n"), b"END\r\n"]
            assert not [line for line in lines if b"queue-" in line]
            # collectd takes the rest to mean a closed connection
            longest = sum(len(line.rpartition(b" ")[0]) + len(" 18446744073709551615\r\n") for line in lines)
            assert longest < COLLECTD_BYTES
            wire.send(b"stats queues\r\n")
            assert sum(name.endswith("_items") for name in wire.stats_reply()) >= 100
            wire.send(b"dump_stats queue-7\r\n")
            assert wire.line() == b"queue 'queue-7' {\r\n"

    def test_settings_are_those_in_force(self, tmp_path):
        text = 'max_connections = 77\nidle_timeout = "90s"\n[queue_defaults]\nmax_item_size = "1 MiB"\n'
        with configured(tmp_path, text) as server:
            wire = server.connect()
            wire.send(b"stats settings\r\n")
            found = wire.stats_reply()
            assert found["maxconns"] == wire.stats()["max_connections"] == "77"
            assert found["tcpport"] == str(server.port)
        assert (found["inter"], found["domain_socket"]) == ("127.0.0.1", "NULL")
        assert (found["item_size_max"], found["idle_timeout"]) == (str(1 << 20), "90")
        assert (found["auth_enabled_ascii"], found["verbosity"]) == ("no", "1")
        # memcached_exporter reads the other figures of the crawler only if this one exists
        assert found["lru_crawler"] == "no"

    @pytest.mark.parametrize("what", [b"items", b"slabs", b"sizes", b"cachedump 1 0", b"conns", b"queues x"])
    def test_about_anything_else_there_is_nothing_to_say(self, client, what):
        assert client.ask(b"stats " + what + b"\r\n") == b"END\r\n"

    @pytest.mark.skipif(shutil.which("memcstat") is None, reason="libmemcached's memcstat is not installed")
    def test_are_read_by_memcstat(self, server, wire):
        wire.set(b"work", b"x")
        done = subprocess.run(
            ["memcstat", f"--servers=127.0.0.1:{server.port}"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        told = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
        assert set(MEMSTAT.split()) <= set(told)
        assert told["curr_items"] == "1"
        assert told["pid"] == str(server.process.pid)

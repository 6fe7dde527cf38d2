"""A real server while the system's wall clock is set; the monotonic clock goes on."""

import contextlib
import time

import pytest
from running import running, until
from wall_clock import WHY_NONE, WallClock, compiled

HOUR_S = 3600
YEAR_S = 8760 * HOUR_S
CONFIG = """
[queues."held"]
open_timeout = "1s"
[queues."aged"]
max_age = "10m"
[queues."brief"]
max_queue_age = "10m"
"""

pytestmark = [
    pytest.mark.leveldb("times are those of the clocks of darners and nodes"),
    pytest.mark.skipif(bool(WHY_NONE), reason=WHY_NONE),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("library"))


@pytest.fixture
def clock(tmp_path, library):
    return WallClock(tmp_path, library)


@pytest.fixture
def server(tmp_path, clock):
    config = tmp_path / "darner.toml"
    config.write_text(CONFIG)
    with running(tmp_path / "data", "--config", str(config), command=clock.command) as server:
        yield server


@pytest.fixture
def wire(server):
    with contextlib.closing(server.connect()) as wire:
        yield wire


def set_clock(server, clock, ahead_s, *, said):
    clock.set(ahead_s)
    server.wait_for_log(said)


class TestClock:
    @pytest.mark.alone
    def test_set_back_an_hour_makes_nothing_late(self, server, clock, wire):
        begun = time.monotonic()
        wire.ask(b"set late/delay=2000 0 0 1\r\nx\r\n")
        wire.set(b"soon", b"x", exptime=3)
        wire.set(b"aged", b"x")
        wire.set(b"held", b"1")
        wire.set(b"held", b"2")
        assert wire.get(b"held/open") == b"1"
        set_clock(server, clock, -HOUR_S, said="direction=back")
        assert wire.get(b"held/close") is None
        assert wire.get(b"held/open") == b"2"
        assert int(wire.stats()["queue_held_age"]) < 60_000
        assert wire.get(b"late/t=10000") == b"x"
        assert 2 <= time.monotonic() - begun < 4
        until(lambda: wire.stats()["queue_held_items"] == "1")
        until(lambda: wire.stats()["queue_soon_items"] == "0")
        assert time.monotonic() - begun >= 3
        assert wire.get(b"aged") == b"x"

    def test_set_forward_an_hour_makes_nothing_early(self, server, clock, wire):
        wire.ask(b"set late/delay=1800000 0 0 1\r\nx\r\n")
        wire.set(b"soon", b"x", exptime=1800)
        wire.set(b"date", b"x", exptime=int(time.time()) + 1800)
        wire.set(b"aged", b"x")
        wire.set(b"brief", b"x")
        wire.get(b"brief")
        set_clock(server, clock, HOUR_S, said="direction=forward")
        until(lambda: wire.stats()["queue_date_items"] == "0")
        stats = wire.stats()
        assert [stats[f"queue_{name}_items"] for name in ("late", "soon", "aged", "brief")] == [
            "0",
            "1",
            "1",
            "0",
        ]
        assert stats["queue_late_delayed_items"] == "1"
        assert server.stop() == 0
        assert server.log.count("clock was set") == 1
        assert "Traceback" not in server.log

    @pytest.mark.parametrize("wrong_s", [-YEAR_S, YEAR_S])
    def test_wrong_by_a_year_at_the_start_leaves_each_item_its_time(self, server, clock, wire, wrong_s):
        if wrong_s < 0:  # by a clock that is late all of it would have expired
            wire.ask(b"set before/delay=%d 0 0 1\r\nx\r\n" % (HOUR_S * 1000))
            wire.set(b"before-brief", b"x", exptime=HOUR_S)
        server.kill()
        clock.set(wrong_s)
        server.start()
        with contextlib.closing(server.connect()) as wire:
            wire.ask(b"set late/delay=%d 0 0 1\r\nx\r\n" % (HOUR_S * 1000))
            wire.set(b"brief", b"x", exptime=HOUR_S)
        server.restart()
        set_clock(server, clock, 0, said="clock was set")
        server.restart()
        names = ["brief"] + ["before-brief"] * (wrong_s < 0)
        delayed = ["late"] + ["before"] * (wrong_s < 0)
        assert [server.stat(f"queue_{name}_items") for name in names] == [1] * len(names)
        assert [server.stat(f"queue_{name}_delayed_items") for name in delayed] == [1] * len(delayed)
        # by the right clock all has expired an hour later
        server.kill()
        clock.set(HOUR_S)
        server.start()
        until(lambda: [server.stat(f"queue_{name}_items") for name in names] == [0] * len(names))
        until(lambda: [server.stat(f"queue_{name}_items") for name in delayed] == [1] * len(delayed))

"""The server's status: what it forbids, its grace period, and that it is kept. The clock is a number."""

import pytest
from brokers import Data
from doubles import Loop

from darner._records import CHUNK_BYTES
from darner.errors import JournalError, StatusError
from darner.queues.status import QUIESCENT, READONLY, UP
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS
from darner.wire.figures import LEVELDB_FIGURES

GRACE_MS = 30_000


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path / "data", grace_ms=GRACE_MS)
    yield data
    data.close()


def lets(data):
    """What clients may do: sets, gets."""
    allowed = []
    for check in (data.broker.status.check_sets, data.broker.status.check_gets):
        try:
            check()
        except StatusError:
            allowed.append(False)
        else:
            allowed.append(True)
    return tuple(allowed)


class TestStatus:
    def test_is_up_at_first(self, data):
        assert data.broker.status.name == "up"
        assert lets(data) == (True, True)

    @pytest.mark.parametrize(("level", "allowed"), [(READONLY, (False, True)), (QUIESCENT, (False, False))])
    def test_that_is_stricter_bites_when_the_grace_period_is_over(self, data, level, allowed):
        data.broker.routes.set_status(level)
        assert data.broker.status.level == level
        data.now += GRACE_MS - 1
        data.tick()
        assert lets(data) == (True, True)
        data.now += 1
        data.tick()
        assert lets(data) == allowed

    def test_that_is_looser_is_in_force_at_once_and_ends_a_grace_period(self, data):
        data.broker.routes.set_status(QUIESCENT)
        data.now += GRACE_MS
        data.tick()
        data.broker.routes.set_status(READONLY)
        assert lets(data) == (False, True)
        data.broker.routes.set_status(QUIESCENT)
        data.broker.routes.set_status(UP)
        data.now += GRACE_MS
        data.tick()
        assert lets(data) == (True, True)

    def test_is_kept_over_a_restart_and_bites_at_once_then(self, data):
        data.broker.routes.set_status(READONLY)
        data.restart()
        assert data.broker.status.name == "readonly"
        assert lets(data) == (False, True)

    def test_stops_sets_and_fetches_that_went_well_before(self, data):
        data.set(b"work", b"1")
        assert b"work" in data.broker.sinks
        for _ in range(2):
            data.broker.routes.source(b"work/cursor=audit", takes=True, waits=True).pop()
        assert set(data.broker.sources) == {b"work", b"work/cursor=audit"}
        data.broker.routes.set_status(QUIESCENT)
        data.now += GRACE_MS
        data.tick()
        assert b"work" not in data.broker.sinks
        assert data.broker.sources == {}
        with pytest.raises(StatusError, match="refused: the server is quiescent"):
            data.broker.routes.sink(b"work")
        with pytest.raises(StatusError):
            data.broker.routes.upload(b"work", 1 << 20)
        with pytest.raises(StatusError):
            data.broker.routes.source(b"work", takes=True, waits=True)
        data.broker.routes.set_status(UP)
        data.set(b"work", b"2")
        assert data.read_all(b"work") == [b"1", b"2"]

    @pytest.mark.parametrize("level", [READONLY, QUIESCENT])
    def test_stops_a_flush_of_all_that_was_ordered_before(self, data, level):
        loop = Loop(lambda: data.now)
        clients = Clients(
            loop, data.broker, COMMANDS, figures=LEVELDB_FIGURES, dialect="memcached", keepalive=60
        )
        data.set(b"work", b"1")
        clients.flush_all_later(60)
        data.broker.routes.set_status(level)
        data.now += 60_000
        data.tick()
        loop.next_timer(data.now).work()
        assert data.broker.queues[b"work"].items == 1
        data.broker.routes.set_status(UP)
        clients.flush_all_later(60)
        loop.next_timer(data.now + 60_000).work()
        assert data.broker.queues[b"work"].items == 0

    @pytest.mark.parametrize("ends", ["in the middle", "at the end"])
    def test_stops_a_large_item_that_is_on_its_way(self, data, ends):
        content = bytes(2 * CHUNK_BYTES)
        upload = data.broker.routes.upload(b"work", len(content))
        upload.write(content[:CHUNK_BYTES])
        if ends == "at the end":
            upload.write(content[CHUNK_BYTES:])
        data.broker.routes.set_status(READONLY)
        data.now += GRACE_MS
        data.tick()
        if ends == "at the end":
            (error,) = data.finish(upload)
            assert "the server is readonly" in str(error)
        else:
            with pytest.raises(StatusError, match="the server is readonly"):
                upload.write(content[CHUNK_BYTES:])
            upload.abandon()
        data.settle()
        assert data.broker.queues[b"work"].items == 0
        assert data.blobs() == []

    def test_that_cannot_be_kept_is_not_taken(self, data):
        (data.path / ".status.new").mkdir()
        with pytest.raises(JournalError, match="cannot keep the status"):
            data.broker.routes.set_status(READONLY)
        assert data.broker.status.name == "up"

    def test_in_a_file_nobody_understands_is_up(self, data):
        (data.path / ".status").write_text("sideways\n")
        data.restart()
        assert data.broker.status.name == "up"

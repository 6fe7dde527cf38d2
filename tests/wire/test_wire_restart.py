"""All features of queues after the server has ended and started again."""

import time

import pytest
from left_items import leave_items
from running import Server, Wire, configured, until

from darner._records import CHUNK_BYTES

SETTINGS = """
[queues.many]
max_open_reads = 3
[queues.old]
expire_to_queue = "late"
[queues.tried]
max_attempts = 2
dead_letter_queue = "dead"
[queues.memory]
durable = false
"""
LARGE = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"
DELAY_S = 2


@pytest.fixture
def server(tmp_path):
    with configured(tmp_path, SETTINGS) as server:
        yield server


def restart(server: Server, how: str) -> Wire:
    """End the server, start it again, and connect. After a kill only the log has new changes."""
    server.end(how)
    server.start()
    return server.connect()


@pytest.mark.leveldb("cursors and expire_to_queue are refused")
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_everything_is_there_and_just_once_however_often_the_server_ends(server, how):
    wire = server.connect()
    # a fanout, and a cursor over it
    for name in (b"orders", b"orders+audit", b"memory"):
        wire.get(name)
    for n in range(4):
        assert wire.set(b"orders", b"%d" % n, flags=7) == b"STORED\r\n"
    assert wire.set(b"orders", LARGE) == b"STORED\r\n"
    assert wire.get(b"orders/cursor=billing") == b"0"
    assert wire.get(b"orders/cursor=billing/open") == b"1"
    assert wire.get(b"orders/cursor=billing/close") is None
    assert wire.get(b"orders/cursor=billing/open") == b"2"  # never closed
    # delayed items
    begun = time.monotonic()
    for data in (b"1", LARGE):
        request = b"set later/delay=%d 0 0 %d\r\n%s\r\n"
        assert wire.ask(request % (DELAY_S * 1000, len(data), data)) == b"STORED\r\n"
    leave_items(wire)
    # items that expire to another queue, or are not durable
    wire.set(b"old", b"expired", exptime=1)
    wire.set(b"old", b"stays")
    wire.set(b"memory", b"m")

    for _ in range(2):
        wire = restart(server, how)
        assert wire.get(b"orders/cursor=billing/peek") == b"2"
        assert wire.get(b"later/peek") is None or time.monotonic() > begun + DELAY_S

    until(
        lambda: int(wire.stats()["queue_gone_expired_items"]) == 1 or wire.stats()["queue_gone_items"] == "1"
    )
    assert wire.values(b"get orders/peek") == [(b"orders/peek", 7, None, b"0")]
    assert [wire.get(b"orders/cursor=billing") for _ in range(4)] == [b"2", b"3", LARGE, None]
    for name in (b"orders", b"orders+audit"):
        assert [wire.get(name) for _ in range(6)] == [b"0", b"1", b"2", b"3", LARGE, None]
    assert [wire.get(b"many") for _ in range(4)] == [b"b", b"c", b"d", None]
    assert [wire.get(b"later/t=5000") for _ in range(2)] == [b"1", LARGE]
    assert time.monotonic() >= begun + DELAY_S
    until(lambda: wire.stats().get("queue_late_items") == "1")
    assert [wire.get(b"old"), wire.get(b"late"), wire.get(b"late")] == [b"stays", b"expired", None]
    assert [wire.get(b"gone"), wire.get(b"gone")] == [b"stays", None]
    assert [wire.get(b"tried"), wire.get(b"dead"), wire.get(b"dead")] == [None, b"p", None]
    assert wire.get(b"memory") is None

    # no item comes again
    wire = restart(server, how)
    stats = wire.stats()
    assert (stats["curr_items"], stats["bytes"]) == ("0", "0")
    for name in (b"orders", b"orders+audit", b"later", b"many", b"old", b"late", b"gone", b"dead"):
        assert wire.get(name) is None
    assert wire.get(b"orders/cursor=billing") is None
    until(lambda: not list(server.data.glob("*/blobs/*")))

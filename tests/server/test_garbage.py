"""Clients and queues leave no reference cycles behind: the collector would not free old ones."""

import contextlib
import re
import signal
import sys

import pytest
from running import running, until

# At a signal, print the types of the objects that only a full collection would free.
WATCHED = """
import gc, signal, sys
from darner.__main__ import main

def look(*_):
    gc.unfreeze()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    print("unfreed", *{type(each).__name__ for each in gc.garbage}, "end", file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, look)
main()
"""
LARGE = bytes(1_000_000)


def wait_and_go(server):
    wire = server.connect()
    wire.send(b"get nothing/t=60000\r\n")
    until(lambda: server.stat("queue_nothing_waiters"))
    wire.reset()


def wait_and_get_nothing(server):
    with contextlib.closing(server.connect()) as wire:
        assert wire.get(b"nothing/t=1") is None
        wire.send(b"monitor nothing 1 1\r\nset nothing 0 0 1\r\nx\r\n")
        until(lambda: server.stat("queue_nothing_waiters"))
        server.connect().set(b"nothing", b"x")
        wire.line()


def stop_reading(server):
    with contextlib.closing(server.connect()) as wire:
        wire.set(b"large", LARGE)
    for request in (b"get large/peek\r\n", b"stats\r\n", b"dump_config\r\n", b"flush_all\r\n"):
        wire = server.connect()
        wire.send(request * 200)
        wire.line()
        wire.reset()


def send_large_items(server):
    with contextlib.closing(server.connect()) as wire:
        wire.set(b"large", LARGE)
        wire.set(b"large+child", LARGE)
        wire.set(b"large", LARGE)
        wire.send(b"set large 0 0 1000000\r\nx")


def delete_what_is_used(server):
    with contextlib.closing(server.connect()) as wire:
        for _ in range(3):
            wire.set(b"used", b"x")
            assert wire.get(b"used/cursor=c") == b"x"
            assert wire.get(b"used/open") == b"x"
            wire.ask(b"delete used\r\n")


@pytest.mark.parametrize(
    "use", [wait_and_go, wait_and_get_nothing, stop_reading, send_large_items, delete_what_is_used]
)
def test_what_clients_leave_behind_is_freed_without_the_collector(tmp_path, use):
    with running(tmp_path / "data", command=(sys.executable, "-c", WATCHED)) as server:
        use(server)
        until(lambda: server.stat("curr_connections") == 1)
        server.process.send_signal(signal.SIGUSR1)
        kinds = re.search("unfreed (.*)end", server.wait_for_log("unfreed"))[1].split()
    # objects that Python made at the start
    assert not set(kinds) - {"getset_descriptor", "type", "tuple", "dict"}

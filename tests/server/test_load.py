"""Ten thousand connections, and ten thousand queues: they are served, in bounded memory and descriptors.

A start is measured in processor time: the machine may be busy with something else.
"""

import contextlib
import resource
from pathlib import Path

import pytest
from running import DARNER, running, until

MIB = 1 << 20
CONNECTIONS = 10_000
# The most memory of an idle connection.
CONNECTION_BYTES = 8 << 10
QUEUES = 10_000
# So many of these are read, each from its own LevelDB: more than may be open with so few descriptors.
READ = 150
DESCRIPTORS = 1024
START_S, START_BYTES = 8.0, 200 * MIB


@pytest.fixture
def many_descriptors():
    """Allow the descriptors of all connections at both ends, and those of the server's files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # tests before this one may have left some open here
    needed = CONNECTIONS * 4 // 3 + 100 + len(list(Path("/proc/self/fd").iterdir()))
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed} descriptors are needed, and {hard} the limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_connections_are_served_in_bounded_memory(many_descriptors, server, wire):
    before = server.resident_bytes
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(CONNECTIONS)]
        for number, each in enumerate(wires):
            each.send(b"set work 0 0 5\r\n%05d\r\nget work\r\n" % number)
        replies = sorted(each.exactly(36) for each in wires)
        # a get whose turn is over comes in the next one, behind requests of others
        assert replies == [b"STORED\r\nVALUE work 0 5\r\n%05d\r\nEND\r\n" % n for n in range(CONNECTIONS)]
        for each in wires:
            each.send(b"get work/t=600000\r\n")
        until(lambda: server.stat("queue_work_waiters") == CONNECTIONS)
        for number in range(CONNECTIONS):
            assert wire.set(b"work", b"%05d" % number) == b"STORED\r\n"
        # each client got one
        assert {each.line() for each in wires} == {b"VALUE work/t=600000 0 5\r\n"}
        items = sorted(each.exactly(len(b"00000\r\nEND\r\n"))[:5] for each in wires)
        assert items == [b"%05d" % number for number in range(CONNECTIONS)]
        assert server.stat("curr_connections") == CONNECTIONS + 2
        assert server.resident_bytes - before < CONNECTIONS * CONNECTION_BYTES
    assert server.stop() == 0


@pytest.mark.alone
def test_ten_thousand_queues_start_fast_in_bounded_memory_and_descriptors(tmp_path):
    command = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$0" "$@"', DARNER)
    names = [b"queue%d" % number for number in range(QUEUES)]
    with running(tmp_path / "data", command=command) as server:
        with contextlib.closing(server.connect()) as wire:
            for at in range(0, QUEUES, 500):
                some = names[at : at + 500]
                wire.send(b"".join(b"set %s 0 0 3\r\nabc\r\n" % name for name in some))
                assert wire.exactly(8 * len(some)) == b"STORED\r\n" * len(some)
        assert server.stop() == 0
        server.start()
        assert server.processor_s < START_S
        assert server.resident_bytes < START_BYTES
        with contextlib.closing(server.connect()) as wire:
            for name in names[:READ]:
                assert wire.get(name) == b"abc"
            assert server.descriptors < DESCRIPTORS // 2
        assert server.stat("curr_items") == QUEUES - READ
        assert server.stop() == 0
    assert "level=error" not in server.log

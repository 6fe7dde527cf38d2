"""The requests of one client cost others no more than a turn, and its unread replies little memory."""

import contextlib
import re
import socket
import threading
from pathlib import Path

import pytest
from bystander import Bystander, socket_of
from running import Server, configured, running, until

MIB = 1 << 20
# How long the server may be busy with other clients while one waits for a reply, in CPU time, which does not
# grow when the machine is busy.
LONGEST_NS = 30_000_000


def ask(wire, request: bytes, count: int, end: bytes) -> None:
    """Send a request, and read until so many lines equal `end`."""
    sender = threading.Thread(target=wire.send, args=(request,))
    sender.start()
    while count:
        count -= wire.line() == end
    sender.join()


def watched(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """Start a server that has a socket for bystanders."""
    data = directory / "data"
    return running(data, "--socket", str(socket_of(data)))


@pytest.fixture
def server(tmp_path):
    with watched(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def many(store):
    """How many queues are many: in a cluster each is a stream, which takes longer to make."""
    return 4000 if store == "leveldb" else 100


@pytest.fixture(scope="module")
def many_queues(tmp_path_factory, many):
    """A server with many queues."""
    with watched(tmp_path_factory.mktemp("many_queues")) as server:
        wire = server.connect()
        ask(wire, b"".join(b"set q%d 0 0 1\r\nx\r\n" % n for n in range(many)), many, b"STORED\r\n")
        wire.close()
        yield server


@pytest.mark.parametrize(
    ("request_", "count", "end"),
    [
        (b"stats\r\n" * 3, 3, b"END\r\n"),
        (b"dump_stats\r\n" * 3, 3, b"END\r\n"),
        (b"dump_config\r\n" * 3, 3, b"END\r\n"),
        (b"flush_all\r\n" * 10, 10, b"OK\r\n"),
        (b"stats reset\r\n" * 20, 20, b"RESET\r\n"),
        (b"".join(b"get new%d\r\n" % n for n in range(1000)), 1000, b"END\r\n"),
        (b"get" + b"".join(b" many%d" % n for n in range(200)) + b"\r\n", 1, b"END\r\n"),
        (b"".join(b"set gone%d 0 0 1\r\nx\r\n" % n for n in range(1000)), 1000, b"STORED\r\n"),
        (b"".join(b"delete gone%d\r\n" % n for n in range(1000)), 1000, b"DELETED\r\n"),
    ],
    ids=lambda value: value[:12].decode(errors="replace").strip() if isinstance(value, bytes) else None,
)
@pytest.mark.alone
def test_what_concerns_many_queues_is_done_while_others_are_served(many_queues, request_, count, end):
    # a turn of ours that is too long is so each time, a pause of the machine is not
    for _ in range(3):
        with contextlib.closing(many_queues.connect()) as wire, Bystander(many_queues) as bystander:
            ask(wire, request_, count, end)
        if bystander.longest_ns < LONGEST_NS:
            return
    pytest.fail(f"another client waited {bystander.longest_ns / 1e6:.1f} ms")


@pytest.mark.alone
def test_many_items_that_have_expired_are_got_past_while_others_are_served(server):
    count = 30_000
    with contextlib.closing(server.connect()) as wire:
        for queue in (b"by-get", b"by-cursor", b"by-several"):
            expired, last = (b"set %s 0 -1 1\r\nx\r\n" % queue, b"set %s 0 0 4\r\nlast\r\n" % queue)
            ask(wire, expired * count + last, count + 1, b"STORED\r\n")
        with Bystander(server) as bystander:
            assert wire.get(b"by-cursor/cursor=c") == b"last"
            assert wire.get(b"by-get") == b"last"
            assert [data for *_, data in wire.values(b"get by-several empty")] == [b"last"]
    assert bystander.longest_ns < LONGEST_NS


@pytest.mark.alone
def test_many_reserved_items_come_back_in_their_order_while_others_are_served(server):
    count = 30_000
    wire, holder = server.connect(), server.connect()
    ask(wire, b"".join(b"set q 0 0 5\r\n%05d\r\n" % n for n in range(count)), count, b"STORED\r\n")
    ask(holder, b"monitor q 60 %d\r\n" % count, count + 1, b"END\r\n")
    with Bystander(server) as bystander:
        holder.close()
        wire.send(b"get q/t=60000\r\n")
        assert wire.line().startswith(b"VALUE q/t=60000 ")
        assert wire.line() == b"00000\r\n"
        assert wire.line() == b"END\r\n"
        until(lambda: server.stat("queue_q_items") == count - 1, 60)
    assert bystander.longest_ns < LONGEST_NS
    assert wire.get(b"q") == b"00001"


@pytest.mark.alone
def test_many_reserved_items_are_confirmed_while_others_are_served(server):
    count = 150_000
    with contextlib.closing(server.connect()) as wire:
        ask(wire, b"set q 0 0 1\r\nx\r\n" * count, count, b"STORED\r\n")
        ask(wire, b"monitor q 60 %d\r\n" % count, count + 1, b"END\r\n")
        with Bystander(server) as bystander:
            assert wire.ask(b"confirm q %d\r\n" % (count + 1)) == b"END\r\n"
        assert wire.ask(b"confirm q 1\r\n") == b"ERROR\r\n"
    assert bystander.longest_ns < LONGEST_NS


def test_replies_that_take_several_turns_are_whole_and_in_their_order(many_queues, many):
    with contextlib.closing(many_queues.connect()) as wire:
        wire.set(b"q0", b"there")
        wire.send(b"stats\r\nversion\r\ndump_stats q0 q1\r\nget nothing\r\nflush_all\r\nget q0\r\n")
        names = []
        while (line := wire.line()) != b"END\r\n":
            if found := re.match(rb"STAT queue_(.+)_create_time \d+\r\n", line):
                names.append(found[1])
        assert names == sorted(set(names))
        assert {b"q%d" % n for n in range(many)} <= set(names)
        assert wire.line().startswith(b"VERSION ")
        lines = []
        while (line := wire.line()) != b"END\r\n":
            lines.append(line)
        assert [line for line in lines if b"queue" in line] == [b"queue 'q0' {\r\n", b"queue 'q1' {\r\n"]
        assert lines.count(b"}\r\n") == 2
        assert wire.line() == b"END\r\n"
        assert wire.line() == b"OK\r\n"
        assert wire.line() == b"END\r\n"


@contextlib.contextmanager
def unread(server, count: int, request: bytes):
    """Have so many clients send a request and read no reply; yield the server's memory before that."""
    before = server.resident_bytes
    clients = [server.connect() for _ in range(count)]
    for client in clients:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(request)
    yield before
    for client in clients:
        client.reset()


def largest_growth(server, before: int) -> int:
    """Return the growth of the server's memory while its clients read nothing."""
    largest = 0
    with contextlib.closing(server.connect()) as wire:
        for _ in range(20):
            wire.ask(b"get nothing/t=50\r\n")
            largest = max(largest, server.resident_bytes - before)
    return largest


@pytest.mark.parametrize("request_", [b"stats\r\n", b"dump_stats\r\n", b"dump_config\r\n"])
def test_replies_about_many_queues_that_are_not_read_take_bounded_memory(many_queues, request_):
    with unread(many_queues, 40, request_ * 100) as before:
        assert largest_growth(many_queues, before) < 24 * MIB


def test_names_of_children_that_are_not_read_take_bounded_memory(server, many):
    with contextlib.closing(server.connect()) as wire:
        pad = b"x" * 200
        count = many // 2
        ask(wire, b"".join(b"get q+%d%s\r\n" % (n, pad) for n in range(count)), count, b"END\r\n")
    with unread(server, 10, b"dump_stats" + b" q" * 500 + b"\r\n") as before:
        assert largest_growth(server, before) < 32 * MIB


IN_MEMORY = '[queues."m"]\ndurable = false\nmax_bytes = "16 MiB"\n'


@pytest.mark.leveldb("max_bytes is refused")
def test_a_large_item_in_memory_that_is_sent_to_many_is_not_copied_for_each(tmp_path):
    data = bytes(range(256)) * (15 * MIB // 256)
    with configured(tmp_path, IN_MEMORY) as server, contextlib.closing(server.connect()) as wire:
        assert wire.set(b"m", data) == b"STORED\r\n"
        with unread(server, 20, b"get m/peek\r\n") as before:
            assert largest_growth(server, before) < 48 * MIB
        for request in (b"m/peek", b"m/open", b"m/abort", b"m"):
            assert wire.get(request) == (None if request == b"m/abort" else data)
        assert wire.values(b"get m empty") == []


@pytest.mark.leveldb("max_bytes is refused")
def test_items_on_their_way_into_memory_have_no_more_bytes_than_the_queue_may_have(tmp_path):
    with configured(tmp_path, IN_MEMORY) as server, contextlib.closing(server.connect()) as wire:
        before = server.resident_bytes
        clients = [server.connect() for _ in range(8)]
        for client in clients:
            client.send(b"set m 0 0 %d\r\n%s" % (15 * MIB, bytes(14 * MIB)))
        assert wire.ask(b"version\r\n").startswith(b"VERSION")
        assert server.resident_bytes - before < 64 * MIB
        replies = []
        for client in clients:
            client.send(bytes(MIB) + b"\r\n")
            replies.append(client.line())
        assert sorted(replies) == [b"NOT_STORED\r\n"] * 7 + [b"STORED\r\n"]
        # failed sets no longer count
        assert len(wire.get(b"m")) == 15 * MIB
        assert wire.set(b"m", bytes(15 * MIB)) == b"STORED\r\n"

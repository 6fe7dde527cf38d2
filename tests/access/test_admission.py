"""Who gets in, over the wire: how many there may be, and those who ask for nothing."""

import contextlib
import resource
import socket
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from logins import FAILED, HASH, login
from running import DARNER, Wire, configured, running, until

from darner.access import admission, authentication, pending_connection
from darner.wire.counters import Counters

TOO_MANY = b"SERVER_ERROR too many connections\r\n"


class FakeTransport:
    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def get_extra_info(self, _: str) -> tuple[str, int]:
        return "192.0.2.7", 4711

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_login_that_does_not_come_is_not_waited_for():
    timers = []
    loop = SimpleNamespace(call_later=lambda *timer: timers.append(timer) or Mock())
    clients = SimpleNamespace(loop=loop, connections=set(), counters=Counters(), files=0)
    transport = FakeTransport()
    arrival = admission.Admission(clients, Mock(), users={})()
    arrival.connection_made(transport)
    ((seconds, too_late, *arguments),) = timers
    assert seconds == pending_connection.LOGIN_S
    too_late(*arguments)
    assert transport.sent == FAILED
    assert timers[1] == (pending_connection.LINGER_S, transport.close)


def test_password_that_is_not_checked_in_time_is_not_called_wrong():
    timers = []
    loop = SimpleNamespace(call_later=lambda *timer: timers.append(timer) or Mock())
    clients = SimpleNamespace(loop=loop, connections=set(), counters=Counters(), files=0)
    transport = FakeTransport()
    gate = admission.Admission(clients, Mock(), users={})
    arrival = gate()
    arrival.connection_made(transport)
    arrival.data_received(login())
    seconds, too_late, *arguments = timers[-1]
    assert seconds == pending_connection.LOGIN_S
    too_late(*arguments)
    assert transport.sent == pending_connection.BUSY
    assert arrival not in gate.capacity.pending


def test_password_for_which_there_is_no_room_is_not_called_wrong(monkeypatch):
    loop = SimpleNamespace(call_later=lambda *_: Mock())
    clients = SimpleNamespace(loop=loop, connections=set(), counters=Counters(), files=0)
    transport = FakeTransport()
    gate = admission.Admission(clients, Mock(), users={})
    monkeypatch.setattr(gate.authentication.checks, "check", lambda *asked: asked[-1](None))
    arrival = gate()
    arrival.connection_made(transport)
    arrival.data_received(login())
    assert transport.sent == pending_connection.BUSY
    assert clients.counters.auth_errors == 0


def test_address_that_sent_a_wrong_password_is_forgiven_after_a_minute_or_two(monkeypatch):
    clients = SimpleNamespace(loop=None, connections=set(), counters=Counters(), files=0)
    gate = admission.Admission(clients, Mock(), users={})
    times = []
    monkeypatch.setattr(gate.authentication.checks, "forgive", lambda: times.append(0))
    for seconds in range(1, 181):
        gate.sweep()
        assert len(times) == seconds // 60


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::"),
        ("", ""),
        (None, ""),
    ],
)
def test_address_of_a_connection_is_what_one_stranger_has_one_of(peer, address):
    transport = SimpleNamespace(get_extra_info=lambda _: peer)
    assert authentication.address_of(transport) == address


class TestMaxConnections:
    def test_one_more_is_told_so_and_closed_and_the_others_are_served(self, tmp_path):
        with configured(tmp_path, "max_connections = 3\n") as server:
            wires = [server.connect() for _ in range(3)]
            for _ in range(30):
                more = server.connect()
                # whatever it has sent, it can read why
                more.send(b"get work\r\n" * 1000)
                assert more.line() == TOO_MANY
                assert more.closed()
                more.close()
            assert all(wire.ask(b"version\r\n").startswith(b"VERSION") for wire in wires)
            wires.pop().close()

            def is_served() -> bool:
                with contextlib.closing(server.connect()) as wire, contextlib.suppress(ConnectionError):
                    return wire.ask(b"version\r\n").startswith(b"VERSION")
                return False

            until(is_served)
            assert server.stop() == 0
        assert server.log.count("too many connections") == 1

    def test_counts_those_that_have_not_logged_in(self, tmp_path):
        users = tmp_path / "users.toml"
        users.write_text(f'[alice]\npassword = "{HASH}"\n')
        with configured(tmp_path, f'max_connections = 3\nauth_file = "{users}"\n') as server:
            wires = [server.connect() for _ in range(3)]
            assert server.connect().line() == TOO_MANY
            assert wires[0].ask(login()) == b"STORED\r\n"
            assert server.connect().line() == TOO_MANY

    def test_that_come_at_once_are_counted_too(self, tmp_path):
        with configured(tmp_path, "max_connections = 10\n") as server:
            sockets = []
            for _ in range(100):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", server.port))
                sockets.append(sock)
            refused = 0
            for sock in sockets:
                sock.settimeout(10)
                sock.send(b"version\r\n")
                with contextlib.suppress(ConnectionError):
                    refused += sock.recv(100) != b"VERSION 1.0.0\r\n"
                    continue
                refused += 1
            assert refused == 90
            for sock in sockets:
                sock.close()


class TestDescriptors:
    @pytest.fixture
    def few(self, tmp_path):
        """A server that has 256 of them."""
        with running(
            tmp_path / "data", command=("sh", "-c", 'ulimit -n 256; exec "$0" "$@"', DARNER)
        ) as server:
            yield server

    def test_that_connections_would_take_from_the_queues_they_do_not_get(self, few):
        first = few.connect()
        others = [few.connect() for _ in range(300)]
        assert [wire.line() for wire in others[191:]] == [TOO_MANY] * 109
        # those who linger to read that have gone
        until(lambda: int(first.stats()["curr_connections"]) == 192)
        for n in range(5):
            assert first.set(b"q%d" % n, b"x") == b"STORED\r\n"
        for wire in others:
            wire.close()
        until(lambda: int(first.stats()["curr_connections"]) == 1)
        with contextlib.closing(few.connect()) as more:
            assert more.ask(b"version\r\n").startswith(b"VERSION")
        assert few.stop() == 0
        assert "Traceback" not in few.log

    @pytest.mark.parametrize("limit", [256, 512, 1024])
    def test_are_left_for_more_queues_than_can_be_open_at_once(self, tmp_path, limit):
        queues = limit // 8
        with running(tmp_path / "data") as server, contextlib.closing(server.connect()) as wire:
            for n in range(queues):
                wire.set(b"q%d" % n, b"x")
            assert server.stop() == 0
        command = ("sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', DARNER)
        with running(tmp_path / "data", command=command) as server:
            first = server.connect()
            others = [server.connect() for _ in range(limit)]
            for wire in others:
                wire.send(b"version\r\n")
            assert [first.get(b"q%d" % n) for n in range(queues)] == [b"x"] * queues
            assert [first.set(b"n%d" % n, b"x") for n in range(queues)] == [b"STORED\r\n"] * queues
            for wire in others:
                wire.close()
            assert server.stop() == 0
        assert "level=error" not in server.log

    def test_that_are_all_gone_neither_spin_nor_end_the_listener(self, server, wire):
        """uvloop does the one or the other when there is none for a connection that waits."""
        wire.set(b"q", b"x")
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        # fewer than it has open
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        waiting = [server.connect() for _ in range(5)]
        server.wait_for_log("cannot be accepted")
        before = server.processor_s
        assert wire.get(b"q") == b"x"
        wire.ask(b"get q/t=1500\r\n")
        assert server.processor_s - before < 0.3
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        for each in waiting:
            assert each.ask(b"version\r\n").startswith(b"VERSION")
        assert server.stop() == 0
        assert server.log.count("cannot be accepted") == 1


class TestFewDescriptors:
    """Clients that read large items slowly."""

    LARGE = bytes(8 << 20)

    @pytest.fixture
    def server(self, tmp_path):
        with running(
            tmp_path / "data", command=("sh", "-c", 'ulimit -n 256; exec "$0" "$@"', DARNER)
        ) as server:
            yield server

    def test_take_none_of_the_queues(self, server, wire):
        wire.set(b"large", self.LARGE)
        slow = [server.connect() for _ in range(120)]
        until(lambda: int(wire.stats()["curr_connections"]) == 121)
        for client in slow:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(b"get large/peek\r\n")
            client.socket.settimeout(10)
        # the 121 connections and 71 files make up three quarters
        lines = [client.line() for client in slow]
        assert sum(line.startswith(b"VALUE ") for line in lines) == 192 - 121
        assert {line for line in lines if not line.startswith(b"VALUE ")} == {
            b"SERVER_ERROR too many large items are being sent: try again\r\n"
        }
        with contextlib.closing(server.connect()) as more:
            assert more.line() == TOO_MANY
        for n in range(5):
            assert wire.set(b"q%d" % n, b"x") == b"STORED\r\n"
        assert wire.set(b"large2", self.LARGE) == b"STORED\r\n"
        assert wire.ask(b"get large2\r\n").startswith(b"SERVER_ERROR too many large items")
        assert wire.stats()["queue_large2_items"] == "1"
        assert server.wait_for_log("being sent").count("too many large items are being sent") == 1
        for client in slow:
            client.reset()
        until(lambda: int(wire.stats()["curr_connections"]) == 1)
        assert wire.get(b"large2") == self.LARGE

    def test_leave_some_to_large_items_whatever_connections_there_are(self, server, wire):
        wire.set(b"large", self.LARGE)
        others = [server.connect() for _ in range(191)]
        until(lambda: int(wire.stats()["curr_connections"]) == 192)
        assert wire.get(b"large/peek") == self.LARGE
        for other in others:
            other.close()


class TestIdleTimeout:
    @pytest.fixture
    def server(self, tmp_path):
        with configured(tmp_path, 'idle_timeout = "1s"\n') as server:
            yield server

    def closes(self, wire: Wire) -> bool:
        """Whether the server closes it without a word, and not before its time."""
        start = time.monotonic()
        return wire.closed() and time.monotonic() - start > 0.5

    def test_closes_who_asks_for_nothing(self, server, wire):
        assert self.closes(wire)
        with contextlib.closing(server.connect()) as once:
            once.ask(b"version\r\n")
            assert self.closes(once)
        server.wait_for_log("closed idle connections")

    def test_closes_who_holds_an_item_and_gives_it_back(self, server, wire):
        wire.set(b"q", b"x")
        assert wire.get(b"q/open") == b"x"
        with contextlib.closing(server.connect()) as other:
            assert other.ask(b"get q/t=8000\r\n") == b"VALUE q/t=8000 0 1\r\n"
        assert wire.closed()

    def test_closes_who_does_not_finish_a_request_or_does_not_read(self, server, wire):
        wire.set(b"q", bytes(8 << 20))
        halves = [server.connect() for _ in range(3)]
        for half, request_ in zip(
            halves, [b"get q/peek\r\n", b"set q 0 0 10\r\nx", b"set q 0 0 200000\r\nx"], strict=True
        ):
            half.send(request_)
        until(lambda: server.stat("curr_connections") == 1)
        for half in halves:
            half.close()

    def test_spares_who_waits_and_who_asks_often_enough(self, server, wire):
        waiting = server.connect()
        waiting.send(b"get q/t=60000\r\n")
        for _ in range(12):
            time.sleep(0.3)
            assert wire.ask(b"version\r\n").startswith(b"VERSION")
        wire.set(b"q", b"x")
        assert waiting.line() == b"VALUE q/t=60000 0 1\r\n"
        # and has its time from then on
        assert waiting.exactly(8) == b"x\r\nEND\r\n"
        assert self.closes(waiting)

    def test_spares_who_reads_slowly(self, server, wire):
        item = bytes(24 << 20)
        wire.set(b"q", item)
        wire.send(b"get q\r\n")
        wire.line()
        for _ in range(24):
            wire.exactly(1 << 20)
            time.sleep(0.15)
        assert wire.exactly(7) == b"\r\nEND\r\n"

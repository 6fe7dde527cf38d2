"""Who gets in, over the wire: the login, how many there may be, and those who ask for nothing."""

import contextlib
import resource
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from pymemcache.client.base import Client
from running import DARNER, Server, Wire, running, until
from test_cli import refused
from test_wire_hostile import processor_s

from darner import admission, auth
from darner._proto import CHUNK_BYTES

FAILED = b"CLIENT_ERROR authentication failure\r\n"
TOO_MANY = b"SERVER_ERROR too many connections\r\n"
HASH = auth.hash_password(b"pass word")


def configured(tmp_path: Path, text: str) -> contextlib.AbstractContextManager[Server]:
    path = tmp_path / "darner.toml"
    path.write_text(text)
    return running(tmp_path / "data", "--config", str(path))


def login(user: bytes = b"alice", password: bytes = b"pass word", more: bytes = b"") -> bytes:
    return b"set any 0 0 %d%s\r\n%s %s\r\n" % (len(user) + 1 + len(password), more, user, password)


def reload(server: Server) -> str:
    server.process.send_signal(1)
    return server.wait_for_log("reloaded")


class TestLogin:
    @pytest.fixture(scope="module")
    def users(self, tmp_path_factory) -> Path:
        return tmp_path_factory.mktemp("users") / "users.toml"

    @pytest.fixture(scope="class")
    def standing(self, users, tmp_path_factory):
        self.write(users)
        with configured(tmp_path_factory.mktemp("auth"), f'auth_file = "{users}"\n') as server:
            yield server
            assert server.stop() == 0
        assert "Traceback" not in server.log

    @pytest.fixture(autouse=True)
    def _as_they_were(self, users):
        self.write(users)

    def write(self, path: Path, *, alice: str = 'read = ["*"]\nwrite = ["work*"]\n', bob: str = "") -> None:
        path.write_text(
            f'[alice]\npassword = "{HASH}"\n{alice}[bob]\npassword = "{HASH}"\n{bob or "admin = true"}\n'
        )
        path.chmod(0o600)

    def test_with_the_right_password_is_stored_and_lets_in(self, client):
        assert client.ask(login()) == b"STORED\r\n"
        assert client.set(b"work", b"x") == b"STORED\r\n"
        assert client.get(b"work") == b"x"
        assert b"any" not in client.ask(b"version\r\n")

    def test_stores_nothing(self, standing, client):
        client.ask(login(b"bob"))
        assert "queue_any_items" not in client.stats()

    def test_and_what_is_pipelined_behind_it_are_answered_in_order(self, client):
        item = bytes(CHUNK_BYTES * 3)
        client.send(login() + b"set work 0 0 %d\r\n%s\r\n" % (len(item), item) + b"get work\r\nversion\r\n")
        assert client.line() == b"STORED\r\n"
        assert client.line() == b"STORED\r\n"
        assert client.line() == b"VALUE work 0 %d\r\n" % len(item)
        assert client.exactly(len(item) + 7) == item + b"\r\nEND\r\n"
        assert client.line().startswith(b"VERSION")

    def test_cut_anywhere_is_the_same(self, standing):
        data = login() + b"version\r\n"
        for at in range(1, len(data), 3):
            with contextlib.closing(standing.connect()) as wire:
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire.send(data[:at])
                time.sleep(0.001)
                wire.send(data[at:])
                assert wire.line() == b"STORED\r\n"
                assert wire.line().startswith(b"VERSION")

    def test_by_a_client_that_then_sends_no_more_is_answered(self, client):
        client.send(login() + b"version\r\n")
        client.half_close()
        assert client.line() == b"STORED\r\n"
        assert client.line().startswith(b"VERSION")
        assert client.closed()

    def test_with_noreply_is_silent(self, client):
        client.send(login(more=b" noreply") + b"version\r\n")
        assert client.line().startswith(b"VERSION")

    def test_may_be_left_to_a_memcache_client(self, standing):
        client = Client(("127.0.0.1", standing.port), default_noreply=False)
        assert client.set("any", b"alice pass word")
        assert client.set("work", b"x")
        assert client.get("work") == b"x"
        client.close()

    @pytest.mark.parametrize(
        "request_",
        [
            login(password=b"wrong"),
            login(user=b"mallory"),
            login(user=b"Alice"),
            login(password=b""),
            b"set any 0 0 5\r\nalice\r\n",
            b"set any 0 0 0\r\n\r\n",
            b"set any 0 0 3\r\nabcdef\r\n",
            b"set any 0 0 x\r\n",
            b"set any/bad 0 0 3\r\na b\r\n",
            b"set any 0 0 %d\r\n" % CHUNK_BYTES + bytes(CHUNK_BYTES),
            b"set any 0 0 %d\r\n" % (CHUNK_BYTES * 2) + bytes(CHUNK_BYTES * 2),
            b"add any 0 0 15\r\nalice pass word\r\n",
            b"get work\r\n",
            b"version\r\n",
            b"stats\r\n",
            b"nonsense\r\n",
            b"\r\n",
            b"x" * 3000,
        ],
    )
    def test_that_fails_is_told_so_and_nothing_else_and_closed(self, client, request_):
        client.send(request_ + b"version\r\nversion\r\n")
        assert client.line() == FAILED
        assert client.closed()

    @pytest.mark.parametrize(
        "request_", [b"quit\r\n", b"flush_all noreply\r\n", b"\x80", login(password=b"x", more=b" noreply")]
    )
    def test_that_fails_where_no_answer_is_due_only_closes(self, client, request_):
        client.send(request_)
        assert client.closed()

    def test_is_logged_without_the_password_and_not_at_length(self, tmp_path, users):
        with configured(tmp_path, f'auth_file = "{users}"\n') as server:
            for _ in range(20):
                assert server.connect().ask(login(password=b"hunter2")) == FAILED
            assert server.stop() == 0
        assert server.log.count("authentication failure") == 1
        assert "user=alice" in server.log
        assert "hunter2" not in server.log

    def test_stalls_nobody_while_many_are_checked(self, standing, client):
        client.ask(login())
        hasty = [standing.connect() for _ in range(40)]
        for wire in hasty:
            wire.send(login(password=b"wrong"))
        waits = []
        for _ in range(30):
            start = time.monotonic()
            client.ask(b"version\r\n")
            waits.append(time.monotonic() - start)
        assert sorted(waits)[len(waits) // 2] < 0.1
        for wire in hasty[::2]:
            wire.reset()
        for wire in hasty[1::2]:
            assert wire.line() == FAILED
            wire.close()

    def test_that_does_not_end_holds_a_bounded_buffer(self, standing):
        wires = [standing.connect() for _ in range(50)]
        before = standing.resident_bytes
        for wire in wires:
            wire.send(b"set any 0 0 60000\r\n" + bytes(admission.LOGIN_BYTES - 100))
        until(lambda: standing.resident_bytes - before < 4 << 20)
        for wire in wires:
            wire.send(bytes(200))
            assert wire.line() == FAILED
            assert wire.closed()

    def test_permissions_hold_for_every_request(self, client):
        client.ask(login())
        large = b"set mine 0 0 %d\r\n%s\r\n" % (CHUNK_BYTES * 2, bytes(CHUNK_BYTES * 2))
        quiet = b"set mine 0 0 1 noreply\r\nx\r\n"
        client.send(b"set mine 0 0 1\r\nx\r\n" + large + quiet + b"delete work\r\nflush_all\r\nget mine\r\n")
        for error in (auth.WRITE, auth.WRITE, auth.MANAGE, auth.ADMIN):
            assert client.line() == error
        assert client.line() == b"END\r\n"

    def test_file_is_read_again_when_told(self, standing, users):
        alice, bob, waiting = standing.connect(), standing.connect(), standing.connect()
        alice.ask(login())
        bob.ask(login(b"bob"))
        alice.set(b"work", b"x")
        assert alice.get(b"work/open") == b"x"
        waiting.ask(login())
        waiting.send(b"get mail/t=60000\r\n")
        self.write(users, alice='read = ["mail"]\n')
        reload(standing)
        # what she was may have been more than what she is
        assert alice.closed()
        assert waiting.closed()
        assert bob.get(b"work") == b"x"
        with contextlib.closing(standing.connect()) as wire:
            wire.ask(login())
            assert wire.ask(b"get work\r\n") == auth.READ
        self.write(users)
        reload(standing)

    def test_file_that_is_bad_when_read_again_changes_nothing(self, standing, users):
        users.write_text("nonsense")
        reload(standing)
        assert "everything stays as it was" in standing.log
        with contextlib.closing(standing.connect()) as wire:
            assert wire.ask(login()) == b"STORED\r\n"

    def test_file_that_is_bad_at_the_start_is_one_line(self, tmp_path):
        (tmp_path / "users.toml").write_text("[alice]\n")
        (tmp_path / "darner.toml").write_text(f'auth_file = "{tmp_path}/users.toml"\n')
        assert "users.toml: user alice" in refused("-c", f"{tmp_path}/darner.toml", "-d", f"{tmp_path}/data")


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
    turn = SimpleNamespace(loop=loop, connections=set())
    transport = FakeTransport()
    arrival = admission.Admission(turn, Mock(), users={})()
    arrival.connection_made(transport)
    ((seconds, too_late, *arguments),) = timers
    assert seconds == admission.LOGIN_S
    too_late(*arguments)
    assert transport.sent == FAILED
    assert timers[1] == (admission.LINGER_S, transport.close)


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

    def test_that_are_all_gone_neither_spin_nor_end_the_listener(self, server, wire):
        """uvloop does the one or the other when there is none for a connection that waits."""
        wire.set(b"q", b"x")
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        # fewer than it has open
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        waiting = [server.connect() for _ in range(5)]
        server.wait_for_log("cannot be accepted")
        before = processor_s(server)
        assert wire.get(b"q") == b"x"
        wire.ask(b"get q/t=1500\r\n")
        assert processor_s(server) - before < 0.3
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        for each in waiting:
            assert each.ask(b"version\r\n").startswith(b"VERSION")
        assert server.stop() == 0
        assert server.log.count("cannot be accepted") == 1


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

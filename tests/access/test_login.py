"""The login, over the wire."""

import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest
from logins import FAILED, HASH, login
from pymemcache.client.base import Client
from running import Server, Wire, configured, refused, until

from darner._records import CHUNK_BYTES
from darner.access import authentication, guard, pending_connection


def reload(server: Server) -> str:
    server.process.send_signal(signal.SIGHUP)
    return server.wait_for_log("reloaded")


def write(path: Path, *, alice: str = 'read = ["*"]\nwrite = ["work*"]\n') -> None:
    path.write_text(f'[alice]\npassword = "{HASH}"\n{alice}[bob]\npassword = "{HASH}"\nadmin = true\n')
    path.chmod(0o600)


@pytest.fixture(scope="module")
def users(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("users") / "users.toml"


@pytest.fixture(autouse=True)
def _as_they_were(users):
    write(users)


@pytest.fixture(scope="module")
def standing(users, tmp_path_factory):
    write(users)
    with configured(tmp_path_factory.mktemp("auth"), f'auth_file = "{users}"\n') as server:
        yield server
        assert server.stop() == 0
    assert "Traceback" not in server.log


class TestLogin:
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

    @pytest.mark.alone
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
            wire.send(b"set any 0 0 60000\r\n" + bytes(pending_connection.LOGIN_BYTES - 100))
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
        for error in (guard.WRITE, guard.WRITE, guard.MANAGE, guard.ADMIN):
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
        write(users, alice='read = ["mail"]\n')
        reload(standing)
        # what she was may have been more than what she is
        assert alice.closed()
        assert waiting.closed()
        assert bob.get(b"work") == b"x"
        with contextlib.closing(standing.connect()) as wire:
            wire.ask(login())
            assert wire.ask(b"get work\r\n") == guard.READ
        write(users)
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


def from_address(server: Server, address: str) -> Wire:
    """A connection from another address of the loopback device."""
    wire = server.connect()
    wire.socket.close()
    wire.socket = socket.create_connection(("127.0.0.1", server.port), 30, source_address=(address, 0))
    return wire


class TestFlood:
    def test_of_wrong_passwords_keeps_no_right_one_of_another_address_out(self, tmp_path, users):
        with configured(tmp_path, f'auth_file = "{users}"\n') as server:
            strangers = [from_address(server, f"127.0.0.{2 + number % 3}") for number in range(400)]
            for number, wire in enumerate(strangers):
                wire.send(login(password=b"wrong %d" % number))
            # never seen before, in the middle of it
            assert server.connect().ask(login(b"bob")) == b"STORED\r\n"
            assert from_address(server, "127.0.0.2").ask(login(b"bob")) == b"STORED\r\n"
            said = {wire.line() for wire in strangers}
            assert said <= {FAILED, pending_connection.BUSY}
            assert server.stop() == 0
        assert "Traceback" not in server.log

    @pytest.mark.alone
    def test_that_fails_again_and_again_is_told_later(self, tmp_path, users):
        with configured(tmp_path, f'auth_file = "{users}"\n') as server:
            wires = [server.connect() for _ in range(40)]
            start = time.monotonic()
            for wire in wires:
                wire.send(login(password=b"wrong"))
            took = []
            for wire in wires:
                assert wire.line() == FAILED
                took.append(time.monotonic() - start)
            assert took[authentication.QUICK_FAILURES - 1] < authentication.FAILURE_S < took[-1]


class TestDeny:
    def test_refuses_commands_to_whoever_is_no_admin(self, tmp_path, users):
        write(users, alice='read = ["*"]\nwrite = ["*"]\nmanage = ["*"]\n')
        with configured(tmp_path, f'auth_file = "{users}"\ndeny = ["delete", "FLUSH_ALL"]\n') as server:
            alice, bob = server.connect(), server.connect()
            alice.ask(login())
            bob.ask(login(b"bob"))
            assert alice.set(b"work", b"x") == b"STORED\r\n"
            for command in (b"delete work\r\n", b"DELETE work\r\n", b"flush_all\r\n", b"flush_all 5\r\n"):
                assert alice.ask(command) == guard.DENIED
            assert alice.get(b"work/peek") == b"x"
            assert bob.ask(b"delete work\r\n") == b"DELETED\r\n"

    def test_refuses_them_to_everybody_where_there_are_no_users(self, tmp_path):
        with configured(tmp_path, 'deny = ["flush_all", "set"]\n') as server:
            wire = server.connect()
            large = b"set work 0 0 %d\r\n%s\r\n" % (CHUNK_BYTES * 3, bytes(CHUNK_BYTES * 3))
            wire.send(
                b"set work 0 0 1 noreply\r\nx\r\n" + large + b"flush_all\r\nflush_all noreply\r\nget work\r\n"
            )
            assert [wire.line() for _ in range(3)] == [guard.DENIED, guard.DENIED, b"END\r\n"]
            assert wire.ask(b"delete work\r\n") == b"DELETED\r\n"

    def test_of_what_is_no_command_is_an_error(self, tmp_path):
        for text in (
            '["flush_al"]',
            '"flush_all"',
            "[5]",
            '["delete", "DELETE"]',
            '["refused"]',
            '["set_chunk"]',
        ):
            (tmp_path / "darner.toml").write_text(f"deny = {text}\n")
            said = refused("-c", f"{tmp_path}/darner.toml", "-d", f"{tmp_path}/data")
            assert "darner.toml:1: deny is" in said
            assert "flush_all" in said

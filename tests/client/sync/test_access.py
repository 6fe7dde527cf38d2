"""The sync client's ways in: TLS, the login, and a Unix socket."""

import ssl
from pathlib import Path

import pytest
import trustme
from logins import HASH
from running import configured, running

from darner.client import BadRequestError, Client, ConnectionFailedError, LoginError, NotPermittedError

QUEUE = "work"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(tmp_path_factory, authority):
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    settings = f'tls_cert = "{directory}/both.pem"\ntls_key = "{directory}/both.pem"\n'
    with configured(directory, settings + "[queue_defaults]\nmax_open_reads = 50\n") as server:
        yield server


@pytest.fixture
def trusting(authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for user and password."""
    directory: Path = tmp_path_factory.mktemp("users")
    users = directory / "users.toml"
    users.write_text(f'[alice]\npassword = "{HASH}"\nread = ["work*"]\nwrite = ["work*"]\n')
    users.chmod(0o600)
    with configured(directory, f'auth_file = "{users}"\n') as server:
        yield server


class TestTLS:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_carries_small_and_large_values(self, certified, trusting, host):
        values = [b"x", bytes(3_000_000), b"y" * 100_000, b"z"]
        with Client(f"darners://{host}:{certified.port}", tls=trusting) as client:
            client.put_many(QUEUE, values)
            with client.reserve_many(QUEUE, 10) as items:
                assert [item.value for item in items] == values
            assert client.get(QUEUE, timeout=0.05) is None

    def test_of_a_server_that_is_not_trusted_is_no_connection(self, certified):
        client = Client(f"darners://localhost:{certified.port}")
        with pytest.raises(ConnectionFailedError, match="certificate verify failed"):
            client.put(QUEUE, b"x")

    def test_is_waited_on_in_a_fleet(self, certified, trusting):
        servers = [f"darners://{host}:{certified.port}" for host in ("localhost", "127.0.0.1")]
        with Client(servers, tls=trusting) as client:
            assert client.get(QUEUE, timeout=0.1) is None

    def test_of_an_address_without_tls_is_refused(self, trusting):
        with pytest.raises(BadRequestError):
            Client("darner://localhost", tls=trusting)


class TestLogin:
    def test_by_the_url_lets_in(self, guarded):
        with Client(f"darner://alice:pass%20word@127.0.0.1:{guarded.port}") as client:
            client.put(QUEUE, b"x")
            assert client.get(QUEUE) == b"x"

    def test_lets_a_user_do_what_it_may_alone(self, guarded):
        with Client(f"darner://alice:pass%20word@127.0.0.1:{guarded.port}") as client:
            with pytest.raises(NotPermittedError):
                client.put("other", b"x")
            client.put(QUEUE, b"the connection is in step")
            assert client.get(QUEUE) == b"the connection is in step"

    @pytest.mark.parametrize("login", ["", "alice:wrong@", "mallory:pass%20word@"])
    def test_that_is_wrong_or_missing_is_an_error(self, guarded, login):
        with Client(f"darner://{login}127.0.0.1:{guarded.port}") as client:
            for _ in range(2):
                with pytest.raises(LoginError):
                    client.put(QUEUE, b"x")


def test_a_unix_socket_is_a_way_in(tmp_path):
    path = tmp_path / "darner.sock"
    with (
        running(tmp_path / "data", "--socket", str(path)) as server,
        Client(f"darner+unix://{path}") as client,
    ):
        client.put(QUEUE, b"x")
        with client.reserve(QUEUE) as item:
            assert (item.value, item.server) == (b"x", str(path))
        assert client.stats().pid == server.process.pid

"""The ways to a server: TLS, a login, a Unix socket, a list; and options that are wrong."""

import subprocess
import sys

import kombu
import pytest
import trustme
from logins import HASH
from messaging import drained, publish
from running import configured, running

from darner.client.errors import BadRequestError, ConnectionFailedError, LoginError
from darner.kombu.options import Options, address_of

BY_PATH = "darner.kombu:Transport"


def works(connection, queue):
    """Return whether a message comes that is published over a connection."""
    publish(connection, queue, "hello")
    return [message.payload for message in drained(connection, queue)] == ["hello"]


@pytest.fixture
def queue(name):
    return kombu.Queue(name)


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A server with TLS, and the file that says whom to trust."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    text = f'tls_cert = "{directory}/both.pem"\ntls_key = "{directory}/both.pem"\n'
    with configured(directory, text + "[queue_defaults]\nmax_open_reads = 50\n") as server:
        yield server, {"ca_certs": str(directory / "ca.pem")}


@pytest.mark.parametrize("transport", [BY_PATH, None])
class TestForms:
    def test_tcp(self, broker, queue, transport):
        with kombu.Connection(f"darner://127.0.0.1:{broker.port}", transport=transport) as connection:
            assert works(connection, queue)
            assert connection.connected
            with connection.clone() as other:
                assert works(other, queue)

    def test_tls(self, certified, queue, transport):
        server, trust = certified
        url = f"darners://localhost:{server.port}"
        with kombu.Connection(url, transport=transport, ssl=trust) as connection:
            assert works(connection, queue)
            connection.Producer().publish(bytes(3_000_000), routing_key=queue.name)
            assert len(queue(connection.default_channel).get().body) == 3_000_000

    def test_tls_of_a_server_that_is_not_trusted_is_no_connection(self, certified, transport):
        connection = kombu.Connection(f"darners://localhost:{certified[0].port}", transport=transport)
        with pytest.raises(ConnectionFailedError, match="certificate"):
            connection.connect()

    def test_a_login(self, tmp_path, queue, transport):
        users = tmp_path / "users.toml"
        users.write_text(f'[alice]\npassword = "{HASH}"\nread = ["*"]\nwrite = ["*"]\nmanage = ["*"]\n')
        users.chmod(0o600)
        with configured(tmp_path, f'auth_file = "{users}"\n[queue_defaults]\nmax_open_reads = 9\n') as server:
            where = f"127.0.0.1:{server.port}"
            with kombu.Connection(f"darner://alice:pass%20word@{where}", transport=transport) as connection:
                assert works(connection, queue)
                assert "pass" not in connection.as_uri()
            with pytest.raises(LoginError):
                kombu.Connection(f"darner://alice:wrong@{where}", transport=transport).connect()
            with pytest.raises(LoginError):
                drained(kombu.Connection(f"darner://{where}", transport=transport), queue)

    def test_a_user_who_may_read_and_write_alone(self, tmp_path, name, transport):
        users = tmp_path / "users.toml"
        users.write_text(f'[alice]\npassword = "{HASH}"\nread = ["*"]\nwrite = ["*"]\n')
        users.chmod(0o600)
        text = f'auth_file = "{users}"\n[queues."*#fanout"]\nfanout_only = true\n'
        with configured(tmp_path, text) as server:
            url = f"darner://alice:pass%20word@127.0.0.1:{server.port}"
            with kombu.Connection(url, transport=transport) as connection:
                for kind in ("direct", "fanout"):
                    exchange = kombu.Exchange(f"{name} {kind}", type=kind)
                    queue = kombu.Queue(exchange.name, exchange, routing_key="k", auto_delete=True)
                    queue(connection.default_channel).declare()
                    connection.Producer(exchange=exchange, routing_key="k").publish(1)
                    assert connection.default_channel.queue_declare(queue.name).message_count == 1
                    assert len(drained(connection, queue)) == 1

    def test_a_unix_socket(self, tmp_path, queue, transport):
        path = tmp_path / "darner.sock"
        with running(tmp_path / "data", "--socket", str(path)):
            for url in [f"darner+unix://{path}"] + [f"unix://{path}"] * bool(transport):
                with kombu.Connection(url, transport=transport) as connection:
                    assert works(connection, queue)
                    with connection.clone() as other:
                        assert works(other, queue)

    def test_of_a_list_the_first_that_answers(self, broker, tmp_path, queue, transport):
        path = tmp_path / "darner.sock"
        with running(tmp_path / "data", "--socket", str(path)):
            for alive in (f"darner://127.0.0.1:{broker.port}", f"darner+unix://{path}"):
                url = f"darner://127.0.0.1:1;{alive}"
                with kombu.Connection(url, transport=transport) as connection:
                    connection.ensure_connection(max_retries=2, interval_start=0)
                    assert works(connection, queue)


class TestErrors:
    def test_an_address_that_is_none(self):
        with pytest.raises(BadRequestError, match="not the address"):
            address_of(kombu.Connection("darner://host/path", transport=BY_PATH))

    @pytest.mark.parametrize(
        "options",
        [{"sync": 1}, {"dedup": "yes"}, {"reply_timeout": 0}, {"eta_as_delay": "1h"}, {"configure": None}],
    )
    def test_an_option_that_is_wrong(self, options):
        (option,) = options
        with pytest.raises(BadRequestError, match=option):
            Options.of(options)

    def test_options_of_others_are_theirs(self):
        assert Options.of({"max_retries": 3, "sync": True}) == Options(sync=True)

    def test_a_missing_kombu_is_said_in_one_line(self):
        code = "import sys; sys.modules['kombu'] = None; import darner.kombu"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == (
            "ImportError: darner.kombu needs kombu 5.5 or later: pip install 'darner[celery]'"
        )

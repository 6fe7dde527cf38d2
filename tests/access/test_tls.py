"""TLS: the server's certificate, the clients', and new ones while it runs."""

import contextlib
import signal
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from pymemcache.client.base import Client
from running import DARNER, Server, Wire, refused, running, until

from darner._records import CHUNK_BYTES
from darner.access import tls
from darner.errors import ConfigError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TLSWire(Wire):
    """As Wire, over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def write(directory: Path, certificate: trustme.LeafCert) -> None:
    (directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(directory / "key.pem")


@pytest.fixture
def certified(tmp_path, authority):
    write(tmp_path, authority.issue_cert("localhost"))
    (tmp_path / "darner.toml").write_text(
        f'tls_cert = "{tmp_path}/cert.pem"\ntls_key = "{tmp_path}/key.pem"\n'
    )
    return tmp_path


@pytest.fixture
def server(certified) -> Server:
    with running(certified / "data", "--config", str(certified / "darner.toml")) as server:
        yield server
        assert server.process.poll() is not None or server.stop() == 0
    assert "Traceback" not in server.log
    assert "eof_received" not in server.log


@pytest.fixture
def wire(server, authority) -> Wire:
    wire = TLSWire(server.port, trusting(authority))
    yield wire
    wire.close()


def serial(server: Server, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that the server shows."""
    with contextlib.closing(TLSWire(server.port, context)) as wire:
        return wire.socket.getpeercert()["serialNumber"]


def serves(server: Server, context: ssl.SSLContext) -> bool:
    # with TLS 1.3 a client learns only afterwards that it was not let in
    with contextlib.suppress(ssl.SSLError, ConnectionError):  # noqa: SIM117
        with contextlib.closing(TLSWire(server.port, context)) as wire:
            return wire.ask(b"version\r\n").startswith(b"VERSION")
    return False


class TestServer:
    def test_says_so(self, server):
        assert "tls=on" in server.log

    def test_serves_pymemcache(self, server, authority):
        client = Client(("localhost", server.port), tls_context=trusting(authority), default_noreply=False)
        assert client.set("work", b"x" * 100_000)
        assert client.get("work/open") == b"x" * 100_000
        assert client.get("work/close") is None
        client.close()

    def test_serves_large_items_pipelines_and_waiters(self, server, wire, authority):
        item = bytes(range(256)) * 4096 * 8
        assert wire.set(b"q", item) == b"STORED\r\n"
        assert wire.get(b"q") == item
        wire.send(b"version\r\n" * 2000)
        assert all(wire.line().startswith(b"VERSION") for _ in range(2000))
        wire.send(b"get q/t=60000\r\n")
        with contextlib.closing(TLSWire(server.port, trusting(authority))) as other:
            other.set(b"q", b"x")
        assert wire.line() == b"VALUE q/t=60000 0 1\r\n"

    @pytest.mark.parametrize("how", ["unwrap", "close", "reset"])
    def test_gives_back_what_a_client_held_however_it_goes(self, server, wire, authority, how):
        other = TLSWire(server.port, trusting(authority))
        other.set(b"q", b"x")
        assert other.get(b"q/open") == b"x"
        if how == "unwrap":
            other.socket.unwrap()
        else:
            getattr(other, how)()
        assert wire.ask(b"get q/t=9000\r\n") == b"VALUE q/t=9000 0 1\r\n"

    def test_sends_the_error_that_closes(self, server, wire):
        assert wire.ask(b"x" * 3000) == b"CLIENT_ERROR line too long\r\n"
        assert wire.closed()

    def test_bounds_what_it_keeps_for_who_does_not_read(self, server, wire, authority):
        wire.set(b"q", bytes(CHUNK_BYTES))
        before = server.resident_bytes
        clients = [TLSWire(server.port, trusting(authority)) for _ in range(10)]
        for client in clients:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(b"get q/peek\r\n" * 2000)
        largest = 0
        for _ in range(10):
            wire.ask(b"get nothing/t=50\r\n")
            largest = max(largest, server.resident_bytes)
        assert largest - before < 48 << 20
        for client in clients:
            client.close()

    @pytest.mark.parametrize(
        ("version", "served"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)]
    )
    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
    def test_takes_tls_1_2_and_nothing_older(self, server, authority, version, served):
        context = trusting(authority)
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = version
        context.maximum_version = version
        assert serves(server, context) is served

    def test_does_not_serve_who_speaks_without(self, server):
        with contextlib.closing(server.connect()) as plain:
            plain.send(b"version\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"VERSION" not in plain.socket.recv(100)

    def test_says_why_a_handshake_failed_and_that_not_for_each(self, server, authority):
        for _ in range(20):
            with contextlib.closing(Wire(server.port)) as plain:
                plain.send(b"get / HTTP/1.0\r\n\r\n")
                plain.socket.recv(100)
        assert "reason=" in server.wait_for_log("TLS handshake failed")
        assert serves(server, trusting(authority))
        assert server.stop() == 0
        assert server.log.count("TLS handshake failed") == 1

    def test_counts_those_in_the_handshake_and_only_while_they_are(self, certified, authority):
        path = certified / "darner.toml"
        path.write_text(path.read_text() + "max_connections = 5\n")
        context = trusting(authority)
        with running(certified / "data", "--config", str(path)) as server:
            halves = [server.connect() for _ in range(5)]
            with contextlib.closing(TLSWire(server.port, context)) as wire:
                assert wire.line() == b"SERVER_ERROR too many connections\r\n"
            for half in halves[:3]:
                half.send(b"this is no TLS\r\n")
            for half in halves[3:]:
                half.close()

            until(lambda: serves(server, context))


class TestNewCertificate:
    def test_is_shown_after_sighup_and_connections_go_on(self, server, certified, wire, authority):
        context = trusting(authority)
        wire.set(b"q", b"x")
        wire.get(b"q/open")
        old = serial(server, context)
        write(certified, authority.issue_cert("localhost"))
        assert serial(server, context) == old
        server.process.send_signal(signal.SIGHUP)
        until(lambda: serial(server, context) != old)
        assert wire.ask(b"get q/close\r\n") == b"END\r\n"

    def test_that_is_bad_is_logged_and_the_old_one_stays(self, server, certified, wire, authority):
        context = trusting(authority)
        old = serial(server, context)
        # the key of another
        (certified / "cert.pem").write_bytes(authority.issue_cert("localhost").cert_chain_pems[0].bytes())
        server.process.send_signal(signal.SIGHUP)
        log = server.wait_for_log("everything stays as it was")
        assert str(certified / "cert.pem") in log
        assert serial(server, context) == old
        assert wire.ask(b"version\r\n").startswith(b"VERSION")


class TestClients:
    @pytest.fixture
    def certified(self, certified, authority):
        authority.cert_pem.write_to_path(certified / "ca.pem")
        path = certified / "darner.toml"
        path.write_text(path.read_text() + f'tls_ca = "{certified}/ca.pem"\n')
        return certified

    @pytest.fixture
    def wire(self, server, authority):
        context = trusting(authority)
        authority.issue_cert("client@example.org").configure_cert(context)
        wire = TLSWire(server.port, context)
        yield wire
        wire.close()

    def test_with_a_certificate_of_the_authority_are_served(self, wire):
        assert wire.ask(b"version\r\n").startswith(b"VERSION")

    @pytest.mark.parametrize("has_certificate", [False, True])
    def test_without_one_are_not(self, server, authority, has_certificate):
        context = trusting(authority)
        if has_certificate:
            trustme.CA().issue_cert("client@example.org").configure_cert(context)
        assert not serves(server, context)

    def test_of_an_authority_that_is_no_more_are_not_served_after_sighup(self, server, certified, authority):
        new = trustme.CA()
        context = trusting(authority)
        new.issue_cert("client@example.org").configure_cert(context)
        new.cert_pem.write_to_path(certified / "ca.pem")
        server.process.send_signal(signal.SIGHUP)

        until(lambda: serves(server, context))
        old = trusting(authority)
        authority.issue_cert("client@example.org").configure_cert(old)
        assert not serves(server, old)


class TestBadFiles:
    @pytest.fixture
    def directory(self, tmp_path, authority):
        write(tmp_path, authority.issue_cert("localhost"))
        (tmp_path / "bad.pem").write_text("nonsense")
        return tmp_path

    @pytest.mark.parametrize(
        ("cert", "key", "ca", "says"),
        [
            ("none.pem", "key.pem", None, "none.pem"),
            ("cert.pem", "none.pem", None, "none.pem"),
            ("bad.pem", "key.pem", None, "bad.pem"),
            ("cert.pem", "bad.pem", None, "bad.pem"),
            ("cert.pem", "key.pem", "none.pem", "tls_ca"),
            ("cert.pem", "key.pem", "bad.pem", "tls_ca"),
        ],
    )
    def test_are_refused_by_name(self, directory, cert, key, ca, says):
        with pytest.raises(ConfigError) as wrong:
            tls.context(directory / cert, directory / key, directory / ca if ca else None)
        assert says in str(wrong.value)
        assert "\n" not in str(wrong.value)

    def test_at_the_start_are_one_line(self, directory):
        (directory / "darner.toml").write_text(
            f'tls_cert = "{directory}/bad.pem"\ntls_key = "{directory}/key.pem"\n'
        )
        line = refused("--config", str(directory / "darner.toml"), "--data", str(directory / "data"))
        assert "bad.pem" in line
        assert refused("--config", str(directory / "darner.toml"), "--check-config") == line
        assert not (directory / "data").exists()


class TestEnd:
    def test_comes_while_handshakes_are_under_way_and_those_who_wait_are_told(self, server, wire):
        with contextlib.ExitStack() as stack:
            silent = stack.enter_context(contextlib.closing(Wire(server.port)))
            begun = stack.enter_context(contextlib.closing(Wire(server.port)))
            begun.send(b"\x16\x03\x01\x02\x00\x01")
            wire.send(b"get work/t=60000\r\n")
            until(lambda: descriptors(server.process.pid) >= 3)
            server.process.terminate()
            assert wire.line() == b"END\r\n"
            wire.close()
            assert server.process.wait(20) == 0
            assert silent.closed()
            assert begun.closed()
        server.log += server.process.stderr.read().decode()
        assert "event=closed" in server.log

    def test_lets_nobody_in_whose_handshake_ends_while_it_comes(self, server, wire, authority):
        late = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        wire.send(b"set work 0 0 10\r\n01234")
        server.process.terminate()
        server.wait_for_log("event=closing")
        with contextlib.suppress(OSError, ssl.SSLError):
            client = trusting(authority).wrap_socket(late, server_hostname="localhost")
            client.sendall(b"version\r\n")
            assert client.recv(100) == b""
        wire.send(b"56789\r\n")
        assert wire.line() == b"STORED\r\n"
        wire.close()
        late.close()
        assert server.process.wait(20) == 0
        server.log += server.process.stderr.read().decode()


class TestGone:
    """Over TLS there is no half of a connection: who has ended it reads nothing any more."""

    @pytest.mark.parametrize("size", [60_000, 3 * CHUNK_BYTES])
    @pytest.mark.parametrize("how", ["reset", "goodbye"])
    def test_client_costs_no_more_than_was_about_to_be_sent(self, server, authority, wire, size, how):
        count = 60
        for _ in range(count):
            assert wire.set(b"work", bytes(size)) == b"STORED\r\n"
        client = TLSWire(server.port, trusting(authority))
        client.ask(b"version\r\n")
        server.process.send_signal(signal.SIGSTOP)
        client.send(b"get work\r\n" * count)
        client.reset() if how == "reset" else goodbye(client)
        server.process.send_signal(signal.SIGCONT)
        until(lambda: wire.stats()["curr_connections"] == "1")
        assert count - int(wire.stats()["queue_work_items"]) <= (20 if size == 60_000 else 5)

    def test_client_has_done_what_it_asked_for_but_gets(self, server, authority, wire):
        for n in range(3):
            wire.set(b"work", b"%d" % n)
        wire.set(b"other", b"x")
        client = TLSWire(server.port, trusting(authority))
        assert client.get(b"work/open") == b"0"
        server.process.send_signal(signal.SIGSTOP)
        # the first ones fill its turn, so that the others are met when it has gone
        rest = b"get other\r\nget work/close\r\nset more 0 0 1 noreply\r\nx\r\n"
        client.send(b"version\r\n" * 512 + rest)
        goodbye(client)
        server.process.send_signal(signal.SIGCONT)
        until(lambda: wire.stats()["curr_connections"] == "1")
        assert [wire.get(b"work"), wire.get(b"work"), wire.get(b"work")] == [b"1", b"2", None]
        assert wire.get(b"more") == b"x"
        assert wire.get(b"other") == b"x"


def goodbye(wire: TLSWire) -> None:
    """End it as TLS has it, without waiting for an answer."""
    wire.socket.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        wire.socket.unwrap()
    wire.close()


def descriptors(pid: int) -> int:
    """How many sockets it has."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_that_handshakes_would_take_from_the_queues_they_do_not_get(certified, authority):
    options = ("--config", str(certified / "darner.toml"))
    command = ("sh", "-c", 'ulimit -n 256; exec "$0" "$@"', DARNER)
    with running(certified / "data", *options, command=command) as server:
        first = TLSWire(server.port, trusting(authority))
        strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        # of 256, three quarters for connections, and a few for those that are told that it is full
        most = 192 + 4
        until(lambda: sum(is_open(sock) for sock in strangers) <= most)
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        assert len(list(descriptors.iterdir())) < most + 32
        for number in range(3):
            assert first.set(b"q%d" % number, bytes(100_000)) == b"STORED\r\n"
        for sock in strangers:
            sock.close()
        # what has gone makes room
        until(lambda: is_served(server, authority))
        first.close()
        assert server.stop() == 0
    assert "Traceback" not in server.log
    assert server.log.count("too many connections") == 1


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def is_served(server: Server, authority: trustme.CA) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(TLSWire(server.port, trusting(authority))) as wire:
        return wire.ask(b"version\r\n").startswith(b"VERSION")
    return False

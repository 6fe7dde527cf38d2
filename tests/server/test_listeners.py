"""Listeners: several addresses, both families, Unix sockets; and the errors where listening fails."""

import os
import re
import resource
import socket
import stat

import pytest
from running import Wire, configured, refused, run_darner, running, until

HAS_IPV6 = socket.has_dualstack_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


def version(host: str, port: int) -> bytes:
    """Connect there and return the reply to `version`."""
    with socket.create_connection((host, port), timeout=10) as client:
        client.sendall(b"version\r\n")
        return client.recv(100)


def unix(path) -> Wire:
    """Connect to a Unix socket."""
    wire = Wire.__new__(Wire)
    wire.socket = socket.socket(socket.AF_UNIX)
    wire.socket.settimeout(10)
    wire.socket.connect(str(path))
    wire._buffer = b""
    return wire


class TestHosts:
    def test_given_several_times_are_all_listened_on_with_one_port(self, tmp_path):
        with running(tmp_path / "data", "--host", "127.0.0.2", "--host", "127.0.0.3") as server:
            listening = re.findall(r"event=listening host=(\S+) port=(\d+)", server.log)
            assert listening == [("127.0.0.2", str(server.port)), ("127.0.0.3", str(server.port))]
            for host in ("127.0.0.2", "127.0.0.3"):
                assert version(host, server.port).startswith(b"VERSION ")
            with pytest.raises(ConnectionRefusedError):
                version("127.0.0.1", server.port)

    def test_may_be_a_list_in_the_configuration_which_those_given_replace(self, tmp_path):
        with configured(tmp_path, 'host = ["127.0.0.2", "127.0.0.3"]\n') as server:
            assert version("127.0.0.3", server.port).startswith(b"VERSION ")
        config = str(tmp_path / "darner.toml")
        with running(tmp_path / "data", "--config", config, "--host", "127.0.0.4") as server:
            assert re.findall(r"event=listening host=(\S+)", server.log) == ["127.0.0.4"]

    @needs_ipv6
    @pytest.mark.parametrize("host", ["::1", "[::1]"])
    def test_of_ipv6_may_be_in_brackets(self, tmp_path, host):
        with running(tmp_path / "data", "--host", host) as server:
            assert version("::1", server.port).startswith(b"VERSION ")

    @needs_ipv6
    @pytest.mark.parametrize("host", ["::", "*", "[::]"])
    def test_of_every_address_answer_both_families(self, tmp_path, host):
        with running(tmp_path / "data", "--host", host) as server:
            assert version("::1", server.port).startswith(b"VERSION ")
            assert version("127.0.0.1", server.port).startswith(b"VERSION ")

    @needs_ipv6
    @pytest.mark.parametrize(
        "hosts",
        [["::", "0.0.0.0", "127.0.0.1", "::1"], ["127.0.0.1", "0.0.0.0"], ["localhost", "127.0.0.1", "::1"]],
    )
    def test_that_another_covers_are_no_fault(self, tmp_path, hosts):
        options = [word for host in hosts for word in ("--host", host)]
        with running(tmp_path / "data", *options) as server:
            assert version("127.0.0.1", server.port).startswith(b"VERSION ")

    @needs_ipv6
    def test_with_several_addresses_have_one_port(self, tmp_path):
        with running(tmp_path / "data", "--host", "::1", "--host", "127.0.0.1") as server:
            ports = set(re.findall(r"event=listening host=\S+ port=(\d+)", server.log))
            assert ports == {str(server.port)}


class TestRefusal:
    @pytest.mark.parametrize(
        ("hosts", "says"),
        [
            (["203.0.113.7"], "203.0.113.7 is not an address of this machine; give one that is with --host"),
            (["127.0.0.1", "203.0.113.7"], "203.0.113.7 is not an address of this machine"),
            (["127.0.0.1", "no.such.host.invalid"], "cannot resolve the host no.such.host.invalid"),
            (["2001:db8::7"], "cannot listen on [2001:db8::7]:0: 2001:db8::7 is not an address"),
            (["127.0.0.1:22133"], "without a port"),
            (["[::1]:22133"], "without a port"),
            (["[127.0.0.1]"], "without a port"),
            (["::1]"], "without a port"),
            ([""], "must be an address"),
        ],
    )
    def test_names_the_address_and_what_fits_it(self, tmp_path, hosts, says):
        options = [word for host in hosts for word in ("--host", host)]
        line = refused("--data", str(tmp_path / "data"), "--port", "0", *options)
        assert says in line
        assert "stop what listens there" not in line

    def test_of_a_port_in_use_at_one_of_several_names_that(self, tmp_path):
        with socket.create_server(("127.0.0.3", 0)) as taken:
            port = str(taken.getsockname()[1])
            line = refused(
                "--data", str(tmp_path), "--port", port, "--host", "127.0.0.2", "--host", "127.0.0.3"
            )
        assert f"cannot listen on 127.0.0.3:{port}: Address already in use; stop what listens there" in line

    def test_of_a_list_in_the_configuration_names_its_line(self, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text('port = 1\nhost = ["127.0.0.1", "127.0.0.2:5"]\n')
        assert "darner.toml:2: host is" in refused("--config", str(config))


class TestUnixSocket:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "darner.sock"

    def test_is_listened_on_besides(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)) as server:
            assert f"event=listening socket={path}\n" in server.log
            local = unix(path)
            assert local.set(b"work", b"hello") == b"STORED\r\n"
            assert server.connect().get(b"work") == b"hello"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            wire = server.connect()
            wire.send(b"stats settings\r\n")
            assert wire.stats_reply()["domain_socket"] == str(path)

    def test_serves_all_that_tcp_does(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)) as server:
            local, other = unix(path), unix(path)
            large = os.urandom(3 << 20)
            assert local.set(b"large", large) == b"STORED\r\n"
            assert local.get(b"large/open") == large
            local.close()
            other.send(b"get large/t=10000\r\n")
            assert other.line() == b"VALUE large/t=10000 0 %d\r\n" % len(large)
            assert other.exactly(len(large)) == large
            waiting = unix(path)
            waiting.send(b"get work/t=20000\r\n")
            until(lambda: server.stat("queue_work_waiters") == 1)
            # an item that a disconnected client waited for goes to the next client
            waiting.close()
            server.connect().set(b"work", b"x")
            assert unix(path).get(b"work/t=1000") == b"x"
            assert server.stop() == 0
        assert "Traceback" not in server.log

    def test_is_removed_at_the_end_and_stands_again_after_a_restart(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)) as server:
            assert server.stop() == 0
            assert not path.exists()
            server.start()
            assert unix(path).ask(b"version\r\n").startswith(b"VERSION ")

    def test_that_a_killed_server_left_is_replaced(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)) as server:
            server.kill()
            assert path.is_socket()
            server.start()
            assert unix(path).ask(b"version\r\n").startswith(b"VERSION ")

    def test_of_another_server_is_refused_and_left_alone(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)):
            line = refused("--data", str(tmp_path / "other"), "--port", "0", "--socket", str(path))
            assert f"cannot listen on {path}: another server does; stop that" in line
            assert unix(path).ask(b"version\r\n").startswith(b"VERSION ")

    @pytest.mark.parametrize("content", [b"", b"precious"])
    def test_that_is_another_file_is_refused_and_left_alone(self, tmp_path, path, content):
        path.write_bytes(content)
        line = refused("--data", str(tmp_path / "data"), "--port", "0", "--socket", str(path))
        assert "it is no socket" in line
        assert path.read_bytes() == content

    def test_that_somebody_has_replaced_meanwhile_is_not_removed(self, tmp_path, path):
        with running(tmp_path / "data", "--socket", str(path)) as server:
            path.unlink()
            path.write_text("mine")
            assert server.stop() == 0
        assert path.read_text() == "mine"

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("no/such/directory.sock", "No such file or directory; make its directory"),
            ("x" * 108, "File name too long; give one of 107 bytes at most"),
            ("file/darner.sock", "Not a directory; make its directory"),
        ],
    )
    def test_that_cannot_be_has_the_advice_that_fits_in_a_check_too(self, tmp_path, name, says):
        (tmp_path / "file").write_text("")
        options = ["--data", str(tmp_path / "data"), "--port", "0", "--socket", str(tmp_path / name)]
        assert says in refused(*options)
        config = tmp_path / "darner.toml"
        config.write_text("")
        assert says in refused("--config", str(config), "--check-config", *options)

    def test_takes_no_place_if_the_server_cannot_start(self, tmp_path, path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            refused("--data", str(tmp_path / "data"), "--port", port, "--socket", str(path))
        assert not path.exists()

    def test_has_its_clients_log_in_too(self, tmp_path, path):
        users = tmp_path / "users.toml"
        run_darner("passwd", users, "alice", input="secret\n").check_returncode()
        with configured(tmp_path, f'auth_file = "{users}"\nsocket = "{path}"\n') as server:
            assert unix(path).ask(b"version\r\n") == b"CLIENT_ERROR authentication failure\r\n"
            assert unix(path).set(b"login", b"alice secret") == b"STORED\r\n"
            assert server.stop() == 0
        assert "Traceback" not in server.log


def test_a_unix_socket_is_served_again_after_the_descriptors_ran_out(tmp_path):
    path = tmp_path / "darner.sock"
    with running(tmp_path / "data", "--socket", str(path)) as server:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        # fewer than the server has open
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        waiting = [unix(path) for _ in range(5)]
        server.wait_for_log("cannot be accepted")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        for wire in waiting:
            assert wire.ask(b"version\r\n").startswith(b"VERSION")
        assert server.stop() == 0

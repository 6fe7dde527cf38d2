"""`darner --check-config`: it reports what a server with this configuration would log at its start."""

import datetime
import re
import socket

import pytest
import trustme
from running import run_darner, running

from darner.access.passwords import hash_password

NO_PROMETHEUS = 'raise ModuleNotFoundError("none", name="prometheus_client")\n'


@pytest.fixture
def config(tmp_path):
    """A function that runs `--check-config`, and returns its exit status and standard error."""

    def checked(text, **env):
        path = tmp_path / "darner.toml"
        path.write_text(f'data = "{tmp_path}/data"\n{text}')
        done = run_darner("--check-config", "-c", path, **env)
        assert "Traceback" not in done.stderr
        assert (done.stdout != "") is (done.returncode == 0)
        assert not (tmp_path / "data").exists()
        return done.returncode, done.stderr

    return checked


@pytest.fixture
def certified(tmp_path):
    """A function that writes a certificate and its key, and returns the settings of both."""

    def write(name="one", **options):
        issued = trustme.CA().issue_cert("localhost", **options)
        (tmp_path / f"{name}.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        return f'tls_cert = "{tmp_path}/{name}.pem"\ntls_key = "{tmp_path}/{name}.key"\n'

    return write


CERTIFIED = 'tls_cert = "{0}/cert.pem"\ntls_key = "{0}/cert.pem"\n'


class TestOpen:
    """A server that other machines can reach."""

    @pytest.mark.parametrize(
        ("text", "without"),
        [
            ('host = "127.0.0.1"', ""),
            ('host = "localhost"', ""),
            ('host = "0.0.0.0"', "TLS (tls_cert, tls_key) and users (auth_file)"),
            ('host = "0.0.0.0"\nauth_file = "{}/users.toml"', "TLS (tls_cert, tls_key)"),
            (f'host = "::"\n{CERTIFIED}', "users (auth_file)"),
            (f'host = "::"\n{CERTIFIED}auth_file = "{{0}}/users.toml"', ""),
            (f'host = "::"\n{CERTIFIED}tls_ca = "{{0}}/ca.pem"', ""),
        ],
    )
    def test_without_tls_or_users_is_warned_of_at_the_start_and_before(self, config, tmp_path, text, without):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
        (tmp_path / "users.toml").write_text(f'[a]\npassword = "{hash_password(b"x")}"\n')
        (tmp_path / "users.toml").chmod(0o600)
        code, said = config(f"port = 0\n{text.format(tmp_path)}\n")
        assert code == 0
        with running(tmp_path / "open", "--config", str(tmp_path / "darner.toml")) as server:
            server.stop()
        for log in (said, server.log):
            assert re.findall(r'event="listening beyond loopback".* without=("[^"]*"|\S+)', log) == (
                [f'"{without}"'] if without else []
            )


class TestConfiguration:
    """What would keep a server from starting is an error, what it would warn of a warning."""

    def test_of_metrics_needs_what_serves_them(self, config, tmp_path):
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "prometheus_client.py").write_text(NO_PROMETHEUS)
        code, said = config("port = 0\nmetrics_port = 0\n", PYTHONPATH=str(tmp_path / "stub"))
        assert code == 1
        assert "metrics_port needs prometheus_client" in said
        assert config("port = 0\nmetrics_port = 0\n")[0] == 0

    @pytest.mark.parametrize(
        ("one", "other", "meet"),
        [
            ("127.0.0.1", "127.0.0.1", True), ("0.0.0.0", "127.0.0.1", True), ("127.0.0.1", "0.0.0.0", True),
            ("localhost", "127.0.0.1", True), ("localhost", "LOCALHOST", True), ("::1", "0:0::1", True),
            ("127.0.0.1", "127.0.0.2", False), ("0.0.0.0", "::1", False), ("::", "127.0.0.1", True),
            ("*", "::1", True), ("127.0.0.1", "::", True), ("[::1]", "::1", True),
        ],
    )  # fmt: skip
    def test_of_equal_ports_is_refused_where_they_meet(self, config, one, other, meet):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        code, said = config(
            f'port = {port}\nmetrics_port = {port}\nhost = "{one}"\nmetrics_host = "{other}"\n'
        )
        assert ("where clients are served" in said) is meet
        if meet:
            assert code == 1
            assert "darner.toml:3: metrics_port is" in said

    @pytest.mark.parametrize(
        ("host", "says"),
        [
            ("no.such.host.invalid", "cannot resolve the host"),
            ("a..b", "cannot resolve the host"),
            ("203.0.113.7", "is not an address of this machine"),
        ],
    )
    @pytest.mark.parametrize("key", ["host", "metrics_host"])
    def test_of_a_host_that_cannot_be_has_the_advice_that_fits(self, config, tmp_path, key, host, says):
        code, said = config(f'port = 0\nmetrics_port = 0\n{key} = "{host}"\n')
        assert code == 1
        assert says in said
        assert f"cannot listen on {host}:0" in said
        assert "in use" not in said
        assert "stop what listens there" not in said
        started = run_darner("-c", tmp_path / "darner.toml")
        assert said in started.stderr
        assert "Traceback" not in started.stderr

    def test_of_a_port_in_use_is_a_warning_for_a_server_may_have_it(self, tmp_path):
        with running(tmp_path / "data") as server:
            path = tmp_path / "darner.toml"
            path.write_text(f'data = "{tmp_path}/other"\nport = {server.port}\n')
            done = run_darner("--check-config", "-c", path)
            assert done.returncode == 0
            assert 'level=warning event="port in use"' in done.stderr
            assert "stop what listens there" in done.stderr
            path.write_text(f'data = "{tmp_path}/data"\nport = {server.port}\n')
            assert run_darner("--check-config", "-c", path).stderr == ""

    @pytest.mark.parametrize("where", ["file", "file/deeper"])
    def test_of_a_data_path_that_is_a_file_is_refused_as_by_the_server(self, tmp_path, where):
        (tmp_path / "file").write_text("")
        path = tmp_path / "darner.toml"
        path.write_text(f'data = "{tmp_path / where}"\nport = 0\n')
        checked, started = run_darner("--check-config", "-c", path), run_darner("-c", path)
        assert (checked.returncode, started.returncode) == (1, 1)
        for said in (checked.stderr, started.stderr):
            assert f"cannot use the data directory {tmp_path}/file" in said
            assert "it is no directory" in said
            assert "[Errno" not in said

    def test_of_too_little_room_says_what_the_server_says(self, config):
        code, said = config('port = 0\nmin_free_space = "900 TiB"\n')
        assert code == 1
        assert 'level=error event="disk too full, sets are refused"' in said

    def test_of_a_key_that_is_another_certificates_says_so(self, config, certified, tmp_path):
        certified("other")
        code, said = config(f"port = 0\n{certified()}".replace("one.key", "other.key"))
        assert code == 1
        assert said == f"darner: tls_key {tmp_path}/other.key is not the key of tls_cert {tmp_path}/one.pem\n"

    @pytest.mark.parametrize(("key", "name"), [("tls_cert", "one.pem"), ("tls_key", "one.key")])
    def test_of_a_certificate_or_key_names_the_one_that_is_wrong(
        self, config, certified, tmp_path, key, name
    ):
        text = f"port = 0\n{certified()}"
        (tmp_path / name).write_text("nonsense")
        code, said = config(text)
        assert code == 1
        assert f"cannot use {key} {tmp_path / name}: it has no" in said
        (tmp_path / name).unlink()
        code, said = config(text)
        assert code == 1
        assert f"cannot read {key} {tmp_path / name}: No such file or directory" in said

    def test_of_a_certificate_that_has_expired_says_so_as_the_server_does(self, config, certified, tmp_path):
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        text = certified(not_after=yesterday)
        code, said = config(f"port = 0\n{text}")
        assert code == 1
        line = f'level=error event="certificate has expired" file={tmp_path}/one.pem'
        assert line in said
        with running(tmp_path / "data", "-c", str(tmp_path / "darner.toml")) as server:
            server.stop()
        assert line in server.log

    def test_of_certificates_that_are_valid_says_nothing(self, config, certified):
        assert config(f"port = 0\n{certified()}") == (0, "")

    def test_of_an_auth_file_without_users_says_that_nobody_can_log_in(self, config, tmp_path):
        users = tmp_path / "users.toml"
        users.touch(mode=0o600)
        text = f'port = 0\nauth_file = "{users}"\n'
        code, said = config(text)
        assert code == 1
        line = f'level=error event="the auth_file has no users: nobody can log in" file={users}'
        assert line in said
        with running(tmp_path / "other", "-c", str(tmp_path / "darner.toml")) as server:
            server.stop()
        assert line in server.log
        users.unlink()
        assert config(text) == (1, f"darner: cannot read the auth_file {users}: No such file or directory\n")

    def test_of_patterns_that_match_no_queue_warns_of_them(self, config, tmp_path):
        users = tmp_path / "users.toml"
        hashed = "$scrypt$ln=14,r=8,p=1$AAAA$AAAA"
        users.write_text(f"[alice]\npassword = '{hashed}'\nread = ['work/*', 'mail.*']\n")
        users.chmod(0o600)
        code, said = config(f'port = 0\nauth_file = "{users}"\n')
        assert code == 0
        assert 'level=warning event="a pattern in the auth_file matches no queue"' in said
        assert "user=alice key=read pattern='work/*'" in said

    def test_says_all_that_is_wrong_at_once(self, config, tmp_path):
        code, said = config(
            f'host = "a..b"\nauth_file = "{tmp_path}/nobody"\ntls_cert = "x.pem"\ntls_key = "x.key"\n'
        )
        assert code == 1
        assert said.count("darner: ") == 3


class TestReload:
    def test_that_changes_nothing_lists_nothing(self, server, wire):
        assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"
        line = server.wait_for_log("configuration reloaded")
        assert "changed=" not in line
        assert "needs_restart=" not in line


class TestCluster:
    """A darner whose queues are in a cluster: it has no data directory, and no cluster is asked."""

    STORE = 'port = 0\nstore = "nats://me:secret@127.0.0.1:1,127.0.0.1:2"\ndurability = "replicated"\n'

    def test_is_right_whatever_lies_at_the_data_directory(self, tmp_path):
        path = tmp_path / "darner.toml"
        (tmp_path / "data").write_text("this is no directory")
        path.write_text(f'data = "{tmp_path}/data"\n')
        assert run_darner("--check-config", "-c", path).returncode == 1
        path.write_text(f'data = "{tmp_path}/data"\n{self.STORE}')
        done = run_darner("--check-config", "-c", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "queues in the cluster nats://127.0.0.1:1,127.0.0.1:2, " in done.stdout

    def test_needs_its_package(self, config, tmp_path):
        (tmp_path / "stub" / "nats").mkdir(parents=True)
        (tmp_path / "stub" / "nats" / "__init__.py").write_text(
            'raise ModuleNotFoundError("none", name="nats")\n'
        )
        code, said = config(self.STORE, PYTHONPATH=str(tmp_path / "stub"))
        assert (code, said) == (1, "darner: store needs the package nats-py: pip install 'darner[nats]'\n")

    @pytest.mark.parametrize(
        "text",
        ['store_ca = "{}/none.pem"', 'store_cert = "{}/none.pem"\nstore_key = "{}/none.key"'],
    )
    def test_needs_the_files_that_it_connects_with(self, config, tmp_path, text):
        code, said = config(self.STORE + text.format(tmp_path, tmp_path))
        assert code == 1
        assert said.startswith("darner: cannot use store_ca, store_cert or store_key: ")

    def test_needs_its_credentials(self, config, tmp_path):
        code, said = config(f'{self.STORE}store_credentials = "{tmp_path}/none.creds"\n')
        assert (code, len(said.splitlines())) == (1, 1)
        assert "cannot use store_credentials: " in said

"""Commands that speak to servers: which servers, and what an error tells whoever ran them."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import trustme
from click.testing import CliRunner
from logins import HASH
from running import DARNER, configured, run_darner

from darner import __version__
from darner.cli import connecting
from darner.cli.asking import ping, stats
from darner.cli.main import main
from darner.cli.outcome import FAILED, INTERRUPTED


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def address(standing) -> str:
    return f"127.0.0.1:{standing.port}"


def run(command, *words: str, **environment: str):
    return CliRunner().invoke(command, words, env={"DARNER_URL": None} | environment, prog_name="darner")


class TestPing:
    def test_says_which_darner_answers_and_how_fast(self, address):
        done = run_darner("ping", "-s", address)
        assert re.fullmatch(rf"{address}: darner \S+, \d+\.\d ms\n", done.stdout)
        assert (done.returncode, done.stderr) == (0, "")

    def test_takes_the_server_from_the_environment(self, address):
        assert run(ping, DARNER_URL=f"darner://{address}").exit_code == 0

    def test_takes_several_from_the_environment(self, address, nobody):
        done = run(ping, DARNER_URL=f"{nobody} {address}")
        assert done.exit_code == connecting.UNREACHABLE
        assert done.stdout.startswith(address)
        assert re.fullmatch(rf"darner: {nobody}: .*refused\n", done.stderr)

    def test_may_be_json(self, address):
        said = json.loads(run(ping, "--json", "-s", address).stdout)
        assert (said["server"], said["version"]) == (address, __version__)
        assert 0 < said["seconds"] < 60

    def test_is_quiet_if_told_so(self, address):
        assert run(ping, "-q", "-s", address).output == ""


class TestErrors:
    def test_a_url_that_is_none_is_a_wrong_command_line(self):
        done = run(ping, "-s", "http://x")
        assert done.exit_code == 2
        assert "is not the address of a server" in done.stderr

    def test_the_password_of_a_url_is_not_said(self):
        assert "hunter2" not in run(ping, "-s", "http://joe:hunter2@x").output

    def test_an_output_that_nobody_reads_ends_it_without_a_word(self, address):
        reading, writing = os.pipe()
        os.close(reading)
        command = [DARNER, "stats", "-s", address]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (FAILED, b"")

    def test_ctrl_c_ends_it_without_a_word(self, monkeypatch):
        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr("darner.client.client.Client.version", interrupted)
        done = run(ping, "-s", "x")
        assert (done.exit_code, done.output) == (connecting.INTERRUPTED, "")

    @pytest.mark.parametrize("words", [["--help"], ["completion", "zsh"], ["ping"]])
    def test_an_output_that_has_no_room_is_said(self, address, words):
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            done = subprocess.run(
                [DARNER, *words], env=os.environ | {"DARNER_URL": address}, stdout=full,
                stderr=subprocess.PIPE, timeout=60, check=False,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (FAILED, b"darner: No space left on device\n")

    def test_ctrl_c_while_a_command_is_still_loaded_ends_it_without_a_word(self, address):
        # as it comes before `main` has let signals through, Python's own start apart
        program = (
            "import os, signal\nfrom darner.server import signals\nunblock = signals.unblock\n"
            "signals.unblock = lambda: (os.kill(os.getpid(), signal.SIGINT), unblock())\n"
            "from darner.__main__ import main\nmain()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "ping", "-s", address],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, b"", b"")

    @pytest.mark.parametrize(
        "words",
        [
            ("queues", "--interval", "nan"),
            ("top", "--once", "--interval", "inf"),
            ("get", "work", "--timeout", "inf"),
            ("put", "work", "x", "--expire", "1e13"),
            # the server's longest: it would be cut short without a word
            ("put", "work", "x", "--delay", "2147484"),
        ],
    )
    def test_a_time_that_is_none_is_a_wrong_command_line(self, address, words):
        done = run(main, *words, DARNER_URL=address)
        assert (done.exit_code, "Invalid value for '--" in done.stderr) == (2, True)


class TestAccess:
    @pytest.fixture(scope="class")
    def guarded(self, tmp_path_factory):
        """A server that wants a certificate and a login."""
        directory = tmp_path_factory.mktemp("guarded")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        for name in ("localhost", "client"):
            it = authority.issue_cert(name)
            it.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.pem")
        users = f'[joe]\npassword = "{HASH}"\nread = ["*"]\n'
        (directory / "users.toml").write_text(users)
        files = {"tls_cert": "localhost", "tls_key": "localhost", "tls_ca": "ca"}
        settings = [f'{key} = "{directory}/{name}.pem"' for key, name in files.items()]
        with configured(directory, "\n".join([*settings, f'auth_file = "{directory}/users.toml"'])) as server:
            yield directory, f"localhost:{server.port}"

    def test_is_by_certificates_and_a_login(self, guarded):
        directory, address = guarded
        trust = ("--tls-ca", str(directory / "ca.pem"), "--tls-cert", str(directory / "client.pem"))
        assert run(ping, "-s", f"darners://joe:pass%20word@{address}", *trust).exit_code == 0

    def test_of_a_backup_is_the_same(self, guarded, tmp_path):
        directory, address = guarded
        trust = ("--tls-ca", directory / "ca.pem", "--tls-cert", directory / "client.pem")
        done = run_darner("backup", f"darners://joe:pass%20word@{address}", tmp_path / "copy", *trust)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{tmp_path}/copy: ok, ")

    def test_that_is_wrong_is_said(self, guarded):
        directory, address = guarded
        trust = ("--tls-ca", str(directory / "ca.pem"), "--tls-cert", str(directory / "client.pem"))
        done = run(ping, "-s", f"darners://joe:wrong@{address}", *trust)
        assert (done.exit_code, "user or password is wrong" in done.stderr) == (FAILED, True)
        done = run(ping, "-s", f"darners://joe:pass%20word@{address}")
        assert (done.exit_code, done.stderr.count("\n")) == (connecting.UNREACHABLE, 1)
        assert "certificate verify failed" in done.stderr

    def test_a_file_that_is_no_certificate_is_a_wrong_command_line(self, tmp_path):
        (tmp_path / "ca.pem").write_text("?")
        assert run(ping, "--tls-ca", str(tmp_path / "ca.pem")).exit_code == 2


class TestNames:
    @pytest.mark.parametrize(("text", "name"), [("caf%C3%A9", "café"), ("café", "café"), ("100%", "100%")])
    def test_are_taken_as_every_output_has_them(self, text, name):
        assert connecting.QUEUE.convert(text, None, None) == name

    @pytest.mark.parametrize("text", ["a b", "", "x/y", "a%0Ab", "x" * 251])
    def test_that_no_queue_may_have_are_refused(self, text):
        with pytest.raises(Exception, match="is not the name of a queue"):
            connecting.QUEUE.convert(text, None, None)


class TestStats:
    def test_are_a_line_each(self, address):
        lines = run(stats, "-s", address).stdout.splitlines()
        assert "curr_connections          1" in lines
        assert all(len(line.split()) == 2 for line in lines)

    def test_are_json_for_programs(self, address):
        found = json.loads(run(stats, "--json", "-s", address).stdout)
        assert found["server"] == address
        assert found["stats"]["pid"] > 0
        assert found["stats"]["pointer_size"] == "64"

"""The console script: its options, its first lines, the errors at the start, and its end."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import DARNER, Server, Wire, refused, run_darner, running, until

from darner import __version__
from darner._records import CHUNK_BYTES


def test_the_log_says_in_one_line_where_an_internal_error_comes_from():
    program = """
from darner.log.lines import set_up_log
import structlog
set_up_log()
try:
    {}["missing"]
except KeyError:
    structlog.get_logger().exception("it failed", queue="work")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stderr.count("\n") == 1
    assert 'event="it failed" queue=work exception="Traceback (most recent call last):' in done.stderr
    assert "KeyError: 'missing'" in done.stderr


def started(process: subprocess.Popen) -> str:
    """Read the log until the server has started, and return it."""
    log = ""
    for line in process.stderr:
        log += line
        if "event=data" in line:
            return log
    raise AssertionError(log)


def is_free(port: int) -> bool:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def config(tmp_path):
    """A function that writes a configuration file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "darner.toml"
        path.write_text(text)
        return str(path)

    return write


class TestServe:
    def test_is_darner_without_a_command(self, tmp_path):
        with running(tmp_path / "data", command=(DARNER, "serve")) as server:
            assert server.connect().set(b"work", b"x") == b"STORED\r\n"
            assert server.stop() == 0

    def test_takes_options_in_front_of_it_too(self, tmp_path):
        done = run_darner("--config", tmp_path / "none.toml", "serve", "--check-config")
        assert (done.returncode, "none.toml" in done.stderr) == (1, True)

    def test_loads_nothing_of_other_commands(self):
        script = """
import atexit, sys
atexit.register(lambda: print(*sys.modules))
from darner.__main__ import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", script, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        loaded = set(done.stdout.split())
        assert "darner.cli.serving" in loaded
        assert not loaded & {"rich", "aiohttp", "jinja2", "darner.client", "darner.tools", "darner.repair"}


class TestOptions:
    @pytest.mark.parametrize("option", ["-v", "--version"])
    def test_version(self, option):
        done = run_darner(option)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")

    @pytest.mark.parametrize("option", ["-h", "--help"])
    def test_help_names_every_option_and_its_default(self, option):
        done = run_darner(option)
        assert done.returncode == 0
        for name in ("-d", "--data", "--host", "-p", "--port", "-c", "--config", "-v", "-h", "--debug"):
            assert name in done.stdout
        assert "--check-config" in done.stdout
        for default in ("127.0.0.1", "22133", "data"):
            assert default in done.stdout

    def test_module_is_the_same(self):
        done = subprocess.run(
            [sys.executable, "-m", "darner", "-v"], capture_output=True, text=True, timeout=20, check=True
        )
        assert done.stdout == f"{__version__}\n"

    def test_none_serves_on_127_0_0_1_22133_from_data(self, tmp_path):
        if not is_free(22133):
            pytest.skip("something listens on port 22133")
        process = subprocess.Popen([DARNER], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            started(process)
            wire = Wire(22133)
            assert wire.set(b"q", b"x") == b"STORED\r\n"
            assert (tmp_path / "data" / "q").is_dir()
            assert f"0100007F:{22133:04X}" in Path("/proc/net/tcp").read_text()
        finally:
            process.terminate()
            process.communicate(timeout=20)
        assert process.returncode == 0

    @pytest.mark.parametrize("options", [["-d", "there", "-p", "0"], ["--data", "there", "--port", "0"]])
    def test_data_and_port_have_short_and_long_names(self, tmp_path, options):
        process = subprocess.Popen([DARNER, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            log = started(process)
            port = int(re.search(r"event=listening host=127\.0\.0\.1 port=(\d+)", log)[1])
            assert Wire(port).set(b"q", b"x") == b"STORED\r\n"
            assert (tmp_path / "there" / "q").is_dir()
        finally:
            process.terminate()
            process.communicate(timeout=20)

    def test_host_is_where_it_listens(self, tmp_path):
        with running(tmp_path / "data", "--host", "127.0.0.2") as server:
            with socket.create_connection(("127.0.0.2", server.port), timeout=10) as connection:
                connection.sendall(b"version\r\n")
                assert connection.recv(100).startswith(b"VERSION ")
            with pytest.raises(ConnectionRefusedError):
                server.connect()

    @pytest.mark.parametrize("options", [[], ["--debug"]])
    def test_debug_logs_more(self, tmp_path, options):
        with running(tmp_path / "data", *options) as server:
            server.connect().set(b"heard", b"x")
            assert server.stop() == 0
        assert ("heard" in server.log) is bool(options)

    @pytest.mark.parametrize("option", ["--nonsense", "-x"])
    def test_unknown_one_is_an_error_of_usage(self, option):
        done = run_darner(option)
        assert done.returncode == 2
        assert option in done.stderr

    @pytest.mark.parametrize("port", ["x", "1.5"])
    def test_port_that_is_no_number_is_an_error_of_usage(self, port):
        done = run_darner("-p", port)
        assert done.returncode == 2
        assert port in done.stderr


class TestConfig:
    @pytest.mark.parametrize("option", ["-c", "--config"])
    def test_sets_what_options_do(self, tmp_path, config, option):
        path = config(f'data = "{tmp_path}/elsewhere"\nport = 0\nhost = "127.0.0.3"\ndebug = true\n')
        process = subprocess.Popen([DARNER, option, path], stderr=subprocess.PIPE, text=True)
        try:
            log = started(process)
        finally:
            process.terminate()
            process.communicate(timeout=20)
        assert "host=127.0.0.3" in log
        assert (tmp_path / "elsewhere").is_dir()

    def test_comes_behind_options(self, tmp_path, config):
        path = config(f'data = "{tmp_path}/elsewhere"\nport = 1\nhost = "127.0.0.3"\n')
        with running(tmp_path / "data", "--host", "127.0.0.1", "-c", path) as server:
            assert server.connect().set(b"q", b"x") == b"STORED\r\n"
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("nonsense = 1\n", "nonsense"),
            ('port = "x"\n', "port"),
            ("port = 65536\n", "port"),
            ("port = -1\n", "port"),
            ("host = 5\n", "host"),
            ("debug = 5\n", "debug"),
            ('dialect = "klingon"\n', "dialect"),
            ("keepalive = 0\n", "keepalive"),
            ("this is not TOML", "TOML"),
            ("port = 1\nport = 2\n", "TOML"),
        ],
    )
    def test_that_is_wrong_is_one_line_that_names_file_and_key(self, tmp_path, config, text, says):
        path = config(text)
        line = refused("-c", path, "-d", str(tmp_path / "data"))
        assert path in line
        assert says in line
        assert not (tmp_path / "data").exists()

    def test_that_is_not_there_or_unreadable_is_one_line(self, tmp_path):
        assert str(tmp_path / "none.toml") in refused("-c", str(tmp_path / "none.toml"))
        assert str(tmp_path) in refused("-c", str(tmp_path))
        (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
        assert "bytes.toml" in refused("-c", str(tmp_path / "bytes.toml"))

    @pytest.mark.parametrize("port", ["65536", "-1", "99999999999999999999"])
    def test_port_out_of_range_is_one_line(self, tmp_path, port):
        done = run_darner("-d", str(tmp_path / "data"), "-p", port)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert "port" in done.stderr


class TestStart:
    def test_says_where_it_listens_and_what_it_found(self, tmp_path):
        with running(tmp_path / "data") as server:
            assert re.search(r"event=listening host=127\.0\.0\.1 port=\d+\n", server.log)
            assert re.search(rf"event=data directory={tmp_path}/data queues=0 items=0\n", server.log)
            wire = server.connect()
            for n in range(7):
                wire.set(b"q%d" % (n % 3), b"x")
            wire.get(b"q0")
            server.stop()
            server.log = ""
            server.start()
            assert re.search(r"event=data directory=\S+ queues=3 items=6\n", server.log)

    def test_makes_the_data_directory_for_its_owner_alone(self, tmp_path):
        with running(tmp_path / "not" / "yet" / "there") as server:
            server.connect().set(b"q", b"x")
            assert (tmp_path / "not" / "yet" / "there" / "q").is_dir()
            assert (tmp_path / "not" / "yet" / "there").stat().st_mode & 0o777 == 0o700

    def test_leaves_what_is_not_its_own_alone(self, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        (data / "notes.txt").write_text("mine")
        (data / ".hidden").mkdir()
        (data / "photos").mkdir()
        (data / "photos" / "cat.jpg").write_text("miaow")
        with running(data) as server:
            server.connect().set(b"q", b"x")
            assert server.stop() == 0
        assert (data / "notes.txt").read_text() == "mine"
        assert (data / "photos" / "cat.jpg").read_text() == "miaow"
        assert (data / ".hidden").is_dir()

    def test_with_its_port_in_use_is_one_line(self, server, tmp_path):
        line = refused("-p", str(server.port), "-d", str(tmp_path / "other"))
        assert f"127.0.0.1:{server.port}" in line
        assert "in use" in line

    def test_with_its_data_directory_in_use_is_one_line(self, server):
        server.connect().set(b"q", b"x")
        line = refused("-p", "0", "-d", str(server.data))
        assert str(server.data) in line
        assert "in use" in line
        assert server.connect().get(b"q") == b"x"

    def test_with_a_file_where_the_data_directory_should_be_is_one_line(self, tmp_path):
        (tmp_path / "data").write_text("")
        assert str(tmp_path / "data") in refused("-p", "0", "-d", str(tmp_path / "data"))
        assert str(tmp_path / "data") in refused("-p", "0", "-d", str(tmp_path / "data" / "deeper"))

    def test_with_a_data_directory_it_cannot_write_is_one_line(self, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        if os.geteuid():
            data.chmod(0o500)
        else:
            mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(data)]
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"root may write anywhere but on a read-only mount: {done.stderr.strip()}")
        try:
            assert str(data) in refused("-p", "0", "-d", str(data))
        finally:
            if not os.geteuid():
                subprocess.run(["umount", str(data)], check=True)

    def test_with_a_host_it_does_not_have_is_one_line(self, tmp_path):
        assert "203.0.113.7" in refused("--host", "203.0.113.7", "-p", "0", "-d", str(tmp_path / "data"))
        line = refused("--host", "no.such.host.invalid", "-p", "0", "-d", str(tmp_path / "data"))
        assert "no.such.host.invalid" in line

    def test_after_one_that_failed_works(self, server, tmp_path):
        refused("-p", str(server.port), "-d", str(tmp_path / "other"))
        with running(tmp_path / "other") as other:
            assert other.connect().set(b"q", b"x") == b"STORED\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
class TestSignal:
    def test_ends_it_and_keeps_all_there_is(self, server, wire, number):
        for n in range(100):
            wire.set(b"q", b"%d" % n)
        wire.set(b"q", bytes(CHUNK_BYTES * 3))
        assert server.stop(number) == 0
        assert "event=closed" in server.log
        assert "Traceback" not in server.log
        server.start()
        again = server.connect()
        assert again.stats()["curr_items"] == "101"
        assert again.get(b"q") == b"0"

    def test_answers_those_who_wait(self, server, number):
        waiting = [server.connect() for _ in range(10)]
        for wire in waiting:
            wire.send(b"get q/t=60000\r\n")
        until(lambda: server.stat("queue_q_waiters") == 10)
        server.process.send_signal(number)
        for wire in waiting:
            assert wire.line() == b"END\r\n"
            assert wire.closed()
        assert server.process.wait(10) == 0

    def test_lets_a_set_be_sent_to_its_end(self, server, wire, number):
        wire.send(b"set q 0 0 10\r\n01234")
        other = server.connect()
        other.ask(b"version\r\n")
        server.process.send_signal(number)
        assert other.closed()
        wire.send(b"56789\r\n")
        assert wire.line() == b"STORED\r\n"
        assert wire.closed()
        assert server.process.wait(10) == 0
        server.process.stderr.close()
        server.start()
        assert server.connect().get(b"q") == b"0123456789"

    def test_lets_a_large_set_be_sent_to_its_end(self, server, wire, number):
        data = os.urandom(CHUNK_BYTES * 4)
        wire.send(b"set q 0 0 %d\r\n" % len(data) + data[:100_000])
        other = server.connect()
        other.ask(b"version\r\n")
        server.process.send_signal(number)
        assert other.closed()
        wire.send(data[100_000:] + b"\r\n")
        assert wire.line() == b"STORED\r\n"
        assert server.process.wait(10) == 0
        server.process.stderr.close()
        server.start()
        assert server.connect().get(b"q") == data

    def test_lets_a_large_item_be_read_to_its_end(self, server, wire, number):
        data = os.urandom(1 << 20) * 32
        wire.set(b"q", data)
        wire.send(b"get q\r\n")
        header = b"VALUE q 0 %d\r\n" % len(data)
        assert wire.exactly(len(header)) == header
        server.process.send_signal(number)
        assert wire.exactly(len(data) + 7) == data + b"\r\nEND\r\n"
        assert wire.closed()
        assert server.process.wait(10) == 0

    def test_gives_back_what_was_held(self, server, wire, number):
        wire.set(b"q", b"a")
        wire.set(b"q", b"b")
        wire.get(b"q/open")
        assert server.stop(number) == 0
        server.start()
        again = server.connect()
        assert [again.get(b"q"), again.get(b"q")] == [b"a", b"b"]

    def test_takes_no_new_clients(self, server, wire, number):
        wire.send(b"set q 0 0 10\r\n01234")
        other = server.connect()
        other.ask(b"version\r\n")
        server.process.send_signal(number)
        assert other.closed()
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        wire.close()
        assert server.process.wait(10) == 0

    def test_a_second_time_ends_it_at_once(self, server, wire, number):
        wire.send(b"set q 0 0 10\r\n01234")
        other = server.connect()
        other.ask(b"version\r\n")
        server.process.send_signal(number)
        server.wait_for_log("event=closing")
        server.process.send_signal(number)
        assert server.process.wait(2) == 1
        server.process.stderr.close()

    def test_does_not_wait_for_ever_for_the_rest_of_a_set(self, server, wire, number):
        if number == signal.SIGINT:
            pytest.skip("it takes its time, and SIGTERM has shown it")
        wire.set(b"q", b"x")
        wire.send(b"set q 0 0 10\r\n01234")
        other = server.connect()
        other.ask(b"version\r\n")
        assert server.stop(number) == 0
        server.start()
        assert server.stat("queue_q_items") == 1


def test_sigterm_during_start_is_an_end(tmp_path):
    process = subprocess.Popen([DARNER, "-p", "0", "-d", str(tmp_path / "data")], stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM)
    with running(tmp_path / "data") as server:
        assert isinstance(server, Server)

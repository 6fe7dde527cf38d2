"""The process with signals, with its standard files, and with a log that nobody reads."""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from running import DARNER, Server, Wire, run_darner, running, until

from darner.server.log_writer import MAX_PENDING_BYTES, LogWriter

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def is_asleep(process: subprocess.Popen) -> bool:
    """Return whether the process has loaded its modules, and waits."""
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "S" and "_plyvel" in Path(f"/proc/{process.pid}/maps").read_text()


class Starting:
    """A server that has begun to start, and waits at a pipe in place of a file."""

    def __init__(self, directory: Path, fifo: Path, *options: str) -> None:
        self.fifo = fifo
        fifo.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(fifo)
        self.process = subprocess.Popen(
            [DARNER, "--data", str(directory / "data"), "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        # opening the pipe would let the server go on
        until(lambda: is_asleep(self.process))

    def go_on(self, text: str) -> None:
        """Let the server read `text`, and find a file with it later."""
        descriptor = os.open(self.fifo, os.O_WRONLY)
        self.fifo.unlink()
        self.fifo.write_text(text)
        os.write(descriptor, text.encode())
        os.close(descriptor)

    def log_until(self, text: str) -> str:
        log = ""
        for line in self.process.stderr:
            log += line
            if text in line:
                return log
        raise AssertionError(log)

    def end(self) -> str:
        """Wait for the server's end; return its log."""
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def starting(tmp_path):
    """A function that begins to start a server, which waits for its configuration."""
    path = tmp_path / "darner.toml"
    start = Starting(tmp_path, path, "--config", str(path))
    yield start
    start.process.kill()
    start.process.wait()
    start.process.stderr.close()


class TestStart:
    @pytest.mark.parametrize("number", SIGNALS)
    @pytest.mark.parametrize("place", ["darner.toml", "data/.status"])
    def test_that_is_told_to_end_ends_without_a_word_too_many(self, tmp_path, number, place):
        path = tmp_path / place
        options = ["--config", str(path)] if path.suffix == ".toml" else []
        start = Starting(tmp_path, path, *options)
        start.process.send_signal(number)
        said = start.end()
        assert start.process.returncode == 0
        assert said.count("\n") == 1
        assert "closed before it was up" in said
        assert number.name in said
        path.unlink()
        with running(tmp_path / "data") as server:
            assert server.connect().set(b"work", b"x") == b"STORED\r\n"

    @pytest.mark.parametrize("number", SIGNALS)
    def test_that_is_told_to_end_while_it_loads_says_no_traceback(self, tmp_path, number):
        process = subprocess.Popen(
            [DARNER, "--data", str(tmp_path / "data"), "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        # a module that is loaded after the first lines of darner
        until(lambda: "uvloop" in Path(f"/proc/{process.pid}/maps").read_text())
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        assert process.returncode == 0
        assert "Traceback" not in said

    def test_goes_on_if_told_to_reload_and_does_so_once_it_is_up(self, starting):
        for _ in range(3):
            starting.process.send_signal(signal.SIGHUP)
        starting.go_on("[queue_defaults]\nmax_items = 7\n")
        log = starting.log_until("configuration reloaded")
        assert "event=data" in log
        starting.process.terminate()
        assert starting.end().count("closed") == 1
        assert starting.process.returncode == 0


class TestEnd:
    def test_of_a_server_with_a_login_under_way_is_clean(self, tmp_path):
        users = tmp_path / "users.toml"
        run_darner("passwd", users, "alice", input="pass\n").check_returncode()
        (tmp_path / "darner.toml").write_text(f'auth_file = "{users}"\n')
        with running(tmp_path / "data", "--config", str(tmp_path / "darner.toml")) as server:
            silent, checked = server.connect(), server.connect()
            silent.send(b"set any 0 0 10\r\nali")
            checked.send(b"set any 0 0 10\r\nalice pass\r\n")
            assert checked.line() == b"STORED\r\n"
            checked.send(b"get work/t=60000\r\n")
            until(lambda: select.select([checked.socket], [], [], 0)[0] == [])
            assert server.stop() == 0
            assert checked.line() == b"END\r\n"
            assert silent.closed()
        assert "Traceback" not in server.log
        assert "event=closed" in server.log

    @pytest.mark.parametrize("second", SIGNALS)
    def test_comes_at_once_with_a_second_signal_whatever_its_log_waits_for(self, tmp_path, second):
        with unread(tmp_path) as (server, wire):
            wire.send(b"set work 0 0 10\r\n01234")
            server.process.terminate()
            # it accepts no connection any more
            until(lambda: not is_listening(server.port))
            server.process.send_signal(second)
            assert server.process.wait(10) == 1

    def test_of_a_server_whose_log_nobody_reads_comes(self, tmp_path):
        with unread(tmp_path) as (server, wire):
            assert wire.set(b"work", b"x") == b"STORED\r\n"
            server.process.terminate()
            assert server.process.wait(20) == 0


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def unread(directory: Path):
    """Start a server whose standard error is a full pipe, and a client."""
    server = Server(directory / "data")
    try:
        fcntl.fcntl(server.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        wire = server.connect()
        for _ in range(300):
            assert wire.ask(b"reload\r\n") == b"Reloaded config.\r\n"

        def is_begun():
            waiting = fcntl.ioctl(server.process.stderr, termios.FIONREAD, bytes(4))
            return int.from_bytes(waiting, sys.byteorder) > 0

        # now the pipe is full
        until(is_begun)
        yield server, wire
    finally:
        server.kill()


class TestLog:
    @pytest.fixture
    def pipe(self):
        read, write = os.pipe()
        yield read, write
        os.close(read)
        os.close(write)

    def fill(self, write: int) -> int:
        """Fill a pipe; return the number of bytes."""
        os.set_blocking(write, False)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += os.write(write, b"." * 4096)
        os.set_blocking(write, True)
        return size

    def read(self, read: int, writer: LogWriter) -> bytes:
        """Read until the writer has nothing left to write."""
        os.set_blocking(read, False)
        text = b""

        def is_through() -> bool:
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                while data := os.read(read, 65536):
                    text += data
            writer.drain(0)
            return not (writer._pending or writer._is_writing)

        until(is_through)
        with contextlib.suppress(BlockingIOError):
            text += os.read(read, 65536)
        return text

    def test_makes_nobody_wait_and_says_how_many_lines_it_has_dropped(self, pipe):
        read, write = pipe
        size = self.fill(write)
        writer = LogWriter(write, "{} dropped\n".format)
        line = "x" * 999 + "\n"
        writer.write(line)
        until(lambda: writer._is_writing)  # so it accepts no more of them
        count = MAX_PENDING_BYTES // 1000 + 500
        for _ in range(count - 1):
            writer.write(line)
        lines = self.read(read, writer)[size:].decode().splitlines(keepends=True)
        dropped = int(lines.pop().split()[0])
        assert lines == [line] * (count - dropped)
        assert dropped > 0
        writer.write("more\n")
        assert self.read(read, writer) == b"more\n"

    def test_waits_at_the_end_for_who_reads_but_not_for_long(self, pipe):
        read, write = pipe
        writer = LogWriter(write, str)
        writer.write("last words\n")
        writer.drain()
        assert os.read(read, 100) == b"last words\n"
        self.fill(write)
        writer.write("nobody reads this\n")
        writer.drain(0.05)
        assert writer._is_writing

    def test_goes_on_after_a_file_that_could_not_be_written(self, pipe, monkeypatch):
        read, write = pipe
        writer = LogWriter(write, "{} dropped\n".format)
        real = os.write
        failing = [True]

        def fail(descriptor, data):
            if failing[0]:
                raise OSError(errno.ENOSPC, "no space")
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", fail)
        writer.write("one\ntwo\n")
        writer.drain()
        failing[0] = False
        writer.write("three\n")
        writer.drain()
        assert os.read(read, 100) == b"three\n2 dropped\n"

    def test_can_share_a_file_that_does_not_block(self, pipe):
        read, write = pipe
        size = self.fill(write)
        os.set_blocking(write, False)
        writer = LogWriter(write, str)
        writer.write("at last\n")
        assert self.read(read, writer)[size:] == b"at last\n"


class TestStandardFiles:
    CLOSED = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")

    @pytest.mark.parametrize("closed", CLOSED)
    def test_that_are_closed_get_no_socket_of_the_server(self, tmp_path, closed):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = f"exec {DARNER} --data {tmp_path}/data --port {port} {closed}"
        process = subprocess.Popen(["sh", "-c", command], stderr=subprocess.DEVNULL)
        try:
            until(lambda: is_listening(port))
            assert Wire(port).set(b"work", b"x") == b"STORED\r\n"
            links = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)]
        finally:
            process.terminate()
            process.wait(20)
        assert not any(link.startswith(("socket:", "anon_inode:")) for link in links)
        for number, sign in enumerate(("<&-", "1>&-", "2>&-")):
            if sign.lstrip("1") in closed.split():
                assert links[number] == os.devnull
        assert process.returncode == 0

    @pytest.mark.parametrize("closed", CLOSED)
    @pytest.mark.parametrize(
        ("command", "status"), [("check {}/data", 1), ("passwd {}/users alice", 1), ("--nonsense", 2)]
    )
    def test_that_are_closed_disturb_no_other_command(self, tmp_path, closed, command, status):
        done = subprocess.run(
            ["sh", "-c", f"{DARNER} {command.format(tmp_path)} {closed}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == status
        assert "Traceback" not in done.stderr


def test_a_command_that_is_interrupted_ends_with_130_and_without_a_word(tmp_path):
    command = [DARNER, "passwd", str(tmp_path / "users"), "alice"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    # it waits for the password
    until(lambda: is_asleep(process))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert said.strip() in (b"", b"Password:")

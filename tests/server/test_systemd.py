"""Under systemd, which the tests stand in for: sockets that it passes, and notifications to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import DARNER, Wire

ADM = Path(__file__).parents[2] / "adm"
# As systemd between fork and exec: pass descriptors from 3 on, and name the process that they are for.
PASS_SOCKETS = """
import os, sys
count = int(sys.argv[1])
given = [int(word) for word in sys.argv[2 : 2 + count]]
spare = [os.dup2(fd, 100 + number) for number, fd in enumerate(given)]
for number, fd in enumerate(spare):
    os.dup2(fd, 3 + number)
told = os.environ.get("COUNT", str(count))
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": told, "LISTEN_FDNAMES": "darner.socket"}
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a server with passed sockets; the servers end with the test."""
    processes = []

    def start(
        *sockets: socket.socket, count: str | None = None, options: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen:
        if count is not None:
            environment["COUNT"] = count
        fds = [sock.fileno() for sock in sockets]
        for fd in fds:
            os.set_inheritable(fd, True)
        server = [DARNER, "--data", str(tmp_path / "data"), "--port", "0", *options]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PASS_SOCKETS, str(len(fds)), *map(str, fds), *server],
                pass_fds=fds,
                env=os.environ | environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def listening():
    """A function that makes listening sockets, each on its own port."""
    made = []

    def listening(family=socket.AF_INET, address="127.0.0.1") -> socket.socket:
        made.append(socket.create_server((address, 0), family=family))
        return made[-1]

    yield listening
    for sock in made:
        sock.close()


class Told:
    """The socket that gets the notifications to systemd."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(10)

    def next(self) -> bytes:
        return self.socket.recv(1000)


def log_of(process: subprocess.Popen) -> str:
    """End the server and return its log."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=20)[1]


class TestSockets:
    def test_clients_are_served_on_a_socket_that_systemd_opened(self, start, listening):
        sock = listening()
        process = start(sock)
        wire = Wire(sock.getsockname()[1])
        assert wire.set(b"work", b"hello") == b"STORED\r\n"
        assert wire.get(b"work") == b"hello"
        assert re.findall(r"event=listening host=(\S+) port=(\d+)", log_of(process)) == [
            ("127.0.0.1", str(sock.getsockname()[1]))
        ]

    def test_several_sockets_are_one_server(self, start, listening):
        first, second = listening(), listening()
        start(first, second)
        assert Wire(first.getsockname()[1]).set(b"work", b"hello") == b"STORED\r\n"
        assert Wire(second.getsockname()[1]).get(b"work") == b"hello"

    def test_a_client_that_was_there_before_the_server_is_served(self, start, listening):
        sock = listening()
        wire = Wire(sock.getsockname()[1])
        wire.send(b"version\r\n")
        start(sock)
        assert wire.line().startswith(b"VERSION ")

    def test_the_socket_outlives_the_server_and_clients_wait_for_the_next(self, start, listening):
        sock = listening()
        process = start(sock)
        assert Wire(sock.getsockname()[1]).set(b"work", b"hello") == b"STORED\r\n"
        process.kill()
        process.wait()
        wire = Wire(sock.getsockname()[1])
        wire.send(b"get work\r\n")
        assert wire.silent()
        start(sock)
        assert wire.line() == b"VALUE work 0 5\r\n"

    def test_sockets_for_another_process_are_left_alone(self, tmp_path, listening):
        sock = listening()
        told = Told(str(tmp_path / "notify"))
        environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen(
            [DARNER, "--data", str(tmp_path / "data"), "--port", "0"],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert told.next() == b"READY=1"
        assert f"port={sock.getsockname()[1]}" not in log_of(process)
        assert process.returncode == 0

    def test_a_unix_socket_is_served_and_left_where_it_is(self, start, listening, tmp_path):
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
            sock.bind(path)
            sock.listen()
            # besides a TCP socket, which the server has not made
            process = start(listening(), sock)
            client.settimeout(10)
            client.connect(path)
            client.sendall(b"version\r\n")
            assert client.recv(100).startswith(b"VERSION ")
            assert f"event=listening socket={path}\n" in log_of(process)
            assert (tmp_path / "socket").is_socket()

    def test_a_unix_socket_may_be_the_one_of_the_options_however_that_is_written(self, start, tmp_path):
        with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
            sock.bind(str(tmp_path / "socket"))
            sock.listen()
            process = start(sock, options=["--socket", os.path.relpath(tmp_path / "socket")])
            client.settimeout(10)
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"version\r\n")
            assert client.recv(100).startswith(b"VERSION ")
            assert log_of(process).count("event=listening") == 1
            assert (tmp_path / "socket").is_socket()

    def test_a_unix_socket_of_the_abstract_namespace_is_shown_as_systemd_has_it(self, start):
        name = f"darner-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
            sock.bind(f"\0{name}")
            sock.listen()
            process = start(sock)
            client.settimeout(10)
            client.connect(f"\0{name}")
            client.sendall(b"version\r\n")
            assert client.recv(100).startswith(b"VERSION ")
            assert f"event=listening socket=@{name}\n" in log_of(process)

    def test_a_unix_socket_for_datagrams_is_refused(self, start, tmp_path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(tmp_path / "socket"))
            assert "is neither TCP nor a Unix stream socket" in self.refused(start(sock))

    def refused(self, process) -> str:
        """Return the one line that the server logs instead of starting."""
        said = process.communicate(timeout=20)[1]
        assert process.returncode == 1
        assert said.count("\n") == 1, said
        return said

    def test_a_connection_in_the_place_of_a_socket_that_listens_is_refused(self, start, listening):
        sock = listening()
        with socket.create_connection(sock.getsockname()) as client:
            accepted, _ = sock.accept()
            with accepted:
                assert "Accept=no" in self.refused(start(accepted))
                assert "Accept=no" in self.refused(start(sock, accepted))
                assert "Accept=no" in self.refused(start(client))

    def test_a_socket_that_does_not_listen_is_refused(self, start):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            assert "ListenStream=" in self.refused(start(sock))
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            assert "is neither TCP nor a Unix stream socket" in self.refused(start(sock))

    @pytest.mark.parametrize("count", ["x", "-1", "1.5", "٣", " 1", "9" * 5000])
    def test_a_number_of_sockets_that_is_none_is_refused(self, start, count):
        assert "LISTEN_FDS" in self.refused(start(count=count))

    def test_no_socket_at_all_is_as_without_systemd(self, start, tmp_path):
        for count in ("0", ""):
            told = Told(str(tmp_path / f"notify{count}"))
            process = start(count=count, NOTIFY_SOCKET=str(tmp_path / f"notify{count}"))
            assert told.next() == b"READY=1"
            assert "event=listening" in log_of(process)

    def test_fewer_sockets_than_were_told_of_are_refused(self, start, listening):
        assert "descriptor 4 of systemd is no socket" in self.refused(start(listening(), count="2"))

    def test_a_descriptor_that_is_no_socket_is_refused(self, start):
        with Path(os.devnull).open() as file:
            process = start(file)
            said = process.communicate(timeout=20)[1]
        assert "is no socket" in said
        assert "Traceback" not in said
        assert process.returncode == 1


class TestNotify:
    @pytest.mark.parametrize("kind", ["file", "abstract"])
    def test_systemd_is_told_when_it_serves_and_when_it_closes(self, start, listening, tmp_path, kind):
        address = str(tmp_path / "notify") if kind == "file" else f"@darner-{os.getpid()}"
        told = Told(address.replace("@", "\0"))
        sock = listening()
        process = start(sock, NOTIFY_SOCKET=address)
        assert told.next() == b"READY=1"
        assert Wire(sock.getsockname()[1]).ask(b"version\r\n").startswith(b"VERSION ")
        process.terminate()
        assert told.next() == b"STOPPING=1"
        process.communicate(timeout=20)
        assert process.returncode == 0

    def test_a_server_that_cannot_start_is_never_ready(self, start, tmp_path):
        (tmp_path / "data").write_text("in the way")
        told = Told(str(tmp_path / "notify"))
        process = start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        process.communicate(timeout=20)
        assert process.returncode == 1
        told.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            told.next()

    def test_a_server_that_cannot_tell_serves_all_the_same(self, start, listening, tmp_path):
        sock = listening()
        process = start(sock, NOTIFY_SOCKET=str(tmp_path / "nobody"))
        assert Wire(sock.getsockname()[1]).ask(b"version\r\n").startswith(b"VERSION ")
        assert "cannot notify systemd" in log_of(process)
        assert process.returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
class TestUnits:
    @pytest.fixture
    def units(self, tmp_path):
        """The unit files, with the darner under test in place of the one in /opt."""
        for unit in ADM.iterdir():
            text = unit.read_text().replace("/opt/darner/bin/darner", DARNER)
            (tmp_path / unit.name).write_text(text)
        return [str(tmp_path / name) for name in ("darner.service", "darner.socket")]

    def test_systemd_understands_them(self, units):
        done = subprocess.run(
            ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_little_is_open_to_the_service(self, units):
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", units[0]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

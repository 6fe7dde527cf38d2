"""A real server: the console script, its data directory, and plain sockets to it."""

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DARNER = str(Path(sys.executable).with_name("darner"))
# How long is waited for what must come: no machine is so slow.
WAIT_S = 60.0
# The token of an item is its id, and this for each time that it has come back.
ATTEMPT = 1 << 48
# The ClusterAccounts in which servers keep their queues if not in a data directory each: see conftest.py.
CLUSTER = None

_OF_QUEUE = re.compile(r"queue_(.*?)_((?:[a-z]+_)?items|waiters|open_transactions)")


def run_darner(
    *words: object, input: str | None = None, directory: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the console script to its end."""
    return subprocess.run(
        [DARNER, *map(str, words)], input=input, cwd=directory, env=os.environ | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def refused(*options: object, **environment: str) -> str:
    """Start a server where it cannot start; return the one line that it logs."""
    done = run_darner(*options, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def allocated_bytes(path: Path) -> int:
    """Return the bytes that the file system has allocated to a file, or to all files in a directory."""
    allocated = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):  # the server may delete files meanwhile
            allocated += file.stat().st_blocks * 512
    return allocated


def until(happened: Callable[[], object], seconds: float = WAIT_S) -> None:
    """Wait until `happened()`; AssertionError if it does not within this time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(0.01)


class Wire:
    """A connection on which a test sends and reads bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """Read a line with its end; b"" if the server has closed the connection."""
        while b"\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                rest, self._buffer = self._buffer, b""
                return rest
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def exactly(self, size: int) -> bytes:
        """Read so many bytes; EOFError if the server closes the connection before."""
        while len(self._buffer) < size:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError(f"closed after {len(self._buffer)} of {size} bytes")
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def ask(self, data: bytes) -> bytes:
        """Send a request whose reply is one line, and return the reply."""
        self.send(data)
        return self.line()

    def get(self, key: bytes) -> bytes | None:
        """Send `get <key>` and return the item's data, or None if there was none."""
        values = self.values(b"get " + key)
        return values[0][3] if values else None

    def gets(self, key: bytes) -> tuple[int, bytes] | None:
        """Send `gets <key>` and return the item's token and data, or None if there was none."""
        values = self.values(b"gets " + key)
        return (values[0][2], values[0][3]) if values else None

    def drain(self, queue: bytes) -> list[tuple[int, bytes]]:
        """Take all items of a queue; return their ids and data."""
        return [(token % ATTEMPT, data) for token, data in iter(lambda: self.gets(queue), None)]

    def take_all(self, queue: bytes) -> list[bytes]:
        """Take all items of a queue; return their data."""
        return list(iter(lambda: self.get(queue), None))

    def values(self, request: bytes) -> list[tuple[bytes, int, int | None, bytes]]:
        """Send a `get` or `gets`; return key, flags, cas and data of each value."""
        self.send(request + b"\r\n")
        found = []
        while (line := self.line()) != b"END\r\n":
            word, key, flags, size, *cas = line.split()
            if word != b"VALUE":
                raise AssertionError(line)
            data = self.exactly(int(size))
            if self.exactly(2) != b"\r\n":
                raise AssertionError("no line end behind the data")
            found.append((key, int(flags), int(cas[0]) if cas else None, data))
        return found

    def set(self, queue: bytes, data: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        return self.ask(b"set %s %d %d %d\r\n%s\r\n" % (queue, flags, exptime, len(data), data))

    def stats(self) -> dict[str, str]:
        self.send(b"stats\r\n")
        return self.stats_reply()

    def stats_reply(self) -> dict[str, str]:
        """Read the reply to a `stats` that was sent already."""
        found = {}
        while (line := self.line()) != b"END\r\n":
            _, name, value = line.split()
            found[name.decode(errors="replace")] = value.decode()
        return found

    def silent(self, seconds: float = 0.1) -> bool:
        """Return whether nothing comes for so long."""
        # `select` knows no descriptor above 1,023
        reply_comes = select.poll()
        reply_comes.register(self.socket, select.POLLIN)
        return not self._buffer and not reply_comes.poll(seconds * 1000)

    def closed(self) -> bool:
        """Return whether the server has closed this connection, with nothing left to read."""
        try:
            return self.line() == b""
        except ConnectionResetError:
            return True

    def half_close(self) -> None:
        """Close the sending side."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close the connection by a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


def resident_bytes(process: subprocess.Popen) -> int:
    """Return the resident memory of a process, as the kernel counts it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Server:
    """The console script `darner`, running."""

    def __init__(
        self, data: Path, *options: str, command: tuple[str, ...] = (DARNER,), cluster: object = None
    ) -> None:
        """With a ClusterAccounts as `cluster` the queues are there, in the account of this directory."""
        self.data = data
        self.cluster = cluster or CLUSTER
        self.command = command
        self.options = options
        self.log = ""
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        self.process = subprocess.Popen(
            [*self.command, "--port", "0", *self._stored()], stderr=subprocess.PIPE, bufsize=0
        )
        started = self.wait_for_log("event=data" if self.cluster is None else 'event="data in a cluster"')
        self.port = int(re.search(r"event=listening host=\S+ port=(\d+)", started)[1])

    def _stored(self) -> list[str]:
        """Return the options, and those that say where the queues are kept."""
        if self.cluster is None:
            return ["--data", str(self.data), *self.options]
        options = list(self.options)
        at = [options.index(option) + 1 for option in ("-c", "--config") if option in options]
        if not at:
            self.data.parent.mkdir(parents=True, exist_ok=True)
            options += ["--config", str(self.data.with_suffix(".cluster.toml"))]
            at = [-1]
        path = Path(options[at[0]])
        self._write(path, path.read_text() if path.exists() else "")
        return [*self.cluster.options(self.data), *options]

    def _write(self, path: Path, text: str) -> None:
        settings = self.cluster.settings if self.cluster is not None else ""
        path.write_text(settings + text.removeprefix(settings))

    def write_config(self, text: str) -> None:
        """Write another configuration into the file that follows `--config`: it holds from a reload on."""
        self._write(Path(self.options[self.options.index("--config") + 1]), text)

    def wait_for_log(self, text: str, seconds: float = WAIT_S) -> str:
        """Read the log until a line contains `text`; return the lines read."""
        deadline = time.monotonic() + seconds
        log_comes = select.poll()
        log_comes.register(self.process.stderr, select.POLLIN)
        log = ""
        while text not in log or not log.endswith("\n"):
            left = deadline - time.monotonic()
            data = self.process.stderr.read(65536) if log_comes.poll(max(left, 0) * 1000) else b""
            if not data:
                raise AssertionError(f"no {text!r} in the log within {seconds} s:\n{log}")
            log += data.decode()
        self.log += log
        return log

    def connect(self) -> Wire:
        return Wire(self.port)

    def stat(self, name: str) -> int:
        """Ask for one figure of `stats` over a new connection; 0 if there is none of this name."""
        of_queue = _OF_QUEUE.fullmatch(name)
        if of_queue:
            return self._dumped(of_queue[1].encode(), of_queue[2])
        with contextlib.closing(self.connect()) as wire:
            return int(wire.stats().get(name, 0))

    def waiters(self, queue: bytes) -> int:
        """Return the number of clients that wait at a queue."""
        return self._dumped(queue, "waiters")

    def _dumped(self, queue: bytes, figure: str) -> int:
        """Ask for a figure of one queue by itself: `stats` lists them all."""
        with contextlib.closing(self.connect()) as wire:
            wire.send(b"dump_stats %s\r\n" % queue)
            lines = iter(wire.line, b"END\r\n")
            start = f"  {figure}=".encode()
            return sum(int(line.removeprefix(start)) for line in lines if line.startswith(start))

    @property
    def descriptors(self) -> int:
        """The number of open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    @property
    def resident_bytes(self) -> int:
        """The resident memory, as the kernel counts it."""
        return resident_bytes(self.process)

    @property
    def process_stat(self) -> list[str]:
        """The fields of /proc/PID/stat, from the state on."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()

    @property
    def processor_s(self) -> float:
        """The CPU seconds used so far."""
        user, system = self.process_stat[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the server by SIGKILL."""
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server by a signal, read the rest of its log, and return its exit code."""
        self.process.send_signal(number)
        self.log += self.process.communicate(timeout=WAIT_S)[1].decode()
        return self.process.returncode

    def end(self, how: str) -> None:
        """End the server: "killed", or "stopped" well."""
        if how == "killed":
            self.kill()
        else:
            assert self.stop() == 0

    def restart(self) -> None:
        """Kill and start again, on another port."""
        self.kill()
        self.start()


@contextlib.contextmanager
def running(data: Path, *options: str, command: tuple[str, ...] = (DARNER,)) -> Iterator[Server]:
    """Start a server, and kill it at the end if it still runs."""
    server = Server(data, *options, command=command)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


@contextlib.contextmanager
def running_well(data: Path, *options: str) -> Iterator[Server]:
    """Start a server that must end well: by SIGTERM, with no traceback in its log."""
    with running(data, *options) as server:
        yield server
        code = server.stop()
    assert "Traceback" not in server.log
    assert code == 0


def configured(directory: Path, text: str, *options: str) -> contextlib.AbstractContextManager[Server]:
    """Start a server with this configuration, which lies in the directory beside its data."""
    path = directory / "darner.toml"
    path.write_text(text)
    return running(directory / "data", "--config", str(path), *options)

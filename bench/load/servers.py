"""The servers under measurement: their names on the command line, and what they and the kernel tell.

Benches are for servers on this machine: any address but a loopback one is refused.
"""

import contextlib
import ipaddress
import os
import random
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

TIMEOUT_S = 30.0
MB, MIB = 1e6, 1 << 20
PROBE = "bench-probe"
SHARED_CORES = "client and server may run on the same core: pin them apart with taskset"


class ServerError(click.ClickException):
    """A server cannot be measured."""


def loopback(host: str) -> str:
    """Return the address of a loopback host; any other is a bad parameter."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local:
        raise click.BadParameter(
            f"{host!r} is not a loopback address: benches load only servers of this machine"
        )
    return address


@dataclass(frozen=True)
class Server:
    """One server under measurement. Without a `pid` its CPU and memory are not known."""

    name: str
    host: str
    port: int
    pid: int | None = None

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        """Yield a blocking connection to the server, and close it."""
        try:
            connection = socket.create_connection((self.host, self.port), TIMEOUT_S)
        except OSError as error:
            raise ServerError(f"{self.name} at {self.host}:{self.port}: {error}") from error
        with connection:
            yield connection

    def ask(self, connection: socket.socket, request: bytes, end: bytes = b"\n") -> bytes:
        """Send a request and return the reply, which ends with `end`."""
        reply = b""
        try:
            connection.sendall(request)
            while not reply.endswith(end):
                if not (data := connection.recv(1 << 16)):
                    raise ServerError(f"{self.name} closed the connection at {request[:40]!r}")
                reply += data
        except OSError as error:
            raise ServerError(f"{self.name} does not answer {request[:40]!r}: {error}") from error
        return reply

    def version(self) -> str:
        """Return the version that the server reports."""
        with self.connect() as connection:
            reply = self.ask(connection, b"version\r\n")
        return reply.decode("ascii", "replace").strip().removeprefix("VERSION ")

    def is_queue(self) -> bool:
        """Return whether a get removes the item; if not, the server is a key-value store."""
        name = f"{PROBE}-{os.getpid()}"
        get = f"get {name}\r\n".encode()
        with self.connect() as connection:
            self.ask(connection, f"set {name} 0 0 1\r\nx\r\n".encode())
            self.ask(connection, get, b"END\r\n")
            removed = self.ask(connection, get, b"END\r\n") == b"END\r\n"
        self.delete(name)
        return removed

    def delete(self, *queues: str) -> None:
        """Delete queues, or flush them where the server does not know `delete`."""
        with self.connect() as connection:
            for queue in queues:
                if b"ERROR" in self.ask(connection, f"delete {queue}\r\n".encode()):
                    self.ask(connection, f"flush {queue}\r\n".encode())

    def cpu_s(self) -> float:
        """Return the CPU seconds that the server's process has used; 0 without a pid."""
        if self.pid is None:
            return 0.0
        times = self._process("cpu_times")
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Return the resident memory of the server's process."""
        return int(self._process("memory_info").rss)

    def bytes_from_disk(self) -> int:
        """Return how many bytes the server's process has had read from a disk."""
        return int(self._process("io_counters").read_bytes)

    def shares_cores(self) -> bool:
        """Return whether the server and this process may run on the same core."""
        return self.pid is not None and bool(set(self._process("cpu_affinity")) & os.sched_getaffinity(0))

    def _process(self, what: str) -> Any:
        try:
            return getattr(psutil.Process(self.pid), what)()
        except psutil.Error as error:
            raise ServerError(f"{self.name}: {error}") from error


def named_server(text: str) -> Server:
    """Return the server of `name=host:port` or `name=host:port:pid`; an IPv6 host is in brackets."""
    found = re.fullmatch(r"([^=]+)=(\[[^]]+\]|[^:\[\]]+):(\d+)(?::(\d+))?", text)
    if not found:
        raise click.BadParameter(f"{text!r} is not name=host:port or name=host:port:pid")
    name, host, port, pid = found.groups()
    if not 0 < int(port) < 65536:
        raise click.BadParameter(f"{port} is not a port")
    if pid and not psutil.pid_exists(int(pid)):
        raise click.BadParameter(f"there is no process {pid}")
    return Server(name, loopback(host.strip("[]")), int(port), int(pid) if pid else None)


def free_port() -> int:
    """Return a free port below those that clients are given: while its server is down nobody takes it."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def close_with_reset(connection: socket.socket) -> None:
    """Close a connection by a RST instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

"""The servers a bench talks to: how they are named on the command line, and what is asked of them and of the kernel.

Benches are for servers of one's own: anything but a loopback address is refused.
"""

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

TIMEOUT_S = 30.0
PROBE = "bench-probe"
SHARED_CORES = "client and server may run on the same core: pin them apart with taskset"


class ServerError(click.ClickException):
    """A server cannot be measured."""


def loopback(host: str) -> str:
    """Return the address of a loopback host; ValueError if it is none."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{host!r} is not a loopback address: benches load only servers of this machine")
    return address


class LoopbackHost(click.ParamType):
    """An option's value that must be a loopback address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address."""
        try:
            return loopback(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class Server:
    """One server under measurement. `pid` is None where nobody said."""

    name: str
    host: str
    port: int
    pid: int | None = None

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        """Give a blocking connection to it, and close that."""
        try:
            connection = socket.create_connection((self.host, self.port), TIMEOUT_S)
        except OSError as error:
            raise ServerError(f"{self.name} at {self.host}:{self.port}: {error}") from error
        with connection:
            yield connection

    def ask(self, connection: socket.socket, request: bytes, end: bytes = b"\n") -> bytes:
        """Send a request; returns the reply, which must finish with `end`."""
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
        """Return what it says to `version`, without the word."""
        with self.connect() as connection:
            reply = self.ask(connection, b"version\r\n")
        return reply.decode("ascii", "replace").strip().removeprefix("VERSION ")

    def is_queue(self) -> bool:
        """Whether a get removes what it returns. Where it does not, the server is a key-value store."""
        name = f"{PROBE}-{os.getpid()}"
        get = f"get {name}\r\n".encode()
        with self.connect() as connection:
            self.ask(connection, f"set {name} 0 0 1\r\nx\r\n".encode())
            self.ask(connection, get, b"END\r\n")
            removed = self.ask(connection, get, b"END\r\n") == b"END\r\n"
        self.delete(name)
        return removed

    def delete(self, *queues: str) -> None:
        """Remove queues; where `delete` is not known, `flush` them. What neither does, stays."""
        with self.connect() as connection:
            for queue in queues:
                if b"ERROR" in self.ask(connection, f"delete {queue}\r\n".encode()):
                    self.ask(connection, f"flush {queue}\r\n".encode())

    def cpu_s(self) -> float:
        """Return the CPU seconds its process has used; 0 without a pid."""
        if self.pid is None:
            return 0.0
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Return the resident memory of its process."""
        if self.pid is None:
            raise ServerError(f"{self.name} was given without a pid: name=host:port:pid")
        return int(psutil.Process(self.pid).memory_info().rss)

    def shares_cores(self) -> bool:
        """Whether its process and this one may run on the same core."""
        if self.pid is None:
            return False
        return bool(set(psutil.Process(self.pid).cpu_affinity()) & os.sched_getaffinity(0))


class ServerType(click.ParamType):
    """A server on the command line: `name=host:port` or `name=host:port:pid`, an IPv6 host in brackets."""

    name = "server"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Server:
        """Return the server."""
        if isinstance(value, Server):
            return value
        found = re.fullmatch(r"([^=]+)=(\[[^]]+\]|[^:\[\]]+):(\d+)(?::(\d+))?", value)
        if not found:
            self.fail(f"{value!r} is not name=host:port or name=host:port:pid", param, ctx)
        name, host, port, pid = found.groups()
        try:
            address = loopback(host.strip("[]"))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 0 < int(port) < 65536:
            self.fail(f"{port} is not a port", param, ctx)
        if pid and not psutil.pid_exists(int(pid)):
            self.fail(f"there is no process {pid}", param, ctx)
        return Server(name, address, int(port), int(pid) if pid else None)
